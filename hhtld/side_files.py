"""Side files: what stands beside a model's weights and belongs to it, such as config, tokenizer and licence.

The rule: files that lie directly in the model's folder (links, as a hub cache has them, are followed), whose names
are plain, not hidden and none of weights, and of at most 64 MiB each, which is twice the largest tokenizers.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

from hhtld.errors import HeaderError, shown
from hhtld.urls import Location, open_location

__all__ = ["SIDE_FILE_LIMIT", "checked_file_name", "read_side_file", "side_files"]

SIDE_FILE_LIMIT = 64 << 20

# Weights of other frameworks would double the model, and archives may hold anything.
_WEIGHTS = (
    *(".safetensors", ".index.json", ".hhtld", ".gguf", ".ggml", ".onnx", ".onnx_data", ".bin", ".pt", ".pth", ".ckpt"),
    *(".h5", ".hdf5", ".msgpack", ".pkl", ".pickle", ".npy", ".npz", ".tflite", ".ot", ".pb", ".mlmodel", ".pdparams"),
    *(".zip", ".tar", ".gz", ".xz", ".zst", ".7z", ".tmp"),
    ".journal",  # of a pack that is not finished, see hhtld.journal
)
# Of Windows, whatever follows a dot: learn.microsoft.com, "Naming Files, Paths, and Namespaces".
_DEVICES = {
    "CON",
    "PRN",
    "AUX",
    "NUL",
    "CONIN$",
    "CONOUT$",
    *(f"{port}{n}" for port in ("COM", "LPT") for n in "0123456789¹²³"),
}


def checked_file_name(name: object) -> str:
    """Return a side file's name, or raise ValueError for one that leads elsewhere or names weights.

    Judged alike on every system, since a pack may be unpacked on any.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"a file's name must be text, got {name!r:.80}")
    both = (PurePosixPath(name), PureWindowsPath(name))
    plain = all(pure.name == name and not pure.anchor for pure in both) and not set(name) & set('<>:"/\\|?*')
    if not plain or not name.isprintable() or name[-1] in " ." or len(name.encode("utf-8", "replace")) > 255:
        raise ValueError(f"file {shown(name)} is not a plain file name")
    if name.partition(".")[0].rstrip().upper() in _DEVICES:
        raise ValueError(f"file {shown(name)} is a device of Windows")
    if name.startswith("."):
        raise ValueError(f"file {shown(name)} would be hidden")
    if name.lower().endswith(_WEIGHTS):
        raise ValueError(f"file {shown(name)} is named as weights are, and side files hold none")
    return name


def side_files(folder: Location) -> dict[str, int]:
    """Return the side files in a folder, name to bytes, in ascending order of names; none on the web.

    There no folder can be listed.
    """
    if not folder.is_dir():
        return {}
    found = {}
    entries: Iterable[Location] = folder.iterdir()
    for entry in sorted(entries, key=lambda entry: entry.name):
        try:
            name = checked_file_name(entry.name)
        except ValueError:
            continue
        if entry.is_file():
            nbytes = entry.stat().st_size if isinstance(entry, Path) else entry.nbytes
            if nbytes <= SIDE_FILE_LIMIT:
                found[name] = nbytes
    return found


def read_side_file(folder: Location, name: str) -> bytes:
    """Return a side file's bytes.

    Raises
    ------
    HeaderError
        When it grew beyond the limit since it was listed.
    """
    path = folder / checked_file_name(name)
    with open_location(path) as file:
        if file.size > SIDE_FILE_LIMIT:
            raise HeaderError(f"{path}: {file.size} bytes, side files have at most {SIDE_FILE_LIMIT}")
        return bytes(file.read(0, file.size))
