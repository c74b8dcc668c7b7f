"""Rates by row: the class of every row, and where its codes lie.

Rows of a tensor may have rates of their own, 2 to 16 classes of them. Their codes lie by class, and within a class in
the order of the rows; so the codes of a class are a matrix, and a row's place in it is its rank: how many rows before
it are of its class.

Layout
------
row_class, u8 a row: the number of its class. The codes of class 0, then those of class 1, ..., each a matrix of its own
width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_CLASSES", "ByClass", "RowPlaces", "class_order", "class_starts", "row_spans"]

MAX_CLASSES = 16
_BLOCK = 256  # rows between two counts, which a lookup counts through
_STRIDE = 1 << 15  # rows between two counts of 64 bits; those of blocks are 16 bits, from the last of these on
_LOOKED_UP = 1024  # rows at once: their blocks stay in a core's cache


def class_starts(class_rows: Sequence[int], widths: Sequence[int]) -> list[int]:
    """Return where the codes of every class begin, in bytes, and where the last ends."""
    starts = [0]
    for n_rows, width in zip(class_rows, widths, strict=True):
        starts.append(starts[-1] + n_rows * width)
    return starts


def class_order(row_class: NDArray[np.uint8], n_classes: int) -> list[NDArray[np.intp]]:
    """Return the numbers of the rows of every class, ascending."""
    order = np.argsort(row_class, kind="stable")
    ends = np.cumsum(np.bincount(row_class, minlength=n_classes))
    return np.split(order, ends[:-1])


class RowPlaces:
    """The class of every row and its rank there, found without counting all the rows before it.

    They are counted once; what is kept is an eighth of a byte a row for 16 classes.

    Parameters
    ----------
    row_class : ndarray of uint8, shape (n_rows,)
    class_rows : sequence of int
        How many rows every class must have.

    Attributes
    ----------
    row_class : ndarray of uint8, shape (n_rows,)

    Raises
    ------
    ValueError
        If a row is of no class, or a class has another number of rows.
    """

    def __init__(self, row_class: NDArray[np.uint8], class_rows: Sequence[int]) -> None:
        self.row_class, n_rows, n_classes = row_class, len(row_class), len(class_rows)
        self._strides = np.zeros((n_rows // _STRIDE + 1, n_classes), np.int64)
        self._blocks = np.zeros((n_rows // _BLOCK + 1, n_classes), np.uint16)
        self._block_starts = np.arange(_BLOCK, dtype=np.int16)
        total = np.zeros(n_classes, np.int64)
        block_of = np.arange(_STRIDE) // _BLOCK * n_classes
        for stride in range(len(self._strides)):
            self._strides[stride] = total
            rows = row_class[stride * _STRIDE : (stride + 1) * _STRIDE]
            if len(rows) and int(rows.max()) >= n_classes:
                row = stride * _STRIDE + int((rows >= n_classes).argmax())
                raise ValueError(f"row_class says that row {row} is of class {row_class[row]}, of {n_classes} classes")
            n_blocks = min(_STRIDE // _BLOCK, len(self._blocks) - stride * (_STRIDE // _BLOCK))
            counted = np.bincount(rows + block_of[: len(rows)], minlength=n_blocks * n_classes)
            counts = counted.reshape(n_blocks, n_classes)
            before = self._blocks[stride * (_STRIDE // _BLOCK) :][:n_blocks]
            before[1:] = counts[:-1].cumsum(axis=0)
            total = total + counts.sum(axis=0)
        if total.tolist() != list(class_rows):
            raise ValueError(f"row_class has {total.tolist()} rows of the classes, class_rows says {list(class_rows)}")

    def before(self, row: int) -> NDArray[np.int64]:
        """Return how many rows of every class stand before a row, (n_classes,)."""
        block = row // _BLOCK
        rest = np.bincount(self.row_class[block * _BLOCK : row], minlength=self._strides.shape[1])
        counts: NDArray[np.int64] = self._strides[row // _STRIDE] + self._blocks[block] + rest
        return counts

    def of(self, rows: NDArray[np.intp]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return the classes of rows (n,) and their ranks within them."""
        classes = self.row_class[rows]
        blocks, ranks = rows // _BLOCK, np.empty(len(rows), np.int64)
        n_whole = len(self.row_class) // _BLOCK
        whole = self.row_class[: n_whole * _BLOCK].reshape(n_whole, _BLOCK)
        for start in range(0, len(rows), _LOOKED_UP):
            part = slice(start, start + _LOOKED_UP)
            is_same = whole[np.minimum(blocks[part], max(0, n_whole - 1))] == classes[part, None] if n_whole else None
            if is_same is not None:
                is_same &= self._block_starts < (rows[part] % _BLOCK)[:, None]
                ranks[part] = is_same.view(np.uint8).sum(axis=1, dtype=np.uint16)
        for place in np.flatnonzero(blocks == n_whole):  # the last block may be cut short
            own = self.row_class[n_whole * _BLOCK : rows[place]]
            ranks[place] = np.count_nonzero(own == classes[place])
        ranks += self._strides[rows // _STRIDE, classes]
        ranks += self._blocks[blocks, classes]
        return classes, ranks


class ByClass:
    """A section of codes that lie by class, as a coder lays it out; see above.

    Parameters
    ----------
    row_class : ndarray of uint8, shape (n_rows,)
    widths : sequence of int
        Bytes that a row of each class takes.

    Attributes
    ----------
    row_class : ndarray of uint8, shape (n_rows,)
    class_rows : list of int
        How many rows are of each class.
    """

    def __init__(self, row_class: NDArray[np.uint8], widths: Sequence[int]) -> None:
        self.row_class, self._widths = row_class, widths
        self.class_rows: list[int] = np.bincount(row_class, minlength=len(widths)).tolist()
        self._places = RowPlaces(row_class, self.class_rows)
        self._starts = class_starts(self.class_rows, widths)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole section."""
        return self._starts[-1]

    def spans(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Return where rows [start, stop) lie, class after class: offsets and bytes."""
        before, after = self._places.before(start).tolist(), self._places.before(stop).tolist()
        return [
            (self._starts[c] + before[c] * width, (after[c] - before[c]) * width)
            for c, width in enumerate(self._widths)
            if after[c] > before[c]
        ]

    def joined(self, blocks: Sequence[tuple[int, int, NDArray[np.uint8]]]) -> NDArray[np.uint8]:
        """Return codes of rows that follow one another, as (start, stop, codes), as one run that lies by class."""
        parts: list[list[NDArray[np.uint8]]] = [[] for _ in self._widths]
        for start, stop, codes in blocks:
            done = 0
            for c, n_rows in enumerate(np.bincount(self.row_class[start:stop], minlength=len(parts)).tolist()):
                parts[c].append(codes[done : done + n_rows * self._widths[c]])
                done += n_rows * self._widths[c]
        return np.concatenate([codes for levels in parts for codes in levels])


def row_spans(part: int | ByClass, start: int, stop: int) -> list[tuple[int, int]]:
    """Return where rows [start, stop) lie in a section of a layout: offsets and bytes, in the order of their bytes."""
    return [(start * part, (stop - start) * part)] if isinstance(part, int) else part.spans(start, stop)
