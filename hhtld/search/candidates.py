"""The rows that may be among a query's best, and how they are narrowed down.

An estimate and its margin say that a row's score lies in [lower, upper]. The k-th largest lower bound of a query is
its floor: no row whose upper bound stays below it can be among the k best. All numbers are in the units of the
estimates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hhtld._kernels import _screen
from hhtld.search.bounds import Bounds
from hhtld.search.estimates import Array64, SearchRows
from hhtld.search.queries import Queries

__all__ = ["Candidates", "Survivors", "collect"]

_RESCORED_ROWS = 16  # read at a time, best estimate first
_LEAST_ROOM = 4096
_ROOM_PER_QUERY = 1024

IndexArray = NDArray[np.int64]
ScoreRows = Callable[[int, IndexArray], Array64]


class Survivors(NamedTuple):
    """Pairs of query and row that can still win, each array of shape (n,).

    `uppers` are scores instead of bounds for pairs that are already scored.
    """

    query_index: IndexArray
    row_index: IndexArray
    uppers: Array64
    is_scored: NDArray[np.bool_]

    def take(self, places: NDArray[np.int64] | NDArray[np.bool_]) -> Survivors:
        """Return some of the pairs."""
        return Survivors(self.query_index[places], self.row_index[places], self.uppers[places], self.is_scored[places])


class Candidates:
    """Candidates of a batch, and for every query the floor that its k-th best row reaches.

    Parameters
    ----------
    n_queries, k : int
    score_rows : callable, optional
        Reads rows (n,) from the source and scores them with the query of a number. With it, candidates that look best
        so far are scored at once: a true score is the highest floor for the rest.

    Attributes
    ----------
    n_sampled : int
        Rows of every query that its first floor made it read.
    """

    def __init__(self, n_queries: int, k: int, score_rows: ScoreRows | None = None) -> None:
        self.k, self._score_rows = k, score_rows
        self._best_lowers = np.full((n_queries, k), -np.inf)
        self._best_estimates = self._best_lowers
        self._sample_floors = np.full(n_queries, -np.inf)
        self.n_sampled = 0
        self._added: list[Survivors] = []

    @property
    def floors(self) -> Array64:
        """What the k-th best row of every query reaches for sure, (n_queries,)."""
        floors: Array64 = np.maximum(self._best_lowers.min(axis=1), self._sample_floors)
        return floors

    def set_sample_floors(
        self, row_index: NDArray[np.intp], estimates: Array64, margins: NDArray[np.floating[Any]]
    ) -> None:
        """Set first floors from a sample of rows, estimates (n_queries, n). Its rows become candidates later."""
        if len(row_index) < self.k:
            return
        if self._score_rows is None:
            self._sample_floors = np.partition(estimates - margins, -self.k, axis=1)[:, -self.k]
            return
        best = np.argpartition(estimates, -self.k, axis=1)[:, -self.k :]
        for query, places in enumerate(best):
            scores = self._score_rows(query, row_index[places])
            # A probable bound may lie below the score. A floor above it would keep these very rows out.
            uppers = estimates[query, places] + margins[query, places]
            self._sample_floors[query] = np.minimum(scores, uppers).min()
        self.n_sampled = self.k

    def add(self, query_index: IndexArray, row_index: IndexArray, estimates: Array64, margins: Array64) -> None:
        """Take pairs of query and row, their estimates and what these may be off by, each (n,)."""
        uppers, lowers = estimates + margins, estimates - margins
        is_scored = np.zeros(len(row_index), np.bool_)
        if self._score_rows is not None:
            best = _best(query_index, estimates, self.k)
            best = best[estimates[best] > self._best_estimates.min(axis=1)[query_index[best]]]
            self._best_estimates = self._merged(self._best_estimates, query_index[best], estimates[best])
            for query in np.unique(query_index[best]):
                places = best[query_index[best] == query]
                uppers[places] = lowers[places] = self._score_rows(int(query), row_index[places])
                is_scored[places] = True
        best = _best(query_index, lowers, self.k)
        self._best_lowers = self._merged(self._best_lowers, query_index[best], lowers[best])
        self._added.append(Survivors(query_index, row_index, uppers, is_scored))

    def _merged(self, largest: Array64, query_index: IndexArray, values: Array64) -> Array64:
        """Return the k largest of `largest` (n_queries, k) and of new values, at most k a query, sorted by query."""
        place = np.arange(len(query_index)) - np.searchsorted(query_index, query_index)
        fresh = np.full_like(largest, -np.inf)
        fresh[query_index, place] = values
        both: Array64 = np.concatenate([largest, fresh], axis=1)
        both.partition(self.k, axis=1)
        merged: Array64 = both[:, self.k :]
        return merged

    def survivors(self) -> Survivors:
        """Return the candidates that can still win, and those that are scored."""
        added = Survivors(*(np.concatenate(parts) for parts in zip(*self._added, strict=True)))
        return added.take((added.uppers >= self.floors[added.query_index]) | added.is_scored)

    def scored_survivors(self) -> tuple[Survivors, Array64]:
        """Score survivors, the most promising first, until no other can reach the k-th best.

        Returns
        -------
        Survivors
            Those that were scored.
        ndarray of float64
            Their scores.
        """
        survivors = self.survivors()
        places, scores = [], []
        for query in range(len(self._best_lowers)):
            query_places, query_scores = self._scored_of(query, survivors)
            places.append(query_places)
            scores.append(query_scores)
        return survivors.take(np.concatenate(places)), np.concatenate(scores)

    def _scored_of(self, query: int, survivors: Survivors) -> tuple[NDArray[np.intp], Array64]:
        """Return the places among the survivors of those that one query scored, and their scores."""
        assert self._score_rows is not None
        places = np.flatnonzero(survivors.query_index == query)
        scored, waiting = places[survivors.is_scored[places]], places[~survivors.is_scored[places]]
        waiting = waiting[np.lexsort((survivors.row_index[waiting], -survivors.uppers[waiting]))]
        scores, n_done = survivors.uppers[scored], 0
        while n_done < len(waiting):
            if len(scores) >= self.k and survivors.uppers[waiting[n_done]] < np.partition(scores, -self.k)[-self.k]:
                break
            # A little more each time, so that a hopeless bound ends in a scan and not in single reads.
            step = waiting[n_done : n_done + max(self.k, _RESCORED_ROWS, n_done // 4)]
            scores = np.concatenate([scores, self._score_rows(query, survivors.row_index[step])])
            n_done += len(step)
        return np.concatenate([scored, waiting[:n_done]]), scores


def _best(query_index: IndexArray, values: Array64, k: int) -> NDArray[np.intp]:
    """Return the places of the k largest values of every query, by query."""
    order = np.lexsort((-values, query_index))
    ranked = query_index[order]
    return order[np.arange(len(order)) - np.searchsorted(ranked, ranked) < k]


def collect(candidates: Candidates, queries: Queries, rows: SearchRows, bounds: Bounds) -> None:
    """Add to the candidates all rows that may be among the best."""
    n_queries = len(queries.batch)
    if rows.is_worth_sampling:
        # Tables are often ordered: MiniLM's first thousand rows are unused words, and a floor set by them is none.
        sample = rows.sample
        sample_estimates = rows.estimates(queries, sample, bounds.trellis_factor).astype(np.float64)
        sample_margins = bounds.factors[:, None] * bounds.spreads[sample] + bounds.slacks[:, None]
        candidates.set_sample_floors(sample, sample_estimates, sample_margins)
    room = max(_LEAST_ROOM, _ROOM_PER_QUERY * n_queries)
    query_room, row_room = np.empty(room, np.int32), np.empty(room, np.int32)
    for block in rows.blocks(n_queries):
        estimates, spreads = rows.estimates(queries, block, bounds.trellis_factor), bounds.spreads[block]
        floors = np.nextafter(candidates.floors.astype(np.float32), np.float32(-np.inf))
        while True:
            count = _screen.collect(estimates, spreads, bounds.factors, bounds.slacks, floors, query_room, row_room)
            if count <= len(row_room):
                break
            query_room, row_room = np.empty(count, np.int32), np.empty(count, np.int32)
        if count:
            query_index, place = query_room[:count].astype(np.int64), row_room[:count].astype(np.int64)
            margins = bounds.factors[query_index].astype(np.float64) * spreads[place] + bounds.slacks[query_index]
            candidates.add(query_index, place + block.start, estimates[query_index, place].astype(np.float64), margins)
