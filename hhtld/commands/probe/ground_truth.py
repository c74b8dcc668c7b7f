"""Queries, made of a source's rows or given, and the rows that exact search in the source finds for them.

Exact is the dot product with the source's rows in float64, the lowest row among equals.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hhtld._kernels import _dot
from hhtld.errors import FormatError, NonFiniteError, shown
from hhtld.sources.rows import row_ranges

__all__ = ["NOISE", "GivenQueries", "evenly_spaced", "exact_rows", "given_queries", "perturbed_rows"]

NOISE = 0.05  # of a query's own row, so that no query is a row itself


def evenly_spaced(n_rows: int, count: int) -> NDArray[np.int64]:
    """Return at most `count` evenly spaced row numbers."""
    return np.linspace(0, n_rows - 1, min(n_rows, count)).round().astype(np.int64)


def perturbed_rows(rows: NDArray[np.float32], count: int, seed: int) -> NDArray[np.float32]:
    """Return at most `count` evenly spaced rows, each plus 0.05 of its length in a random direction, float32."""
    picked = rows[evenly_spaced(len(rows), count)].astype(np.float64)
    noise = np.random.default_rng(seed).standard_normal(picked.shape)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    picked += NOISE * np.linalg.norm(picked, axis=1, keepdims=True) * noise
    return picked.astype(np.float32)


@dataclass(frozen=True)
class GivenQueries:
    """Queries that came with the call; `error` is what is raised when they do not fit."""

    origin: str
    values: NDArray[np.float32]
    error: type[ValueError]

    def check(self, name: str, n_cols: int) -> None:
        """Refuse a tensor whose rows have another width."""
        if self.values.shape[1] != n_cols:
            raise self.error(
                f"{self.origin}: queries have {self.values.shape[1]} columns, tensor {shown(name)} has {n_cols}"
            )


def given_queries(queries: str | os.PathLike[str] | ArrayLike, count: int) -> GivenQueries:
    """Return at most `count` evenly spaced queries of an array or an .npy file.

    Raises
    ------
    FormatError, NonFiniteError, ValueError
        If a file, or an array, holds no finite float32 of shape (n, n_cols).
    """
    from_file = isinstance(queries, str | os.PathLike)
    origin = os.fspath(queries) if isinstance(queries, str | os.PathLike) else "queries"
    error = FormatError if from_file else ValueError
    array = _loaded(Path(origin)) if from_file else np.asarray(queries)
    if array.ndim != 2 or array.dtype.kind != "f" or not array.size:
        raise error(f"{origin}: queries must be floats of shape (n, n_cols), got {array.dtype} of shape {array.shape}")
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(array[evenly_spaced(len(array), count)], np.float32)
    if not np.isfinite(values).all():
        at, column = np.argwhere(~np.isfinite(values))[0]
        row = evenly_spaced(len(array), count)[at]
        raise NonFiniteError(
            f"{origin}: query {row} holds {array[row, column]} at column {column}, finite float32 only"
        )
    return GivenQueries(origin, values, error)


def _loaded(path: Path) -> NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise FormatError(f"{path}: not an .npy file of numbers ({error})") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise FormatError(f"{path}: an archive of arrays; give one array, saved with numpy.save")
    return array


def exact_rows(rows: NDArray[np.float32], queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return the k rows of the largest float64 dot products with every query, int64 (n_queries, k).

    The best first, the lowest row among equals; k <= n_rows. Rows are widened a block at a time.
    """
    wide = queries.astype(np.float64)
    # A matrix product's sums differ in their last bits with a row's place: it chooses, `row_dots` decides.
    longest = float(np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64).max(initial=0.0)))
    slack = 4.0 * rows.shape[1] * 2.0**-53 * longest * np.linalg.norm(wide, axis=1)
    sure, parts = np.full((len(wide), k), -np.inf), []
    for start, stop in row_ranges(len(rows), 4 * rows.shape[1]):
        scores = wide @ rows[start:stop].astype(np.float64).T
        both = np.concatenate([sure, scores], axis=1)
        sure = np.partition(both, both.shape[1] - k, axis=1)[:, both.shape[1] - k :]
        which, at = np.nonzero(scores >= (sure.min(axis=1) - slack)[:, None])
        parts.append((which, at + start, scores[which, at]))
    which, row_numbers, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
    near = scores >= (sure.min(axis=1) - slack)[which]
    which, row_numbers = which[near], row_numbers[near]
    decided = _pair_dots(rows, row_numbers, queries, which)
    order = np.lexsort((row_numbers, -decided, which))
    starts = np.searchsorted(which[order], np.arange(len(wide)))
    best: NDArray[np.int64] = row_numbers[order[starts[:, None] + np.arange(k)]].astype(np.int64)
    return best


def _pair_dots(
    rows: NDArray[np.float32], found: NDArray[np.intp], queries: NDArray[np.float32], which: NDArray[np.intp]
) -> NDArray[np.float64]:
    dots = np.empty((len(found), 3))
    for start, stop in row_ranges(len(found), 4 * rows.shape[1]):
        _dot.row_dots(rows[found[start:stop]], queries[which[start:stop]], dots[start:stop])
    return dots[:, 0]
