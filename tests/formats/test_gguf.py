"""GGUF: every malformation by name, agreement with the package on every type, and the way to .hhtld and back."""

from __future__ import annotations

import itertools
import json
import random
import re
import struct
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

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
from hhtld.formats.gguf import GgufFile
from tests.conftest import low_rank

gguf = pytest.importorskip("gguf", reason="needs the package of the extra 'gguf'")

Type = gguf.GGMLQuantizationType
NAN = float("nan")

# --- building files ---------------------------------------------------------------------------


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def pair(key: str | bytes, number: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", number) + value


def array(number: int, count: int, elements: bytes) -> bytes:
    return struct.pack("<IQ", number, count) + elements


def tensor(name: str | bytes, sizes: tuple[int, ...], number: int, offset: int, n_axes: int | None = None) -> bytes:
    axes = struct.pack(f"<{len(sizes)}Q", *sizes)
    return (
        string(name)
        + struct.pack("<I", len(sizes) if n_axes is None else n_axes)
        + axes
        + struct.pack("<IQ", number, offset)
    )


PAIRS = (pair("general.architecture", 8, string("tiny")), pair("n", 4, struct.pack("<I", 7)))
A = tensor("a", (4, 2), 0, 0)  # 32 bytes of F32
B = tensor("b", (32, 3), 8, 32)  # 102 bytes of Q8_0
BYTES = bytes(range(1, 103))  # as halves finite, all of them
DATA = struct.pack("<8f", *range(8)) + BYTES


def built(
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    pairs: tuple[bytes, ...] = PAIRS,
    tensors: tuple[bytes, ...] = (A, B),
    data: bytes = DATA,
    n_pairs: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A file; the valid one unless something is said."""
    counts = (len(tensors) if n_tensors is None else n_tensors, len(pairs) if n_pairs is None else n_pairs)
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data


def paired(*more: bytes, **changes: Any) -> bytes:
    return built(pairs=(*PAIRS, *more), **changes)


def one(
    name: str | bytes, sizes: tuple[int, ...], number: int = 0, offset: int = 0, n_axes: int | None = None
) -> bytes:
    """A file of one tensor, whatever its data."""
    return built(tensors=(tensor(name, sizes, number, offset, n_axes),), data=bytes(128))


def aligned(number: int, value: bytes) -> bytes:
    return paired(pair("general.alignment", number, value))


U32 = struct.Struct("<I").pack
U64 = struct.Struct("<Q").pack

MALFORMED: dict[str, tuple[bytes, type[FormatError], str]] = {
    # magic and version
    "empty file": (b"", TruncatedError, "is 0 bytes long"),
    "three bytes": (b"GGU", TruncatedError, "is 3 bytes long"),
    "only the magic": (b"GGUF", TruncatedError, "is 4 bytes long and ends before its version"),
    "another magic": (built(magic=b"GGML"), BadMagicError, "expected b'GGUF', got b'GGML'"),
    "lower-case magic": (built(magic=b"gguf"), BadMagicError, "not a GGUF file"),
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", BadMagicError, "git lfs pull"),
    "version 0": (built(version=0), UnsupportedVersionError, "version 0, and this hhtld reads the versions 2 and 3"),
    "version 1": (built(version=1), UnsupportedVersionError, "version 1, and this hhtld reads the versions 2 and 3"),
    "version 4": (built(version=4), UnsupportedVersionError, "version 4, and this hhtld reads the versions 2 and 3"),
    "big-endian": (built(version=3 << 24), UnsupportedVersionError, "a big-endian GGUF file .version 3"),
    # counts
    "no counts": (built()[:8], TruncatedError, "the number of tensors at byte 8 takes 8 bytes"),
    "one tensor too many": (built(n_tensors=3), HeaderError, "tensor 2"),
    "one tensor too few": (built(n_tensors=1), HeaderError, "bytes follow the last tensor"),
    "2^64 - 1 tensors": (built(n_tensors=2**64 - 1), TruncatedError, "18446744073709551615 tensors of at least"),
    "tensors that wrap a product": (built(n_tensors=2**61), TruncatedError, "tensors of at least"),
    "2^64 - 1 key-values": (built(n_pairs=2**64 - 1), TruncatedError, "key-values of at least"),
    "one key-value too many": (built(n_pairs=3), TruncatedError, "tensor 0: its name"),
    "tensors that the key-values leave no room for": (
        built(pairs=(pair("k", 8, string(bytes(400))),), tensors=(), data=b"", n_tensors=15),
        TruncatedError,
        "15 tensors of at least 25 bytes declared, but only",
    ),
    # key-values
    "key of 2^63 bytes": (paired(U64(2**63)), TruncatedError, "key-value 2: its key at byte"),
    "empty key": (paired(pair("", 4, U32(1))), HeaderError, "key-value 2: its key is empty"),
    "key not UTF-8": (paired(pair(b"\xff", 4, U32(1))), HeaderError, r"its key '\\\\xff' is not UTF-8"),
    "key too long": (paired(pair("k" * 65536, 4, U32(1))), HeaderError, "longer than 65535 bytes"),
    "key twice": (paired(PAIRS[1]), HeaderError, "key 'n' is given twice"),
    "type 13": (paired(pair("k", 13, U32(1))), HeaderError, "'k': the type of the value is 13"),
    "BOOL of 2": (paired(pair("k", 7, b"\2")), HeaderError, "'k': a BOOL must be 0 or 1, and is 2"),
    "string of 2^64 - 1 bytes": (paired(pair("k", 8, U64(2**64 - 1))), TruncatedError, "'k': a string at byte"),
    "string past the end": (paired(pair("k", 8, U64(1000))), TruncatedError, "takes 1000 bytes, but only"),
    "array of 2^63 numbers": (paired(pair("k", 9, array(4, 2**63, b""))), TruncatedError, "'k': 9223372036854775808"),
    "array of 2^63 strings": (paired(pair("k", 9, array(8, 2**63, b""))), TruncatedError, "'k': 9223372036854775808"),
    "array one past the end": (
        paired(pair("k", 9, array(0, 1000, b""))),
        TruncatedError,
        "1000 elements of at least 1",
    ),
    "array of type 99": (paired(pair("k", 9, array(99, 1, b""))), HeaderError, "'k': the type of the value is 99"),
    "array of arrays": (paired(pair("k", 9, array(9, 1, array(4, 1, U32(1))))), HeaderError, "an array of arrays"),
    "arrays without end": (paired(pair("k", 9, array(9, 1, b"") * 9999)), HeaderError, "an array of arrays"),
    "array of BOOL of 255": (paired(pair("k", 9, array(7, 2, b"\1\xff"))), HeaderError, "0 or 1, and is 255"),
    # alignment
    "alignment 0": (aligned(4, U32(0)), HeaderError, "power of two from 8 to 65536, a UINT32, got UINT32 0"),
    "alignment 4": (aligned(4, U32(4)), HeaderError, "got UINT32 4"),
    "alignment 33": (aligned(4, U32(33)), HeaderError, "got UINT32 33"),
    "alignment 2^31": (aligned(4, U32(2**31)), HeaderError, "got UINT32 2147483648"),
    "alignment of another type": (aligned(10, U64(32)), HeaderError, "got UINT64 32"),
    "alignment a string": (aligned(8, string("32")), HeaderError, "got STRING"),
    "alignment an array": (aligned(9, array(4, 1, U32(32))), HeaderError, "got ARRAY"),
    "alignment other than the data's": (aligned(4, U32(4096)), TruncatedError, "takes 32 bytes from byte 4096"),
    # a part of a model
    "one part of a split model": (
        paired(pair("split.no", 2, b"\1\0"), pair("split.count", 2, b"\3\0")),
        HeaderError,
        "part 2 of a model that is split into 3 files; join them first: llama-gguf-split --merge",
    ),
    # tensors
    "name of 2^63 bytes": (built(tensors=(U64(2**63) + A,)), TruncatedError, "tensor 0: its name at byte"),
    "empty name": (one("", (4,)), HeaderError, "tensor 0: its name is empty"),
    "name not UTF-8": (one(b"a\xff", (4,)), HeaderError, "not UTF-8: invalid start byte at byte 1"),
    "name with NUL": (one("a\0b", (4,)), HeaderError, "the name holds NUL"),
    "name too long": (one("n" * 65536, (4,)), HeaderError, "limit is 65535"),
    "name that safetensors reserves": (one("__metadata__", (4,)), HeaderError, "not a tensor name"),
    "name twice": (built(tensors=(A, tensor("a", (4, 2), 0, 32))), HeaderError, "tensor 'a' is given twice"),
    "five axes": (one("a", (1, 1, 1, 1, 1)), HeaderError, "'a': the tensor has 5 axes, and GGUF has at most 4"),
    "2^32 - 1 axes": (one("a", (), n_axes=2**32 - 1), HeaderError, "'a': the tensor has 4294967295 axes"),
    "an axis of 0": (one("a", (4, 0)), HeaderError, r"shape \[0, 4\] has an axis of size 0"),
    "an axis of 2^63": (one("a", (2**63,)), HeaderError, "'a': every size must lie in 0..2.48"),
    "sizes whose product wraps to 0": (one("a", (2**32, 2**32)), HeaderError, "needs more than 2.63 bytes"),
    "sizes whose product wraps to 4": (one("a", (2**33 + 4, 2**31, 1, 1)), HeaderError, "more than 2.63 bytes"),
    "elements that fit and bytes that do not": (one("a", (2**31, 2**31)), HeaderError, "more than 2.63 bytes"),
    "larger than the file": (one("a", (2**40,)), TruncatedError, "takes 4398046511104 bytes from byte"),
    "unknown type": (one("a", (4,), 99), HeaderError, "'a': has the unknown type 99; gguf"),
    "a type that was removed": (one("a", (32,), 4), HeaderError, "'a': has the unknown type 4"),
    "a type that nobody dequantizes": (one("a", (256,), 15), HeaderError, "the type Q8_K, which gguf .* does not"),
    "rows that are no blocks": (
        one("a", (33, 32), 8),
        HeaderError,
        "rows of 33 elements cannot be cut into blocks of 32",
    ),
    "a scalar of blocks": (one("a", (), 8), HeaderError, "rows of 1 elements cannot be cut into blocks of 32"),
    "offset past the end": (
        one("a", (4,), 0, 2**63),
        HeaderError,
        "starts at data byte 9223372036854775808, expected 0",
    ),
    "a hole": (built(tensors=(A, tensor("b", (32, 3), 8, 64))), HeaderError, "'b': is not where it belongs"),
    "overlap": (built(tensors=(A, tensor("b", (32, 3), 8, 0))), HeaderError, "'b': overlaps the tensor before it"),
    "unaligned": (built(tensors=(A, tensor("b", (32, 3), 8, 33))), HeaderError, "'b': is not where it belongs"),
    "first not at 0": (one("a", (4,), 0, 32), HeaderError, "starts at data byte 32, expected 0"),
    # the data
    "short by a byte": (built()[:-1], TruncatedError, "'b': Q8_0 of shape .3, 32. takes 102 bytes from byte"),
    "no data": (built(data=b""), TruncatedError, "'a': F32 of shape .2, 4. takes 32 bytes"),
    "bytes after the end": (built() + bytes(27), HeaderError, "bytes follow the last tensor"),
    "bytes after no tensor": (built(tensors=(), data=bytes(1)), HeaderError, "bytes follow the last tensor"),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.gguf"


def written(path: Path, *arrays: tuple[str, NDArray[Any], Any], **texts: str) -> Path:
    """A file by the package's own writer, of arrays with the type of quantized ones or None."""
    writer = gguf.GGUFWriter(path, "tiny")
    for key, text in texts.items():
        writer.add_string(key, text)
    for name, values, kind in arrays:
        writer.add_tensor(name, values, raw_dtype=kind)
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
    return path


# --- malformations ----------------------------------------------------------------------------


@pytest.mark.parametrize("case", MALFORMED)
def test_malformation_is_refused_by_name(path: Path, case: str) -> None:
    data, kind, message = MALFORMED[case]
    path.write_bytes(data)
    with pytest.raises(FormatError, match=message) as caught:
        open_source(path)
    assert type(caught.value) is kind
    assert str(caught.value).startswith(str(path))


def test_the_file_they_are_made_from_is_sound(path: Path) -> None:
    path.write_bytes(built())
    with open_source(path) as source:
        assert source.read_tensor("a").tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
        expected = gguf.quants.dequantize(np.frombuffer(BYTES, np.uint8).reshape(3, 34), Type.Q8_0)
        assert source.read_tensor("b").tobytes() == expected.tobytes()
        assert source.metadata == {"general.architecture": "tiny", "n": "7"}


UNUSUAL = {
    "version 2": built(version=2),
    "padded to the end": built() + bytes(26),
    "alignment 8": built(pairs=(pair("general.alignment", 4, U32(8)),), alignment=8),
    "alignment 4096": built(
        pairs=(pair("general.alignment", 4, U32(4096)),),
        tensors=(A, tensor("b", (32, 3), 8, 4096)),
        data=DATA[:32] + bytes(4064) + DATA[32:],
        alignment=4096,
    ),
    "split into one": paired(pair("split.count", 2, b"\1\0")),
}


@pytest.mark.parametrize("case", UNUSUAL)
def test_unusual_file_is_read(path: Path, case: str) -> None:
    path.write_bytes(UNUSUAL[case])
    with GgufFile(path) as source:
        assert source.read_tensor("a").tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert source.read_tensor("b").shape == (3, 32)


def test_file_without_tensors_may_end_before_its_padding(path: Path) -> None:
    whole = built(tensors=(), data=b"")
    for data in (whole, whole[:-1], whole[: whole.rindex(U32(7)) + 4]):
        path.write_bytes(data)
        with GgufFile(path) as source:
            assert len(source) == 0


def test_truncation_at_every_byte(path: Path) -> None:
    whole = built()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(FormatError, match=r"m\.gguf"):
            GgufFile(path)


def consumed(path: Path) -> None:
    """Read everything of a file that opens; what it says of itself must hold."""
    with GgufFile(path) as source:
        json.dumps([source.metadata, source.description], allow_nan=False).encode("ascii")
        for name, info in source.infos().items():
            assert source.read_rows(name, 0, info.n_rows).nbytes == info.nbytes


@pytest.mark.parametrize("seed", range(3))
def test_damaged_files_are_refused_or_sound(path: Path, seed: int) -> None:
    rng, whole = random.Random(seed), built(pairs=(*PAIRS, pair("t", 9, array(8, 2, string("x") + string("y")))))
    header, opened = len(whole) - len(DATA), 0
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 1, 1, 2, 8))):
            at = rng.randrange(header if rng.random() < 0.9 else len(whole))
            damaged[at] = rng.choice((damaged[at] ^ 1 << rng.randrange(8), 0, 255, rng.randrange(256)))
        path.write_bytes(damaged)
        try:
            consumed(path)
            opened += 1
        except FormatError:
            pass
    assert 0 < opened < 200


def test_file_of_43_bytes_that_claims_an_array_without_end(path: Path) -> None:
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + pair("k", 9, array(10, 2**60, b"")))
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(TruncatedError):
        GgufFile(path)
    assert time.process_time() - started < 5
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_header_above_the_limit_is_refused_before_it_is_read(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("k") + U32(8) + U64(100_000_001))
        file.truncate(200_000_000)
    tracemalloc.start()
    with pytest.raises(HeaderError, match="the header passes the limit of 100000000 bytes with a string"):
        GgufFile(path)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_many_tensors_and_values_are_read_in_linear_time(path: Path) -> None:
    n = 20_000
    tensors = tuple(tensor(f"t{i}", (8,), 0, 32 * i) for i in range(n))
    tokens = pair("tokens", 9, array(8, n, b"".join(string(f"token {i}") for i in range(n))))
    path.write_bytes(built(pairs=(tokens,), tensors=tensors, data=bytes(32 * n)))
    started = time.process_time()
    with GgufFile(path) as source:
        assert len(source) == n
        assert source.description["gguf"]["fields"]["tokens"]["value"][-1] == f"token {n - 1}"
    assert time.process_time() - started < 6


def test_suffix_is_not_needed_and_does_not_suffice(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(built())
    with open_source(tmp_path / "blob") as source:
        assert set(source.infos()) == {"a", "b"}
    (tmp_path / "x.gguf").write_bytes(b"{}")
    with pytest.raises(BadMagicError, match="not a GGUF file"):
        open_source(tmp_path / "x.gguf")
    (tmp_path / "folder.gguf").mkdir()
    assert not get_format("gguf").sniff(tmp_path / "folder.gguf", b"")


def test_missing_package_is_named(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_bytes(built())
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hhtld\[gguf\]'"):
        open_source(path)
    assert main(["inspect", str(path)]) == 2
    assert "pip install 'hhtld[gguf]'" in capsys.readouterr().err


# --- types and rows ---------------------------------------------------------------------------


def dequantized_types() -> list[Any]:
    found = []
    for kind in Type:
        try:
            gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError:  # the package's own: it names more types than it can do
            continue
        if kind.name not in ("F32", "F16", "BF16"):
            found.append(kind)
    return found


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the package's own, where a scale is not finite
@pytest.mark.parametrize("kind", dequantized_types(), ids=lambda kind: kind.name)
def test_rows_of_every_quantized_type_are_those_of_the_package(path: Path, rng: np.random.Generator, kind: Any) -> None:
    block, nbytes = gguf.GGML_QUANT_SIZES[kind]
    stored = {
        "matrix": rng.integers(0, 256, (37, 3 * nbytes), dtype=np.uint8),
        "experts": rng.integers(0, 256, (3, 5, 2 * nbytes), dtype=np.uint8),
        "row": rng.integers(0, 256, 2 * nbytes, dtype=np.uint8),
    }
    written(path, *((name, values, kind) for name, values in stored.items()))
    with GgufFile(path) as source:
        assert source.description["gguf"]["quantised"] == dict.fromkeys(stored, kind.name)
        for name, values in stored.items():
            whole = gguf.quants.dequantize(values, kind)
            info = source.infos()[name]
            assert (info.dtype.name, info.shape) == ("F32", whole.shape)
            assert info.shape[-1] % block == 0
            assert source.read_tensor(name).tobytes() == whole.tobytes()
            pieces = [source.read_rows(name, i, i + 1) for i in range(info.n_rows)]
            assert np.concatenate(pieces).tobytes() == whole.tobytes()


def quantizable_types() -> list[Any]:
    found = []
    for kind in dequantized_types():
        try:
            gguf.quants.quantize(np.ones((1, gguf.GGML_QUANT_SIZES[kind][0]), np.float32), kind)
        except NotImplementedError:  # the package's own: it names more types than it can do
            continue
        found.append(kind)
    return found


@pytest.mark.parametrize("kind", quantizable_types(), ids=lambda kind: kind.name)
def test_quantized_weights_come_back_as_near_as_their_type_allows(path: Path, kind: Any) -> None:
    weights = low_rank(64, 512)
    stored = gguf.quants.quantize(weights, kind)
    with GgufFile(written(path, ("w", stored, kind))) as source:
        rows = source.read_tensor("w")
    assert rows.tobytes() == gguf.quants.dequantize(stored, kind).tobytes()
    cosines = (rows * weights).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(weights, axis=1)
    assert cosines.min() > (0.5 if kind.name.startswith("TQ") else 0.98)


def test_plain_types_come_as_they_are(path: Path) -> None:
    plain: dict[str, NDArray[Any]] = {
        "F32": np.array([[1.5, NAN]], np.float32),
        "F16": np.arange(6, dtype=np.float16).reshape(1, 2, 3),
        "F64": np.array([1e300]),
        "I8": np.array([[-1, 2]], np.int8),
        "I16": np.array([-300], np.int16),
        "I32": np.array([[[[7]]]], np.int32),
        "I64": np.array([2**40]),
        "BF16": np.array([[0x80, 0x3F], [0x00, 0xC0]], np.uint8),
    }
    written(path, *((name, values, Type.BF16 if name == "BF16" else None) for name, values in plain.items()))
    with GgufFile(path) as source:
        assert "quantised" not in source.description["gguf"]
        for name, values in plain.items():
            assert source.infos()[name].dtype.name == name
            assert source.read_tensor(name).tobytes() == values.tobytes()
        assert source.infos()["F16"].shape == (1, 2, 3)
        assert source.read_tensor("BF16").astype(np.float32).tolist() == [[1.0], [-2.0]]


def test_scalar_of_no_axes(path: Path) -> None:
    path.write_bytes(built(tensors=(tensor("s", (), 0, 0),), data=struct.pack("<f", 2.5)))
    with GgufFile(path) as source:
        assert source.infos()["s"].shape == ()
        assert source.read_tensor("s") == 2.5


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NDArray[np.float32]]:
    """A tensor of 32 MB as float32, 64 rows of which are 256 kB."""
    path = tmp_path_factory.mktemp("gguf") / "large.gguf"
    stored = gguf.quants.quantize(low_rank(8192, 1024), Type.Q4_0)
    written(path, ("w", stored, Type.Q4_0))
    return path, gguf.quants.dequantize(stored, Type.Q4_0)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 8192), max_size=8))
def test_rows_in_pieces_are_the_whole(large: tuple[Path, NDArray[np.float32]], cuts: list[int]) -> None:
    path, whole = large
    edges = sorted({0, 8192, *cuts})
    with GgufFile(path) as source:
        for start, stop in itertools.pairwise(edges):
            assert np.array_equal(source.read_rows("w", start, stop).view(np.float32), whole[start:stop])


def test_memory_is_bound_by_the_rows_asked_for(large: tuple[Path, NDArray[np.float32]]) -> None:
    with GgufFile(large[0]) as source:
        tracemalloc.start()
        for start in range(0, 8192, 64):
            source.read_rows("w", start, start + 64)
        few = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        source.read_rows("w", 0, 8192)
        many = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert few < 2 << 20
    assert many < (32 << 20) + (5 << 20) + (10 << 20), "the rows, as stored, and the piece at hand"


def test_threads_read_at_once(large: tuple[Path, NDArray[np.float32]]) -> None:
    path, whole = large
    with GgufFile(path) as source, ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda start: source.read_rows("w", start, start + 256), range(0, 8192, 256))
        assert np.array_equal(np.concatenate(list(found)).view(np.float32), whole)


def test_bad_requests_are_value_errors(path: Path) -> None:
    path.write_bytes(built())
    source = GgufFile(path)
    for start, stop in ((-1, 1), (1, 0), (0, 4), (4, 4)):
        with pytest.raises(ValueError, match=r"tensor 'b' has rows 0\.\.3"):
            source.read_rows("b", start, stop)
    assert source.read_rows("b", 3, 3).shape == (0, 128)
    with pytest.raises(ValueError, match="no tensor 'c'"):
        source.read_rows("c", 0, 1)
    source.close()
    with pytest.raises(ValueError, match="is closed"):
        source.read_rows("b", 0, 1)


def test_file_that_became_shorter_is_truncated(path: Path) -> None:
    path.write_bytes(built())
    with GgufFile(path) as source:
        path.write_bytes(built()[:-1])
        with pytest.raises(TruncatedError, match="became shorter"):
            source.read_rows("b", 0, 3)


# --- key-values -------------------------------------------------------------------------------

VALUES: dict[str, tuple[bytes, dict[str, Any], str | None]] = {
    "u8": (pair("k", 0, b"\xff"), {"type": "UINT8", "value": 255}, "255"),
    "i8": (pair("k", 1, b"\xff"), {"type": "INT8", "value": -1}, "-1"),
    "u16": (pair("k", 2, b"\xff\xff"), {"type": "UINT16", "value": 65535}, "65535"),
    "i16": (pair("k", 3, b"\xff\xff"), {"type": "INT16", "value": -1}, "-1"),
    "i32": (pair("k", 5, b"\xff" * 4), {"type": "INT32", "value": -1}, "-1"),
    "f32": (pair("k", 6, struct.pack("<f", 0.5)), {"type": "FLOAT32", "value": 0.5}, "0.5"),
    "f32 nan": (pair("k", 6, struct.pack("<f", NAN)), {"type": "FLOAT32", "value": "nan"}, "nan"),
    "bool": (pair("k", 7, b"\1"), {"type": "BOOL", "value": True}, "true"),
    "u64": (pair("k", 10, U64(2**64 - 1)), {"type": "UINT64", "value": 2**64 - 1}, "18446744073709551615"),
    "i64": (pair("k", 11, b"\xff" * 8), {"type": "INT64", "value": -1}, "-1"),
    "f64": (pair("k", 12, struct.pack("<d", -1e300)), {"type": "FLOAT64", "value": -1e300}, "-1e+300"),
    "string": (pair("k", 8, string("ä\0")), {"type": "STRING", "value": "ä\0"}, "ä\0"),
    "bytes": (pair("k", 8, string(b"\xc3")), {"type": "STRING", "value": {"hex": "c3"}}, None),
    "long string": (pair("k", 8, string("x" * 5000)), {"type": "STRING", "value": "x" * 5000}, None),
    "tokens": (
        pair("k", 9, array(8, 3, string("a") + string(b"\xff\xfe") + string(""))),
        {"type": "ARRAY", "of": "STRING", "value": ["a", {"hex": "fffe"}, ""]},
        None,
    ),
    "scores": (
        pair("k", 9, array(6, 3, struct.pack("<3f", 1, float("-inf"), float("inf")))),
        {"type": "ARRAY", "of": "FLOAT32", "value": [1.0, "-inf", "inf"]},
        None,
    ),
    "empty array": (pair("k", 9, array(8, 0, b"")), {"type": "ARRAY", "of": "STRING", "value": []}, None),
    "bools": (pair("k", 9, array(7, 2, b"\0\1")), {"type": "ARRAY", "of": "BOOL", "value": [False, True]}, None),
}


@pytest.mark.parametrize("case", VALUES)
def test_values_keep_their_types(path: Path, case: str) -> None:
    data, field, text = VALUES[case]
    path.write_bytes(built(pairs=(data,)))
    with GgufFile(path) as source:
        assert source.description["gguf"]["fields"] == {"k": field}
        assert source.metadata == ({} if text is None else {"k": text})
        assert type(source.description["gguf"]["fields"]["k"]["value"]) is type(field["value"])


def test_key_values_come_back_from_hhtld(path: Path) -> None:
    path.write_bytes(built(pairs=tuple(string(case) + data[9:] for case, (data, _, _) in VALUES.items())))
    target = path.with_suffix(".hhtld")
    hhtld.convert(path, target, profile="bits:4", jobs=1)
    with GgufFile(path) as before, open_source(target) as after:
        assert before.description["gguf"]["fields"] == {case: field for case, (_, field, _) in VALUES.items()}
        assert after.description == before.description
        assert after.metadata == before.metadata


# --- commands ---------------------------------------------------------------------------------


def test_quantized_files_are_told_as_stored_and_as_quantized_twice(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = low_rank(256, 256)
    kinds = {"blk.0.ffn_up.weight": Type.Q8_0, "blk.0.ffn_down.weight": Type.Q4_0}
    held = {name: gguf.quants.quantize(weights, kind) for name, kind in kinds.items()}
    written(path, *((name, values, kinds[name]) for name, values in held.items()), ("norm", weights[0], None))
    nbytes = sum(values.nbytes for values in held.values()) + weights[0].nbytes
    report = hhtld.convert(path, tmp_path / "m.hhtld", profile="bits:4")
    assert report.source_nbytes == nbytes
    assert {t["name"]: t.get("stored_as") for t in report.to_json()["tensors"]} == {
        "blk.0.ffn_up.weight": "Q8_0",
        "blk.0.ffn_down.weight": "Q4_0",
        "norm": None,
    }
    assert any("2 of 3 tensors are quantized in the source (1 Q8_0, 1 Q4_0)" in note for note in report.notes)
    assert main(["convert", str(path), str(tmp_path / "m.hhtld"), "--profile", "bits:4", "--dry-run"]) == 0
    assert "quantizes twice" in " ".join(capsys.readouterr().out.split())
    for place, key in ((path, "nbytes"), (tmp_path / "m.hhtld", "source_nbytes")):
        assert main(["inspect", str(place), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["totals"][key] == nbytes
    assert main(["inspect", str(path)]) == 0
    assert "Q4_0 1 tensor" in " ".join(capsys.readouterr().out.split())
    assert main(["inspect", str(path), "--tensor", "blk.0.ffn_up.weight"]) == 0
    assert "F32 (stored as Q8_0)" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "m.hhtld"), str(path), str(tmp_path / "page.json")]) in (0, 1)
    assert json.loads((tmp_path / "page.json").read_text())["source_nbytes"] == nbytes


def test_a_pack_that_is_larger_than_the_quantized_source_says_so(path: Path, tmp_path: Path) -> None:
    written(path, ("w", gguf.quants.quantize(low_rank(512, 512), Type.Q4_0), Type.Q4_0))
    told = "this takes .* bytes, more than the 147,456 of the source, whose tensors are stored as Q4_0"
    larger = hhtld.convert(path, tmp_path / "m.hhtld", profile="bits:6")
    assert re.search(told, "\n".join(larger.notes))
    smaller = hhtld.convert(path, tmp_path / "m.hhtld", profile="bits:2")
    assert not re.search(told, "\n".join(smaller.notes))
    plain = hhtld.convert(path, tmp_path / "m.safetensors")
    assert re.search(told, "\n".join(plain.notes))


def test_a_file_that_is_not_quantized_has_no_note(path: Path, tmp_path: Path) -> None:
    written(path, ("blk.0.ffn_up.weight", low_rank(256, 256), None))
    assert hhtld.convert(path, tmp_path / "m.hhtld", profile="bits:4").notes == []
    with GgufFile(path) as source:
        assert "stored_nbytes" not in source.description


def test_commands(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = low_rank(256, 256)
    stored = gguf.quants.quantize(weights, Type.Q8_0)
    written(path, ("blk.0.ffn_up.weight", stored, Type.Q8_0), ("norm", weights[0], None), author="some\x1b[2Jone")
    target = tmp_path / "m.hhtld"
    assert main(["convert", str(path), str(target), "--profile", "bits:4"]) == 0
    assert main(["verify", str(target), str(path)]) == 0
    assert "kept tensors equal the source byte for byte" in capsys.readouterr().out
    assert main(["diff", str(path), str(target)]) in (0, 1)
    assert "blk.0.ffn_up.weight" in capsys.readouterr().out
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "general.architecture: tiny" in shown
    assert "\x1b" not in shown
    assert main(["list", "--json"]) == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["formats"]}
    assert (listed["gguf"]["reads"], listed["gguf"]["writes"]) == (True, True)
    assert main(["convert", str(target), str(tmp_path / "back.gguf")]) == 0
    assert main(["convert", str(path), str(tmp_path / "m.safetensors")]) == 0
    with open_source(tmp_path / "m.safetensors") as plain:
        expected = gguf.quants.dequantize(stored, Type.Q8_0)
        assert np.array_equal(plain.read_tensor("blk.0.ffn_up.weight"), expected)
