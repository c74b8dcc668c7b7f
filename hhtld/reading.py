"""Reading regular files by position, so that threads may read at once and nothing waits on a pipe."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

from hhtld.errors import BadMagicError, TruncatedError

__all__ = ["fill", "open_regular", "read_bytes"]


def open_regular(path: Path) -> tuple[io.FileIO, int]:
    """Open a regular file for reading and return it with its size.

    Raises
    ------
    BadMagicError
        When it is a folder, a device or a pipe.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise BadMagicError(f"{path}: not a regular file")
    # Should the path have become a FIFO since, opening it must still not wait for a writer.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise BadMagicError(f"{path}: not a regular file")
    return io.FileIO(fd, "rb"), status.st_size


def fill(file: io.FileIO, buffer: memoryview, offset: int, path: Path) -> None:
    """Fill `buffer` from `offset` on; the file's position is not used, so threads may read at once.

    Raises
    ------
    TruncatedError
        When the file ends before.
    """
    done = 0
    while done < len(buffer):  # one call may give less than it was asked for
        count = os.preadv(file.fileno(), [buffer[done:]], offset + done)
        if count == 0:
            raise TruncatedError(
                f"{path}: ends at byte {offset + done}, expected {len(buffer)} bytes from byte {offset}; "
                f"it became shorter while it was open"
            )
        done += count


def read_bytes(file: io.FileIO, offset: int, nbytes: int, path: Path) -> bytearray:
    """Return `nbytes` bytes from `offset` on."""
    data = bytearray(nbytes)
    fill(file, memoryview(data), offset, path)
    return data
