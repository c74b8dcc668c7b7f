"""How the stored codebooks were made still makes such codebooks; a small search, for the stored one took minutes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hhtld.slots.codebooks import train

STORED = Path(train.__file__).parent / "crossed.bin"
RECORD_NBYTES = 2 + 72  # a step, three crossings of 16 nibbles, three tables of 16 levels


def stored(rate: int) -> tuple[int, bytes]:
    """Return the step and the codebook that are stored for a rate."""
    record = STORED.read_bytes()[list(train.RATES).index(rate) * RECORD_NBYTES :][:RECORD_NBYTES]
    return int.from_bytes(record[:2], "little"), record[2:]


def test_a_codebook_is_stored_for_every_rate() -> None:
    assert STORED.stat().st_size == len(train.RATES) * RECORD_NBYTES


def test_a_short_search_climbs_and_comes_near_to_what_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = list(train.climb(range(32, 35, 2), draws=1, changes=2))
    monkeypatch.setattr(train, "climb", lambda: iter(found))
    train.main(tmp_path)
    written = (tmp_path / "crossed.bin").read_bytes()
    assert len(written) == 2 * RECORD_NBYTES
    assert len(capsys.readouterr().err.splitlines()) == 2
    rows = np.random.default_rng(5).standard_normal((32, 1024)).astype(np.float32)
    for number, (rate, code) in enumerate(found):
        tables, step = code.rounded()
        record = written[number * RECORD_NBYTES :][:RECORD_NBYTES]
        assert record == step.to_bytes(2, "little") + code.to_bytes()
        assert record[-48:] == tables.tobytes()
        levels, _ = code.levels()
        assert levels.shape == (1 << train.N_BITS,)
        kept = as_stored(*stored(rate))
        assert kept.to_bytes() == stored(rate)[1]
        assert 0 < train.gap(kept, rows, rate) < train.gap(code, rows, rate) < 0.25


def as_stored(step: int, codebook: bytes) -> train.Crossed:
    """Return a stored codebook as the search has it."""
    nibbles = np.frombuffer(codebook[:24], np.uint8)
    crossing = np.stack([nibbles & 15, nibbles >> 4], axis=1).reshape(3, 16).astype(np.int64)
    tables = np.frombuffer(codebook[24:], np.int8).reshape(3, 16)
    return train.Crossed(crossing, tables * (step / train.SIGMA))
