"""Rows that are read before they are asked for, in a thread of their own."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from hhtld.storage.thread_pool import Threads

__all__ = ["Ahead", "Ready"]

_MOST_CALLS = 16

Held = TypeVar("Held")


class Ready(NamedTuple, Generic[Held]):
    """Rows that were read ahead, and the places among them of those asked for; None for all of them in order."""

    held: Held
    places: NDArray[np.intp] | None


@dataclass(eq=False)
class _Fetched(Generic[Held]):
    """One call ahead."""

    key: Hashable
    rows: NDArray[np.intp]
    future: Future[Held]
    n_waiting: int  # rows that nobody has asked for yet


class Ahead(Generic[Held]):
    """Calls that read rows ahead, one after the other; the oldest is let go when more than 16 wait to be used."""

    def __init__(self) -> None:
        self._threads = Threads(2)  # of which one may wait for the other's device
        self._fetched: list[_Fetched[Held]] = []
        self._lock = threading.Lock()
        self._process = os.getpid()

    def __reduce__(self) -> tuple[type[Ahead[Held]], tuple[()]]:
        return Ahead, ()  # another process reads ahead for itself

    @property
    def is_waiting(self) -> bool:
        """Whether some rows that were read ahead wait to be used."""
        return bool(self._fetched)

    def begin(self, key: Hashable, rows: NDArray[np.intp], read: Callable[[NDArray[np.intp]], Held]) -> None:
        """Begin to read rows, numbers that ascend, each once."""
        self._own()
        call = _Fetched(key, rows, self._threads.submit(read, rows), len(rows))
        with self._lock:
            self._fetched.append(call)
            del self._fetched[:-_MOST_CALLS]

    def take(self, key: Hashable, rows: NDArray[np.intp]) -> Ready[Held] | None:
        """Return rows (ascending, each once) that one call ahead reads, waiting for it; None if no call reads them all.

        A call is let go when as many rows were taken as it read. What it raised is raised here.
        """
        self._own()
        with self._lock:
            for call in self._fetched:
                if call.key != key or len(call.rows) < len(rows):
                    continue
                places = None
                if len(call.rows) != len(rows) or not np.array_equal(call.rows, rows):
                    places = call.rows.searchsorted(rows)
                    if places[-1] >= len(call.rows) or not np.array_equal(call.rows[places], rows):
                        continue
                call.n_waiting -= len(rows)
                if call.n_waiting <= 0:
                    self._fetched.remove(call)
                break
            else:
                return None
        try:
            return Ready(call.future.result(), places)
        except CancelledError:  # the pack is closed meanwhile, and who reads the rows now is told
            return None
        except BaseException:  # asked again, rows are read again
            with self._lock:
                self._fetched = [other for other in self._fetched if other is not call]
            raise

    def _own(self) -> None:
        if os.getpid() != self._process:  # a child of fork: what reads ahead does so in its parent
            self._fetched, self._lock, self._process = [], threading.Lock(), os.getpid()

    def close(self) -> None:
        """Let go of what was read ahead; what has begun to be read is waited for."""
        self._own()
        with self._lock:
            calls, self._fetched = self._fetched, []
        for call in calls:
            call.future.cancel()
        self._threads.close()
