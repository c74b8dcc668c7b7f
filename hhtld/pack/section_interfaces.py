"""What reads and what writes the sections of a pack, whether they lie in a file or in memory.

A pack is a table and numbered sections. A pack made in memory and one written to a file are the same bytes, because
both are written and read through these few methods.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Buffer", "RowSelection", "SectionReader", "SectionSink", "as_bytes"]

Buffer = bytes | bytearray | memoryview
RowSelection = NDArray[np.intp] | slice


def as_bytes(block: Buffer | NDArray[Any]) -> memoryview:
    """Return the bytes of a contiguous block."""
    if isinstance(block, np.ndarray):
        return block.reshape(-1).view(np.uint8).data
    return memoryview(block).cast("B") if len(block) else memoryview(b"")


class SectionReader(Protocol):
    """Sections that can be read."""

    @property
    def reads_rows(self) -> bool:
        """Whether rows that are given are read from a file here, and not views of memory or bytes from afar."""

    def kinds(self) -> list[str]:
        """Return the kind of every section, by number."""

    def nbytes(self, index: int) -> int:
        """Return the length of a section."""

    def whole(self, index: int) -> NDArray[np.uint8]:
        """Return a section, its checksum verified."""

    def check(self, index: int) -> None:
        """Verify a section's checksum, a piece at a time, unless it was: a section may be larger than memory."""

    def rows(
        self, index: int, width: int, rows: RowSelection, offset: int = 0, nbytes: int | None = None
    ) -> NDArray[np.uint8]:
        """Return rows of `width` bytes, shape (n, width), touching no others; the checksum is not read.

        Rows are counted from `offset` on, within `nbytes` bytes or what is left of the section. They may be a view of
        a mapped file: `check_unchanged` comes before they are looked at, since what was cut off ends the process, and
        after.
        """

    def check_unchanged(self) -> None:
        """Raise FormatError if what was given since the sections were opened may be of two states of a file."""

    def close(self) -> None:
        """Release what is held open."""


class SectionSink(ABC):
    """Where sections are written: in their order, their bytes in any."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of sections so far."""

    @abstractmethod
    def reserve(self, kind: str, nbytes: int) -> int:
        """Begin a section of `nbytes` behind the last one and return its number."""

    @abstractmethod
    def write_at(self, index: int, offset: int, block: Buffer | NDArray[Any], crc: int | None = None) -> None:
        """Place a block at `offset` in a section; `crc` is its CRC-32 if that is known. No byte comes twice."""

    @abstractmethod
    def rewind(self, count: int) -> None:
        """Drop all sections but the first `count`."""

    def recall(self, blocks: Iterable[tuple[int, int, int, int]]) -> list[NDArray[np.uint8]] | None:
        """Return what stands at blocks (section, offset, nbytes, crc) from an earlier run, and take it as written.

        Returns None, and takes nothing, if any block fails its CRC-32.
        """
        return None

    def add(self, kind: str, nbytes: int, blocks: Iterable[Buffer | NDArray[Any]]) -> int:
        """Write a section of exactly `nbytes` given in blocks and return its number."""
        index, done = self.reserve(kind, nbytes), 0
        for block in blocks:
            self.write_at(index, done, block)
            done += len(as_bytes(block))
        if done != nbytes:
            raise ValueError(f"section {kind!r} was declared {nbytes} bytes long and got {done}")
        return index
