"""Sections of a pack that is held in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hhtld.pack.section_interfaces import Buffer, RowSelection, SectionSink, as_bytes

__all__ = ["MemorySections"]


class MemorySections(SectionSink):
    """Sections held in memory: a sink and its own reader."""

    reads_rows = False

    def __init__(self) -> None:
        self._sections: list[tuple[str, NDArray[np.uint8]]] = []

    def __len__(self) -> int:
        return len(self._sections)

    def reserve(self, kind: str, nbytes: int) -> int:
        self._sections.append((kind, np.zeros(nbytes, np.uint8)))
        return len(self._sections) - 1

    def write_at(self, index: int, offset: int, block: Buffer | NDArray[Any], crc: int | None = None) -> None:
        view = np.frombuffer(as_bytes(block), np.uint8)
        self._sections[index][1][offset : offset + view.size] = view

    def rewind(self, count: int) -> None:
        del self._sections[count:]

    def reader(self) -> MemorySections:
        """Return these sections for reading; nothing may be written after."""
        for _, section in self._sections:
            section.flags.writeable = False
        return self

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self._sections]

    def nbytes(self, index: int) -> int:
        return self._sections[index][1].size

    def whole(self, index: int) -> NDArray[np.uint8]:
        return self._sections[index][1]

    def check(self, index: int) -> None:
        pass  # what is in memory has no checksum

    def rows(
        self, index: int, width: int, rows: RowSelection, offset: int = 0, nbytes: int | None = None
    ) -> NDArray[np.uint8]:
        end = None if nbytes is None else offset + nbytes
        return self._sections[index][1][offset:end].reshape(-1, width)[rows]

    def check_unchanged(self) -> None:
        pass

    def close(self) -> None:
        pass
