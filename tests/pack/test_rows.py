"""Many rows by number: every way to read them gives the same rows, each row is read once, and what fails says so."""

from __future__ import annotations

import contextlib
import copy
import errno
import multiprocessing
import os
import pickle
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

import hhtld
from hhtld._kernels import _pread
from hhtld.dtypes import DTYPES, rounded
from hhtld.errors import ClosedError, FormatError, HeaderError
from hhtld.pack.row_request import RowRequest
from hhtld.storage import descriptors, run_reads
from hhtld.storage.run_reads import Runs
from hhtld.storage.thread_pool import Threads

N_ROWS, N_COLS = 5000, 160
NAMES = ("ngram_embed.weight", "keys", "kept.bf16", "numbers")
MODES: dict[str, dict[str, Any]] = {
    "mmap": {},
    "mmap, 3 threads": {"io_threads": 3},
    "pread, 1 thread": {"io": "pread", "io_threads": 1},
    "pread": {"io": "pread"},
    "direct": {"io": "direct", "io_threads": 3},
    "cache": {"io": "pread", "row_cache": 1 << 16},
    "mapped cache": {"row_cache": 1 << 22},
}
every_mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table, the same with two levels, and two tensors that are kept."""
    draw = np.random.default_rng(0)
    rows = draw.standard_normal((N_ROWS, N_COLS), dtype=np.float32)
    rows[17] = 0
    found = tmp_path_factory.mktemp("rows") / "table.hhtld"
    tensors = {
        NAMES[0]: rows,
        NAMES[1]: rows[:100].astype(ml_dtypes.bfloat16),
        NAMES[2]: rows[:90, :7].astype(ml_dtypes.bfloat16),
        NAMES[3]: np.arange(300).reshape(100, 3),
    }
    save_file(tensors, found.with_suffix(".safetensors"))
    rules = [(NAMES[1], "bits:2+2"), (NAMES[2], "keep")]
    hhtld.convert(found.with_suffix(".safetensors"), found, profile="bits:3", rules=rules, jobs=1)
    return found


@pytest.fixture(scope="module")
def decoded(path: Path) -> dict[str, NDArray[Any]]:
    """All of it, as `get_tensor` gives it."""
    with hhtld.open(path) as pack:
        return {name: pack.get_tensor(name) for name in pack}


def requests(n_rows: int) -> dict[str, NDArray[Any]]:
    draw = np.random.default_rng(1)
    return {
        "random": draw.integers(0, n_rows, 4 * n_rows),
        "each once": draw.permutation(n_rows),
        "ascending": np.arange(0, n_rows, 3),
        "from the end": draw.integers(-n_rows, n_rows, n_rows // 2),
        "one": np.array([n_rows - 1]),
        "one again and again": np.full(3 * n_rows, 5),
        "two": np.array([7, 3], np.uint16),
        "none": np.array([], np.int64),
    }


@every_mode
def test_rows_are_those_of_the_whole_tensor(path: Path, decoded: dict[str, NDArray[Any]], mode: dict[str, Any]) -> None:
    with hhtld.open(path, **mode) as pack:
        for name in NAMES:
            whole = decoded[name]
            for what, ids in requests(len(whole)).items():
                found = pack.get_rows(name, ids)
                assert found.dtype == whole.dtype, (name, what)
                np.testing.assert_array_equal(found, whole[ids], f"{name}, {what}")
                found[:] = 7  # what was given is the caller's
            np.testing.assert_array_equal(pack.get_rows(name, slice(3, 60)), whole[3:60])
            np.testing.assert_array_equal(pack.get_rows(name, slice(None)), whole)
            np.testing.assert_array_equal(pack.get_rows(name, slice(60, 3, -2)), whole[60:3:-2])


@pytest.mark.parametrize("n_cols", [256, 362, 512, 300_000])
@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "int8", "float64"])
def test_all_rows_of_a_kept_tensor_are_its_bytes_whatever_their_number(kind: str, n_cols: int, tmp_path: Path) -> None:
    """Of F32 with 256 columns and of I8 with 512, a block's number of rows is the number of a row's elements."""
    dtype = np.dtype(getattr(ml_dtypes, kind, kind))
    rows = np.random.default_rng(0).integers(-99, 99, (max(4, 600_000 // n_cols), n_cols)).astype(dtype)
    save_file({"table": rows, "few": rows[:2]}, tmp_path / "kept.safetensors")
    hhtld.convert(tmp_path / "kept.safetensors", tmp_path / "kept.hhtld", rules=[("*", "keep")], min_ratio=0)
    with hhtld.open(tmp_path / "kept.hhtld") as pack:
        for name, expected in (("table", rows), ("few", rows[:2])):
            for every in (None, slice(None)):
                assert pack.get_rows(name, every, dtype="source").tobytes() == expected.tobytes()
                out = np.zeros_like(expected)
                assert pack.get_rows(name, every, out, dtype="source").tobytes() == expected.tobytes()
                np.testing.assert_array_equal(pack.get_rows(name, every), expected.astype(pack.get_tensor(name).dtype))
            np.testing.assert_array_equal(pack.get_slice(name)[:], pack.get_tensor(name))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "source"])
def test_types_and_arrays_to_fill(path: Path, decoded: dict[str, NDArray[Any]], dtype: str) -> None:
    kinds = {"bfloat16": DTYPES["BF16"], "float16": DTYPES["F16"], "float32": DTYPES["F32"]}
    with hhtld.open(path) as pack:
        for name in NAMES:
            whole = decoded[name]
            source = pack.info(name).info.dtype
            kind = kinds.get(dtype, source) if source.is_weight else source
            wanted = rounded(whole, kind) if source.is_weight else whole
            for what, ids in requests(len(whole)).items():
                found = pack.get_rows(name, ids, dtype=dtype)
                assert found.dtype == kind.numpy
                np.testing.assert_array_equal(found.astype(whole.dtype), wanted[ids], f"{name}, {what}")
                room = np.full((2 * len(ids) + 1, whole.shape[1]), 9, kind.numpy)
                for out in (room[: len(ids)], room[1::2], np.asfortranarray(room[1::2])):
                    assert pack.get_rows(name, ids, out, dtype=dtype) is out
                    np.testing.assert_array_equal(out.astype(whole.dtype), wanted[ids], f"{name}, {what}")


def test_what_cannot_be_filled_or_asked_for_is_refused(path: Path) -> None:
    name = NAMES[0]
    fixed = np.zeros((2, N_COLS), np.float32)
    fixed.flags.writeable = False
    with hhtld.open(path) as pack:
        for ids in ([1, 2], [2, 2, 2, 2]):
            for out in (
                np.empty((len(ids), N_COLS)),
                np.empty((len(ids), N_COLS - 1), np.float32),
                np.empty(len(ids) * N_COLS, np.float32),
                [[0.0] * N_COLS] * len(ids),
                fixed,
            ):
                with pytest.raises(ValueError, match=r"out must be a writeable array of float32 \(\d, 160\), got"):
                    pack.get_rows(name, ids, out)  # type: ignore[arg-type]  # what the test is about
        with pytest.raises(ValueError, match="dtype must be one of 'float32', 'bfloat16', 'float16', 'source'"):
            pack.get_rows(name, [1], dtype="int8")
        for call in (pack.get_rows, pack.prefetch):
            with pytest.raises(IndexError, match=r"rows must lie in 0\.\.4999, got 3\.\.5000"):
                call(name, [3, N_ROWS])
            with pytest.raises(TypeError, match="flat sequence of integers"):
                call(name, [0.5])
            with pytest.raises(TypeError, match="row numbers are a masked array; fill it first"):
                call(name, np.ma.array([1, 2], mask=[False, True]))
            with pytest.raises(KeyError):
                call("no_such_table", [0])
    for options, said in (
        ({"io": "io_uring"}, "io must be one of 'mmap', 'pread', 'direct', got 'io_uring'"),
        ({"io_threads": 0}, "io_threads must be a whole number, 1 or more, got 0"),
        ({"io_threads": 1.5}, "io_threads must be a whole number"),
        ({"row_cache": -1}, "row_cache must be a number of bytes, 0 or more, got -1"),
    ):
        with pytest.raises(ValueError, match=said):
            hhtld.open(path, **options)


def test_a_request_reads_each_row_once_in_the_order_of_the_file() -> None:
    ids = np.array([5, 3, 5, 9, 3, 0])
    request = RowRequest.of(ids, 10)
    assert isinstance(request.rows, np.ndarray)
    assert request.rows.tolist() == [0, 3, 5, 9]
    assert request.rows[request.picks].tolist() == ids.tolist()
    assert request.repeats
    assert not RowRequest.of(ids[2:], 10).repeats
    assert RowRequest.of(np.array([1, 4, 6]), 10).picks is None
    assert RowRequest.of(slice(2, 5), 10) == (slice(2, 5), None, 3)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Runs]:
    """Return what will be asked of files."""
    asked: list[Runs] = []
    read_runs = run_reads.read_runs

    def note(fd: int, runs: Runs, out: NDArray[np.uint8]) -> tuple[int, int]:
        asked.append(runs)
        return read_runs(fd, runs, out)

    monkeypatch.setattr(run_reads, "read_runs", note)
    return asked


def test_one_read_a_row_and_section(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hhtld.open(path, io="pread", io_threads=1) as pack:
        row_nbytes = pack.nbytes(NAMES[0]) // N_ROWS
        pack.get_rows(NAMES[0], [0])
        asked = counted(monkeypatch)
        pack.get_rows(NAMES[0], [4000, 20, 4000, 3000, 21, 20])
    assert [len(runs.offsets) for runs in asked] == [3, 3]  # gains and codes; 20 and 21 are neighbours
    assert all((np.diff(runs.offsets) > 0).all() for runs in asked)
    assert sum(int(runs.nbytes.sum()) for runs in asked) == 4 * row_nbytes


# ---- ahead ----


@every_mode
def test_rows_that_were_read_ahead_are_not_read_again(
    path: Path, decoded: dict[str, NDArray[Any]], mode: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with hhtld.open(path, **mode) as pack:
        for name in NAMES:
            whole = decoded[name]
            ids = np.random.default_rng(2).permutation(len(whole))
            pack.prefetch(name, np.repeat(ids, 2) - len(whole))
            pack.prefetch(name, [1, 5, 2])
            pack.prefetch(name, [])
            assert pack._ahead is not None
            for call in list(pack._ahead._fetched):
                call.future.result()
            with monkeypatch.context() as patch:
                patch.setattr(pack.sections, "rows", None)  # a call of it would fail
                for part in (ids[:50], ids[70:50:-1], ids[80:], [5], [2, 1]):
                    np.testing.assert_array_equal(pack.get_rows(name, part), whole[part])
            rest = pack.get_rows(name, [7, 3])
            np.testing.assert_array_equal(rest, whole[[7, 3]])


def test_what_was_read_ahead_is_let_go(path: Path) -> None:
    with hhtld.open(path) as pack:
        pack.prefetch(NAMES[0], [3, 4])
        pack.get_rows(NAMES[0], [4, 3])
        assert pack._ahead is not None
        assert not pack._ahead.is_waiting
        for number in range(40):
            pack.prefetch(NAMES[0], [number])
        assert len(pack._ahead._fetched) == 16
        with hhtld.open(path) as other:
            other.prefetch(NAMES[0], slice(2, 4))
            assert other.get_rows(NAMES[0], [3, 2]).shape == (2, N_COLS)
    assert not pack._ahead.is_waiting
    with pytest.raises(ClosedError, match="closed"):
        pack.prefetch(NAMES[0], [1])


def test_what_fails_ahead_is_raised_by_who_asks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hhtld.open(path, io="pread", io_threads=1) as pack:
        pack.get_rows(NAMES[0], [0])
        with monkeypatch.context() as patch:
            patch.setattr(run_reads, "read_runs", lambda *_: (0, errno.EIO))
            pack.prefetch(NAMES[0], [3, 4])
            with pytest.raises(OSError, match=r"Input/output error, reading at byte \d+: '.*table\.hhtld'"):
                pack.get_rows(NAMES[0], [3])
        assert pack.get_rows(NAMES[0], [4, 3]).shape == (2, N_COLS)


# ---- kept ----


def test_a_cache_reads_nothing_twice_and_keeps_its_limit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.random.default_rng(3).integers(0, N_ROWS, 400)
    with hhtld.open(path, io="pread", io_threads=1, row_cache=1 << 20) as pack:
        first = pack.get_rows(NAMES[0], ids)
        n_misses = pack.cache_info().misses
        asked = counted(monkeypatch)
        np.testing.assert_array_equal(pack.get_rows(NAMES[0], ids[::-1]), first[::-1])
        np.testing.assert_array_equal(pack.get_rows(NAMES[0], ids[:1]), first[:1])
        assert not asked
        info = pack.cache_info()
        assert info.misses == n_misses == 2 * len(np.unique(ids))  # gains and codes
        assert info.hits == n_misses + 2
        assert 0 < info.nbytes <= info.limit == 1 << 20
        pack.get_rows(NAMES[1], [1, 2])
        assert pack.cache_info().nbytes <= 1 << 20
    with hhtld.open(path, row_cache=100) as pack:
        np.testing.assert_array_equal(pack.get_rows(NAMES[0], ids), first)
        assert pack.cache_info().nbytes <= 100
    with hhtld.open(path) as pack:
        assert pack.cache_info() == (0, 0, 0, 0)


# ---- at once ----


@every_mode
def test_threads_read_at_once(path: Path, decoded: dict[str, NDArray[Any]], mode: dict[str, Any]) -> None:
    gate = threading.Barrier(8)
    with hhtld.open(path, **mode) as pack:

        def work(seed: int) -> None:
            draw = np.random.default_rng(seed)
            gate.wait()
            for _ in range(10):
                ids = draw.integers(0, N_ROWS, int(draw.integers(1, 3000)))
                if seed % 2:
                    pack.prefetch(NAMES[0], ids)
                np.testing.assert_array_equal(pack.get_rows(NAMES[0], ids), decoded[NAMES[0]][ids])

        with ThreadPoolExecutor(8) as executor:
            list(executor.map(work, range(8)))


@every_mode
def test_closing_ends_every_thread_and_reads_beside_it_are_whole(
    path: Path, decoded: dict[str, NDArray[Any]], mode: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(threading.enumerate())
    monkeypatch.setattr(run_reads, "read_cached", lambda fd, runs, out: np.arange(len(runs.offsets)))
    ids = np.random.default_rng(6).integers(0, N_ROWS, 3000)
    begun = threading.Event()
    with hhtld.open(path, **(mode | {"io_threads": 50})) as pack, ThreadPoolExecutor(3) as executor:

        def read_until_closed() -> int:
            n_reads = 0
            while True:
                try:
                    np.testing.assert_array_equal(pack.get_rows(NAMES[0], ids), decoded[NAMES[0]][ids])
                except ClosedError:
                    return n_reads
                n_reads += 1
                begun.set()

        readers = [executor.submit(read_until_closed) for _ in range(3)]
        assert begun.wait(60)
        for number in range(20):
            pack.prefetch(NAMES[0], ids[number:])
        pack.close()
        assert sum(reader.result() for reader in readers) > 0
    assert set(threading.enumerate()) <= before


def test_rows_read_ahead_of_a_pack_that_is_closed_meanwhile(path: Path) -> None:
    ids = np.random.default_rng(6).integers(0, N_ROWS, 2000)
    for _ in range(20):
        with hhtld.open(path) as pack, ThreadPoolExecutor(4) as executor:

            def take_until_closed() -> None:
                with contextlib.suppress(ClosedError):
                    while True:
                        pack.prefetch(NAMES[0], ids)
                        pack.get_rows(NAMES[0], ids)

            takers = [executor.submit(take_until_closed) for _ in range(4)]
            time.sleep(0.01)
            pack.close()
            for taker in takers:
                taker.result()


def test_calls_of_closed_threads_are_done_at_once() -> None:
    threads = Threads(3)
    assert threads.each(lambda number: -number, range(9)) == [-number for number in range(9)]
    threads.close()
    threads.close()
    assert threads.each(lambda number: threading.get_ident(), range(4)) == [threading.get_ident()] * 4
    with pytest.raises(ZeroDivisionError):
        threads.submit(lambda: 1 // 0).result()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@every_mode
def test_a_child_of_fork_has_threads_of_its_own(
    path: Path, decoded: dict[str, NDArray[Any]], mode: dict[str, Any]
) -> None:
    ids = np.random.default_rng(4).integers(0, N_ROWS, 2000)
    with hhtld.open(path, **mode) as pack:
        pack.prefetch(NAMES[0], ids)
        pack.get_rows(NAMES[0], ids[::2])
        pack.prefetch(NAMES[0], ids)
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            pack.prefetch(NAMES[0], ids[:50])
            same = all((pack.get_rows(NAMES[0], part) == decoded[NAMES[0]][part]).all() for part in (ids, ids[:50]))
            os._exit(0 if same else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def rows_in_a_child(pack: hhtld.HhtldPack, ids: NDArray[Any]) -> tuple[bytes, str, int]:
    """What a spawned process does with a pack that it is sent."""
    return pack.get_rows(NAMES[0], ids).tobytes(), pack.sections.io, pack.cache_info().limit  # type: ignore[attr-defined]  # of a pack from a file


def test_a_pack_is_sent_to_another_process_and_read_there_as_here(path: Path, decoded: dict[str, NDArray[Any]]) -> None:
    ids = np.arange(100, 0, -3)
    with hhtld.open(path, io="pread", io_threads=2, row_cache=1 << 12) as pack:
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            found, io, limit = pool.apply(rows_in_a_child, (pack, ids))
        assert (found, io, limit) == (decoded[NAMES[0]][ids].tobytes(), "pread", 1 << 12)
        again = pickle.loads(pickle.dumps(pack))
        again.close()


def rows_by_threads(pack: hhtld.HhtldPack, seeds: list[int]) -> list[bytes]:
    """What four threads of a process read at once, of the rows of each seed."""

    def read(seed: int) -> bytes:
        ids = np.random.default_rng(seed).integers(0, N_ROWS, 1500)
        return b"".join(pack.get_rows(NAMES[0], part).tobytes() for part in np.split(ids, 5))

    with ThreadPoolExecutor(4) as threads:
        return list(threads.map(read, seeds))


@pytest.mark.parametrize("io", ["mmap", "pread", "direct"])
def test_two_processes_of_four_threads_read_the_same_rows(
    path: Path, decoded: dict[str, NDArray[Any]], io: str
) -> None:
    seeds = [list(range(4)), list(range(4, 8))]
    context = multiprocessing.get_context("spawn")
    with hhtld.open(path, io=io, io_threads=2) as pack, ProcessPoolExecutor(2, context) as processes:
        found = list(processes.map(rows_by_threads, [pack] * 2, seeds))
    for part, rows in zip(seeds, found, strict=True):
        for seed, read in zip(part, rows, strict=True):
            ids = np.random.default_rng(seed).integers(0, N_ROWS, 1500)
            assert read == decoded[NAMES[0]][ids].tobytes()


def test_a_pack_is_not_sent_where_its_file_is_another(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.hhtld"
    copy.write_bytes(path.read_bytes())
    with hhtld.open(copy) as pack:
        sent = pickle.dumps(pack)
        hhtld.save_file({"w": np.ones((4, 4), np.float32)}, copy)
        with pytest.raises(HeaderError, match="another file than the one whose pack was sent"):
            pickle.loads(sent)
    copy.write_bytes(path.read_bytes())
    with hhtld.open(copy) as pack:
        sent = pickle.dumps(pack)
        overwrite(copy)
        with pytest.raises(HeaderError, match="another file than the one whose pack was sent"):
            pickle.loads(sent)


# ---- what fails ----


def overwrite(path: Path) -> None:
    """Change a byte of a table's codes, as a program that does not replace files does."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 255]))
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))  # writes within a tick of the clock look like one


CHANGED = re.compile("was written to while it was open|became shorter while it was open")


def truncate(path: Path) -> None:
    os.truncate(path, 4096)


@every_mode
@pytest.mark.parametrize("change", [overwrite, truncate])
@pytest.mark.parametrize("ids", [[3], [4000, 3], slice(10, 3000)], ids=["one", "two", "many"])
def test_a_file_that_changes_under_its_reader_is_an_error(
    path: Path, tmp_path: Path, mode: dict[str, Any], change: Callable[[Path], None], ids: Any
) -> None:
    copy = tmp_path / "copy.hhtld"
    copy.write_bytes(path.read_bytes())
    with hhtld.open(copy, **mode) as pack:
        pack.get_rows(NAMES[0], [1])
        change(copy)
        with pytest.raises(FormatError, match=CHANGED):
            pack.get_rows(NAMES[0], ids)
        with pytest.raises(FormatError, match=CHANGED):
            pack.get_tensor(NAMES[0])


@pytest.mark.parametrize("change", [overwrite, truncate])
def test_a_scorer_of_a_mapped_file_that_changes_does_not_answer(
    path: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    changed = tmp_path / "copy.hhtld"
    changed.write_bytes(path.read_bytes())
    query = np.ones(N_COLS, np.float32)
    with hhtld.open(changed) as pack:
        scorer = pack.scorer(NAMES[0])
        best = scorer.argmax(query)
        sent, shallow = pickle.loads(pickle.dumps(scorer)), copy.copy(scorer)
        change(changed)
        for ask in (
            lambda: scorer.topk(query, 3),
            lambda: scorer.scores(query),
            lambda: scorer.decoded([1]),
            lambda: shallow.argmax(query),
        ):
            with pytest.raises(FormatError, match=CHANGED):
                ask()
        with pytest.raises(FormatError, match=CHANGED):
            pack.scorer(NAMES[0])
        assert sent.argmax(query) == best, "which holds bytes of its own"


@pytest.mark.parametrize(
    "mode", [m for m in MODES.values() if "io" in m], ids=[n for n, m in MODES.items() if "io" in m]
)
def test_a_device_that_fails_is_an_error_with_the_files_name(
    path: Path, mode: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with hhtld.open(path, **mode) as pack:
        pack.get_rows(NAMES[0], [1])
        for name in ("read_runs", "read_blocks"):
            monkeypatch.setattr(run_reads, name, lambda *_: (0, errno.EIO))
        monkeypatch.setattr(run_reads, "read_cached", lambda fd, runs, out: np.arange(len(runs.offsets)))
        with pytest.raises(OSError, match=r"Input/output error, reading at byte \d+: '.*table\.hhtld'") as caught:
            pack.get_rows(NAMES[0], [3000, 7])
        assert caught.value.errno == errno.EIO


def test_single_reads_name_the_file_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with hhtld.open(path, io="pread") as pack:
        monkeypatch.setattr(descriptors, "read_into", failing)
        with pytest.raises(OSError, match=r"Input/output error, reading at byte \d+: '.*table\.hhtld'"):
            pack.get_rows(NAMES[0], [7])


# ---- other systems ----


@pytest.mark.parametrize("missing", [("preadv",), ("pread", "preadv"), ("O_DIRECT",), ("O_CLOEXEC", "O_NONBLOCK")])
@pytest.mark.parametrize("io", ["mmap", "pread", "direct"])
def test_a_system_without_a_function_reads_the_same(
    path: Path, decoded: dict[str, NDArray[Any]], io: str, missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in missing:
        monkeypatch.delattr(os, name, raising=False)
    falls_back = io == "direct" and not (hasattr(os, "preadv") and hasattr(os, "O_DIRECT"))
    if falls_back:
        with pytest.warns(UserWarning, match=r"past the page cache \(O_DIRECT\); it is read as with io='pread'"):
            pack = hhtld.open(path, io=io, io_threads=2)
    else:
        pack = hhtld.open(path, io=io, io_threads=2)
    ids = np.random.default_rng(5).integers(0, N_ROWS, 700)
    with pack:
        assert pack.sections.io == ("pread" if falls_back else io)  # type: ignore[attr-defined]  # of a pack from a file
        np.testing.assert_array_equal(pack.get_rows(NAMES[0], ids), decoded[NAMES[0]][ids])
        np.testing.assert_array_equal(pack.get_tensor(NAMES[0]), decoded[NAMES[0]])


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="the system has no O_DIRECT, and is never asked")
def test_a_file_system_that_refuses_direct_reads_is_read_otherwise(
    path: Path, decoded: dict[str, NDArray[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def refusing(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return opened(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", refusing)
    with pytest.warns(UserWarning, match="it is read as with io='pread'"), hhtld.open(path, io="direct") as pack:
        np.testing.assert_array_equal(pack.get_rows(NAMES[0], [9, 2]), decoded[NAMES[0]][[9, 2]])


@pytest.mark.skipif(sys.platform == "win32", reason="the system cannot be asked there, and Python is")
def test_a_file_is_the_same_while_its_size_and_times_are(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(100))
    fd = os.open(path, os.O_RDONLY)
    then = os.fstat(fd)
    assert _pread.is_same(fd, then.st_size, then.st_mtime_ns, then.st_ctime_ns)
    for wrong in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        facts = (then.st_size, then.st_mtime_ns, then.st_ctime_ns)
        assert not _pread.is_same(fd, *(fact + by for fact, by in zip(facts, wrong, strict=True)))
    os.close(fd)
    assert not _pread.is_same(-1, then.st_size, then.st_mtime_ns, then.st_ctime_ns)


def test_runs_that_no_file_has_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(range(100)))
    out = np.zeros(10, np.uint8)
    fd = os.open(tmp_path / "x", os.O_RDONLY)

    def runs(*triples: tuple[int, int, int]) -> tuple[NDArray[np.int64], ...]:
        return tuple(np.array(column, np.int64) for column in zip(*triples, strict=True))

    for read, rest in ((_pread.read_runs, ()), (_pread.read_blocks, (16, 64, 0)), (_pread.read_blocks, (16, 112, 64))):
        assert read(fd, *runs((95, 5, 0), (0, 2, 8)), out, *rest) == (-1, 0)
        assert out.tolist() == [95, 96, 97, 98, 99, 0, 0, 0, 0, 1]
        assert read(fd, *runs((0, 2, 0), (95, 6, 0)), out, *rest) == (1, 0)  # past the end
        assert read(-1, *runs((0, 2, 0)), out, *rest) == (0, errno.EBADF)
        for bad in ((-1, 1, 0), (0, 0, 0), (0, 11, 0), (0, 5, 6), (0, 1, -1), (0, 2**62, 2**62)):
            with pytest.raises(ValueError, match="do not fit"):
                read(fd, *runs((0, 1, 0), bad), out, *rest)
        with pytest.raises(ValueError, match="an offset, a length and a place each"):
            read(fd, np.zeros(1, np.int64), np.zeros(2, np.int64), np.zeros(1, np.int64), out, *rest)
    wide = np.zeros(100, np.uint8)
    assert _pread.read_blocks(fd, *runs((1, 99, 0)), wide[:99], 16, 32, 16) == (-1, 0)  # longer than the room
    assert wide[:99].tolist() == list(range(1, 100))
    for room in (16, 40, 0):
        with pytest.raises(ValueError, match="whole blocks"):
            _pread.read_blocks(fd, *runs((1, 9, 0)), wide, 16, room, 0)
    with pytest.raises(ValueError, match="the gap must be 0 bytes or more, got -1"):
        _pread.read_blocks(fd, *runs((1, 9, 0)), wide, 16, 32, -1)
    missed = np.zeros(2, np.int64)
    n_missed = _pread.read_cached(fd, *runs((3, 1, 0), (98, 9, 1)), out, missed)
    assert missed[:n_missed].tolist()[-1:] == [1]  # what ends too early is left to who reads it and says so
    with pytest.raises(ValueError, match="missed has room for 1 of 2 runs"):
        _pread.read_cached(fd, *runs((3, 1, 0), (4, 1, 1)), out, missed[:1])
    os.close(fd)


@pytest.mark.skipif(not Path("/proc/thread-self/io").exists(), reason="needs a count of reads, as Linux has")
@pytest.mark.parametrize(
    ("gap", "room", "n_reads"),
    [
        (0, 1 << 16, 4),
        (47, 1 << 16, 3),  # the row at 112 lies 48 bytes behind the block before it
        (48, 1 << 16, 2),
        (48, 96, 3),  # two rows, and no third, fit the room
        (1 << 12, 1 << 16, 1),
    ],
)
def test_near_rows_are_one_read(gap: int, room: int, n_reads: int, tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 256, 2000).astype(np.uint8)
    (tmp_path / "x").write_bytes(data.tobytes())
    offsets, nbytes = np.array([3, 12, 64, 112, 1000]), np.array([4, 4, 3, 30, 20])
    places, out = nbytes.cumsum() - nbytes, np.zeros(nbytes.sum(), np.uint8)
    fd = os.open(tmp_path / "x", os.O_RDONLY)

    def count() -> int:
        return int(re.findall(r"syscr: (\d+)", Path("/proc/thread-self/io").read_text())[0])

    cost_of_counting = -(count() - count())
    before = count()
    assert _pread.read_blocks(fd, offsets, nbytes, places, out, 16, room, gap) == (-1, 0)
    assert count() - before - cost_of_counting == n_reads
    np.testing.assert_array_equal(out, np.concatenate([data[o : o + n] for o, n in zip(offsets, nbytes, strict=True)]))
    os.close(fd)


@pytest.mark.parametrize("place", [None, 5, b"x"])
def test_what_is_no_path_is_a_type_error(place: Any) -> None:
    for call in (hhtld.open, lambda given: hhtld.convert(given, "x.hhtld")):
        with pytest.raises((TypeError, hhtld.HhtldError), match=r"expected str|not a path|cannot"):
            call(place)
