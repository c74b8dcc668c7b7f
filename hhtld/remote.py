"""A source that other processes open for themselves.

Pickled, it is the call that opens it; a process that receives it opens it once and keeps it. So a task that names
rows carries a path, and reads the rows where it runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hhtld.source import TensorInfo, TensorSource

__all__ = ["RemoteSource"]

_KEPT = 4  # sources open at once in a worker: as many conversions as are likely to share it


class RemoteSource(TensorSource):
    """A source and how to open it.

    Parameters
    ----------
    source : TensorSource
        Open here; closed by who opened it.
    opener : callable
        A function of a module.
    args : tuple
        Hashable.
    fingerprint : str
        Tells the source from what else may stand, or have stood, at the same place.
    """

    def __init__(
        self, source: TensorSource, opener: Callable[..., TensorSource], args: tuple[Any, ...], fingerprint: str
    ) -> None:
        self._source = source
        self._call = (opener, args, fingerprint)

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, self._call

    @property
    def metadata(self) -> dict[str, str]:
        return self._source.metadata

    @property
    def description(self) -> dict[str, Any]:
        return self._source.description

    def infos(self) -> Mapping[str, TensorInfo]:
        return self._source.infos()

    def aliases(self) -> Mapping[str, str]:
        return self._source.aliases()

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        return self._source.read_rows(name, start, stop)


@functools.lru_cache(_KEPT)
def _opened(opener: Callable[..., TensorSource], args: tuple[Any, ...], fingerprint: str) -> RemoteSource:
    return RemoteSource(opener(*args), opener, args, fingerprint)
