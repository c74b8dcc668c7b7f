"""Rows of a source, and the CRC-32 of all that were read."""

from __future__ import annotations

import threading
import zlib

import numpy as np
from numpy.typing import NDArray

from hhtld.sources.rows import Rows
from hhtld.storage.crc import Crc32Runs

__all__ = ["ChecksummedRows"]


class ChecksummedRows:
    """Rows, and the checksum of what was read of them, from any number of threads and in any order.

    Attributes
    ----------
    n_rows, n_cols : int
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self.n_rows, self.n_cols = rows.n_rows, rows.n_cols
        self._read, self._lock = Crc32Runs(), threading.Lock()

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows [start, stop), which may be read once."""
        block = self._rows.read(start, stop)
        crc, width = zlib.crc32(block.data), 4 * self.n_cols
        with self._lock:
            self._read.add(start * width, (stop - start) * width, crc)
        return block

    @property
    def crc32(self) -> int | None:
        """CRC-32 of all rows as float32, or None where some were not read."""
        return self._read.whole(self.n_rows * 4 * self.n_cols)
