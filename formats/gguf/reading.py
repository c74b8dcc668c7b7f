"""GGUF files, the format of llama.cpp, read strictly; quantized tensors are dequantized row by row.

Layout, all of it little-endian
-------------------------------
=====================  ===========================================================================
bytes                  meaning
=====================  ===========================================================================
4, 4                   ``GGUF`` and the version, 2 or 3
8, 8                   number of tensors, number of key-values
each key-value         key (a string), type of its value, the value; a string is a length of 8 bytes and UTF-8,
                       an array the type of its elements, their number and the elements
each tensor            name, number of axes, 8 bytes for each axis (the innermost first), type, offset in the data
to the alignment       padding; ``general.alignment`` bytes, 32 unless the file says otherwise
to the end             the data: each tensor begins at the alignment, none leaves a hole
=====================  ===========================================================================

The header is read here and not by the package `gguf`, because its reader believes every number: a file of 43
bytes that claims an array of 2^63 elements keeps it busy until memory ends, and slices past the end of the file come
back shorter without a word. Here each count and length is held against the bytes that are left before anything is
allocated or repeated. What only the package knows is taken from it: the names and block sizes of the quantized types,
and `gguf.quants.dequantize`, its numpy reference of each of them.

A quantized tensor appears as F32, its size is told as stored, and a note says that coding it quantizes it a second
time. Its blocks run along the innermost axis, so rows are cut out and dequantized on
their own and have the bits that they have in the whole tensor. F32, F16, BF16, F64 and the integers come as they are.

Refused, each with its reason: version 1 and big-endian files, one part of a split model, types that the package does
not dequantize, arrays of arrays, keys and names that are empty, not UTF-8 or given twice, names that hold NUL, axes of
size 0, more than four of them, offsets other than those a writer gives, bytes after the last tensor. Values that are
not UTF-8 are kept: tokenizers hold such tokens.

Source: https://github.com/ggml-org/ggml (docs/gguf.md; src/gguf.cpp for the rules of offsets and counts).
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hhtld.errors import (
    BadMagicError,
    HeaderError,
    TruncatedError,
    UnsupportedVersionError,
    shown,
)
from hhtld.formats.gguf.kinds import Kind, dequantized, kind_numbered, package
from hhtld.matrix import TensorInfo, checked_name
from hhtld.sizes import align_up, checked_shape, tensor_nbytes
from hhtld.sources.contract import TensorSource, requested_tensor
from hhtld.storage.file_reading import PositionalFile, open_regular
from hhtld.storage.signatures import lookalike

__all__ = ["MAGIC", "GgufFile"]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
HEADER_LIMIT = 100_000_000  # as for safetensors, and what the table of a .hhtld file may take
KEY_LIMIT = 65535  # bytes of a key, as the specification has it
TEXT_LIMIT = 4096  # characters of a value that `metadata` repeats; the rest stands in `description` alone
MAX_AXES = 4
DEFAULT_ALIGNMENT = 32
ALIGNMENTS = frozenset(1 << n for n in range(3, 17))
KEY_VALUE_NBYTES = 8 + 1 + 4 + 1  # the least that one takes
TENSOR_NBYTES = 8 + 1 + 4 + 4 + 8
WINDOW_NBYTES = 1 << 20

NUMBERS: dict[int, tuple[str, np.dtype[Any]]] = {
    0: ("UINT8", np.dtype("u1")),
    1: ("INT8", np.dtype("i1")),
    2: ("UINT16", np.dtype("<u2")),
    3: ("INT16", np.dtype("<i2")),
    4: ("UINT32", np.dtype("<u4")),
    5: ("INT32", np.dtype("<i4")),
    6: ("FLOAT32", np.dtype("<f4")),
    7: ("BOOL", np.dtype("u1")),
    10: ("UINT64", np.dtype("<u8")),
    11: ("INT64", np.dtype("<i8")),
    12: ("FLOAT64", np.dtype("<f8")),
}
STRING, ARRAY = 8, 9


# --- the header -------------------------------------------------------------------------------


class _Cursor:
    """Takes a header apart from its first byte on and gives nothing that the file does not hold.

    Attributes
    ----------
    where : str
        What is being read, for messages: the path and the record.
    position : int
    """

    def __init__(self, file: PositionalFile, path: Path) -> None:
        self.where = f"{path}"
        self.position = 0
        self._file = file
        self._window, self._begin = b"", 0

    @property
    def left(self) -> int:
        """Bytes of the file from here on."""
        return self._file.size - self.position

    def take(self, nbytes: int, what: str) -> bytes:
        """Return the next bytes, or raise `TruncatedError` without reading any."""
        if nbytes > self.left:
            raise TruncatedError(
                f"{self.where}: {what} at byte {self.position} takes {nbytes} bytes, but only {self.left} follow"
            )
        if self.position + nbytes > HEADER_LIMIT:
            raise HeaderError(f"{self.where}: the header passes the limit of {HEADER_LIMIT} bytes with {what}")
        begin = self.position - self._begin
        if begin + nbytes > len(self._window):
            wanted = min(max(nbytes, WINDOW_NBYTES), self.left)
            self._window = bytes(self._file.read(self.position, wanted))
            self._begin, begin = self.position, 0
        self.position += nbytes
        return self._window[begin : begin + nbytes]

    def integer(self, nbytes: int, what: str) -> int:
        """Return the next unsigned integer."""
        return int.from_bytes(self.take(nbytes, what), "little")

    def string(self, what: str) -> bytes:
        """Return the next string as the bytes it is."""
        return self.take(self.integer(8, f"the length of {what}"), what)

    def count(self, nbytes_each: int, what: str) -> int:
        """Return the next count, of records that take at least `nbytes_each` bytes."""
        number = self.integer(8, f"the number of {what}")
        self.require(number, nbytes_each, what)
        return number

    def require(self, count: int, nbytes_each: int, what: str) -> None:
        """Refuse a count of records that the rest of the file cannot hold."""
        if count > self.left // nbytes_each:
            raise TruncatedError(
                f"{self.where}: {count} {what} of at least {nbytes_each} bytes declared, "
                f"but only {self.left} bytes follow"
            )

    def name(self, what: str) -> str:
        """Return the next string as a name: UTF-8, not empty."""
        data = self.string(what)
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise HeaderError(
                f"{self.where}: {what} {shown(repr(data)[2:-1])} is not UTF-8: {error.reason} at byte {error.start}"
            ) from None
        if not text:
            raise HeaderError(f"{self.where}: {what} is empty")
        return text


class _Entry(NamedTuple):
    """A tensor, its stored type, and where in the file its bytes begin."""

    info: TensorInfo
    kind: Kind
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.info.shape) // self.kind.block * self.kind.nbytes


class _Header(NamedTuple):
    """Everything before the data; fields are key -> {"type", "value"}, arrays with "of", their elements' type."""

    version: int
    alignment: int
    fields: dict[str, dict[str, Any]]
    entries: dict[str, _Entry]


def _read_header(file: PositionalFile, path: Path) -> _Header:
    """Read and check the header of an open file."""
    cursor = _Cursor(file, path)
    version = _version(cursor, path)
    n_tensors = cursor.count(TENSOR_NBYTES, "tensors")
    fields = _fields(cursor, path)
    _refuse_part(fields, path)
    alignment = _alignment(fields, path)
    cursor.where = f"{path}"
    cursor.require(n_tensors, TENSOR_NBYTES, "tensors")
    entries: dict[str, _Entry] = {}
    for number in range(n_tensors):
        entry = _entry(cursor, number, path)
        if entry.info.name in entries:
            raise HeaderError(f"{path}: tensor {shown(entry.info.name)} is given twice")
        entries[entry.info.name] = entry
    return _Header(version, alignment, fields, _placed(entries, cursor.position, alignment, file.size, path))


def _version(cursor: _Cursor, path: Path) -> int:
    head = cursor.take(min(cursor.left, 64), "the magic")
    if len(head) < 8 and MAGIC.startswith(head[:4]):
        raise TruncatedError(f"{path}: the file is {len(head)} bytes long and ends before its version does")
    if not head.startswith(MAGIC):
        hint = lookalike(head)
        got = f"expected {MAGIC!r}, got {head[:4]!r}" + (f" ({hint})" if hint else "")
        raise BadMagicError(f"{path}: this is not a GGUF file: {got}")
    cursor.position = 8
    version, swapped = (int.from_bytes(head[4:8], order) for order in ("little", "big"))
    if version in VERSIONS:
        return version
    if swapped in VERSIONS:
        raise UnsupportedVersionError(
            f"{path}: this is a big-endian GGUF file (version {swapped}), and only little-endian ones are read; "
            f"gguf-convert-endian of the package gguf makes one"
        )
    raise UnsupportedVersionError(
        f"{path}: this is GGUF version {version}, and this hhtld reads the versions {' and '.join(map(str, VERSIONS))}"
    )


def _fields(cursor: _Cursor, path: Path) -> dict[str, dict[str, Any]]:
    fields: dict[str, dict[str, Any]] = {}
    for number in range(cursor.count(KEY_VALUE_NBYTES, "key-values")):
        cursor.where = f"{path}: key-value {number}"
        key = cursor.name("its key")
        if len(key.encode()) > KEY_LIMIT:
            raise HeaderError(f"{cursor.where}: the key {shown(key, 40)} is longer than {KEY_LIMIT} bytes")
        if key in fields:
            raise HeaderError(f"{path}: key {shown(key)} is given twice")
        cursor.where = f"{path}: key {shown(key)}"
        fields[key] = _field(cursor)
    cursor.where = f"{path}"
    return fields


def _field(cursor: _Cursor) -> dict[str, Any]:
    """Return a value with its type, as JSON can hold it."""
    number = cursor.integer(4, "its type")
    if number != ARRAY:
        return {"type": _type_name(cursor, number), "value": _values(cursor, number, 1)[0]}
    number = cursor.integer(4, "the type of its elements")
    if number == ARRAY:
        raise HeaderError(f"{cursor.where}: the value is an array of arrays, which no reader of GGUF takes")
    element = _type_name(cursor, number)
    count = cursor.count(8 if number == STRING else NUMBERS[number][1].itemsize, "elements")
    return {"type": "ARRAY", "of": element, "value": _values(cursor, number, count)}


def _type_name(cursor: _Cursor, number: int) -> str:
    if number == STRING:
        return "STRING"
    if number not in NUMBERS:
        raise HeaderError(f"{cursor.where}: the type of the value is {number}, and only 0 to 12 are known")
    return NUMBERS[number][0]


def _values(cursor: _Cursor, number: int, count: int) -> list[Any]:
    if number == STRING:
        return [_text(cursor.string("a string")) for _ in range(count)]
    name, dtype = NUMBERS[number]
    numbers = np.frombuffer(cursor.take(count * dtype.itemsize, "its value"), dtype)
    if name == "BOOL":
        if numbers.size and numbers.max() > 1:
            raise HeaderError(f"{cursor.where}: a BOOL must be 0 or 1, and is {int(numbers.max())}")
        numbers = numbers.astype(np.bool_)
    values: list[Any] = numbers.tolist()
    if dtype.kind == "f" and not np.isfinite(numbers).all():  # JSON has no word for these
        return [value if math.isfinite(value) else repr(value) for value in values]
    return values


def _text(data: bytes) -> str | dict[str, str]:
    """Return a string's text, or its bytes as {"hex": ...} if they are not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return {"hex": data.hex()}


def _alignment(fields: Mapping[str, Mapping[str, Any]], path: Path) -> int:
    field = fields.get("general.alignment")
    if field is None:
        return DEFAULT_ALIGNMENT
    if field["type"] != "UINT32" or field["value"] not in ALIGNMENTS:
        got = f"{field['type']} {repr(field['value'])[:40]}"
        raise HeaderError(
            f"{path}: general.alignment must be a power of two from {min(ALIGNMENTS)} to {max(ALIGNMENTS)}, "
            f"a UINT32, got {got}"
        )
    return int(field["value"])


def _refuse_part(fields: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    count = fields.get("split.count", {"value": 0})["value"]
    if isinstance(count, int) and count > 1:
        number = fields.get("split.no", {"value": None})["value"]
        part = f"part {number + 1}" if isinstance(number, int) else "a part"
        raise HeaderError(
            f"{path}: this is {part} of a model that is split into {count} files; join them first: "
            f"llama-gguf-split --merge FIRST-PART.gguf whole.gguf"
        )


def _entry(cursor: _Cursor, number: int, path: Path) -> _Entry:
    """Return one tensor; its offset counts from the start of the data until it is placed."""
    cursor.where = f"{path}: tensor {number}"
    name = cursor.name("its name")
    try:
        checked_name(name)
    except ValueError as error:
        raise HeaderError(f"{path}: {error}") from None
    cursor.where = where = f"{path}: tensor {shown(name)}"
    if "\0" in name:
        raise HeaderError(f"{where}: the name holds NUL, and readers in C end it there")
    n_axes = cursor.integer(4, "its number of axes")
    if n_axes > MAX_AXES:
        raise HeaderError(f"{where}: the tensor has {n_axes} axes, and GGUF has at most {MAX_AXES}")
    sizes = [cursor.integer(8, "a size") for _ in range(n_axes)]
    kind = kind_numbered(cursor.integer(4, "its type"))
    if isinstance(kind, str):
        raise HeaderError(f"{where}: {kind}")
    return _Entry(_info(name, sizes, kind, where), kind, cursor.integer(8, "its offset"))


def _info(name: str, sizes: list[int], kind: Kind, where: str) -> TensorInfo:
    """Return a tensor of these sizes, innermost first as the file has them."""
    shape = checked_shape(sizes[::-1], where)
    if 0 in shape:
        raise HeaderError(f"{where}: the shape {list(shape)} has an axis of size 0")
    if kind.block > 1 and (not shape or shape[-1] % kind.block):
        columns = shape[-1] if shape else 1
        raise HeaderError(
            f"{where}: rows of {columns} elements cannot be cut into blocks of {kind.block}, as {kind.name} needs"
        )
    tensor_nbytes(shape, kind.dtype.nbits, where)  # refused here, where the path is known
    return TensorInfo(name, kind.dtype, shape)


def _placed(entries: dict[str, _Entry], end: int, alignment: int, size: int, path: Path) -> dict[str, _Entry]:
    """Return the entries with offsets in the file, if they cover the data once and completely."""
    start = cursor = align_up(end, alignment)
    placed = {}
    for name, entry in entries.items():
        expected = align_up(cursor, alignment)
        if entry.offset != expected - start:
            problem = "overlaps the tensor before it" if entry.offset < cursor - start else "is not where it belongs"
            raise HeaderError(
                f"{path}: tensor {shown(name)}: {problem}: it starts at data byte {entry.offset}, "
                f"expected {expected - start}, the end of the one before it aligned to {alignment}"
            )
        placed[name] = entry._replace(offset=expected)
        cursor = end = expected + entry.nbytes
        if end > size:
            raise TruncatedError(
                f"{path}: tensor {shown(name)}: {entry.kind.name} of shape {list(entry.info.shape)} takes "
                f"{entry.nbytes} bytes from byte {expected}, the file ends at {size}"
            )
    if size > align_up(end, alignment):
        raise HeaderError(
            f"{path}: bytes follow the last tensor: it ends at byte {end}, padded {align_up(end, alignment)}, "
            f"the file holds {size}"
        )
    return placed


# --- the source -------------------------------------------------------------------------------


class GgufFile(TensorSource):
    """One GGUF file, checked completely when opened, rows read by position and dequantized.

    Parameters
    ----------
    path : path
        Links are followed. The suffix does not matter here.

    Raises
    ------
    FormatError
        If the content breaks a rule, see the module.
    MissingExtraError
        If the package `gguf` is not installed.
    OSError
        If the system cannot open or read it.

    Notes
    -----
    Rows may be read from several threads at once; `close` must not run beside a read. Reading takes the
    bytes of the rows asked for, as stored and as given, and about 10 MB.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        package()
        self._path = Path(path)
        self._file = open_regular(self._path)
        try:
            self._header = _read_header(self._file, self._path)
        except BaseException:
            self._file.close()
            raise
        self._infos = {name: entry.info for name, entry in self._header.entries.items()}

    @property
    def metadata(self) -> dict[str, str]:
        """Single values as text, without long ones; `description` has all of them with their types."""
        texts = {}
        for key, field in self._header.fields.items():
            value = field["value"]
            if isinstance(value, bool):
                texts[key] = "true" if value else "false"
            elif isinstance(value, int | float) or (isinstance(value, str) and len(value) <= TEXT_LIMIT):
                texts[key] = str(value)
        return texts

    @property
    def description(self) -> dict[str, Any]:
        """Under "gguf": version, alignment, every key-value with its type, order and types of tensors.

        "order" and "key_order" tell the names if they are not sorted; "quantised" the types of those tensors that are.

        "stored_nbytes" are those of all tensors, where some are quantized.

        Values can be written back: strings that are not UTF-8 are {"hex": their bytes}, floats that are not
        finite "nan", "inf" or "-inf".
        """
        header = self._header
        quantized = {n: e.kind.name for n, e in header.entries.items() if e.kind.quantized is not None}
        facts: dict[str, Any] = {"version": header.version, "alignment": header.alignment}
        facts["fields"] = dict(header.fields)
        # A pack sorts both.
        orders = (("order", header.entries), ("key_order", header.fields))
        facts |= {key: list(names) for key, names in orders if list(names) != sorted(names)}
        if not quantized:
            return {"gguf": facts}
        nbytes = sum(entry.nbytes for entry in header.entries.values())
        return {"gguf": facts | {"quantised": quantized}, "stored_nbytes": nbytes}

    @property
    def notes(self) -> list[str]:
        """That coding what is quantized here quantizes it again."""
        kinds = Counter(e.kind.name for e in self._header.entries.values() if e.kind.quantized is not None)
        if not kinds:
            return []
        listed = ", ".join(f"{count} {name}" for name, count in kinds.most_common())
        return [
            f"{kinds.total()} of {len(self._infos)} tensors are quantized in the source ({listed}): what is read are "
            f"the weights they stand for, so coding them quantizes twice; the original, unquantized model gives better "
            f"ones"
        ]

    def stored(self, name: str) -> tuple[str, int]:
        entry = self._header.entries[name]
        return entry.kind.name, entry.nbytes

    def infos(self) -> Mapping[str, TensorInfo]:
        return MappingProxyType(self._infos)

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        info = requested_tensor(self._infos, name, start, stop, self._path, closed=self._file.closed)
        entry = self._header.entries[name]
        stored = np.empty((stop - start, entry.nbytes // info.n_rows), np.uint8)
        if stored.size:
            self._file.fill(stored.reshape(-1).data, entry.offset + start * stored.shape[1])
        if entry.kind.quantized is None:
            return stored
        out = np.empty((stop - start, info.n_cols), "<f4")
        dequantized(stored.reshape(-1, entry.kind.nbytes), entry.kind, out.reshape(-1, entry.kind.block))
        return out.view(np.uint8)

    def close(self) -> None:
        self._file.close()
