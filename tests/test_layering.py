"""Imports only go down the floors; names that say nothing stay out; setup.py stays small."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hhtld
import hhtld.formats

PACKAGE = Path(hhtld.__file__).parent
FORMATS = Path(hhtld.formats.__file__).parent
# A package imports only from those before it. The leaves are single modules that import only one another.
LEAVES = {"errors", "sizes", "dtypes", "matrix", "progress", "registry", "gates", "cosines", "identity"}
PACKAGES = [
    "_kernels",
    "leaves",
    "storage",
    "sources",
    "slots",
    "codecs",
    "search",
    "pack",
    "encoding",
    "formats",
    "display",
    "integrations",
    "evaluation",
    "api",
    "commands",
    "__main__",
]
# `python -m hhtld.formats` is promised, and is the program.
UPWARD = {("hhtld.formats.__main__", "hhtld.commands.main")}
BANNED = re.compile(r"utils?|helpers?|common|managers?|misc")


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] != "formats":
            yield ".".join(("hhtld", *parts)).removesuffix(".__init__"), path
    for path in sorted(FORMATS.rglob("*.py")):
        parts = path.relative_to(FORMATS).with_suffix("").parts
        yield ".".join(("hhtld.formats", *parts)).removesuffix(".__init__"), path


def package(name: str) -> str:
    first = name.split(".")[1]
    return "leaves" if first in LEAVES else first


def imported(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.lineno, node.module


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """Imports as modules, `from package import module` too, but for what stands under `if TYPE_CHECKING`."""
    known = {name for name, _ in modules()}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in list(ast.walk(tree)):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = [] if "not" not in ast.unparse(node.test) else node.body
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield node.lineno, inner if inner in known else node.module


@pytest.mark.parametrize(("name", "path"), [m for m in modules() if m[0] != "hhtld"], ids=lambda v: str(v)[-40:])
def test_imports_go_down(name: str, path: Path) -> None:
    for line, target in imported(path):
        if target.split(".")[0] != "hhtld" or target == "hhtld" or (name, target) in UPWARD:
            continue
        if package(target) != package(name):
            below = PACKAGES.index(package(target)) < PACKAGES.index(package(name))
            assert below, f"{path}:{line}: {package(name)} imports {target}, which stands above it"


def test_no_module_imports_itself_through_others() -> None:
    """Function-level imports count; only what type checkers read does not."""
    imports = {name: {target for _, target in imported_modules(path)} for name, path in modules()}
    finished: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name not in finished:
            for target in sorted(imports.get(name, ())):
                visit(target, (*way, name))
            finished.add(name)

    for name in imports:
        visit(name, ())


def test_every_package_says_its_idea() -> None:
    for name, path in modules():
        if path.name == "__init__.py":
            sentence = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
            assert sentence, f"{name} says nothing"


OPENED = """
import sys, hhtld
with hhtld.open(sys.argv[1], io=sys.argv[2]):
    print(*sorted(name for name in sys.modules if name.split(".")[0] == "hhtld"))
"""


@pytest.mark.parametrize(
    ("profiles", "io"),
    [
        (["bits:4"], "mmap"),
        (["lookup"], "pread"),
        (["f32"], "direct"),
        *((["lookup", "f32", "bits:4"], io) for io in ("mmap", "pread", "direct")),
    ],
)
def test_opening_a_file_loads_little_and_nothing_that_encodes(profiles: list[str], io: str, tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    path = tmp_path / "model.hhtld"
    rows = np.random.default_rng(1).standard_normal((len(profiles), 700, 48)).astype(np.float32)
    save_file({f"t{n}.weight": np.ascontiguousarray(part) for n, part in enumerate(rows)}, tmp_path / "m.safetensors")
    rules = [(f"t{n}.*", profile) for n, profile in enumerate(profiles)]
    if len(profiles) == 1:
        (tmp_path / "config.json").write_text("{}")
    hhtld.convert(tmp_path / "m.safetensors", path, profile=profiles[0], rules=rules, jobs=1)
    done = subprocess.run([sys.executable, "-c", OPENED, path, io], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert len(loaded) <= 31, f"{len(loaded)} modules: {loaded}"
    above = {"encoding", "formats", "display", "integrations", "evaluation", "api", "commands"}
    assert not above & {name.split(".")[1] for name in loaded if "." in name}


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
    code = "import hhtld, sys; print([m for m in ('numpy', 'h5py', 'rich', 'torch', 'dask') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


CODEC_WORDS = {"hhtl_d", "hhtl_f32", "hhtl_t", "keep", "lookup", "trellis"}  # "palette" is a section, too
CODEC_CLASSES = {
    *("HhtlDTensor", "HhtlF32Tensor", "HhtlTTensor"),
    *("LookupGroup", "PaletteGroup", "TrellisGroup", "LookupCodec", "PaletteCodec", "TrellisCodec", "KeepCodec"),
}


def constants(nodes: list[ast.AST]) -> set[object]:
    return {node.value for node in nodes if isinstance(node, ast.Constant)}


def questions_about_codecs(path: Path) -> Iterator[int]:
    """Lines that compare with a codec's id or word, or ask for one of its classes."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Compare):
            compared = [each for side in (node.left, *node.comparators) for each in ast.walk(side)]
            yield from [node.lineno] * (not CODEC_WORDS.isdisjoint(constants(compared)))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            names = {each.id for each in ast.walk(node.args[1]) if isinstance(each, ast.Name)}
            yield from [node.lineno] * (not CODEC_CLASSES.isdisjoint(names))


def test_nobody_outside_codecs_asks_which_codec_it_is() -> None:
    """Ask the codec object what you need to know (`hhtld.codecs.base.Codec`): a fifth codec then changes nothing."""
    allowed = {
        ("hhtld.encoding.plan", "keep"),
        ("hhtld.encoding.options", "keep"),
    }  # nonfinite="keep"
    asked = []
    for name, path in modules():
        if name.startswith("hhtld.codecs"):
            continue
        for line in questions_about_codecs(path):
            text = path.read_text(encoding="utf-8").splitlines()[line - 1]
            if not any(name == module and f'"{word}"' in text for module, word in allowed):
                asked.append(f"{path}:{line}: {text.strip()}")
    assert not asked, "\n".join(asked)
