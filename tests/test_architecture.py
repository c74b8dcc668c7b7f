"""docs/architecture.md and CONTRIBUTING.md: packages, pictures and the four walks are those of the source."""

from __future__ import annotations

import importlib
import re
import runpy
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import hhtld

ROOT = Path(__file__).parents[1]
PLOTS = ROOT / "docs" / "plots"
NAME = "model.embed_tokens.weight"
of_a_checkout = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="an installed copy has no source tree")
WALKS: dict[str, list[str]] = runpy.run_path(str(PLOTS / "walks.py"))["walks"]()


def calls(work: Callable[[], object]) -> list[CodeType]:
    """Return the functions that some work calls, in any thread, in the order of their first calls."""
    seen: dict[CodeType, None] = {}

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            seen.setdefault(frame.f_code)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return list(seen)


def code(name: str) -> CodeType:
    """Return the code of a function that is named with its module."""
    parts = name.split(".")
    for n_module in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:n_module]))
        except ModuleNotFoundError:
            continue
        for part in parts[n_module:]:
            found = getattr(found, part)
        found = getattr(found, "__func__", getattr(found, "fget", found))
        assert found.__module__ == ".".join(parts[:n_module]), f"{name} stands in {found.__module__}"
        code: CodeType = found.__code__
        return code
    raise AssertionError(name)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of one table and one vector."""
    path = tmp_path_factory.mktemp("walks") / "model.safetensors"
    table = np.random.default_rng(0).standard_normal((600, 64), dtype=np.float32)
    save_file({NAME: table, "norm.weight": np.ones(64, np.float32)}, path)
    return path


def walk(name: str, source: Path) -> list[CodeType]:
    """Take a walk and return its calls."""
    packed = source.with_suffix(".hhtld")
    if name == "convert":
        return calls(lambda: hhtld.convert(source, source.with_name("other.hhtld"), profile="bits:2", jobs=1))
    if not packed.exists():
        hhtld.convert(source, packed, profile="bits:2")
    if name == "open":
        return calls(lambda: hhtld.open(packed).close())
    with hhtld.open(packed) as pack:
        if name == "get_rows":
            return calls(lambda: pack.get_rows(NAME, [5, 3]))
        query = np.ones(64, np.float32)
        return calls(lambda: pack.scorer(NAME).topk(query, 3))


def test_there_are_four_walks() -> None:
    assert list(WALKS) == ["open", "get_rows", "topk", "convert"]


@pytest.mark.parametrize("name", list(WALKS))
def test_a_walk_passes_its_functions_in_order(name: str, source: Path) -> None:
    seen = walk(name, source)
    places = [(seen.index(code(step)) if code(step) in seen else -1, step) for step in WALKS[name]]
    assert all(place >= 0 for place, _ in places), places
    assert places == sorted(places), places


@pytest.mark.parametrize("name", list(WALKS))
def test_the_picture_of_a_walk_is_up_to_date(name: str, tmp_path: Path) -> None:
    runpy.run_path(str(PLOTS / "walks.py"))["draw"](WALKS[name], tmp_path / "drawn.svg")
    drawn, kept = tmp_path / "drawn.svg", PLOTS / f"walk-{name}.svg"
    assert drawn.read_bytes() == kept.read_bytes(), "run python docs/plots/walks.py"


@of_a_checkout
def test_the_packages_are_those_of_the_source(tmp_path: Path) -> None:
    packages = runpy.run_path(str(PLOTS / "packages.py"))
    for page in (packages["ARCHITECTURE"], packages["CONTRIBUTING"]):
        assert packages["filled"](page) == page.read_text(encoding="utf-8"), "run python docs/plots/packages.py"
    packages["draw"](tmp_path / "drawn.svg")
    kept = PLOTS / "packages.svg"
    assert (tmp_path / "drawn.svg").read_bytes() == kept.read_bytes(), "run python docs/plots/packages.py"


@of_a_checkout
def test_the_parts_of_the_landing_script_are_described() -> None:
    script, page = (ROOT / ".ci" / "run").read_text(), (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    parts = re.search(r"^parts=\((.*)\)$", script, re.MULTILINE)
    assert parts
    table = page[page.index("| part of `.ci/run` |") :]
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == sorted(parts[1].split())
