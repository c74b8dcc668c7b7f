"""Which rows of a tensor are asked for, and what decoding them may take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hhtld.errors import HeaderError

__all__ = ["RowIndex", "check_budget", "selected_rows"]

RowIndex = Sequence[int] | NDArray[Any] | slice | None


def selected_rows(n_rows: int, rows: RowIndex) -> NDArray[np.intp] | slice:
    """Return row numbers as an index, negative ones counted from the end, or raise."""
    if rows is None:
        return slice(None)
    if isinstance(rows, slice):
        return rows
    index = np.asarray(rows)
    if index.size == 0:
        return np.zeros(0, np.intp)
    if index.ndim != 1 or index.dtype.kind not in "iu":
        raise TypeError(f"rows must be a flat sequence of integers, got {index.dtype} of shape {index.shape}")
    if index.min() < -n_rows or index.max() >= n_rows:
        raise IndexError(f"rows must lie in 0..{n_rows - 1}, got {index.min()}..{index.max()}")
    if index.size == 1:  # a slice reads without a copy: one row is what lookups ask for
        row = int(index[0]) % n_rows
        return slice(row, row + 1)
    return index.astype(np.intp) % n_rows


def check_budget(
    n_rows: int, index: NDArray[np.intp] | slice, row_nbytes: int, shared: int, budget: int | None
) -> None:
    """Refuse to decode rows that take more than a budget, `shared` bytes of it for what they have in common.

    Raises
    ------
    HeaderError
        Naming both numbers.
    """
    if budget is None:
        return
    count = len(range(*index.indices(n_rows))) if isinstance(index, slice) else len(index)
    needed = count * row_nbytes + shared
    if needed > budget:
        raise HeaderError(f"{count} rows take {needed} bytes to decode, the budget is {budget}")
