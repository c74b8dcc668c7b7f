"""Running calls on an executor, a bounded number at a time.

An executor is anything with `submit` that gives `concurrent.futures.Future`: threads, processes, a cluster's
adapter. Nothing else of it is used. What runs is a function of a module with arguments that can be pickled, which
threads do not ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from hhtld.storage.thread_pool import n_processors

__all__ = ["Call", "Crew", "completed", "default_jobs", "workers"]

Key = TypeVar("Key")
Call = tuple[Key, Callable[..., Any], tuple[Any, ...]]
_WINDOW = 64  # if no one says how many results may wait


def _itself(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Crew:
    """Who does the work.

    Attributes
    ----------
    executor : Executor or None
        None does it in the caller's own thread.
    jobs : int
        Tasks that run at once.
    remote : bool
        Whether tasks take memory of other machines.
    share : callable
        Called once with what many tasks need; they are given what it returns. A cluster's adapter sends the
        value ahead and returns its handle.
    """

    executor: Executor | None = None
    jobs: int = 1
    remote: bool = False
    share: Callable[[Any], Any] = _itself

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return what a call gives, made where the others are made."""
        return function(*args) if self.executor is None else self.executor.submit(function, *args).result()


def completed(
    executor: Executor | None, calls: Iterable[Call[Key]], window: int = _WINDOW
) -> Iterator[tuple[Key, Any]]:
    """Make calls (key, function, arguments) and yield (key, result) as they end.

    At most `window` of them have begun and not been taken by the caller; the iterable is only read as far. The
    first error cancels what has not begun, waits for what has, and is raised; so does closing the iterator.
    """
    if executor is None:
        for key, function, args in calls:
            yield key, function(*args)
        return
    unfinished: dict[Future[Any], Key] = {}
    rest = iter(calls)
    try:
        while True:
            while len(unfinished) < window and (call := next(rest, None)) is not None:
                unfinished[executor.submit(call[1], *call[2])] = call[0]
            if not unfinished:
                return
            for future in wait(unfinished, return_when=FIRST_COMPLETED).done:
                yield unfinished.pop(future), future.result()
    finally:
        wait([future for future in unfinished if not future.cancel()])


def default_jobs() -> int:
    """Return the number of processors this process may use."""
    return n_processors()


@contextmanager
def workers(jobs: int) -> Iterator[Executor | None]:
    """Give an executor of `jobs` threads, or None for one: the caller's own."""
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    if jobs == 1:
        yield None
        return
    executor = ThreadPoolExecutor(jobs)
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)
