"""The tasks that code rows, here or in other processes and on other machines.

A task gives the bytes of its rows, their checksums, and the cosines of the rows with what those bytes decode to.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hhtld._kernels import _cast
from hhtld.codecs.base import Codec, GroupCode
from hhtld.cosines import judged_cosines
from hhtld.dtypes import FLOAT32, DType, rounded
from hhtld.errors import RangeError
from hhtld.pack.section_interfaces import as_bytes
from hhtld.slots.class_layout import ByClass, row_spans
from hhtld.sources.rows import Rows

__all__ = ["Coded", "code_rows", "peak_of_rows"]


class Coded(NamedTuple):
    """What coding a run of rows gave.

    Attributes
    ----------
    parts : dict of kind to bytes as an array
    crcs : dict of kind to list of CRC-32
        Of these bytes: one, or one for each class of rows if they lie by class.
    cosines : ndarray of float64, shape (n_rows,)
        Of every row with what the bytes decode to, in the type of the source.
    source_crc : int
        CRC-32 of the rows that were read, as float32.
    """

    parts: dict[str, NDArray[Any]]
    crcs: dict[str, list[int]]
    cosines: NDArray[np.float64]
    source_crc: int


def _blocks(
    codec: Codec, rows: Rows, start: int, stop: int, n_blocks: int = 1
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    step = codec.block_rows(rows.n_cols) * n_blocks
    for first in range(start, stop, step):
        yield first, rows.read(first, min(first + step, stop))


def peak_of_rows(code: GroupCode, tensor_code: Any, codec: Codec, rows: Rows, start: int, stop: int) -> float:
    """Return the largest magnitude that Slot L must hold for rows [start, stop)."""
    coder = code.coder(tensor_code)
    peaks = [coder.peak(block, first) for first, block in _blocks(codec, rows, start, stop)]
    return float(np.max(peaks, initial=0))


def code_rows(
    code: GroupCode,
    tensor_code: Any,
    codec: Codec,
    rows: Rows,
    start: int,
    stop: int,
    leaf_scale: float | None,
    dtype: DType = FLOAT32,
) -> Coded:
    """Code rows [start, stop) and measure what is given back of them in the source's type.

    Raises
    ------
    RangeError
        If float32 does not suffice to code a row, or to decode it again.
    """
    coder = code.coder(tensor_code)
    layout = {kind: part for kind, part in coder.layout().items() if isinstance(part, int | ByClass)}
    parts: dict[str, list[tuple[int, int, NDArray[Any]]]] = {kind: [] for kind in layout}
    cosines, source_crc = [], 0
    for first, block in _blocks(codec, rows, start, stop, coder.n_blocks):
        source_crc = zlib.crc32(as_bytes(block), source_crc)
        tensor = coder.encode(block, first, leaf_scale)
        arrays = tensor.parts()
        for kind in layout:
            parts[kind].append((first, first + len(block), arrays[kind]))
        decoded = tensor.reconstruct_rows()
        bad = _cast.first_nonfinite_f32(decoded.reshape(-1))
        if bad >= 0:  # an error of the code can carry a weight past the end, and so can a sum on the way back
            raise RangeError(f"row {first + bad // decoded.shape[1]} passes float32's range when it is decoded")
        cosines.append(judged_cosines(block, rounded(decoded, dtype)))
    whole: dict[str, NDArray[Any]] = {}
    crcs: dict[str, list[int]] = {}
    for kind, part in layout.items():
        blocks = parts[kind]
        joined = part.joined(blocks) if isinstance(part, ByClass) else np.concatenate([array for *_, array in blocks])
        view, done, crcs[kind] = as_bytes(joined), 0, []
        for _, nbytes in row_spans(part, start, stop):
            crcs[kind].append(zlib.crc32(view[done : done + nbytes]))
            done += nbytes
        whole[kind] = joined
    return Coded(whole, crcs, np.concatenate(cosines), source_crc)
