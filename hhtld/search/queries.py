"""Queries made ready for a tensor's rows.

A query q goes through these forms: `queries` is what a caller gives, `batch` the same as float32 (n_queries, n_cols),
and a `Queries` holds ``y = q / c / power`` (c is the column scale, if there is one) as the kernels take it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hhtld.dtypes import first_beyond_float32
from hhtld.search.estimates import Array32, Array64, SearchRows, row_lengths
from hhtld.sources.rows import unmasked

__all__ = ["Plane", "Queries", "as_batch"]


def as_batch(queries: ArrayLike, n_cols: int) -> tuple[Array32, bool]:
    """Check queries, one (n_cols,) or many (n_queries, n_cols).

    Returns
    -------
    batch : ndarray of float32, shape (n_queries, n_cols)
    is_single : bool
        Whether one query without a batch's axis was given.

    Raises
    ------
    ValueError
        If a query has another width, is not finite, or passes float32's range.
    """
    array = unmasked(queries, "queries")
    is_real = array.dtype.kind in "fiuV" and array.dtype.names is None
    if not is_real or array.ndim not in (1, 2) or array.shape[-1] != n_cols:
        raise ValueError(
            f"a query must be {n_cols} real numbers, a batch (n_queries, {n_cols}); "
            f"got {array.dtype} of shape {array.shape}"
        )
    if (query := first_beyond_float32(np.atleast_2d(array))) is not None:
        largest = np.abs(np.atleast_2d(array)[query]).max()
        raise ValueError(f"query {query} has a largest value of {largest}, which float32 does not hold; scale it")
    with np.errstate(over="ignore"):
        batch = np.require(np.atleast_2d(array), np.float32, ["C", "A"])
    if not np.isfinite(batch).all():
        query, column = np.argwhere(~np.isfinite(batch))[0]
        raise ValueError(f"query {query} holds {batch[query, column]} at column {column}; queries must be finite")
    return batch, array.ndim == 1


class Plane(NamedTuple):
    """Rotated queries as integers times a scale: int8 (n_queries, n_cols) and float32 (n_queries,)."""

    codes: NDArray[np.int8]
    scales: Array32


@dataclass(frozen=True)
class Queries:
    """A batch as the kernels take it, every query divided by a power of two to a norm of about 1.

    Attributes
    ----------
    batch : ndarray of float32, shape (n_queries, n_cols)
        The queries as they were given.
    powers, norms, lost_norms : ndarray of float64, shape (n_queries,)
        The power of two; the norm of y; the norm of what the planes leave out of the rotated y.
    tables : ndarray of float32, shape (n_queries, k), or None
        The score of every centroid.
    lanes : ndarray of float32, shape (n_queries, 8), or None
        What one step of every lane of Slot L adds to a score.
    planes : list of Plane
        The rotated y. Each plane is what the one before leaves.
    """

    batch: Array32
    powers: Array64
    norms: Array64
    lost_norms: Array64
    tables: Array32 | None
    lanes: Array32 | None
    planes: list[Plane]

    @classmethod
    def prepare(cls, batch: Array32, rows: SearchRows, n_planes: int) -> Self:
        """Make a batch ready for some rows, with `n_planes` planes if the rows have a Slot T."""
        y = batch.astype(np.float64)
        if rows.column_scale is not None:
            y /= rows.column_scale
        norms = row_lengths(y)
        powers = 2.0 ** np.where(norms > 0, np.frexp(norms)[1], 0)
        y /= powers[:, None]
        tables = lanes = None
        if rows.centroids is not None:
            tables = (y @ rows.centroids.T).astype(np.float32)
        terms = rows.terms
        if terms.basis is not None and terms.slot_l_scale is not None:
            projected = y @ terms.basis.vectors.T.astype(np.float64)
            lanes = (projected * (terms.slot_l_scale * rows.unit)).astype(np.float32)
        planes: list[Plane] = []
        lost_norms = np.zeros(len(batch))
        if terms.rotation is not None:
            rotated = y.astype(np.float32)
            terms.rotation.rotate(rotated)
            planes, lost_norms = _planes(rotated, n_planes)
        return cls(batch, powers, norms / powers, lost_norms, tables, lanes, planes)


def _planes(rotated: Array32, n_planes: int) -> tuple[list[Plane], Array64]:
    """Take rotated queries to planes of int8; return also the norms of what is left of them."""
    planes: list[Plane] = []
    rest = rotated.astype(np.float64)
    for _ in range(n_planes):
        scales = (np.abs(rest).max(axis=1, initial=0.0) / 127).astype(np.float32)
        steps = np.where(scales > 0, scales, 1).astype(np.float64)[:, None]
        codes = np.clip(np.rint(rest / steps), -127, 127)
        planes.append(Plane(codes.astype(np.int8), scales))
        rest -= codes * steps
    return planes, row_lengths(rest)
