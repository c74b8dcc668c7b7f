"""Packed model folders: a pack where Hugging Face's libraries look for a model.

==========================  ==================================================================================
file                        what
==========================  ==================================================================================
``model.hhtld``             the weights, all of them, without side files
``model.safetensors``       for every tensor its name in the pack, as U8 [1, 1, 1, 1, 1, n]: what transformers sees
``config.json``             the source's, with ``quantization_config`` and ``transformers_weights`` added
other side files            the source's, byte for byte
``HHTLD.md``                how to load the folder, for whoever finds it; not where the source has one of its own
==========================  ==================================================================================

`hhtld.integrations.transformers` makes of the names the weights that they stand for. Without it loading fails twice
over instead of leaving weights at random: transformers 5 refuses "model.hhtld" as ``transformers_weights``, which is
the error that tells what is missing, and whoever does not know that key finds bytes in place of every weight,
whose shape and type fit none.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from hhtld.encoding.gate_report import GateReport
from hhtld.encoding.plan import Plan
from hhtld.encoding.resources import Work
from hhtld.errors import HeaderError, shown
from hhtld.formats.base import Format
from hhtld.formats.folder import write_side_files
from hhtld.formats.hhtld import write_pack
from hhtld.formats.safetensors import NAMES_KEY, write_tensors
from hhtld.pack.opening import PACK_NAME, is_packed_folder, open_pack
from hhtld.pack.pack import HhtldPack
from hhtld.pack.source import PackSource
from hhtld.sources.contract import ArraySource, TensorSource
from hhtld.sources.model_config import CONFIG, config_bytes, config_object
from hhtld.storage.atomic_folder import new_folder, write_bytes
from hhtld.storage.file_reading import Location
from hhtld.storage.links import followed
from hhtld.storage.side_files import read_side_file, side_files
from hhtld.storage.urls import Url

__all__ = ["NAMES_FILE", "HfFormat", "PackedFolder", "loads_with_transformers", "packed_config", "write_names"]

NAMES_FILE = "model.safetensors"
_HOW_TO = "HHTLD.md"
_ADDED = ("quantization_config", "transformers_weights")
_METADATA = {
    "format": "pt",
    NAMES_KEY: f"the weights are in {PACK_NAME}; import hhtld.integrations.transformers before loading",
}
_TITLE = f"""\
# A packed model

The weights of this folder are in `{PACK_NAME}`, compressed by hhtld. `{NAMES_FILE}` holds names, no weights.

"""
_LOADING = """\
```python
import hhtld.integrations.transformers  # pip install 'hhtld[transformers]'
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("this folder")  # or AutoModel, pipeline, ...: whatever the model is
tokenizer = AutoTokenizer.from_pretrained("this folder")
```

"""
_DECODING = """\
`hhtld convert "this folder" plain/` decodes it to an ordinary folder, which needs no hhtld.
"""


def packed_config(source: TensorSource, where: str, profile: str) -> bytes:
    """Return a source's config.json saying that its model's weights are packed.

    If the config tells no type of weights, transformers looks at the file: there it would find bytes, so the type is
    said here too.

    Raises
    ------
    HeaderError
        If it is no JSON object, or the model is quantized already.
    """
    config = config_object(source.read_file(CONFIG), where)
    if config.get("quantization_config") is not None:
        raise HeaderError(
            f"{where} quantization_config says that the model is quantized already, and a packed folder needs that "
            f"key for itself; convert to a .hhtld, or remove quantization_config if the weights are plain"
        )
    floats = [info.dtype for info in source.infos().values() if info.dtype.is_weight and info.dtype.nbits >= 16]
    added = {"quant_method": "hhtld", "profile": profile, "dtype": floats[0].name if floats else "F32"}
    return config_bytes(config | dict(zip(_ADDED, (added, PACK_NAME), strict=True)))


def _plain_config(data: bytes, where: str) -> bytes:
    config = config_object(data, where)
    return config_bytes({key: value for key, value in config.items() if key not in _ADDED})


def write_names(pack: HhtldPack, path: Path) -> None:
    """Write the safetensors file that holds, for every tensor, the name of the one whose bytes it is."""
    # Six axes, which no weight has, so that none can take a name of its own length for its values.
    source = ArraySource(
        {name: np.frombuffer(pack.info(name).name.encode(), np.uint8).reshape(1, 1, 1, 1, 1, -1) for name in pack}
    )
    write_tensors(source, source.infos(), path, _METADATA)


class PackedFolder(PackSource):
    """A packed folder as a source: tensors of its pack, side files of the folder, config.json as it was.

    Raises
    ------
    FormatError
        For a bad pack or config.json.
    """

    def __init__(self, folder: Location) -> None:
        super().__init__(open_pack(followed(folder, PACK_NAME), mmap=False))  # as of a pack that is a source
        self._folder = folder
        try:
            config = folder / CONFIG
            self._config = _plain_config(read_side_file(folder, config.name), f"{config}:")
            how_to = folder / _HOW_TO
            ours = how_to.is_file() and read_side_file(folder, _HOW_TO).startswith(_TITLE.encode())
            self._beside = side_files(folder, {PACK_NAME, NAMES_FILE, *((_HOW_TO,) if ours else ())})
            self._files = self._beside.found | {config.name: len(self._config)}
        except BaseException:
            self.close()
            raise

    def files(self) -> Mapping[str, int]:
        return dict(self._files)

    def read_file(self, name: str) -> bytes:
        return self._config if name == CONFIG else read_side_file(self._folder, name)

    @property
    def file_notes(self) -> list[str]:
        """Which side files come along and what stays behind."""
        return self._beside.notes()


class HfFormat(Format):
    """Folders that transformers loads once `hhtld.integrations.transformers` is imported."""

    name: ClassVar[str] = "hf"
    suffixes: ClassVar[tuple[str, ...]] = ()
    description: ClassVar[str] = "packed model folder, for transformers with hhtld.integrations.transformers"
    encodes: ClassVar[bool] = True

    def sniff(self, path: Location, head: bytes) -> bool:
        """Whether the folder's config.json says that its weights are in model.hhtld."""
        return is_packed_folder(path)

    def open_source(self, path: Path) -> TensorSource:
        """Open the pack of a folder, with the folder's side files."""
        return PackedFolder(path)

    def open_url(self, url: Url) -> TensorSource:
        """Open a packed folder behind a URL the same way."""
        return PackedFolder(url)

    def write_plan(
        self,
        source: TensorSource,
        plan: Plan,
        path: Path,
        report: GateReport,
        work: Work,
    ) -> list[str]:
        """Encode a source into a folder, which must not exist or be empty.

        Unfinished, its pack and the journal of that lie beside the folder.

        Raises
        ------
        FormatError
            If the source has no config.json, or one that cannot be read.
        OutputError
            If the folder holds something or cannot be written; none is left in its place.
        """
        if CONFIG not in source.files():
            raise HeaderError(
                "a packed folder needs the model's config.json, and the source has none; convert the model's folder, "
                "and not a file of it; or convert what is not a model of transformers to a .hhtld"
            )
        config = packed_config(source, "config.json:", plan.profile.text)
        has_how_to = any(name.casefold() == _HOW_TO.casefold() for name in source.files())
        bare, beside = replace(plan, files=()), Path(os.path.abspath(path))  # noqa: PTH100 - as in new_folder
        with new_folder(path) as folder:
            write_side_files(source, folder, {CONFIG: config})
            if not has_how_to:
                loading = _LOADING if _names_model_type(config) else ""
                write_bytes(folder, _HOW_TO, f"{_TITLE}{loading}{_DECODING}".encode())
            notes = write_pack(source, bare, folder / PACK_NAME, report, work, beside=beside)
            with open_pack(folder / PACK_NAME) as pack:
                write_names(pack, folder / NAMES_FILE)
        return [*notes, _who_loads(path, config, has_how_to=has_how_to)]


def loads_with_transformers(folder: Path) -> bool:
    """Whether transformers loads a packed folder, going by its config."""
    return (folder / CONFIG).is_file() and _names_model_type((folder / CONFIG).read_bytes())


def _names_model_type(config: bytes) -> bool:
    """Whether a config.json is one of transformers, as far as can be told without it."""
    return isinstance(config_object(config, "config.json:").get("model_type"), str)


def _who_loads(path: Path, config: bytes, *, has_how_to: bool) -> str:
    """Return the closing note: what loads a packed folder, going by its config."""
    name = shown(str(path))
    if not _names_model_type(config):
        kind = config_object(config, "config.json:").get("_class_name")
        of = f" (it is of diffusers, {shown(str(kind))})" if kind is not None else ""
        return (
            f"transformers cannot load {name}: its config.json names no model_type{of}, and no other library knows "
            f"packed folders; hhtld convert {name} plain/ makes a folder that loads as the source did"
        )
    how_to = f"; its {_HOW_TO} is the source's own" if has_how_to else f"; {_HOW_TO} in it tells how"
    return f"{name} loads with transformers once hhtld.integrations.transformers is imported{how_to}"
