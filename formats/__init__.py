"""Formats by name: built-in ones and those of the entry-point group `hhtld.formats`."""

if __name__ != "hhtld.formats":  # a second copy would be a second registry
    raise ImportError("import hhtld.formats, not formats: install the package first (pip install -e .)")

import os
from collections.abc import Sequence
from pathlib import Path

from hhtld.errors import BadMagicError, UnknownFormatError, shown
from hhtld.formats.base import Format
from hhtld.matrix import TensorInfo
from hhtld.registry import Plugin, Registry
from hhtld.sources.contract import TensorSource
from hhtld.storage.file_reading import Location, open_location
from hhtld.storage.locations import locate, missing, models_inside
from hhtld.storage.signatures import lookalike
from hhtld.storage.urls import Url

__all__ = ["Format", "TensorInfo", "TensorSource", "format_for_output", "get_format", "open_source", "registry"]

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

registry = Registry(
    "hhtld.formats",
    {
        "folder": "hhtld.formats.folder:FolderFormat",
        "gguf": "hhtld.formats.gguf:GgufFormat",
        "hdf5": "hhtld.formats.hdf5:Hdf5Format",
        "hf": "hhtld.formats.hf:HfFormat",
        "hhtld": "hhtld.formats.hhtld:HhtldFormat",
        "onnx": "hhtld.formats.onnx:OnnxFormat",
        "pipeline": "hhtld.formats.pipeline:PipelineFormat",
        "safetensors": "hhtld.formats.safetensors:SafetensorsFormat",
    },
)


def get_format(name: str) -> Format:
    """Return the format called `name`, or raise `UnknownFormatError` listing what exists."""
    plugin = registry.plugins().get(name)
    if plugin is None:
        raise UnknownFormatError(
            f"there is no format {name!r}; the formats are {', '.join(sorted(registry.plugins()))}"
        )
    return _loaded(plugin)


def _loaded(plugin: Plugin) -> Format:
    loaded = plugin.load()
    if not (isinstance(loaded, type) and issubclass(loaded, Format)):
        raise UnknownFormatError(f"plugin {plugin.name!r} of {plugin.origin} gives no Format, but {loaded!r}")
    return loaded()


def format_for_output(dst: str | os.PathLike[str], name: str | None = None) -> Format:
    """Return the format to write `dst` in: `name` when given, else by suffix.

    A name that ends in a slash is written as a model folder; so is one without suffix, or with one that no format
    has, as in "Qwen2.5-7B", where a folder of that name exists.

    Raises
    ------
    UnknownFormatError
        If there is none, or it is only read.
    """
    path = Path(dst)
    by_suffix: dict[str, Format] = {}
    if name is None and os.fspath(dst).endswith(("/", os.sep)):
        name = "folder"
    if name is None:
        for plugin in registry:
            try:
                candidate = _loaded(plugin)
            except Exception:  # a broken plugin must not stop the others; `list` shows what is wrong with it
                continue
            by_suffix.update(dict.fromkeys(candidate.suffixes, candidate))
        if path.suffix.lower() not in by_suffix and (not path.suffix or path.is_dir()):
            name = "folder"
    chosen = by_suffix.get(path.suffix.lower()) if name is None else get_format(name)
    if chosen is not None and chosen.writes:
        return chosen
    known = ", ".join(sorted(suffix for suffix, candidate in by_suffix.items() if candidate.writes))
    if chosen is not None:
        raise UnknownFormatError(
            f"{path}: format {chosen.name!r} is read and not written"
            + (f"; these formats are written: {known}" if known else "")
        )
    raise UnknownFormatError(
        f"{path}: no format writes {path.suffix!r}; the suffixes are {known}, and the name of a folder ends in /"
    )


def open_source(src: str | os.PathLike[str] | Url) -> TensorSource:
    """Open a file or folder, here or behind a URL, in whichever format recognises it.

    The name as given decides together with the first bytes; links are followed only for reading,
    because a hub cache's link has the suffix and its target has not. See `hhtld.storage.locations.locate`.
    """
    path = locate(src)
    head = b"" if path.is_dir() else _head(path)
    broken = []
    for plugin in registry:
        try:
            candidate = _loaded(plugin)
        except Exception as error:
            broken.append(f"{plugin.name} ({error})")
            continue
        if candidate.sniff(path, head):
            return candidate.open_source(path) if isinstance(path, Path) else candidate.open_url(path)
    if path.is_dir() and (models := models_inside(path)):
        names = ", ".join(shown(name, 60) for name in models[:8]) + (", ..." if len(models) > 8 else "")
        raise BadMagicError(
            f"{path}: this folder holds no model itself, but folders in it do: {names}; "
            f"convert them one by one, beginning with {path / models[0]}"
        )
    if path.is_dir():
        pickles = sorted(place.name for place in path.iterdir() if place.suffix in _PICKLES)
        what = "the folder holds no .safetensors file"
        if pickles:
            what += f"; {', '.join(pickles[:3])} are pickles, which may run code: convert them to safetensors first"
        raise BadMagicError(f"{path}: the format is not recognised: {what}{_not_loaded(broken)}")
    message = f"{path}: no format recognises it; these are read: {', '.join(_read())}{_not_loaded(broken)}"
    hint = lookalike(head) or ("" if head else "the file is empty")
    raise BadMagicError(message + (f" ({hint})" if hint else ""))


def _read() -> list[str]:
    """Names of the formats that can be read."""
    found = []
    for plugin in registry:
        try:
            reads = _loaded(plugin).reads
        except Exception:  # a broken plugin, which the message names
            continue
        if reads:
            found.append(plugin.name)
    return sorted(found)


def _not_loaded(broken: Sequence[str]) -> str:
    return f"; could not be loaded: {', '.join(broken)}" if broken else ""


def _head(path: Location) -> bytes:
    """Return the first 64 bytes of a file, or all of a shorter one."""
    if not path.exists():
        raise missing(path)
    if not path.is_file():
        raise BadMagicError(f"{path}: this is not a regular file")
    with open_location(path) as file:
        return bytes(file.read(0, min(file.size, 64)))
