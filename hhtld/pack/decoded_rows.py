"""Rows that were read, decoded a block at a time to the type and into the array that a caller asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hhtld.codecs.base import EncodedTensor
from hhtld.dtypes import DTYPES, DType, first_beyond_float32, narrow, view, widen
from hhtld.errors import RangeError, shown
from hhtld.sizes import BLOCK_NBYTES
from hhtld.sources.rows import row_ranges

if TYPE_CHECKING:
    from hhtld.pack.table import TensorRecord
    from hhtld.storage.thread_pool import Threads

__all__ = ["ROW_DTYPES", "HeldRows", "checked_out", "decode_blocks", "refuse_beyond_float32", "typed"]

ROW_DTYPES: dict[str, DType | None] = {
    "float32": None,
    "bfloat16": DTYPES["BF16"],
    "float16": DTYPES["F16"],
    "source": None,
}
HeldRows = EncodedTensor | NDArray[np.uint8]  # rows as a pack holds them: encoded, or of a kept tensor its bytes
_FLOAT32 = np.dtype(np.float32)
_SHARED_BLOCKS = 4  # of decoded rows: fewer are not worth a second thread


def decode_blocks(
    record: TensorRecord,
    dtype: str,
    threads: Callable[[], Threads],
    held: HeldRows,
    picks: NDArray[np.intp] | None,
    count: int,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Return `count` rows, those of `picks` among the rows that are held; in `out` if it is given.

    Parameters
    ----------
    record : TensorRecord
    dtype : str
        One of `ROW_DTYPES`.
    threads : callable
        Gives the threads that decode many blocks; it is not called for few.
    held : HeldRows
    picks : ndarray of intp, shape (count,), or None
        None for the rows in their order.
    count : int
    out : ndarray, optional
    """
    step = max(1, BLOCK_NBYTES // (4 * record.info.n_cols or 1))
    if out is None and count <= step and dtype == "float32" and isinstance(held, EncodedTensor):
        return held.reconstruct_rows(picks)  # what most lookups are
    shape = _shape(record, count)
    if out is None and count <= step:
        return typed(record, _decoded(held, picks), dtype).reshape(shape)
    is_float32 = dtype == "float32" and record.is_encoded
    kind = _FLOAT32 if is_float32 else typed(record, _decoded(held, slice(0, 0)), dtype).dtype
    filled = np.empty(shape, kind) if out is None else checked_out(out, shape, kind)
    is_plain = dtype == "float32" and filled.flags.c_contiguous and filled.flags.aligned

    def decode(start: int) -> None:
        block = slice(start, min(start + step, count))
        rows = block if picks is None else picks[block]
        if is_plain and isinstance(held, EncodedTensor):
            held.reconstruct_into(filled[block], rows)
            return
        filled[block] = typed(record, _decoded(held, rows), dtype).reshape(-1, *shape[1:])

    starts = range(0, count, step)
    if len(starts) < _SHARED_BLOCKS:
        for start in starts:
            decode(start)
    else:
        threads().each(decode, starts)
    return filled


def typed(record: TensorRecord, decoded: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return rows as a type that was asked for: `decoded` is float32 of an encoded tensor, bytes of a kept one."""
    kind, wanted = record.info.dtype, ROW_DTYPES[dtype]
    if not record.is_encoded:
        if dtype == "source" or not kind.is_weight or kind == wanted:
            return view(np.ascontiguousarray(decoded), kind, (-1,))
        decoded = widen(decoded, kind)
    if dtype == "float32":
        return decoded
    wanted = wanted or kind
    return view(narrow(decoded, wanted), wanted, (-1,))


def refuse_beyond_float32(
    record: TensorRecord, held: NDArray[np.uint8], numbers: Sequence[int] | NDArray[np.intp]
) -> None:
    """Raise RangeError if float32 does not hold rows of a kept float64 tensor.

    Parameters
    ----------
    record : TensorRecord
    held : ndarray of uint8
        The bytes of the rows.
    numbers : sequence or array of int
        The number of each of them in the tensor.
    """
    info = record.info
    values = view(np.ascontiguousarray(held), info.dtype, (-1, info.n_cols) if info.n_cols else (0, 0))
    for start, stop in row_ranges(len(values), info.row_nbytes):
        if (row := first_beyond_float32(values[start:stop])) is None:
            continue
        given = values[start + row]
        largest = given[np.where(np.isfinite(given), np.abs(given), 0).argmax()]
        place = f" in row {numbers[start + row]}" if info.has_rows else ""
        raise RangeError(
            f"tensor {shown(record.name)} is float64 and its largest value{place}, {largest}, lies where float32 loses "
            "it; get_tensor and get_rows give it as it is with dtype='source'"
        )


def checked_out(out: Any, shape: tuple[int, ...], kind: np.dtype[Any]) -> NDArray[Any]:
    """Return an array that a caller wants filled, or raise ValueError."""
    if not isinstance(out, np.ndarray) or out.shape != shape or out.dtype != kind or not out.flags.writeable:
        given = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise ValueError(f"out must be a writeable array of {kind} {shape}, got {given}")
    return out


def _decoded(held: HeldRows, rows: NDArray[np.intp] | slice | None) -> NDArray[Any]:
    """Return some of the rows that are held, decoded to float32, or as their bytes."""
    if isinstance(held, EncodedTensor):
        return held.reconstruct_rows(rows)
    return held if rows is None else held[rows]


def _shape(record: TensorRecord, count: int) -> tuple[int, int]:
    info = record.info
    return (count, info.row_nbytes if info.dtype.numpy is None else info.n_cols)
