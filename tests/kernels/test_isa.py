"""Tiers: what exists, what HHTLD_ISA may choose, and where the wide registers may appear."""

import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from hhtld._kernels import (
    _cast,
    _cholesky,
    _dot,
    _eigen,
    _fold,
    _isa,
    _l1,
    _l2,
    _leaf,
    _rotate,
    _score,
    _screen,
    _trellis,
)
from tests.kernels import reference

DOORS = (_cast, _fold, _l1, _l2, _leaf, _dot, _eigen, _cholesky, _rotate, _trellis, _score, _screen)
# Sizes and one table, not kernels: nothing to choose a tier for.
ARITHMETIC = {"crossed_levels", "open_rings", "ring_nbytes", "row_nbytes", "search_cols"}
PRINT_TIER = "from hhtld._kernels import _isa; print(_isa.tier())"


def run_with_isa(wanted: str, code: str = PRINT_TIER) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HHTLD_ISA": wanted}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_scalar_is_always_there_and_lowest() -> None:
    tiers = _isa.available_tiers()
    assert tiers[0] == "scalar"
    assert len(set(tiers)) == len(tiers)
    assert [_isa.resolve(tier) for tier in tiers] == sorted(_isa.resolve(tier) for tier in tiers)
    assert not {"neon", "avx2"} <= set(tiers)


def test_none_is_the_chosen_tier() -> None:
    assert _isa.tier() in _isa.available_tiers()
    assert _isa.resolve(None) == _isa.resolve(_isa.tier())


@pytest.mark.skipif("HHTLD_ISA" in os.environ, reason="HHTLD_ISA lowers the tier")
def test_the_best_tier_is_the_default() -> None:
    assert _isa.tier() == _isa.available_tiers()[-1]


@pytest.mark.parametrize("unknown", ["sse9", "", "AVX2", 3, b"scalar", ["scalar"]])
def test_an_unknown_tier_is_refused(unknown: object) -> None:
    with pytest.raises(ValueError, match=r"no instruction tier .*available: scalar"):
        _isa.resolve(unknown)  # type: ignore[arg-type]  # wrong on purpose


def test_environment_chooses_each_tier(isa: str) -> None:
    result = run_with_isa(isa)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == isa


def test_an_empty_environment_variable_is_none() -> None:
    assert run_with_isa("").stdout.strip() == _isa.available_tiers()[-1]


def test_an_unknown_tier_in_the_environment_fails_the_import() -> None:
    code = "try:\n    from hhtld._kernels import _l1\nexcept ImportError as error:\n    print(error)"
    result = run_with_isa("sse9", code)
    assert result.returncode == 0, result.stderr
    assert "HHTLD_ISA=sse9" in result.stdout
    for tier in _isa.available_tiers():
        assert tier in result.stdout


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__.rpartition(".")[2])
def test_every_door_takes_isa_and_has_a_twin(door: ModuleType) -> None:
    functions = {name: found for name, found in vars(door).items() if callable(found) and not isinstance(found, type)}
    names = [name for name in functions if not name.startswith("_")]
    assert names
    for name in names:
        parameters = dict(inspect.signature(getattr(door, name)).parameters)
        if name not in ARITHMETIC:
            isa = parameters.pop("isa")
            assert isa.kind is inspect.Parameter.KEYWORD_ONLY
            assert isa.default is None
            parameters.pop("crossed", None)  # the levels say the same, and twins take them alone
        assert list(parameters) == list(inspect.signature(getattr(reference, name)).parameters)
        assert name in reference.__all__


def test_every_twin_has_a_door() -> None:
    for name in reference.__all__:
        assert sum(hasattr(door, name) for door in DOORS) == 1


@pytest.fixture(scope="module")
def objdump() -> str:
    found = shutil.which("objdump")
    if found is None or "avx2" not in _isa.available_tiers():
        pytest.skip("needs objdump and an x86 build")
    return found


@pytest.mark.parametrize("module", [_isa, *DOORS], ids=lambda module: module.__name__.rpartition(".")[2])
def test_wide_registers_stay_in_their_functions(module: ModuleType, objdump: str) -> None:
    # GCC names what it clones after the original: hh_x_avx2.constprop.0, hh_x_avx2.part.0.
    assert module.__file__ is not None
    library = Path(module.__file__)
    listing = subprocess.run(
        [objdump, "-d", "--no-show-raw-insn", "-j", ".text", library],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    function, functions, strays = "", set(), []
    for line in listing.splitlines():
        if heading := re.fullmatch(r"[0-9a-f]+ <(.+)>:", line):
            function = heading[1]
            functions.add(function)
            continue
        if not (instruction := re.match(r"\s+[0-9a-f]+:\s+(\S+)(.*)", line)):
            continue
        mnemonic, operands = instruction.groups()
        if "zmm" in operands or re.search(r"%k[0-7]|[xy]mm(1[6-9]|2\d|3[01])", operands):
            allowed = "avx512" in function
        elif "ymm" in operands or mnemonic.startswith("v"):
            allowed = "avx2" in function or "avx512" in function
        else:
            continue
        if mnemonic.startswith(("vpdpbusd", "vpermb", "vpermi2b", "vpermt2b")):
            allowed = "avx512vnni" in function
        if not allowed:
            strays.append(f"{function}: {mnemonic}{operands}")
    assert not strays, f"{library.name}: {len(strays)} instructions, the first {strays[:5]}"
    if len(functions) < 10:
        pytest.skip(f"{library.name} is stripped of its symbols")
