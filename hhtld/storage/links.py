"""Links in a model's folder: followed into the folder itself and into a hub cache's own blobs, and nowhere else.

A folder comes from elsewhere (a clone, an archive), and so do its links. One that leads to a file of the machine
would carry that file into whatever is made of the model, and from there to whoever gets it. Links that a hub's cache
makes end in ``models--ORG--NAME/blobs`` beside the snapshot, or in ``blobs/XX/HASH`` of the whole cache, which several
models share.

Source: https://github.com/huggingface/huggingface_hub (file_download.py, utils/_shared_blobs.py).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from hhtld.errors import HeaderError, shown
from hhtld.storage.file_reading import Location

__all__ = ["followed", "leads_out"]

_REPOSITORY = re.compile(r"(models|datasets|spaces)--.+")
_SHARED_BLOB = re.compile(r"[0-9a-f]{2}/[0-9a-f]{64}")


def leads_out(folder: Location, name: str) -> Path | None:
    """Return where a name in a folder leads, if that is a place which the folder must not draw on, else None.

    Parameters
    ----------
    folder : Path or Url
        Links that lead to the folder itself are the caller's own. Behind a URL links are the store's affair: they
        reach no file of this machine.
    name : str
        Of a file in the folder or below, with "/" between parts. It need not exist.
    """
    if not isinstance(folder, Path):
        return None
    real, target = Path(os.path.realpath(folder)), Path(os.path.realpath(folder / name))
    if target.is_relative_to(real) or any(_is_blob(target, place) for place in (real, *real.parents)):
        return None
    return target


def followed(folder: Location, name: str) -> Location:
    """Return the path of a file in a folder, or raise `HeaderError` for one that a link leads out of it."""
    out = leads_out(folder, name)
    if out is not None:
        raise HeaderError(
            f"{folder / name}: a link out of the model's folder, to {shown(str(out))}, and not followed, because a "
            f"folder from elsewhere could bring any file along that way; give the folder that it leads to, or "
            f"put a copy in its place"
        )
    return folder / name


def _is_blob(target: Path, repository: Path) -> bool:
    """Whether a file is one of those that a repository of a hub's cache keeps its files in."""
    if _REPOSITORY.fullmatch(repository.name) is None:
        return False
    if target.parent == repository / "blobs":
        return True
    shared = repository.parent / "blobs"
    return target.is_relative_to(shared) and _SHARED_BLOB.fullmatch(target.relative_to(shared).as_posix()) is not None
