"""The compiled kernels and where the packages lie; everything else is in pyproject.toml.

HHTLD_DEBUG_KERNELS=1 turns Cython's bounds checks on and optimizes little, HHTLD_SANITIZE=1 adds ASan and UBSan,
HHTLD_WERROR=1 makes compiler warnings errors, HHTLD_ABI3=1 builds one wheel for every Python from 3.11 on
(a call into a kernel then takes 0.35 us instead of 0.25 us, a row read 8 % longer; encoding the same).
HHTLD_COMPILED names a folder of compiled kernels that several checkouts share; without it, each has its build/kernels/.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

from Cython import __version__ as cython_version
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

KERNELS = Path("hhtld/_kernels")
# What Cython writes for typed memoryviews stands in one module of its own, and not again in each kernel, where it took
# four fifths of the time of the compiler and of the size.
SHARED = "hhtld._kernels._memoryviews"
COMPILED = Path(os.environ.get("HHTLD_COMPILED") or "build/kernels")
DEBUG = os.environ.get("HHTLD_DEBUG_KERNELS") == "1"
# A free-threaded Python has no stable ABI yet.
ABI3 = os.environ.get("HHTLD_ABI3") == "1" and not sysconfig.get_config_var("Py_GIL_DISABLED")

# No -march, no -ffast-math: the tier is chosen at run time and every tier gives the same bits.
UNIX = ["-O1" if DEBUG else "-O3", "-g0", "-std=c11", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra"]
if os.environ.get("HHTLD_WERROR") == "1":
    UNIX += ["-Werror", "-Wno-error=unused-function"]
SANITIZE = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g1"]
FLAGS = {"unix": UNIX, "msvc": ["/O2", "/fp:precise", "/std:c11"]}

DIRECTIVES = {
    "language_level": "3",
    "binding": True,
    "embedsignature": True,
    "freethreading_compatible": True,
    "cdivision": not DEBUG,
    "boundscheck": DEBUG,
    "wraparound": False,
    "initializedcheck": DEBUG,
}
CYTHON_FOLDER = "build/cython-debug" if DEBUG else "build/cython"
ONE_CYTHON_AT_A_TIME = threading.Lock()


class build_kernels(build_ext):
    """Compile on all processors, and each kernel once for one Python, compiler and set of flags.

    An editable install begins every time in an empty folder, so the second `pip install -e` would compile everything
    again. What was compiled stays in build/kernels/ (or in HHTLD_COMPILED) beside the digest of its sources and is
    taken from there.
    """

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def build_extensions(self) -> None:
        flags = list(FLAGS.get(self.compiler.compiler_type, UNIX))
        link_flags: list[str] = []
        if os.environ.get("HHTLD_SANITIZE") == "1":
            flags += SANITIZE
            link_flags += SANITIZE
        compiler = getattr(self.compiler, "compiler_so", [self.compiler.compiler_type])
        told = (compiler, flags, link_flags, sorted(DIRECTIVES.items()), ABI3, os.environ.get("CFLAGS"))
        self.compiled = COMPILED / hashlib.sha256(repr(told).encode()).hexdigest()[:16]
        self.compiled.mkdir(parents=True, exist_ok=True)
        for extension in self.extensions:
            extension.extra_compile_args += flags
            extension.extra_link_args += link_flags
        super().build_extensions()

    def build_extension(self, extension: Extension) -> None:
        wanted = Path(self.get_ext_fullpath(extension.name))
        compiled = self.compiled / wanted.name
        stamp = compiled.with_suffix(".sources")
        digest = hashlib.sha256(cython_version.encode())
        for source in (*extension.sources, *extension.depends):
            digest.update(Path(source).read_bytes())
        if not (compiled.exists() and stamp.exists() and stamp.read_text() == digest.hexdigest()):
            with ONE_CYTHON_AT_A_TIME:
                extension.sources = shared_source() if extension.name == SHARED else translated(extension)
            super().build_extension(extension)
            # Whole or not at all: another checkout may look here at the same moment.
            mine = self.compiled / f"{wanted.name}.{os.getpid()}"
            stamp.unlink(missing_ok=True)
            shutil.copy2(wanted, mine)
            mine.replace(compiled)
            mine.write_text(digest.hexdigest())
            mine.replace(stamp)
        else:
            wanted.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(compiled, wanted)


def translated(kernel: Extension) -> list[str]:
    """Return the C file that Cython makes of a kernel."""
    options = {"compiler_directives": DIRECTIVES, "build_dir": CYTHON_FOLDER, "shared_utility_qualified_name": SHARED}
    return cythonize([kernel], quiet=True, **options)[0].sources


def shared_source() -> list[str]:
    """Return the C file of what the kernels share, which Cython writes without a source of ours."""
    source = Path(CYTHON_FOLDER, *SHARED.split(".")).with_suffix(".c")
    source.parent.mkdir(parents=True, exist_ok=True)
    write = [sys.executable, "-m", "cython", "-X", "freethreading_compatible=True", f"--generate-shared={source}"]
    subprocess.run(write, check=True)
    return [source.as_posix()]


# hhtld/formats is a link to formats/, so that tools find every module below one folder. A checkout without links
# (Windows, core.symlinks off) holds a small file in its place and is told where the package lies.
PACKAGE_DIR = {"": "."} if Path("hhtld/formats").is_dir() else {"": ".", "hhtld.formats": "formats"}

extensions = [
    Extension(
        name,
        sources,
        include_dirs=[KERNELS.as_posix()],
        depends=sorted(path.as_posix() for suffix in ("h", "pxd") for path in KERNELS.glob(f"*.{suffix}")),
        py_limited_api=ABI3,
        define_macros=[("Py_LIMITED_API", "0x030b0000"), ("CYTHON_LIMITED_API", "1")] if ABI3 else [],
    )
    for name, sources in [
        (SHARED, []),
        *((f"hhtld._kernels.{path.stem}", [path.as_posix()]) for path in sorted(KERNELS.glob("_*.pyx"))),
    ]
]

setup(
    ext_modules=extensions,
    cmdclass={"build_ext": build_kernels},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if ABI3 else {},
    packages=[
        "hhtld",
        "hhtld._kernels",
        "hhtld.api",
        "hhtld.codecs",
        "hhtld.commands",
        "hhtld.commands.inspect",
        "hhtld.commands.probe",
        "hhtld.display",
        "hhtld.display.templates",
        "hhtld.encoding",
        "hhtld.evaluation",
        "hhtld.evaluation.parity",
        "hhtld.evaluation.speech",
        "hhtld.formats",
        "hhtld.formats.gguf",
        "hhtld.formats.hdf5",
        "hhtld.formats.hhtld",
        "hhtld.formats.onnx",
        "hhtld.integrations",
        "hhtld.integrations.torch",
        "hhtld.integrations.transformers",
        "hhtld.pack",
        "hhtld.search",
        "hhtld.slots",
        "hhtld.slots.codebooks",
        "hhtld.sources",
        "hhtld.storage",
    ],
    package_dir=PACKAGE_DIR,
)
