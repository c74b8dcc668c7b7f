"""Side files: what stands beside a model's weights and belongs to it, such as config, tokenizer and licence.

A file comes along when

- its name is one that files of models have (`_MODEL_FILES`), so that a model among other files, as in a folder of
  downloads, takes none of those; Python files only where a config names code (``auto_map``, modules.json);
- it lies in the model's folder itself, or in a folder inside that ``modules.json`` names (sentence-transformers'
  1_Pooling, 2_Dense and their like; there also small ``.safetensors`` weights, byte for byte) or that holds chat
  templates;
- it is a plain file, or a link to one that `hhtld.storage.links` follows;
- it is not hidden, its name is plain on every system, and no other name there differs from it in letters' case alone;
- it takes at most 64 MiB, which is twice the largest tokenizers.

Whatever else stands there stays behind, each kind of it with a reason that conversions tell.
"""

from __future__ import annotations

import fnmatch
import functools
import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from hhtld.errors import HeaderError, shown
from hhtld.storage.file_names import DEPTH_LIMIT, SAFETENSORS_SUFFIX, WEIGHT_SUFFIXES, checked_file_name, folded_name
from hhtld.storage.file_reading import Location, open_location
from hhtld.storage.links import followed, leads_out

__all__ = [
    "SIDE_FILE_LIMIT",
    "SideFiles",
    "read_side_file",
    "side_files",
]

SIDE_FILE_LIMIT = 64 << 20
_JSON_LIMIT = 10 << 20
_MODULES = "modules.json"

# In lower case. Sources: the names that transformers, tokenizers, sentence-transformers, diffusers, peft, timm,
# open_clip, mistral-common and speechbrain write, and what stands in the folders of models on the hub.
_MODEL_FILES = (
    *("config.json", "generation_config.json", "adapter_config.json", "model_index.json", "scheduler_config.json"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "image_processor.json"),
    *("quantize_config.json", "quant_config.json", "quantization_config.json", "hf_quant_config.json"),
    *("open_clip_config.json", "router_config.json", "params.json", "normalizer.json", "chat_template*.json"),
    *(_MODULES, "config_sentence_transformers.json", "sentence_*_config.json", "special_tokens_map.json"),
    "data_config.json",  # what a sentence-transformer was trained on
    *("tokenizer*", "added_tokens.json", "tekken.json", "vocab*.json", "vocab*.txt", "merges*.txt", "bpe.codes"),
    *("dict.txt", "dict.*.txt", "spiece*", "*.model", "*.spm", "*.tiktoken", "*.jinja"),
    *("label2id.json", "id2label.json", "labels.json", "labels.txt", "config.yaml", "hyperparams.yaml", "recipe.yaml"),
    *(
        "readme*",
        "license*",
        "licence*",
        "copying*",
        "notice*",
        "model_card*",
        "modelcard*",
        "use_policy*",
        *("citation*", "hhtld.md"),
    ),
)
_MODULE_FILES = ("*_config.json", "*.safetensors")  # more of a folder that modules.json names
_TEMPLATES = "additional_chat_templates"


# ---- names ----


# ---- what a folder holds ----


class SideFiles(NamedTuple):
    """The side files of a folder, and what stays behind.

    Attributes
    ----------
    found : dict of str to int
        Name to bytes, in ascending order of names.
    left : dict of str to str
        Name to the reason why it stays behind. Hidden files, which are nobody's business, are not told of.
    """

    found: dict[str, int]
    left: dict[str, str]

    def notes(self) -> list[str]:
        """Return what comes along and what stays behind, a sentence each."""
        told = []
        if self.found:
            n = len(self.found)
            what = "1 side file comes along" if n == 1 else f"{n} side files come along"
            told.append(f"{what}: {_listed(list(self.found), 24)}")
        reasons: dict[str, list[str]] = {}
        for name, reason in self.left.items():
            reasons.setdefault(reason, []).append(name)
        if reasons:
            told.append(
                "left behind: " + "; ".join(f"{_listed(names, 3)} ({reason})" for reason, names in reasons.items())
            )
        return told


def _listed(names: list[str], limit: int) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(shown(name, 60) for name in names[:limit]) + rest


def side_files(folder: Location, weights: Collection[str] = ()) -> SideFiles:
    """Return the side files of a folder; none on the web, because plain servers cannot list a folder.

    Parameters
    ----------
    weights : collection of str
        Names in the folder that are read as the model itself, so that nothing is told of them.
    """
    if not folder.is_dir():
        return SideFiles({}, {})
    modules = _modules(folder)
    allowed = (*_MODEL_FILES, "*.py") if _names_code(folder, modules) else _MODEL_FILES
    sorting = _Sorting(folder)
    for entry in _visible(folder):
        if entry.name in weights:
            continue
        if not entry.is_dir():
            sorting.file(entry, entry.name, allowed)
        elif entry.name in modules:
            sorting.folder(entry, entry.name, (*allowed, *_MODULE_FILES))
        elif entry.name == _TEMPLATES:
            sorting.folder(entry, entry.name, allowed)
        else:
            sorting.left[f"{entry.name}/"] = "folders that the model's files do not name"
    return SideFiles(dict(sorted(sorting.found.items())), sorting.left)


def _visible(folder: Location) -> list[Location]:
    entries: Iterable[Location] = folder.iterdir()
    return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


class _Sorting:
    """Files of a folder sorted into what comes along and what stays behind, and why."""

    def __init__(self, top: Location) -> None:
        self._top = top
        self._files: set[str] = set()  # folded names of those found
        self._taken: set[str] = set()  # and of the folders that they lie in
        self.found: dict[str, int] = {}
        self.left: dict[str, str] = {}

    def folder(self, place: Location, name: str, allowed: tuple[str, ...]) -> None:
        """Sort the files of a folder inside, and of its folders."""
        out = leads_out(self._top, name)
        if out is not None:
            self.left[f"{name}/"] = _link(out)
        elif isinstance(place, Path) and place.is_symlink():
            self.left[f"{name}/"] = "links to folders, which may go round in circles"
        elif name.count("/") > DEPTH_LIMIT - 2:
            self.left[f"{name}/"] = "folders too deep"
        else:
            for entry in _visible(place):
                (self.folder if entry.is_dir() else self.file)(entry, f"{name}/{entry.name}", allowed)

    def file(self, path: Location, name: str, allowed: tuple[str, ...]) -> None:
        """Sort one file."""
        nbytes = 0
        reason = self._reason(path, name, allowed)
        if reason is None:
            nbytes = path.stat().st_size if isinstance(path, Path) else path.nbytes
            reason = f"more than {SIDE_FILE_LIMIT >> 20} MiB" if nbytes > SIDE_FILE_LIMIT else None
        if reason is None:
            folded = PurePosixPath(folded_name(name))
            self.found[name] = nbytes
            self._files.add(str(folded))
            self._taken.update((str(folded), *map(str, folded.parents)))
        else:
            self.left[name] = reason

    def _reason(self, path: Location, name: str, allowed: tuple[str, ...]) -> str | None:
        """Why a file stays behind, whatever its size."""
        last = path.name.lower()
        if not _any_of(allowed).match(last):
            if not last.endswith((*WEIGHT_SUFFIXES, SAFETENSORS_SUFFIX)):
                return "no names that files of models have"
            return "other weights, or archives" if path.name == name else "weights of a module that are no .safetensors"
        try:
            checked_file_name(name)
        except ValueError:
            return "names that not every system can hold, or of weights"
        folded = PurePosixPath(folded_name(name))
        if str(folded) in self._taken or not self._files.isdisjoint(map(str, folded.parents)):
            return "a name that another file has but for the case of letters"
        if not path.exists():
            return "links that lead nowhere"
        out = leads_out(self._top, name)
        if out is not None:
            return _link(out)
        return None if path.is_file() else "no plain files"


@functools.cache
def _any_of(globs: tuple[str, ...]) -> re.Pattern[str]:
    """One pattern for all: a folder may hold a hundred thousand files that are none of a model's."""
    return re.compile("|".join(map(fnmatch.translate, globs)))


def _link(out: Path) -> str:
    return f"a link out of the folder, to {shown(str(out))}"


def _modules(folder: Location) -> dict[str, str]:
    """Return the folders that modules.json names, each with the module's type; none if it is no such file."""
    listed = _json(folder, _MODULES)
    entries = [entry for entry in listed if isinstance(entry, Mapping)] if isinstance(listed, list) else []
    paths = [(PurePosixPath(str(entry.get("path", ""))).parts, str(entry.get("type", ""))) for entry in entries]
    return {parts[0]: kind for parts, kind in paths if parts}


def _names_code(folder: Location, modules: Mapping[str, str]) -> bool:
    """Whether a config says that the model comes with Python files of its own."""
    for name in ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"):
        config = _json(folder, name)
        if isinstance(config, Mapping) and config.get("auto_map"):
            return True
    return any(kind.partition(".")[0] not in ("", "sentence_transformers") for kind in modules.values())


def _json(folder: Location, name: str) -> Any:
    """Return what a JSON file in a folder holds, or None for none, a bad one, and a link out of the folder."""
    path = folder / name
    if leads_out(folder, name) is not None or not path.is_file():
        return None
    try:
        with open_location(path) as file:
            return json.loads(bytes(file.read(0, file.size))) if file.size <= _JSON_LIMIT else None
    except (ValueError, RecursionError, OSError, HeaderError):
        return None  # it only says what else is looked at; whoever needs the file reads it strictly


def read_side_file(folder: Location, name: str) -> bytes:
    """Return a side file's bytes.

    Raises
    ------
    HeaderError
        If it grew beyond the limit since it was listed, or became a link out of the folder.
    """
    path = followed(folder, checked_file_name(name))
    with open_location(path) as file:
        if file.size > SIDE_FILE_LIMIT:
            raise HeaderError(
                f"{path}: the file has {file.size} bytes, and a side file may have at most {SIDE_FILE_LIMIT}"
            )
        return bytes(file.read(0, file.size))
