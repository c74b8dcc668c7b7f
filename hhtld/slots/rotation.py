"""The row rotation of Slot T: random signs and Hadamard blocks, orthonormal for any number of columns.

Layout
------
Nothing but a u64 seed is stored. Sign i of stage s (0 or 1) is bit 63 of splitmix64's output number
``s * n_cols + i`` (1 means -1): ``z = seed + (number + 1) * 0x9E3779B97F4A7C15``, then the two xor-shift
multiplications, all modulo 2**64.

Rounding
--------
float32; every butterfly is one addition or subtraction, one multiplication by 1 / sqrt(block) ends a
transform (see `_kernels/rotate.h`). Rotating back and forth errs by a few float32 roundings.

Edge cases
----------
One column is a sign. A constant row, which a plain Hadamard transform would turn into one spike, is spread
by the signs.

Source
------
Randomised Hadamard transforms as in QuIP# (arXiv 2402.04396); overlapping blocks for lengths that are no
power of two as in RaBitQ's rotator; splitmix64 by Steele, Lea and Flood (OOPSLA 2014).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hhtld._kernels import _rotate

__all__ = ["Rotation", "splitmix64"]

_DRAWN = 1 << 16  # at once: a file of some kilobytes may declare rows of millions


def splitmix64(seed: int, numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the outputs of the given numbers, counted from 0, of the generator with a seed."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


@dataclass(frozen=True)
class Rotation:
    """The rotation of rows of one width.

    Attributes
    ----------
    n_cols : int
    seed : int
        0 <= seed < 2**64.
    """

    n_cols: int
    seed: int = 0

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}  # not what is computed from them

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be in 0..2^64 - 1, got {self.seed}")

    @cached_property
    def signs(self) -> NDArray[np.float32]:
        """The signs of both stages, +-1, shape (2, n_cols)."""
        signs = np.empty(2 * self.n_cols, np.float32)
        for start in range(0, len(signs), _DRAWN):
            drawn = splitmix64(self.seed, np.arange(start, min(start + _DRAWN, len(signs)), dtype=np.uint64))
            signs[start : start + _DRAWN] = np.where(drawn >> np.uint64(63), np.float32(-1), np.float32(1))
        return signs.reshape(2, self.n_cols)

    def rotate(self, rows: NDArray[np.float32]) -> None:
        """Rotate rows (n, n_cols) in place."""
        _rotate.rotate(rows, self.signs)

    def unrotate(self, rows: NDArray[np.float32]) -> None:
        """Rotate rows (n, n_cols) back in place."""
        _rotate.unrotate(rows, self.signs)
