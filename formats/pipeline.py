"""Folders of several models, as pipelines of diffusers are: read as one source, and taken apart again.

``model_index.json`` (diffusers) or ``modules.json`` (sentence-transformers) in a folder that holds no weights itself
names the folders inside which belong to it: ``unet/``, ``vae/``, ``0_Transformer/``. Of each of them all tensors are
read as ``unet/NAME``, so that names stay unique, and its side files come along under their own paths. Folders that hold
no weights, such as ``tokenizer/``, come along as side files.

What a folder of weights looked like (the names of its files, its metadata) stands in the source's description under
"folders"; `components` gives each of them back as a source of its own, with names as they were.

Source: ``DiffusionPipeline.save_pretrained`` in https://github.com/huggingface/diffusers, and ``modules.json`` in
https://github.com/huggingface/sentence-transformers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hhtld.errors import HeaderError, shown
from hhtld.formats.base import Format
from hhtld.formats.safetensors import STEMS, SUFFIX, SafetensorsFormat
from hhtld.matrix import TensorInfo
from hhtld.sources.contract import TensorSource
from hhtld.storage.file_names import checked_file_name
from hhtld.storage.file_reading import Location, open_location
from hhtld.storage.links import followed, leads_out
from hhtld.storage.side_files import SideFiles, read_side_file, side_files
from hhtld.storage.urls import Url

__all__ = ["Component", "PipelineFolder", "PipelineFormat", "components"]

_INDEXES = ("model_index.json", "modules.json")
_JSON_LIMIT = 10 << 20


# --- reading ------------------------------------------------------------------------------------


def _named_folders(folder: Location) -> list[str]:
    """Return the sorted names of the folders inside that an index of a pipeline names and that exist."""
    named: set[str] = set()
    for index in _INDEXES:
        listed = _json(folder, index)
        if isinstance(listed, Mapping):
            named.update(name for name, of in listed.items() if isinstance(of, list))
        elif isinstance(listed, list):
            named.update(str(entry.get("path", "")).strip("/") for entry in listed if isinstance(entry, Mapping))
    present = {entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    return sorted(named & present)


def _json(folder: Location, name: str) -> Any:
    path = folder / name
    if leads_out(folder, name) is not None or not path.is_file():
        return None
    try:
        with open_location(path) as file:
            return json.loads(bytes(file.read(0, file.size))) if file.size <= _JSON_LIMIT else None
    except (ValueError, RecursionError):  # a side file like any other
        return None


class PipelineFolder(TensorSource):
    """A folder whose index names folders with models, as one source.

    Parameters
    ----------
    folder : path or Url

    Raises
    ------
    FormatError
        As each model's folder does, and for a folder behind a link that leads out of the pipeline's.
    """

    def __init__(self, folder: Location) -> None:
        self._folder = folder
        self._parts: dict[str, TensorSource] = {}
        try:
            named = _named_folders(folder)
            for name in named:
                checked_file_name(f"{name}/config.json")
                place = followed(folder, name)
                if _holds_safetensors(place):
                    reader = SafetensorsFormat()
                    self._parts[name] = reader.open_source(place) if isinstance(place, Path) else reader.open_url(place)
            self._beside = _side_files(folder, named, self._parts)
        except ValueError as error:
            self.close()
            raise HeaderError(f"{folder}: {error}") from None
        except BaseException:
            self.close()
            raise
        self._infos = {
            f"{name}/{tensor_name}": dataclasses.replace(
                info, name=f"{name}/{tensor_name}", shard=f"{name}/{info.shard or single}"
            )
            for name, part in self._parts.items()
            for single in [str(part.description.get("entrance", f"{STEMS[0]}{SUFFIX}"))]
            for tensor_name, info in part.infos().items()
        }

    @property
    def description(self) -> dict[str, Any]:
        """Under "folders" what is known of each model's folder; "shards": all files of weights."""
        folders = {name: part.description | {"metadata": part.metadata} for name, part in self._parts.items()}
        return {"folders": folders, "shards": sorted({str(info.shard) for info in self._infos.values()})}

    @property
    def declared_quantization(self) -> str | None:
        return next(
            (scheme for part in self._parts.values() if (scheme := part.declared_quantization) is not None), None
        )

    @property
    def notes(self) -> list[str]:
        """What a user should know of each model, and whose it is."""
        return [f"{name}/: {note}" for name, part in self._parts.items() for note in part.notes]

    def infos(self) -> Mapping[str, TensorInfo]:
        return MappingProxyType(self._infos)

    def aliases(self) -> Mapping[str, str]:
        return {
            f"{name}/{tensor_name}": f"{name}/{other}"
            for name, part in self._parts.items()
            for tensor_name, other in part.aliases().items()
        }

    def stored(self, name: str) -> tuple[str, int]:
        folder, tensor_name = self._own(name)
        return self._parts[folder].stored(tensor_name)

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        folder, tensor_name = self._own(name)
        return self._parts[folder].read_rows(tensor_name, start, stop)

    def _own(self, name: str) -> tuple[str, str]:
        if name not in self._infos:
            raise ValueError(f"{self._folder}: no tensor {shown(name)}")
        folder, _, tensor_name = name.partition("/")
        return folder, tensor_name

    def files(self) -> Mapping[str, int]:
        return MappingProxyType(self._beside.found)

    def read_file(self, name: str) -> bytes:
        return read_side_file(self._folder, name)

    @property
    def file_notes(self) -> list[str]:
        """Which side files come along and what stays behind."""
        return self._beside.notes()

    def check_unchanged(self) -> None:
        for part in self._parts.values():
            part.check_unchanged()

    def close(self) -> None:
        for part in self._parts.values():
            part.close()


def _side_files(folder: Location, named: list[str], parts: Mapping[str, TensorSource]) -> SideFiles:
    """Return the side files of a pipeline: its own, and those of every folder that belongs to it."""
    beside = side_files(folder)
    inside = tuple(f"{name}/" for name in named)
    outside = {name: nbytes for name, nbytes in beside.found.items() if not name.startswith(inside)}
    left = {name: reason for name, reason in beside.left.items() if not name.startswith(inside)}
    for name in named:
        if leads_out(folder, name) is not None:
            left[f"{name}/"] = "a link out of the folder"
            continue
        held = parts.get(name)
        sorted_files = side_files(folder / name, _weight_files(held) if held is not None else ())
        outside |= {f"{name}/{own_name}": nbytes for own_name, nbytes in sorted_files.found.items()}
        left |= {f"{name}/{own_name}": reason for own_name, reason in sorted_files.left.items()}
    return SideFiles(dict(sorted(outside.items())), left)


def _weight_files(part: TensorSource) -> set[str]:
    facts = part.description
    return {*facts.get("shards", ()), str(facts.get("entrance", f"{STEMS[0]}{SUFFIX}"))}


# --- giving back --------------------------------------------------------------------------------


class Component(TensorSource):
    """One model of a source that holds several, under its own names.

    Parameters
    ----------
    source : TensorSource
    folder : str
        Whose name, with a slash, the names of its tensors begin with.
    facts : mapping
        What the source's description says of it.
    infos : mapping of name to TensorInfo
        Its tensors, by the names that the source has.
    """

    def __init__(
        self, source: TensorSource, folder: str, facts: Mapping[str, Any], infos: Mapping[str, TensorInfo]
    ) -> None:
        self._source, self._prefix, self._facts = source, f"{folder}/", facts
        is_sharded = "shards" in facts
        self._infos = {}
        for name, info in infos.items():
            own = name.removeprefix(self._prefix)
            if not own or info.shard is None or not info.shard.startswith(self._prefix):
                raise HeaderError(f"tensor {shown(name)}: its file is not in the folder {shown(folder)}")
            shard = info.shard.removeprefix(self._prefix) if is_sharded else None
            self._infos[own] = dataclasses.replace(info, name=own, shard=shard)

    @property
    def metadata(self) -> dict[str, str]:
        recorded = self._facts.get("metadata", {})
        if not isinstance(recorded, Mapping) or not all(isinstance(text, str) for text in recorded.values()):
            raise HeaderError(f"the metadata of {shown(self._prefix)} is no JSON object of texts")
        return dict(recorded)

    @property
    def description(self) -> dict[str, Any]:
        return dict(self._facts)

    def infos(self) -> Mapping[str, TensorInfo]:
        return MappingProxyType(self._infos)

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        return self._source.read_rows(self._prefix + name, start, stop)


def components(source: TensorSource) -> dict[str, TensorSource]:
    """Return the models of a source by the folders they lie in: the source itself, under "", if it is a single one.

    Raises
    ------
    HeaderError
        If what the source says of its folders, which may be anything, does not fit its tensors.
    """
    facts = source.description.get("folders")
    if facts is None:
        return {"": source}
    if not isinstance(facts, Mapping) or not all(isinstance(folder_facts, Mapping) for folder_facts in facts.values()):
        raise HeaderError("what the source says of its folders is no JSON object of objects")
    folder_infos: dict[str, dict[str, TensorInfo]] = {folder: {} for folder in facts}
    for folder in folder_infos:
        try:
            checked_file_name(f"{folder}/config.json")
        except ValueError as error:
            raise HeaderError(f"the source's folder {shown(folder)}: {error}") from None
        if "/" in folder:
            raise HeaderError(f"the source's folder {shown(folder)} lies in another one")
    for name, info in source.infos().items():
        folder = name.partition("/")[0]
        if folder not in folder_infos or "/" not in name:
            raise HeaderError(f"tensor {shown(name)} is in none of the source's folders")
        folder_infos[folder][name] = info
    return {folder: Component(source, folder, facts[folder], infos) for folder, infos in folder_infos.items()}


class PipelineFormat(Format):
    """Folders of several models, read; the format "folder" writes them."""

    name: ClassVar[str] = "pipeline"
    suffixes: ClassVar[tuple[str, ...]] = ()
    description: ClassVar[str] = "folder whose model_index.json or modules.json names folders with models, all in one"
    writes: ClassVar[bool] = False

    def sniff(self, path: Location, head: bytes) -> bool:
        """Whether an index in the folder names folders that hold models, and the folder itself holds no weights."""
        if not path.is_dir() or not any((path / index).exists() for index in _INDEXES):
            return False
        names = [entry.name.lower() for entry in path.iterdir()]
        if any(name.endswith((SUFFIX, f"{SUFFIX}.index.json", ".hhtld")) for name in names):
            return False
        return any(_holds_safetensors(path / name) for name in _named_folders(path))

    def open_source(self, path: Path) -> TensorSource:
        """Open all models of a folder as one source."""
        return PipelineFolder(path)

    def open_url(self, url: Url) -> TensorSource:
        """Open a folder behind a URL the same way."""
        return PipelineFolder(url)


def _holds_safetensors(folder: Location) -> bool:
    return any(entry.name.lower().endswith(SUFFIX) for entry in folder.iterdir())
