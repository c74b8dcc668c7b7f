"""Checksums in pieces, calls in a bounded window, cosines in runs, and the same bytes for every way to run them."""

from __future__ import annotations

import itertools
import pickle
import threading
import tracemalloc
import zlib
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import hhtld
import hhtld.codecs.base
import hhtld.sources.rows
from hhtld.codecs import parse_profile
from hhtld.codecs.base import GroupCode, GroupRequest
from hhtld.codecs.lookup import LookupGroup
from hhtld.codecs.palette import PaletteGroup
from hhtld.codecs.rate_control import sample_rows, sample_size
from hhtld.cosines import summarize
from hhtld.dtypes import FLOAT32
from hhtld.encoding.encoder import encode_source
from hhtld.encoding.gate_report import GroupCosines
from hhtld.encoding.options import Encoding
from hhtld.encoding.plan import make_plan
from hhtld.encoding.resources import Work
from hhtld.encoding.row_tasks import code_rows
from hhtld.gates import ZERO_KEPT, ZERO_LOST, Threshold
from hhtld.identity import PaletteGroupKey
from hhtld.pack.container_writer import ContainerWriter
from hhtld.pack.memory_sections import MemorySections
from hhtld.sources.contract import ArraySource
from hhtld.sources.crew import Crew, completed
from hhtld.sources.rows import ArrayRows
from hhtld.storage.atomic import replacing
from hhtld.storage.crc import Crc32Runs, crc32_combine

Model = dict[str, NDArray[Any]]


def model() -> Model:
    """Slots D, V, L and T, a tensor whose rate must be raised, one that no rate helps, and some that are kept."""
    rng = np.random.default_rng(11)
    near = rng.standard_normal((16, 64))[rng.integers(0, 16, 1400)] * 6 + rng.standard_normal((1400, 64))
    huge = np.zeros((40, 300), np.float32)
    huge[1, 3] = 3e38
    return {
        "embed.weight": near.astype(np.float16),
        "huge.weight": huge,
        "ids": np.arange(5),
        "layers.0.up_proj.weight": rng.standard_normal((600, 72)).astype(np.float32),
        "layers.1.up_proj.weight": rng.standard_t(3, (600, 72)).astype(np.float32),
        "norm.weight": rng.standard_normal(64).astype(np.float32),
    }


# ---- checksums ----


def test_checksums_of_pieces_join(rng: np.random.Generator) -> None:
    data = rng.bytes(70_000)
    for cut in (0, 1, 7, 4096, 65_537, 70_000):
        first, second = data[:cut], data[cut:]
        assert crc32_combine(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(data)
    # A length that no test could hold: zeros only, in halves.
    half, n = zlib.crc32(bytes(1 << 20)), 1 << 20
    for _ in range(20):
        half, n = crc32_combine(half, half, n), 2 * n
    assert n == 1 << 40
    assert crc32_combine(half, 0, 0) == half


def test_runs_join_in_any_order(rng: np.random.Generator) -> None:
    data = rng.bytes(5_000)
    cuts = [0, *sorted(rng.choice(np.arange(1, 5_000), 30, replace=False).tolist()), 5_000]
    pieces = list(itertools.pairwise(cuts))
    for seed in range(5):
        runs = Crc32Runs()
        for i, piece in enumerate(np.random.default_rng(seed).permutation(len(pieces))):
            start, stop = pieces[piece]
            assert i == 0 or runs.whole(5_000) is None
            runs.add(start, stop - start, zlib.crc32(data[start:stop]))
        assert runs.whole(5_000) == zlib.crc32(data)
        with pytest.raises(ValueError, match="written twice"):
            runs.add(0, 10, 0)
    assert Crc32Runs().whole(0) == 0


# ---- sections ----


def test_sections_take_their_bytes_in_any_order(tmp_path: Path, rng: np.random.Generator) -> None:
    data = rng.bytes(1_000)
    files = []
    for number, order in enumerate(([0, 1, 2, 3], [3, 1, 0, 2])):
        path = tmp_path / f"{number}.bin"
        with replacing(path) as file:
            writer = ContainerWriter(file)
            writer.add("raw", 3, [b"a", b"bc"])
            dropped = writer.reserve("raw", 5_000)
            writer.write_at(dropped, 17, b"never to be seen")
            writer.rewind(dropped)
            index, last = writer.reserve("raw", 1_000), writer.reserve("raw", 0)
            for part in order:
                writer.write_at(index, part * 250, data[part * 250 : part * 250 + 250])
            assert (index, last, len(writer)) == (1, 2, 3)
            writer.finish({})
        files.append(path.read_bytes())
    assert files[0] == files[1]
    assert b"seen" not in files[0]


def write_three(path: Path, offset: int, block: bytes) -> None:
    with replacing(path) as file:
        writer = ContainerWriter(file)
        writer.write_at(writer.reserve("raw", 3), offset, block)
        writer.finish({})


def test_a_section_that_is_not_filled_is_refused(tmp_path: Path) -> None:
    for offset, block, message in ((0, b"ab", "3 bytes long and got 2"), (2, b"ab", r"got bytes \[2, 4\)")):
        with pytest.raises(ValueError, match=message):
            write_three(tmp_path / "x", offset, block)
    assert list(tmp_path.iterdir()) == []


# ---- calls ----


def test_calls_are_made_a_window_at_a_time() -> None:
    lock, running, most, asked = threading.Lock(), [0], [0], []
    hold = threading.Semaphore(0)

    def work(n: int) -> int:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        hold.acquire(timeout=30)
        with lock:
            running[0] -= 1
        return n * n

    def calls() -> Iterator[tuple[int, Any, tuple[int]]]:
        for n in range(20):
            asked.append(n)
            yield n, work, (n,)

    with ThreadPoolExecutor(8) as threads:
        found: dict[int, int] = {}
        hold.release(1)
        for n, square in completed(threads, calls(), 3):
            found[n] = square
            assert len(asked) <= len(found) + 3
            hold.release(1)
    assert found == {n: n * n for n in range(20)}
    assert most[0] <= 3


def test_the_first_error_cancels_what_has_not_begun() -> None:
    begun = []

    def work(n: int) -> None:
        begun.append(n)
        if n == 2:
            raise RuntimeError("two")

    with ThreadPoolExecutor(1) as threads, pytest.raises(RuntimeError, match="two"):
        list(completed(threads, ((n, work, (n,)) for n in range(100)), 10))
    assert len(begun) <= 13


# ---- cosines ----


@pytest.mark.parametrize("n_rows", [1, 2, 19, 20, 21, 40, 41, 333])
def test_runs_of_cosines_pass_exactly_when_all_together_do(n_rows: int) -> None:
    rng = np.random.default_rng(n_rows)
    verdicts = set()
    for _ in range(60):
        cosines = np.round(rng.uniform(0.9, 1.0, n_rows), 2)  # many ties with the thresholds
        threshold = Threshold(0.95, 0.91)
        group = GroupCosines(threshold)
        cut = n_rows // 2
        for name, part in (("a", cosines[:cut]), ("b", cosines[cut:])):
            for start in reversed(range(0, len(part), 7)):
                group.add(name, len(part), start, part[start : start + 7])
        assert group.passes() == summarize(cosines).passes(threshold)
        verdicts.add(group.passes())
        assert group.tensors["b"] == summarize(cosines[cut:])
    assert len(verdicts) == 2 or n_rows > 21


@pytest.mark.parametrize(
    "kinds", [(0.5,), (ZERO_KEPT,), (ZERO_LOST,), (0.5, ZERO_KEPT), (0.25, 0.5, ZERO_KEPT, ZERO_LOST)]
)
def test_runs_of_cosines_are_summarized_as_all_together_are(kinds: tuple[float, ...]) -> None:
    rng = np.random.default_rng(len(kinds))
    for n_rows in (1, 2, 13, 60):
        cosines = rng.choice(kinds, n_rows)
        group = GroupCosines()
        for start in rng.permutation(range(0, n_rows, 7)).tolist():
            group.add("w", n_rows, start, cosines[start : start + 7])
        assert group.tensors["w"] == summarize(cosines)


def test_cosines_take_no_memory_by_the_row() -> None:
    rng, group, n_rows = np.random.default_rng(1), GroupCosines(Threshold(0.95, 0.91)), 50_000
    tracemalloc.start()
    for run in range(80):
        group.add("w", 80 * n_rows, run * n_rows, rng.normal(0.9975, 0.0002, n_rows))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert group.tensors["w"].n_rows == 80 * n_rows
    assert peak < 8 * n_rows * 20, "of a table's cosines, a quarter would be more"


# ---- samples ----


def test_samples_are_bounded_by_a_rule_not_by_memory(rng: np.random.Generator) -> None:
    assert sample_size(10**6, 1536, 8192, 48 << 20) == 8192
    assert sample_size(10**6, 4096, 8192, 48 << 20) == 3072
    assert sample_size(10**6, 1 << 30, 8192, 48 << 20) == 1
    tensors = [ArrayRows(rng.standard_normal((n, 8))) for n in (300, 1, 77)]
    every = np.concatenate([rows.read(0, rows.n_rows) for rows in tensors])
    for count in (1, 5, 90, 200, 378, 1000):
        picks = np.unique(np.linspace(0, 377, min(count, 378)).astype(int))
        assert np.array_equal(sample_rows(tensors, count), every[picks])


# ---- tasks ----


@pytest.mark.parametrize("profile", ["lookup", "f32", "gates"])
def test_tasks_and_what_they_need_can_be_pickled(profile: str) -> None:
    rows = ArrayRows(model()["embed.weight"])
    key = PaletteGroupKey("other", "embed", (1400, 64))
    own: Any = None
    code: GroupCode | None
    if profile == "lookup":
        code = LookupGroup.found(key, rows)
    elif profile == "f32":
        code, own = PaletteGroup.found(key, rows), hhtld.codecs.palette.find_palette("other_embed", rows)
    else:
        request = GroupRequest(key, [rows], parse_profile("gates"), Threshold(0.98, 0.95), 0, [None], FLOAT32)
        find, arguments = request.profile.codec.find(request)
        code = find(*arguments)
    assert code is not None
    scale = 0.125 if code.coder(own).has_leaf else None
    codec = parse_profile(profile).codec
    here = code_rows(code, own, codec, rows, 100, 300, scale)
    small = len(pickle.dumps(code))
    function, args = pickle.loads(pickle.dumps((code_rows, (code, own, codec, rows, 100, 300, scale))))
    there = function(*args)
    assert len(pickle.dumps(code)) == small, "what was computed from it does not travel"
    assert there.crcs == here.crcs == {kind: [zlib.crc32(part.tobytes())] for kind, part in there.parts.items()}
    assert there.cosines.tolist() == here.cosines.tolist()
    assert ("twigs" if profile == "gates" else "slot_l") in here.parts


# ---- the same bytes ----


class Backwards(Executor):
    """An executor that runs calls last first, when somebody waits for one of them."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[Any], Any, Any]] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append((future, fn, args))
        if len(self.waiting) == 4 or fn is not code_rows:
            self.flush()
        else:
            threading.Timer(0.01, self.flush).start()
        return future

    def flush(self) -> None:
        calls, self.waiting = self.waiting, []
        for future, fn, args in reversed(calls):
            try:
                future.set_result(fn(*args))
            except BaseException as error:  # as an executor does
                future.set_exception(error)


def written(path: Path, profile: str, work: Work) -> bytes:
    source = ArraySource(model())
    with replacing(path) as file:
        writer = ContainerWriter(file)
        table = encode_source(source, make_plan(source, Encoding(profile)), writer, work=work)
        writer.finish(table.to_json())
    return path.read_bytes()


@pytest.mark.parametrize("profile", ["gates", "lookup", "f32", "bits:2+1.5"])
def test_bytes_do_not_depend_on_who_works_how(profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = written(tmp_path / "a", profile, Work())
    hhtld.save(hhtld.encode(model(), profile), tmp_path / "saved")
    assert (tmp_path / "saved").read_bytes() == expected
    for block, span in ((4_000, 9_000), (20_000, 20_000), (1 << 20, 50_000)):
        monkeypatch.setattr(hhtld.sources.rows, "BLOCK_NBYTES", block)
        monkeypatch.setattr(hhtld.codecs.base, "BLOCK_NBYTES", block)
        monkeypatch.setattr(hhtld.codecs.base, "SPAN_NBYTES", span)
        with ThreadPoolExecutor(3) as threads:
            for crew in (Crew(), Crew(threads, 3), Crew(Backwards(), 7)):
                assert written(tmp_path / "b", profile, Work(crew)) == expected
        assert written(tmp_path / "b", profile, Work(memory=600 << 20)) == expected


def test_processes_give_the_same_bytes(tmp_path: Path) -> None:
    import multiprocessing

    from safetensors.numpy import save_file

    save_file(model(), tmp_path / "m.safetensors")
    hhtld.convert(tmp_path / "m.safetensors", tmp_path / "a.hhtld", profile="gates")
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as processes:
        hhtld.convert(tmp_path / "m.safetensors", tmp_path / "b.hhtld", executor=processes, jobs=2, profile="gates")
    assert (tmp_path / "b.hhtld").read_bytes() == (tmp_path / "a.hhtld").read_bytes()


class Elsewhere(Executor):
    """Workers for whom another file, or none, stands at a path."""

    def __init__(self, path: Path, other: Path | None) -> None:
        self.path, self.other = path, other

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if self.other is None:
            self.path.unlink(missing_ok=True)
        elif self.other.exists():
            self.other.replace(self.path)  # the client's own stays open
        try:
            future.set_result(fn(*pickle.loads(pickle.dumps(args)), **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("values", r"a worker finds another model at .*m\.safetensors than this process"),
        ("names", r"a worker finds another model at .*m\.safetensors than this process"),
        ("missing", r"a worker cannot open .*m\.safetensors: .*; workers need the source at the same path"),
    ],
)
def test_workers_read_the_same_model_or_none(changed: str, message: str, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path, other = tmp_path / "m.safetensors", tmp_path / "other.safetensors"
    save_file(model(), path)
    if changed == "values":
        save_file({name: array + 1 for name, array in model().items()}, other)
    else:
        save_file({"x" + name: array for name, array in model().items()}, other)
    elsewhere = Elsewhere(path, None if changed == "missing" else other)
    with pytest.raises(hhtld.HhtldError, match=message):
        hhtld.convert(path, tmp_path / "a.hhtld", executor=elsewhere, jobs=1, profile="gates")
    assert not (tmp_path / "a.hhtld").exists()


def test_errors_of_workers_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hhtld.codecs.base, "SPAN_NBYTES", 9_000)
    bad = model()
    bad["layers.0.up_proj.weight"][599, 71] = np.nan
    source = ArraySource(bad)
    for crew in (Crew(), Crew(ThreadPoolExecutor(2), 2)):
        with pytest.raises(hhtld.NonFiniteError, match=r"layers\.0\.up_proj.*row 599, column 71"):
            encode_source(source, make_plan(source, Encoding("bits:2")), MemorySections(), work=Work(crew))
        if crew.executor is not None:
            crew.executor.shutdown()
