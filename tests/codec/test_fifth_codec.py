"""A codec from outside: registered, encoded, written, read, searched, shown and given back.

It holds a row as int8 and a float32 scale. No file of the package knows it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import hhtld
from hhtld import codecs
from hhtld.codecs.base import (
    Codec,
    Coder,
    EncodedTensor,
    GroupCode,
    GroupEstimate,
    GroupRequest,
    Layout,
    Profile,
    ReadPart,
    RecordCheck,
    RowIndex,
    selected_rows,
)
from hhtld.codecs.section_kinds import SectionKind
from hhtld.commands.main import main
from hhtld.identity import PaletteGroupKey


@dataclass
class Int8Tensor(EncodedTensor):
    scales: NDArray[np.float32]
    levels: NDArray[np.int8]

    def __post_init__(self) -> None:
        self.original_shape = self.levels.shape

    def reconstruct_rows(self, rows: RowIndex = None) -> NDArray[np.float32]:
        index = selected_rows(len(self.levels), rows)
        return self.levels[index].astype(np.float32) * self.scales[index, None]

    def parts(self) -> dict[str, NDArray[Any]]:
        return {"row_scale": self.scales, "row_int8": self.levels}


class Int8Coder(Coder):
    def __init__(self, n_cols: int) -> None:
        self.n_cols = n_cols

    def layout(self) -> Layout:
        return {"row_scale": 4, "row_int8": self.n_cols}

    def encode(self, block: NDArray[np.float32], start: int, leaf_scale: float | None) -> Int8Tensor:
        scales = (np.abs(block).max(axis=1) / 127).astype(np.float32)
        levels = np.rint(block / np.where(scales > 0, scales, 1)[:, None]).astype(np.int8)
        return Int8Tensor(scales, levels)


@dataclass(frozen=True, eq=False)
class Int8Group(GroupCode):
    def sections(self) -> dict[str, bytes]:
        return {}

    def coder(self, tensor_code: None) -> Int8Coder:
        return Int8Coder(self.key.shape[1])

    def tensor(
        self, part: ReadPart, leaf_scale: float | None, kinds: Mapping[str, int], budget: int | None, levels: int = 2
    ) -> Int8Tensor:
        n_cols = self.key.shape[1]
        return Int8Tensor(part("row_scale", 4).view("<f4"), part("row_int8", n_cols).view(np.int8).reshape(-1, n_cols))


class Int8Codec(Codec):
    id: ClassVar[str] = "int8"
    word: ClassVar[str] = "int8"
    summary: ClassVar[str] = "8 bits a weight and a scale a row"
    profiles: ClassVar[tuple[str, ...]] = ("toy",)
    required: ClassVar[frozenset[str]] = frozenset({"row_scale", "row_int8"})
    section_kinds: ClassVar[tuple[SectionKind, ...]] = (SectionKind("row_scale", 900), SectionKind("row_int8", 901))

    def check_tensor(self, record: RecordCheck, group: RecordCheck) -> None:
        record.size("row_scale", 4 * record.n_rows)
        record.size("row_int8", record.n_rows * record.n_cols)

    def find(self, request: GroupRequest) -> tuple[Callable[..., GroupCode], tuple[Any, ...]]:
        return Int8Group, (request.key,)

    def read_group(self, key: PaletteGroupKey, sections: Mapping[str, Any], numbers: Mapping[str, int]) -> Int8Group:
        return Int8Group(key)


@pytest.fixture
def toy() -> Iterator[Int8Codec]:
    codec = Int8Codec()
    codecs.register(codec)
    yield codec
    codecs.unregister(codec.id)


def weights() -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(5)
    table = rng.standard_normal((700, 40)).astype(np.float32)
    table[3] = 0
    return {"embed.weight": table, "norm.weight": np.ones(40, np.float32)}


def close(found: NDArray[np.float32], source: NDArray[np.float32]) -> None:
    assert found.shape == source.shape
    assert (np.abs(found - source) <= np.abs(source).max(axis=1, keepdims=True) / 250).all()


@pytest.mark.usefixtures("toy")
def test_in_memory() -> None:
    model = weights()
    pack = hhtld.encode(model, "toy")
    close(pack.get_tensor("embed.weight"), model["embed.weight"])
    close(pack.get_rows("embed.weight", [7, 3, 7]), model["embed.weight"][[7, 3, 7]])
    assert np.array_equal(pack.get_tensor("norm.weight"), model["norm.weight"])
    query = model["embed.weight"][11]
    decoded = pack.get_tensor("embed.weight").astype(np.float64) @ query
    assert pack.scorer("embed.weight").argmax(query) == int(decoded.argmax()) == 11
    assert list(pack.scorer("embed.weight").topk(query, 5).rows) == list(np.argsort(-decoded, kind="stable")[:5])


@pytest.mark.usefixtures("toy")
def test_through_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, source, packed = weights(), tmp_path / "model.safetensors", tmp_path / "model.hhtld"
    save_file(model, source)
    report = hhtld.convert(source, packed, profile="toy", jobs=1)
    assert {tensor.info.name: tensor.codec for tensor in report.tensors} == {
        "embed.weight": "int8",
        "norm.weight": "keep",
    }
    with hhtld.open(packed) as pack:
        close(pack.get_rows("embed.weight", slice(5, 9)), model["embed.weight"][5:9])
    capsys.readouterr()
    assert main(["verify", str(packed), str(source)]) == 0
    assert main(["inspect", str(packed), "--json"]) == 0
    printed = capsys.readouterr().out
    facts = json.loads(printed[printed.index("\n{") :])
    assert facts["totals"]["codecs"] == {"int8": 1, "keep": 1}
    assert main(["inspect", str(packed), "--tensor", "embed.weight"]) == 0
    assert "int8: 8 bits a weight and a scale a row" in capsys.readouterr().out
    assert main(["convert", str(packed), str(tmp_path / "model.h5")]) == 0
    with h5py.File(tmp_path / "model.h5") as export:
        names: list[str] = []
        export.visit(names.append)
        assert any("embed.weight" in name for name in names)
    assert main(["convert", str(packed), str(tmp_path / "back.safetensors")]) == 0
    back = load_file(tmp_path / "back.safetensors")
    close(back["embed.weight"], model["embed.weight"])
    assert np.array_equal(back["norm.weight"], model["norm.weight"])


@pytest.mark.usefixtures("toy")
def test_a_damaged_size_is_refused_by_the_codec(tmp_path: Path) -> None:
    packed = tmp_path / "model.hhtld"
    hhtld.save(hhtld.encode(weights(), "toy"), packed)
    data = packed.read_bytes()
    assert b'"row_int8"' in data
    packed.write_bytes(data[: len(data) // 2])
    with pytest.raises(hhtld.FormatError):
        hhtld.open(packed)


@pytest.mark.usefixtures("toy")
def test_names_that_are_taken_are_refused() -> None:
    with pytest.raises(ValueError, match="codec id 'int8' is taken"):
        codecs.register(Int8Codec())

    class Lookalike(Int8Codec):
        id: ClassVar[str] = "other"
        profiles: ClassVar[tuple[str, ...]] = ("gates",)

    with pytest.raises(ValueError, match="profile 'gates' is taken"):
        codecs.register(Lookalike())

    class SameKind(Int8Codec):
        id: ClassVar[str] = "third"
        profiles: ClassVar[tuple[str, ...]] = ("third",)
        section_kinds: ClassVar[tuple[SectionKind, ...]] = (SectionKind("row_bytes", 1),)

    with pytest.raises(ValueError, match="'row_bytes' \\(1\\) is 'raw' already"):
        codecs.register(SameKind())


def test_a_file_of_an_unknown_codec_names_it(tmp_path: Path) -> None:
    packed = tmp_path / "model.hhtld"
    codecs.register(Int8Codec())
    try:
        hhtld.save(hhtld.encode(weights(), "toy"), packed)
    finally:
        codecs.unregister("int8")
    with (
        pytest.warns(UserWarning, match="section 0 of unknown kind 'row_scale'"),
        pytest.raises(hhtld.FormatError, match=r"unknown codec 'int8'; known: keep, hhtl_d, hhtl_f32, hhtl_t"),
    ):
        hhtld.open(packed)
    with pytest.raises(ValueError, match="no profile 'toy'; available: lookup, f32, gates, parity, bits:B"):
        hhtld.encode(weights(), "toy")


class SevenByteEstimate(GroupEstimate):
    median = 0.99

    def nbytes(self, key: PaletteGroupKey, profile: Profile) -> tuple[int, int]:
        return 7 * key.shape[0], 5

    def seconds(self, key: PaletteGroupKey, profile: Profile, n_tensors: int) -> float:
        return 3.0

    def like(self, key: PaletteGroupKey, seed: int) -> GroupEstimate:
        return self


class ChoosingCodec(Int8Codec):
    id: ClassVar[str] = "choosing"
    profiles: ClassVar[tuple[str, ...]] = ("choosing",)
    chooses_rates: ClassVar[bool] = True

    def estimate(self, request: GroupRequest, n_weights: int) -> GroupEstimate | None:
        assert request.threshold is not None
        return SevenByteEstimate()


def test_a_dry_run_asks_a_codec_that_chooses_rates(tmp_path: Path) -> None:
    source = tmp_path / "model.safetensors"
    save_file(weights(), source)
    codecs.register(ChoosingCodec())
    try:
        report = hhtld.convert(source, tmp_path / "m.hhtld", profile="choosing", dry_run=True, jobs=1)
    finally:
        codecs.unregister("choosing")
    embed, norm = report.tensors
    assert (embed.codec, embed.nbytes, embed.predicted_median) == ("choosing", 7 * 700, 0.99)
    assert report.target_nbytes == 7 * 700 + 5 + norm.nbytes
    assert report.expected is not None
    assert report.expected["seconds"] == 3.0
