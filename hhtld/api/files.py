"""Files as Python users know them from safetensors: save, load_file, save_file; `open` is `hhtld.pack.opening`'s."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from hhtld.api.encode import encode
from hhtld.encoding.options import DEFAULT_PROFILE
from hhtld.formats import open_source
from hhtld.formats.hhtld import save_pack
from hhtld.pack.pack import DEFAULT_BUDGET, HhtldPack, check_budget_option
from hhtld.pack.source import PackSource
from hhtld.storage.locations import output_path

__all__ = ["load_file", "save", "save_file"]

PathLike = str | os.PathLike[str]


def save(pack: HhtldPack, path: PathLike) -> None:
    """Write a pack to a file, atomically.

    Raises
    ------
    OutputError
        If the file cannot be written; what stood there before is untouched.
    """
    if not isinstance(pack, HhtldPack):
        raise TypeError(f"save writes a pack, got {type(pack).__name__}; save_file encodes arrays and writes them")
    save_pack(pack, output_path(path))


def load_file(path: PathLike, *, budget: int = DEFAULT_BUDGET) -> dict[str, NDArray[Any]]:
    """Return every tensor of a file of any readable format, decoded, in its source type and shape.

    Parameters
    ----------
    path : path or str
        A URL (str) is read by ranges.
    budget : int
        Bytes that all tensors of a `.hhtld` file may take together, 64 GiB by default: a small one can declare
        more than any machine holds. Other formats hold what they declare.

    Raises
    ------
    FormatError, OSError
        If the file cannot be read, or holds more than the budget.
    TypeError, ValueError
        For a budget that is no number of bytes.
    """
    check_budget_option(budget)
    with open_source(path) as source:
        if isinstance(source, PackSource):
            source.check_budget(budget, "hhtld.load_file(path, budget=...)")
        return {name: source.read_tensor(name) for name in source.infos()}


def save_file(
    tensors: Mapping[str, Any],
    path: PathLike,
    metadata: Mapping[str, str] | None = None,
    profile: str = DEFAULT_PROFILE,
) -> None:
    """Encode arrays under a profile ("parity" unless another is named) and write them to a `.hhtld` file."""
    save(encode(tensors, profile, metadata=metadata), path)
