"""A level of Slot T: the codes of rows, by one code for all of them or by one for each class of rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hhtld.slots.class_layout import class_order, class_starts
from hhtld.slots.slot_t import Trellis

__all__ = ["CodeMatrix", "LevelCodes", "TrellisLevel", "encode_level"]


class CodeMatrix(NamedTuple):
    """Codes of one rate (n, row_nbytes), as in a file, and the ascending numbers of their rows: None for all."""

    trellis: Trellis
    slot_t: NDArray[np.uint8]
    rows: NDArray[np.intp] | None = None


class TrellisLevel(NamedTuple):
    """One level of Slot T: gains of all rows as bfloat16 bits of 64 gains, and codes, a matrix for every rate."""

    slot_v: NDArray[np.uint16]
    matrices: Sequence[CodeMatrix]


class LevelCodes:
    """The codes of a tensor's rows.

    Parameters
    ----------
    trellises : sequence of Trellis
        One for each class of rows; one for all rows if they have no classes.
    n_cols : int
    slot_t : ndarray of uint8, shape (n_rows, row_nbytes)
        Flat, class after class, if rows have classes.
    row_class : ndarray of uint8, shape (n_rows,), or None
        The class of every row.
    """

    def __init__(
        self,
        trellises: Sequence[Trellis],
        n_cols: int,
        slot_t: NDArray[np.uint8],
        row_class: NDArray[np.uint8] | None = None,
    ) -> None:
        self._trellises, self._n_cols, self._slot_t, self._row_class = trellises, n_cols, slot_t, row_class

    @cached_property
    def matrices(self) -> list[CodeMatrix]:
        """The codes as matrices, one for every class, or one of all rows."""
        if self._row_class is None:
            return [CodeMatrix(self._trellises[0], self._slot_t)]
        rows = class_order(self._row_class, len(self._trellises))
        widths = [trellis.row_nbytes(self._n_cols) for trellis in self._trellises]
        starts = class_starts([len(members) for members in rows], widths)
        return [
            CodeMatrix(trellis, self._slot_t[starts[c] : starts[c + 1]].reshape(len(rows[c]), widths[c]), rows[c])
            for c, trellis in enumerate(self._trellises)
        ]

    @cached_property
    def _ranks(self) -> NDArray[np.intp]:
        """The place of every row in the matrix of its class."""
        assert self._row_class is not None
        ranks = np.empty(len(self._row_class), np.intp)
        for matrix in self.matrices:
            ranks[matrix.rows] = np.arange(len(matrix.slot_t))
        return ranks

    def of_one_code(self, picked: NDArray[np.intp] | slice) -> tuple[int, NDArray[np.uint8]] | None:
        """Return the class of picked rows and their codes (n, row_nbytes) if all rows are of one class, else None."""
        if self._row_class is None:
            return 0, np.ascontiguousarray(self._slot_t[picked])
        if len(self._row_class) == 1:  # what a lookup of one row asks for
            return int(self._row_class[0]), np.ascontiguousarray(self._slot_t.reshape(1, -1)[picked])
        return None

    def decode(
        self, picked: NDArray[np.intp] | slice, gains: NDArray[np.float32], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Return picked rows (n, n_cols), rotated, of gains (n,); in `out` if it is given."""
        coded = self.of_one_code(picked)
        if coded is not None:
            return self._trellises[coded[0]].decode(coded[1], gains, self._n_cols, out)
        assert self._row_class is not None
        out = np.empty((len(gains), self._n_cols), np.float32) if out is None else out
        classes, ranks = self._row_class[picked], self._ranks[picked]
        for number in np.unique(classes):
            matrix, members = self.matrices[number], np.flatnonzero(classes == number)
            codes = np.ascontiguousarray(matrix.slot_t[ranks[members]])
            out[members] = matrix.trellis.decode(codes, gains[members], self._n_cols)
        return out


def encode_level(
    trellises: Sequence[Trellis],
    rotated: NDArray[np.float32],
    feedback: NDArray[np.float32] | None,
    row_class: NDArray[np.uint8] | None,
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return the codes of rotated rows, which lie by class if there are classes, and the gains of the rows."""
    if row_class is None:
        return trellises[0].encode(rotated, feedback)
    gains, codes = np.empty(len(rotated), np.float32), []
    for trellis, rows in zip(trellises, class_order(row_class, len(trellises)), strict=True):
        class_codes, gains[rows] = trellis.encode(np.ascontiguousarray(rotated[rows]), feedback)
        codes.append(class_codes.reshape(-1))
    return np.concatenate(codes), gains
