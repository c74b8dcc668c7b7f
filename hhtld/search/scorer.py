"""Searching a tensor's rows without decoding them: scores, arg-max and top-k on the slots.

A row decodes to ``w = (centroid + L.B + R^T t) / c`` with ``t = gain * level`` (see `hhtld.codecs.trellis`), so
its score is ``<w, q> = <centroid, y> + <L, B y> + <t, R y>`` with ``y = q / c``: a table of one number a centroid, 8
numbers a query, and the rotated query against int8 levels, which `score.h` sums in integers while it decodes them in
registers. A query reads the file's bytes, not the matrix's.

Bound
-----
The rotated query is taken to int8: ``R y = s z + e``. What the estimate leaves out of ``<t, R y>`` is ``<t, e>``, at
most ``|t| |e|``; ``|e|`` is known, ``|t| = gain * sqrt(sum of squared levels)`` is kept for every row. The rest is
float32 rounding, of the query on its way and of the decoded row itself: fewer than ``4 log2(n_cols) + 68``
operations one upon the other, each within 2^-24 of what it touches, and what is lost below float32's normal
range. Both are in the bound. Rows whose upper bound reaches the k-th largest lower bound survive, are decoded
and scored in float64, so arg-max and top-k are those of the decoded matrix, exactly, on every tier.

Rescoring
---------
Against the source's rows the bound is a probable one. Slot T's gain is the least-squares one, so the rotated row
is ``r = t + d`` with d at right angles to t, and for a random rotation ``<t, R y> / cos^2`` estimates ``<r, R y>``
without bias and with deviation ``|t| |y| rho sqrt(1 + rho^2) / sqrt(n_cols)``, where rho = |d| / |t| is the tangent
of the angle between row and code. The angle comes from the cosines recorded in the file; `epsilon` deviations are
allowed for. Codecs without Slot T err in no random direction: there the same formula is used with the whole
row's length, and promises nothing.

Source
------
Unbiased estimates and their deviation after a random rotation: RaBitQ (arXiv 2405.12497), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hhtld._kernels import _dot, _score, _screen
from hhtld.codecs.base import EncodedTensor, RowIndex, SearchTerms, TrellisLevel
from hhtld.dtypes import first_beyond_float32
from hhtld.errors import NonFiniteError, shown
from hhtld.gates import CosineSummary
from hhtld.slots.base17 import Base17
from hhtld.slots.palette import RouteAction
from hhtld.slots.trellis import Trellis, gain_values
from hhtld.sources.contract import SourceRows, TensorSource
from hhtld.sources.rows import Rows, row_ranges, unmasked

__all__ = ["DEFAULT_EPSILON", "Cascade", "PlainRows", "Scorer", "TopK"]

DEFAULT_EPSILON = 2.5  # of a row worse than 19 in 20: 3.2 of a typical one on SmolLM2's head
_BLOCK_SCORES = 1 << 19  # estimates of a block: they and their dots stay in a core's cache
_LEAST_ROWS, _MOST_ROWS = 1024, 1 << 16
_MOST_QUERIES = 64
_RESCORED_ROWS = 16  # read at a time, best estimate first
_SAMPLE_ROWS = 1024  # evenly spaced: they set a first bar, and their lengths stand for all

Array32 = NDArray[np.float32]
Array64 = NDArray[np.float64]


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


@dataclass(frozen=True)
class _Level:
    """One level of Slot T; gains in the scorer's unit."""

    code: Trellis
    codes: NDArray[np.uint8]
    gains: Array32


@dataclass(frozen=True)
class _Queries:
    """A batch as the kernels take it, every query divided by a power of two, `size`, to a norm of about 1.

    Attributes
    ----------
    plain : float32 (n_queries, n_cols)
        As given.
    size, norms, lost : float64 (n_queries,)
        The power of two; the norm, over the column scale; the norm of what the planes leave out.
    tables : float32 (n_queries, k) or None
    lanes : float32 (n_queries, 8) or None
    planes : list of (int8 (n_queries, n_cols), float32 (n_queries,))
        The rotated queries as integers times a scale; each plane is what the one before leaves.
    """

    plain: Array32
    size: Array64
    norms: Array64
    lost: Array64
    tables: Array32 | None
    lanes: Array32 | None
    planes: list[tuple[NDArray[np.int8], Array32]]


@dataclass(frozen=True)
class _Bounds:
    """What an estimate may be off by, `factors * spread + slacks`, and what Slot T's part is multiplied with."""

    factors: Array32
    slacks: Array32
    gain: float


class PlainRows(EncodedTensor):
    """A tensor whose rows are scored as they decode, block by block: one that a pack keeps as it came.

    Parameters
    ----------
    shape : (n_rows, n_cols)
    read : callable
        Rows, as an index or slice, to float32 (n, n_cols).
    """

    def __init__(self, shape: tuple[int, int], read: Callable[[Any], Array32]) -> None:
        self.original_shape = shape
        self._read = read

    def reconstruct_rows(self, rows: RowIndex = None) -> Array32:
        return self._read(rows)

    def parts(self) -> dict[str, NDArray[Any]]:
        return {}


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
    ) -> None:
        if levels not in (1, 2):
            raise ValueError(f"levels must be 1 or 2, got {levels}")
        self.tensor, self.name = tensor, name
        self.n_rows, self.n_cols = tensor.original_shape
        if self.n_cols == 0:
            raise ValueError(f"tensor {shown(name)} has no columns to search")
        self._cosines, self._n_levels = cosines, levels
        terms = tensor.search_terms(levels)
        self._plain = terms is None
        self._terms = SearchTerms() if terms is None else terms
        scale, twigs = self._terms.column_scale, self._terms.twigs
        self._column_scale = None if scale is None else scale.astype(np.float64)
        self._twigs = None if self._terms.centroids is None or twigs is None else np.ascontiguousarray(twigs)
        self._set_unit()

    def __repr__(self) -> str:
        name = f"{self.name!r}, " if self.name else ""
        return f"<Scorer of {name}{self.n_rows:,} rows of {self.n_cols:,}>"

    def _set_unit(self) -> None:
        """Measure lengths in a power of two near the longest row's: float32 estimates neither overflow nor fade."""
        lengths, terms = [np.zeros(1)], self._terms
        if terms.centroids is not None:
            lengths.append(_row_lengths(terms.centroids))
        if terms.slot_l is not None and terms.slot_l_scale is not None and terms.basis is not None:
            lengths.append(np.array([127 * terms.slot_l_scale * _row_lengths(terms.basis.vectors).sum()]))
        if self._plain:
            lengths.append(self._lengths())
            self._refuse_nonfinite(lengths[-1])
        norms = [self._level_norms(level) for level in terms.levels]
        self._longest = sum(float(own.max(initial=0.0)) for own in (*lengths, *norms))
        if not self._plain and not self._surely_finite():
            self._refuse_nonfinite(self._lengths())
        self._unit = 2.0 ** -math.frexp(self._longest)[1] if self._longest else 1.0
        self._longest *= self._unit
        self._centroids = None if terms.centroids is None else terms.centroids.astype(np.float64) * self._unit
        self._levels = [
            _Level(code, codes, (gain_values(slot_v).astype(np.float64) * self._unit).astype(np.float32))
            for code, slot_v, codes in terms.levels
        ]
        spread = sum(norms, np.zeros(self.n_rows)) * self._unit
        self._spreads = np.nextafter(spread.astype(np.float32), np.float32(np.inf))

    def _surely_finite(self) -> bool:
        """Whether no decoded row can pass float32's range: none does that an encoder wrote.

        On its way a row's sums grow by at most sqrt(n_cols) before the rotation divides them again.
        """
        reach = 4 * self._longest * math.sqrt(max(1, self.n_cols))
        if self._terms.slot_l_scale is not None:
            reach = max(reach, 127 * self._terms.slot_l_scale)
        if self._column_scale is not None:
            reach = max(reach, reach / float(self._column_scale.min(initial=1.0)))
        return reach < float(np.finfo(np.float32).max)

    def _refuse_nonfinite(self, lengths: Array64) -> None:
        if not np.isfinite(lengths).all():
            row = int((~np.isfinite(lengths)).argmax())
            raise NonFiniteError(f"row {row} of tensor {shown(self.name)} holds a value that is not finite")

    def _level_norms(self, level: TrellisLevel) -> Array64:
        energies = np.empty(self.n_rows, np.int32)
        _score.trellis_energies(level.slot_t, level.trellis.levels, level.trellis.rate, self.n_cols, energies)
        norms: Array64 = np.abs(gain_values(level.slot_v).astype(np.float64)) * np.sqrt(energies)
        return norms

    @property
    def nbytes(self) -> int:
        """Bytes held beside the tensor's own: gains as float32 and the length of every row's Slot T."""
        return self._spreads.nbytes + sum(level.gains.nbytes for level in self._levels)

    # ---- what a caller asks for ----

    def scores(self, queries: ArrayLike) -> Array32:
        """Return the score of every row with a query (n_cols,) or a batch (n_queries, n_cols).

        Returns
        -------
        ndarray of float32, shape (n_rows,) or (n_queries, n_rows)
            What they miss of the decoded rows' own is at most ``sqrt(n_cols) / 64516 |t| |query|``, |t| being the
            length of the row's Slot T, and float32's rounding; measured, ``|t| |query| / 80000``. The query is
            taken as float32.

        Raises
        ------
        ValueError
            When a query has another width or is not finite.
        """
        batch, single = self._batch(queries)
        held = self._prepared(batch, n_planes=2)
        out = np.empty((len(batch), self.n_rows), np.float32)
        for block in self._blocks(len(batch)):
            estimated = self._estimated(held, block).astype(np.float64)
            with np.errstate(over="ignore"):  # the score itself passes float32's range
                out[:, block] = estimated * (held.size / self._unit)[:, None]
        return out[0] if single else out

    def argmax(self, queries: ArrayLike) -> Any:
        """Return the row of the largest score for a query, int, or for each of a batch, int64 (n_queries,).

        It is the arg-max of ``decoded @ query`` in float64, the lowest row among equals: proved, not sampled (see
        the module).
        """
        found = self.topk(queries, 1)
        return int(found.rows[0]) if found.rows.ndim == 1 else found.rows[:, 0]

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
            When a query has another width or is not finite, k is out of range, or `rescore` has another shape.
        """
        if type(k) is bool or not 1 <= k <= self.n_rows or int(k) != k:
            raise ValueError(f"k must be an integer of 1..{self.n_rows}, the rows there are; got {k!r}")
        batch, single = self._batch(queries)
        source = None if rescore is None else self._source_rows(rescore)
        found = TopK(np.empty((len(batch), k), np.int64), np.empty((len(batch), k)), np.empty(len(batch), np.int64))
        for start in range(0, len(batch), _MOST_QUERIES):
            own = slice(start, start + _MOST_QUERIES)
            part = TopK(found.rows[own], found.scores[own], found.n_rescored[own])
            self._search(batch[own], int(k), source, epsilon, part)
        return TopK(found.rows[0], found.scores[0], found.n_rescored[0]) if single else found

    def cascade(self, query: ArrayLike) -> Cascade:
        """Return what the routes of the lookup grade's palette say of the rows, for one query (n_cols,).

        It is what the design calls a first stage: rows on entries whose route is SKIP need not be looked at.
        No exact search follows from it; `hhtld probe` shows what it would save and cost.
        """
        cache, twigs = self._terms.routes, self._terms.twigs
        if cache is None or twigs is None:
            raise TypeError(f"only the lookup grade has routes; tensor {shown(self.name)} has none")
        entry = int(cache.nearest(Base17.fold(self._batch(query)[0][:1]))[0][0])
        routes = cache.routes[entry][twigs]
        counts = np.bincount(routes, minlength=len(RouteAction))
        return Cascade(entry, {action: int(counts[action]) for action in RouteAction}, routes == RouteAction.SKIP)

    # ---- queries ----

    def _batch(self, queries: ArrayLike) -> tuple[Array32, bool]:
        given = unmasked(queries, "queries")
        if (
            given.dtype.kind not in "fiuV"
            or given.dtype.names is not None
            or given.ndim not in (1, 2)
            or given.shape[-1] != self.n_cols
        ):
            raise ValueError(
                f"a query must be {self.n_cols} real numbers, a batch (n_queries, {self.n_cols}); "
                f"got {given.dtype} of shape {given.shape}"
            )
        if (query := first_beyond_float32(np.atleast_2d(given))) is not None:
            largest = np.abs(np.atleast_2d(given)[query]).max()
            raise ValueError(f"query {query} has a largest value of {largest}, which float32 does not hold; scale it")
        with np.errstate(over="ignore"):
            batch = np.require(np.atleast_2d(given), np.float32, ["C", "A"])
        if not np.isfinite(batch).all():
            query, column = np.argwhere(~np.isfinite(batch))[0]
            raise ValueError(f"query {query} holds {batch[query, column]} at column {column}; queries must be finite")
        return batch, given.ndim == 1

    def _prepared(self, batch: Array32, n_planes: int) -> _Queries:
        y = batch.astype(np.float64)
        if self._column_scale is not None:
            y /= self._column_scale
        norms = _row_lengths(y)
        size = 2.0 ** np.where(norms > 0, np.frexp(norms)[1], 0)
        y /= size[:, None]
        tables = lanes = None
        if self._centroids is not None:
            tables = (y @ self._centroids.T).astype(np.float32)
        if self._terms.basis is not None and self._terms.slot_l_scale is not None:
            projected = y @ self._terms.basis.vectors.T.astype(np.float64)
            lanes = (projected * (self._terms.slot_l_scale * self._unit)).astype(np.float32)
        planes: list[tuple[NDArray[np.int8], Array32]] = []
        lost = np.zeros(len(batch))
        if self._terms.rotate is not None:
            rotated = y.astype(np.float32)
            self._terms.rotate(rotated)
            rest = rotated.astype(np.float64)
            for _ in range(n_planes):
                scale = (np.abs(rest).max(axis=1, initial=0.0) / 127).astype(np.float32)
                step = np.where(scale > 0, scale, 1).astype(np.float64)[:, None]
                codes = np.clip(np.rint(rest / step), -127, 127)
                planes.append((codes.astype(np.int8), scale))
                rest -= codes * step
            lost = _row_lengths(rest)
        return _Queries(batch, size, norms / size, lost, tables, lanes, planes)

    def _bounds(self, held: _Queries, epsilon: float | None) -> _Bounds:
        # 2 transforms of log2 + 1 steps both for query and row, 8 lanes of two, sums: see the module.
        n_roundings = 4 * (math.log2(max(2, self.n_cols)) + 1) + 64
        given = np.sqrt((held.plain.astype(np.float64) ** 2).sum(axis=1)) / held.size  # larger where c is
        lost = 2.0**-140 * self._unit * math.sqrt(self.n_cols)
        slack = 2.0**-24 * n_roundings * self._longest + lost + 2.0**-120
        factors, slacks, gain = held.lost, held.norms * slack + given * lost, 1.0
        if epsilon is not None:
            if not 0 <= epsilon < math.inf:
                raise ValueError(f"epsilon must be a finite number of deviations, 0 or more; got {epsilon}")
            typical, wide = self._tangents
            gain = 1 + typical**2
            deviation = wide * math.sqrt(1 + wide**2) / math.sqrt(self.n_cols)
            factors, slacks = gain * factors + epsilon * deviation * held.norms, gain * slacks
        # A little more than what float32 loses when the kernel multiplies and adds them.
        return _Bounds((factors * (1 + 2e-6)).astype(np.float32), (slacks * (1 + 2e-6)).astype(np.float32), gain)

    @cached_property
    def _tangents(self) -> tuple[float, float]:
        """|row - decoded| over |Slot T| of a typical row and of one worse than 19 in 20, from the recorded cosines."""
        if self._cosines is None or not self._cosines.n_rows:
            raise ValueError(f"no cosines are recorded for tensor {shown(self.name)}; rescoring needs them")
        rows = self._sample
        lengths = _row_lengths(self.decoded(rows)) * self._unit
        spread = float(np.sqrt((self._noise_lengths()[rows] ** 2).mean())) or 1.0
        ratio = float(np.sqrt((lengths**2).mean())) / spread
        omitted = 0.0
        if self._terms.omitted is not None:
            second = self._level_norms(self._terms.omitted)
            omitted = float(np.sqrt(((second[rows] * self._unit) ** 2).mean())) / spread

        def tangent(cosine: float) -> float:
            angle = min(max(cosine, 0.01), 1.0)
            return math.hypot(ratio * math.sqrt(1 - angle**2) / angle, omitted)

        return tangent(self._cosines.median), tangent(self._cosines.p5)

    def _noise_lengths(self) -> Array64:
        """What a row's error is measured by: its Slot T, or all of it where there is none."""
        if self._levels:
            return self._spreads.astype(np.float64)
        return self._lengths() * self._unit

    def _lengths(self) -> Array64:
        """The length of every decoded row."""
        lengths = np.zeros(self.n_rows)
        for start, stop in row_ranges(self.n_rows, 4 * self.n_cols):
            lengths[start:stop] = _row_lengths(self.decoded(slice(start, stop)))
        return lengths

    @cached_property
    def _error_lengths(self) -> Array32:
        return np.nextafter(self._noise_lengths().astype(np.float32), np.float32(np.inf))

    # ---- rows ----

    def _blocks(self, n_queries: int) -> Iterator[slice]:
        most = min(_MOST_ROWS, max(_LEAST_ROWS, _BLOCK_SCORES // max(1, n_queries)))
        step, start = min(most, 4 * _LEAST_ROWS), 0  # what the first rows tell keeps many of the others out
        while start < self.n_rows:
            yield slice(start, min(start + step, self.n_rows))
            start, step = start + step, min(most, 2 * step)

    @cached_property
    def _sample(self) -> NDArray[np.intp]:
        return np.unique(np.linspace(0, self.n_rows - 1, min(self.n_rows, _SAMPLE_ROWS)).astype(np.intp))

    def _estimated(self, held: _Queries, rows: slice | NDArray[np.intp], gain: float = 1.0) -> Array32:
        """Estimates of rows, float32 (n_queries, n), in units of scorer and queries."""
        n = len(self._sample) if not isinstance(rows, slice) else rows.stop - rows.start
        if self._plain:
            index = np.arange(self.n_rows)[rows]
            parts = [self.decoded(index[a:b]) for a, b in row_ranges(n, 4 * self.n_cols)]
            # In float64: rows of float32's smallest numbers are measured in units that float32 does not reach.
            dense = [held.plain / held.size[:, None] @ (block.T.astype(np.float64) * self._unit) for block in parts]
            return np.concatenate(dense, axis=1).astype(np.float32)
        out = np.empty((len(held.plain), n), np.float32)
        twigs = None if self._twigs is None else self._twigs[rows]
        slot_l = None if self._terms.slot_l is None else np.ascontiguousarray(self._terms.slot_l[rows])
        _screen.estimate(twigs, held.tables, slot_l, held.lanes, out)
        if self._levels:
            dots = np.empty(out.shape, np.int32)
            for level in self._levels:
                for codes, scales in held.planes:
                    _score.trellis_dots(level.codes[rows], level.code.levels, level.code.rate, codes, dots)
                    _screen.add_dots(dots, level.gains[rows], scales * np.float32(gain), out)
        return out

    def _search(self, batch: Array32, k: int, source: Rows | None, epsilon: float, found: TopK) -> None:
        held = self._prepared(batch, n_planes=1)
        bounds = self._bounds(held, None if source is None else epsilon)
        scales = self._unit / held.size

        def known(query: int, rows: NDArray[np.int64]) -> Array64:
            """Scores of the source's rows, in the units of the estimates."""
            scores: Array64 = self._exact(batch, np.full(len(rows), query), rows, source) * scales[query]
            return scores

        pool = _Pool(len(batch), k, None if source is None else known)
        self._screen(held, bounds, pool)
        which, rows, uppers = pool.left()
        if source is None:
            scores = self._exact(batch, which, rows, None)
        else:
            kept, scores = pool.rescored(which, rows, uppers)
            which, rows, scores = which[kept], rows[kept], scores / scales[which[kept]]
        order = np.lexsort((rows, -scores, which))
        starts = np.searchsorted(which[order], np.arange(len(batch) + 1))
        best = order[starts[:-1, None] + np.arange(k)]
        found.rows[:], found.scores[:], found.n_rescored[:] = (
            rows[best],
            scores[best],
            np.diff(starts) + pool.n_expected,
        )

    def _screen(self, held: _Queries, bounds: _Bounds, pool: _Pool) -> None:
        """Fill a pool with the rows that may be among the best."""
        n_queries = len(held.plain)
        spreads = self._spreads if bounds.gain == 1.0 or self._levels else self._error_lengths
        if self.n_rows > 4 * _SAMPLE_ROWS:
            # Tables are often ordered: MiniLM's first thousand rows are unused words, and a bar set by them is none.
            middles = self._estimated(held, self._sample, bounds.gain).astype(np.float64)
            pool.expect(self._sample, middles, bounds.factors[:, None] * spreads[self._sample] + bounds.slacks[:, None])
        room = max(4096, _LEAST_ROWS * n_queries)
        queries, rows = np.empty(room, np.int32), np.empty(room, np.int32)
        for block in self._blocks(n_queries):
            estimates, own = self._estimated(held, block, bounds.gain), spreads[block]
            floors = np.nextafter(pool.floors.astype(np.float32), np.float32(-np.inf))
            while True:
                count = _screen.collect(estimates, own, bounds.factors, bounds.slacks, floors, queries, rows)
                if count <= len(rows):
                    break
                queries, rows = np.empty(count, np.int32), np.empty(count, np.int32)
            if count:
                which, at = queries[:count].astype(np.int64), rows[:count].astype(np.int64)
                middles = estimates[which, at].astype(np.float64)
                margins = bounds.factors[which].astype(np.float64) * own[at] + bounds.slacks[which]
                pool.add(which, at + block.start, middles, margins)

    def _exact(self, batch: Array32, which: NDArray[np.int64], rows: NDArray[np.int64], source: Rows | None) -> Array64:
        """Scores in float64 of pairs of query and row, summed as `dot.h` does: from the source, or decoded."""
        scores = np.empty(len(rows))
        order = np.argsort(rows, kind="stable")  # a row that several queries want is read once
        for start, stop in row_ranges(len(rows), 4 * self.n_cols):
            pairs = order[start:stop]
            wanted, place = np.unique(rows[pairs], return_inverse=True)
            if source is None:
                block = self.decoded(wanted)
            else:
                runs = np.split(wanted, np.flatnonzero(np.diff(wanted) > 1) + 1)
                block = np.concatenate([source.read(int(run[0]), int(run[-1]) + 1) for run in runs])
            dots = np.empty((len(pairs), 3))
            _dot.row_dots(block[place], batch[which[pairs]], dots)
            scores[pairs] = dots[:, 0]
        return scores

    def decoded(self, rows: NDArray[np.int64] | slice) -> Array32:
        """Return rows as the scorer scores them, decoded, float32 (n, n_cols)."""
        return self.tensor.reconstruct_rows(rows) if self._n_levels == 2 else self.tensor.first_level_rows(rows)

    def _source_rows(self, given: Any) -> Rows:
        if isinstance(given, TensorSource):
            if self.name not in given:
                raise ValueError(f"the source to rescore with has no tensor {shown(self.name)}")
            of_rank_2 = len(given.infos()[self.name].shape) == 2
            given = SourceRows(given, self.name, None if of_rank_2 else self.n_cols)
        rows: Rows = given if isinstance(given, Rows) else _SlicedRows(given, self.n_cols)
        if (rows.n_rows, rows.n_cols) != (self.n_rows, self.n_cols):
            raise ValueError(
                f"rows to rescore with must be ({self.n_rows}, {self.n_cols}), got ({rows.n_rows}, {rows.n_cols})"
            )
        return rows


class _Pool:
    """Candidates of a batch, and for every query a score that its k-th best row reaches.

    With `score`, which reads the source, candidates that look best so far are scored at once: a true score
    is the highest bar for the rest. All numbers are in the units of the estimates.
    """

    def __init__(
        self, n_queries: int, k: int, score: Callable[[int, NDArray[np.int64]], Array64] | None = None
    ) -> None:
        self.k, self._score = k, score
        self._sure = np.full((n_queries, k), -np.inf)
        self._promising = self._sure
        self._bar = np.full(n_queries, -np.inf)
        self.n_expected = 0  # rows of every query that the first bar made it read
        self._parts: list[tuple[NDArray[np.int64], NDArray[np.int64], Array64, NDArray[np.bool_]]] = []

    @property
    def floors(self) -> Array64:
        """What the k-th best row of every query reaches for sure."""
        lowest: Array64 = np.maximum(self._sure.min(axis=1), self._bar)
        return lowest

    def expect(self, rows: NDArray[np.intp], middles: Array64, margins: NDArray[np.floating[Any]]) -> None:
        """Set a first bar from some rows, estimates (n_queries, n); they will be candidates in their turn."""
        if len(rows) < self.k:
            return
        if self._score is None:
            self._bar = np.partition(middles - margins, -self.k, axis=1)[:, -self.k]
            return
        best = np.argpartition(middles, -self.k, axis=1)[:, -self.k :]
        self._bar = np.array([self._score(query, rows[own]).min() for query, own in enumerate(best)])
        self.n_expected = self.k

    def add(self, which: NDArray[np.int64], rows: NDArray[np.int64], middles: Array64, margins: Array64) -> None:
        """Take candidates: their queries, rows, estimates and what these may be off by."""
        uppers, lowers, scored = middles + margins, middles - margins, np.zeros(len(rows), np.bool_)
        if self._score is not None:
            best = _best(which, middles, self.k)
            best = best[middles[best] > self._promising.min(axis=1)[which[best]]]
            self._promising = self._merged(self._promising, which[best], middles[best])
            for query in np.unique(which[best]):
                own = best[which[best] == query]
                uppers[own] = lowers[own] = self._score(int(query), rows[own])
                scored[own] = True
        best = _best(which, lowers, self.k)
        self._sure = self._merged(self._sure, which[best], lowers[best])
        self._parts.append((which, rows, uppers, scored))

    def _merged(self, held: Array64, which: NDArray[np.int64], values: Array64) -> Array64:
        """The k largest of what is held and new values, of which a query has at most k, sorted by query."""
        place = np.arange(len(which)) - np.searchsorted(which, which)
        fresh = np.full_like(held, -np.inf)
        fresh[which, place] = values
        both: Array64 = np.concatenate([held, fresh], axis=1)
        both.partition(self.k, axis=1)
        largest: Array64 = both[:, self.k :]
        return largest

    def left(self) -> tuple[NDArray[np.int64], NDArray[np.int64], Array64]:
        """Return queries, rows and upper bounds of the candidates that can still win, and of those scored."""
        which, rows, uppers, self._scored = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        kept = (uppers >= self.floors[which]) | self._scored
        self._scored = self._scored[kept]
        return which[kept], rows[kept], uppers[kept]

    def rescored(
        self, which: NDArray[np.int64], rows: NDArray[np.int64], uppers: Array64
    ) -> tuple[NDArray[np.int64], Array64]:
        """Score what is left, the most promising first, until no other can reach the k-th best.

        Returns which of the candidates were scored, and their scores.
        """
        assert self._score is not None
        kept: list[NDArray[np.int64]] = []
        found: list[Array64] = []
        for query in range(len(self._sure)):
            own = np.flatnonzero(which == query)
            known, open_ = own[self._scored[own]], own[~self._scored[own]]
            open_ = open_[np.lexsort((rows[open_], -uppers[open_]))]
            scores, done = uppers[known], 0
            while done < len(open_):
                if len(scores) >= self.k and uppers[open_[done]] < np.partition(scores, -self.k)[-self.k]:
                    break
                # A little more each time, so that a hopeless bound ends in a scan and not in single reads.
                step = open_[done : done + max(self.k, _RESCORED_ROWS, done // 4)]
                scores = np.concatenate([scores, self._score(query, rows[step])])
                done += len(step)
            kept.append(np.concatenate([known, open_[:done]]))
            found.append(scores)
        return np.concatenate(kept), np.concatenate(found)


def _row_lengths(rows: NDArray[np.floating[Any]]) -> Array64:
    wide = rows.astype(np.float64, copy=False)
    lengths: Array64 = np.sqrt((wide * wide).sum(axis=1))
    return lengths


def _best(which: NDArray[np.int64], values: Array64, k: int) -> NDArray[np.int64]:
    """Return the places of the k largest values of every query, by query."""
    order = np.lexsort((-values, which))
    ranked = which[order]
    return order[np.arange(len(order)) - np.searchsorted(ranked, ranked) < k]


class _SlicedRows:
    """Rows of whatever gives some when sliced: an array, a memory map, a safetensors slice.

    Of more than two axes, `n_cols` of the elements that the first axis counts are a row.
    """

    def __init__(self, given: Any, n_cols: int) -> None:
        shape = tuple(given.get_shape()) if hasattr(given, "get_shape") else np.shape(given)
        if len(shape) < 2 or not hasattr(given, "__getitem__"):
            raise ValueError(f"rows to rescore with must have two axes, got shape {shape}")
        self._given = given
        self.n_rows, self.n_cols, self._n_inner = int(shape[0]), math.prod(map(int, shape[1:])), 1
        if len(shape) > 2 and self.n_cols % n_cols == 0:
            self._n_inner = self.n_cols // n_cols
            self.n_rows, self.n_cols = self.n_rows * self._n_inner, n_cols

    def read(self, start: int, stop: int) -> Array32:
        """Return rows [start, stop), float32."""
        first, last = start // self._n_inner, -(-stop // self._n_inner)
        found = unmasked(self._given[first:last], "rows to rescore with")
        rows = np.ascontiguousarray(found, np.float32).reshape(-1, self.n_cols)
        rows = rows[start - first * self._n_inner : stop - first * self._n_inner]
        if not np.isfinite(rows).all():
            raise NonFiniteError(f"rows [{start}, {stop}) to rescore with hold a value that is not finite")
        return rows
