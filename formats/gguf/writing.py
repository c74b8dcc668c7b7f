"""Writing GGUF files: the key-values that a source's description carries, and its tensors in the types asked for.

The header is the one that `hhtld.formats.gguf.reading` took apart: every key-value with its type, and the tensors in
the order that they had. The numbers in it are checked as they would be in a file, because a pack's table may say
anything.

What `type` makes of a tensor:

- ``source``: the type that it had. Plain types hold the values as they are; those of GGUF's own types that the package
  `gguf` can write are quantized again with its numpy reference. Types that it only reads, such as Q4_K, are refused.
- any other: that type, for the tensors which the source stores in fewer than 32 bits. Norms, biases and whatever else
  is F32 beside narrower matrices stays F32, because llama.cpp asks that of them. Of a source that is F32 throughout,
  the matrices become that type which llama.cpp's own ``llama-quantize`` would take. Rows that are no multiple of 32
  elements keep their type: they are kernels of convolutions.

Source: https://github.com/ggml-org/ggml (docs/gguf.md), https://github.com/ggml-org/llama.cpp (src/llama-quant.cpp).
"""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from hhtld.dtypes import narrow, widen
from hhtld.errors import HeaderError, shown
from hhtld.formats.gguf.kinds import Kind, can_quantize, kind_named, package, package_version, quantized
from hhtld.formats.gguf.reading import (
    ALIGNMENTS,
    ARRAY,
    DEFAULT_ALIGNMENT,
    HEADER_LIMIT,
    KEY_LIMIT,
    MAGIC,
    MAX_AXES,
    NUMBERS,
    STRING,
    VERSIONS,
    GgufFile,
)
from hhtld.matrix import TensorInfo
from hhtld.progress import Progress, silent
from hhtld.sizes import align_up
from hhtld.sources.contract import TensorSource
from hhtld.sources.rows import row_ranges
from hhtld.storage.atomic import AtomicFile, replacing

__all__ = ["SOURCE", "TYPES", "Layout", "planned_layout", "write_gguf"]

T = TypeVar("T")

SOURCE = "source"
TYPES = (SOURCE, "F32", "F16", "BF16", "Q8_0")
_FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}  # of general.file_type
_QUANTIZATION_VERSION = 2  # of general.quantization_version, GGML_QNT_VERSION
_ROW_ELEMENTS = 32  # that rows of matrices are multiples of
_LARGEST_HALF = 65504.0  # scales of blocks are halves
# Of a row's largest value: below it F16 and BF16 are denormal, and Q8_0's scale, a 127th of it, errs like its steps.
_LEAST = {"F16": 2.0**-14, "BF16": 2.0**-126, "Q8_0": 127 * 2.0**-17}
# Of a source that is F32 throughout, the names of matrices that llama-quantize leaves alone.
_LEFT_ALONE = re.compile(
    r"_norm\.weight|ffn_gate_inp|position_embd|pos_embd|token_types|ssm_conv1d|shortconv|altup|laurel|time_mix_"
    r"|attn_rel_b|per_layer_(model_proj|inp_gate)"
)
_TYPE_NUMBERS = {name: number for number, (name, _) in NUMBERS.items()} | {"STRING": STRING}


class _Placed(NamedTuple):
    """A tensor, the type to write it in, and where its bytes begin in the data."""

    info: TensorInfo
    kind: Kind
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.info.shape) // self.kind.block * self.kind.nbytes


class Layout(NamedTuple):
    """A whole file but for its data.

    Attributes
    ----------
    header : bytes
        Padded to the alignment: the data begins behind it.
    tensors : list
        In the order of the data.
    alignment : int
    requantized : dict of str to int
        GGUF's quantized types and how many tensors are written in each.
    """

    header: bytes
    tensors: list[_Placed]
    alignment: int
    requantized: dict[str, int]


def planned_layout(source: TensorSource, type: str = SOURCE) -> Layout:
    """Return how a source becomes a GGUF file, before anything is written.

    Raises
    ------
    HeaderError
        If the source did not come from a GGUF file, or what it says of that file cannot stand in one; the message
        names what is missing.
    ValueError
        If `type` is none of `TYPES`, or a tensor of the source has a type that the package `gguf` cannot write.
    """
    if type not in TYPES:
        raise ValueError(f"type (--type) must be one of {', '.join(TYPES)}, got {type!r}")
    facts = source.description.get("gguf")
    if facts is None:
        raise HeaderError(_missing(source))
    package()
    if not isinstance(facts, Mapping):
        raise HeaderError("what the source records of its GGUF file is not a JSON object")
    infos = _storable(_in_order(source.infos(), facts.get("order"), "tensors"))
    kinds = _kinds(infos, facts, type)
    fields = facts.get("fields")
    if not isinstance(fields, Mapping):
        raise HeaderError("what the source records of its GGUF file holds no keys and values")
    fields = _in_order(fields, facts.get("key_order"), "keys")
    fields = _retyped(fields, type, kinds)
    alignment = _alignment(fields)
    version = facts.get("version")
    if version not in VERSIONS or isinstance(version, bool):
        raise HeaderError(f"the source records that its GGUF file has the version {shown(str(version), 40)}")
    tensors, end = [], 0
    for info in infos:
        start = align_up(end, alignment)
        tensors.append(_Placed(info, kinds[info.name], start))
        end = start + tensors[-1].nbytes
    header = b"".join(_header(int(version), fields, tensors))
    if len(header) > HEADER_LIMIT:
        raise HeaderError(f"the header takes {len(header)} bytes, and readers stop at {HEADER_LIMIT}")
    requantized = Counter(kind.name for kind in kinds.values() if kind.quantized is not None)
    return Layout(header.ljust(align_up(len(header), alignment), b"\0"), tensors, alignment, dict(requantized))


def _missing(source: TensorSource) -> str:
    came = "an ONNX model" if "onnx" in source.description else "a model of other files"
    return (
        f"a GGUF file holds general.architecture, the architecture's numbers and tokenizer.ggml.*, and the source, "
        f"{came}, has none of them; nothing is written. Only what came from a GGUF file goes back to one: write a "
        f"folder instead (hhtld convert SRC DST/) and give that to llama.cpp's convert_hf_to_gguf.py"
    )


# --- the tensors --------------------------------------------------------------------------------


def _in_order(found: Mapping[str, T], order: Any, what: str) -> dict[str, T]:
    """Return tensors or keys in the order of the file they came from; packs that are older do not know it."""
    names = list(found) if order is None else order
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise HeaderError(f"the order of {what} in the source's GGUF file is not a list of names")
    if len(names) > len(found) and set(found) < set(names):
        raise HeaderError(
            f"the source holds {len(found):,} of the {len(names):,} {what} of the GGUF file that it came from, and "
            f"such a file holds a whole model"
        )
    if sorted(names) != sorted(found):
        raise HeaderError(f"the order of {what} in the source's GGUF file does not name each of them once")
    return {name: found[name] for name in names}


def _storable(infos: Mapping[str, TensorInfo]) -> list[TensorInfo]:
    """Return tensors, or refuse one that GGUF cannot hold."""
    for name, info in infos.items():
        shape = info.shape
        where = f"tensor {shown(name)}"
        if len(shape) > MAX_AXES or 0 in shape:
            raise HeaderError(f"{where}: GGUF has at most {MAX_AXES} axes and none of size 0, got {list(shape)}")
        if "\0" in name:
            raise HeaderError(f"{where}: the name holds NUL, and readers in C end it there")
    return list(infos.values())


def _kinds(infos: list[TensorInfo], facts: Mapping[str, Any], type: str) -> dict[str, Kind]:
    """Return the type of every tensor in the file to write."""
    stored = facts.get("quantised", {})
    if not isinstance(stored, Mapping):
        raise HeaderError("the types of tensors in the source's GGUF file are not a JSON object")
    kinds = {}
    for info in infos:
        kinds[info.name] = kind = _source_kind(info, stored.get(info.name))
        if not _is_whole(info, kind):
            raise HeaderError(f"tensor {shown(info.name)}: shape {list(info.shape)} is not of blocks of {kind.block}")
    if type != SOURCE:
        plain = all(kind.name == "F32" or not kind.dtype.is_weight for kind in kinds.values())
        chosen = kind_named(type)
        kinds |= {i.name: chosen for i in infos if _changes(i, kinds[i.name], plain)}
    unwritten = Counter(kind.name for kind in kinds.values() if not can_quantize(kind))
    if unwritten:
        listed = ", ".join(f"{count} {name}" for name, count in unwritten.most_common())
        others = ", ".join(name for name in TYPES if name != SOURCE)
        raise ValueError(
            f"{unwritten.total()} of {len(infos)} tensors have types in the source that gguf {package_version()} reads "
            f"and does not write ({listed}); nothing is written. Choose one of {others} for them (--type Q8_0)"
        )
    return kinds


def _source_kind(info: TensorInfo, stored: Any) -> Kind:
    """Return the type that a tensor had in the file it came from."""
    where = f"tensor {shown(info.name)}"
    if stored is not None and not isinstance(stored, str):
        raise HeaderError(f"{where}: its type in the source's GGUF file is not text")
    try:
        kind = kind_named(info.dtype.name if stored is None else stored)
    except ValueError as error:
        raise HeaderError(f"{where}: GGUF has {error}") from None
    if kind.dtype != info.dtype:
        raise HeaderError(f"{where}: {kind.name} in the source's GGUF file stands for {kind.dtype.name}")
    return kind


def _is_whole(info: TensorInfo, kind: Kind) -> bool:
    return kind.block == 1 or (bool(info.shape) and info.shape[-1] % kind.block == 0)


def _changes(info: TensorInfo, kind: Kind, plain: bool) -> bool:
    """Whether a tensor is written in the type asked for; `plain` says that the source's floats are all F32."""
    if len(info.shape) < 2 or info.shape[-1] % _ROW_ELEMENTS or not kind.dtype.is_weight or kind.name == "F64":
        return False
    if plain:
        return info.name.endswith("weight") and not _LEFT_ALONE.search(info.name)
    return kind.name != "F32"


# --- the header ---------------------------------------------------------------------------------


def _retyped(fields: Mapping[str, Any], type: str, kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """Return the key-values, of which those that tell of the tensors' types tell of the new ones."""
    if type == SOURCE:
        return dict(fields)
    retyped = dict(fields) | {"general.file_type": {"type": "UINT32", "value": _FILE_TYPES[type]}}
    if any(kind.quantized is not None for kind in kinds.values()):
        retyped.setdefault("general.quantization_version", {"type": "UINT32", "value": _QUANTIZATION_VERSION})
    return retyped


def _alignment(fields: Mapping[str, Any]) -> int:
    field = fields.get("general.alignment", {"type": "UINT32", "value": DEFAULT_ALIGNMENT})
    value = field.get("value") if isinstance(field, Mapping) and field.get("type") == "UINT32" else None
    if isinstance(value, bool) or not isinstance(value, int) or value not in ALIGNMENTS:
        raise HeaderError(f"key 'general.alignment': this is no alignment of GGUF: {shown(str(field), 60)}")
    return value


def _header(version: int, fields: Mapping[str, Any], tensors: list[_Placed]) -> Iterator[bytes]:
    yield MAGIC + version.to_bytes(4, "little") + len(tensors).to_bytes(8, "little") + len(fields).to_bytes(8, "little")
    for key, field in fields.items():
        where = f"key {shown(key)}"
        name = _string(key, where)
        if not 8 < len(name) <= 8 + KEY_LIMIT:
            raise HeaderError(f"{where}: a key must have 1 to {KEY_LIMIT} bytes")
        yield name
        yield _field(field, where)
    for info, kind, offset in tensors:
        yield _string(info.name, f"tensor {shown(info.name)}") + len(info.shape).to_bytes(4, "little")
        yield b"".join(size.to_bytes(8, "little") for size in reversed(info.shape))
        yield kind.number.to_bytes(4, "little") + offset.to_bytes(8, "little")


def _field(field: Any, where: str) -> bytes:
    """Return the bytes of a value and its type, of what the reader told of them."""
    if not isinstance(field, Mapping) or "value" not in field:
        raise HeaderError(f"{where}: the type or the value is missing")
    value = field["value"]
    if field.get("type") != "ARRAY":
        number = _type_number(field.get("type"), where)
        return number.to_bytes(4, "little") + _values([value], number, where)
    number = _type_number(field.get("of"), where)
    if not isinstance(value, list):
        raise HeaderError(f"{where}: the value of an ARRAY is not a list")
    head = (ARRAY, 4), (number, 4), (len(value), 8)
    return b"".join(part.to_bytes(size, "little") for part, size in head) + _values(value, number, where)


def _type_number(name: Any, where: str) -> int:
    if not isinstance(name, str) or name not in _TYPE_NUMBERS:
        raise HeaderError(f"{where}: the type of the value, {shown(str(name), 40)}, is not known")
    return _TYPE_NUMBERS[name]


def _values(values: list[Any], number: int, where: str) -> bytes:
    if number == STRING:
        return b"".join(_string(value, where) for value in values)
    name, dtype = NUMBERS[number]
    if name == "BOOL":
        if not all(isinstance(value, bool) for value in values):
            raise HeaderError(f"{where}: a BOOL must be true or false")
    elif dtype.kind == "f":
        values = [_float(value, where) for value in values]
    elif not all(type(value) is int for value in values) or not _all_within(values, np.iinfo(dtype)):
        raise HeaderError(f"{where}: a value is not of the type {name}")
    with np.errstate(over="ignore"):
        return np.array(values, dtype).tobytes()


def _all_within(values: list[int], limits: Any) -> bool:
    return not values or (min(values) >= limits.min and max(values) <= limits.max)


def _float(value: Any, where: str) -> float:
    if isinstance(value, str) and value in ("nan", "inf", "-inf"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > sys.float_info.max:
        raise HeaderError(f"{where}: a value is not a number")
    return float(value)


def _string(value: Any, where: str) -> bytes:
    """Return the length and the bytes of a text, or of {"hex": ...} for one that is not UTF-8."""
    try:
        data = bytes.fromhex(value["hex"]) if isinstance(value, Mapping) else value.encode("utf-8")
    except (KeyError, TypeError, ValueError, AttributeError):  # among them lone surrogates
        raise HeaderError(f"{where}: a value is not text") from None
    return len(data).to_bytes(8, "little") + bytes(data)


# --- the data -----------------------------------------------------------------------------------


def write_gguf(source: TensorSource, path: Path, type: str = SOURCE, progress: Progress = silent) -> list[str]:
    """Write a source as a GGUF file, atomically; tensors stream, block by block. Return what a user should know.

    Raises
    ------
    HeaderError, ValueError
        As `planned_layout`, before anything is written; and for a tensor that the type asked for cannot hold.
    OutputError
        If the file cannot be written; what stood there before is untouched.
    """
    layout = planned_layout(source, type)
    clipped: set[str] = set()
    faded: dict[str, list[str]] = {}  # by type
    with replacing(path, check=lambda sibling: GgufFile(sibling).close()) as out:
        out.write(layout.header)
        for tensor in layout.tensors:
            _pad(out, layout.alignment)
            was_clipped, has_faded = _write_tensor(out, source, tensor)
            if was_clipped:
                clipped.add(tensor.info.name)
            if has_faded:
                faded.setdefault(tensor.kind.name, []).append(tensor.info.name)
            progress("write", tensor.info.name, tensor.info.nbytes)
        _pad(out, layout.alignment)
    notes = []
    if layout.requantized:
        listed = ", ".join(f"{count} {name}" for name, count in layout.requantized.items())
        notes.append(
            f"{sum(layout.requantized.values())} tensors are quantized once more for the file ({listed}); --type F16, "
            f"BF16 or F32 writes what the source holds"
        )
    if clipped:
        notes.append(
            f"{len(clipped)} tensors hold values beyond F16, which are written as its largest ones: "
            f"{', '.join(shown(name, 60) for name in sorted(clipped)[:5])}; --type BF16 or F32 holds them"
        )
    for kind, names in sorted(faded.items()):
        notes.append(
            f"{len(names)} tensors hold rows of which no value reaches {_LEAST[kind]:.2g}, where {kind} loses digits "
            f"and at last gives zeros: {', '.join(shown(name, 60) for name in sorted(names)[:5])}; --type "
            f"{'F32' if kind == 'BF16' else 'BF16 or F32'} holds them"
        )
    return notes


def _pad(out: AtomicFile, alignment: int) -> None:
    out.write(bytes(align_up(out.size, alignment) - out.size))


def _write_tensor(out: AtomicFile, source: TensorSource, tensor: _Placed) -> tuple[bool, bool]:
    """Write a tensor's bytes; return whether values were brought into its type's range, and whether rows faded."""
    info, expected = tensor.info, out.size + tensor.nbytes
    convert = _conversion(tensor)
    was_clipped = has_faded = False
    for start, stop in row_ranges(info.n_rows, info.row_nbytes):
        rows = np.ascontiguousarray(source.read_rows(info.name, start, stop)).reshape(-1).view(np.uint8)
        if convert is not None:
            values = widen(rows, info.dtype)
            was_clipped |= tensor.kind.name == "F16" and bool(_beyond_half(values).any())
            has_faded |= _fades(values.reshape(-1, info.n_cols), tensor.kind)
            rows = convert(values)
        out.write(rows.data)
    if out.size != expected:
        given = tensor.nbytes + out.size - expected
        raise ValueError(f"tensor {shown(info.name)}: the source gave {given} bytes, and {tensor.nbytes} were expected")
    return was_clipped, has_faded


def _fades(rows: NDArray[np.float32], kind: Kind) -> bool:
    """Whether a type loses digits of whole rows, because they are so small."""
    largest = np.abs(rows).max(axis=1, initial=0)
    return bool(((largest > 0) & (largest < _LEAST.get(kind.name, 0))).any())


def _beyond_half(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    return np.isfinite(values) & (np.abs(values) > _LARGEST_HALF)


def _conversion(tensor: _Placed) -> Callable[[NDArray[np.float32]], NDArray[np.uint8]] | None:
    """Return what turns values into a tensor's type, or None if the source gives that type."""
    info, kind = tensor.info, tensor.kind
    if kind.quantized is None:
        return None if kind.dtype == info.dtype else lambda values: narrow(values, kind.dtype)

    def quantize(values: NDArray[np.float32]) -> NDArray[np.uint8]:
        if not np.isfinite(values).all() or _beyond_half(values).any():
            raise ValueError(
                f"tensor {shown(info.name)}: holds values that are not finite or beyond {_LARGEST_HALF:g}, which "
                f"{kind.name} has no scales for; write it with --type BF16 or F32"
            )
        return quantized(values, kind)

    return quantize
