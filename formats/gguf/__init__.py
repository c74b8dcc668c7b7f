"""GGUF files, the format of llama.cpp and its kin."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from hhtld.formats.base import Format
from hhtld.formats.gguf.reading import MAGIC, GgufFile
from hhtld.formats.gguf.writing import SOURCE, planned_layout, write_gguf
from hhtld.progress import Progress, silent
from hhtld.sources.contract import TensorSource
from hhtld.storage.file_reading import Location

__all__ = ["GgufFile", "GgufFormat"]


class GgufFormat(Format):
    """GGUF files of llama.cpp and its kin."""

    name: ClassVar[str] = "gguf"
    suffixes: ClassVar[tuple[str, ...]] = (".gguf",)
    description: ClassVar[str] = (
        "GGUF file of llama.cpp; quantized tensors read as float32; only what came from one is written (extra: gguf)"
    )
    options: ClassVar[frozenset[str]] = frozenset({"progress", "type"})

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
            If the package `gguf` is not installed.
        """
        return GgufFile(path)

    def check_source(self, source: TensorSource, *, type: str = SOURCE, **options: Any) -> None:
        """Raise what `write_source` would raise before it writes anything."""
        planned_layout(source, type)

    def write_source(
        self, source: TensorSource, path: Path, *, type: str = SOURCE, progress: Progress = silent, **options: Any
    ) -> list[str]:
        """Write what came from a GGUF file as one again; see `hhtld.formats.gguf.writing`."""
        return write_gguf(source, path, type, progress)
