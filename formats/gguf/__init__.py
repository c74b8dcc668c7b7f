"""GGUF files, the format of llama.cpp and its kin."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from hhtld.formats.base import Format
from hhtld.formats.gguf.reading import MAGIC, GgufFile
from hhtld.sources.contract import TensorSource
from hhtld.storage.urls import Location

__all__ = ["GgufFile", "GgufFormat"]


class GgufFormat(Format):
    """GGUF files of llama.cpp and its kin."""

    name: ClassVar[str] = "gguf"
    suffixes: ClassVar[tuple[str, ...]] = (".gguf",)
    description: ClassVar[str] = "GGUF file of llama.cpp; quantised tensors are read as float32 (extra: gguf)"
    writes: ClassVar[bool] = False

    def sniff(self, path: Location, head: bytes) -> bool:
        """Whether the magic bytes or the suffix say so."""
        return head.startswith(MAGIC) or super().sniff(path, head)

    def open_source(self, path: Path) -> TensorSource:
        """Open a file.

        Raises
        ------
        FormatError
            For every malformation, naming the path.
        MissingExtraError
            When the package `gguf` is not installed.
        """
        return GgufFile(path)
