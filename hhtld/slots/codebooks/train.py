"""How the tables in this folder were made: generalised Lloyd on Gaussian rows, through the real encoder.

    python -m hhtld.slots.codebooks.train FOLDER

A table starts as Gaussian draws; rows of unit variance are encoded with it, every level becomes the mean of
the weights that chose its state, and so on. The best of a few seeds on rows of their own is kept. Rotated rows
of any tensor look Gaussian, so one table serves all.

Tables of 4096 states climb instead: each rate begins with the table of the rate below, and takes few rows a turn.
docs/decisions/codebooks.md has what was measured.

Takes about half an hour on one core. The arithmetic of the means may differ in last bits between numpy builds, so the
stored files, not this script, are what packs are made with; a pack carries the table it uses.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hhtld._kernels import _trellis

__all__ = ["main", "train"]

SIGMA = 8192  # the encoder's units, as in trellis.h
# log2 of the states: rates in sixteenths of a bit, rows a turn, turns, seeds
PLANS = {8: (range(16, 97), 384, 70, 3), 10: (range(16, 97), 384, 60, 2)}
CLIMBS = {12: (range(16, 97, 2), 256, 24, 3)}


def _encode(rows: NDArray[np.float32], table: NDArray[np.int8], step: int, rate: int) -> NDArray[np.uint8]:
    n_bits = len(table).bit_length() - 1
    codes = np.empty((len(rows), _trellis.row_nbytes(rows.shape[1], rate, n_bits)), np.uint8)
    _trellis.encode(rows, table, step, rate, codes, np.empty(len(rows), np.float32))
    return codes


def _states(codes: NDArray[np.uint8], n_cols: int, rate: int, n_bits: int) -> NDArray[np.uint32]:
    """The state of every weight, shape (n_rows, n_cols): a window of the row's bit stream."""
    offsets = np.arange(n_cols) * rate // 16
    padded = np.pad(codes, ((0, 0), (0, 4))).astype(np.uint32)
    words = np.zeros((len(codes), n_cols), np.uint32)
    for byte in range(4):
        words |= padded[:, (offsets >> 3) + byte] << np.uint32(8 * byte)
    states: NDArray[np.uint32] = words >> (offsets & 7).astype(np.uint32) & np.uint32((1 << n_bits) - 1)
    return states


def _rounded(levels: NDArray[np.float64]) -> tuple[NDArray[np.int8], int]:
    step = max(1, round(float(np.abs(levels).max()) * SIGMA / 127))
    return np.clip(np.rint(levels * SIGMA / step), -127, 127).astype(np.int8), step


def _error(rows: NDArray[np.float32], table: NDArray[np.int8], step: int, rate: int) -> float:
    states = _states(_encode(rows, table, step, rate), rows.shape[1], rate, len(table).bit_length() - 1)
    coded = table[states].astype(np.float64)
    cross, own = (rows * coded).sum(axis=1), (coded * coded).sum(axis=1)
    return float(1 - (cross**2 / own / (rows.astype(np.float64) ** 2).sum(axis=1)).mean())


def _turned(
    levels: NDArray[np.float64], rate: int, n_rows: int, rng: np.random.Generator, *, redraw: bool
) -> NDArray[np.float64]:
    """Every level becomes the mean of the weights that chose it; where hardly any did, it stays or is drawn again."""
    n_bits = len(levels).bit_length() - 1
    rows = rng.standard_normal((n_rows, 1024)).astype(np.float32)
    rows /= np.sqrt((rows.astype(np.float64) ** 2).mean(axis=1, keepdims=True)).astype(np.float32)
    states = _states(_encode(rows, *_rounded(levels), rate), 1024, rate, n_bits).reshape(-1)
    hits = np.bincount(states, minlength=len(levels))
    sums = np.bincount(states, rows.reshape(-1), minlength=len(levels))
    idle = 0.9 * rng.standard_normal(len(levels)) if redraw else levels
    return np.where(hits >= 2, sums / np.maximum(hits, 1), idle)


def _test_rows() -> NDArray[np.float32]:
    return np.random.default_rng(99).standard_normal((512, 1024)).astype(np.float32)


def train(rate: int, n_bits: int, n_rows: int, turns: int, seeds: int) -> tuple[NDArray[np.int8], int]:
    """Return the best table of 2**n_bits levels for a rate in sixteenths of a bit, and its step."""
    test = _test_rows()
    found: list[tuple[float, NDArray[np.int8], int]] = []
    for seed in range(seeds):
        rng = np.random.default_rng([seed, rate, n_bits])
        levels = rng.standard_normal(1 << n_bits) * np.sqrt(1 - 2 ** (-2 * (rate / 16 - 0.1)))
        for _ in range(turns):
            levels = _turned(levels, rate, n_rows, rng, redraw=True)
        table, step = _rounded(levels)
        found.append((_error(test, table, step, rate), table, step))
    _, table, step = min(found, key=lambda item: item[0])
    return table, step


def climb(
    rates: Iterable[int], n_bits: int, n_rows: int, turns: int, seeds: int
) -> Iterator[tuple[NDArray[np.int8], int]]:
    """Yield a table and its step for each of ascending rates, begun with the one before."""
    test = _test_rows()
    levels: NDArray[np.float64] = np.empty(0)
    for rate in rates:
        if not len(levels):
            table, step = train(rate, n_bits, 4 * n_rows, turns, 1)
            levels = table.astype(np.float64) * (step / SIGMA)
        found: list[tuple[float, NDArray[np.float64]]] = []
        for seed in range(seeds):
            rng, own = np.random.default_rng([seed, rate, n_bits]), levels
            for _ in range(turns):
                own = _turned(own, rate, n_rows, rng, redraw=False)
            found.append((_error(test, *_rounded(own), rate), own))
        _, levels = min(found, key=lambda item: item[0])
        yield _rounded(levels)


def main(folder: Path) -> None:
    """Train every table and write one file a state size: per rate a u16 step and the int8 levels."""
    made: dict[int, tuple[range, Iterable[tuple[NDArray[np.int8], int]]]] = {
        n_bits: (rates, (train(rate, n_bits, *how) for rate in rates)) for n_bits, (rates, *how) in PLANS.items()
    }
    made |= {n_bits: (rates, climb(rates, n_bits, *how)) for n_bits, (rates, *how) in CLIMBS.items()}
    for n_bits, (rates, tables) in made.items():
        records = []
        for rate, (table, step) in zip(rates, tables, strict=True):
            records.append(step.to_bytes(2, "little") + table.tobytes())
            print(f"{1 << n_bits} states, {rate / 16:.4f} bits", file=sys.stderr, flush=True)
        (folder / f"states{1 << n_bits}.bin").write_bytes(b"".join(records))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
