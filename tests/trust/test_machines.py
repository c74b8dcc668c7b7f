"""Other byte orders, other processors and other Pythons, as far as this machine can play them."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import hhtld
import hhtld._kernels
import hhtld.formats
from hhtld._kernels import _isa
from tests.trust import machines

pytestmark = pytest.mark.exhaustive

PACKAGE, FORMATS = Path(hhtld.__file__).parent, Path(hhtld.formats.__file__).parent
KERNELS = Path(hhtld._kernels.__file__).parent


def structs() -> Iterator[tuple[str, str]]:
    """Every format string of `struct` in the package, with the file it is in."""
    calls = {"Struct", "pack", "unpack", "pack_into", "unpack_from", "iter_unpack", "calcsize"}
    for path in {*PACKAGE.rglob("*.py"), *FORMATS.rglob("*.py")}:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in calls:
                first = node.args[0] if node.args else None
                if isinstance(node.func.value, ast.Name) and node.func.value.id == "struct":
                    assert isinstance(first, ast.Constant), path
                    yield path.name, str(first.value)


def test_big_endian_words_are_asked_for_by_name() -> None:
    """What is read from files says its byte order, so that no machine's own is meant."""
    found = list(structs())
    assert len(found) > 8
    assert [item for item in found if item[1][0] not in "<>"] == []


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_big_endian_machines_are_refused_when_kernels_are_built() -> None:
    compiled = [
        subprocess.run(
            ["cc", "-fsyntax-only", "-w", *flags, "-x", "c", str(KERNELS / "isa.h")],
            capture_output=True,
            text=True,
            check=False,
        )
        for flags in ([], ["-U__BYTE_ORDER__", "-D__BYTE_ORDER__=4321"])
    ]
    assert compiled[0].returncode == 0, compiled[0].stderr
    assert "this machine is big-endian" in compiled[1].stderr


def test_this_machine_gives_what_the_golden_files_say() -> None:
    found = list(machines.lines())
    assert found[0] == f"tier {_isa.tier()}"
    words = {line.split()[0]: line.split() for line in found[1:]}
    for line in machines.expected():
        name, _, digest = line.split()
        assert words[name][-1] == digest


WHERE_ROUNDINGS_SHOW = """
import hashlib
import numpy as np
import hhtld
from hhtld.slots.feedback import feedback_matrix
from hhtld.slots.rotation import Rotation

def packed(rows, profile):
    pack = hhtld.encode({"embed.weight": rows}, profile)
    sections = [pack.sections.whole(index).tobytes() for index in range(len(pack.sections.kinds()))]
    return hashlib.sha256(b"".join(sections)).hexdigest()

rng = np.random.default_rng(1)
tiled = np.tile(np.eye(256, dtype=np.float32) + np.float32(0.5), (4, 1))
hadamard = np.ones((1, 1), np.float32)
while len(hadamard) < 512:
    hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
directions = np.tile(np.eye(8, 256) * 4, (150, 1)) + 0.05 * np.sign(rng.random((1200, 256)) - 0.5)
for rows, profile in [(tiled, "lookup"), (tiled, "f32"), (hadamard, "lookup"), (hadamard, "f32")]:
    print(packed(rows, profile))
print(packed(directions.astype(np.float32), "bits:2"))
for seed in (1, 3):
    rng = np.random.default_rng(seed)
    inputs = rng.integers(-4, 5, (1000, 166)).astype(float) @ rng.integers(-4, 5, (166, 1000))
    inputs += rng.integers(-9, 10, (1000, 1000))  # integers, so that BLAS has nothing to round here
    scale = np.exp2(rng.integers(-3, 4, 1000)).astype(np.float32)
    print(hashlib.sha256(feedback_matrix(inputs.T @ inputs, Rotation(1000, 3), scale).tobytes()).hexdigest())
"""


def test_bytes_do_not_follow_the_processor_that_blas_sees() -> None:
    """Where singular values are equal, roundings choose the basis; those of feedback reach codes: both must be ours."""
    found = {
        processor: subprocess.run(
            [sys.executable, "-c", WHERE_ROUNDINGS_SHOW],
            env=os.environ | {"OPENBLAS_CORETYPE": processor},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for processor in ("Haswell", "Nehalem", "Prescott")
    }
    assert len(set(found.values())) == 1, found
    assert len(found["Haswell"].split()) == 7


@pytest.mark.skipif(not machines.can_emulate(), reason="needs qemu-user")
@pytest.mark.skipif(_isa.tier() != _isa.available_tiers()[-1], reason="HHTLD_ISA chose the tier")
@pytest.mark.parametrize("processor", machines.PROCESSORS)
def test_an_emulated_processor_chooses_its_tier(processor: str) -> None:
    """The golden packs on it are tried by `python -m tests.trust machines`."""
    code = "from hhtld._kernels import _isa; print(_isa.tier())"
    assert machines.emulated(processor, "-c", code) == [machines.PROCESSORS[processor]]


def test_kernels_declare_that_they_need_no_global_lock() -> None:
    for path in KERNELS.glob("_*.pyx"):
        assert not re.search(r"^\s*#\s*cython:.*freethreading_compatible\s*=\s*False", path.read_text(), re.MULTILINE)
    setup = PACKAGE.parent / "setup.py"
    if setup.exists():
        assert '"freethreading_compatible": True' in setup.read_text()


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="needs a free-threaded Python")
def test_free_threaded_python_stays_free() -> None:
    code = "import sys, hhtld.formats, hhtld._kernels._trellis; raise SystemExit(sys._is_gil_enabled())"
    assert subprocess.run([sys.executable, "-W", "error", "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("offset", range(1, 8))
def test_sections_at_any_address_decode_the_same(offset: int, tmp_path: Path) -> None:
    """A mapping begins on a page; a buffer of another reader may begin anywhere."""
    from tests.trust.damage import GOLDEN

    for path in GOLDEN:
        with hhtld.open(path, mmap=False) as pack, hhtld.open(path, mmap=False) as shifted:
            read = shifted.sections.whole

            def unaligned(index: int, read: object = read) -> np.ndarray:
                data = read(index)  # type: ignore[operator]  # bound above
                room = np.zeros(data.size + 8, np.uint8)[offset:]
                room[: data.size] = data
                return room[: data.size]

            shifted.sections.whole = unaligned  # type: ignore[method-assign]  # another reader's memory
            for name in pack:
                assert shifted.get_tensor(name).tobytes() == pack.get_tensor(name).tobytes(), name
