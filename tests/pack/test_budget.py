"""What reading a pack may take: every door asks for the budget."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hhtld
from hhtld.commands.main import main
from hhtld.errors import HeaderError
from hhtld.pack.pack import HhtldPack
from hhtld.slots.rotation import Rotation, splitmix64
from hhtld.sources.contract import ArraySource

NAME = "layers.0.self_attn.q_proj.weight"
N_ROWS, N_COLS = 600, 512
UNFOLDED = 4 * 256 * N_COLS


def made(profile: str, budget: int, names: tuple[str, ...] = (NAME,)) -> HhtldPack:
    rng = np.random.default_rng(3)
    tensors = {name: rng.standard_normal((N_ROWS, N_COLS)).astype(np.float32) for name in names}
    pack = hhtld.encode(tensors, profile)
    assert pack.info(NAME).codec != "keep"
    return HhtldPack(pack.table, pack.sections, budget)


DOORS: dict[str, Callable[[HhtldPack], Any]] = {
    "get_tensor": lambda pack: pack.get_tensor(NAME),
    "get_rows": lambda pack: pack.get_rows(NAME, slice(0, 100)),
    "get_slice": lambda pack: pack.get_slice(NAME)[:100],
    "get_encoded": lambda pack: pack.get_encoded(NAME).reconstruct_rows(),
    "get_encoded of rows": lambda pack: pack.get_encoded(NAME).reconstruct_rows(slice(0, 100)),
    "rows of get_encoded": lambda pack: pack.get_encoded(NAME, slice(0, 100)).reconstruct_rows(),
}


@pytest.mark.parametrize("profile", ["lookup", "f32", "bits:2"])
@pytest.mark.parametrize("door", DOORS)
def test_every_door_honours_the_budget(profile: str, door: str) -> None:
    with pytest.raises(HeaderError, match=r"rows take .* bytes to decode, the budget is 100000"):
        DOORS[door](made(profile, 100_000))
    DOORS[door](made(profile, 4 * N_ROWS * N_COLS + UNFOLDED))


def test_searching_the_lookup_grade_honours_the_budget() -> None:
    with pytest.raises(HeaderError, match=f"tensor '{NAME}': .* the budget is {UNFOLDED}"):
        made("lookup", UNFOLDED).scorer(NAME)
    made("lookup", 4 * UNFOLDED).scorer(NAME)


@pytest.mark.parametrize("door", ["get_rows", "get_encoded"])
def test_palettes_that_are_kept_unfolded_stay_below_the_budget_together(door: str) -> None:
    names = tuple(f"layers.0.self_attn.{role}_proj.weight" for role in ("q", "v", "gate", "up"))
    pack = made("lookup", 3 * UNFOLDED, names)
    expected = made("lookup", 1 << 30, names)
    assert len(pack.table.groups) == len(names)
    for _ in range(2):
        for name in names:
            row = pack.get_rows(name, [5]) if door == "get_rows" else pack.get_encoded(name).reconstruct_rows([5])
            np.testing.assert_array_equal(row, expected.get_rows(name, [5]))
            kept = [code.held_nbytes for code in pack._groups._codes.values()]
            assert UNFOLDED <= sum(kept) <= 3 * UNFOLDED


def test_rows_without_columns_are_not_searched() -> None:
    pack = hhtld.encode(ArraySource({"empty": np.zeros((1 << 40, 0), np.float32)}))
    assert pack.get_rows("empty", [7]).shape == (1, 0)
    with pytest.raises(ValueError, match="has no columns to search"):
        pack.scorer("empty")


def test_signs_are_drawn_in_pieces() -> None:
    n_cols = 100_003
    drawn = splitmix64(9, np.arange(2 * n_cols, dtype=np.uint64)) >> np.uint64(63)
    np.testing.assert_array_equal(Rotation(n_cols, 9).signs.reshape(-1), np.where(drawn, -1, 1))


def test_a_conversion_of_a_pack_honours_its_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hhtld.save(made("lookup", 1 << 30), tmp_path / "m.hhtld")
    needed = 4 * N_ROWS * N_COLS
    for target in ("m.safetensors", "plain/", "again.hhtld"):
        said = f"its tensors take {needed:,} bytes decoded, and the budget is {needed - 1:,}"
        with pytest.raises(HeaderError, match=said):
            hhtld.convert(tmp_path / "m.hhtld", f"{tmp_path / target}", budget=needed - 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.hhtld"]
    command = ["convert", str(tmp_path / "m.hhtld"), str(tmp_path / "m.safetensors"), "--budget"]
    assert main([*command, "1KiB"]) == 3
    assert "with --budget\n" in capsys.readouterr().err
    assert main([*command, "2MiB"]) == 0
    hhtld.convert(tmp_path / "m.hhtld", tmp_path / "again.safetensors")
    with pytest.raises(HeaderError, match="the budget is 7"):
        hhtld.load_file(tmp_path / "m.hhtld", budget=7)
