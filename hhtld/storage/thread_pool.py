"""Threads that belong to one process: begun when they are first needed, and anew in a child of fork."""

from __future__ import annotations

import os
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
        self._pool: tuple[int, ThreadPoolExecutor] | None = None  # of which process

    def __reduce__(self) -> tuple[type[Threads], tuple[int]]:
        return Threads, (self.count,)

    def submit(self, function: Callable[..., T], *args: Any) -> Future[T]:
        """Begin a call in another thread."""
        pool, process = self._pool, os.getpid()
        if pool is None or pool[0] != process:  # the first call, or a child of fork, which has none of them
            from concurrent.futures import ThreadPoolExecutor  # opening a pack needs none

            pool = self._pool = process, ThreadPoolExecutor(self.count, "hhtld")
        return pool[1].submit(function, *args)

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
        """End the threads when what they have begun is done."""
        pool, self._pool = self._pool, None
        if pool is not None and pool[0] == os.getpid():
            pool[1].shutdown(wait=False)
