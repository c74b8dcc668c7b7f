"""Scores in float64, which decide: of decoded rows, or of the source's."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hhtld._kernels import _dot
from hhtld.errors import NonFiniteError, shown
from hhtld.search.estimates import Array32, Array64, SearchRows
from hhtld.sources.contract import SourceRows, TensorSource
from hhtld.sources.rows import Rows, row_ranges, unmasked

__all__ = ["ReadRows", "exact_scores", "source_reader"]

ReadRows = Callable[[NDArray[np.int64]], Array32]


def exact_scores(
    read_rows: ReadRows, batch: Array32, query_index: NDArray[np.int64], row_index: NDArray[np.int64]
) -> Array64:
    """Score pairs of query and row in float64, summed as `dot.h` does.

    Parameters
    ----------
    read_rows : callable
        Ascending row numbers (n,) to rows, float32 (n, n_cols).
    batch : ndarray of float32, shape (n_queries, n_cols)
    query_index, row_index : ndarray of int64, shape (n_pairs,)

    Returns
    -------
    ndarray of float64, shape (n_pairs,)
    """
    scores = np.empty(len(row_index))
    order = np.argsort(row_index, kind="stable")  # a row that several queries want is read once
    for start, stop in row_ranges(len(row_index), 4 * batch.shape[1]):
        pairs = order[start:stop]
        distinct, place = np.unique(row_index[pairs], return_inverse=True)
        block = read_rows(distinct)
        dots = np.empty((len(pairs), 3))
        _dot.row_dots(block[place], batch[query_index[pairs]], dots)
        scores[pairs] = dots[:, 0]
    return scores


def source_reader(source: Any, rows: SearchRows) -> ReadRows:
    """Return a function that reads rows from the source of an encoded tensor.

    Parameters
    ----------
    source : array (n_rows, n_cols), safetensors slice, TensorSource or Rows
        A `TensorSource` is asked for the tensor of the rows' name.
    rows : SearchRows
        The encoded rows.

    Raises
    ------
    ValueError
        If the source has no tensor of that name, or another shape.
    """
    if isinstance(source, TensorSource):
        if rows.name not in source:
            raise ValueError(f"the source to rescore with has no tensor {shown(rows.name)}")
        has_two_axes = len(source.infos()[rows.name].shape) == 2
        source = SourceRows(source, rows.name, None if has_two_axes else rows.n_cols)
    source_rows: Rows = source if isinstance(source, Rows) else _SlicedRows(source, rows.n_cols)
    if (source_rows.n_rows, source_rows.n_cols) != (rows.n_rows, rows.n_cols):
        raise ValueError(
            f"rows to rescore with must be ({rows.n_rows}, {rows.n_cols}), "
            f"got ({source_rows.n_rows}, {source_rows.n_cols})"
        )
    return partial(_read_runs, source_rows)


def _read_runs(source_rows: Rows, row_index: NDArray[np.int64]) -> Array32:
    """Read rows by ascending number; those that follow one another are read at once."""
    runs = np.split(row_index, np.flatnonzero(np.diff(row_index) > 1) + 1)
    return np.concatenate([source_rows.read(int(run[0]), int(run[-1]) + 1) for run in runs])


class _SlicedRows:
    """Rows of whatever gives some when it is sliced: an array, a memory map, a safetensors slice.

    If there are more than two axes, `n_cols` of the elements that the first axis counts are a row.
    """

    def __init__(self, sliceable: Any, n_cols: int) -> None:
        shape = tuple(sliceable.get_shape()) if hasattr(sliceable, "get_shape") else np.shape(sliceable)
        if len(shape) < 2 or not hasattr(sliceable, "__getitem__"):
            raise ValueError(f"rows to rescore with must have two axes, got shape {shape}")
        self._sliceable = sliceable
        self.n_rows, self.n_cols, self._n_inner = int(shape[0]), math.prod(map(int, shape[1:])), 1
        if len(shape) > 2 and self.n_cols % n_cols == 0:
            self._n_inner = self.n_cols // n_cols
            self.n_rows, self.n_cols = self.n_rows * self._n_inner, n_cols

    def read(self, start: int, stop: int) -> Array32:
        """Return rows [start, stop), float32."""
        first, last = start // self._n_inner, -(-stop // self._n_inner)
        outer = unmasked(self._sliceable[first:last], "rows to rescore with")
        if outer.dtype.kind not in "fiuV" or outer.dtype.names is not None:
            raise TypeError(f"rows to rescore with must be real numbers, got dtype {outer.dtype}")
        rows = np.ascontiguousarray(outer, np.float32).reshape(-1, self.n_cols)
        rows = rows[start - first * self._n_inner : stop - first * self._n_inner]
        if not np.isfinite(rows).all():
            raise NonFiniteError(f"rows [{start}, {stop}) to rescore with hold a value that is not finite")
        return rows
