"""Rows for a second of processor time: the reader in C beside `get_rows`, everything in the page cache.

    python benchmarks/reader.py [--rows 200000] [--ids 32768] [--options "-O3 -march=native"]

Makes tables of 160 and 256 columns at 4 and 3 bits, and reads random rows: with `reader/hhtld_rows.h` by position and
from a mapped file, and with Python. Time is that of all threads, in the fastest of seven rounds, in which all take
turns.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from lookup_grade import processor

import hhtld
from hhtld._kernels import _isa

READER = Path(__file__).parents[1] / "reader"
NAME = "per_layer_token_embd.weight"
SOURCE = """
#define HHTLD_ROWS_IMPLEMENTATION
#include "hhtld_rows.h"
#include <sys/mman.h>
static int copied(void *map, uint64_t offset, void *to, size_t n) {
    memcpy(to, (const char *)map + offset, n);
    return 0;
}
hhtld_pack *open_mapped(const char *path, hhtld_error *error) {
    struct stat facts;
    const int file = open(path, O_RDONLY);
    fstat(file, &facts);
    void *map = mmap(NULL, (size_t)facts.st_size, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    return hhtld_pack_open_with(copied, map, (uint64_t)facts.st_size, error);
}
"""


def compiled(folder: Path, options: list[str]) -> ctypes.CDLL:
    """Compile the reader as a library."""
    (folder / "reader.c").write_text(SOURCE)
    library = folder / "reader.so"
    command = ["cc", "-shared", "-fPIC", *options, f"-I{READER}", str(folder / "reader.c"), "-o", str(library), "-lm"]
    subprocess.run(command, check=True)
    loaded = ctypes.CDLL(str(library))
    for opener in (loaded.hhtld_pack_open, loaded.open_mapped, loaded.hhtld_rows_open):
        opener.restype = ctypes.c_void_p
    return loaded


def reading(library: ctypes.CDLL, opener: str, path: Path, ids: np.ndarray, out: np.ndarray) -> Callable[[], None]:
    """Return what reads the rows with the reader in C."""
    error = ctypes.create_string_buffer(256)
    pack = getattr(library, opener)(str(path).encode(), error)
    assert pack, error.raw[4:].decode()
    rows = library.hhtld_rows_open(ctypes.c_void_p(pack), NAME.encode(), error)
    assert rows, error.raw[4:].decode()

    def read() -> None:
        places = (ctypes.c_void_p(rows), ids.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(len(ids)))
        assert library.hhtld_rows_get(*places, out.ctypes.data_as(ctypes.c_void_p), error) == 0

    return read


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--ids", type=int, default=32_768)
    parser.add_argument("--options", default="-std=gnu11 -O3")
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    print(f"{processor()}, hhtld on {_isa.tier()}, cc {arguments.options}, {arguments.ids} random rows\n")
    print("| columns | bits | bytes a row | C, by position | C, mapped | `get_rows` |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        library = compiled(folder, arguments.options.split())
        for n_cols in (160, 256):
            table = random.standard_normal((arguments.rows, n_cols), np.float32)
            for bits in (4, 3):
                path = folder / "table.hhtld"
                hhtld.save(hhtld.encode({NAME: table}, f"bits:{bits}"), path)
                ids = random.integers(0, arguments.rows, arguments.ids)
                out = np.empty((len(ids), n_cols), np.float32)
                with hhtld.open(path) as pack:
                    readers = [
                        reading(library, opener, path, ids, out) for opener in ("hhtld_pack_open", "open_mapped")
                    ]
                    for read in readers:
                        read()
                        assert out.tobytes() == pack.get_rows(NAME, ids).tobytes()
                    readers.append(lambda pack=pack, ids=ids: pack.get_rows(NAME, ids))
                    best = [float("inf")] * len(readers)
                    for _ in range(7):
                        for place, read in enumerate(readers):
                            start = time.process_time()
                            read()
                            best[place] = min(best[place], time.process_time() - start)
                    row_nbytes = pack.nbytes(NAME) / arguments.rows
                speeds = " | ".join(f"{len(ids) / seconds / 1e6:.2f} M rows/s" for seconds in best)
                print(f"| {n_cols} | {bits} | {row_nbytes:.1f} | {speeds} |", flush=True)


if __name__ == "__main__":
    main()
