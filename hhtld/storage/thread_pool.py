"""Threads that belong to one process: begun when they are first needed, and anew in a child of fork."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["Threads", "n_processors"]

T = TypeVar("T")
Item = TypeVar("Item")


def n_processors() -> int:
    """Return the number of processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Threads:
    """At most `count` threads.

    Parameters
    ----------
    count : int
        With 1, `each` works in the caller's own thread.
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"there must be at least 1 thread, got {count}")
        self.count = count
        self._begin()

    def _begin(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._is_closed = False

    def __reduce__(self) -> tuple[type[Threads], tuple[int]]:
        return Threads, (self.count,)

    def submit(self, function: Callable[..., T], *args: Any) -> Future[T]:
        """Begin a call in another thread; after `close` it is done at once, in the caller's own."""
        if self._process != os.getpid():  # a child of fork, which has none of them; the lock may be held by one
            self._begin()
        from concurrent.futures import Future, ThreadPoolExecutor  # opening a pack needs none

        with self._lock:
            if not self._is_closed:
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(self.count, "hhtld")
                return self._pool.submit(function, *args)
        done: Future[T] = Future()
        try:
            done.set_result(function(*args))
        except Exception as error:
            done.set_exception(error)
        return done

    def each(self, function: Callable[[Item], T], items: Iterable[Item]) -> list[T]:
        """Return what the function gives for every item, in order; the first error is raised when all have ended."""
        if self.count == 1:
            return [function(item) for item in items]
        futures = [self.submit(function, item) for item in items]
        errors = [future.exception() for future in futures]
        for error in errors:
            if error is not None:
                raise error
        return [future.result() for future in futures]

    def close(self) -> None:
        """Wait until what was begun is done, and until the threads have ended."""
        if self._process != os.getpid():
            self._begin()
        with self._lock:
            pool, self._pool, self._is_closed = self._pool, None, True
        if pool is not None:
            pool.shutdown()
