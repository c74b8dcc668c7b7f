"""The types that elements of GGUF files have: their blocks, and what the package `gguf` makes of them."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hhtld.dtypes import DTYPES, DType
from hhtld.errors import MissingExtraError, shown

__all__ = [
    "Kind",
    "can_quantize",
    "dequantized",
    "kind_named",
    "kind_numbered",
    "package",
    "package_version",
    "quantized",
]

PIECE_ELEMENTS = 1 << 18  # dequantized at once: fastest as measured, and little beside the rows themselves
_PLAIN = {0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}


def package() -> ModuleType:
    """Return the package `gguf`, imported on use."""
    try:
        import gguf
    except ImportError as error:
        raise MissingExtraError(f"GGUF files need the package gguf ({error}): pip install 'hhtld[gguf]'") from error
    module: ModuleType = gguf  # which mypy may have no types of
    return module


class Kind(NamedTuple):
    """A type of elements: blocks of `block` elements in `nbytes` bytes; `dtype` is what they are given as."""

    number: int
    name: str
    block: int
    nbytes: int
    dtype: DType
    quantized: Any = None  # the package's own type of a quantized one


@functools.cache
def kind_numbered(number: int) -> Kind | str:
    """Return the type of this number, or why it cannot be read."""
    if number in _PLAIN:
        dtype = DTYPES[_PLAIN[number]]
        return Kind(number, dtype.name, 1, dtype.nbits // 8, dtype)
    names = package()
    version = package_version()
    try:
        quantized = names.GGMLQuantizationType(number)
    except ValueError:
        return f"has the unknown type {number}; gguf {version} does not name it"
    block, nbytes = map(int, names.GGML_QUANT_SIZES[quantized])
    try:  # the only question about it that the package's public names answer
        names.quants.dequantize(np.zeros((1, nbytes), np.uint8), quantized)
    except NotImplementedError:  # the package's own: it names more types than it dequantizes
        return f"has the type {quantized.name}, which gguf {version} does not dequantize"
    return Kind(number, str(quantized.name), block, nbytes, DTYPES["F32"], quantized)


def kind_named(name: str) -> Kind:
    """Return the type of this name, or raise `ValueError` with what is wrong with it."""
    numbers = {plain: number for number, plain in _PLAIN.items()}
    number = numbers.get(name)
    if number is None:
        known = package().GGMLQuantizationType.__members__
        if name not in known:
            raise ValueError(f"the unknown type {shown(name, 40)}")
        number = int(known[name])
    kind = kind_numbered(number)
    if isinstance(kind, str):
        raise ValueError(kind.partition(" ")[2])  # noqa: TRY004 - what is wrong is the name
    return kind


@functools.cache
def can_quantize(kind: Kind) -> bool:
    """Whether the package writes a type, and does not only read it."""
    if kind.quantized is None:
        return True
    try:  # the only question about it that the package's public names answer
        package().quants.quantize(np.zeros((1, kind.block), np.float32), kind.quantized)
    except NotImplementedError:  # the package's own
        return False
    return True


def package_version() -> str:
    """Return the version of the package `gguf`, for messages."""
    from importlib import metadata

    try:
        return metadata.version("gguf")
    except metadata.PackageNotFoundError:
        return "as installed"


def dequantized(blocks: NDArray[np.uint8], kind: Kind, out: NDArray[np.float32]) -> None:
    """Fill `out` (n, kind.block) from blocks (n, kind.nbytes), a piece at a time."""
    dequantize, step = package().quants.dequantize, max(1, PIECE_ELEMENTS // kind.block)
    with np.errstate(all="ignore"):  # a scale that is not finite is for the encoder to refuse, by row and column
        for start in range(0, len(blocks), step):
            piece = blocks[start : start + step]
            # As one long row: the package splits what it is given into groups of 16 rows, however short.
            out[start : start + step] = dequantize(piece.reshape(1, -1), kind.quantized).reshape(-1, kind.block)


def quantized(values: NDArray[np.float32], kind: Kind) -> NDArray[np.uint8]:
    """Return the flat bytes of the blocks (n, kind.nbytes) that stand for values, n times `kind.block` of them."""
    quantize, step = package().quants.quantize, PIECE_ELEMENTS // kind.block * kind.block
    flat = values.reshape(1, -1)
    pieces = [quantize(flat[:, start : start + step], kind.quantized) for start in range(0, flat.size, step)]
    return np.concatenate(pieces, axis=None).view(np.uint8)
