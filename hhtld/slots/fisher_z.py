"""Fisher z: cosines between palette entries in one byte each.

Layout
------
float32 z_min, float32 z_range, then k * k int8 row-major, little-endian: ``8 + k * k`` bytes.

Rounding
--------
z = atanh(clamp(cosine, +-0.9999)); over the pairs a < b, z_min is the least and z_range =
max(greatest - least, 1e-10). code = (z - z_min) / z_range * 254 - 127 in float32, clamped to
[-128, 127], truncated toward zero. Decoding: tanh((code + 127) / 254 * z_range + z_min) in float32.

Error
-----
Half of z_range / 254 in z, at most that in the cosine, for the representatives. For other rows of
an entry it says no more than the entry does.

Source
------
The HHTL-D design published in AdaWorldAPI/lance-graph (crates/bgz-tensor).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hhtld._kernels import _dot

__all__ = ["FisherZTable"]


@dataclass(frozen=True, eq=False)
class FisherZTable:
    """Quantized cosines between the representatives of a palette's entries.

    Attributes
    ----------
    z_min, z_range : float
        Exact float32 values.
    codes : ndarray of int8, shape (k, k)
    """

    z_min: float
    z_range: float
    codes: NDArray[np.int8]

    @classmethod
    def build(cls, representatives: NDArray[np.float32]) -> Self:
        """Build the table of k >= 1 representative rows (k, n_cols)."""
        k = len(representatives)
        dots = np.empty((k, k))
        # Summed here, column by column: a BLAS product would differ in its last bits between machines.
        _dot.gram(np.ascontiguousarray(representatives.T, dtype=np.float32), dots)
        norms = np.sqrt(np.diagonal(dots))
        scale = np.outer(norms, norms)
        cosines = np.divide(dots, scale, out=np.zeros_like(dots), where=scale > 0).astype(np.float32)
        limit = np.float32(0.9999)
        # The C library's function one by one: numpy's own may differ in the last bit between processors.
        flat = np.clip(cosines, -limit, limit).reshape(-1).tolist()
        z = np.fromiter(map(math.atanh, flat), np.float32, k * k).reshape(k, k)
        pairs = z[np.triu_indices(k, 1)] if k > 1 else np.zeros(1, np.float32)
        z_min = pairs.min()
        z_range = np.maximum(pairs.max() - z_min, np.float32(1e-10))
        codes = (z - z_min) / z_range * np.float32(254) - np.float32(127)
        return cls(float(z_min), float(z_range), np.trunc(np.clip(codes, -128, 127)).astype(np.int8))

    def lookup(self, a: int, b: int) -> float:
        """Return the cosine between entries `a` and `b`, or raise IndexError if there is no such entry."""
        k = len(self.codes)
        if not (0 <= a < k and 0 <= b < k):
            raise IndexError(f"entries must be 0..{k - 1}, got {a} and {b}")
        return float(self.cosines(self.codes[a : a + 1, b])[0])

    def cosines(self, codes: NDArray[np.int8]) -> NDArray[np.float32]:
        """Decode any array of codes."""
        return self._values[codes.astype(np.int16) + 128]

    @cached_property
    def _values(self) -> NDArray[np.float32]:
        """The cosine of every code -128..127."""
        steps = (np.arange(-128, 128, dtype=np.float32) + np.float32(127)) / np.float32(254)
        z = steps * np.float32(self.z_range) + np.float32(self.z_min)
        return np.fromiter(map(math.tanh, z.tolist()), np.float32, 256)

    def byte_size(self) -> int:
        """Return the length of `to_bytes()`."""
        return 8 + self.codes.size

    def to_bytes(self) -> bytes:
        """Return the layout above."""
        return struct.pack("<ff", self.z_min, self.z_range) + self.codes.tobytes()

    @classmethod
    def from_bytes(cls, data: bytes | memoryview, k: int) -> Self:
        """Read the table of a palette of `k` entries.

        Raises
        ------
        ValueError
            On a wrong length, or a range that no table has.
        """
        if len(data) != 8 + k * k:
            raise ValueError(f"a Fisher z table of {k} entries is {8 + k * k} bytes long, got {len(data)}")
        z_min, z_range = struct.unpack_from("<ff", data)
        if not (np.isfinite(z_min) and np.isfinite(z_range) and z_range > 0):
            raise ValueError(f"Fisher z range must be finite and positive, got minimum {z_min}, range {z_range}")
        return cls(z_min, z_range, np.frombuffer(data, np.int8, offset=8).reshape(k, k))
