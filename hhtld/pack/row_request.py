"""Which rows a caller asked for: each once, in the order of the file, and where each goes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["RowRequest"]


class RowRequest(NamedTuple):
    """Rows to be read, and the rows of the result.

    Attributes
    ----------
    rows : slice or ndarray of intp, shape (n_distinct,)
        What is read: a range, or numbers that ascend, each once.
    picks : ndarray of intp, shape (count,), or None
        Of every row of the result the place among the rows that are read; None where these are the result.
    n_rows : int
        Of the result.
    """

    rows: NDArray[np.intp] | slice
    picks: NDArray[np.intp] | None
    n_rows: int

    @classmethod
    def of(cls, index: NDArray[np.intp] | slice, n_rows: int) -> RowRequest:
        """Return the request for an index of a tensor of `n_rows` rows."""
        if isinstance(index, slice):
            start, stop, step = index.indices(n_rows)
            return cls(index, None, max(0, stop - start) if step == 1 else len(range(start, stop, step)))
        count = len(index)
        if count < 2 or bool((index[1:] > index[:-1]).all()):
            return cls(index, None, count)
        order = index.argsort()
        ordered = index[order]
        is_new = np.empty(count, np.bool_)
        is_new[0] = True
        np.not_equal(ordered[1:], ordered[:-1], out=is_new[1:])
        picks = np.empty(count, np.intp)
        picks[order] = is_new.cumsum() - 1
        return cls(ordered if is_new.all() else ordered[is_new], picks, count)

    @property
    def repeats(self) -> bool:
        """Whether so many rows are asked for again that they are better decoded once and copied."""
        return self.picks is not None and not isinstance(self.rows, slice) and 4 * len(self.rows) < 3 * self.n_rows
