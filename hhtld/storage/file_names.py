"""Names that files beside weights may have: plain on every system, and never a way out of the folder."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import PurePosixPath, PureWindowsPath

from hhtld.errors import shown

__all__ = ["DEPTH_LIMIT", "check_together", "checked_file_name", "is_device"]

DEPTH_LIMIT = 4  # parts of a name; routers of sentence-transformers hold modules in folders of their own


# Weights of other frameworks would double the model, and archives may hold anything.
WEIGHT_SUFFIXES = (
    *(".index.json", ".hhtld", ".gguf", ".ggml", ".onnx", ".onnx_data", ".bin", ".pt", ".pth", ".ckpt"),
    *(".h5", ".hdf5", ".msgpack", ".pkl", ".pickle", ".npy", ".npz", ".tflite", ".ot", ".pb", ".mlmodel", ".pdparams"),
    *(".zip", ".tar", ".gz", ".xz", ".zst", ".7z", ".tmp"),
    ".journal",  # of a pack that is not finished, see hhtld.storage.journal
)


SAFETENSORS_SUFFIX = ".safetensors"


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
    """Return a side file's name, or raise ValueError for one that leads elsewhere or names the model's weights.

    It has up to four parts with "/" between them, of which all but the last are folders. Judged alike on every system,
    since a pack may be unpacked on any.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"the name of a file must be text, got {name!r:.80}")
    parts = name.split("/")
    if len(parts) > DEPTH_LIMIT:
        raise ValueError(
            f"file {shown(name)} lies {len(parts) - 1} folders deep, at most {DEPTH_LIMIT - 1} are allowed"
        )
    for part in parts:
        _check_part(part, name)
    if name.lower().endswith(WEIGHT_SUFFIXES):
        raise ValueError(f"file {shown(name)} has the name of a file of weights, and a side file holds none")
    if any(part.lower().endswith(SAFETENSORS_SUFFIX) for part in (parts[:-1] or parts)):
        raise ValueError(f"file {shown(name)} has the name of the model's own weights")
    return name


def _check_part(part: str, name: str) -> None:
    both = (PurePosixPath(part), PureWindowsPath(part))
    plain = all(pure.name == part and not pure.anchor for pure in both) and not set(part) & set('<>:"/\\|?*')
    if (
        not part
        or not plain
        or not part.isprintable()
        or part[-1] in " ."
        or len(part.encode("utf-8", "replace")) > 255
    ):
        raise ValueError(f"file {shown(name)} has a name that is no path below the model's folder")
    if is_device(part):
        raise ValueError(f"file {shown(name)} has the name of a device of Windows")
    if part.startswith("."):
        raise ValueError(f"file {shown(name)} would be hidden: its name begins with a dot")


def is_device(name: str) -> bool:
    """Whether a file's name is a device of Windows, whatever follows its first dot."""
    return name.partition(".")[0].rstrip().upper() in _DEVICES


def check_together(names: Iterable[str]) -> None:
    """Raise ValueError for names that cannot stand side by side on every system.

    Some file systems take "Config.json" for "config.json", and composed letters for decomposed ones; none takes a file
    for a folder.
    """
    seen: dict[str, str] = {}
    for name in names:
        folded = folded_name(name)
        if folded in seen:
            raise ValueError(f"files {shown(seen[folded])} and {shown(name)} are one file on some systems")
        seen[folded] = name
    for folded, name in seen.items():
        for parent in PurePosixPath(folded).parents:
            if str(parent) in seen:
                raise ValueError(f"{shown(seen[str(parent)])} is a file, and it is also the folder of {shown(name)}")


def folded_name(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
