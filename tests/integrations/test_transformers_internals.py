"""What is taken of transformers' inner workings is named in one module, and says so where it is missing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import hhtld

torch = pytest.importorskip("torch", reason="needs the extra 'transformers'")
transformers = pytest.importorskip("transformers", reason="needs the extra 'transformers'")

from hhtld.integrations.transformers import internals as transformers_internals  # noqa: E402 - after the skip

INTEGRATIONS = Path(hhtld.__file__).parent / "integrations"
# Documented, or tables of models that have stood there since release 4.
PUBLIC = {"transformers", "transformers.models.auto"}


def test_the_installed_transformers_is_one_that_was_promised() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    extra = project["project"]["optional-dependencies"]["transformers"]
    assert f"transformers{transformers_internals.RELEASES}" in extra
    from packaging.specifiers import SpecifierSet

    assert transformers.__version__ in SpecifierSet(transformers_internals.RELEASES)


def test_no_other_module_reaches_into_transformers() -> None:
    for path in sorted(INTEGRATIONS.glob("*.py")):
        if path.stem == "transformers_internals":
            continue
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "transformers":
                assert node.module in PUBLIC, f"{path.name}:{node.lineno}: {node.module}"
        assert not re.findall(r"\b_weight_conversions\b|\b_original_\w+|\ball_tied_weights_keys\b", text), path.name


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("del quantizers.HfQuantizer.update_weight_conversions", "HfQuantizer.update_weight_conversions"),
        ("del loading.WeightConverter", "WeightConverter"),
    ],
)
def test_another_transformers_is_an_error_that_names_the_releases(gone: str, message: str) -> None:
    code = (
        "import transformers.core_model_loading as loading, transformers.quantizers as quantizers\n"
        f"{gone}\n"
        "try: import hhtld.integrations.transformers\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("MissingExtraError hhtld.integrations.transformers needs transformers >=5.23,<6")
    assert message in done.stdout
