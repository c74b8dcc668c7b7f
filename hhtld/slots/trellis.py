"""Slot T: rotated rows as a bitshift trellis code at any rate from 1 to 6 bits in sixteenths.

Layout
------
A codebook is 2**L int8 levels, L = 8, 10 or 12. A row of n weights at rate p / 16 bits is a little-endian
bit stream of ``floor((n - 1) * p / 16) + L`` bits, filled up to a byte; weight t has the state
``stream[floor(t * p / 16), + L)`` and the value ``gain * level[state]``. Slot V is 64 gains as a bfloat16, so that
rows of denormals keep theirs.

Rounding
--------
The encoder is an int16 Viterbi search, bit-identical on every tier (`_kernels/trellis.h`). The gain is the
least-squares one in float64, rounded to float32 and to bfloat16, nearest, ties to even: it makes the error
least, and leaves the cosine as it is. Decoding is one float32 multiplication a weight, then the rotation back.

Error
-----
Cosine of Gaussian rows of 1024 and gap in bits to the bound ``-log2(1 - cosine**2) / 2``; see the benchmark
`benchmarks/slot_t.py`.

Edge cases
----------
A row of zeros has gain 0 and decodes to zeros.

Source
------
The trellis of QTIP (arXiv 2406.11235, section 3); levels trained for this project (`hhtld.slots.codebooks.train`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from hhtld._kernels import _cast, _trellis
from hhtld.identity import DEFAULT_STATE_BITS, MAX_RATE, MIN_RATE, STATE_BITS

__all__ = [
    "DEFAULT_STATE_BITS",
    "MAX_RATE",
    "MIN_RATE",
    "STATE_BITS",
    "Trellis",
    "gain_bits",
    "gain_values",
    "search_cols",
]

_TRAINED = {8: range(16, 97), 10: range(16, 97), 12: range(16, 97, 2)}


@functools.cache
def _records(n_bits: int) -> list[tuple[int, NDArray[np.int8]]]:
    data = resources.files("hhtld.slots.codebooks").joinpath(f"states{1 << n_bits}.bin").read_bytes()
    size = 2 + (1 << n_bits)
    return [
        (int.from_bytes(data[i : i + 2], "little"), np.frombuffer(data, np.int8, size - 2, i + 2))
        for i in range(0, len(data), size)
    ]


@dataclass(frozen=True, eq=False)
class Trellis:
    """A code: a rate and a codebook.

    Attributes
    ----------
    rate : int
        Sixteenths of a bit a weight, 16..96.
    levels : ndarray of int8, shape (2**L,)
    step : int
        What a level is in the encoder's units of 1 / 8192 sigma; not needed to decode.
    """

    rate: int
    levels: NDArray[np.int8]
    step: int = 0

    @classmethod
    def trained(cls, rate: int, n_bits: int = DEFAULT_STATE_BITS) -> Trellis:
        """Return the code trained for a rate; of 4096 states (eighths of a bit) the nearest below."""
        if n_bits not in _TRAINED:
            raise ValueError(f"state bits must be one of {STATE_BITS}, got {n_bits}")
        if not MIN_RATE <= rate <= MAX_RATE:
            raise ValueError(f"rate must be {MIN_RATE}..{MAX_RATE} sixteenths of a bit, got {rate}")
        rates = _TRAINED[n_bits]
        index = max(i for i, trained in enumerate(rates) if trained <= rate)
        step, levels = _records(n_bits)[index]
        return cls(rate, levels, step)

    @property
    def n_bits(self) -> int:
        """L, log2 of the number of states."""
        return len(self.levels).bit_length() - 1

    def row_nbytes(self, n_cols: int) -> int:
        """Return the bytes of a row's codes."""
        return _trellis.row_nbytes(n_cols, self.rate, self.n_bits)

    def encode(
        self, rotated: NDArray[np.float32], feedback: NDArray[np.float32] | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Return the codes (n, row_nbytes) and least-squares gains (n,) of rotated rows (n, n_cols).

        With `feedback` (n_cols, n_cols), see `hhtld.slots.feedback`, weights make up for what those before them lost.
        """
        codes = np.empty((len(rotated), self.row_nbytes(rotated.shape[1])), np.uint8)
        gains = np.empty(len(rotated), np.float32)
        _trellis.encode(rotated, self.levels, self.step, self.rate, codes, gains, feedback)
        return codes, gains

    def decode(
        self,
        codes: NDArray[np.uint8],
        gains: NDArray[np.float32],
        n_cols: int,
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Return rotated rows (n, n_cols), in `out` if it is given."""
        if out is None:
            out = np.empty((len(codes), n_cols), np.float32)
        _trellis.decode(codes, self.levels, self.rate, gains, out)
        return out


def search_cols(n_cols: int) -> int:
    """Return how many weights of a row the encoder searches at once: all, or of wide rows a piece, 32 side by side."""
    return _trellis.search_cols(n_cols)


def gain_bits(gains: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round gains to the bfloat16 bits of Slot V, which holds 64 gains: about one sigma of the row."""
    bits = np.empty(gains.shape, np.uint16)
    _cast.narrow_f32_bf16(gains * np.float32(64), bits)
    return bits


def gain_values(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the gains that Slot V holds."""
    gains = np.empty(bits.shape, np.float32)
    _cast.widen_bf16(np.ascontiguousarray(bits), gains)
    return gains / np.float32(64)  # exact, for the smallest bfloat16 too
