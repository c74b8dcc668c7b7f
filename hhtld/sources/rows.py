"""Rows in blocks: what every codec reads, and the one loop over them.

A codec asks for float32 rows by range and never holds more than a block unless its specification
needs all of them. Blocks are a function of the row's width alone and results are placed by row, so
bytes do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hhtld import _kernels
from hhtld.dtypes import first_beyond_float32
from hhtld.sizes import BLOCK_NBYTES

__all__ = [
    "ArrayRows",
    "LiveRows",
    "Rows",
    "as_rows",
    "has_zero_row",
    "map_rows",
    "row_ranges",
    "unmasked",
]

T = TypeVar("T")


@runtime_checkable
class Rows(Protocol):
    """Finite float32 rows read by range."""

    @property
    def n_rows(self) -> int:
        """Number of rows."""

    @property
    def n_cols(self) -> int:
        """Columns of each."""

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows [start, stop), C-contiguous, shape (stop - start, n_cols)."""


def unmasked(array: ArrayLike, what: str) -> NDArray[Any]:
    """Return an array, or raise TypeError for a masked one, whose mask would be lost."""
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{what} are a masked array; fill it first")
    return np.asarray(array)


class ArrayRows:
    """The rows of a two-dimensional array.

    Raises
    ------
    ValueError
        If the array is not two-dimensional, not real, or not finite, or float32 does not hold it.
    """

    def __init__(self, array: ArrayLike) -> None:
        given = unmasked(array, "rows")
        if given.ndim != 2:
            raise ValueError(f"rows must form a two-dimensional array, got shape {given.shape}")
        if given.dtype.kind not in "fiuV" or given.dtype.names is not None:
            raise ValueError(f"rows must be real numbers, got dtype {given.dtype}")
        if (row := first_beyond_float32(given)) is not None:
            largest = max(given[row].min(), given[row].max(), key=abs)
            raise ValueError(f"rows must fit float32, but the largest value of row {row} is {largest}; scale the rows")
        with np.errstate(over="ignore"):
            self._array = np.require(given, np.float32, ["C", "A"])
        self.n_rows, self.n_cols = self._array.shape
        bad = _kernels._cast.first_nonfinite_f32(self._array.reshape(-1))
        if bad >= 0:
            row, column = divmod(bad, self.n_cols)
            raise ValueError(f"rows must be finite, but there is {given[row, column]} at row {row}, column {column}")

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows [start, stop) without a copy."""
        return self._array[start:stop]


def _live(block: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether each row holds anything but zeros."""
    return np.asarray(block.any(axis=1), np.bool_)


def has_zero_row(rows: Rows) -> bool:
    """Whether a row of zeros is among rows; reads them up to the first."""
    spans = row_ranges(rows.n_rows, 4 * rows.n_cols)
    return not all(_live(rows.read(start, stop)).all() for start, stop in spans)


class LiveRows:
    """Rows without those that are all zeros, read once to find them."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        live = np.zeros(rows.n_rows, np.bool_)
        for start, stop in row_ranges(rows.n_rows, 4 * rows.n_cols):
            live[start:stop] = _live(rows.read(start, stop))
        self._numbers = np.flatnonzero(live)
        self.n_rows, self.n_cols = len(self._numbers), rows.n_cols

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return live rows [start, stop)."""
        numbers = self._numbers[start:stop]
        block = np.empty((len(numbers), self.n_cols), np.float32)
        ends = [*(np.flatnonzero(np.diff(numbers) > 1) + 1).tolist(), len(numbers)]  # of runs without a gap
        first = 0
        for end in ends:
            if first < end:
                block[first:end] = self._rows.read(int(numbers[first]), int(numbers[end - 1]) + 1)
            first = end
        return block


def as_rows(rows: Rows | ArrayLike) -> Rows:
    """Return `rows` itself when it reads by range, else the rows of an array."""
    return rows if isinstance(rows, Rows) else ArrayRows(rows)


def row_ranges(n_rows: int, row_nbytes: int) -> Iterator[tuple[int, int]]:
    """Yield [start, stop) ranges of about `BLOCK_NBYTES`, the same on every machine; none for empty rows."""
    if row_nbytes == 0:  # 2**48 rows of nothing are legal and would take days
        return
    step = max(1, BLOCK_NBYTES // row_nbytes)
    for start in range(0, n_rows, step):
        yield start, min(start + step, n_rows)


def map_rows(work: Callable[..., T], rows: Rows, executor: Executor | None, *args: Any) -> Iterator[tuple[int, int, T]]:
    """Yield (start, stop, work(block, start, stop, *args)) for every block of rows, in any order.

    With an executor of processes `work` is a function of a module, and rows and args are pickled.
    """
    from hhtld.sources.crew import completed  # reading a pack schedules nothing

    calls = ((span, _on_block, (work, rows, *span, *args)) for span in row_ranges(rows.n_rows, 4 * rows.n_cols))
    for (start, stop), result in completed(executor, calls):
        yield start, stop, result


def _on_block(work: Callable[..., T], rows: Rows, start: int, stop: int, *args: Any) -> T:
    return work(rows.read(start, stop), start, stop, *args)
