"""Products of a few inputs with a tensor's rows, for layers of models: one call, and no bounds.

`Scorer.scores` gives the same with its planes of integers; it also takes Slot L and a second level.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from hhtld._kernels import _score
from hhtld.search.teams import Team, team_of
from hhtld.slots.slot_t import gain_values

if TYPE_CHECKING:
    from hhtld.codecs.base import EncodedTensor, SearchTerms

__all__ = ["RowProducts"]

# Float32 bytes of rows that are decoded at once; half of it and twice it are slower.
_BLOCK_NBYTES = 1 << 21
# Weights that each of the threads which share a product must have. The caller waits for one that the system puts aside
# in the midst of a piece: with smaller matrices, a token of a small model took longer with two threads than with one.
_THREAD_WEIGHTS = 1 << 19


class RowProducts:
    """Products with rows that are one level of Slot T and, if there are centroids, one of those.

    Parameters
    ----------
    terms : SearchTerms
        Of the tensor.

    Attributes
    ----------
    has_centroids : bool
    """

    def __init__(self, terms: SearchTerms) -> None:
        level, rotation = terms.levels[0], terms.rotation
        assert rotation is not None
        self._rotation = rotation
        gains = gain_values(level.slot_v)
        self._matrices = [
            (code, np.ascontiguousarray(slot_t), rows, gains if rows is None else gains[rows])
            for code, slot_t, rows in level.matrices
        ]
        self._column_scale = terms.column_scale
        self._centroids, self._twigs = None, terms.twigs
        if terms.centroids is not None:
            self._centroids = np.array(terms.centroids, np.float32, order="C")
            rotation.rotate(self._centroids)
        self.has_centroids = self._centroids is not None
        n_rows = len(level.slot_v)
        # A power of two, so that there are few teams.
        self._most_threads = 1 << (n_rows * rotation.n_cols // _THREAD_WEIGHTS).bit_length() >> 1
        self._products = _score.TrellisProducts(
            [
                (codes, code.levels, code.rate, own_gains, rows, code.crossed, code.is_ring)
                for code, codes, rows, own_gains in self._matrices
            ],
            n_rows,
            rotation.signs,
            self._column_scale,
            self._centroids,
            None if self._centroids is None else np.ascontiguousarray(self._twigs),
        )

    @classmethod
    def of(cls, tensor: EncodedTensor) -> Self | None:
        """Return the products of a tensor, or None if its rows have Slot L, a second level or no Slot T."""
        terms = tensor.search_terms()
        if terms is None or len(terms.levels) != 1 or terms.basis is not None:
            return None
        return cls(terms)

    def write(self, inputs: NDArray[np.float32], out: NDArray[np.float32], n_planes: int, n_threads: int = 1) -> bool:
        """Write the products of inputs (n_inputs, n_cols) to out (n_inputs, n_rows).

        Parameters
        ----------
        n_planes : {1, 2}
            An input is taken as so many planes of int8 a column: one loses up to 1/254 of its largest magnitude in a
            column after the rotation, two 1/64516.
        n_threads : int
            At most so many threads share the rows of a large matrix; `out` does not depend on it.

        Returns
        -------
        bool
            False if a number is not finite on its way; `out` then holds nothing of use.
        """
        return self._products.write(inputs, n_planes, out, team=self._team(n_threads))

    def write_at(
        self, inputs: int, inputs_type: str, n_inputs: int, out: int, out_type: str, n_planes: int, n_threads: int
    ) -> bool:
        """As `write`, for the addresses of contiguous arrays of "F32", "BF16" or "F16"."""
        return self._products.write_at(
            inputs, inputs_type, n_inputs, n_planes, out, out_type, team=self._team(n_threads)
        )

    def _team(self, n_threads: int) -> Team | None:
        n_threads = min(n_threads, self._most_threads)
        return team_of(n_threads) if n_threads > 1 else None

    def _parts(self, n_rows: int) -> Iterator[slice]:
        """Yield blocks of rows."""
        step = max(1, _BLOCK_NBYTES // max(1, 4 * self._rotation.n_cols))
        for start in range(0, n_rows, step):
            yield slice(start, min(start + step, n_rows))

    def rotated(self, inputs: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Return inputs (n_inputs, n_cols) for products with `rotated_blocks`, or None if a number is not finite."""
        with np.errstate(over="ignore", invalid="ignore"):
            rotated = np.array(inputs, order="C")
            if self._column_scale is not None:
                rotated /= self._column_scale
            self._rotation.rotate(rotated)
        return rotated if np.isfinite(rotated).all() else None

    def rotated_blocks(self) -> Iterator[tuple[slice | NDArray[np.intp], NDArray[np.float32]]]:
        """Yield row numbers and the rows (n, n_cols), rotated and scaled by column; the next block overwrites it."""
        n_cols = self._rotation.n_cols
        for trellis, slot_t, rows, gains in self._matrices:
            buffer = np.empty((0, n_cols), np.float32)
            for part in self._parts(len(slot_t)):
                if not len(buffer):
                    buffer = np.empty((part.stop, n_cols), np.float32)  # the first block is the largest
                block = trellis.decode(slot_t[part], gains[part], n_cols, buffer[: part.stop - part.start])
                places = part if rows is None else rows[part]
                if self._centroids is not None and self._twigs is not None:
                    block += self._centroids[self._twigs[places]]
                yield places, block
