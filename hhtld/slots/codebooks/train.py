"""How `crossed.bin` in this folder was made: a search for crossings, with levels by least squares, on Gaussian rows.

    python -m hhtld.slots.codebooks.train FOLDER

`hhtld/_kernels/crossed.h` says what a crossed codebook is. Rates climb: the search for a rate begins with the
codebook of the rate below and with crossings drawn at random, and keeps the best. Then it changes up to three entries
at a time, or swaps them, and keeps what helps. After every change the 48 levels are those of least squares, over the
weights that chose each state, in a few turns of encoding. docs/decisions/crossed-nibbles.md has what was measured.

Takes about five minutes on one core. The arithmetic of least squares may differ in last bits between numpy builds, so
the stored file, not this script, is what packs are made with; a pack carries the codebook it uses.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hhtld._kernels import _trellis

__all__ = ["Crossed", "climb", "crossed_nibbles", "gap", "main"]

RATES = range(16, 97, 2)  # sixteenths of a bit
N_BITS = 12
SIGMA = 8192  # the encoder's units, as in trellis.h
DRAWS, CHANGES = 24, 250
_LARGEST_LEVEL = 127
_STATES = np.arange(1 << N_BITS)


def crossed_nibbles(crossing: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return for every state the entries of the three level tables; `crossing` is across, back_a, back_b, (3, 16)."""
    a, b, c = _STATES & 15, _STATES >> 4 & 15, _STATES >> 8
    c = c ^ crossing[0][a]
    return [a ^ crossing[1][c], b ^ crossing[2][c], c]


@dataclass(frozen=True)
class Crossed:
    """A codebook in the making.

    Attributes
    ----------
    crossing : ndarray of int64, shape (3, 16)
        across, back_a and back_b; 0..15.
    values : ndarray of float64, shape (3, 16)
        The level tables in units of a row's standard deviation.
    """

    crossing: NDArray[np.int64]
    values: NDArray[np.float64]

    def rounded(self) -> tuple[NDArray[np.int8], int]:
        """Return the level tables as int8 (3, 16), and the step; every sum lies in -127..127."""
        most = max(self.values.max(axis=1).sum(), -self.values.min(axis=1).sum())
        step = max(1, int(np.ceil(most * SIGMA / _LARGEST_LEVEL)))
        while True:
            tables = np.rint(self.values * SIGMA / step).astype(np.int64)
            if max(tables.max(axis=1).sum(), -tables.min(axis=1).sum()) <= _LARGEST_LEVEL:
                return tables.astype(np.int8), step
            step += 1

    def levels(self) -> tuple[NDArray[np.int8], int]:
        """Return the level of every state, and the step."""
        tables, step = self.rounded()
        levels = sum(table.astype(np.int64)[i] for table, i in zip(tables, crossed_nibbles(self.crossing), strict=True))
        return np.asarray(levels).astype(np.int8), step

    def to_bytes(self) -> bytes:
        """Return the 72 bytes of the codebook."""
        nibbles = self.crossing.reshape(-1, 2).astype(np.uint8)
        return (nibbles[:, 0] | nibbles[:, 1] << 4).tobytes() + self.rounded()[0].tobytes()


def _rows(n_rows: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n_rows, 1024)).astype(np.float32)


def _states(codes: NDArray[np.uint8], n_cols: int, rate: int, n_bits: int) -> NDArray[np.uint32]:
    """The state of every weight, shape (n_rows, n_cols): a window of the row's bit stream."""
    offsets = np.arange(n_cols) * rate // 16
    padded = np.pad(codes, ((0, 0), (0, 4))).astype(np.uint32)
    words = np.zeros((len(codes), n_cols), np.uint32)
    for byte in range(4):
        words |= padded[:, (offsets >> 3) + byte] << np.uint32(8 * byte)
    states: NDArray[np.uint32] = words >> (offsets & 7).astype(np.uint32) & np.uint32((1 << n_bits) - 1)
    return states


def _chosen(rows: NDArray[np.float32], levels: NDArray[np.int8], step: int, rate: int) -> NDArray[np.uint32]:
    codes = np.empty((len(rows), _trellis.row_nbytes(rows.shape[1], rate, N_BITS)), np.uint8)
    _trellis.encode(rows, levels, step, rate, codes, np.empty(len(rows), np.float32))
    return _states(codes, rows.shape[1], rate, N_BITS)


def gap(code: Crossed, rows: NDArray[np.float32], rate: int) -> float:
    """Return how many bits a weight more than the Gaussian bound the code takes for its error."""
    levels, step = code.levels()
    coded = levels[_chosen(rows, levels, step, rate)].astype(np.float64)
    norms = np.sqrt((rows.astype(np.float64) ** 2).sum(axis=1) * (coded**2).sum(axis=1))
    cosine = float(((rows * coded).sum(axis=1) / norms).mean())
    return float(rate / 16 + np.log2(1 - cosine**2) / 2)


def _turned(
    code: Crossed,
    rows: NDArray[np.float32],
    rate: int,
    rng: np.random.Generator,
    *,
    turns: int,
    n_rows: int,
    memory: float,
) -> Crossed:
    """Return the code with levels of least squares; each turn forgets all but `memory` of those before it."""
    entries = crossed_nibbles(code.crossing)
    n_states = 1 << N_BITS
    hits, sums = np.zeros(n_states), np.zeros(n_states)
    for _ in range(turns):
        some = rows[rng.integers(0, len(rows), n_rows)]
        chosen = _chosen(some, *code.levels(), rate).reshape(-1)
        hits = memory * hits + np.bincount(chosen, minlength=n_states)
        sums = memory * sums + np.bincount(chosen, some.reshape(-1), n_states)
        normal = np.block(
            [[np.bincount(16 * i + j, hits, 256).reshape(16, 16) for j in entries] for i in entries],
        )
        right = np.concatenate([np.bincount(i, sums, 16) for i in entries])
        ridge = 1e-4 * hits.sum() / 48 + 1
        values = np.linalg.solve(normal + ridge * np.eye(48), right + ridge * code.values.reshape(-1))
        code = replace(code, values=values.reshape(3, 16))
    return code


def _changed(crossing: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    changed = crossing.copy()
    for _ in range(int(rng.integers(1, 4))):
        table, i, j = (int(rng.integers(n)) for n in (3, 16, 16))
        if rng.random() < 0.5:
            changed[table, i] = rng.integers(16)
        else:
            changed[table, [i, j]] = changed[table, [j, i]]
    return changed


def climb(rates: range = RATES, draws: int = DRAWS, changes: int = CHANGES) -> Iterator[tuple[int, Crossed]]:
    """Yield a rate and its code for each of ascending rates; the first has four times as many draws."""
    train, judge = _rows(512, 1), _rows(64, 3)
    below: Crossed | None = None
    for rate in rates:
        rng = np.random.default_rng([rate, N_BITS])
        starts = [] if below is None else [below]
        n_draws = draws if starts else 4 * draws
        starts += [
            Crossed(rng.integers(0, 16, (3, 16)), rng.standard_normal((3, 16)) / np.sqrt(3)) for _ in range(n_draws)
        ]
        turned = [_turned(start, train, rate, rng, turns=16, n_rows=32, memory=0.9) for start in starts]
        best, code = min(((gap(code, judge, rate), code) for code in turned), key=lambda judged: judged[0])
        for _ in range(changes):
            other = replace(code, crossing=_changed(code.crossing, rng))
            other = _turned(other, train, rate, rng, turns=5, n_rows=32, memory=0.8)
            judged = gap(other, judge, rate)
            if judged < best - 1e-4:
                best, code = judged, other
        below = _turned(code, train, rate, rng, turns=40, n_rows=64, memory=0.95)
        yield rate, below


def main(folder: Path) -> None:
    """Search a codebook for every rate, and write `crossed.bin`: per rate a u16 step and the 72 bytes."""
    test = _rows(96, 2)
    records = []
    for rate, code in climb():
        records.append(code.rounded()[1].to_bytes(2, "little") + code.to_bytes())
        print(f"{rate / 16:.4f} bits, {gap(code, test, rate):.3f} above the bound", file=sys.stderr, flush=True)
    (folder / "crossed.bin").write_bytes(b"".join(records))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
