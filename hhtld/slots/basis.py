"""The shared SVD basis of Slot L: up to 8 right singular vectors of a sample of rows.

Layout
------
u32 n_components, u32 n_cols, n_components float32 singular values in descending order, then the
vectors row-major in bfloat16, all little-endian: ``8 + 4 c + 2 c n_cols`` bytes.

Rounding
--------
The Gram matrix of the sample (over columns, or over rows where those are fewer) and its largest eigenpairs
are computed by our own kernels (`dot.h`, `eigen.h`) in float64 in a fixed order; vectors are turned so that their
largest component is positive and TRUNCATED to bfloat16. So a basis is a function of the sample, also where singular
values are equal and their vectors could be others as well.

Edge cases
----------
Fewer than 8 rows or columns give fewer vectors. Directions in which the sample has no energy (below
1e-7 of the largest singular value) are zero vectors with singular value 0.

Source
------
Slot L of the HHTL-D design published in AdaWorldAPI/lance-graph (crates/bgz-tensor).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hhtld._kernels import _cast, _dot, _eigen
from hhtld.sources.rows import as_rows

__all__ = ["N_LANES", "SAMPLE_ROWS", "SvdBasis", "basis_nbytes"]

N_LANES = 8
SAMPLE_ROWS = 4096  # the lookup grade's rule: the first rows of the first tensor


def basis_nbytes(n_rows: int, n_cols: int) -> int:
    """Return the bytes that building a basis of `n_rows` rows takes at most, the rows included."""
    # Where there are fewer rows than columns, they are turned. Two Gram matrices: eigen.h works in a copy. Vectors come
    # and go as float64.
    turned = 2 if n_rows < n_cols else 1
    return 4 * n_rows * n_cols * turned + 2 * 8 * min(n_rows, n_cols) ** 2 + 5 * 8 * N_LANES * n_cols


@dataclass(frozen=True, eq=False)
class SvdBasis:
    """An orthonormal basis shared by a group of tensors.

    Attributes
    ----------
    singular_values : ndarray of float32, shape (n_components,)
    bits : ndarray of uint16, shape (n_components, n_cols)
        The vectors as bfloat16 bits.
    """

    singular_values: NDArray[np.float32]
    bits: NDArray[np.uint16]

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}  # not what is computed from them

    @property
    def n_components(self) -> int:
        """Number of vectors, at most 8."""
        return len(self.bits)

    @property
    def n_cols(self) -> int:
        """Width of the rows it serves."""
        return int(self.bits.shape[1])

    @classmethod
    def build(cls, rows: ArrayLike, n_components: int = N_LANES) -> Self:
        """Build the basis of finite rows (n, n_cols)."""
        if not 1 <= n_components <= N_LANES:
            raise ValueError(f"n_components must be 1..{N_LANES}, got {n_components}")
        sample = as_rows(rows)
        block = sample.read(0, sample.n_rows)
        keep = min(n_components, *block.shape)
        if keep == 0:
            raise ValueError(f"a basis needs at least one row and one column, got shape {block.shape}")
        by_rows = block.shape[0] < block.shape[1]
        gram = np.empty((min(block.shape),) * 2)
        _dot.gram(np.ascontiguousarray(block.T) if by_rows else block, gram)
        energies, vectors = np.empty(keep), np.empty((keep, len(gram)))
        _eigen.largest_eigenpairs(gram, energies, vectors)
        values = np.sqrt(np.maximum(energies, 0))
        alive = values > 1e-7 * values[0]
        if by_rows:
            turned = np.zeros((keep, block.shape[1]))
            for row, own in zip(block, vectors.T, strict=True):  # one after the other: a product's order is its own
                turned += own[:, None] * row
            vectors = turned / np.where(alive, values, 1)[:, None]
        vectors = np.where(alive[:, None], vectors, 0)
        peak = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=1)[:, None], axis=1)
        vectors = np.where(peak < 0, -vectors, vectors).astype(np.float32)
        bits = np.empty(vectors.shape, np.uint16)
        _cast.truncate_f32_bf16(vectors.reshape(-1), bits.reshape(-1))
        return cls(np.where(alive, values, 0).astype(np.float32), bits)

    @cached_property
    def vectors(self) -> NDArray[np.float32]:
        """The vectors, shape (8, n_cols); lanes without a vector are zero."""
        out = np.zeros((N_LANES, self.n_cols), np.float32)
        _cast.widen_bf16(self.bits.reshape(-1), out[: self.n_components].reshape(-1))
        return out

    @cached_property
    def columns(self) -> NDArray[np.float64]:
        """The vectors as the projection kernel reads them, shape (n_cols, 8)."""
        return np.ascontiguousarray(self.vectors.T, dtype=np.float64)

    def project(self, rows: ArrayLike) -> NDArray[np.float32]:
        """Return coefficients (n, 8) of rows (n, n_cols)."""
        from hhtld._kernels import _leaf

        block = as_rows(rows)
        coefficients = np.empty((block.n_rows, N_LANES), np.float32)
        zero = np.zeros((1, self.n_cols), np.float32)
        _leaf.project(block.read(0, block.n_rows), zero, np.zeros(block.n_rows, np.uint8), self.columns, coefficients)
        return coefficients

    def reconstruct(self, coefficients: ArrayLike) -> NDArray[np.float32]:
        """Return rows (n, n_cols) from coefficients (n, 8), lane by lane in float32."""
        given = np.asarray(coefficients, np.float32)
        rows = np.zeros((len(given), self.n_cols), np.float32)
        for lane in range(N_LANES):
            rows += given[:, lane : lane + 1] * self.vectors[lane]
        return rows

    def energy_fraction(self, n_components: int) -> float:
        """Return the share of the kept energy that the first `n_components` vectors hold."""
        energy = self.singular_values.astype(np.float64) ** 2
        return float(energy[:n_components].sum() / energy.sum()) if energy.sum() > 0 else 1.0

    def byte_size(self) -> int:
        """Return the length of `to_bytes()`."""
        return 8 + 4 * self.n_components + 2 * self.bits.size

    def to_bytes(self) -> bytes:
        """Return the layout above."""
        header = struct.pack("<II", self.n_components, self.n_cols)
        return header + self.singular_values.astype("<f4").tobytes() + self.bits.astype("<u2").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> Self:
        """Read a basis.

        Raises
        ------
        ValueError
            On a wrong length, more than 8 vectors, or values that are not finite.
        """
        n_components, n_cols = struct.unpack_from("<II", data) if len(data) >= 8 else (0, 0)
        if not 1 <= n_components <= N_LANES or len(data) != 8 + n_components * (4 + 2 * n_cols):
            raise ValueError(f"{len(data)} bytes do not hold a basis of {n_components} vectors of {n_cols} columns")
        values = np.frombuffer(data, "<f4", n_components, 8)
        bits = np.frombuffer(data, "<u2", n_components * n_cols, 8 + 4 * n_components)
        if not np.isfinite(values).all() or (bits & 0x7F80 == 0x7F80).any():
            raise ValueError("a basis must hold finite values")
        return cls(values, np.require(bits, requirements=["C", "A"]).reshape(n_components, n_cols))
