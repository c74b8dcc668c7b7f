"""Reading by position, so that threads may read at once: regular files here, remote ones in `urls`.

Nothing waits on a pipe, and every short read is an error.
"""

from __future__ import annotations

import mmap
import os
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hhtld import _kernels, storage
from hhtld.errors import BadMagicError, ClosedError, HeaderError, TruncatedError
from hhtld.registry import later
from hhtld.storage import descriptors

if TYPE_CHECKING:
    from hhtld.storage.run_reads import Runs
    from hhtld.storage.thread_pool import Threads
    from hhtld.storage.urls import Url
else:
    Url = later("hhtld.storage.urls:Url")

__all__ = [
    "URL",
    "DirectFile",
    "FileIdentity",
    "Location",
    "PositionalFile",
    "RegularFile",
    "is_url",
    "open_location",
    "open_regular",
]

_64_BITS = (1 << 64) - 1  # a time in ns may need more: years before 1677 and after 2262
_PIECE = 1 << 20  # of a long read past the page cache
Location: TypeAlias = Path | Url
# Two letters at least before the colon: "C:/model" is a path of Windows. Links as in "zip://x::s3://y" come apart.
URL = re.compile(r"((?:[a-z][a-z0-9+.-]+::)*([a-z][a-z0-9+.-]+)://)(.*?)((?:::.*)?)", re.IGNORECASE | re.DOTALL)


def is_url(text: str) -> bool:
    """Whether a text is a URL: a protocol of two letters or more, a colon and two slashes."""
    return URL.match(text) is not None


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

        The time of the last change tells of writing even if the time of the last writing was set back; a name
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
            If the file ends before, or is no longer the one that was opened.
        OSError
            If it cannot be read.
        """

    def fill_runs(self, out: NDArray[np.uint8], runs: Runs) -> None:
        """Fill places of `out`, flat, from runs of the file; raises as `fill` does."""
        for offset, nbytes, place in zip(*(column.tolist() for column in runs), strict=True):
            self.fill(out[place : place + nbytes].data, offset)

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

    Parameters
    ----------
    fd : int
    path : Path
        For messages.
    n_threads : int
        Threads that read many runs; one reads them in the caller's own.

    Attributes
    ----------
    n_threads : int
    """

    identity: FileIdentity

    def __init__(self, fd: int, path: Path, n_threads: int = 1) -> None:
        self._held: _Descriptor | None = _Descriptor(fd)
        self._path = path
        self.n_threads = n_threads
        status = os.fstat(fd)
        self._size_and_times = (status.st_size, status.st_mtime_ns & _64_BITS, status.st_ctime_ns & _64_BITS)
        self.identity = FileIdentity.of(status)
        self.size = self.identity.nbytes
        self.closed = False

    @cached_property
    def threads(self) -> Threads:
        """The threads that read many runs, or pages of a mapping, at once."""
        return storage.thread_pool.Threads(self.n_threads)

    def map(self) -> mmap.mmap:
        """Return the file mapped into memory, for reading."""
        return mmap.mmap(self._descriptor().fd, 0, access=mmap.ACCESS_READ)

    def _descriptor(self) -> _Descriptor:
        descriptor = self._held  # another thread may close the file meanwhile
        if descriptor is None:
            raise ClosedError(f"{self._path}: the file is closed")
        return descriptor

    def fill(self, buffer: memoryview, offset: int) -> None:
        descriptor, done = self._descriptor(), 0
        while done < len(buffer):  # one call may give less than it was asked for
            try:
                count = descriptors.read_into(descriptor.fd, buffer[done:], offset + done)
            except OSError as error:
                raise self._unreadable(error.errno, offset + done) from error
            if count == 0:
                raise self._short(offset + done, len(buffer), offset)
            done += count
        self._check_unchanged(descriptor)

    def fill_runs(self, out: NDArray[np.uint8], runs: Runs) -> None:
        descriptor = self._descriptor()
        if self.n_threads > 1:
            missed = storage.run_reads.read_cached(descriptor.fd, runs, out)  # what is in memory needs no other thread
            runs = runs if len(missed) == len(runs.offsets) else runs.take(missed)
        self._read_by_threads(partial(storage.run_reads.read_runs, descriptor.fd), runs, out)
        self._check_unchanged(descriptor)

    def _read_by_threads(
        self,
        read: Callable[[Runs, NDArray[np.uint8]], tuple[int, int]],
        runs: Runs,
        out: NDArray[np.uint8],
    ) -> None:
        count = len(runs.offsets)
        n_parts = min(self.n_threads, count)
        parts = [runs.take(slice(count * i // n_parts, count * (i + 1) // n_parts)) for i in range(n_parts)]
        outcomes = [read(parts[0], out)] if n_parts == 1 else self.threads.each(lambda part: read(part, out), parts)
        for part, (number, error) in zip(parts, outcomes, strict=True):
            if number >= 0:
                offset, nbytes = int(part.offsets[number]), int(part.nbytes[number])
                raise self._unreadable(error, offset) if error else self._short(self._size_now(), nbytes, offset)

    def check_unchanged(self) -> None:
        """Raise HeaderError if the file was written to, or cut, since it was opened; every read looks, too."""
        descriptor = self._held or self._descriptor()
        if not _kernels._pread.is_same(descriptor.fd, *self._size_and_times):
            self._check_unchanged(descriptor)

    def _check_unchanged(self, descriptor: _Descriptor) -> None:
        if _kernels._pread.is_same(descriptor.fd, *self._size_and_times):
            return  # the same file, whose descriptor this is
        if not self.identity.is_still(FileIdentity.of(os.fstat(descriptor.fd))):
            raise HeaderError(
                f"{self._path}: the file was written to while it was open, so its rows may be of two states"
            )

    def _size_now(self) -> int:
        return os.fstat(self._descriptor().fd).st_size

    def _short(self, end: int, nbytes: int, offset: int) -> TruncatedError:
        return TruncatedError(
            f"{self._path}: the file ends at byte {end}, and {nbytes} bytes from byte {offset} were expected; "
            f"it became shorter while it was open"
        )

    def _unreadable(self, number: int | None, offset: int) -> OSError:
        return OSError(number, f"{os.strerror(number or 0)}, reading at byte {offset}", str(self._path))

    def is_still(self, identity: FileIdentity) -> bool:
        return identity.is_still(self.identity)

    def close(self) -> None:
        self.closed = True
        self._held = None
        if "threads" in self.__dict__:  # they were needed
            self.threads.close()


class DirectFile(RegularFile):
    """A regular file whose runs are read past the page cache: memory grows by what is asked for and nothing else.

    Parameters
    ----------
    fd, path, n_threads : as of `RegularFile`
    direct : int
        A descriptor of `hhtld.storage.run_reads.open_direct`, which it owns, too.
    """

    def __init__(self, fd: int, path: Path, n_threads: int, direct: int) -> None:
        self._direct = _Descriptor(direct)
        super().__init__(fd, path, n_threads)

    def fill(self, buffer: memoryview, offset: int) -> None:
        if len(buffer):
            end = offset + len(buffer)  # of pieces that threads read at once
            offsets = np.array([offset, *range((offset // _PIECE + 1) * _PIECE, end, _PIECE)], np.int64)
            runs = storage.run_reads.Runs(offsets, np.diff(offsets, append=np.int64(end)), offsets - offset)
            self.fill_runs(np.frombuffer(buffer, np.uint8), runs)

    def fill_runs(self, out: NDArray[np.uint8], runs: Runs) -> None:
        descriptor, direct = self._descriptor(), self._direct
        self._read_by_threads(partial(storage.run_reads.read_blocks, direct.fd), runs, out)
        self._check_unchanged(descriptor)


def open_regular(path: Path, io_threads: int = 1, *, direct: bool = False) -> RegularFile:
    """Open a regular file for reading.

    Parameters
    ----------
    path : Path
    io_threads : int
        Threads that read many runs at once.
    direct : bool
        Read past the page cache, if the file system does that: a `DirectFile`; else a `RegularFile`.

    Raises
    ------
    BadMagicError
        If it is a folder, a device or a pipe.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise BadMagicError(f"{path}: not a regular file")
    # Should the path have become a FIFO since, opening it must still not wait for a writer.
    fd = descriptors.open_descriptor(path, os.O_RDONLY)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise BadMagicError(f"{path}: not a regular file")
    past_cache = storage.run_reads.open_direct(path) if direct else None
    if past_cache is None:
        return RegularFile(fd, path, io_threads)
    if not os.path.samestat(os.fstat(fd), os.fstat(past_cache)):  # replaced between the two
        os.close(past_cache)
        os.close(fd)
        return open_regular(path, io_threads, direct=direct)
    return DirectFile(fd, path, io_threads, past_cache)


def open_location(place: Location, io_threads: int = 1, *, direct: bool = False) -> PositionalFile:
    """Open a file, here or behind a URL, for reading by position; `open_regular` knows the options of files here."""
    return open_regular(place, io_threads, direct=direct) if isinstance(place, Path) else place.open()
