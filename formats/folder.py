"""Model folders as Hugging Face lays them out: decoded weights, sharded as they were, and side files.

======================================  ==============================================================
file                                    what
======================================  ==============================================================
``model.safetensors``                   every tensor, where the source was one file
its shards, under their own names       each with the tensors it had; the table of a pack knows them
``model.safetensors.index.json``        which shard holds which tensor, where there are shards
config.json, tokenizer.json, ...        side files, byte for byte
======================================  ==============================================================

Any library that loads safetensors folders loads it, without hhtld.

Source: ``save_pretrained`` in https://github.com/huggingface/transformers and ``serialization`` in
https://github.com/huggingface/huggingface_hub.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from hhtld.atomic_folder import new_folder, write_bytes
from hhtld.formats.base import Format, TensorInfo, TensorSource
from hhtld.formats.safetensors import SafetensorsFormat, check_shard_name, write_tensors
from hhtld.progress import Progress, silent

__all__ = ["FolderFormat", "write_side_files"]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def write_side_files(source: TensorSource, folder: Path) -> None:
    """Write every side file of a source, byte for byte."""
    for name in source.files():
        write_bytes(folder / name, source.read_file(name))


def _by_shard(infos: Mapping[str, TensorInfo]) -> dict[str, dict[str, TensorInfo]]:
    shards: dict[str, dict[str, TensorInfo]] = {}
    for name, info in infos.items():
        shard = SINGLE if info.shard is None else info.shard
        if shard not in shards:
            check_shard_name(shard, "the source")  # a pack's table may say anything
        shards.setdefault(shard, {})[name] = info
    return shards or {SINGLE: {}}


def _index(shards: Mapping[str, Mapping[str, TensorInfo]]) -> bytes:
    infos = [info for held in shards.values() for info in held.values()]
    index = {
        "metadata": {
            "total_parameters": sum(math.prod(info.shape) for info in infos),
            "total_size": sum(info.nbytes for info in infos),
        },
        "weight_map": {name: shard for shard, held in shards.items() for name in held},
    }
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()


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
            When the folder holds something or cannot be written; nothing is left behind.
        """
        shards = _by_shard(source.infos())
        metadata = {"format": "pt"} | dict(source.metadata)
        with new_folder(path) as folder:
            for shard, held in shards.items():
                write_tensors(source, held, folder / shard, metadata, progress)
            if any(info.shard is not None for info in source.infos().values()):
                write_bytes(folder / INDEX, _index(shards))
            if files:
                write_side_files(source, folder)
        if files and "config.json" not in source.files():
            return ["the source has no config.json, so the folder holds weights that transformers cannot load alone"]
        return []
