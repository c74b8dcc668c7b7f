"""Imports only go down the floors; names that say nothing stay out; setup.py stays small."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import hhtld
import hhtld.formats

PACKAGE = Path(hhtld.__file__).parent
FORMATS = Path(hhtld.formats.__file__).parent
FLOORS = [
    {"hhtld._kernels"},
    {
        "hhtld.errors",
        "hhtld.sizes",
        "hhtld.dtypes",
        "hhtld.registry",
        "hhtld.arithmetic",
        "hhtld.atomic",
        "hhtld.atomic_folder",
        "hhtld.crc",
        "hhtld.journal",
        "hhtld.notebook",
        "hhtld.matrix",
        "hhtld.links",
        "hhtld.progress",
        "hhtld.reading",
        "hhtld.schedule",
        "hhtld.side_files",
        "hhtld.urls",
    },
    {
        "hhtld.rows",
        "hhtld.source",
        "hhtld.remote",
        "hhtld.base17",
        "hhtld.palette",
        "hhtld.fisher_z",
        "hhtld.basis",
        "hhtld.slots",
        "hhtld.rotation",
        "hhtld.trellis",
        "hhtld.feedback",
        "hhtld.codebooks",
    },
    {"hhtld.tensor", "hhtld.trellis_tensor", "hhtld.group"},
    {
        "hhtld.roles",
        "hhtld.integers",
        "hhtld.regimes",
        "hhtld.plan",
        "hhtld.quantized",
        "hhtld.calibration",
        "hhtld.gates",
        "hhtld.rate",
        "hhtld.sections",
        "hhtld.table",
        "hhtld.pack",
        "hhtld.scorer",
        "hhtld.coders",
        "hhtld.encoder",
    },
    {"hhtld.formats", "hhtld.integrations", "hhtld.__main__"},
]
BANNED = re.compile(r"utils?|helpers?|common|managers?|misc")


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] != "formats":
            yield ".".join(("hhtld", *parts)).removesuffix(".__init__"), path
    for path in sorted(FORMATS.rglob("*.py")):
        parts = path.relative_to(FORMATS).with_suffix("").parts
        yield ".".join(("hhtld.formats", *parts)).removesuffix(".__init__"), path


def floor(name: str) -> int:
    for number, members in enumerate(FLOORS):
        if any(name == member or name.startswith(member + ".") for member in members):
            return number
    raise AssertionError(f"{name} stands on no floor; give it one in {__file__}")


def imported(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.lineno, node.module


@pytest.mark.parametrize(("name", "path"), [m for m in modules() if m[0] != "hhtld"], ids=lambda v: str(v)[-40:])
def test_imports_go_down(name: str, path: Path) -> None:
    own = floor(name)
    for line, target in imported(path):
        if target.split(".")[0] == "hhtld" and target != "hhtld":
            # `from hhtld._kernels import _fold` names the folder, which is enough.
            assert floor(target) <= own, f"{path}:{line}: floor {own} imports {target} of floor {floor(target)}"


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda v: str(v)[-40:])
def test_names_say_something(name: str, path: Path) -> None:
    assert not BANNED.fullmatch(path.stem)


def test_a_second_copy_of_formats_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("formats", FORMATS / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match=r"import hhtld\.formats"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_every_public_name_exists() -> None:
    for name in hhtld.__all__:
        assert getattr(hhtld, name) is not None
    assert set(dir(hhtld)) == set(hhtld.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        getattr(hhtld, "no" + "pe")


def test_importing_hhtld_loads_no_optional_or_slow_package() -> None:
    import subprocess
    import sys

    code = "import hhtld, sys; print([m for m in ('numpy', 'h5py', 'rich', 'torch', 'dask') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
