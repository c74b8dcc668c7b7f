"""The compiled kernels and where the packages lie; everything else is in pyproject.toml.

HHTLD_DEBUG_KERNELS=1 turns Cython's bounds checks on, HHTLD_SANITIZE=1 adds ASan and UBSan,
HHTLD_WERROR=1 makes compiler warnings errors, HHTLD_ABI3=1 builds one wheel for every Python from 3.11 on
(a call into a kernel then takes 0.35 us instead of 0.25 us, a row read 8 % longer; encoding the same).
"""

import os
import sysconfig
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

KERNELS = Path("hhtld/_kernels")
DEBUG = os.environ.get("HHTLD_DEBUG_KERNELS") == "1"
# A free-threaded Python has no stable ABI yet.
ABI3 = os.environ.get("HHTLD_ABI3") == "1" and not sysconfig.get_config_var("Py_GIL_DISABLED")

# No -march, no -ffast-math: the tier is chosen at run time and every tier gives the same bits.
UNIX = ["-O3", "-std=c11", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra"]
if os.environ.get("HHTLD_WERROR") == "1":
    UNIX += ["-Werror", "-Wno-error=unused-function"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g"]
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


class build_kernels(build_ext):
    """Add the compiler's own flags once it is known."""

    def build_extensions(self) -> None:
        for extension in self.extensions:
            extension.extra_compile_args += FLAGS.get(self.compiler.compiler_type, UNIX)
            if os.environ.get("HHTLD_SANITIZE") == "1":
                extension.extra_compile_args += SANITIZE
                extension.extra_link_args += SANITIZE
        super().build_extensions()


# hhtld/formats is a link to formats/, so that tools find every module below one folder. A checkout without links
# (Windows, core.symlinks off) holds a small file in its place and is told where the package lies.
PACKAGE_DIR = {"": "."} if Path("hhtld/formats").is_dir() else {"": ".", "hhtld.formats": "formats"}

extensions = [
    Extension(
        f"hhtld._kernels.{source.stem}",
        [source.as_posix()],
        include_dirs=[KERNELS.as_posix()],
        depends=sorted(header.as_posix() for header in KERNELS.glob("*.h")),
        py_limited_api=ABI3,
        define_macros=[("Py_LIMITED_API", "0x030b0000"), ("CYTHON_LIMITED_API", "1")] if ABI3 else [],
    )
    for source in sorted(KERNELS.glob("_*.pyx"))
]

setup(
    ext_modules=cythonize(extensions, compiler_directives=DIRECTIVES, build_dir="build/cython"),
    cmdclass={"build_ext": build_kernels},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if ABI3 else {},
    packages=[
        "hhtld",
        "hhtld._kernels",
        "hhtld.codebooks",
        "hhtld.formats",
        "hhtld.formats.hdf5",
        "hhtld.formats.hhtld",
        "hhtld.integrations",
    ],
    package_dir=PACKAGE_DIR,
)
