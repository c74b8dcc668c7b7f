"""Searching a tensor's rows without decoding them: scores, arg-max and top-k on the slots."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hhtld.codecs.base import EncodedTensor
from hhtld.errors import shown
from hhtld.gates import CosineSummary
from hhtld.search.bounds import ErrorTangents, error_tangents, probable_bounds, proved_bounds
from hhtld.search.candidates import Candidates, Survivors, collect
from hhtld.search.estimates import Array32, Array64, SearchRows
from hhtld.search.queries import Queries, as_batch
from hhtld.search.rescoring import ReadRows, exact_scores, source_reader
from hhtld.slots.base17 import Base17
from hhtld.slots.palette import RouteAction

__all__ = ["DEFAULT_EPSILON", "Cascade", "Scorer", "TopK"]

DEFAULT_EPSILON = 2.5  # of a row worse than 19 in 20: 3.2 of a typical one on SmolLM2's head
_MOST_QUERIES = 64


def _is_unchanged() -> None:
    """Rows that lie in memory do not change."""


class TopK(NamedTuple):
    """The best rows of a query, or of every query of a batch.

    Attributes
    ----------
    rows : ndarray of int64, shape (k,) or (n_queries, k)
        Best first, the lower number first among equals.
    scores : ndarray of float64, of the same shape
    n_rescored : ndarray of int64, shape () or (n_queries,)
        Rows that were scored in float64, from the pack or from `rescore`.
    """

    rows: NDArray[np.int64]
    scores: Array64
    n_rescored: NDArray[np.int64]


@dataclass(frozen=True)
class Cascade:
    """What the palette's routes say of a query's rows.

    Attributes
    ----------
    entry : int
        The palette entry nearest to the query.
    counts : dict of RouteAction to int
        Rows on entries with that route from `entry`.
    skipped : ndarray of bool, shape (n_rows,)
        Rows whose route is SKIP.
    """

    entry: int
    counts: dict[RouteAction, int]
    skipped: NDArray[np.bool_]


class Scorer:
    """Scores of one tensor's rows. Reads only; safe to use from many threads.

    Made by `HhtldPack.scorer`. No row is kept decoded: 8 bytes a row and level are held beside the file's own.

    Parameters
    ----------
    tensor : EncodedTensor
        Rows of Slot T with more than 65,536 columns, which integers cannot sum, are scored as they decode.
    cosines : CosineSummary, optional
        Recorded for the tensor; rescoring wants them.
    name : str
        For messages, and to find the tensor in a source to rescore with.
    levels : {2, 1}
        1 leaves a second level of Slot T out.
    check_unchanged : callable, optional
        Called before and after an answer is computed; raises if what the rows lie in was written to.

    Attributes
    ----------
    n_rows, n_cols : int
    """

    def __init__(
        self,
        tensor: EncodedTensor,
        cosines: CosineSummary | None = None,
        name: str = "",
        levels: int = 2,
        check_unchanged: Callable[[], None] = _is_unchanged,
    ) -> None:
        if levels not in (1, 2):
            raise ValueError(f"levels must be 1 or 2, got {levels}")
        self.tensor, self.name, self._cosines, self._check_unchanged = tensor, name, cosines, check_unchanged
        self._check_unchanged()
        self._rows = SearchRows(tensor, name, levels)
        self.n_rows, self.n_cols = self._rows.n_rows, self._rows.n_cols
        self._check_unchanged()

    def __copy__(self) -> Self:
        """Return a scorer of the same rows, in the same file."""
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    def __getstate__(self) -> dict[str, Any]:
        """Return what a deep copy and another process hold: the rows' bytes, and no file."""
        return self.__dict__ | {"_check_unchanged": _is_unchanged}

    def __repr__(self) -> str:
        name = f"{self.name!r}, " if self.name else ""
        return f"<Scorer of {name}{self.n_rows:,} rows of {self.n_cols:,}>"

    @property
    def nbytes(self) -> int:
        """Bytes held beside the tensor's own: gains as float32 and the length of every row's Slot T."""
        return self._rows.nbytes

    @cached_property
    def _tangents(self) -> ErrorTangents:
        return error_tangents(self._rows, self._cosines)

    def decoded(self, rows: NDArray[np.int64] | slice) -> Array32:
        """Return rows as the scorer scores them, decoded, float32 (n, n_cols)."""
        self._check_unchanged()
        decoded = self._rows.decoded(rows)
        self._check_unchanged()
        return decoded

    def scores(self, queries: ArrayLike) -> Array32:
        """Return the score of every row with a query (n_cols,) or a batch (n_queries, n_cols).

        Returns
        -------
        ndarray of float32, shape (n_rows,) or (n_queries, n_rows)
            They differ from the decoded rows' own scores by at most ``sqrt(n_cols) / 64516 |t| |query|``, |t| being
            the length of the row's Slot T, and float32's rounding; measured, ``|t| |query| / 80000``. The query is
            taken as float32.

        Raises
        ------
        ValueError
            If a query has another width or is not finite.
        FormatError
            If the file was written to or cut since it was opened.
        """
        batch, is_single = as_batch(queries, self.n_cols)
        self._check_unchanged()
        prepared = Queries.prepare(batch, self._rows, n_planes=2)
        scores = np.empty((len(batch), self.n_rows), np.float32)
        for block in self._rows.blocks(len(batch)):
            estimates = self._rows.estimates(prepared, block).astype(np.float64)
            with np.errstate(over="ignore"):  # the score itself passes float32's range
                scores[:, block] = estimates * (prepared.powers / self._rows.unit)[:, None]
        self._check_unchanged()
        return scores[0] if is_single else scores

    def argmax(self, queries: ArrayLike) -> Any:
        """Return the row of the largest score for a query, int, or for each of a batch, int64 (n_queries,).

        It is the arg-max of ``decoded @ query`` in float64, the lowest row among equals: proved, not sampled (see
        `hhtld.search.bounds`).
        """
        best = self.topk(queries, 1)
        return int(best.rows[0]) if best.rows.ndim == 1 else best.rows[:, 0]

    def topk(self, queries: ArrayLike, k: int, *, rescore: Any = None, epsilon: float = DEFAULT_EPSILON) -> TopK:
        """Return the k rows of the largest scores for a query (n_cols,) or each of a batch (n_queries, n_cols).

        Without `rescore` they are those of the decoded matrix, exactly. With it they are those of the source's
        rows with high probability: rows are read and scored in float64 as long as their estimate and `epsilon`
        deviations reach the k-th best seen.

        Parameters
        ----------
        queries : array
            Taken as float32.
        k : int
            1 <= k <= n_rows.
        rescore : array (n_rows, n_cols), safetensors slice, TensorSource or Rows, optional
            The source's rows; a `TensorSource` is asked for the tensor of this name.
        epsilon : float
            Deviations allowed for; see `benchmarks/search.py` for what they find.

        Raises
        ------
        ValueError
            If a query has another width or is not finite, k or epsilon is out of range, or `rescore` has another
            shape.
        FormatError
            If the file was written to or cut since it was opened.
        """
        if type(k) is bool or not hasattr(k, "__index__") or not 1 <= k <= self.n_rows:
            raise ValueError(f"k must be an integer of 1..{self.n_rows}, the rows there are; got {k!r}")
        batch, is_single = as_batch(queries, self.n_cols)
        read_source = None if rescore is None else source_reader(rescore, self._rows)
        if read_source is not None and not 0 <= epsilon < math.inf:
            raise ValueError(f"epsilon must be a finite number of deviations, 0 or more; got {epsilon}")
        self._check_unchanged()
        n_queries = len(batch)
        best = TopK(np.empty((n_queries, k), np.int64), np.empty((n_queries, k)), np.empty(n_queries, np.int64))
        for start in range(0, n_queries, _MOST_QUERIES):
            part = slice(start, start + _MOST_QUERIES)
            best.rows[part], best.scores[part], best.n_rescored[part] = (
                self._best_decoded(batch[part], int(k))
                if read_source is None
                else self._best_of_source(batch[part], int(k), read_source, epsilon)
            )
        self._check_unchanged()
        return TopK(best.rows[0], best.scores[0], best.n_rescored[0]) if is_single else best

    def _best_decoded(self, batch: Array32, k: int) -> TopK:
        prepared = Queries.prepare(batch, self._rows, n_planes=1)
        candidates = Candidates(len(batch), k)
        collect(candidates, prepared, self._rows, proved_bounds(prepared, self._rows))
        survivors = candidates.survivors()
        scores = exact_scores(self._rows.decoded, batch, survivors.query_index, survivors.row_index)
        return _ranked(survivors, scores, len(batch), k)

    def _best_of_source(self, batch: Array32, k: int, read_source: ReadRows, epsilon: float) -> TopK:
        prepared = Queries.prepare(batch, self._rows, n_planes=1)
        scales = self._rows.unit / prepared.powers  # from scores to the units of the estimates

        def score_rows(query: int, row_index: NDArray[np.int64]) -> Array64:
            query_index = np.full(len(row_index), query)
            scores: Array64 = exact_scores(read_source, batch, query_index, row_index) * scales[query]
            return scores

        candidates = Candidates(len(batch), k, score_rows)
        bounds = probable_bounds(prepared, self._rows, self._tangents, epsilon)
        collect(candidates, prepared, self._rows, bounds)
        survivors, scores = candidates.scored_survivors()
        best = _ranked(survivors, scores / scales[survivors.query_index], len(batch), k)
        return best._replace(n_rescored=best.n_rescored + candidates.n_sampled)

    def cascade(self, query: ArrayLike) -> Cascade:
        """Return what the routes of the lookup codec's palette say of the rows, for one query (n_cols,).

        It is what the design calls a first stage: rows on entries whose route is SKIP need not be looked at.
        No exact search follows from it; `hhtld probe` shows what it would save and cost.
        """
        cache, twigs = self._rows.terms.routes, self._rows.terms.twigs
        if cache is None or twigs is None:
            raise TypeError(f"only the lookup codec has routes; tensor {shown(self.name)} has none")
        batch, _ = as_batch(query, self.n_cols)
        entry = int(cache.nearest(Base17.fold(batch[:1]))[0][0])
        self._check_unchanged()
        routes = cache.routes[entry][twigs]
        self._check_unchanged()
        counts = np.bincount(routes, minlength=len(RouteAction))
        return Cascade(entry, {action: int(counts[action]) for action in RouteAction}, routes == RouteAction.SKIP)


def _ranked(survivors: Survivors, scores: Array64, n_queries: int, k: int) -> TopK:
    """Return the k best of every query, and how many of its rows were scored."""
    query_index, row_index = survivors.query_index, survivors.row_index
    order = np.lexsort((row_index, -scores, query_index))
    starts = np.searchsorted(query_index[order], np.arange(n_queries + 1))
    best = order[starts[:-1, None] + np.arange(k)]
    return TopK(row_index[best], scores[best], np.diff(starts))
