"""The types that elements of GGUF files have: their blocks, and what the package `gguf` makes of them."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hhtld.dtypes import DTYPES, DType
from hhtld.errors import MissingExtraError

__all__ = ["Kind", "dequantised", "kind_numbered", "package"]

PIECE_ELEMENTS = 1 << 18  # dequantised at once: fastest as measured, and little beside the rows themselves
_PLAIN = {0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}


def package() -> ModuleType:
    """Return the package `gguf`, imported on use."""
    try:
        import gguf
    except ImportError as error:
        raise MissingExtraError(
            f"reading GGUF files needs the package gguf ({error}): pip install 'hhtld[gguf]'"
        ) from error
    found: ModuleType = gguf  # which mypy may have no types of
    return found


class Kind(NamedTuple):
    """A type of elements: blocks of `block` elements in `nbytes` bytes; `dtype` is what they are given as."""

    name: str
    block: int
    nbytes: int
    dtype: DType
    quantised: Any = None  # the package's own type of a quantised one


@functools.cache
def kind_numbered(number: int) -> Kind | str:
    """Return the type of this number, or why it cannot be read."""
    if number in _PLAIN:
        dtype = DTYPES[_PLAIN[number]]
        return Kind(dtype.name, 1, dtype.nbits // 8, dtype)
    names = package()
    version = _package_version()
    try:
        quantised = names.GGMLQuantizationType(number)
    except ValueError:
        return f"has the unknown type {number}; gguf {version} does not name it"
    block, nbytes = map(int, names.GGML_QUANT_SIZES[quantised])
    try:  # the only question about it that the package's public names answer
        names.quants.dequantize(np.zeros((1, nbytes), np.uint8), quantised)
    except NotImplementedError:  # the package's own: it names more types than it dequantises
        return f"has the type {quantised.name}, which gguf {version} does not dequantise"
    return Kind(str(quantised.name), block, nbytes, DTYPES["F32"], quantised)


def _package_version() -> str:
    from importlib import metadata

    try:
        return metadata.version("gguf")
    except metadata.PackageNotFoundError:
        return "as installed"


def dequantised(blocks: NDArray[np.uint8], kind: Kind, out: NDArray[np.float32]) -> None:
    """Fill `out` (n, kind.block) from blocks (n, kind.nbytes), a piece at a time."""
    dequantize, step = package().quants.dequantize, max(1, PIECE_ELEMENTS // kind.block)
    with np.errstate(all="ignore"):  # a scale that is not finite is for the encoder to refuse, by row and column
        for start in range(0, len(blocks), step):
            piece = blocks[start : start + step]
            # As one long row: the package splits what it is given into groups of 16 rows, however short.
            out[start : start + step] = dequantize(piece.reshape(1, -1), kind.quantised).reshape(-1, kind.block)
