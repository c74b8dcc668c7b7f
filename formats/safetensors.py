"""safetensors files and sharded snapshots of them, read strictly and written canonically.

Layout
------
======================  =========================================================================
bytes                   meaning
======================  =========================================================================
8                       n, length of the header, unsigned, little-endian
n                       one JSON object in UTF-8, white space around it allowed: tensor name ->
                        ``{"dtype": str, "shape": [int], "data_offsets": [begin, end]}``, and
                        optionally ``"__metadata__": {str: str}``
to the end of the file  the data: tensors back to back, C order, little-endian; offsets count
                        from its first byte
======================  =========================================================================

Tensors leave no hole, do not overlap, and the last one ends where the file ends.

This reader refuses everything the official library refuses, and also what two parsers could read
in two ways or what cannot be handed on: a key given twice at any level, more than 32 axes or an
axis above 2**48, an empty tensor whose other axes no array can have, names above 65535 bytes,
tensor entries written as arrays. As there, data that is not aligned is fine (rows are copied into
aligned buffers), so are empty and 0-d tensors, and a field that nobody knows inside a tensor's entry
is ignored without a word. Names are opaque: any Unicode text, never used as a path. Bytes of data
are never judged: a BOOL of 2 and a NaN come through as they are.

Source: https://github.com/huggingface/safetensors (README, format), and the folder layout of
``save_pretrained`` in https://github.com/huggingface/transformers for shards and their index.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hhtld.dtypes import DTYPES, dtype_named
from hhtld.errors import BadMagicError, ClosedError, FormatError, HeaderError, TruncatedError, shown
from hhtld.formats.base import Format
from hhtld.formats.fp8 import (
    QUANTIZATION_FILES,
    Declared,
    DequantizedSource,
    Fp8Scheme,
    declared,
    has_scales,
    holds_fp8,
)
from hhtld.matrix import TensorInfo, checked_name
from hhtld.progress import Progress, silent
from hhtld.sizes import align_up, checked_shape, is_deep, tensor_nbytes
from hhtld.sources.contract import TensorSource, requested_tensor
from hhtld.sources.model_config import CONFIG
from hhtld.sources.rows import row_ranges
from hhtld.storage.atomic import AtomicFile, replacing
from hhtld.storage.file_names import check_together, is_device
from hhtld.storage.file_reading import Location, PositionalFile, open_location
from hhtld.storage.links import followed
from hhtld.storage.locations import locate
from hhtld.storage.side_files import read_side_file, side_files
from hhtld.storage.signatures import lookalike
from hhtld.storage.strict_json import json_object
from hhtld.storage.urls import Url

__all__ = [
    "SafetensorsFile",
    "SafetensorsFormat",
    "ShardedSnapshot",
    "check_shard_name",
    "check_shard_names",
    "write_tensors",
]

SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
STEMS = ("model", "diffusion_pytorch_model", "adapter_model")  # what transformers, diffusers and PEFT look for
HEADER_LIMIT = 100_000_000  # the official library's own
JSON_LIMIT = 10 << 20  # index and config.json, as huggingface_hub limits the index
LENGTH_NBYTES = 8
METADATA = "__metadata__"
NAMES_KEY = "hhtld.names"  # in the metadata of a packed folder's file, see hhtld.formats.hf
FIELDS = ("dtype", "shape", "data_offsets")
SPACE = b" \t\r\n"
_SHARD = re.compile(r"-(\d{1,9})-of-(\d{1,9})(?:\.[\w-]+)?\.safetensors$", re.ASCII | re.IGNORECASE)


def _refusal(kind: type[FormatError], message: str, head: bytes) -> FormatError:
    """Return the error for a file whose header cannot be located, with a hint at what it may be.

    Only asked once a file has failed as safetensors: a valid length may well start with b"\\x80".
    """
    hint = lookalike(head)
    return BadMagicError(f"{message} ({hint})") if hint else kind(message)


# --- the header -------------------------------------------------------------------------------


class _Entry(NamedTuple):
    """A tensor and the half-open range of its bytes, counted from the start of the data."""

    info: TensorInfo
    begin: int
    end: int


class _Header(NamedTuple):
    metadata: dict[str, str]
    entries: dict[str, _Entry]  # in the order of the data
    data_offset: int


def _read_header(file: PositionalFile, path: Location) -> _Header:
    """Read and check the header of an open file."""
    size = file.size
    head = bytes(file.read(0, min(size, 64)))
    if size < LENGTH_NBYTES:
        problem = "the file is empty" if size == 0 else f"the file is only {size} bytes long"
        raise _refusal(TruncatedError, f"{path}: {problem}, expected at least {LENGTH_NBYTES}", head)
    nbytes = int.from_bytes(head[:LENGTH_NBYTES], "little")
    if nbytes > HEADER_LIMIT:
        raise _refusal(HeaderError, f"{path}: the header takes {nbytes} bytes, and the limit is {HEADER_LIMIT}", head)
    if nbytes > size - LENGTH_NBYTES:
        message = f"{path}: the header takes {nbytes} bytes, but only {size - LENGTH_NBYTES} bytes follow"
        raise _refusal(TruncatedError, message, head)
    data_offset = LENGTH_NBYTES + nbytes
    data = file.read(LENGTH_NBYTES, nbytes)
    try:
        metadata, entries = _parsed(data, path)
    except RecursionError:  # printing what is nested nearly too deeply can still go too deep
        raise HeaderError(f"{path}: the header is nested too deeply") from None
    _check_cover(entries, size - data_offset, path)
    return _Header(metadata, {entry.info.name: entry for entry in entries}, data_offset)


def _parsed(data: bytearray, path: Location) -> tuple[dict[str, str], list[_Entry]]:
    """Return the metadata and the entries of a header, each checked on its own."""
    tensors = json_object(data, f"{path}: the header")
    metadata = _metadata(tensors.pop(METADATA, None), path)
    entries = [_entry(name, fields, path) for name, fields in tensors.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    return metadata, entries


def _metadata(found: object, path: Location) -> dict[str, str]:
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise HeaderError(f"{path}: {METADATA} must be a JSON object, and is {type(found).__name__}")
    for key, text in found.items():
        if not isinstance(text, str):
            raise HeaderError(f"{path}: {METADATA} {shown(key)} must be text, and is {type(text).__name__}")
    return found


def _entry(name: str, fields: object, path: Location) -> _Entry:
    """Return one tensor's entry, its shape, type and number of bytes agreeing."""
    try:
        checked_name(name)
    except ValueError as error:
        raise HeaderError(f"{path}: {error}") from None
    where = f"{path}: tensor {shown(name)}"
    if not isinstance(fields, dict):
        raise HeaderError(f"{where}: its entry must be a JSON object, and is {type(fields).__name__}")
    for field in FIELDS:
        if field not in fields:
            raise HeaderError(f"{where}: {field} is missing")
    if len(fields) > len(FIELDS):
        for field in fields:
            if field not in FIELDS and is_deep(fields[field]):
                raise HeaderError(f"{where}: field {shown(field)} is nested too deeply")
    info = _info(name, fields, where)
    begin, end = _offsets(fields["data_offsets"], where)
    if end - begin != info.nbytes:
        raise HeaderError(
            f"{where}: {info.dtype.name} of shape {list(info.shape)} takes {info.nbytes} bytes, but "
            f"data_offsets [{begin}, {end}] give {end - begin}"
        )
    return _Entry(info, begin, end)


def _info(name: str, fields: dict[str, Any], where: str) -> TensorInfo:
    dtype, shape = dtype_named(fields["dtype"], where), checked_shape(fields["shape"], where)
    tensor_nbytes(shape, dtype.nbits, where)  # refused here, where the path is known
    return TensorInfo(name, dtype, shape)


def _offsets(found: object, where: str) -> tuple[int, int]:
    if isinstance(found, list) and len(found) == 2:
        begin, end = found
        if type(begin) is int and type(end) is int and 0 <= begin <= end:
            return begin, end
    got = str(found)[:80]
    raise HeaderError(f"{where}: data_offsets must be two integers, 0 <= begin <= end, and are {got}")


def _check_cover(entries: list[_Entry], data_nbytes: int, path: Location) -> None:
    """Refuse entries, sorted by offset, that do not cover the data once and completely."""
    cursor = 0
    for info, begin, end in entries:
        if begin != cursor:
            problem = "overlaps the tensor before it" if begin < cursor else "leaves a hole before it"
            where = f"{path}: tensor {shown(info.name)}"
            raise HeaderError(f"{where}: {problem}: it starts at data byte {begin}, and {cursor} was expected")
        cursor = end
    facts = f"the header declares {cursor} bytes of data, the file holds {data_nbytes}"
    if cursor > data_nbytes:
        raise TruncatedError(f"{path}: {facts}")
    if cursor < data_nbytes:
        raise HeaderError(f"{path}: bytes follow the last tensor: {facts}")


class SafetensorsFile(TensorSource):
    """One safetensors file, checked completely when opened, rows read by position.

    Parameters
    ----------
    path : path or Url
        Links are followed. The suffix does not matter here.

    Raises
    ------
    FormatError
        If the content breaks a rule: `BadMagicError` for another kind of file, `TruncatedError`
        for a file that ends early, `HeaderError` for the rest.
    OSError
        If the system cannot open or read it.

    Attributes
    ----------
    declared : Declared
        What is known of its quantization from configs; nothing, unless whoever opened it put something there.

    Notes
    -----
    Rows may be read from several threads at once; `close` must not run beside a read.
    """

    def __init__(self, path: str | os.PathLike[str] | Url) -> None:
        self._path = locate(path)
        self.declared = Declared()
        self._file = open_location(self._path)
        try:
            self._header = _read_header(self._file, self._path)
        except BaseException:
            self._file.close()
            raise
        self._infos = {name: entry.info for name, entry in self._header.entries.items()}

    @property
    def metadata(self) -> dict[str, str]:
        return dict(self._header.metadata)

    @property
    def declared_quantization(self) -> str | None:
        return self.declared.other

    @property
    def notes(self) -> list[str]:
        """That it is one shard of several, if its name says so."""
        number, count = _place_among_shards(self._path.name)
        if count < 2:
            return []
        return [f"{shown(self._path.name)} is shard {number} of {count}: the tensors of the others are not here"]

    def infos(self) -> Mapping[str, TensorInfo]:
        return MappingProxyType(self._infos)

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        info = requested_tensor(self._infos, name, start, stop, self._path, closed=self._file.closed)
        rows = np.empty((stop - start, info.row_nbytes), np.uint8)
        if rows.size:
            begin = self._header.data_offset + self._header.entries[name].begin
            self._file.fill(rows.reshape(-1).data, begin + start * info.row_nbytes)
        return rows

    def close(self) -> None:
        self._file.close()


# --- snapshots --------------------------------------------------------------------------------


def _read_json(path: Location, *, constants: bool = False) -> dict[str, Any]:
    """Return the JSON object in a file of at most `JSON_LIMIT` bytes."""
    with open_location(path) as file:
        if file.size > JSON_LIMIT:
            raise HeaderError(f"{path}: the file has {file.size} bytes, and the limit is {JSON_LIMIT}")
        data = file.read(0, file.size)
    try:
        return json_object(data, f"{path}:", constants=constants)
    except HeaderError as error:
        raise _refusal(HeaderError, str(error), bytes(data[:64])) from None


def _weight_map(path: Location) -> dict[str, str]:
    """Return the checked `weight_map` of an index: tensor name -> plain file name of its shard."""
    weight_map = _read_json(path).get("weight_map")
    if not isinstance(weight_map, dict):
        raise HeaderError(f"{path}: weight_map must be a JSON object, and is {type(weight_map).__name__}")
    if not weight_map:
        raise HeaderError(f"{path}: weight_map names no tensor")
    for name, shard in weight_map.items():
        if not isinstance(shard, str):
            kind = type(shard).__name__
            raise HeaderError(f"{path}: weight_map of {shown(name)} must be the name of a file, and is {kind}")
    check_shard_names(dict.fromkeys(weight_map.values()), path)
    return weight_map


def check_shard_names(shards: Iterable[str], path: Location | str) -> None:
    """Refuse shards that cannot stand side by side on every system, and each that `check_shard_name` refuses."""
    shards = list(shards)
    for shard in shards:
        check_shard_name(shard, path)
    try:
        check_together(shards)
    except ValueError as error:
        raise HeaderError(f"{path}: {error}") from None


def check_shard_name(shard: str, path: Location | str) -> None:
    """Refuse what is not the plain name of a safetensors file, on every system alike."""
    both = (PurePosixPath(shard), PureWindowsPath(shard))
    plain = all(pure.name == shard and not pure.anchor for pure in both)
    if not plain or not shard.isprintable() or len(os.fsencode(shard)) > 255:
        raise HeaderError(f"{path}: shard {shown(shard)} is not the name of a file in the index's own folder")
    if is_device(shard):
        raise HeaderError(f"{path}: shard {shown(shard)} has the name of a device of Windows")
    if not shard.endswith(SUFFIX):
        raise HeaderError(f"{path}: shard {shown(shard)} does not end in {SUFFIX}")


def _read_config(folder: Location) -> dict[str, Any]:
    """Return a folder's config.json as it was published; empty when there is none."""
    path = folder / CONFIG
    if not path.exists():
        if isinstance(path, Path) and os.path.lexists(path):
            raise HeaderError(f"{path}: this link leads nowhere; fetch the snapshot again")
        return {}
    return _read_json(followed(folder, CONFIG), constants=True)  # it is Python's JSON: some hold Infinity


def _declared(folder: Location, config: Mapping[str, Any]) -> Declared:
    """Return how the configs of a model's folder say that it is quantized."""
    present = [name for name in QUANTIZATION_FILES if (folder / name).exists()]
    beside = {name: _read_json(followed(folder, name), constants=True) for name in present}
    return declared(config, beside, f"{folder / CONFIG}")


def _config_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a config says of the model, without how it was quantized."""
    facts = {
        key: config[key]
        for key in ("model_type", "_name_or_path", "torch_dtype", "dtype")
        if isinstance(config.get(key), str)
    }
    architectures = config.get("architectures")
    if isinstance(architectures, list) and all(isinstance(name, str) for name in architectures):
        facts["architectures"] = architectures
    if isinstance(config.get("tie_word_embeddings"), bool):
        facts["tie_word_embeddings"] = config["tie_word_embeddings"]
    return facts


def _is_index(path: Location) -> bool:
    return path.name.lower().endswith(INDEX_SUFFIX)


def _folder_files(folder: Location) -> list[str]:
    """Return the sorted names of what looks like safetensors files, or like an index of them, in a folder."""
    names = (entry.name for entry in folder.iterdir())
    ends = (SUFFIX, INDEX_SUFFIX)
    return sorted(name for name in names if name.lower().endswith(ends) and not name.startswith("."))


def _entrance(folder: Location) -> tuple[Location, bool]:
    """Return the index or the single file that stands for a folder, and whether it is an index.

    Of several the first that a library looks for: transformers', diffusers', PEFT's.
    """
    present = _folder_files(folder)
    names = [name for name in present if not name.lower().endswith(INDEX_SUFFIX)]
    indexes = [name for name in present if name not in names]
    for stem in STEMS:
        single, index = f"{stem}{SUFFIX}", f"{stem}{INDEX_SUFFIX}"
        if index in indexes:
            # transformers would load the single file, others the shards: the same folder, two models.
            if single in names and single not in _weight_map(followed(folder, index)).values():
                problem = f"holds {single} and an index of other files"
                raise HeaderError(f"{folder}: {problem}; give the path of the one you mean")
            return followed(folder, index), True
        if single in names:
            return folder / single, False
    if len(indexes) == 1 and set(names) <= set(_weight_map(followed(folder, indexes[0])).values()):
        return folder / indexes[0], True
    if len(names) == 1:
        number, count = _place_among_shards(names[0])
        if count > 1:
            problem = f"holds {shown(names[0])}, shard {number} of {count}, and no index that names the others"
            raise HeaderError(f"{folder}: {problem}; fetch the model again, or give the path of the file to convert it")
        return folder / names[0], False
    if not names:
        raise BadMagicError(f"{folder}: the folder holds no {SUFFIX} file")
    listed = ", ".join(shown(name, 60) for name in names[:8]) + (", ..." if len(names) > 8 else "")
    problem = f"holds {len(names)} {SUFFIX} files ({listed}) and no {STEMS[0]}{INDEX_SUFFIX}"
    raise HeaderError(f"{folder}: {problem}; give the path of the file or index you mean")


def _place_among_shards(name: str) -> tuple[int, int]:
    """Return the number of a shard and how many there are, as the name of the file says; 1 of 1 if it says nothing."""
    said = _SHARD.search(name)
    return (int(said[1]), int(said[2])) if said else (1, 1)


class ShardedSnapshot(TensorSource):
    """A folder as `save_pretrained` and the hub's cache lay it out, or the index of one.

    Parameters
    ----------
    path : path or Url
        A folder with ``model.safetensors.index.json``, with ``model.safetensors``, with one of diffusers' or PEFT's
        in their place, or with one ``*.safetensors`` file or index, or the path of any
        ``*.safetensors.index.json``. Names are taken as given; links are followed as `hhtld.storage.links` says.

    Raises
    ------
    FormatError
        For a malformed index, shard or config.json, for an index that does not say exactly what the
        shards hold, and for a folder that leaves open which model is meant.

    Attributes
    ----------
    declared : Declared
        How config.json, or a file of `QUANTIZATION_FILES`, says that weights are quantized. Tensors appear here as
        they are stored; see `hhtld.formats.fp8.DequantizedSource` and `hhtld.sources.quantized`.

    Notes
    -----
    Every shard is checked here; its file is then opened again when it is first read from.
    """

    def __init__(self, path: str | os.PathLike[str] | Url) -> None:
        given = locate(path)
        is_folder = given.is_dir()
        self._path = given
        self._folder = given if is_folder else given.parent
        config = _read_config(self._folder)
        self.declared = _declared(self._folder, config)
        self._config = _config_facts(config)
        entrance, is_sharded = _entrance(given) if is_folder else (given, True)
        weight_map = _weight_map(entrance) if is_sharded else None
        self._shards = sorted(set(weight_map.values())) if weight_map is not None else [entrance.name]
        self._is_sharded = is_sharded
        self._infos: dict[str, TensorInfo] = {}
        self._shard_of: dict[str, str] = {}
        self._headers: dict[str, _Header] = {}
        self._identities: dict[str, Any] = {}
        for shard in self._shards:
            with self._opened(shard, weight_map, entrance) as file:
                if weight_map is not None:
                    _check_map(weight_map, shard, file, entrance)
                self._take(shard, file)
        self._entrance = entrance.name
        self._files = side_files(self._folder, {*self._shards, entrance.name})
        self._lock = threading.Lock()
        self._open: dict[str, SafetensorsFile] = {}
        self._closed = False

    def _opened(self, shard: str, weight_map: Mapping[str, str] | None, index: Location) -> SafetensorsFile:
        try:
            return SafetensorsFile(followed(self._folder, shard))
        except FileNotFoundError:
            if isinstance(self._folder, Path) and os.path.lexists(self._folder / shard):
                raise HeaderError(f"{self._folder / shard}: this link leads nowhere; fetch the model again") from None
            if weight_map is None:
                raise
            name = next(name for name, place in weight_map.items() if place == shard)
            raise HeaderError(
                f"{index}: shard {shown(shard)} is missing, and tensor {shown(name)} is in it; fetch the model again"
            ) from None

    def _take(self, shard: str, file: SafetensorsFile) -> None:
        for name, info in file.infos().items():
            self._infos[name] = dataclasses.replace(info, shard=shard) if self._is_sharded else info
            self._shard_of[name] = shard
        self._headers[shard], self._identities[shard] = file._header, file._file.identity

    @property
    def declared_quantization(self) -> str | None:
        return self.declared.other

    @property
    def metadata(self) -> dict[str, str]:
        """The first shard's; shards written together all carry the same."""
        return dict(self._headers[self._shards[0]].metadata)

    @property
    def description(self) -> dict[str, Any]:
        """The names of the shards, of the file or index if odd, and what config.json says."""
        facts: dict[str, Any] = {"shards": list(self._shards)} if self._is_sharded else {}
        usual = (f"{STEMS[0]}{SUFFIX}", f"{STEMS[0]}{INDEX_SUFFIX}")
        if self._entrance not in usual and self._entrance.endswith((SUFFIX, INDEX_SUFFIX)):
            facts["entrance"] = self._entrance
        return facts | ({"config": dict(self._config)} if self._config else {})

    def infos(self) -> Mapping[str, TensorInfo]:
        return MappingProxyType(self._infos)

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        requested_tensor(self._infos, name, start, stop, self._path)
        return self._file(self._shard_of[name]).read_rows(name, start, stop)

    def files(self) -> Mapping[str, int]:
        return MappingProxyType(self._files.found)

    def read_file(self, name: str) -> bytes:
        return read_side_file(self._folder, name)

    @property
    def file_notes(self) -> list[str]:
        """Which side files come along and what stays behind."""
        return self._files.notes()

    def _file(self, shard: str) -> SafetensorsFile:
        with self._lock:
            if self._closed:
                raise ClosedError(f"{self._path} is closed")
            if shard not in self._open:
                self._open[shard] = self._reopened(shard)
            return self._open[shard]

    def _reopened(self, shard: str) -> SafetensorsFile:
        try:
            file = SafetensorsFile(followed(self._folder, shard))
        except FileNotFoundError:
            raise HeaderError(f"{self._folder / shard}: the shard was removed after the snapshot was opened") from None
        if file._header != self._headers[shard] or not file._file.is_still(self._identities[shard]):
            file.close()
            raise HeaderError(f"{self._folder / shard}: the shard was replaced after the snapshot was opened")
        return file

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for file in self._open.values():
                file.close()
            self._open.clear()


def _check_map(weight_map: Mapping[str, str], shard: str, file: SafetensorsFile, index: Location) -> None:
    """Refuse a shard that does not hold exactly the tensors the index places in it."""
    stale = f"{index}: the index is stale"
    shard_infos = file.infos()
    for name in shard_infos:
        place = weight_map.get(name)
        if place != shard:
            says = "does not name it" if place is None else f"places it in {shown(place)}"
            raise HeaderError(f"{stale}: tensor {shown(name)} is in shard {shown(shard)}, but weight_map {says}")
    missing = next((name for name, place in weight_map.items() if place == shard and name not in shard_infos), None)
    if missing is not None:
        raise HeaderError(
            f"{stale}: tensor {shown(missing)} is not in shard {shown(shard)}, where weight_map says it is"
        )


# --- writing ----------------------------------------------------------------------------------

_RANK = {name: rank for rank, name in enumerate(DTYPES)}


def _canonical(infos: Mapping[str, TensorInfo]) -> list[TensorInfo]:
    """Return tensors as the official writer orders them: widest type first, then by name."""
    for name in infos:
        checked_name(name)
    return sorted(infos.values(), key=lambda info: (-_RANK[info.dtype.name], info.name))


def _header_bytes(infos: list[TensorInfo], metadata: Mapping[str, str]) -> bytes:
    """Return the length and the header, padded with spaces so that the data starts at a multiple of 8."""
    table: dict[str, Any] = {}
    if metadata:
        table[METADATA] = {key: metadata[key] for key in sorted(metadata)}
    offset = 0
    for info in infos:
        table[info.name] = {
            "dtype": info.dtype.name,
            "shape": list(info.shape),
            "data_offsets": [offset, offset + info.nbytes],
        }
        offset += info.nbytes
    try:
        text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError:  # names were checked before
        raise ValueError("metadata holds text that is not valid Unicode: a lone surrogate") from None
    text = text.ljust(align_up(len(text), 8))
    if len(text) > HEADER_LIMIT:
        raise ValueError(
            f"the header takes {len(text)} bytes, and readers stop at {HEADER_LIMIT}; write shards instead"
        )
    return len(text).to_bytes(LENGTH_NBYTES, "little") + text


def _write_tensor(out: AtomicFile, source: TensorSource, info: TensorInfo) -> None:
    expected = out.size + info.nbytes
    if info.nbytes:  # an empty tensor may claim 2^48 rows
        for start, stop in row_ranges(info.n_rows, info.row_nbytes):
            rows = source.read_rows(info.name, start, stop)
            out.write(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)
    if out.size != expected:
        given = info.nbytes + out.size - expected
        raise ValueError(f"tensor {shown(info.name)}: the source gave {given} bytes, and {info.nbytes} were expected")


def write_tensors(
    source: TensorSource,
    infos: Mapping[str, TensorInfo],
    path: Path,
    metadata: Mapping[str, str],
    progress: Progress = silent,
) -> None:
    """Write some tensors of a source to one file; see `SafetensorsFormat.write_source`."""
    ordered = _canonical(infos)
    header = _header_bytes(ordered, metadata)
    with replacing(path, check=lambda sibling: SafetensorsFile(sibling).close()) as out:
        out.write(header)
        for info in ordered:
            _write_tensor(out, source, info)
            progress("write", info.name, info.nbytes)


# --- the format -------------------------------------------------------------------------------


def _open(given: Location) -> TensorSource:
    if given.is_dir() or _is_index(given):
        snapshot = ShardedSnapshot(given)
        return _dequantized(snapshot, given)
    file = SafetensorsFile(given)
    if NAMES_KEY in file.metadata:
        file.close()
        raise HeaderError(
            f"{given}: this file holds names in place of weights; give its folder, which is a packed model"
        )
    if not holds_fp8(file.infos()):
        return file
    try:  # of a snapshot that is read alone, the configs beside it
        file.declared = _declared(given.parent, _read_config(given.parent))
    except BaseException:
        file.close()
        raise
    return _dequantized(file, given)


def _dequantized(source: SafetensorsFile | ShardedSnapshot, given: Location) -> TensorSource:
    """Return a source that gives FP8 weights as what they mean, or the source itself when it has no scales."""
    scheme, other = source.declared
    if other is not None or (scheme is None and not has_scales(source.infos())):
        return source
    try:
        return DequantizedSource(source, scheme or Fp8Scheme(), f"{given}")
    except BaseException:
        source.close()
        raise


class SafetensorsFormat(Format):
    """safetensors files, their sharded indexes, and folders that hold either."""

    name: ClassVar[str] = "safetensors"
    suffixes: ClassVar[tuple[str, ...]] = (SUFFIX,)
    description: ClassVar[str] = "safetensors file, sharded index or model folder: plain tensors, no code"
    options: ClassVar[frozenset[str]] = frozenset({"progress"})

    def sniff(self, path: Location, head: bytes) -> bool:
        """Whether the name says safetensors, the folder holds some, or the head opens a header."""
        if path.is_dir():
            return bool(_folder_files(path))
        if path.suffix.lower() in self.suffixes or _is_index(path):
            return True
        nbytes = int.from_bytes(head[:LENGTH_NBYTES], "little")
        return nbytes <= HEADER_LIMIT and head[LENGTH_NBYTES:].lstrip(SPACE).startswith(b"{")

    def open_source(self, path: Path) -> TensorSource:
        """Open a file, an index or a folder; FP8 weights that come with scales are read as what they mean.

        Raises
        ------
        FormatError
            For every malformation, naming the path.
        """
        return _open(Path(path))

    def open_url(self, url: Url) -> TensorSource:
        """Open a file, an index or a folder behind a URL the same way."""
        return _open(url)

    def write_source(
        self, source: TensorSource, path: Path, *, progress: Progress = silent, **options: Any
    ) -> list[str]:
        """Write every tensor of `source.infos()` as it is, in the official library's order.

        The bytes depend on the tensors and the metadata alone. Rows are streamed, so at most one
        block of a tensor, or one tensor of fewer than two axes, is in memory at a time. Side files stay behind,
        which a note says.

        Raises
        ------
        ValueError, TypeError
            For a name or metadata that the format cannot hold.
        OutputError
            If the file cannot be written; what stood there before is untouched.
        """
        write_tensors(source, source.infos(), path, source.metadata, progress)
        if not source.files():
            return []
        return [f"{len(source.files())} side files (config, tokenizer, ...) stay behind; a folder, DST/, holds them"]
