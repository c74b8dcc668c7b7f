"""A cache of packed rows with a byte limit: what was read lately is not read again.

It is a table of slots a section, and a row may stand in one slot only (direct-mapped), so thousands of rows are looked
up in a few numpy calls. Rows stay packed: of a table at 4 bits a weight, the same memory keeps eight times the rows
that float32 would.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["CacheInfo", "RowCache"]

_NUMBER_NBYTES = 8  # of the row that a slot holds


class CacheInfo(NamedTuple):
    """What a cache did and holds.

    Attributes
    ----------
    hits, misses : int
        Rows of sections that it had, and that were read: a row of a tensor has a part in each of the tensor's sections.
    nbytes, limit : int
        Bytes that it takes, and may take.
    """

    hits: int
    misses: int
    nbytes: int
    limit: int


class _Slots(NamedTuple):
    numbers: NDArray[np.int64]  # -1 if a slot is empty
    rows: NDArray[np.uint8]

    def places(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return the slot that each row may stand in."""
        return rows % len(self.numbers)

    def keep(self, numbers: NDArray[np.intp], rows: NDArray[np.uint8]) -> None:
        """Put rows into their slots; of two that want one slot the first."""
        if len(self.numbers):
            places, firsts = np.unique(self.places(numbers), return_index=True)
            self.numbers[places], self.rows[places] = numbers[firsts], rows[firsts]


class RowCache:
    """Rows of sections. Safe to use from many threads; a child of fork begins with an empty one.

    Sections have the same number of slots, fewer when a new section comes.

    Parameters
    ----------
    limit : int
        Bytes of all slots together.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._begin()

    def _begin(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()
        self._slots: dict[Hashable, _Slots] = {}
        self._hits = self._misses = 0

    def info(self) -> CacheInfo:
        """Return counts and sizes."""
        slots = list(self._slots.values())
        nbytes = sum(held.numbers.nbytes + held.rows.nbytes for held in slots)
        return CacheInfo(self._hits, self._misses, nbytes, self.limit)

    def rows(
        self,
        section: Hashable,
        width: int,
        rows: NDArray[np.intp],
        read: Callable[[NDArray[np.intp]], NDArray[np.uint8]],
    ) -> NDArray[np.uint8]:
        """Return rows of `width` bytes of a section, (n, width), those that are not here from `read`, and keep them."""
        if os.getpid() != self._process:  # the lock may be held by a thread that is not in this child
            self._begin()
        out = np.empty((len(rows), width), np.uint8)
        with self._lock:
            slots = self._of(section, width)
            if not len(slots.numbers):  # the limit is below a row
                return read(rows)
            places = slots.places(rows)
            is_here = slots.numbers[places] == rows
            out[is_here] = slots.rows[places[is_here]]
            n_hits = int(np.count_nonzero(is_here))
            self._hits += n_hits
            self._misses += len(rows) - n_hits
        if n_hits < len(rows):
            missing = rows[~is_here]
            read_now = out[~is_here] = read(missing)
            with self._lock:
                self._of(section, width).keep(missing, read_now)
        return out

    def _of(self, section: Hashable, width: int) -> _Slots:
        slots = self._slots.get(section)
        if slots is None:
            widths = {number: held.rows.shape[1] for number, held in self._slots.items()} | {section: width}
            n_slots = self.limit // sum(other + _NUMBER_NBYTES for other in widths.values())
            before = self._slots
            self._slots = {
                number: _Slots(np.full(n_slots, -1, np.int64), np.empty((n_slots, other), np.uint8))
                for number, other in widths.items()
            }
            for number, held in before.items():
                chosen = np.flatnonzero(held.numbers >= 0)
                self._slots[number].keep(held.numbers[chosen], held.rows[chosen])
            slots = self._slots[section]
        return slots
