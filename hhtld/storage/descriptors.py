"""What is asked of open and mapped files, on systems that have the calls of Linux and on those that do not.

Every call that some system lacks is looked up here when it is needed, and has a stand-in. What has none is a protection
that such a system cannot give: without locks nobody is kept out, without permissions none are copied.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = [
    "HAS_DEVICE_NAMES",
    "advise_random",
    "copy_mode",
    "lock_alone",
    "open_descriptor",
    "read_at",
    "read_into",
    "write_at",
]

HAS_DEVICE_NAMES = os.name == "nt"  # a file that is named "nul.hhtld" is a device there

# Children get none of the files, bytes are no text whose lines end otherwise, and opening a pipe does not wait.
_ALWAYS = ("O_CLOEXEC", "O_NOINHERIT", "O_BINARY", "O_NONBLOCK")
_LOCKED_BYTE = 1 << 40  # behind every journal, because Windows lets nobody read what is locked


def _module_of_some_systems(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


fcntl, msvcrt = _module_of_some_systems("fcntl"), _module_of_some_systems("msvcrt")  # the second is of Windows

# A file has one position for all who read and write it, so if it must be moved, one of them moves it at a time.
_moving = threading.Lock()


def open_descriptor(path: Path, flags: int, *, follow: bool = True) -> int:
    """Open a file and return its number; `flags` are those that every system has.

    Raises
    ------
    OSError
        If the file cannot be opened, or if it is a link and `follow` is false.
    """
    for name in _ALWAYS:
        flags |= getattr(os, name, 0)
    if not follow:
        if hasattr(os, "O_NOFOLLOW"):
            flags |= os.O_NOFOLLOW
        elif path.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(path))
    return os.open(path, flags, 0o666)  # the umask applies


def read_into(fd: int, buffer: memoryview, offset: int) -> int:
    """Read from `offset` on into `buffer`, and return how many bytes came; 0 is the end of the file."""
    preadv: Callable[[int, list[memoryview], int], int] | None = getattr(os, "preadv", None)
    if preadv is not None:
        return preadv(fd, [buffer], offset)
    part = read_at(fd, len(buffer), offset)
    buffer[: len(part)] = part
    return len(part)


def read_at(fd: int, nbytes: int, offset: int) -> bytes:
    """Return up to `nbytes` bytes from `offset` on; none is the end of the file."""
    pread: Callable[[int, int, int], bytes] | None = getattr(os, "pread", None)
    if pread is not None:
        return pread(fd, nbytes, offset)
    with _moving:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, nbytes)


def write_at(fd: int, data: memoryview, offset: int) -> int:
    """Write from `offset` on, and return how many bytes were taken."""
    pwrite: Callable[[int, memoryview, int], int] | None = getattr(os, "pwrite", None)
    if pwrite is not None:
        return pwrite(fd, data, offset)
    with _moving:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, data)


def lock_alone(fd: int) -> None:
    """Hold an open file alone until it is closed, if the system can.

    Raises
    ------
    BlockingIOError
        If another process, or another descriptor of this one, holds it.
    """
    if fcntl is not None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # a file system without locks
            pass
    elif msvcrt is not None:
        with _moving:
            os.lseek(fd, _LOCKED_BYTE, os.SEEK_SET)
            try:
                msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EDEADLK):
                    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error


def copy_mode(fd: int, mode: int) -> None:
    """Give an open file permissions, if the system has them."""
    if hasattr(os, "fchmod"):
        os.fchmod(fd, mode)


def advise_random(mapped: mmap.mmap, start: int, nbytes: int, *, is_random: bool) -> None:
    """Say whether a part of a mapped file will be read here and there, so that no more is read with each page."""
    name = "MADV_RANDOM" if is_random else "MADV_NORMAL"
    if hasattr(mapped, "madvise") and hasattr(mmap, name):
        begin = start // mmap.PAGESIZE * mmap.PAGESIZE
        with contextlib.suppress(OSError, ValueError):  # advice; a mapping that is closed beside is found so by reads
            mapped.madvise(getattr(mmap, name), begin, start + nbytes - begin)
