"""One pack and many readers: threads, processes, and a file that is replaced under them."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hhtld
from tests.trust.damage import GOLDEN

pytestmark = pytest.mark.exhaustive

N_THREADS = 16
every_pack = pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.stem)
mapped_or_not = pytest.mark.parametrize("mmap", [True, False])


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads that take turns as often as the interpreter allows."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(work: Callable[[int], Any]) -> list[Any]:
    """Run `work` in threads that begin at once."""
    gate = threading.Barrier(N_THREADS)

    def begun(number: int) -> Any:
        gate.wait()
        return work(number)

    with ThreadPoolExecutor(N_THREADS) as executor:
        return list(executor.map(begun, range(N_THREADS)))


def decoded(pack: hhtld.HhtldPack) -> dict[str, bytes]:
    return {name: pack.get_tensor(name).tobytes() for name in pack}


@pytest.mark.usefixtures("restless")
@mapped_or_not
@every_pack
def test_threads_that_open_a_pack_cold_find_the_same(golden: Path, mmap: bool) -> None:
    """What is shared is read by the first who needs it; here all do at once."""
    with hhtld.open(golden) as pack:
        expected = decoded(pack)
    with hhtld.open(golden, mmap=mmap) as pack:
        names = pack.keys()

        def work(number: int) -> None:
            for name in names[number % len(names) :] + names[: number % len(names)]:
                assert pack.get_tensor(name).tobytes() == expected[name]
                if pack.info(name).info.has_rows and pack.info(name).info.n_rows:
                    rows = pack.get_rows(name, [-1, number % pack.info(name).info.n_rows])
                    whole = np.frombuffer(expected[name], rows.dtype).reshape(-1, rows.shape[1])
                    assert rows.tobytes() == whole[[-1, number % len(whole)]].tobytes()

        together(work)


@mapped_or_not
def test_closing_beside_readers_is_an_error_or_a_result(mmap: bool) -> None:
    for _ in range(10):
        pack = hhtld.open(GOLDEN[0], mmap=mmap)
        names = pack.keys()

        def work(number: int, pack: hhtld.HhtldPack = pack, names: list[str] = names) -> str:
            try:
                if number == N_THREADS - 1:
                    pack.close()
                for name in names:
                    pack.get_tensor(name)
            except ValueError as error:
                return str(error)
            return "closed"

        assert all("closed" in said for said in together(work))


def test_a_descriptor_closed_beside_a_read_is_not_another_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of a closed descriptor is given to the next file that is opened."""
    hhtld.save_file({"w": np.arange(9.0)}, tmp_path / "a.hhtld")
    (tmp_path / "other").write_bytes(b"x" * 10_000)
    pack, preadv, others = hhtld.open(tmp_path / "a.hhtld", mmap=False), os.preadv, []

    def beside(fd: int, buffers: Any, offset: int) -> int:
        pack.close()
        others.append(os.open(tmp_path / "other", os.O_RDONLY))
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", beside)
    assert pack.get_tensor("w", "source").tolist() == list(range(9))
    with pytest.raises(ValueError, match="the pack is closed"):
        pack.get_tensor("w")
    for fd in others:
        os.close(fd)


@pytest.mark.usefixtures("restless")
@mapped_or_not
def test_readers_of_a_file_that_is_replaced_see_one_or_the_other(tmp_path: Path, mmap: bool) -> None:
    """Every opened pack is wholly the old file or wholly the new one, whatever the writer does meanwhile."""
    path, done = tmp_path / "a.hhtld", threading.Event()
    packs = [hhtld.encode({"w.up_proj": np.full((40, 64), value, np.float32)}, "bits:2") for value in (1, 2)]
    hhtld.save(packs[0], path)
    expected = {pack.get_tensor("w.up_proj").tobytes() for pack in packs}
    assert len(expected) == 2

    def work(number: int) -> int:
        if number == 0:
            try:
                for turn in range(30):
                    hhtld.save(packs[turn % 2], path)
            finally:
                done.set()
            return 0
        count = 0
        while not done.is_set():
            with hhtld.open(path, mmap=mmap) as pack:
                first = pack.get_tensor("w.up_proj").tobytes()
                assert first in expected
                assert pack.get_rows("w.up_proj", slice(None)).tobytes() == first
            count += 1
        return count

    assert sum(together(work)) > 0
    assert [found.name for found in tmp_path.iterdir()] == ["a.hhtld"]


def test_two_writers_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.hhtld"
    packs = [hhtld.encode({"w": np.full(5, number, np.float32)}) for number in range(N_THREADS)]
    together(lambda number: hhtld.save(packs[number], path))
    assert hhtld.load_file(path)["w"][0] in range(N_THREADS)
    assert [found.name for found in tmp_path.iterdir()] == ["a.hhtld"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@mapped_or_not
def test_a_child_of_fork_reads_on(mmap: bool) -> None:
    """Positional reads share no file position with the parent, and no lock is held across the fork."""
    with hhtld.open(GOLDEN[0], mmap=mmap) as pack:
        expected = decoded(pack)
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            os._exit(0 if decoded(pack) == expected else 1)
        assert decoded(pack) == expected
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def rows_of(path: str) -> bytes:
    """What a worker process does with a path."""
    with hhtld.open(path) as pack:
        return b"".join(pack.get_tensor(name).tobytes() for name in pack)


def test_processes_that_are_spawned_open_it_themselves() -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        found = list(executor.map(rows_of, [str(path) for path in GOLDEN[:2]] * 2))
    assert found[:2] == found[2:] == [rows_of(str(path)) for path in GOLDEN[:2]]
