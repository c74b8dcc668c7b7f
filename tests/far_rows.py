"""A pack of a table of 9 GB, a sparse file: only rows at its ends and where offsets pass 2^32 were written."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

import hhtld
from hhtld.pack.container import ALIGNMENT, END_MAGIC, HEADER, TRAILER
from hhtld.sizes import align_up

__all__ = ["FarTable", "hole_or_skip", "write_far_table"]

N_ROWS, N_COLS, CODE_NBYTES = 110_000_003, 160, 80
NAME, KEPT = "model.per_layer_token_embd.weight", "model.z_norm.weight"


class FarTable(NamedTuple):
    """The rows of the table that exist, decoded from a small pack of them, and a kept tensor that lies behind it.

    Attributes
    ----------
    ids : ndarray of int64, shape (n,)
    rows : ndarray of float32, shape (n, n_cols)
    kept : ndarray of float32
    """

    ids: NDArray[np.int64]
    rows: NDArray[np.float32]
    kept: NDArray[np.float32]


def hole_or_skip(folder: Path) -> None:
    """Skip the test if the file system stores the zeros of a file's holes."""
    probe = folder / "hole"
    probe.touch()
    os.truncate(probe, 16 << 20)
    stored = getattr(probe.stat(), "st_blocks", 1 << 20) * 512
    probe.unlink()
    if stored > 1 << 20:
        pytest.skip("the file system has no sparse files")


def write_far_table(path: Path) -> FarTable:
    """Write the pack; what lies between the rows that exist was never written, and reads as zeros."""
    hole_or_skip(path.parent)
    past_4_gib = (1 << 32) // CODE_NBYTES  # one of these rows lies on both sides of 2^32 bytes of its section
    ids = np.array([0, 1, *range(past_4_gib - 3, past_4_gib + 4), N_ROWS - 2, N_ROWS - 1])
    table = np.random.default_rng(0).standard_normal((len(ids), N_COLS), np.float32)
    kept = np.arange(5, dtype=np.float32)
    small = path.with_suffix(".small")
    hhtld.save(hhtld.encode({NAME: table, KEPT: kept}, "bits:4"), small)
    with hhtld.open(small) as pack:
        rows = pack.get_rows(NAME, None)
    data = small.read_bytes()
    start, nbytes, *_ = TRAILER.unpack(data[-TRAILER.size :])
    text = json.loads(data[start : start + nbytes])
    by_row = _grow(text, len(ids))
    with path.open("wb") as file:
        file.write(data[: HEADER.size])
        end = HEADER.size
        for number, section in enumerate(text["sections"]):
            content = data[section["offset"] : section["offset"] + section["nbytes"]]
            section["offset"] = end = align_up(end, ALIGNMENT)
            width = by_row.get(number)
            if width is None:
                file.seek(end)
                file.write(content)
            else:
                section["nbytes"] = width * N_ROWS
                for place, row in enumerate(ids.tolist()):
                    file.seek(end + width * row)
                    file.write(content[width * place : width * (place + 1)])
            end += section["nbytes"]
        _finish(file, text, align_up(end, ALIGNMENT))
    assert path.stat().st_size > 1 << 33
    return FarTable(ids, rows, kept)


def _grow(text: dict[str, Any], n_rows: int) -> dict[int, int]:
    """Give the table all of its rows, and return the bytes of a row of each section that holds rows."""
    (group,) = text["groups"]
    group["shape"] = [N_ROWS, N_COLS]
    entry = next(entry for entry in text["tensors"] if entry["name"] == NAME)
    entry["shape"] = [N_ROWS, N_COLS]
    entry.pop("gates")
    assert text["sections"][entry["sections"]["slot_t"]]["nbytes"] == CODE_NBYTES * n_rows
    return {number: text["sections"][number]["nbytes"] // n_rows for number in entry["sections"].values()}


def _finish(file: Any, text: dict[str, Any], start: int) -> None:
    table = json.dumps(text, sort_keys=True, separators=(",", ":")).encode()
    crc = zlib.crc32(table, zlib.crc32(struct.pack("<QQ", start, len(table))))
    after = align_up(start + len(table), ALIGNMENT)
    facts = (start, len(table), crc)
    own = zlib.crc32(TRAILER.pack(*facts, 0, after + TRAILER.size, END_MAGIC))
    file.seek(start)
    file.write(table)
    file.seek(after)
    file.write(TRAILER.pack(*facts, own, after + TRAILER.size, END_MAGIC))
