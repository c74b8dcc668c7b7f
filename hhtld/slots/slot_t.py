"""Slot T: rotated rows as a bitshift trellis code at any rate from 1 to 6 bits in sixteenths.

Layout
------
A codebook is 72 bytes from which the levels of 2**12 states are summed (`_kernels/crossed.h`), or, in files of early
packs, 2**L int8 levels, L = 8, 10 or 12. A row of n weights at rate p / 16 bits is a little-endian
bit stream of ``floor((n - 1) * p / 16) + L`` bits, filled up to a byte; weight t has the state
``stream[floor(t * p / 16), + L)`` and the value ``gain * level[state]``. A row may close to a ring of
``n * p / 16`` bits, whose last windows go on with its first bits. Slot V is 64 gains as a bfloat16: about a
row's sigma, of which a bfloat16 below 1.2e-38 loses digits.

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
The trellis of QTIP (arXiv 2406.11235, section 3); codebooks searched for this project
(`hhtld.slots.codebooks.train`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hhtld._kernels import _cast, _trellis
from hhtld.identity import CODEBOOK_BITS, CODEBOOK_NBYTES, MAX_RATE, MIN_RATE, state_bits
from hhtld.slots.rotation import Rotation

__all__ = [
    "MAX_RATE",
    "MIN_RATE",
    "RowDecoder",
    "Trellis",
    "gain_bits",
    "gain_values",
    "is_ring",
    "search_cols",
]

_RING_COLS = (64, 256)  # fewer lose more than they save; to more, what is saved is little
_GAIN_UNIT = 1 / 64
_TRAINED = range(MIN_RATE, MAX_RATE + 1, 2)


@functools.cache
def _records() -> list[tuple[int, NDArray[np.uint8]]]:
    """The step and the codebook of every trained rate."""
    data = resources.files("hhtld.slots.codebooks").joinpath("crossed.bin").read_bytes()
    size = 2 + CODEBOOK_NBYTES
    return [
        (int.from_bytes(data[i : i + 2], "little"), np.frombuffer(data, np.uint8, CODEBOOK_NBYTES, i + 2))
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
    crossed : ndarray of uint8, shape (72,), or None
        The codebook that the levels are summed from.
    is_ring : bool
        Whether codes are those of rings, which are shorter.
    """

    rate: int
    levels: NDArray[np.int8]
    step: int = 0
    crossed: NDArray[np.uint8] | None = None
    is_ring: bool = False

    @classmethod
    def trained(cls, rate: int, is_ring: bool = False) -> Trellis:
        """Return the code for a rate; its codebook is that of the nearest trained rate, an eighth of a bit, below."""
        if not MIN_RATE <= rate <= MAX_RATE:
            raise ValueError(f"rate must be {MIN_RATE}..{MAX_RATE} sixteenths of a bit, got {rate}")
        index = max(i for i, trained in enumerate(_TRAINED) if trained <= rate)
        step, codebook = _records()[index]
        return cls(rate, _levels(codebook.tobytes()), step, codebook, is_ring)

    @classmethod
    def of_codebook(cls, rate: int, codebook: bytes | memoryview, is_ring: bool = False) -> Trellis:
        """Return the code of a file's codebook; it decodes and does not encode.

        Raises
        ------
        ValueError
            If no codebook has so many bytes, or if levels of 72 bytes sum up beyond int8.
        """
        data = np.frombuffer(codebook, np.uint8)
        if state_bits(len(data)) is None:
            raise ValueError(f"a codebook has 72 bytes, or 256, 1024 or 4096 levels, got {len(data)} bytes")
        if len(data) != CODEBOOK_NBYTES:
            return cls(rate, data.view(np.int8), is_ring=is_ring)
        tables = data[24:].view(np.int8).reshape(3, 16).astype(np.int64)
        if max(tables.max(axis=1).sum(), -tables.min(axis=1).sum()) > 127:
            raise ValueError("a codebook's levels must sum up to -127..127")
        return cls(rate, _levels(data.tobytes()), crossed=data, is_ring=is_ring)

    @property
    def codebook(self) -> NDArray[Any]:
        """What a file holds of it: uint8 (72,), or the levels."""
        return self.levels if self.crossed is None else self.crossed

    @property
    def n_bits(self) -> int:
        """L, log2 of the number of states."""
        return len(self.levels).bit_length() - 1

    def row_nbytes(self, n_cols: int) -> int:
        """Return the bytes of a row's codes."""
        row_nbytes = _trellis.ring_nbytes if self.is_ring else _trellis.row_nbytes
        return row_nbytes(n_cols, self.rate, self.n_bits)

    def encode(
        self, rotated: NDArray[np.float32], feedback: NDArray[np.float32] | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Return the codes (n, row_nbytes) and least-squares gains (n,) of rotated rows (n, n_cols).

        With `feedback` (n_cols, n_cols), see `hhtld.slots.feedback`, weights make up for what those before them lost.
        """
        n_cols = rotated.shape[1]
        codes = np.empty((len(rotated), _trellis.row_nbytes(n_cols, self.rate, self.n_bits)), np.uint8)
        gains = np.empty(len(rotated), np.float32)
        _trellis.encode(rotated, self.levels, self.step, self.rate, codes, gains, feedback, is_ring=self.is_ring)
        if self.is_ring:
            codes = np.ascontiguousarray(codes[:, : self.row_nbytes(n_cols)])
            n_spare = -(n_cols * self.rate // 16) % 8
            codes[:, -1] &= 0xFF >> n_spare
        return codes, gains

    def opened(self, codes: NDArray[np.uint8], n_cols: int) -> NDArray[np.uint8]:
        """Return codes as kernels read them, with every window whole: those of rings are copied."""
        if not self.is_ring:
            return codes
        opened = np.empty((len(codes), _trellis.row_nbytes(n_cols, self.rate, self.n_bits)), np.uint8)
        _trellis.open_rings(np.ascontiguousarray(codes), n_cols, self.rate, self.n_bits, opened)
        return opened

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
        _trellis.decode(self.opened(codes, n_cols), self.levels, self.rate, gains, out, crossed=self.crossed)
        return out


class RowDecoder:
    """Decodes rows that are a code's, a gain, a rotation and perhaps a centroid, in one call of a kernel.

    Parameters
    ----------
    trellis : Trellis
    rotation : Rotation
    centroids : ndarray of float32, shape (k, n_cols), or None
    """

    def __init__(self, trellis: Trellis, rotation: Rotation, centroids: NDArray[np.float32] | None = None) -> None:
        self._trellis, self._n_cols = trellis, rotation.n_cols
        code = (trellis.levels, trellis.rate, trellis.crossed)
        self._decode = _trellis.RowDecoder(*code, rotation.signs, _GAIN_UNIT, centroids).decode

    def decode(
        self,
        codes: NDArray[np.uint8],
        slot_v: NDArray[np.uint16],
        twigs: NDArray[np.uint8] | None,
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Return rows (n, n_cols) of codes (n, row_nbytes), Slot V (n,) and twigs (n,), in `out` if it is given."""
        if out is None:
            out = np.empty((len(codes), self._n_cols), np.float32)
        if twigs is not None:
            twigs = np.ascontiguousarray(twigs)
        self._decode(self._trellis.opened(codes, self._n_cols), np.ascontiguousarray(slot_v), out, twigs)
        return out


@functools.lru_cache(256)
def _levels(codebook: bytes) -> NDArray[np.int8]:
    levels = np.empty(1 << CODEBOOK_BITS, np.int8)
    _trellis.crossed_levels(np.frombuffer(codebook, np.uint8), levels)
    levels.flags.writeable = False
    return levels


def is_ring(n_cols: int, rate: int) -> bool:
    """Return whether rows of `n_cols` weights are written as rings: narrow ones, of whole bits, that get shorter.

    See docs/decisions/rings.md.
    """
    if not _RING_COLS[0] <= n_cols <= _RING_COLS[1] or n_cols * rate % 16:
        return False
    return _trellis.ring_nbytes(n_cols, rate, CODEBOOK_BITS) < _trellis.row_nbytes(n_cols, rate, CODEBOOK_BITS)


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
    _cast.widen_bf16(np.ascontiguousarray(bits), gains, factor=_GAIN_UNIT)  # exact, for the smallest bfloat16 too
    return gains
