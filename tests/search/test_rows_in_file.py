"""A search in a file that is not mapped reads blocks of rows: the answers are the same, and memory does not grow."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import hhtld
import hhtld.pack.pack
import hhtld.search.estimates
from hhtld.errors import ClosedError
from hhtld.search.estimates import RowsInFile

PROFILES = {"bits:3": (9000, 160), "bits:2+2": (5000, 48), "bits:4": (700, 300), "gates": (900, 32)}
CHILD = """
import sys, numpy as np, hhtld
def resident(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
import hhtld.pack.pack, hhtld.search.estimates
hhtld.pack.pack._SEARCHED_NBYTES, hhtld.search.estimates._READ_NBYTES = 0, 1 << 20
with hhtld.open(sys.argv[1], io=sys.argv[2], io_threads=2) as pack:
    with hhtld.open(sys.argv[3], io=sys.argv[2], io_threads=2) as small:  # what any search takes
        small.scorer("ngram.weight").topk(np.ones(512), 3)
    before = resident("VmRSS")
    scorer = pack.scorer("ngram.weight")
    best = scorer.topk(np.ones(512), 3)
    print(resident("VmHWM") - before, scorer.nbytes, *best.rows)
"""


def table(n_rows: int, n_cols: int) -> NDArray[np.float32]:
    rows = np.random.default_rng(0).standard_normal((n_rows, n_cols), dtype=np.float32)
    rows[:: n_rows // 7] *= 5
    return rows


@pytest.mark.parametrize("io", ["pread", "direct"])
@pytest.mark.parametrize("profile", PROFILES)
def test_answers_are_those_of_a_mapped_file(
    profile: str, io: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, shape = tmp_path / "t.hhtld", PROFILES[profile]
    hhtld.save_file({"ngram.weight": table(*shape)}, path, profile=profile)
    queries = np.random.default_rng(1).standard_normal((3, shape[1]))
    monkeypatch.setattr(hhtld.pack.pack, "_SEARCHED_NBYTES", 0)
    monkeypatch.setattr(hhtld.search.estimates, "_READ_NBYTES", 10_000)
    with hhtld.open(path) as mapped, hhtld.open(path, io=io, io_threads=2) as read:
        for levels in (2, 1):
            expected, found = mapped.scorer("ngram.weight", levels), read.scorer("ngram.weight", levels)
            assert isinstance(found.tensor, RowsInFile)
            assert not isinstance(expected.tensor, RowsInFile)
            assert found.nbytes == 4 * shape[0]
            np.testing.assert_array_equal(found.scores(queries), expected.scores(queries))
            np.testing.assert_array_equal(found.argmax(queries), expected.argmax(queries))
            best, same = found.topk(queries, 9), expected.topk(queries, 9)
            np.testing.assert_array_equal(best.rows, same.rows)
            np.testing.assert_array_equal(best.scores, same.scores)
            rescored = [scorer.topk(queries[0], 5, rescore=table(*shape)) for scorer in (found, expected)]
            np.testing.assert_array_equal(rescored[0].rows, rescored[1].rows)
            np.testing.assert_array_equal(found.decoded(slice(3, 9)), expected.decoded(slice(3, 9)))
    with pytest.raises(ClosedError, match="closed"):
        found.argmax(queries[0])


def test_what_is_small_or_mapped_is_held(tmp_path: Path) -> None:
    path = tmp_path / "t.hhtld"
    hhtld.save_file({"ngram.weight": table(300, 64)}, path, profile="bits:3")
    options: list[dict[str, Any]] = [{}, {"io": "pread"}, {"io": "direct"}]
    for option in options:
        with hhtld.open(path, **option) as pack:
            assert not isinstance(pack.scorer("ngram.weight").tensor, RowsInFile)


def test_a_damaged_table_is_refused_before_it_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.hhtld"
    hhtld.save_file({"ngram.weight": table(3000, 64)}, path, profile="bits:3")
    monkeypatch.setattr(hhtld.pack.pack, "_SEARCHED_NBYTES", 0)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with hhtld.open(path, io="pread") as pack, pytest.raises(hhtld.ChecksumError, match="slot_t"):
        pack.scorer("ngram.weight")


def test_a_scorer_is_made_with_12_bytes_a_row_whatever_the_levels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, n_rows = tmp_path / "t.hhtld", 40_000
    hhtld.save_file({"ngram.weight": table(n_rows, 16)}, path, profile="bits:1+1")
    monkeypatch.setattr(hhtld.pack.pack, "_SEARCHED_NBYTES", 0)
    monkeypatch.setattr(hhtld.search.estimates, "_READ_NBYTES", 20_000)
    with hhtld.open(path, io="pread", io_threads=1) as first:
        first.scorer("ngram.weight")  # imports, and what the process keeps
    with hhtld.open(path, io="pread", io_threads=1) as pack:
        tracemalloc.start()
        try:
            scorer = pack.scorer("ngram.weight")
            held, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert scorer.nbytes == 4 * n_rows <= held < 5 * n_rows
    assert most < 14 * n_rows


def test_lengths_of_a_sample_read_no_other_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a level that is left out, too."""
    path, n_rows = tmp_path / "t.hhtld", 5000
    hhtld.save_file({"ngram.weight": table(n_rows, 48)}, path, profile="bits:2+2")
    monkeypatch.setattr(hhtld.pack.pack, "_SEARCHED_NBYTES", 0)
    with hhtld.open(path) as mapped, hhtld.open(path, io="pread") as pack:
        rows, held = pack.scorer("ngram.weight", 1)._rows, mapped.scorer("ngram.weight", 1)._rows
        assert isinstance(rows.tensor, RowsInFile)
        read, counts = rows.tensor.read, []

        def counted(wanted: Any) -> Any:
            counts.append(len(np.arange(n_rows)[wanted]))
            return read(wanted)

        rows.tensor.read = counted
        found, expected = rows.sample_lengths(), held.sample_lengths()
        omitted = pack.get_rows("ngram.weight", rows.sample) - pack.get_rows("ngram.weight", rows.sample, levels=1)
    for some, same in zip(found, expected, strict=True):
        assert some is not None
        np.testing.assert_array_equal(some, same)
    assert found[2] is not None
    np.testing.assert_allclose(found[2] / rows.unit, np.linalg.norm(omitted.astype(np.float64), axis=1), rtol=1e-4)
    assert 0 < max(counts) <= len(rows.sample) < n_rows


@pytest.mark.exhaustive
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("io", ["pread", "direct"])
def test_memory_of_a_search_does_not_hold_the_table(io: str, tmp_path: Path) -> None:
    """15 MB of codes, in blocks of 1 MiB; 12 bytes a row are held while the scorer is made."""
    path, small = tmp_path / "t.hhtld", tmp_path / "small.hhtld"
    rows = table(60_000, 512)
    hhtld.save_file({"ngram.weight": rows}, path, profile="bits:4")
    hhtld.save_file({"ngram.weight": rows[:5000]}, small, profile="bits:4")
    expected = hhtld.open(path).scorer("ngram.weight").topk(np.ones(512), 3)
    done = subprocess.run([sys.executable, "-c", CHILD, str(path), io, str(small)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    grown, held, *best = map(int, done.stdout.split())
    assert best == expected.rows.tolist()
    assert held == 4 * len(rows)
    assert grown < 10 << 20, "the table takes 15 MB"
