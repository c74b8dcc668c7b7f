"""A tensor's rows made ready to be searched: estimates of their scores, without decoding them.

A row decodes to ``w = (centroid + L.B + R^T t) / c`` with ``t = gain * level`` (see `hhtld.codecs.trellis`), so
its score is ``<w, q> = <centroid, y> + <L, B y> + <t, R y>`` with ``y = q / c``: a table of one number a centroid, 8
numbers a query, and the rotated query against int8 levels, which `score.h` sums in integers while it decodes them in
registers. A query reads the file's bytes, not the matrix's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hhtld._kernels import _score, _screen
from hhtld.codecs.base import EncodedTensor, RowIndex, SearchTerms
from hhtld.errors import NonFiniteError, shown
from hhtld.slots.levels import CodeMatrix, TrellisLevel
from hhtld.slots.slot_t import gain_values
from hhtld.sources.rows import row_ranges

if TYPE_CHECKING:
    from hhtld.search.queries import Queries

__all__ = ["PlainRows", "RowsInFile", "SearchRows", "row_lengths"]

_BLOCK_SCORES = 1 << 19  # estimates of a block: they and their dots stay in a core's cache
_LEAST_ROWS, _MOST_ROWS = 1024, 1 << 16
_READ_NBYTES = 4 << 20  # of packed rows at once, where they are read again for every search
_SAMPLE_ROWS = 1024  # evenly spaced: they set a first floor, and their lengths stand for all

Array32 = NDArray[np.float32]
Array64 = NDArray[np.float64]


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


class RowsInFile(EncodedTensor):
    """A tensor of Slot T whose rows are read when they are looked at, and not held.

    Parameters
    ----------
    shape : (n_rows, n_cols)
    row_nbytes : int
        Bytes of a row in the file.
    read : callable
        Rows, as an index or slice, to these rows as an `EncodedTensor`.
    """

    def __init__(self, shape: tuple[int, int], row_nbytes: int, read: Callable[[Any], EncodedTensor]) -> None:
        self.original_shape = shape
        self.most_rows = max(1, _READ_NBYTES // max(1, row_nbytes))
        self.read = read

    def reconstruct_rows(self, rows: RowIndex = None) -> Array32:
        return self.read(slice(None) if rows is None else rows).reconstruct_rows()

    def first_level_rows(self, rows: RowIndex = None) -> Array32:
        return self.read(slice(None) if rows is None else rows).first_level_rows()

    def parts(self) -> dict[str, NDArray[Any]]:
        return {}

    def search_terms(self, levels: int = 2) -> SearchTerms | None:
        """Return what all rows share, and no rows."""
        return self.read(slice(0, 0)).search_terms(levels)


@dataclass(frozen=True)
class ScaledLevel:
    """One level of Slot T; its gains are float32 in the unit of the rows."""

    matrices: Sequence[CodeMatrix]
    gains: Array32


@dataclass(frozen=True)
class Summands:
    """What rows are the sum of: their centroids' numbers, Slot L and levels."""

    twigs: NDArray[np.uint8] | None
    slot_l: NDArray[np.int8] | None
    levels: Sequence[ScaledLevel]


class SearchRows:
    """What a tensor's rows are estimated from.

    Parameters
    ----------
    tensor : EncodedTensor
    name : str
        For messages.
    n_levels : {2, 1}
        1 leaves a second level of Slot T out.

    Attributes
    ----------
    n_rows, n_cols : int
    terms : SearchTerms
        What the codec says that a row is the sum of; nothing if rows are scored as they decode.
    unit : float
        The power of two that lengths are measured in, near the longest row's: so float32 estimates neither overflow
        nor fade. The three below are in this unit.
    longest : float
        No row is longer.
    centroids : ndarray of float64, shape (k, n_cols), or None
    spreads : ndarray of float32, shape (n_rows,)
        The length of every row's Slot T, rounded up.
    """

    def __init__(self, tensor: EncodedTensor, name: str, n_levels: int) -> None:
        self.tensor, self.name, self._n_levels = tensor, name, n_levels
        self.n_rows, self.n_cols = tensor.original_shape
        if self.n_cols == 0:
            raise ValueError(f"tensor {shown(name)} has no columns to search")
        terms = tensor.search_terms(n_levels)
        self._scored_as_decoded = terms is None
        self.terms = terms = SearchTerms() if terms is None else terms
        self.column_scale = None if terms.column_scale is None else terms.column_scale.astype(np.float64)
        spreads, level_maxima = self._level_norms()
        longest = self._longest(level_maxima)
        self.unit = 2.0 ** -math.frexp(longest)[1] if longest else 1.0
        self.longest = longest * self.unit
        self.centroids = None if terms.centroids is None else terms.centroids.astype(np.float64) * self.unit
        self._held = None if isinstance(tensor, RowsInFile) else self._summands(terms)
        spreads *= self.unit
        self.spreads = spreads.astype(np.float32)
        np.nextafter(self.spreads, np.float32(np.inf), out=self.spreads)

    @property
    def nbytes(self) -> int:
        """Bytes held beside the tensor's own: the length of every row's Slot T and, if they are held, gains as float32.

        Rows that are read from a file for every search hold nothing else.
        """
        return self.spreads.nbytes + (
            0 if self._held is None else sum(level.gains.nbytes for level in self._held.levels)
        )

    # ---- what rows are the sum of ----

    def _summands(self, terms: SearchTerms) -> Summands:
        twigs = None
        if terms.centroids is not None and terms.twigs is not None:
            twigs = np.ascontiguousarray(terms.twigs)
        levels = [
            ScaledLevel(matrices, (gain_values(slot_v).astype(np.float64) * self.unit).astype(np.float32))
            for slot_v, matrices in terms.levels
        ]
        return Summands(twigs, terms.slot_l, levels)

    def _summands_of(self, rows: slice | NDArray[np.intp]) -> tuple[Summands, slice | NDArray[np.intp]]:
        """Return what holds some rows, and their places in it."""
        if self._held is not None:
            return self._held, rows
        assert isinstance(self.tensor, RowsInFile)
        terms = self.tensor.read(rows).search_terms(self._n_levels)
        assert terms is not None
        return self._summands(terms), slice(0, rows.stop - rows.start if isinstance(rows, slice) else len(rows))

    def _terms_by_block(self) -> Iterator[tuple[slice, SearchTerms]]:
        """Yield ranges of rows and what they are the sum of: all of them, or as many as are read at once."""
        if not isinstance(self.tensor, RowsInFile):
            yield slice(0, self.n_rows), self.terms
            return
        for start in range(0, self.n_rows, self.tensor.most_rows):
            block = slice(start, min(start + self.tensor.most_rows, self.n_rows))
            terms = self.tensor.read(block).search_terms(self._n_levels)
            assert terms is not None
            yield block, terms

    # ---- lengths ----

    def _longest(self, level_maxima: list[float]) -> float:
        """Return what no row is longer than, and refuse rows that do not decode to finite numbers."""
        lengths, terms = [np.zeros(1)], self.terms
        if terms.centroids is not None:
            lengths.append(row_lengths(terms.centroids))
        if terms.slot_l is not None and terms.slot_l_scale is not None and terms.basis is not None:
            lengths.append(np.array([127 * terms.slot_l_scale * row_lengths(terms.basis.vectors).sum()]))
        if self._scored_as_decoded:
            lengths.append(self._lengths())
            self._refuse_nonfinite(lengths[-1])
        longest = sum([*(float(part.max(initial=0.0)) for part in lengths), *level_maxima])
        if not self._scored_as_decoded and not self._surely_finite(longest):
            self._refuse_nonfinite(self._lengths())
        return longest

    def _surely_finite(self, longest: float) -> bool:
        """Whether no decoded row can pass float32's range. No row that an encoder writes does.

        On its way a row's sums grow by at most sqrt(n_cols) before the rotation divides them again.
        """
        reach = 4 * longest * math.sqrt(max(1, self.n_cols))
        if self.terms.slot_l_scale is not None:
            reach = max(reach, 127 * self.terms.slot_l_scale)
        if self.column_scale is not None:
            reach = max(reach, reach / float(self.column_scale.min(initial=1.0)))
        return reach < float(np.finfo(np.float32).max)

    def _refuse_nonfinite(self, lengths: Array64) -> None:
        if not np.isfinite(lengths).all():
            row = int((~np.isfinite(lengths)).argmax())
            raise NonFiniteError(f"row {row} of tensor {shown(self.name)} holds a value that is not finite")

    def _level_norms(self) -> tuple[Array64, list[float]]:
        """Return the sum of the lengths of every row's levels, and the longest of each level, in the tensor's unit.

        The lengths of one level are held for a block of rows alone.
        """
        sums, maxima = np.zeros(self.n_rows), np.zeros(len(self.terms.levels))
        for block, terms in self._terms_by_block() if self.terms.levels else ():
            for number, level in enumerate(terms.levels):
                norms = self._norms(level, block.stop - block.start)
                sums[block] += norms
                maxima[number] = np.maximum(maxima[number], norms.max(initial=0.0))  # NaN stays
        return sums, maxima.tolist()

    def _norms(self, level: TrellisLevel, n_rows: int) -> Array64:
        """Return the length of every row of a level, in the tensor's own unit."""
        norms: Array64 = np.sqrt(self._energies(level.matrices, n_rows))
        norms *= np.abs(gain_values(level.slot_v))
        return norms

    def _energies(self, matrices: Sequence[CodeMatrix], n_rows: int) -> NDArray[np.int32]:
        """Return the sum of squared levels of every row."""
        energies = np.empty(n_rows, np.int32)
        for code, slot_t, rows in matrices:
            own = energies if rows is None else np.empty(len(rows), np.int32)
            for start, stop in row_ranges(len(slot_t), slot_t.shape[1]):  # what is opened is a copy
                codes = code.opened(slot_t[start:stop], self.n_cols)
                _score.trellis_energies(
                    codes, code.levels, code.rate, self.n_cols, own[start:stop], crossed=code.crossed
                )
            if rows is not None:
                energies[rows] = own
        return energies

    def _lengths(self) -> Array64:
        """Return the length of every decoded row, in the tensor's own unit."""
        lengths = np.zeros(self.n_rows)
        for start, stop in row_ranges(self.n_rows, 4 * self.n_cols):
            lengths[start:stop] = row_lengths(self.decoded(slice(start, stop)))
        return lengths

    def _noise_lengths(self) -> Array64:
        """Return what a row's error is measured by: the length of its Slot T, or its whole length if it has none."""
        if self.terms.levels:
            return self.spreads.astype(np.float64)
        return self._lengths() * self.unit

    @cached_property
    def noise_spreads(self) -> Array32:
        """What a row's error is measured by, rounded up: `spreads`, or whole lengths if there is no Slot T."""
        if self.terms.levels:
            return self.spreads
        return np.nextafter(self._noise_lengths().astype(np.float32), np.float32(np.inf))

    def sample_lengths(self) -> tuple[Array64, Array64, Array64 | None]:
        """Return lengths of the rows of `sample`: whole, what their error is measured by, and of an omitted level."""
        lengths = row_lengths(self.decoded(self.sample)) * self.unit
        omitted = self._omitted_level(self.sample)
        omitted_lengths = None if omitted is None else self._norms(omitted, len(self.sample)) * self.unit
        return lengths, self._noise_lengths()[self.sample], omitted_lengths

    def _omitted_level(self, rows: NDArray[np.intp]) -> TrellisLevel | None:
        """Return the level that is left out, of some rows."""
        if self.terms.omitted is None:
            return None
        if isinstance(self.tensor, RowsInFile):
            terms = self.tensor.read(rows).search_terms(self._n_levels)
            return None if terms is None else terms.omitted
        return _level_of(self.terms.omitted, rows)

    # ---- rows ----

    def decoded(self, rows: NDArray[np.int64] | slice) -> Array32:
        """Return rows as they are scored, decoded, float32 (n, n_cols)."""
        return self.tensor.reconstruct_rows(rows) if self._n_levels == 2 else self.tensor.first_level_rows(rows)

    def blocks(self, n_queries: int) -> Iterator[slice]:
        """Yield ranges of rows, small ones first: what they tell keeps many of the other rows out."""
        largest = min(_MOST_ROWS, max(_LEAST_ROWS, _BLOCK_SCORES // max(1, n_queries)))
        if isinstance(self.tensor, RowsInFile):
            largest = min(largest, self.tensor.most_rows)
        start, step = 0, min(largest, 4 * _LEAST_ROWS)
        while start < self.n_rows:
            yield slice(start, min(start + step, self.n_rows))
            start, step = start + step, min(largest, 2 * step)

    @cached_property
    def sample(self) -> NDArray[np.intp]:
        """Row numbers, evenly spaced."""
        return np.unique(np.linspace(0, self.n_rows - 1, min(self.n_rows, _SAMPLE_ROWS)).astype(np.intp))

    @property
    def is_worth_sampling(self) -> bool:
        """Whether the rows are so many that the estimates of a sample pay."""
        return self.n_rows > 4 * _SAMPLE_ROWS

    def estimates(self, queries: Queries, rows: slice | NDArray[np.intp], trellis_factor: float = 1.0) -> Array32:
        """Estimate scores, in the units of rows and queries.

        Parameters
        ----------
        queries : Queries
        rows : slice or ndarray
            A range of rows, or row numbers.
        trellis_factor : float
            What Slot T's part is multiplied by.

        Returns
        -------
        ndarray of float32, shape (n_queries, n)
        """
        if self._scored_as_decoded:
            return self._decoded_estimates(queries, np.arange(self.n_rows)[rows])
        n_rows = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
        estimates = np.empty((len(queries.batch), n_rows), np.float32)
        summands, places = self._summands_of(rows)
        twigs = None if summands.twigs is None else summands.twigs[places]
        slot_l = None if summands.slot_l is None else np.ascontiguousarray(summands.slot_l[places])
        is_begun = twigs is not None or slot_l is not None or not summands.levels
        if is_begun:
            _screen.estimate(twigs, queries.tables, slot_l, queries.lanes, estimates)
        for level in summands.levels:
            for codes, scales in queries.planes:
                gains = level.gains[places]
                _add_scores(
                    level.matrices, places, codes, gains, scales * np.float32(trellis_factor), estimates, is_begun
                )
                is_begun = True
        return estimates

    def _decoded_estimates(self, queries: Queries, rows: NDArray[np.intp]) -> Array32:
        parts = []
        for start, stop in row_ranges(len(rows), 4 * self.n_cols):
            # In float64: rows of float32's smallest numbers are measured in units that float32 does not reach.
            block = self.decoded(rows[start:stop]).T.astype(np.float64) * self.unit
            parts.append(queries.batch / queries.powers[:, None] @ block)
        return np.concatenate(parts, axis=1).astype(np.float32)


def _level_of(level: TrellisLevel, rows: NDArray[np.intp]) -> TrellisLevel:
    """Return a level of some rows, ascending numbers."""
    matrices = []
    for code, slot_t, own_rows in level.matrices:
        ranks, places = (rows, None) if own_rows is None else _members(own_rows, rows)
        matrices.append(CodeMatrix(code, slot_t[ranks], places))
    return TrellisLevel(level.slot_v[rows], matrices)


def _add_scores(
    matrices: Sequence[CodeMatrix],
    rows: slice | NDArray[np.intp],
    codes: NDArray[np.int8],
    gains: Array32,
    scales: Array32,
    scores: Array32,
    more: bool,
) -> None:
    """Fill `scores` (n_queries, n), or add to them, with the products of int8 queries and a level of rows.

    Rows may be of any classes; `gains` (n,) and `scales` (n_queries,) are what a product is multiplied by.
    """
    n_cols = codes.shape[1]
    for code, slot_t, own_rows in matrices:
        ranks, own_gains, own = rows, gains, scores
        if own_rows is not None:
            ranks, places = _members(own_rows, rows)
            own_gains, own = gains[places], scores.take(places, axis=1)
        opened = code.opened(slot_t[ranks], n_cols)
        _score.trellis_scores(
            opened, code.levels, code.rate, codes, own_gains, scales, own, more=more, crossed=code.crossed
        )
        if own_rows is not None:
            scores[:, places] = own


def _members(
    own_rows: NDArray[np.intp], rows: slice | NDArray[np.intp]
) -> tuple[slice | NDArray[np.intp], NDArray[np.intp]]:
    """Return which of a class' rows (ascending numbers) are among `rows`, and their places there."""
    if isinstance(rows, slice):
        first, last = np.searchsorted(own_rows, (rows.start, rows.stop)).tolist()
        return slice(first, last), own_rows[first:last] - rows.start
    ranks = np.searchsorted(own_rows, rows)
    is_own = np.append(own_rows, -1)[ranks] == rows
    return ranks[is_own], np.flatnonzero(is_own)


def row_lengths(rows: NDArray[np.floating[Any]]) -> Array64:
    """Return the Euclidean length of every row (n, n_cols), float64 (n,)."""
    wide = rows.astype(np.float64, copy=False)
    lengths: Array64 = np.sqrt((wide * wide).sum(axis=1))
    return lengths
