"""What is taken of other libraries' inner workings is named in one module for each, and says so where it is missing."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

import hhtld

torch = pytest.importorskip("torch", reason="needs the extra 'transformers'")
transformers = pytest.importorskip("transformers", reason="needs the extra 'transformers'")

from hhtld.integrations.torch import internals as torch_internals  # noqa: E402 - after the skip
from hhtld.integrations.transformers import internals as transformers_internals  # noqa: E402 - after the skip

PACKAGE = Path(hhtld.__file__).parent
MODULES = sorted(
    path
    for folder in ("integrations", "evaluation")
    for path in (PACKAGE / folder).rglob("*.py")
    if path.name != "internals.py"
)
# Modules of other libraries that may be imported anywhere: what their documentation names.
PUBLIC = {
    "dask",
    "distributed",
    "matplotlib.axes",
    "onnx",
    "onnxruntime",
    "piper",
    "piper.config",  # where `PiperConfig` stands in every release since 1.2
    "torch",
    "torch.nn",
    "transformers",
    "transformers.pytorch_utils",  # whose `Conv1D` its pages of custom layers describe
    "transformers.models.auto",  # tables of models that have stood there since release 4
}
# Attributes without an underscore that no documentation names.
UNDOCUMENTED = {"all_tied_weights_keys"}


def named(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def trees(paths: list[Path]) -> Iterator[tuple[Path, ast.Module]]:
    for path in paths:
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def own_names() -> set[str]:
    """Return the private names that hhtld itself gives to something."""
    found = set()
    for path, tree in trees(sorted(PACKAGE.rglob("*.py"))):
        found.add(path.stem)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                if isinstance(node.value, ast.Name) and node.value.id == "self":
                    found.add(node.attr)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(node.target.id)
    found |= {path.stem for path in PACKAGE.glob("_kernels/*.pyx")} | {
        path.stem for path in PACKAGE.glob("_kernels/*.pyi")
    }
    return found


OWN = own_names()


@pytest.mark.parametrize(
    ("internals", "library"),
    [(torch_internals, torch), (transformers_internals, transformers)],
    ids=["torch", "transformers"],
)
def test_the_installed_release_is_one_that_was_promised(internals: object, library: object) -> None:
    from packaging.specifiers import SpecifierSet

    name, releases = library.__name__, internals.RELEASES  # type: ignore[attr-defined]  # modules of one kind
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    assert all(f"{name}{releases}" in extras[extra] for extra in {name, "transformers"})
    assert version(name).partition("+")[0] in SpecifierSet(releases)


def test_both_ends_of_the_range_are_tried() -> None:
    script = Path(__file__).parents[2] / ".ci" / "run"
    if not script.exists():
        pytest.skip("the script does not lie beside an installed copy")
    oldest = transformers_internals.RELEASES.partition(">=")[2].partition(",")[0]
    assert f"transformers=={oldest}" in script.read_text() or f"transformers=={oldest}.0" in script.read_text()
    assert "test_internals.py" in script.read_text()


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_no_other_module_reaches_into_a_library(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules = []
        if isinstance(node, ast.ImportFrom):
            assert node.module is not None
            modules = [node.module]
            libraries = {name.partition(".")[0] for name in PUBLIC}
            if node.module.partition(".")[0] in libraries:
                assert not [alias.name for alias in node.names if is_private(alias.name)], f"{path.name}:{node.lineno}"
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        for module in modules:
            library = module.partition(".")[0]
            ours = library in sys.stdlib_module_names or library in {"hhtld", "numpy", "rich"}
            assert ours or module in PUBLIC, f"{path.name}:{node.lineno}: {module}"
        if isinstance(node, ast.Attribute):
            assert node.attr not in UNDOCUMENTED, f"{path.name}:{node.lineno}: {node.attr}"
            assert not is_private(node.attr) or node.attr in OWN, f"{path.name}:{node.lineno}: {node.attr}"


@pytest.mark.parametrize(
    ("module", "base", "listed"),
    [
        ("torch", torch.nn.Module, torch_internals._OVERRIDDEN),
        ("transformers", transformers.quantizers.HfQuantizer, transformers_internals._HOOKS),
    ],
)
def test_every_private_method_that_is_overridden_is_listed(module: str, base: type, listed: tuple[str, ...]) -> None:
    """The list is what an unfit release is recognised by."""
    for path, tree in trees(sorted((PACKAGE / "integrations" / module).glob("*.py"))):
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                private = [
                    item.name for item in node.body if isinstance(item, ast.FunctionDef) and is_private(item.name)
                ]
                assert [name for name in private if hasattr(base, name) and name not in listed] == [], path.name


@pytest.mark.parametrize(
    ("gone", "module", "message"),
    [
        (
            "del quantizers.HfQuantizer.update_weight_conversions",
            "transformers",
            "HfQuantizer.update_weight_conversions",
        ),
        ("del loading.WeightConverter", "transformers", "WeightConverter"),
        ("del torch.nn.Module._load_from_state_dict", "torch", "nn.Module._load_from_state_dict"),
        ("del torch.utils.weak.WeakTensorKeyDictionary", "torch", "WeakTensorKeyDictionary"),
    ],
)
def test_another_release_is_an_error_that_names_those_that_fit(gone: str, module: str, message: str) -> None:
    loads = {
        "torch": "import torch, torch.utils.weak\n",
        "transformers": "import transformers.core_model_loading as loading, transformers.quantizers as quantizers\n",
    }
    code = (
        f"{loads[module]}{gone}\n"
        f"try: import hhtld.integrations.{module}\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    releases = {"torch": torch_internals.RELEASES, "transformers": transformers_internals.RELEASES}[module]
    assert done.stdout.startswith(f"MissingExtraError hhtld.integrations.{module} needs {module} {releases}")
    assert message in done.stdout
