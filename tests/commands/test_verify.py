"""`verify PACK SRC`: whether a pack was made from this very source."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

import hhtld
from hhtld.commands.main import main
from hhtld.commands.verify import verify
from hhtld.pack.opening import open_pack

Model = dict[str, NDArray[np.generic]]


def tied() -> Model:
    rows = np.random.default_rng(0).standard_normal((600, 64)).astype(np.float32)
    return {"a": rows, "b": rows.copy(), "kept": np.arange(4)}


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    save_file(tied(), tmp_path / "model.safetensors")
    hhtld.convert(tmp_path / "model.safetensors", tmp_path / "m.hhtld", profile="gates", min_ratio=0)
    with open_pack(tmp_path / "m.hhtld") as held:
        assert held.table.tensors["b"].alias_of == "a"
        assert held.info("a").source_crc32 is not None
    return tmp_path / "m.hhtld"


def against(pack: Path, model: Model) -> list[str]:
    save_file(model, pack.parent / "other.safetensors")
    return verify(pack, pack.parent / "other.safetensors").differences


def test_the_source_itself_passes(pack: Path) -> None:
    assert against(pack, tied()) == []
    assert verify(pack, pack.parent / "model.safetensors").is_source is True


@pytest.mark.parametrize(
    "change", [lambda rows: -rows, lambda rows: np.full_like(rows, np.nan)], ids=["negated", "not numbers"]
)
def test_a_tied_tensor_is_compared_with_the_source(pack: Path, change: Callable[[NDArray[np.float32]], Model]) -> None:
    model = tied()
    found = against(pack, model | {"b": change(model["b"])})
    assert found == ["tensor 'b' shares the bytes of 'a', in the source the two differ"]


def test_rows_of_another_length_are_other_rows_though_their_cosines_are_the_same(pack: Path) -> None:
    rows = 2 * tied()["a"]
    assert against(pack, tied() | {"a": rows, "b": rows}) == [
        "tensor 'a' was made from other rows than the source holds"
    ]


def test_one_changed_weight_is_found(pack: Path) -> None:
    rows = tied()["a"]
    rows[17, 3] = np.nextafter(rows[17, 3], np.float32(9))
    assert against(pack, tied() | {"a": rows, "b": rows}) == [
        "tensor 'a' was made from other rows than the source holds"
    ]


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_source_that_is_not_finite_is_a_difference(
    pack: Path, value: float, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = tied()["a"]
    rows[17, 3] = value
    said = f"tensor 'a' holds {value} at row 17, column 3 of the source; the file's was encoded from finite weights"
    assert against(pack, tied() | {"a": rows, "b": rows}) == [said]
    assert main(["verify", str(pack), str(pack.parent / "other.safetensors")]) == 1
    assert "--nonfinite" not in "".join(capfd.readouterr())


def test_a_pack_of_arrays_says_nothing_of_a_file(pack: Path) -> None:
    hhtld.save_file(tied(), pack)
    with open_pack(pack) as held:
        assert held.info("a").source_crc32 is None
    assert against(pack, tied()) == []
    assert verify(pack, pack.parent / "other.safetensors").is_source is None


@pytest.mark.parametrize("profile", ["lookup", "f32"])
def test_the_specified_grades_record_no_checksum(profile: str, tmp_path: Path) -> None:
    save_file(tied(), tmp_path / "model.safetensors")
    hhtld.convert(tmp_path / "model.safetensors", tmp_path / "m.hhtld", profile=profile)
    with open_pack(tmp_path / "m.hhtld") as held:
        assert "source_crc32" not in json.dumps(held.table.to_json())


@pytest.mark.parametrize("jobs", [1, 3])
def test_the_checksum_is_of_the_rows_as_float32(jobs: int, tmp_path: Path) -> None:
    import zlib

    rows = np.random.default_rng(1).standard_normal((3000, 96)).astype(np.float16)
    save_file({"w": rows}, tmp_path / "model.safetensors")
    hhtld.convert(tmp_path / "model.safetensors", tmp_path / "m.hhtld", profile="bits:2", jobs=jobs)
    with open_pack(tmp_path / "m.hhtld") as held:
        assert held.info("w").source_crc32 == zlib.crc32(rows.astype("<f4").tobytes())
