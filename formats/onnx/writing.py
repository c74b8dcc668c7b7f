"""Writing ONNX models: the graph that travelled as a side file, and the weights of its tensors in their places.

Nothing of a model but its weights is in memory only once: the graph is parsed, each tensor in it gets a mark in place
of its data, and where a mark stands in the serialized message, the weights are streamed into the file. Lengths of the
messages around them are known before. So the file is the one that protobuf would have written, for any size of weights.

Weights go to a file beside the model, ``NAME.onnx.data``, if they did so in the source, or if the model would pass the
2 GiB that protobuf allows. A graph in a pack may say anything: its tensors must be those of the source, in type and
shape, none of them may hold data, and nothing in it may name a file.

Source: https://github.com/onnx/onnx (onnx/onnx.proto, docs/ExternalData.md), https://protobuf.dev (Encoding).
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hhtld.errors import HeaderError, OutputError, shown
from hhtld.formats.onnx.reading import (
    DATA_FIELDS,
    EXTERNAL,
    GRAPH_FILE,
    SETTINGS_FILE,
    SIZE_LIMIT,
    STRING,
    OnnxFile,
    TensorWalk,
    external_tensors,
    package,
    tensor_info,
)
from hhtld.matrix import TensorInfo
from hhtld.progress import Progress, silent
from hhtld.sizes import align_up
from hhtld.sources.contract import TensorSource
from hhtld.sources.rows import row_ranges
from hhtld.storage.atomic import AtomicFile, replacing, shortened, writing

__all__ = ["checked_graph", "external_data_path", "write_onnx"]

_SMALLEST_EXTERNAL = 1024  # bytes, as in the package's own converter
_PAGE = 4096  # which readers that map the file like tensors to begin at
_ROOM = 1 << 20  # for what the lengths of messages grow by
_RAW_DATA, _LENGTH_DELIMITED = 9, 2  # a field of TensorProto, and how such fields lie in a message


def external_data_path(path: Path) -> Path:
    """Return the path of the file that holds a model's weights beside it."""
    return path.with_name(f"{path.name}.data")


# --- the graph ----------------------------------------------------------------------------------


class _Graph(NamedTuple):
    """A parsed graph without data, and its tensors by name."""

    model: Any
    tensors: dict[str, Any]


def checked_graph(source: TensorSource) -> _Graph:
    """Return the graph that came with a source, once every tensor in it is one of the source's.

    Raises
    ------
    HeaderError
        If the source has no graph, or one that does not fit its tensors; the message says what is missing.
    """
    if "onnx" not in source.description:
        raise HeaderError(
            "an .onnx file holds a graph, which says how the weights are used, and the source, which did not come from "
            "an ONNX model, has none; nothing is written. Write a folder (hhtld convert SRC DST/) and export the model "
            "with the library that loads it"
        )
    if GRAPH_FILE not in source.files():
        raise HeaderError(
            f"the source came from an ONNX model and lacks its graph, the side file {GRAPH_FILE!r}: it was made with "
            f"--no-files or by an earlier release, or the graph stayed behind with a note: it was too large, or "
            f"named files of its own; nothing is written. Convert the .onnx anew"
        )
    model = _parsed(source.read_file(GRAPH_FILE))
    infos, tensors = source.infos(), {}
    for name, tensor in TensorWalk(Path(GRAPH_FILE)).model(model):
        if tensor.data_type == STRING:
            continue
        where = f"{GRAPH_FILE}: tensor {shown(name)}"
        if name not in infos:
            raise HeaderError(f"{where} is not among the source's tensors")
        if any(getattr(tensor, field) for field in DATA_FIELDS) or tensor.external_data:
            raise HeaderError(f"{where} holds data, and a graph that travels alone has none")
        info, in_graph = infos[name], tensor_info(name, tensor, where)
        if (in_graph.dtype, in_graph.shape) != (info.dtype, info.shape):
            raise HeaderError(
                f"{where} is {in_graph.dtype.name} {list(in_graph.shape)}, the source has {info.dtype.name} "
                f"{list(info.shape)}"
            )
        tensors[name] = tensor
    for name in infos:
        if name not in tensors:
            raise HeaderError(f"{GRAPH_FILE}: the source's tensor {shown(name)} is not in the graph")
    _refuse_files(model, set(map(id, tensors.values())))
    return _Graph(model, tensors)


def _parsed(data: bytes) -> Any:
    from google.protobuf.message import DecodeError

    model = package().ModelProto()
    try:
        model.ParseFromString(data)
    except (DecodeError, UnicodeDecodeError, MemoryError) as error:
        raise HeaderError(f"{GRAPH_FILE}: not a sound ONNX model: {shown(str(error))[1:-1]}") from None
    if not model.HasField("graph"):
        raise HeaderError(f"{GRAPH_FILE}: not an ONNX model: it has no graph")
    return model


def _refuse_files(model: Any, known: set[int]) -> None:
    """Refuse a graph in which anything but the source's own tensors names a file."""
    for _ in external_tensors(model, model.SerializeToString(), known):
        raise HeaderError(f"{GRAPH_FILE}: a tensor that is none of the source's names a file, which is not followed")


# --- where the data goes ------------------------------------------------------------------------


class _External(NamedTuple):
    """A tensor whose data lies in the file beside the model, from `offset` on."""

    info: TensorInfo
    offset: int


def _place_externals(graph: _Graph, infos: dict[str, TensorInfo], location: str) -> list[_External]:
    """Say in the graph which tensors lie in the file beside it, and return these."""
    nbytes = sum(info.nbytes for name, info in infos.items() if graph.tensors[name].data_location != EXTERNAL)
    too_large = len(graph.model.SerializeToString()) + nbytes + _ROOM > SIZE_LIMIT
    placed, end = [], 0
    for name, tensor in graph.tensors.items():
        info = infos[name]
        goes = tensor.data_location == EXTERNAL or (too_large and info.nbytes >= _SMALLEST_EXTERNAL)
        tensor.ClearField("data_location")
        if goes and info.nbytes:
            offset = align_up(end, _PAGE if info.nbytes >= _PAGE else 64)
            placed.append(_External(info, offset))
            end = offset + info.nbytes
            tensor.data_location = EXTERNAL
            for key, value in (("location", location), ("offset", offset), ("length", info.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
    return placed


# --- the message --------------------------------------------------------------------------------


class _Message:
    """A serialized message in which weights take the place of marks, as pieces to write one after another.

    Attributes
    ----------
    pieces : list of bytes or TensorInfo
    nbytes : int
        Of all of them.
    """

    def __init__(self, graph: _Graph, infos: dict[str, TensorInfo]) -> None:
        self._mark = secrets.token_bytes(16)  # which no graph holds
        self._weights: dict[bytes, TensorInfo] = {}
        for number, (name, tensor) in enumerate(graph.tensors.items()):
            if tensor.data_location != EXTERNAL:
                tensor.raw_data = mark = self._mark + number.to_bytes(4, "little")
                self._weights[mark] = infos[name]
        self._data = graph.model.SerializeToString()
        self.pieces, self.nbytes = self._filled(0, len(self._data), type(graph.model).DESCRIPTOR)

    def _filled(self, at: int, end: int, descriptor: Any) -> tuple[list[bytes | TensorInfo], int]:
        """Return the pieces of the message in bytes [at, end), and their bytes."""
        pieces: list[bytes | TensorInfo] = []
        plain, nbytes = at, 0
        while self._data.find(self._mark, at, end) >= 0:
            tag, body = self._varint(at)
            number, wire_type = tag >> 3, tag & 7
            if wire_type != _LENGTH_DELIMITED:
                at = self._varint(body)[1] if wire_type == 0 else body + (8 if wire_type == 1 else 4)
                continue
            length, begin = self._varint(body)
            if self._data.find(self._mark, begin, begin + length) >= 0:
                if descriptor.name == "TensorProto" and number == _RAW_DATA:
                    info = self._weights[self._data[begin : begin + length]]
                    inner: list[bytes | TensorInfo] = [info]
                    inner_nbytes = info.nbytes
                else:
                    field = descriptor.fields_by_number[number]
                    inner, inner_nbytes = self._filled(begin, begin + length, field.message_type)
                head = self._data[plain:body] + _as_varint(inner_nbytes)
                pieces += [head, *inner]
                nbytes += len(head) + inner_nbytes
                plain = begin + length
            at = begin + length
        pieces.append(self._data[plain:end])
        return pieces, nbytes + end - plain

    def _varint(self, at: int) -> tuple[int, int]:
        """Return the number that begins at a byte, and where it ends."""
        value = shift = 0
        while True:
            byte = self._data[at]
            value |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                return value, at


def _as_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


# --- the files ----------------------------------------------------------------------------------


def write_onnx(source: TensorSource, path: Path, progress: Progress = silent) -> list[str]:
    """Write what came from an ONNX model as one again; tensors stream, block by block. Return what a user should know.

    A model of one file is replaced atomically. Of a pair, the old model is moved aside first, then the weights beside
    it take their name, and the model comes last: whenever this ends, no model stands beside weights of another. If it
    fails, the old pair comes back. If it is killed in between, the next run goes on. Settings of a voice that came
    along are written beside it, too.

    Raises
    ------
    HeaderError
        As `checked_graph`, before anything is written.
    OutputError
        If a file cannot be written, or one that is somebody else's stands in its place.
    """
    graph, infos = checked_graph(source), dict(source.infos())
    data_path = external_data_path(path)
    externals = _place_externals(graph, infos, data_path.name)
    settings = source.read_file(SETTINGS_FILE) if SETTINGS_FILE in source.files() else None
    settings_path = path.with_name(f"{path.name}.json")
    _check_free(source, path, data_path if externals else None, settings_path, settings)
    message = _Message(graph, infos)
    with contextlib.ExitStack() as stack:
        move_aside = stack.enter_context(_earlier_pair(path, data_path))
        model_file = stack.enter_context(replacing(path))  # left last, so it takes its name last
        for piece in message.pieces:
            if isinstance(piece, bytes):
                model_file.write(piece)
            else:
                _write_tensor(model_file, source, piece, progress)
        if model_file.size != message.nbytes:
            raise ValueError(f"{path}: {model_file.size} bytes were written, expected {message.nbytes}")
        if settings is not None:
            stack.enter_context(replacing(settings_path)).write(settings)
        if externals:
            data_file = stack.enter_context(replacing(data_path, check=lambda _: move_aside()))
            for info, offset in externals:
                data_file.write(bytes(offset - data_file.size))
                _write_tensor(data_file, source, info, progress)
    written = {data_path: bool(externals), settings_path: settings is not None}
    ours = [file.name for file, is_ours in written.items() if is_ours]
    others = [file.name for file, is_ours in written.items() if not is_ours and file.exists()]
    notes = [f"{' and '.join(ours)} beside {path.name} belong to it"] if ours else []
    return notes + [f"{name} beside {path.name} was there before and does not belong to it" for name in others]


def _set_aside_path(path: Path) -> Path:
    """Return the hidden name of the model that stood at a path.

    A file has it, an empty one if no model stood there, whenever weights may stand without their model. So it tells
    the next run, if this one is killed, that the weights are ours to replace.
    """
    return path.with_name(f".{shortened(path.name)}.before.tmp")


@contextlib.contextmanager
def _earlier_pair(path: Path, data_path: Path) -> Iterator[Callable[[], None]]:
    """Yield what moves an earlier model and its weights aside; they come back if the block raises, and else go."""
    hidden = {path: _set_aside_path(path), data_path: path.with_name(f".{shortened(path.name)}.data.before.tmp")}
    was_killed = not os.path.lexists(path) and hidden[path].exists()
    stood: list[Path] = []
    moved: list[Path] = []
    began = False

    def move_aside() -> None:
        nonlocal began, stood
        stood, began = [file for file in hidden if os.path.lexists(file)], True
        if path not in stood:
            hidden[path].touch()
        for file in stood:
            try:
                with writing(file):
                    file.replace(hidden[file])
            finally:  # an interruption may come after the move
                if not os.path.lexists(file):
                    moved.append(file)

    try:
        yield move_aside
    except BaseException:
        if began:
            for file in hidden:  # the model first
                if file in moved or file not in stood:
                    with writing(file):
                        file.unlink(missing_ok=True)
            for file in reversed(moved):
                with writing(Path(f"{file}, and what stood there is now {hidden[file]}")):
                    hidden[file].replace(file)
            if path not in stood and not was_killed:
                hidden[path].unlink(missing_ok=True)
        raise
    for file in hidden.values():
        with contextlib.suppress(OSError):  # the new model is complete
            file.unlink()


def _check_free(
    source: TensorSource, path: Path, data_path: Path | None, settings_path: Path, settings: bytes | None
) -> None:
    """Raise if a file beside the model is one that this model does not replace."""
    if data_path is not None and data_path.exists():
        if isinstance(source, OnnxFile) and any(data_path.samefile(file) for file in source.external_files()):
            raise OutputError(None, f"cannot write {data_path}: the source's weights are in it; give another name")
        if not path.exists() and not _set_aside_path(path).exists():
            raise OutputError(None, f"cannot write {data_path}: it exists, and {path.name} does not; give another name")
    if settings is not None and settings_path.exists() and settings_path.read_bytes() != settings:
        raise OutputError(None, f"cannot write {settings_path}: it exists and holds other settings; give another name")


def _write_tensor(out: AtomicFile, source: TensorSource, info: TensorInfo, progress: Progress) -> None:
    expected = out.size + info.nbytes
    if info.nbytes:
        for start, stop in row_ranges(info.n_rows, info.row_nbytes):
            rows = source.read_rows(info.name, start, stop)
            out.write(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)
    if out.size != expected:
        given = info.nbytes + out.size - expected
        raise ValueError(f"tensor {shown(info.name)}: the source gave {given} bytes, expected {info.nbytes}")
    progress("write", info.name, info.nbytes)
