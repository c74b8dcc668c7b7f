"""What goes to other processes: sources that they open for themselves, and arguments.

Pickled, a source is the call that opens it; a process that receives it opens it once and keeps it. So a task that
names rows carries a path, and reads the rows where it runs.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from hhtld.sources.contract import TensorSource
from hhtld.sources.wrapped import WrappedSource

__all__ = ["Carried", "CarryingExecutor", "ReopenedSource", "call"]

_KEPT = 4  # sources open at once in a worker: as many conversions as are likely to share it


class ReopenedSource(WrappedSource):
    """A source and how to open it.

    Parameters
    ----------
    source : TensorSource
        Open here; closed by who opened it.
    opener : callable
        A function of a module.
    args : tuple
        Hashable; equal ones mean the same source, so what tells it from others that stood there belongs to them.
    look : callable, optional
        Raises when the source is not the one it was here; asked once the work is done, where others had a part in it.
    """

    def __init__(
        self,
        source: TensorSource,
        opener: Callable[..., TensorSource],
        args: tuple[Any, ...],
        look: Callable[[], object] | None = None,
    ) -> None:
        super().__init__(source)
        self._call = (opener, args)
        self._look = look
        self._was_sent = False

    def __reduce__(self) -> tuple[Any, ...]:
        self._was_sent = True
        return _opened, self._call

    def check_unchanged(self) -> None:
        super().check_unchanged()
        if self._was_sent and self._look is not None:
            self._look()


@functools.lru_cache(_KEPT)
def _opened(opener: Callable[..., TensorSource], args: tuple[Any, ...]) -> ReopenedSource:
    return ReopenedSource(opener(*args), opener, args)


class Carried:
    """A value as its pickle: arrays that a cluster unpacks itself may lie in its buffers at odd addresses."""

    def __init__(self, value: Any) -> None:
        self._data = pickle.dumps(value)

    def __getstate__(self) -> dict[str, Any]:
        return {"_data": self._data}

    @functools.cached_property
    def value(self) -> Any:
        """The value, unpacked once by whoever holds this."""
        return pickle.loads(self._data)


def call(function: Callable[..., Any], shared: list[Carried], rest: Carried) -> Any:
    """Return what a function gives for arguments that were carried, those that many calls share first."""
    return function(*(carried.value for carried in shared), *rest.value)


class CarryingExecutor(Executor):
    """An executor of other processes, its arguments carried."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._executor.submit(call, functools.partial(fn, **kwargs) if kwargs else fn, [], Carried(args))
