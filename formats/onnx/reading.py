"""ONNX models: the weights that a graph comes with, read strictly, and the graph without them.

An .onnx file is one protobuf message, `ModelProto`. Its graph lists the parameters as initializers, tensors with a
name, a type, a shape and data in one of three places: `raw_data`, a repeated field of the type's own, or a file beside
the model. The package `onnx` parses the message; its own checker and loader are not asked, for they speak of operators
and let lengths pass that do not match shapes.

What is read, and its name:

- initializers of the graph, by their own names;
- values of Constant nodes that look like weights, by the name of the node's output: floats of one axis or more,
  anything of two or more. Exporters put small arguments there too, axes and scales; those belong to the program and
  stay in the graph. How many these are is in `description`;
- both in the bodies of If, Loop and Scan as ``node/attribute/name``, and of functions as ``function/name``: names are
  unique only within a body. Nodes need no names of their own: the second node of a name goes by ``node~2``, and so does
  a tensor whose name another body's tensor already has.

Types that no array has are kept as what they are made of: integers of 4 and 2 bits, 4-bit floats that fill no whole
bytes and complex128 as their packed bytes, sparse tensors as ``name/values`` and ``name/indices``. `description` tells
their types and shapes. Strings stay in the graph, which a note says.

The graph without the data of these tensors is the side file `GRAPH_FILE`; with it, `hhtld.formats.onnx.writing` makes a
model again. If a file holds a tensor that is no weight, the graph stays behind, and a note says so. The settings of a
Piper voice, which lie beside it as ``NAME.onnx.json``, are the side file
`SETTINGS_FILE`.

What operators do with a weight tells whether its rows are looked up (`hhtld.formats.onnx.uses`,
`hhtld.sources.regimes`). What the graph uses as quantized weights, scales and zero points is told by `quantized`
(`hhtld.formats.onnx.quantized`) and never coded.

Refused, each by name: values outside their type, data whose length is not the shape's, names that are missing, not
UTF-8 or given twice within a body. The location of external data must be a plain relative path below the model's
folder; a link there is followed where `hhtld.storage.links` says.
Optimizer states (`training_info`) are not weights and are not read; checksums of external files are not compared.

Memory: the data inside the message is held while the source is open, and twice that while it is opened; rows are views
of it. Data in external files is read by position. protobuf ends at 2 GiB.

Source: https://github.com/onnx/onnx (onnx/onnx.proto, docs/ExternalData.md).
"""

from __future__ import annotations

import math
import os
import re
from collections import ChainMap
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hhtld.dtypes import DTYPES, DType
from hhtld.errors import (
    BadMagicError,
    HeaderError,
    MissingExtraError,
    TruncatedError,
    UnsupportedVersionError,
    shown,
)
from hhtld.formats.onnx.quantized import Scope, quantized_by_graph
from hhtld.formats.onnx.uses import uses_by_graph
from hhtld.matrix import TensorInfo, checked_name
from hhtld.sizes import checked_shape, tensor_nbytes
from hhtld.sources.contract import ADDS, TensorSource, requested_tensor
from hhtld.sources.quantized import packed_tensors
from hhtld.storage.file_reading import PositionalFile, open_regular
from hhtld.storage.links import leads_out
from hhtld.storage.side_files import SIDE_FILE_LIMIT
from hhtld.storage.signatures import lookalike

__all__ = ["OnnxFile", "TensorWalk", "external_tensors", "package", "tensor_info"]

SIZE_LIMIT = 2**31 - 1  # of a protobuf message
PREFIX_LIMIT = 1024  # characters; real ones are names of a few nodes
OPSET_SINCE = 3  # the IR version from which a model must say which operators it means
EXTERNAL = 1
GRAPH_FILE = "onnx.graph"
SETTINGS_FILE = "onnx.json"
_DATA_TYPES = {
    1: "F32",
    2: "U8",
    3: "I8",
    4: "U16",
    5: "I16",
    6: "I32",
    7: "I64",
    9: "BOOL",
    10: "F16",
    11: "F64",
    12: "U32",
    13: "U64",
    14: "C64",
    16: "BF16",
    17: "F8_E4M3",
    18: "F8_E4M3FNUZ",
    19: "F8_E5M2",
    20: "F8_E5M2FNUZ",
    23: "F4",
    24: "F8_E8M0",
    27: "F6_E2M3",
    28: "F6_E3M2",
}
STRING, _COMPLEX128 = 8, 15
# Types that come as their packed bytes, and the bits of their elements.
_PACKED_BITS = {_COMPLEX128: 128, 21: 4, 22: 4, 25: 2, 26: 2}
_SPARSE_PARTS = ("/values", "/indices")
# Where a type's elements lie when not in raw_data, and the integers that stand for them there: narrow types
# travel as their bits in int32, packed ones as bytes there.
_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
_FIELD_OF = {
    "F32": "float_data",
    "C64": "float_data",
    "F64": "double_data",
    "I64": "int64_data",
    "U32": "uint64_data",
    "U64": "uint64_data",
}
DATA_FIELDS = (*_FIELDS, "raw_data")
_ELEMENTS: dict[str, np.dtype[Any]] = {
    "float_data": np.dtype("<f4"),
    "int32_data": np.dtype("<i4"),
    "int64_data": np.dtype("<i8"),
    "double_data": np.dtype("<f8"),
    "uint64_data": np.dtype("<u8"),
}
_SIGNED: dict[str, np.dtype[Any]] = {"I8": np.dtype("i1"), "I16": np.dtype("<i2")}
_UNSIGNED: dict[int, np.dtype[Any]] = {8: np.dtype("u1"), 16: np.dtype("<u2"), 32: np.dtype("<u4")}


def package() -> ModuleType:
    """Return the package `onnx`, imported on use."""
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError(f"ONNX files need the package onnx ({error}): pip install 'hhtld[onnx]'") from error
    module: ModuleType = onnx  # which mypy may have no types of
    return module


# --- the message ------------------------------------------------------------------------------


def _read_model(file: PositionalFile, path: Path) -> Any:
    """Return the parsed `ModelProto` of an open file."""
    from google.protobuf.message import DecodeError

    size = file.size
    if size == 0:
        raise TruncatedError(f"{path}: the file is empty")
    if size > SIZE_LIMIT:
        raise HeaderError(f"{path}: the file has {size} bytes, and a protobuf message has at most {SIZE_LIMIT}")
    data = file.read(0, size)
    hint = lookalike(bytes(data[:64]))
    model = package().ModelProto()
    try:
        model.ParseFromString(memoryview(data))
    except (DecodeError, UnicodeDecodeError, MemoryError) as error:
        message = f"{path}: not a sound ONNX model, or one cut short: {shown(str(error))[1:-1]}"
        raise (BadMagicError(f"{message} ({hint})") if hint else HeaderError(message)) from None
    if not model.HasField("graph") or not model.HasField("ir_version"):
        missing = "graph" if not model.HasField("graph") else "ir_version"
        raise BadMagicError(f"{path}: this is not an ONNX model: it has no {missing}" + (f" ({hint})" if hint else ""))
    return model


def _check_version(model: Any, path: Path) -> None:
    known = int(package().IR_VERSION)
    if model.ir_version < 1:
        raise HeaderError(f"{path}: the IR version is {model.ir_version}, and IR versions count from 1")
    if model.ir_version > known:
        raise UnsupportedVersionError(
            f"{path}: the IR version is {model.ir_version}, and the installed package onnx reads up to {known}; "
            f"try a newer package"
        )
    if model.ir_version >= OPSET_SINCE and not model.opset_import:
        raise HeaderError(
            f"{path}: the model names no operator set, as a model of IR version {model.ir_version} must; "
            f"the file may be cut short"
        )


def _text(value: str | bytes, where: str) -> str:
    """Return a string field's text; protobuf gives bytes for what is not UTF-8."""
    try:
        return value if isinstance(value, str) else value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise HeaderError(
            f"{where} is not UTF-8: {error.reason} at byte {error.start}, {shown(repr(value)[2:-1])}"
        ) from None


def _pairs(entries: Any, where: str) -> dict[str, str]:
    """Return key-value entries, each key given once."""
    pairs: dict[str, str] = {}
    for number, entry in enumerate(entries):
        key = _text(entry.key, f"{where}: key {number}")
        if key in pairs:
            raise HeaderError(f"{where}: key {shown(key)} is given twice")
        pairs[key] = _text(entry.value, f"{where}: the value of {shown(key)}")
    return pairs


def _facts(model: Any, path: Path) -> dict[str, Any]:
    """Return what the model says of itself."""
    texts = ("producer_name", "producer_version", "domain", "doc_string")
    facts: dict[str, Any] = {key: _text(getattr(model, key), f"{path}: {key}") for key in texts if model.HasField(key)}
    if model.HasField("model_version"):
        facts["model_version"] = int(model.model_version)
    opsets = [
        {"domain": _text(o.domain, f"{path}: an opset's domain"), "version": o.version} for o in model.opset_import
    ]
    graph = _text(model.graph.name, f"{path}: the graph's name")
    return facts | {"ir_version": int(model.ir_version), "opsets": opsets, "graph": graph}


# --- where tensors stand ----------------------------------------------------------------------


class _Found(NamedTuple):
    """A tensor of the message and the name it goes by."""

    name: str
    tensor: Any


class TensorWalk:
    """One pass over a model's tensors; bodies nest less deeply than protobuf lets messages nest.

    Attributes
    ----------
    left_out : int
        Constants that are arguments of the program.
    sparse : dict of name to list of int
        The shapes of sparse tensors, which come as their values and indices.
    scopes : list of Scope
        Every graph, body and function that was walked, and the names its tensors have outside of it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._prefixes: set[str] = set()
        self._names: set[str] = set()
        self.left_out = 0
        self.sparse: dict[str, list[int]] = {}
        self.scopes: list[Scope] = []

    def model(self, model: Any) -> Iterator[_Found]:
        """Return every weight of a model."""
        yield from self._graph(model.graph, "", ChainMap())
        for number, function in enumerate(model.functions):
            prefix = self._own_prefix("", function.name or str(number))
            yield from self._nodes(function.node, prefix, ChainMap())

    def _graph(self, graph: Any, prefix: str, outer: ChainMap[str, str]) -> Iterator[_Found]:
        names = outer.new_child()
        for number, tensor in enumerate(graph.initializer):
            name = self._name(tensor.name, f"initializer {number}", prefix, names)
            yield _Found(name, tensor)
        for number, tensor in enumerate(graph.sparse_initializer):
            name = self._name(tensor.values.name, f"sparse initializer {number}", prefix, names, _SPARSE_PARTS)
            yield from self._sparse(name, tensor)
        yield from self._nodes(graph.node, prefix, names)

    def _nodes(self, nodes: Any, prefix: str, names: ChainMap[str, str]) -> Iterator[_Found]:
        self.scopes.append(Scope(names, nodes))
        for number, node in enumerate(nodes):
            is_constant = node.op_type == "Constant" and node.domain in ("", "ai.onnx")
            for attribute in node.attribute:
                if attribute.HasField("g") or attribute.graphs:
                    yield from self._bodies(node, attribute, number, prefix, names)
                elif is_constant and attribute.HasField("sparse_tensor"):
                    yield from self._sparse(
                        self._output(node, number, prefix, names, _SPARSE_PARTS), attribute.sparse_tensor
                    )
                elif is_constant and attribute.HasField("t") and _is_weight(attribute.t):
                    yield _Found(self._output(node, number, prefix, names), attribute.t)
                elif is_constant:
                    self.left_out += 1

    def _bodies(
        self, node: Any, attribute: Any, number: int, prefix: str, names: ChainMap[str, str]
    ) -> Iterator[_Found]:
        label = node.name or (node.output[0] if node.output else f"node {number}")
        inner = self._own_prefix(prefix, label, attribute.name)
        if attribute.HasField("g"):
            yield from self._graph(attribute.g, inner, names)
        for place, graph in enumerate(attribute.graphs):
            yield from self._graph(graph, self._prefix(inner, str(place)), names)

    def _sparse(self, name: str, tensor: Any) -> Iterator[_Found]:
        self.sparse[name] = [int(size) for size in tensor.dims]
        for part, values in zip(_SPARSE_PARTS, (tensor.values, tensor.indices), strict=True):
            yield _Found(f"{name}{part}", values)

    def _own_prefix(self, outer: str, label: str | bytes, *rest: str | bytes) -> str:
        """Return a prefix that no other body has; a second node of the same name is ``name~2``."""
        prefix, count = self._prefix(outer, label, *rest), 1
        while prefix in self._prefixes:
            count += 1
            text = _text(label, f"{self._path}: a name of {shown(outer)}")
            prefix = self._prefix(outer, f"{text}~{count}", *rest)
        self._prefixes.add(prefix)
        return prefix

    def _prefix(self, outer: str, *parts: str | bytes) -> str:
        """Return what names inside a body begin with; short, for every tensor in there repeats it."""
        where = f"{self._path}: a name of {shown(outer)}"
        prefix = outer + "".join(f"{_text(part, where)}/" for part in parts)
        if len(prefix) > PREFIX_LIMIT:
            raise HeaderError(
                f"{self._path}: body {shown(prefix, 40)}: its name is longer than {PREFIX_LIMIT} characters"
            )
        return prefix

    def _output(
        self, node: Any, number: int, prefix: str, names: ChainMap[str, str], parts: tuple[str, ...] = ("",)
    ) -> str:
        return self._name(node.output[0] if node.output else "", f"Constant of node {number}", prefix, names, parts)

    def _name(
        self, name: str | bytes, what: str, prefix: str, names: ChainMap[str, str], parts: tuple[str, ...] = ("",)
    ) -> str:
        """Return the name of a tensor, or of its parts' beginning, that no other has; note it among its body's names.

        One body's prefix and name may together be another's name; the later of the two is ``name~2``.
        """
        where = f"{self._path}: {what}" + (f" in {shown(prefix)}" if prefix else "")
        if not name:
            raise HeaderError(f"{where} has no name")
        local = _text(name, f"{where}: its name")
        unique, count = prefix + local, 1
        if local in names.maps[0]:
            raise HeaderError(f"{self._path}: tensor {shown(unique)} is given twice")
        while not self._names.isdisjoint(unique + part for part in parts):
            count += 1
            unique = f"{prefix}{local}~{count}"
        try:
            checked_name(unique)
        except ValueError as error:
            raise HeaderError(f"{where}: {error}") from None
        self._names.update(unique + part for part in parts)
        names[local] = unique
        return unique


def _is_weight(constant: Any) -> bool:
    """Whether a Constant's tensor looks like a weight rather than like an argument of the program."""
    if constant.data_location == EXTERNAL:  # a graph that travels alone cannot name a file
        return True
    dtype = _DATA_TYPES.get(constant.data_type)
    is_float = dtype is not None and DTYPES[dtype].is_weight
    return len(constant.dims) > (0 if is_float else 1)


# --- one tensor -------------------------------------------------------------------------------


class _Place(NamedTuple):
    """Where external data begins."""

    file: Path
    offset: int
    identity: Any


def _packed_bits(tensor: Any) -> int | None:
    """Return the bits of an element of a tensor that comes as its packed bytes, or None for an ordinary one."""
    if _DATA_TYPES.get(tensor.data_type) == "F4" and math.prod(tensor.dims) % 2:
        return 4
    return _PACKED_BITS.get(tensor.data_type)


def tensor_info(name: str, tensor: Any, where: str) -> TensorInfo:
    nbits = _packed_bits(tensor)
    if nbits is not None:
        shape = checked_shape(list(tensor.dims), where)
        return TensorInfo(name, DTYPES["U8"], checked_shape([-(-math.prod(shape) * nbits // 8)], where))
    if tensor.data_type not in _DATA_TYPES:
        raise HeaderError(f"{where}: {_type_text(tensor.data_type)} cannot be read; known: {', '.join(DTYPES)}")
    dtype = DTYPES[_DATA_TYPES[tensor.data_type]]
    shape = checked_shape(list(tensor.dims), where)
    tensor_nbytes(shape, dtype.nbits, where)  # refused here, where the path is known
    return TensorInfo(name, dtype, shape)


def _type_and_shape(tensor: Any) -> str:
    return f"{_type_text(tensor.data_type).removeprefix('type ')} {list(tensor.dims)}"


def _type_text(number: int) -> str:
    try:
        return f"type {package().TensorProto.DataType.Name(number)}"
    except ValueError:
        return f"the unknown type {number}"


def _data(tensor: Any, info: TensorInfo, where: str) -> NDArray[np.uint8]:
    """Return the bytes of a tensor that holds its data itself."""
    given = [field for field in _FIELDS if getattr(tensor, field)]
    if tensor.HasField("segment"):
        raise HeaderError(f"{where}: this is one segment of a tensor, and segments are not read")
    if tensor.HasField("raw_data"):
        if given:
            raise HeaderError(f"{where}: the data are there twice, in raw_data and in {given[0]}")
        data = np.frombuffer(tensor.raw_data, np.uint8)
        if data.size != info.nbytes:
            raise HeaderError(
                f"{where}: {info.dtype.name} of shape {list(info.shape)} takes {info.nbytes} bytes, "
                f"raw_data holds {data.size}"
            )
        return data
    field = "double_data" if tensor.data_type == _COMPLEX128 else _FIELD_OF.get(info.dtype.name, "int32_data")
    if given and given != [field]:
        raise HeaderError(
            f"{where}: {info.dtype.name} cannot have its data in {given[-1] if field in given else given[0]}"
        )
    if field == "double_data" and info.dtype.name == "U8":
        info = TensorInfo(info.name, DTYPES["F64"], (info.nbytes // 8,))
    elif info.dtype.numpy is None:
        info = TensorInfo(info.name, DTYPES["U8"], (info.nbytes,))
    return _from_field(getattr(tensor, field), field, info, where)


def _from_field(values: Any, field: str, info: TensorInfo, where: str) -> NDArray[np.uint8]:
    """Return the bytes of elements that protobuf holds one by one."""
    parts = 2 if info.dtype.name == "C64" else 1
    expected = info.nbytes * 8 // info.dtype.nbits * parts
    if len(values) != expected:
        raise HeaderError(
            f"{where}: {info.dtype.name} of shape {list(info.shape)} takes {expected} values, "
            f"{field} holds {len(values)}"
        )
    numbers = np.fromiter(values, _ELEMENTS[field], expected)
    if numbers.nbytes == info.nbytes:
        return numbers.view(np.uint8)
    return _narrowed(numbers, info.dtype, where).view(np.uint8)


def _narrowed(found: NDArray[Any], dtype: DType, where: str) -> NDArray[Any]:
    """Return integers as the narrower ones they stand for, or refuse those that do not fit."""
    narrow = _SIGNED.get(dtype.name, _UNSIGNED[dtype.nbits])
    low, high = (0, 1) if dtype.name == "BOOL" else (np.iinfo(narrow).min, np.iinfo(narrow).max)
    outside = np.flatnonzero((found < low) | (found > high))
    if outside.size:
        first = int(outside[0])
        raise HeaderError(f"{where}: element {first} is {found[first]}, {dtype.name} lies in {low}..{high}")
    return found.astype(narrow)


def _place(tensor: Any, info: TensorInfo, path: Path, where: str) -> _Place:
    """Return where external data lies, once its file is known to hold it."""
    if tensor.HasField("raw_data") or any(getattr(tensor, field) for field in _FIELDS):
        raise HeaderError(f"{where}: the data are there twice, in the model and in an external file")
    facts = _pairs(tensor.external_data, f"{where}: external_data")
    location = _checked_location(facts.get("location"), where)
    offset = _decimal(facts.get("offset", "0"), "offset", where)
    _check_inside(location, path, where)
    try:
        with open_regular(path.parent / location) as file:
            size, identity = file.size, file.identity
    except FileNotFoundError:
        raise HeaderError(f"{where}: its external file {shown(location)} is missing") from None
    length = _decimal(facts["length"], "length", where) if "length" in facts else info.nbytes
    if length != info.nbytes:
        raise HeaderError(
            f"{where}: {info.dtype.name} of shape {list(info.shape)} takes {info.nbytes} bytes, "
            f"external_data gives {length}"
        )
    if offset + length > size:
        raise TruncatedError(
            f"{where}: takes {length} bytes from byte {offset} of {shown(location)}, which ends at byte {size}"
        )
    return _Place(path.parent / location, offset, identity)


def _decimal(text: str, key: str, where: str) -> int:
    if not re.fullmatch("[0-9]{1,19}", text):
        raise HeaderError(f"{where}: external_data {key} must be a decimal number, and is {shown(text, 40)}")
    return int(text)


def _checked_location(location: str | None, where: str) -> str:
    """Return a path that stays below the model's folder, on every system alike, or refuse it."""
    if not location:
        raise HeaderError(f"{where}: external_data has no location")
    posix, windows = PurePosixPath(location), PureWindowsPath(location)
    is_plain = "\\" not in location and location.isprintable() and not windows.anchor and not windows.drive
    if not is_plain or posix.is_absolute() or ".." in posix.parts or not posix.name:
        raise HeaderError(
            f"{where}: the external location {shown(location)} is not a path below the model's own folder"
        )
    if max(len(os.fsencode(part)) for part in posix.parts) > 255:
        raise HeaderError(f"{where}: the external location {shown(location, 40)} is too long for the name of a file")
    return location


def _check_inside(location: str, path: Path, where: str) -> None:
    """Refuse a location that links lead out of what a model may draw on."""
    out = leads_out(path.parent, location)
    if out is not None:
        raise HeaderError(
            f"{where}: external location {shown(location)} is a link out of the model's folder, to {shown(str(out))}"
        )


# --- the source -------------------------------------------------------------------------------


class OnnxFile(TensorSource):
    """The weights of one ONNX model, all checked when it is opened.

    Parameters
    ----------
    path : path
        Links are followed. The suffix does not matter here. External data is looked for beside the path as given.

    Raises
    ------
    FormatError
        If the content breaks a rule, see the module.
    MissingExtraError
        If the package `onnx` is not installed.
    OSError
        If the system cannot open or read it or a file of external data.

    Notes
    -----
    Rows may be read from several threads at once. Files of external data are opened for each read: a model
    may have more of them than a process may hold open.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        package()
        self._path = Path(path)
        with open_regular(self._path) as file:
            model = _read_model(file, self._path)
        _check_version(model, self._path)
        self._metadata = _pairs(model.metadata_props, f"{self._path}: metadata_props")
        self._facts = _facts(model, self._path)
        self._infos: dict[str, TensorInfo] = {}
        self._data: dict[str, NDArray[np.uint8] | _Place] = {}
        self._packed: dict[str, str] = {}
        self._left_out: dict[str, str] = {}
        self._closed = False
        walk = TensorWalk(self._path)
        for name, tensor in walk.model(model):
            self._take(name, tensor)
        used = quantized_by_graph(walk.scopes)
        self._uses = uses_by_graph(walk.scopes)
        named = {name: scheme.name for name, scheme in packed_tensors(self._infos).items()}
        self._quantized = {name: use for name, use in (named | used).items() if name in self._infos}
        if walk.left_out:
            self._facts["constants_left_out"] = walk.left_out
        self._graph, self._not_followed = _without_data(model, self._path)
        self._settings = _settings_beside(self._path)
        odd = {"sparse": walk.sparse, "packed": self._packed, "left_out": self._left_out}
        self._facts |= {key: facts for key, facts in odd.items() if facts}

    def _take(self, name: str, tensor: Any) -> None:
        """Take a tensor's bytes out of the message, which then can go."""
        where = f"{self._path}: tensor {shown(name)}"
        if tensor.data_type == STRING:
            self._left_out[name] = _type_and_shape(tensor)
            return
        info = tensor_info(name, tensor, where)
        external = tensor.data_location == EXTERNAL
        self._data[name] = _place(tensor, info, self._path, where) if external else _data(tensor, info, where)
        self._infos[name] = info
        if _packed_bits(tensor) is not None:
            self._packed[name] = _type_and_shape(tensor)

    @property
    def metadata(self) -> dict[str, str]:
        """The model's own `metadata_props`."""
        return dict(self._metadata)

    @property
    def description(self) -> dict[str, Any]:
        """Under "onnx": IR version, operator sets, producer, odd types; "quantized"; "added": what layers only add."""
        added = sorted(name for name in self._infos if self._uses.get(name) == frozenset({ADDS}))
        of_graph = {"quantized": dict(self._quantized), "added": added}
        return {"onnx": dict(self._facts)} | {key: fact for key, fact in of_graph.items() if fact}

    @property
    def notes(self) -> list[str]:
        """What stays in the graph, and what is kept as its packed bytes."""
        left_plain = (
            ("are no numbers and stay in the graph", self._left_out),
            ("are of types that no array has, and kept as packed bytes", self._packed),
        )
        notes = []
        for what, kind_by_name in left_plain:
            if kind_by_name:
                listed = ", ".join(f"{shown(name, 40)} ({kind})" for name, kind in [*kind_by_name.items()][:5])
                notes.append(
                    f"{len(kind_by_name)} tensors {what}: {listed}" + (", ..." if len(kind_by_name) > 5 else "")
                )
        return notes

    def quantized(self) -> Mapping[str, str]:
        """Return what the graph uses as quantized weights, scales and zero points, and the operator that does."""
        return MappingProxyType(self._quantized)

    def uses(self) -> Mapping[str, frozenset[str]]:
        """Return the operators of the graph that take each tensor, see `hhtld.formats.onnx.uses`."""
        return MappingProxyType(self._uses)

    def infos(self) -> Mapping[str, TensorInfo]:
        return MappingProxyType(self._infos)

    def files(self) -> Mapping[str, int]:
        contents = {GRAPH_FILE: self._graph if self._not_followed is None else None, SETTINGS_FILE: self._settings}
        return {name: len(data) for name, data in contents.items() if data is not None and len(data) <= SIDE_FILE_LIMIT}

    def read_file(self, name: str) -> bytes:
        if name not in self.files():
            raise KeyError(name)
        data = self._graph if name == GRAPH_FILE else self._settings
        assert data is not None
        return data

    @property
    def file_notes(self) -> list[str]:
        """That the graph comes along, or why it stays behind."""
        if self._not_followed is not None:
            return [
                f"the graph stays behind: its tensor {shown(self._not_followed)} lies in a file and is none of its "
                f"weights, but an argument of an operator, text or a state of training; these are not followed, and "
                f"the pack cannot become an .onnx again"
            ]
        if GRAPH_FILE not in self.files():
            return [
                f"the graph without its weights takes {len(self._graph):,} bytes, more than the "
                f"{SIDE_FILE_LIMIT >> 20} MiB of a side file, and stays behind: the pack cannot become an .onnx again"
            ]
        return ["the graph comes along without its weights, so that the pack can become an .onnx again"]

    def external_files(self) -> set[Path]:
        """Return the files beside the model that hold its data."""
        return {data.file for data in self._data.values() if isinstance(data, _Place)}

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        info = requested_tensor(self._infos, name, start, stop, self._path, closed=self._closed)
        data = self._data[name]
        shape = (stop - start, info.row_nbytes)
        if isinstance(data, _Place):
            return _external_rows(data, start * info.row_nbytes, shape)
        return data[start * info.row_nbytes : stop * info.row_nbytes].reshape(shape)

    def close(self) -> None:
        self._closed = True
        self._data.clear()


def _without_data(model: Any, path: Path) -> tuple[bytes, str | None]:
    """Take the data of its weights out of a message.

    Return what is left of it, serialized, and the name of a tensor in there that a file holds.
    """
    weights = [tensor for _, tensor in TensorWalk(path).model(model) if tensor.data_type != STRING]
    for tensor in weights:
        for field in (*DATA_FIELDS, "external_data"):
            tensor.ClearField(field)
    graph = bytes(model.SerializeToString(deterministic=True))
    left = next(external_tensors(model, graph, set(map(id, weights))), None)
    return graph, None if left is None else str(left.name)


def external_tensors(model: Any, serialized: bytes, weights: set[int]) -> Iterator[Any]:
    """Yield every tensor of a model that names a file and is none of the weights, which their ids tell."""
    if b"location" in serialized:  # the key that every name of a file has
        for tensor in _tensors(model):
            if id(tensor) not in weights and (tensor.external_data or tensor.data_location == EXTERNAL):
                yield tensor


def _tensors(message: Any) -> Iterator[Any]:
    """Every TensorProto in a message, at any depth."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from _tensors(part)


def _settings_beside(path: Path) -> bytes | None:
    """Return the settings of a voice beside its model, or None for none, and for what is no side file."""
    name = f"{path.name}.json"
    if leads_out(path.parent, name) is not None or not (path.parent / name).is_file():
        return None
    with open_regular(path.parent / name) as file:
        return bytes(file.read(0, file.size)) if file.size <= SIDE_FILE_LIMIT else None


def _external_rows(place: _Place, skip: int, shape: tuple[int, int]) -> NDArray[np.uint8]:
    rows = np.empty(shape, np.uint8)
    if rows.size:
        try:
            file = open_regular(place.file)
        except FileNotFoundError:
            raise HeaderError(f"{place.file}: the file was removed after the model was opened") from None
        with file:
            if not file.is_still(place.identity):
                raise HeaderError(f"{place.file}: the file was replaced after the model was opened")
            file.fill(rows.reshape(-1).data, place.offset + skip)
    return rows
