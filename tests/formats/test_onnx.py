"""ONNX: where weights stand, every type, every malformation by name, external data, and the way to .hhtld."""

from __future__ import annotations

import itertools
import json
import random
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import hhtld
from hhtld.commands.main import main
from hhtld.errors import (
    BadMagicError,
    FormatError,
    HeaderError,
    MissingExtraError,
    TruncatedError,
    UnsupportedVersionError,
)
from hhtld.formats import get_format, open_source
from hhtld.formats.onnx import OnnxFile
from hhtld.sources.regimes import choose_regimes
from tests.conftest import low_rank

onnx = pytest.importorskip("onnx", reason="needs the package of the extra 'onnx'")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402 - once it is known to be there

FLOAT4E2M1 = 23  # onnx 1.18 names it
W = np.arange(12, dtype=np.float32).reshape(3, 4)

# --- building models --------------------------------------------------------------------------


def model(*tensors: Any, nodes: tuple[Any, ...] = (), **properties: str) -> Any:
    """A model of these initializers and nodes, sound as far as this reader looks."""
    graph = helper.make_graph(list(nodes), "tiny", [], [], list(tensors))
    made = helper.make_model(graph, producer_name="tests", opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    helper.set_model_props(made, properties)
    return made


def w(**changes: Any) -> Any:
    """The tensor w with fields changed; None clears one."""
    made = numpy_helper.from_array(W, "w")
    for field, value in changes.items():
        made.ClearField(field)
        if isinstance(value, list):
            getattr(made, field).extend(value)
        elif value is not None:
            setattr(made, field, value)
    return made


def external(location: str | None = "w.bin", *, again: str | None = None, **facts: str) -> Any:
    """The tensor w in a file beside the model; `again` is a key to give twice."""
    made = w(raw_data=None, data_location=TensorProto.EXTERNAL)
    for key, value in {**({} if location is None else {"location": location}), **facts}.items():
        made.external_data.add(key=key, value=value)
    if again is not None:
        made.external_data.add(key=again, value="0")
    return made


def changed(change: Callable[[Any], object]) -> bytes:
    made = model(w())
    change(made)
    return bytes(made.SerializeToString())


def of(*tensors: Any, **properties: str) -> bytes:
    return bytes(model(*tensors, **properties).SerializeToString())


def constant(name: str, value: NDArray[Any]) -> Any:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value, "ignored"))


def nested_body(node: str, name: str) -> bytes:
    """A Loop of this name around one initializer."""
    body = helper.make_graph([], "body", [], [], [w(name=name)])
    return bytes(model(nodes=(helper.make_node("Loop", [], ["y"], name=node, body=body),)).SerializeToString())


def sparse(name: str = "s") -> Any:
    values = numpy_helper.from_array(np.ones(1, np.float32), name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(np.zeros(1, np.int64), "i"), [3, 4])


def nested(depth: int) -> bytes:
    """Graphs within graphs, `depth` levels of messages."""

    def field(number: int, data: bytes) -> bytes:
        length, out = len(data), b""
        while length > 127:
            out, length = out + bytes([length & 127 | 128]), length >> 7
        return bytes([number << 3 | 2]) + out + bytes([length]) + data

    data = b""
    for level in range(depth):
        data = field((6, 5, 1)[level % 3], data)
    return b"\x08\x0a" + field(7, data)


def renamed(data: bytes, name: bytes, other: bytes) -> bytes:
    """Replace a name by another of its length, which the package itself would refuse to set."""
    assert len(name) == len(other)
    assert data.count(name) == 1
    return data.replace(name, other)


SOUND = of(w())
MALFORMED: dict[str, tuple[bytes, type[FormatError], str]] = {
    # the message
    "empty file": (b"", TruncatedError, "the file is empty"),
    "not protobuf": (b"\xff" * 64, HeaderError, "not a sound ONNX model, or one cut short"),
    "cut in the data": (SOUND[:60], HeaderError, "cut short"),
    "a length of 2^32 - 1": (b"\x08\x0a\x3a\xff\xff\xff\xff\x0f", HeaderError, "cut short"),
    "messages without end": (nested(1998), HeaderError, "not a sound ONNX model"),
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", BadMagicError, "git lfs pull"),
    "HTML page": (b"<!DOCTYPE html><html></html>", BadMagicError, "an HTML page"),
    "fields that nobody knows": (b"\xf8\x3f\x01" * 20, BadMagicError, "not an ONNX model: it has no graph"),
    "no graph": (changed(lambda m: m.ClearField("graph")), BadMagicError, "it has no graph"),
    "no IR version": (changed(lambda m: m.ClearField("ir_version")), BadMagicError, "it has no ir_version"),
    "IR version 0": (changed(lambda m: setattr(m, "ir_version", 0)), HeaderError, "IR versions count from 1"),
    "IR version -1": (changed(lambda m: setattr(m, "ir_version", -1)), HeaderError, "IR versions count from 1"),
    "IR version 99": (
        changed(lambda m: setattr(m, "ir_version", 99)),
        UnsupportedVersionError,
        "IR version is 99, and the installed package onnx reads up to",
    ),
    "no operator set": (changed(lambda m: m.ClearField("opset_import")), HeaderError, "names no operator set"),
    "producer not UTF-8": (renamed(SOUND, b"tests", b"te\xffts"), HeaderError, "producer_name is not UTF-8"),
    "graph's name not UTF-8": (renamed(SOUND, b"tiny", b"t\xffny"), HeaderError, "the graph's name is not UTF-8"),
    "property twice": (
        changed(lambda m: [m.metadata_props.add(key="k", value=v) for v in "ab"]),
        HeaderError,
        "metadata_props: key 'k' is given twice",
    ),
    "property not UTF-8": (renamed(of(w(), kk="vv"), b"vv", b"v\xff"), HeaderError, "the value of 'kk' is not UTF-8"),
    # names
    "no name": (of(w(), w(name=None)), HeaderError, "initializer 1 has no name"),
    "empty name": (of(w(name="")), HeaderError, "initializer 0 has no name"),
    "name not UTF-8": (
        renamed(of(w(name="wwww")), b"wwww", b"w\xffww"),
        HeaderError,
        "initializer 0: its name is not UTF-8",
    ),
    "name twice": (of(w(), w()), HeaderError, "tensor 'w' is given twice"),
    "name too long": (of(w(name="n" * 65536)), HeaderError, "initializer 0: .* the limit is 65535"),
    "name not UTF-8 inside a body": (
        renamed(nested_body("i\n\x1b[2J", "cccc"), b"cccc", b"c\xffcc"),
        HeaderError,
        r"initializer 0 in 'i\\n\\x1b\[2J/body/': its name is not UTF-8",
    ),
    "name of a body too long": (nested_body("n" * 2000, "c"), HeaderError, "its name is longer than 1024 characters"),
    "name that safetensors reserves": (of(w(name="__metadata__")), HeaderError, "not a tensor name"),
    "constant without output": (
        model(nodes=(helper.make_node("Constant", [], [], value=w()),)).SerializeToString(),
        HeaderError,
        "Constant of node 0 has no name",
    ),
    "constant of an initializer's name": (
        model(w(), nodes=(constant("w", W),)).SerializeToString(),
        HeaderError,
        "twice",
    ),
    # types and shapes
    "no type": (of(w(data_type=None)), HeaderError, "'w': type UNDEFINED cannot be read; known: BOOL"),
    "type 99": (of(w(data_type=99)), HeaderError, "'w': the unknown type 99 cannot be read"),
    "type -1": (of(w(data_type=-1)), HeaderError, "'w': the unknown type -1 cannot be read"),
    "4-bit integers too long": (of(w(data_type=TensorProto.INT4)), HeaderError, "takes 6 bytes, raw_data holds 48"),
    "negative axis": (of(w(dims=[3, -4])), HeaderError, "'w': every size must lie in 0..2.48"),
    "axis of 2^63 - 1": (of(w(dims=[2**63 - 1])), HeaderError, "'w': every size must lie in 0..2.48"),
    "33 axes": (of(w(dims=[1] * 33)), HeaderError, "a list of at most 32 sizes, got 33"),
    "sizes whose product wraps to 12": (of(w(dims=[2**32, 2**32, 12])), HeaderError, "more than 2.63 bytes"),
    "larger than its data": (of(w(dims=[2**20, 2**20])), HeaderError, "raw_data holds 48"),
    "odd 4-bit floats too long": (of(w(data_type=FLOAT4E2M1, dims=[3])), HeaderError, "takes 2 bytes, raw_data holds"),
    # data
    "raw_data short by a byte": (
        of(w(raw_data=W.tobytes()[:-1])),
        HeaderError,
        r"\[3, 4\] takes 48 bytes, raw_data holds 47",
    ),
    "raw_data long by a byte": (of(w(raw_data=W.tobytes() + b"x")), HeaderError, "raw_data holds 49"),
    "no data": (of(w(raw_data=None)), HeaderError, "takes 12 values, float_data holds 0"),
    "data twice": (of(w(float_data=[1.0] * 12)), HeaderError, "data are there twice, in raw_data and in float_data"),
    "float_data short": (of(w(raw_data=None, float_data=[1.0] * 11)), HeaderError, "float_data holds 11"),
    "floats in int64_data": (
        of(w(raw_data=None, int64_data=[1] * 12)),
        HeaderError,
        "F32 cannot have its data in int64",
    ),
    "two fields": (
        of(w(raw_data=None, float_data=[1.0] * 12, int32_data=[1])),
        HeaderError,
        "F32 cannot have its data in int32_data",
    ),
    "4-bit floats in int32_data, short": (
        of(w(raw_data=None, data_type=FLOAT4E2M1, int32_data=[1] * 5)),
        HeaderError,
        "takes 6 values, int32_data holds 5",
    ),
    "4-bit floats in int64_data": (
        of(w(raw_data=None, data_type=FLOAT4E2M1, int64_data=[1] * 6)),
        HeaderError,
        "F4 cannot have its data in int64_data",
    ),
    "int8 of 128": (
        of(w(raw_data=None, data_type=TensorProto.INT8, int32_data=[1] * 11 + [128])),
        HeaderError,
        "element 11 is 128, I8 lies in -128..127",
    ),
    "uint8 of -1": (
        of(w(raw_data=None, data_type=TensorProto.UINT8, int32_data=[-1] + [1] * 11)),
        HeaderError,
        "element 0 is -1, U8 lies in 0..255",
    ),
    "half of 65536": (
        of(w(raw_data=None, data_type=TensorProto.FLOAT16, int32_data=[65536] * 12)),
        HeaderError,
        "element 0 is 65536, F16 lies in 0..65535",
    ),
    "bool of 2": (
        of(w(raw_data=None, data_type=TensorProto.BOOL, int32_data=[2] * 12)),
        HeaderError,
        "element 0 is 2, BOOL lies in 0..1",
    ),
    "uint32 of 2^32": (
        of(w(raw_data=None, data_type=TensorProto.UINT32, uint64_data=[2**32] * 12)),
        HeaderError,
        "U32 lies in 0..4294967295",
    ),
    "segment": (
        changed(lambda m: m.graph.initializer[0].segment.SetInParent()),
        HeaderError,
        "'w': this is one segment",
    ),
    "sparse initializer without a name": (
        changed(lambda m: m.graph.sparse_initializer.add().CopyFrom(sparse(""))),
        HeaderError,
        "sparse initializer 0 has no name",
    ),
    # external data
    "no location": (of(external(None)), HeaderError, "'w': external_data has no location"),
    "empty location": (of(external("")), HeaderError, "external_data has no location"),
    "parent": (of(external("../w.bin")), HeaderError, "'../w.bin' is not a path below the model's own folder"),
    "parent inside": (of(external("a/../../w.bin")), HeaderError, "not a path below"),
    "absolute": (of(external("/etc/passwd")), HeaderError, "'/etc/passwd' is not a path below"),
    "drive": (of(external("C:w.bin")), HeaderError, "not a path below"),
    "network": (of(external("//host/share/w.bin")), HeaderError, "not a path below"),
    "backslashes": (of(external("..\\w.bin")), HeaderError, "not a path below"),
    "dot": (of(external(".")), HeaderError, "not a path below"),
    "NUL": (of(external("w.bin\0.txt")), HeaderError, "not a path below"),
    "newline": (of(external("w\n.bin")), HeaderError, "not a path below"),
    "long part": (of(external("x" * 256)), HeaderError, "too long for the name of a file"),
    "missing file": (of(external("none.bin")), HeaderError, "its external file 'none.bin' is missing"),
    "folder": (of(external("folder")), BadMagicError, "folder: not a regular file"),
    "negative offset": (of(external(offset="-1")), HeaderError, "offset must be a decimal number, and is '-1'"),
    "offset in words": (of(external(offset="one")), HeaderError, "offset must be a decimal number"),
    "offset of other digits": (of(external(offset="\u0661")), HeaderError, "offset must be a decimal number"),
    "offset of 10^5000": (of(external(offset="1" + "0" * 5000)), HeaderError, "offset must be a decimal number"),
    "offset past the end": (of(external(offset="64", length="48")), TruncatedError, "which ends at byte 64"),
    "offset of 10^18": (of(external(offset="1" + "0" * 18, length="48")), TruncatedError, "ends at byte 64"),
    "length short": (of(external(length="47")), HeaderError, "takes 48 bytes, external_data gives 47"),
    "length of 10^18": (of(external(length="1" + "0" * 18)), HeaderError, "takes 48 bytes"),
    "the rest is too short": (of(external(offset="17")), TruncatedError, "takes 48 bytes from byte 17"),
    "offset twice": (of(external(offset="0", again="offset")), HeaderError, "key 'offset' is given twice"),
    "inside and outside": (
        of(w(data_location=TensorProto.EXTERNAL)),
        HeaderError,
        "data are there twice, in the model and in an external file",
    ),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "w.bin").write_bytes(bytes(16) + W.tobytes())
    (tmp_path / "folder").mkdir()
    return tmp_path / "m.onnx"


def saved(path: Path, made: Any) -> Path:
    path.write_bytes(made.SerializeToString())
    return path


# --- malformations ----------------------------------------------------------------------------


@pytest.mark.parametrize("case", MALFORMED)
def test_malformation_is_refused_by_name(path: Path, case: str) -> None:
    data, kind, message = MALFORMED[case]
    path.write_bytes(data)
    with pytest.raises(FormatError, match=message) as caught:
        open_source(path)
    assert type(caught.value) is kind
    assert str(caught.value).startswith(str(path.parent))


def test_the_model_they_are_made_from_is_sound(path: Path) -> None:
    path.write_bytes(SOUND)
    with open_source(path) as source:
        assert np.array_equal(source.read_tensor("w"), W)


def consumed(path: Path) -> dict[str, bytes]:
    """Read everything of a file that opens; what it says of itself must hold."""
    with OnnxFile(path) as source:
        json.dumps([source.metadata, source.description], allow_nan=False).encode("ascii")
        found = {name: source.read_rows(name, 0, info.n_rows) for name, info in source.infos().items()}
        assert {name: rows.nbytes for name, rows in found.items()} == {n: i.nbytes for n, i in source.infos().items()}
        return {name: rows.tobytes() for name, rows in found.items()}


def varied() -> Any:
    """A model with data in every place."""
    typed = helper.make_tensor("typed", TensorProto.INT16, [3], [1, -2, 300])
    branch = helper.make_graph([constant("c", W)], "then", [], [], [w(name="t")])
    nodes = (helper.make_node("If", ["x"], ["y"], name="if", then_branch=branch), constant("d", W[0]))
    floats = w(name="v", raw_data=None, float_data=[float(n) for n in range(12)])
    return model(w(), typed, floats, nodes=nodes, key="value")


def test_truncation_at_every_byte(path: Path) -> None:
    made = varied()
    whole = made.SerializeToString()
    path.write_bytes(whole)
    complete = consumed(path)
    refused = 0
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        try:
            # protobuf has no end mark: a model that only lost a property at its end is a sound one
            assert consumed(path) == complete
            assert len(whole) - size <= made.metadata_props[0].ByteSize() + 2
        except FormatError:
            refused += 1
    assert refused >= len(whole) - 3


@pytest.mark.parametrize("seed", range(3))
def test_damaged_files_are_refused_or_sound(path: Path, seed: int) -> None:
    rng, whole, opened = random.Random(seed), varied().SerializeToString(), 0
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 1, 1, 2, 8))):
            at = rng.randrange(len(whole))
            damaged[at] = rng.choice((damaged[at] ^ 1 << rng.randrange(8), 0, 255, rng.randrange(256)))
        path.write_bytes(damaged)
        try:
            consumed(path)
            opened += 1
        except FormatError:
            pass
    assert 0 < opened < 200


def test_file_above_what_protobuf_holds_is_refused_before_it_is_read(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**31)
    tracemalloc.start()
    with pytest.raises(HeaderError, match="a protobuf message has at most 2147483647"):
        OnnxFile(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_small_file_takes_little_memory_and_time(path: Path) -> None:
    path.write_bytes(b"\x08\x0a\x42\x02\x10\x15\x3a\xc0\x84\x3d" + b"\x2a\x00" * 500_000)
    started = time.process_time()
    with pytest.raises(HeaderError, match="initializer 0 has no name"):
        OnnxFile(path)
    assert time.process_time() - started < 5


def test_suffix_decides(tmp_path: Path) -> None:
    assert get_format("onnx").sniff(tmp_path / "x.ONNX", b"")
    assert not get_format("onnx").sniff(tmp_path / "x.bin", SOUND[:64])
    (tmp_path / "folder.onnx").mkdir()
    assert not get_format("onnx").sniff(tmp_path / "folder.onnx", b"")


def test_missing_package_is_named(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_bytes(SOUND)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hhtld\[onnx\]'"):
        open_source(path)
    assert main(["inspect", str(path)]) == 2
    assert "pip install 'hhtld[onnx]'" in capsys.readouterr().err


# --- types ------------------------------------------------------------------------------------

# The type's number, the field its elements lie in, the integers that stand for them there, and values.
TYPES: dict[str, tuple[int, str, str | None, NDArray[Any]]] = {
    "F32": (1, "float_data", None, np.array([[1.5, -0.0]], np.float32)),
    "U8": (2, "int32_data", None, np.array([0, 255], np.uint8)),
    "I8": (3, "int32_data", None, np.array([-128, 127], np.int8)),
    "U16": (4, "int32_data", None, np.array([0, 65535], np.uint16)),
    "I16": (5, "int32_data", None, np.array([-32768, 32767], np.int16)),
    "I32": (6, "int32_data", None, np.array([-(2**31), 2**31 - 1], np.int32)),
    "I64": (7, "int64_data", None, np.array([-(2**63), 2**63 - 1])),
    "BOOL": (9, "int32_data", "u1", np.array([[True], [False]])),
    "F16": (10, "int32_data", "u2", np.array([1.5, -2, 65504], np.float16)),
    "F64": (11, "double_data", None, np.array([1e300, -1])),
    "U32": (12, "uint64_data", None, np.array([0, 2**32 - 1], np.uint32)),
    "U64": (13, "uint64_data", None, np.array([0, 2**64 - 1], np.uint64)),
    "C64": (14, "float_data", "f4", np.array([1 + 2j, 3 - 4j], np.complex64)),
    "BF16": (16, "int32_data", "u2", np.array([1.5, -2], ml_dtypes.bfloat16)),
    "F8_E4M3": (17, "int32_data", "u1", np.array([1.5, -2], ml_dtypes.float8_e4m3fn)),
    "F8_E4M3FNUZ": (18, "int32_data", "u1", np.array([1.5, -2], ml_dtypes.float8_e4m3fnuz)),
    "F8_E5M2": (19, "int32_data", "u1", np.array([1.5, -2], ml_dtypes.float8_e5m2)),
    "F8_E5M2FNUZ": (20, "int32_data", "u1", np.array([1.5, -2], ml_dtypes.float8_e5m2fnuz)),
    "F8_E8M0": (24, "int32_data", "u1", np.array([2, 0.5], ml_dtypes.float8_e8m0fnu)),
}


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("dtype", TYPES)
def test_every_type_in_raw_data_and_in_its_own_field(path: Path, dtype: str, raw: bool) -> None:
    number, field, bits, values = TYPES[dtype]
    made = TensorProto(name="x", data_type=number, dims=values.shape)
    if raw:
        made.raw_data = values.tobytes()
    else:
        getattr(made, field).extend((values if bits is None else values.view(bits)).reshape(-1).tolist())
    with OnnxFile(saved(path, model(made))) as source:
        assert source.infos()["x"].dtype.name == dtype
        assert source.read_tensor("x").dtype == values.dtype
        assert source.read_tensor("x").tobytes() == values.tobytes()
    if number in TensorProto.DataType.values() and dtype != "C64":  # onnx 1.17 stumbles over its own complex numbers
        official = numpy_helper.to_array(made)
        assert official.dtype != values.dtype or official.tobytes() == values.tobytes()


def test_packed_floats_pass_through(path: Path) -> None:
    four = TensorProto(name="four", data_type=FLOAT4E2M1, dims=[2, 4], raw_data=b"\x10\x32\x54\x76")
    with OnnxFile(saved(path, model(four))) as source:
        assert source.infos()["four"].dtype.name == "F4"
        assert source.read_rows("four", 1, 2).tobytes() == b"\x54\x76"


def test_empty_and_scalar_tensors(path: Path) -> None:
    empty = TensorProto(name="roi", data_type=TensorProto.FLOAT, dims=[0])
    scalar = numpy_helper.from_array(np.array(2.5, np.float32), "s")
    with OnnxFile(saved(path, model(empty, scalar))) as source:
        assert source.read_tensor("roi").shape == (0,)
        assert source.read_tensor("s") == 2.5


# --- where weights stand ----------------------------------------------------------------------


def test_initializers_constants_and_bodies(path: Path) -> None:
    def body(name: str) -> Any:
        return helper.make_graph([constant("c", W)], name, [], [], [w(name="own")])

    nodes = (
        constant("table", W),
        constant("bias", W[0]),
        constant("axes", np.array([1, 2])),
        constant("one", np.array(1, np.float32)),
        helper.make_node("Constant", [], ["k"], value_float=1.0),
        helper.make_node("ConstantOfShape", ["s"], ["z"], value=numpy_helper.from_array(np.zeros(1, np.float32))),
        helper.make_node("If", ["x"], ["y"], name="choice", then_branch=body("a"), else_branch=body("b")),
        helper.make_node("Loop", ["x"], ["unnamed"], body=body("c")),
    )
    made = model(w(), nodes=nodes)
    function = helper.make_function("here", "f", [], ["c"], [constant("c", W)], [helper.make_opsetid("", 21)])
    made.functions.append(function)
    with OnnxFile(saved(path, made)) as source:
        assert set(source.infos()) == {
            *("w", "table", "bias", "f/c", "unnamed/body/own", "unnamed/body/c"),
            *(f"choice/{side}_branch/{name}" for side in ("then", "else") for name in ("own", "c")),
        }
        assert source.description["onnx"]["constants_left_out"] == 3
        assert np.array_equal(source.read_tensor("choice/then_branch/c"), W)


def test_metadata_and_description(path: Path) -> None:
    with OnnxFile(saved(path, model(w(), author="ä", empty=""))) as source:
        assert source.metadata == {"author": "ä", "empty": ""}
        assert source.description == {
            "onnx": {
                "producer_name": "tests",
                "ir_version": 10,
                "opsets": [{"domain": "", "version": 21}],
                "graph": "tiny",
            }
        }


# --- rows -------------------------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 301), max_size=8), outside=st.booleans())
def test_rows_in_pieces_are_the_whole(tmp_path: Path, cuts: list[int], outside: bool) -> None:
    whole = low_rank(301, 17)
    path = tmp_path / f"{outside}.onnx"
    if not path.exists():
        made = numpy_helper.from_array(whole, "x")
        if outside:
            (tmp_path / "x.bin").write_bytes(bytes(3) + whole.tobytes())
            made = external("x.bin", offset="3")
            made.MergeFrom(TensorProto(name="x"))
            made.dims[:] = whole.shape
        saved(path, model(made))
    edges = sorted({0, 301, *cuts})
    with OnnxFile(path) as source:
        pieces = [source.read_rows("x", a, b) for a, b in itertools.pairwise(edges)]
    assert np.concatenate(pieces).tobytes() == whole.tobytes()


def test_rows_inside_the_model_are_views(path: Path) -> None:
    with OnnxFile(saved(path, model(w()))) as source:
        first, second = source.read_rows("w", 0, 2), source.read_rows("w", 1, 3)
        assert np.shares_memory(first, second)
        assert first.flags.c_contiguous


def test_bad_requests_are_value_errors(path: Path) -> None:
    source = OnnxFile(saved(path, model(w())))
    for start, stop in ((-1, 1), (1, 0), (0, 4), (4, 4)):
        with pytest.raises(ValueError, match=r"tensor 'w' has rows 0\.\.3"):
            source.read_rows("w", start, stop)
    with pytest.raises(ValueError, match="no tensor 'v'"):
        source.read_rows("v", 0, 1)
    source.close()
    with pytest.raises(ValueError, match="is closed"):
        source.read_rows("w", 0, 1)


# --- external data ----------------------------------------------------------------------------


@pytest.mark.parametrize("location", ["w.bin", "./w.bin", "folder/w.bin", "folder/linked.bin"])
def test_external_data_is_read_by_position(path: Path, location: str) -> None:
    (path.parent / "folder" / "w.bin").write_bytes((path.parent / "w.bin").read_bytes())
    (path.parent / "folder" / "linked.bin").symlink_to(path.parent / "w.bin")
    rest = external(location, offset="16")
    rest.name = "rest"
    with OnnxFile(saved(path, model(external(location, offset="16", length="48"), rest))) as source:
        assert np.array_equal(source.read_tensor("w"), W)
        assert np.array_equal(source.read_tensor("rest"), W)
        assert source.read_rows("w", 1, 2).tobytes() == W[1].tobytes()


def test_links_of_a_hubs_cache_are_followed(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "main" / "onnx"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "1").write_bytes(W.tobytes())
    saved(blobs / "0", model(external("m.onnx_data")))
    for blob, name in enumerate(("m.onnx", "m.onnx_data")):
        (snapshot / name).symlink_to(f"../../../blobs/{blob}")
    with open_source(snapshot / "m.onnx") as source:
        assert np.array_equal(source.read_tensor("w"), W)


@pytest.mark.parametrize("location", ["link.bin", "linked/w.bin"])
def test_links_out_of_the_folder_are_refused(path: Path, location: str) -> None:
    inside = path.parent / "inside"
    inside.mkdir()
    (inside / "link.bin").symlink_to(path.parent / "w.bin")
    (inside / "linked").symlink_to(path.parent)
    saved(inside / "m.onnx", model(external(location, offset="16")))
    with pytest.raises(HeaderError, match=f"'w': external location '{location}' is a link out of the model's folder"):
        open_source(inside / "m.onnx")


def test_links_without_end_are_os_errors(path: Path) -> None:
    (path.parent / "loop.bin").symlink_to("loop.bin")
    with pytest.raises(OSError, match="loop"):
        OnnxFile(saved(path, model(external("loop.bin"))))


def test_external_file_that_changed_is_refused(path: Path) -> None:
    with OnnxFile(saved(path, model(external(offset="16")))) as source:
        (path.parent / "w.bin").write_bytes(bytes(20))
        with pytest.raises(HeaderError, match="was replaced after the model was opened"):
            source.read_rows("w", 0, 3)
        (path.parent / "w.bin").unlink()
        with pytest.raises(HeaderError, match="was removed after the model was opened"):
            source.read_rows("w", 0, 3)


def test_more_external_files_than_may_be_open(path: Path) -> None:
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    tensors = []
    for number in range(100):
        (path.parent / f"{number}.bin").write_bytes(W.tobytes())
        tensors.append(external(f"{number}.bin"))
        tensors[-1].name = str(number)
    saved(path, model(*tensors))
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 20, limit[1]))
    try:
        with OnnxFile(path) as source:
            assert all(np.array_equal(source.read_tensor(name), W) for name in source.infos())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


# --- commands ---------------------------------------------------------------------------------


def test_commands(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = low_rank(256, 256)
    saved(path, model(numpy_helper.from_array(weights, "layer.weight"), w(), author="some\x1b[2Jone"))
    target = tmp_path / "m.hhtld"
    assert main(["convert", str(path), str(target), "--profile", "bits:4"]) == 0
    assert main(["verify", str(target), str(path)]) == 0
    assert "kept tensors equal the source byte for byte" in capsys.readouterr().out
    assert main(["diff", str(path), str(target)]) in (0, 1)
    assert "layer.weight" in capsys.readouterr().out
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "author: some" in shown
    assert "\x1b" not in shown
    with OnnxFile(path) as before, open_source(target) as after:
        assert after.metadata == before.metadata
        assert after.description == before.description
    assert main(["convert", str(target), str(tmp_path / "back.onnx")]) == 0
    assert main(["convert", str(path), str(tmp_path / "m.safetensors")]) == 0
    with open_source(tmp_path / "m.safetensors") as plain:
        assert np.array_equal(plain.read_tensor("layer.weight"), weights)


# --- what the graph does with weights -----------------------------------------------------------


def test_what_the_graph_does_decides_for_regimes(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    names = ("a", "embed.weight", "tied", "moved", "inner", "lm_head.weight", "pos_embed", "wte.weight")
    tensors = [numpy_helper.from_array(rng.standard_normal((64, 16), np.float32), name) for name in names]
    body = helper.make_graph(
        [helper.make_node("Gather", ["inner", "i"], ["b"])], "then", [], [helper.make_tensor_value_info("b", 1, None)]
    )
    nodes = (
        helper.make_node("Gather", ["a", "i"], ["a_rows"]),
        helper.make_node("MatMul", ["x", "embed.weight"], ["y"]),
        helper.make_node("Gather", ["tied", "i"], ["t_rows"]),
        helper.make_node("Transpose", ["tied"], ["tied_t"]),
        helper.make_node("MatMul", ["t_rows", "tied_t"], ["logits"]),
        helper.make_node("Cast", ["moved"], ["m"], to=1),
        helper.make_node("Gather", ["m", "i"], ["m_rows"]),
        helper.make_node("If", ["c"], ["d"], then_branch=body, else_branch=body),
        helper.make_node("Gemm", ["x", "lm_head.weight"], ["z"], transB=1),
        helper.make_node("Add", ["x", "pos_embed"], ["p"]),
        helper.make_node("Gather", ["lists", "wte.weight"], ["odd"]),
        helper.make_node("MatMul", ["odd", "wte.weight"], ["odd2"]),
    )
    path = tmp_path / "m.onnx"
    path.write_bytes(model(*tensors, nodes=nodes).SerializeToString())
    with open_source(path) as source:
        found = {name: tuple(choice) for name, choice in choose_regimes(source).items()}
    assert found == {
        "a": ("index", "graph: Gather"),
        "embed.weight": ("argmax", "graph: MatMul"),
        "tied": ("index", "graph: Gather"),
        "moved": ("index", "graph: Gather"),
        "inner": ("index", "graph: Gather"),
        "lm_head.weight": ("index", "name: lm_head"),
        "pos_embed": ("index", "name: pos_embed"),
        "wte.weight": ("argmax", "graph: MatMul"),
    }


@pytest.mark.parametrize("operator", ["LSTM", "GRU", "RNN"])
def test_what_a_recurrent_layer_adds_is_kept(operator: str, tmp_path: Path) -> None:
    """Biases of two directions are [2, 8 hidden], and no matrix; states and peepholes likewise."""
    rng, added = np.random.default_rng(3), {"B": (2, 512), "h": (2, 4, 64), "c": (2, 4, 64), "P": (2, 192)}
    tensors = {name: rng.standard_normal(shape, np.float32) for name, shape in added.items()}
    tensors |= {"W": rng.standard_normal((2, 256, 32), np.float32), "R": rng.standard_normal((2, 256, 64), np.float32)}
    nodes = (
        helper.make_node("Identity", ["B"], ["moved"]),
        helper.make_node(operator, ["x", "W", "R", "moved", "", "h", "c", "P"], ["y"], hidden_size=64),
        helper.make_node("LSTM", ["x", "W", "R", "other"], ["z"], domain="mine"),
    )
    tensors["other"] = rng.standard_normal((2, 512), np.float32)  # an operator of which nothing is known
    path = tmp_path / "m.onnx"
    made = model(*(numpy_helper.from_array(values, name) for name, values in tensors.items()), nodes=nodes)
    path.write_bytes(made.SerializeToString())
    hhtld.convert(path, tmp_path / "m.hhtld", profile="bits:4", min_ratio=0)
    hhtld.convert(tmp_path / "m.hhtld", tmp_path / "n.hhtld", profile="bits:3", min_ratio=0)  # the graph is gone
    with hhtld.open(tmp_path / "m.hhtld") as pack, hhtld.open(tmp_path / "n.hhtld") as again:
        codecs = {name: pack.info(name).codec for name in pack}
        assert codecs == {name: again.info(name).codec for name in again}
    assert codecs == dict.fromkeys(added, "keep") | dict.fromkeys(("R", "W", "other"), "hhtl_t")
