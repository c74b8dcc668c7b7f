"""Writing a file so that its path holds either the old bytes or all of the new ones.

The bytes go to a hidden sibling `.name.<pid>.<random>.tmp` created with the process's umask, are
synced, then take the name in one rename, and the folder is synced. Anything that goes wrong,
Ctrl-C included, removes the sibling; kill -9 leaves it behind, and it can be deleted.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from hhtld.errors import OutputError

__all__ = ["AtomicFile", "replacing", "sync_folder", "writing"]


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's errors into `OutputError`, naming what could not be written."""
    try:
        yield
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(error.errno, f"cannot write {path}: {error.strerror or error}") from error


class AtomicFile:
    """The sibling being written: append with `write`, or place bytes with `write_at`.

    Attributes
    ----------
    path : Path
        The name the bytes will take.
    size : int
        End of the last byte placed.
    """

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self.path = path
        self.size = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append every byte of `data`."""
        self.write_at(self.size, data)

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Place every byte of `data` at `offset`."""
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        done = 0
        with writing(self.path):
            while done < len(view):  # one call may place fewer than it was given
                done += os.pwrite(self._fd, view[done:], offset + done)
        self.size = max(self.size, offset + done)

    def reopened(self) -> int:
        """Return a descriptor of its own to read back what was placed so far."""
        return os.dup(self._fd)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], check: Callable[[Path], object] | None = None) -> Iterator[AtomicFile]:
    """Open a sibling of `path` for writing and move it there when the block ends well.

    Parameters
    ----------
    path : path
        A symbolic link is replaced, not followed.
    check : callable, optional
        Called with the sibling's path after the sync and before the rename; what it raises keeps
        the old file.

    Raises
    ------
    OutputError
        When a step of the writing fails, naming the path and the system's reason. What the block
        itself raises passes through.
    """
    target = Path(path)
    with writing(target):
        if target.exists() and not stat.S_ISREG(target.stat().st_mode):
            raise OutputError(None, f"cannot write {target}: it exists and is not a regular file")
        short = os.fsdecode(os.fsencode(target.name)[:180].decode(errors="ignore"))  # a name may hold 255 bytes
        sibling = target.with_name(f".{short}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(sibling, flags, 0o666)  # the umask applies, unlike with tempfile's 0600
    try:
        try:
            yield AtomicFile(fd, target)
            with writing(target):
                os.fsync(fd)
        finally:
            with writing(target):
                os.close(fd)
        if check is not None:
            check(sibling)
        with writing(target):
            sibling.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):  # what went wrong first is what the caller must hear of
            sibling.unlink()
        raise
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in a folder outlast a loss of power, where the system can."""
    # Without it the rename may be lost with the power. The file already has its name, so a folder that
    # cannot be opened or synced (no read permission, some network mounts) is no failure to write.
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
