"""Reading by position, so that threads may read at once: regular files here, remote ones where formats are.

Nothing waits on a pipe, and every short read is an error.
"""

from __future__ import annotations

import mmap
import os
import stat
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from hhtld.errors import BadMagicError, ClosedError, HeaderError, TruncatedError
from hhtld.storage import descriptors

__all__ = ["FileIdentity", "PositionalFile", "RegularFile", "open_regular"]


class FileIdentity(NamedTuple):
    """What tells whether a regular file is still the one that it was, and holds what it held."""

    device: int
    inode: int
    nbytes: int
    mtime_ns: int
    ctime_ns: int
    n_links: int

    @classmethod
    def of(cls, found: os.stat_result) -> Self:
        """Return what the system tells of a file."""
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_nlink)

    def is_still(self, now: FileIdentity) -> bool:
        """Whether nothing was written since.

        The time of the last change tells of writing even where the time of the last writing was set back; a name
        that was given to the file, or taken from it, moves it too and does no harm.
        """
        return self[:4] == now[:4] and (self.ctime_ns == now.ctime_ns or self.n_links != now.n_links)


class PositionalFile(ABC):
    """Bytes read by offset, from several threads at once; a context manager that closes itself.

    Attributes
    ----------
    size : int
        Bytes when it was opened.
    identity : Any
        What tells this file, as it was when it was opened, from others and from itself at other times.
    closed : bool
    gap : int
        Bytes that are cheaper to read and drop than to skip with a second read.
    """

    size: int
    identity: Any
    closed: bool
    gap: int = 0

    @abstractmethod
    def fill(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from `offset` on.

        Raises
        ------
        FormatError
            When the file ends before, or is no longer the one that was opened.
        OSError
            When it cannot be read.
        """

    @abstractmethod
    def close(self) -> None:
        """Release what is held open; a read beside it ends as if it had come before."""

    def is_still(self, identity: Any) -> bool:
        """Whether this is the file that had this identity when it was open before, and nothing was written since."""
        return bool(self.identity == identity)

    def read(self, offset: int, nbytes: int) -> bytearray:
        """Return `nbytes` bytes from `offset` on; raises as `fill` does."""
        data = bytearray(nbytes)
        self.fill(memoryview(data), offset)
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Descriptor:
    """A file descriptor that is closed when the last who reads lets go of it.

    Were it closed beside a read, the next file to be opened could get its number, and be read instead.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class RegularFile(PositionalFile):
    """An open regular file, which owns its descriptor.

    After every read the file is looked at again: rows of two models must not end up in one.
    """

    identity: FileIdentity

    def __init__(self, fd: int, path: Path) -> None:
        self._held: _Descriptor | None = _Descriptor(fd)
        self._path = path
        self.identity = FileIdentity.of(os.fstat(fd))
        self.size = self.identity.nbytes
        self.closed = False

    def map(self) -> mmap.mmap:
        """Return the file mapped into memory, for reading."""
        return mmap.mmap(self._descriptor().fd, 0, access=mmap.ACCESS_READ)

    def _descriptor(self) -> _Descriptor:
        held = self._held  # another thread may close the file meanwhile
        if held is None:
            raise ClosedError(f"{self._path}: the file is closed")
        return held

    def fill(self, buffer: memoryview, offset: int) -> None:
        held, done = self._descriptor(), 0
        while done < len(buffer):  # one call may give less than it was asked for
            count = descriptors.read_into(held.fd, buffer[done:], offset + done)
            if count == 0:
                raise TruncatedError(
                    f"{self._path}: ends at byte {offset + done}, expected {len(buffer)} bytes from byte {offset}; "
                    f"it became shorter while it was open"
                )
            done += count
        if not self.identity.is_still(FileIdentity.of(os.fstat(held.fd))):
            raise HeaderError(f"{self._path}: was written to while it was open; what was read may be of two states")

    def is_still(self, identity: FileIdentity) -> bool:
        return identity.is_still(self.identity)

    def close(self) -> None:
        self.closed = True
        self._held = None


def open_regular(path: Path) -> RegularFile:
    """Open a regular file for reading.

    Raises
    ------
    BadMagicError
        When it is a folder, a device or a pipe.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise BadMagicError(f"{path}: not a regular file")
    # Should the path have become a FIFO since, opening it must still not wait for a writer.
    fd = descriptors.open_descriptor(path, os.O_RDONLY)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise BadMagicError(f"{path}: not a regular file")
    return RegularFile(fd, path)
