"""Model folders as Hugging Face lays them out: decoded weights, sharded as they were, and side files.

======================================  ==============================================================
file                                    what
======================================  ==============================================================
``model.safetensors``                   every tensor, where the source was one file
its shards, under their own names       each with the tensors it had; the table of a pack knows them
``model.safetensors.index.json``        which shard holds which tensor, where there are shards
config.json, 1_Pooling/config.json ...  side files, byte for byte
======================================  ==============================================================

The single file and the index have the names that they had in the source's folder, such as diffusers'
``diffusion_pytorch_model.safetensors`` or PEFT's ``adapter_model.safetensors``. What loaded that folder loads this one,
without hhtld.

Source: ``save_pretrained`` in https://github.com/huggingface/transformers, https://github.com/huggingface/diffusers and
https://github.com/huggingface/peft, and ``serialization`` in https://github.com/huggingface/huggingface_hub.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from hhtld.errors import HeaderError
from hhtld.formats.base import Format
from hhtld.formats.pipeline import components
from hhtld.formats.safetensors import (
    INDEX_SUFFIX,
    STEMS,
    SUFFIX,
    SafetensorsFormat,
    check_shard_name,
    check_shard_names,
    write_tensors,
)
from hhtld.matrix import TensorInfo
from hhtld.progress import Progress, silent
from hhtld.sources.contract import TensorSource
from hhtld.sources.model_config import CONFIG
from hhtld.storage.atomic_folder import new_folder, write_bytes
from hhtld.storage.file_names import check_together

__all__ = ["FolderFormat", "write_side_files"]

_ADAPTER_CONFIG = "adapter_config.json"  # of PEFT, which has no config.json


def write_side_files(source: TensorSource, folder: Path, changed: Mapping[str, bytes] = MappingProxyType({})) -> None:
    """Write every side file of a source, byte for byte but for those that are given here as they shall be."""
    for name in source.files():
        write_bytes(folder, name, changed[name] if name in changed else source.read_file(name))


def _entrance(source: TensorSource) -> tuple[str, str]:
    """Return the names of the file and of the index that a library looks for in the source's folder."""
    single, index = f"{STEMS[0]}{SUFFIX}", f"{STEMS[0]}{INDEX_SUFFIX}"
    given = source.description.get("entrance")
    if given is None:
        return single, index
    name = str(given)
    check_shard_name(
        name.removesuffix(INDEX_SUFFIX.removeprefix(SUFFIX)), "the source"
    )  # a pack's table may say anything
    return (single, name) if name.endswith(INDEX_SUFFIX) else (name, index)


def _by_shard(infos: Mapping[str, TensorInfo], single: str) -> dict[str, dict[str, TensorInfo]]:
    shards: dict[str, dict[str, TensorInfo]] = {}
    for name, info in infos.items():
        shards.setdefault(single if info.shard is None else info.shard, {})[name] = info
    check_shard_names(shards, "the source")  # a pack's table may say anything
    return shards or {single: {}}


def _index(shards: Mapping[str, Mapping[str, TensorInfo]]) -> bytes:
    infos = [info for shard_infos in shards.values() for info in shard_infos.values()]
    index = {
        "metadata": {
            "total_parameters": sum(math.prod(info.shape) for info in infos),
            "total_size": sum(info.nbytes for info in infos),
        },
        "weight_map": {name: shard for shard, shard_infos in shards.items() for name in shard_infos},
    }
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()


def _write_model(source: TensorSource, folder: Path, progress: Progress) -> None:
    """Write the weights of one model into a folder."""
    single, index = _entrance(source)
    metadata = {"format": "pt"} | dict(source.metadata)
    shards = _by_shard(source.infos(), single)
    for shard, shard_infos in shards.items():
        write_tensors(source, shard_infos, folder / shard, metadata, progress)
    if any(info.shard is not None for info in source.infos().values()):
        write_bytes(folder, index, _index(shards))


def _named_progress(progress: Progress, place: str, stage: str, name: str, nbytes: int) -> None:
    """Tell of a tensor of a model under the name that the whole source has for it."""
    progress(stage, f"{place}/{name}" if place else name, nbytes)


def _check_places(source: TensorSource, models: Mapping[str, TensorSource], files: bool) -> None:
    """Refuse files of several models that cannot stand side by side; a pack's table may say anything."""
    if "" in models:  # side files in the folder itself have no names of weights
        return
    names = list(source.files()) if files else []
    for place, model in models.items():
        single, index = _entrance(model)
        names += [f"{place}/{name}" for name in (*_by_shard(model.infos(), single), index)]
    try:
        check_together(names)
    except ValueError as error:
        raise HeaderError(f"the source: {error}") from None


class FolderFormat(Format):
    """Folders with decoded weights, written; the format "safetensors" reads them."""

    name: ClassVar[str] = "folder"
    suffixes: ClassVar[tuple[str, ...]] = ()
    description: ClassVar[str] = "model folder with decoded weights, sharded as they were, and side files"
    reads: ClassVar[bool] = False
    options: ClassVar[frozenset[str]] = frozenset({"files", "progress"})

    def open_source(self, path: Path) -> TensorSource:
        """Open a folder as the format "safetensors" does."""
        return SafetensorsFormat().open_source(path)

    def write_source(
        self,
        source: TensorSource,
        path: Path,
        *,
        files: bool = True,
        progress: Progress = silent,
        **options: Any,
    ) -> list[str]:
        """Write a source as a folder, which must not exist or be empty. Tensors stream, block by block.

        Metadata that names no format gets ``{"format": "pt"}``: transformers before 5 refuses files without it.

        Raises
        ------
        FormatError
            For a shard whose name would lead elsewhere.
        OutputError
            If the folder holds something or cannot be written; nothing is left behind.
        """
        models = components(source)
        _check_places(source, models, files)
        with new_folder(path) as folder:
            for place, model in models.items():
                (folder / place).mkdir(exist_ok=True)
                _write_model(model, folder / place, partial(_named_progress, progress, place))
            if files:
                write_side_files(source, folder)
        if "" not in models:
            return []
        if files and not {CONFIG, _ADAPTER_CONFIG} & set(source.files()):
            return ["the source has no config.json, so the folder holds weights that transformers cannot load alone"]
        return []
