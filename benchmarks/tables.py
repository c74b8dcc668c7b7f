"""A large table of narrow rows: what converting it takes, and how fast rows are read, from memory and from the disk.

    pip install -e '.[bench]' gguf && python benchmarks/tables.py FOLDER [--rows 20000000] [--cols 160] [--bits 4]

Writes a table of bfloat16 into FOLDER unless it lies there, converts it in a process of its own within 1 GiB, and reads
16 and 32,768 random rows, in ten rounds that take turns: with hhtld in its three ways of reading, from a memory map of
the bfloat16 rows, as slices of safetensors, and from a memory map of IQ4_NL rows that gguf decodes. Bare reads fetch
the same bytes as hhtld, with as many threads, and decode nothing; past the page cache they fetch every block that a row
lies on, one by one. The IQ4_NL rows are those of one block, again and again. Before a cold round the system is asked to
drop the file from its page cache (`POSIX_FADV_DONTNEED`), and the file is opened anew. Times are of the clock;
processor time stands beside them. Last, eight threads and two processes read at once.
"""

from __future__ import annotations

import argparse
import json
import mmap
import multiprocessing
import os
import resource
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import ml_dtypes
import numpy as np
from ggml import Ggml
from lookup_grade import processor
from numpy.typing import NDArray

import hhtld
from hhtld._kernels import _isa
from hhtld.storage.file_reading import open_regular
from hhtld.storage.run_reads import BLOCK, Runs, open_direct, read_runs
from hhtld.storage.thread_pool import Threads

NAME = "model.per_layer_token_embd.weight"
POOL_ROWS = 1 << 14
ROUNDS = 10
COUNTS = (16, 32_768)
CALLS, CALL_ROWS = 20, 4096
Read = Callable[[NDArray[np.int64]], Any]


def blocks(n_rows: int, n_cols: int) -> Iterator[NDArray[np.uint16]]:
    """Yield bfloat16 bits of Gaussian rows: a pool in other orders, turned by other columns and with other signs."""
    rng = np.random.default_rng(0)
    pool = rng.standard_normal((POOL_ROWS, n_cols), np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)
    for start in range(0, n_rows, POOL_ROWS):
        signs = (rng.integers(0, 2, n_cols) << 15).astype(np.uint16)
        block = np.roll(pool, int(rng.integers(n_cols)), axis=1)[rng.permutation(POOL_ROWS)] ^ signs
        yield block[: n_rows - start]


def write_table(path: Path, n_rows: int, n_cols: int) -> int:
    """Write a checkpoint of one table unless it is there, and return where its rows begin."""
    table = {"dtype": "BF16", "shape": [n_rows, n_cols], "data_offsets": [0, 2 * n_rows * n_cols]}
    header = json.dumps({NAME: table}).encode()
    header += b" " * (-len(header) % 8)
    if not path.exists():
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            for block in blocks(n_rows, n_cols):
                file.write(block.data)
    return 8 + len(header)


def write_iq4_nl(path: Path, n_rows: int, n_cols: int) -> None:
    """Write the rows as blocks of llama.cpp's IQ4_NL unless they are there."""
    if path.exists():
        return
    pool = next(blocks(POOL_ROWS, n_cols)).view(ml_dtypes.bfloat16).astype(np.float32)
    encoded = Ggml().encode("IQ4_NL", pool)  # its coder is slow, and reading does not depend on what a row holds
    row_nbytes = encoded.nbytes // POOL_ROWS
    with path.open("wb") as file:
        for start in range(0, n_rows, POOL_ROWS):
            file.write(encoded.reshape(-1).view(np.uint8).data[: row_nbytes * (n_rows - start)])


def convert(table: Path, path: Path, bits: str) -> None:
    """Convert in a process of its own, and print what it took."""
    command = [sys.executable, "-m", "hhtld.formats", "convert", str(table), str(path), "--profile", f"bits:{bits}"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run([*command, "--memory", "1GiB"], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    with hhtld.open(path) as pack:
        info, n_rows = pack.info(NAME), pack.info(NAME).info.n_rows
        assert info.gates is not None
        print(
            f"bits:{bits}: {path.stat().st_size / n_rows:.2f} bytes a row, cosine median {info.gates.median:.4f}, "
            f"p5 {info.gates.p5:.4f}; {seconds:.0f} s, {busy:.0f} s of processor time, "
            f"{n_rows * info.info.n_cols / busy / 1e6:.1f} M weights for each of them; "
            f"at most {after.ru_maxrss / 1024:.0f} MiB of memory"
        )


def in_memory() -> int:
    """Return this process's own bytes in memory, without what it maps of files."""
    pages = Path("/proc/self/statm").read_text().split()
    return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGESIZE")


class Reader:
    """One way to read rows: a file, and what opens it and returns a function of row numbers."""

    def __init__(self, name: str, path: Path, opened: Callable[[], tuple[Read, Callable[[], None]]]) -> None:
        self.name, self.path, self.opened = name, path, opened

    def drop(self) -> None:
        """Ask the system to forget the file's pages."""
        descriptor = os.open(self.path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def readers(table: Path, begin: int, packed: Path, iq4: Path, shape: tuple[int, int], threads: int) -> list[Reader]:
    """Return the ways to read, hhtld's first and then the bare reads of the same bytes."""
    n_rows, n_cols = shape

    def ours(io: str) -> tuple[Read, Callable[[], None]]:
        pack = hhtld.open(packed, io=io, io_threads=threads)
        return lambda ids: pack.get_rows(NAME, ids), pack.close

    def bare() -> tuple[Read, Callable[[], None]]:
        with hhtld.open(packed) as pack:
            record, sections = pack.info(NAME), pack.sections
            parts = [sections.records[record.sections[kind]] for kind in ("slot_v", "slot_t")]
        file = open_regular(packed, threads)

        def read(ids: NDArray[np.int64]) -> None:
            ordered = np.unique(ids)
            for part in parts:
                width = part.nbytes // n_rows
                places = np.arange(len(ordered), dtype=np.int64) * width
                runs = Runs(part.offset + ordered * width, np.full(len(ordered), width, np.int64), places)
                file.fill_runs(np.empty(len(ordered) * width, np.uint8), runs)

        return read, file.close

    def bare_direct() -> tuple[Read, Callable[[], None]]:
        with hhtld.open(packed) as pack:
            record, sections = pack.info(NAME), pack.sections
            parts = [sections.records[record.sections[kind]] for kind in ("slot_v", "slot_t")]
        fd, pool = open_direct(packed), Threads(threads)
        assert fd is not None

        def read_span(runs: Runs, out: NDArray[np.uint8], span: tuple[int, int]) -> None:
            read_runs(fd, runs.take(slice(*span)), out)

        def read(ids: NDArray[np.int64]) -> None:
            for part in parts:
                width = part.nbytes // n_rows
                starts = part.offset + np.unique(ids) * width
                numbers = np.unique(np.concatenate([starts, starts + width - 1]) // BLOCK)
                out = np.frombuffer(mmap.mmap(-1, len(numbers) * BLOCK), np.uint8)
                runs = Runs(numbers * BLOCK, np.full(len(numbers), BLOCK), np.arange(len(numbers)) * BLOCK)
                cuts = [len(numbers) * i // threads for i in range(threads + 1)]
                pool.each(partial(read_span, runs, out), pairwise(cuts))

        def close() -> None:
            pool.close()
            os.close(fd)

        return read, close

    def memmap() -> tuple[Read, Callable[[], None]]:
        rows = np.memmap(table, np.uint16, "r", begin, (n_rows, n_cols))
        return lambda ids: rows[ids].view(ml_dtypes.bfloat16).astype(np.float32), lambda: None

    def raw_memmap() -> tuple[Read, Callable[[], None]]:
        rows = np.memmap(table, np.uint16, "r", begin, (n_rows, n_cols))
        return lambda ids: rows[ids], lambda: None

    def slices() -> tuple[Read, Callable[[], None]]:
        from safetensors import safe_open

        model = safe_open(table, "np")
        rows = model.get_slice(NAME)
        return lambda ids: [rows[int(row) : int(row) + 1] for row in ids], lambda: None

    def gguf_rows() -> tuple[Read, Callable[[], None]]:
        from gguf import GGMLQuantizationType, quants

        rows = np.memmap(iq4, np.uint8, "r").reshape(n_rows, -1)
        return lambda ids: quants.dequantize(rows[ids], GGMLQuantizationType.IQ4_NL), lambda: None

    return [
        *(Reader(f"hhtld, {io}", packed, lambda io=io: ours(io)) for io in ("mmap", "pread", "direct")),
        Reader("bare reads of hhtld's bytes", packed, bare),
        Reader("bare reads of blocks, O_DIRECT", packed, bare_direct),
        Reader("memmap of bfloat16, as it is", table, raw_memmap),
        Reader("memmap of bfloat16, to float32", table, memmap),
        Reader("slices of safetensors", table, slices),
        Reader("gguf, IQ4_NL", iq4, gguf_rows),
    ]


def measured(reader: Reader, requests: list[NDArray[np.int64]], is_cold: bool) -> tuple[float, float, int]:
    """Return the median time and processor time of a request in milliseconds, and how memory grew in all."""
    times, busy, grown = [], [], 0
    read, close = reader.opened()
    if not is_cold:
        read(requests[-1])  # what is only done once
        for ids in requests:
            read(ids)  # into the page cache
    for ids in requests:
        if is_cold:
            close()
            reader.drop()
            read, close = reader.opened()
            read(ids[:1])
        before, started, spent = in_memory(), time.perf_counter(), time.process_time()
        read(ids)
        times.append(time.perf_counter() - started)
        busy.append(time.process_time() - spent)
        grown += in_memory() - before
    close()
    return 1e3 * median(times), 1e3 * median(busy), grown


def gathered(packed: Path, io: str, seeds: list[int]) -> tuple[list[int], float]:
    """Read the rows of seeds, a thread each; return a checksum of each thread's rows, and the processor time."""
    spent = time.process_time()
    with hhtld.open(packed, io=io, io_threads=1) as pack, ThreadPoolExecutor(len(seeds)) as threads:
        n_rows = pack.info(NAME).info.n_rows

        def read(seed: int) -> int:
            rng, crc = np.random.default_rng(seed), 0
            for _ in range(CALLS):
                crc = zlib.crc32(pack.get_rows(NAME, rng.integers(0, n_rows, CALL_ROWS)).data, crc)
            return crc

        return list(threads.map(read, seeds)), time.process_time() - spent


def at_once(packed: Path) -> None:
    """Print how many rows a second are read one after the other, by eight threads, and by two processes of four."""
    seeds = list(range(8))
    n_rows = len(seeds) * CALLS * CALL_ROWS
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as processes:
        for io in ("mmap", "pread"):
            print(f"\n{io}, {CALL_ROWS:,} random rows a call, in page cache: million rows a second, of processor time")
            ways = {
                "one thread": lambda io=io: [gathered(packed, io, [seed]) for seed in seeds],
                "eight threads": lambda io=io: [gathered(packed, io, seeds)],
                "two processes of four threads": lambda io=io: list(
                    processes.map(gathered, [packed] * 2, [io] * 2, [seeds[:4], seeds[4:]])
                ),
            }
            expected = None
            for name, read in ways.items():
                read()  # imports, and rows into the page cache
                started = time.perf_counter()
                parts = read()
                seconds = time.perf_counter() - started
                crcs = [crc for part, _ in parts for crc in part]
                assert expected in (None, crcs), "other rows"
                expected = crcs
                busy = sum(spent for _, spent in parts)
                print(f"  {name:32} {n_rows / seconds / 1e6:10.2f} {n_rows / busy / 1e6:10.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--cols", type=int, default=160)
    parser.add_argument("--bits", default="4")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only-convert", action="store_true")
    args = parser.parse_args()
    args.folder.mkdir(exist_ok=True)
    shape = (args.rows, args.cols)
    table = args.folder / f"table-{args.rows}x{args.cols}.safetensors"
    packed, iq4 = table.with_suffix(f".{args.bits}.hhtld"), table.with_suffix(".iq4_nl")
    print(
        f"{processor()}, tier {_isa.tier()}, {args.threads} threads, hhtld {hhtld.__version__}, numpy {np.__version__}"
    )
    begin = write_table(table, *shape)
    print(f"{args.rows:,} rows of {args.cols} columns, {table.stat().st_size / 1e9:.2f} GB of bfloat16")
    if not packed.exists():
        convert(table, packed, args.bits)
    if args.only_convert:
        return
    write_iq4_nl(iq4, *shape)
    rng = np.random.default_rng(1)
    for count in COUNTS:
        requests = [rng.integers(0, args.rows, count) for _ in range(args.rounds)]
        for is_cold in (False, True):
            print(f"\n{count:,} random rows, {'dropped from' if is_cold else 'in'} page cache: median ms, of processor")
            for reader in readers(table, begin, packed, iq4, shape, args.threads):
                n_rounds = (
                    min(2, args.rounds) if reader.name.startswith("slices") and count > 1000 else args.rounds
                )  # a call of Python a row
                elapsed, busy, grown = measured(reader, requests[:n_rounds], is_cold)
                print(f"  {reader.name:32} {elapsed:10.3f} {busy:10.3f}   memory {grown / 1e6:+8.1f} MB", flush=True)
    at_once(packed)


if __name__ == "__main__":
    main()
