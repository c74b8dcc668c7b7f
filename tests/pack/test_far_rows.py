"""Rows whose places pass 2^32 bytes and 8 GiB: read from a file that is nearly all a hole, and from such a source."""

from __future__ import annotations

import json
import struct
import warnings
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import hhtld
from tests.far_rows import KEPT, N_ROWS, NAME, FarTable, hole_or_skip, write_far_table

MODES: dict[str, dict[str, Any]] = {
    "mmap": {},
    "pread": {"io": "pread"},
    "direct": {"io": "direct"},
    "cache": {"io": "pread", "row_cache": 1 << 16},
}


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FarTable]:
    path = tmp_path_factory.mktemp("far") / "far.hhtld"
    return path, write_far_table(path)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_rows_beyond_4_gib_are_found(far: tuple[Path, FarTable], mode: dict[str, Any]) -> None:
    path, table = far
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a file system without O_DIRECT says so
        opened = hhtld.open(path, **mode)
    with opened as pack:
        assert pack.info(NAME).info.n_rows == N_ROWS
        pack.prefetch(NAME, table.ids)
        for _ in range(2):  # the second time from the cache, if there is one
            np.testing.assert_array_equal(pack.get_rows(NAME, table.ids[::-1]), table.rows[::-1])
        for number, row in zip(table.ids.tolist(), table.rows, strict=True):
            np.testing.assert_array_equal(pack.get_rows(NAME, [number - N_ROWS]), row[None])
            np.testing.assert_array_equal(pack.get_rows(NAME, slice(number, number + 1)), row[None])
        np.testing.assert_array_equal(pack.get_rows(NAME, slice(N_ROWS - 2, None)), table.rows[-2:])
        assert not pack.get_rows(NAME, [1 << 26]).any(), "a row in the hole has a gain of zero"
        np.testing.assert_array_equal(pack.get_tensor(KEPT), table.kept)
        with pytest.raises(IndexError, match=f"rows must lie in 0..{N_ROWS - 1}, got {N_ROWS}"):
            pack.get_rows(NAME, [N_ROWS])


def test_a_table_that_lies_beyond_4_gib_of_its_source_is_converted(tmp_path: Path) -> None:
    hole_or_skip(tmp_path)
    n_before, table = (5 << 30) + 6, np.random.default_rng(1).standard_normal((300, 160), np.float32)
    stored = table.astype(ml_dtypes.bfloat16)
    header = {
        "a_hole": {"dtype": "U8", "shape": [n_before], "data_offsets": [0, n_before]},
        NAME: {"dtype": "BF16", "shape": [300, 160], "data_offsets": [n_before, n_before + stored.nbytes]},
    }
    text = json.dumps(header).encode()
    source, target = tmp_path / "far.safetensors", tmp_path / "table.hhtld"
    with source.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.seek(n_before, 1)
        file.write(stored.tobytes())
    hhtld.convert(source, target, only=[NAME], profile="bits:4")
    with hhtld.open(target) as pack:
        assert list(pack) == [NAME]
        rows = pack.get_rows(NAME, None)
    wanted = stored.astype(np.float32)
    cosines = (rows * wanted).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(wanted, axis=1)
    assert np.median(cosines) > 0.9968
