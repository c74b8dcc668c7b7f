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
from hhtld.storage import descriptors
from hhtld.storage.file_names import is_device

__all__ = [
    "AtomicFile",
    "keep_mode",
    "replacing",
    "require_regular",
    "require_same",
    "shortened",
    "sync_folder",
    "writing",
]


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
                done += descriptors.write_at(self._fd, view[done:], offset + done)
        self.size = max(self.size, offset + done)

    def read_at(self, offset: int, nbytes: int) -> bytes:
        """Return the bytes at `offset`, fewer than `nbytes` if the file ends before."""
        parts = []
        with writing(self.path):
            while nbytes and (part := descriptors.read_at(self._fd, nbytes, offset)):
                parts.append(part)
                offset, nbytes = offset + len(part), nbytes - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def truncate(self, size: int) -> None:
        """Cut off, or fill up with zeros, so that the file ends at `size`."""
        with writing(self.path):
            os.ftruncate(self._fd, size)
        self.size = size


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
        If a step of the writing fails, naming the path and the system's reason. What the block
        itself raises passes through.
    """
    target = Path(path)
    with writing(target):
        require_regular(target)
        sibling = target.with_name(f".{shortened(target.name)}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
        fd = descriptors.open_descriptor(sibling, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        keep_mode(fd, target)
        second_fd = os.dup(fd)
    try:
        try:
            try:
                yield AtomicFile(fd, target)
                with writing(target):
                    os.fsync(fd)
            finally:
                with writing(target):
                    os.close(fd)
            with writing(target):
                if check is not None:
                    check(sibling)
                require_same(second_fd, sibling, target)
        finally:
            os.close(second_fd)  # Windows neither renames nor removes a file that is open
        with writing(target):
            sibling.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):  # what went wrong first is what the caller must hear of
            sibling.unlink()
        raise
    sync_folder(target.parent)


def keep_mode(fd: int, target: Path) -> None:
    """Give an open file the permissions of the one that it will replace."""
    if target.is_file() and not target.is_symlink():
        descriptors.copy_mode(fd, stat.S_IMODE(target.stat().st_mode))


def require_regular(target: Path) -> None:
    """Raise if something other than a regular file stands at a path, or would because of its name."""
    if descriptors.HAS_DEVICE_NAMES and is_device(target.name):
        raise OutputError(
            None, f"cannot write {target}: Windows takes this name for a device; give the file another name"
        )
    if target.exists() and not stat.S_ISREG(target.stat().st_mode):
        raise OutputError(
            None, f"cannot write {target}: something that is not a regular file stands there; give another name"
        )


def require_same(fd: int, path: Path, target: Path) -> None:
    """Raise if a path is no longer that of the open file: what is verified there would not be what was written."""
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(fd), path.stat(follow_symlinks=False)):
            return
    raise OutputError(f"cannot write {target}: another process moved or replaced {path.name} while it was written")


def shortened(name: str) -> str:
    """Return the beginning of a file's name, so that more can be added: a name may hold 255 bytes."""
    return os.fsdecode(os.fsencode(name)[:180].decode(errors="ignore"))


def sync_folder(folder: Path) -> None:
    """Make a rename in a folder outlast a loss of power, if the system can."""
    # Without it the rename may be lost with the power. The file already has its name, so a folder that
    # cannot be opened or synced (no read permission, some network mounts) is no failure to write.
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
