"""Writing a folder so that its path holds nothing or all of it.

Files go to a hidden sibling `.name.<pid>.<random>.tmp`, which takes the name in one rename. A folder that holds
anything is never replaced: what a user keeps there cannot be told from what an earlier run wrote.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from hhtld.errors import OutputError
from hhtld.storage.atomic import replacing, sync_folder, writing

__all__ = ["new_folder", "write_bytes"]


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a sibling folder to write into and move it to `path` when the block ends well.

    Raises
    ------
    OutputError
        If `path` exists and is anything but an empty folder, or a step of the writing fails. What the block itself
        raises passes through; the sibling is gone then.
    """
    target = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow the link that is to be refused
    with writing(Path(path)):
        _check_free(target, path)
        sibling = target.with_name(f".{target.name[:100]}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
        sibling.mkdir()
    try:
        yield sibling
        sync_folder(sibling)
        with writing(target):
            _check_free(target, path)
            try:
                sibling.rename(target)  # replaces an empty folder and nothing else
            except FileExistsError:  # Windows does not even replace that
                target.rmdir()
                sibling.rename(target)
    except BaseException as error:
        shutil.rmtree(sibling, ignore_errors=True)  # what went wrong first is what the caller must hear of
        if isinstance(error, OutputError) and error.strerror:  # nobody knows the sibling's name
            error.strerror = error.strerror.replace(str(sibling), os.fspath(path).rstrip(os.sep))
        raise
    sync_folder(target.parent)


def _check_free(target: Path, path: str | os.PathLike[str]) -> None:
    if not os.path.lexists(target):
        return
    if target.is_symlink() or not target.is_dir():
        raise OutputError(None, f"cannot write the folder {path}: it exists and is not a folder")
    if any(target.iterdir()):
        raise OutputError(
            None, f"cannot write the folder {path}: it exists and is not empty; give another name, or remove the folder"
        )


def write_bytes(folder: Path, name: str, data: bytes) -> None:
    """Write a whole file, synced, and the folders on the way to it that its name, with "/" between parts, tells."""
    path = folder / name
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(data)
