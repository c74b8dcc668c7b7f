"""A source that is another one seen differently: what it does not define itself is the other's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hhtld.matrix import TensorInfo
from hhtld.sources.contract import TensorSource

__all__ = ["WrappedSource"]


class WrappedSource(TensorSource):
    """All that another source is and tells. It does not close the other: who opened that one does.

    Parameters
    ----------
    source : TensorSource
    """

    def __init__(self, source: TensorSource) -> None:
        self._source = source

    @property
    def metadata(self) -> dict[str, str]:
        return self._source.metadata

    @property
    def description(self) -> dict[str, Any]:
        return self._source.description

    @property
    def is_stored(self) -> bool:
        return self._source.is_stored

    def infos(self) -> Mapping[str, TensorInfo]:
        return self._source.infos()

    def aliases(self) -> Mapping[str, str]:
        return self._source.aliases()

    @property
    def notes(self) -> list[str]:
        return self._source.notes

    @property
    def declared_quantization(self) -> str | None:
        return self._source.declared_quantization

    def quantized(self) -> Mapping[str, str] | None:
        return self._source.quantized()

    def uses(self) -> Mapping[str, frozenset[str]]:
        return self._source.uses()

    def decoded(self) -> frozenset[str]:
        return self._source.decoded()

    def regimes(self) -> Mapping[str, tuple[str, str]]:
        return self._source.regimes()

    def stored(self, name: str) -> tuple[str, int]:
        return self._source.stored(name)

    def files(self) -> Mapping[str, int]:
        return self._source.files()

    def read_file(self, name: str) -> bytes:
        return self._source.read_file(name)

    @property
    def file_notes(self) -> list[str]:
        return self._source.file_notes

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        return self._source.read_rows(name, start, stop)

    def check_unchanged(self) -> None:
        self._source.check_unchanged()
