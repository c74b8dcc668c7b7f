"""Slot L of a row: what the centroid leaves over, on 8 directions that a group shares (its SVD basis).

Layout
------
Slot L: 8 int8 on the group's basis, 8 bytes a row, one float32 scale a tensor. The basis: u32 n_components, u32
n_cols, n_components float32 singular values in descending order, then the vectors row-major in bfloat16, all
little-endian: ``8 + 4 c + 2 c n_cols`` bytes.

Rounding
--------
A coefficient is float32 of the float64 dot of (row - centroid, in float32) with the bfloat16 basis, columns ascending.
The scale is max|coefficient| / 127 over the tensor, or 1 if the largest is at most 1e-12. A byte is coefficient / scale
in float32, rounded half away from zero, clamped to +-127. A row decodes to its centroid, then + (byte * scale) *
basis[lane] for lanes 0..7 in float32.

The basis are up to 8 right singular vectors of a sample of rows. The Gram matrix of the sample (over columns, or over
rows if there are fewer of them) and its largest eigenpairs are computed by our own kernels (`dot.h`, `eigen.h`) in
float64 in a fixed order; vectors are turned so that their largest component is positive and TRUNCATED to bfloat16. So a
basis is a function of the sample, even if singular values are equal and their vectors could be others as well.

Error
-----
Half of the scale a lane, plus everything of the row outside centroid and basis.

Edge cases
----------
Fewer than 8 rows or columns give fewer vectors, and lanes without a vector are 0. Directions in which the sample has
no energy (below 1e-7 of the largest singular value) are zero vectors with singular value 0. Rows and centroids must be
equal in number and width; anything else is an error, never a truncated loop.

Source
------
The HHTL-D design published in AdaWorldAPI/lance-graph (crates/bgz-tensor).
"""

from __future__ import annotations

import math
import struct
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hhtld._kernels import _cast, _dot, _eigen, _leaf
from hhtld.errors import RangeError
from hhtld.identity import SLOT_L_LANES
from hhtld.sources.rows import Rows, as_rows, map_rows

__all__ = [
    "SAMPLE_ROWS",
    "SLOT_L_LANES",
    "SvdBasis",
    "basis_nbytes",
    "decode_row",
    "decode_rows",
    "encode_leaf",
    "encode_rows",
    "leaf_coefficients",
    "leaf_scale",
    "quantized_leaf",
]

SAMPLE_ROWS = 4096  # a basis of the lookup codec: the first rows of the first tensor


def basis_nbytes(n_rows: int, n_cols: int) -> int:
    """Return the bytes that building a basis of `n_rows` rows takes at most, the rows included."""
    # With fewer rows than columns a transposed copy is made. There are two Gram matrices, because eigen.h works
    # in a copy. Vectors come and go as float64.
    n_copies = 2 if n_rows < n_cols else 1
    return 4 * n_rows * n_cols * n_copies + 2 * 8 * min(n_rows, n_cols) ** 2 + 5 * 8 * SLOT_L_LANES * n_cols


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
    def build(cls, rows: ArrayLike, n_components: int = SLOT_L_LANES) -> Self:
        """Build the basis of finite rows (n, n_cols).

        Raises
        ------
        RangeError
            If a singular value passes float32's range.
        """
        if not 1 <= n_components <= SLOT_L_LANES:
            raise ValueError(f"n_components must be 1..{SLOT_L_LANES}, got {n_components}")
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
        if values[0] > np.finfo(np.float32).max:
            raise RangeError("a singular value passes float32's range; the weights are too large for Slot L")
        alive = values > 1e-7 * values[0]
        if by_rows:
            spanned = np.zeros((keep, block.shape[1]))
            # One row after the other, because the order of sums in a matrix product is its own.
            for row, weights in zip(block, vectors.T, strict=True):
                spanned += weights[:, None] * row
            vectors = spanned / np.where(alive, values, 1)[:, None]
        vectors = np.where(alive[:, None], vectors, 0)
        peak = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=1)[:, None], axis=1)
        vectors = np.where(peak < 0, -vectors, vectors).astype(np.float32)
        bits = np.empty(vectors.shape, np.uint16)
        _cast.truncate_f32_bf16(vectors.reshape(-1), bits.reshape(-1))
        return cls(np.where(alive, values, 0).astype(np.float32), bits)

    @cached_property
    def vectors(self) -> NDArray[np.float32]:
        """The vectors, shape (8, n_cols); lanes without a vector are zero."""
        vectors = np.zeros((SLOT_L_LANES, self.n_cols), np.float32)
        _cast.widen_bf16(self.bits.reshape(-1), vectors[: self.n_components].reshape(-1))
        return vectors

    @cached_property
    def columns(self) -> NDArray[np.float64]:
        """The vectors as the projection kernel reads them, shape (n_cols, 8)."""
        return np.ascontiguousarray(self.vectors.T, dtype=np.float64)

    def project(self, rows: ArrayLike) -> NDArray[np.float32]:
        """Return coefficients (n, 8) of rows (n, n_cols)."""
        block = as_rows(rows)
        coefficients = np.empty((block.n_rows, SLOT_L_LANES), np.float32)
        zero = np.zeros((1, self.n_cols), np.float32)
        _leaf.project(block.read(0, block.n_rows), zero, np.zeros(block.n_rows, np.uint8), self.columns, coefficients)
        return coefficients

    def reconstruct(self, coefficients: ArrayLike) -> NDArray[np.float32]:
        """Return rows (n, n_cols) from coefficients (n, 8), lane by lane in float32."""
        lanes = np.asarray(coefficients, np.float32)
        rows = np.zeros((len(lanes), self.n_cols), np.float32)
        for lane in range(SLOT_L_LANES):
            rows += lanes[:, lane : lane + 1] * self.vectors[lane]
        return rows

    def energy_fraction(self, n_components: int) -> float:
        """Return the share of the kept energy that the first `n_components` vectors hold, a count of 0 or more."""
        if n_components < 0:
            raise ValueError(f"n_components must count vectors, 0 or more; got {n_components}")
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
        if not 1 <= n_components <= SLOT_L_LANES or len(data) != 8 + n_components * (4 + 2 * n_cols):
            raise ValueError(f"{len(data)} bytes do not hold a basis of {n_components} vectors of {n_cols} columns")
        values = np.frombuffer(data, "<f4", n_components, 8)
        bits = np.frombuffer(data, "<u2", n_components * n_cols, 8 + 4 * n_components)
        if not np.isfinite(values).all() or (bits & 0x7F80 == 0x7F80).any():
            raise ValueError("a basis must hold finite values")
        return cls(values, np.require(bits, requirements=["C", "A"]).reshape(n_components, n_cols))


def encode_leaf(
    rows: Rows,
    centroids: NDArray[np.float32],
    twigs: NDArray[np.uint8] | None,
    basis: SvdBasis,
    executor: Executor | None = None,
) -> tuple[NDArray[np.int8], float]:
    """Return Slot L (n, 8) and its scale for rows whose entries are `centroids[twigs]`, or `centroids` row by row."""
    if centroids.shape[1] != rows.n_cols or basis.n_cols != rows.n_cols:
        raise ValueError(f"widths differ: rows {rows.n_cols}, entries {centroids.shape[1]}, basis {basis.n_cols}")
    if len(centroids if twigs is None else twigs) != rows.n_rows:
        raise ValueError(f"{len(centroids if twigs is None else twigs)} entries for {rows.n_rows} rows")
    coefficients = np.empty((rows.n_rows, SLOT_L_LANES), np.float32)
    for start, stop, projected in map_rows(_projected, rows, executor, centroids, twigs, basis):
        coefficients[start:stop] = projected
    scale = leaf_scale(float(np.abs(coefficients).max(initial=np.float32(0))))
    return quantized_leaf(coefficients, scale), scale


def _projected(
    block: NDArray[np.float32],
    start: int,
    stop: int,
    centroids: NDArray[np.float32],
    twigs: NDArray[np.uint8] | None,
    basis: SvdBasis,
) -> NDArray[np.float32]:
    block_centroids = centroids[start:stop] if twigs is None else centroids
    return leaf_coefficients(block, block_centroids, None if twigs is None else twigs[start:stop], basis)


def leaf_coefficients(
    block: NDArray[np.float32], centroids: NDArray[np.float32], twigs: NDArray[np.uint8] | None, basis: SvdBasis
) -> NDArray[np.float32]:
    """Return what rows less their entries are on a basis, float32 (n, 8)."""
    coefficients = np.empty((len(block), SLOT_L_LANES), np.float32)
    _leaf.project(block, centroids, twigs, basis.columns, coefficients)
    return coefficients


def leaf_scale(peak: float) -> float:
    """Return Slot L's scale of a tensor whose largest coefficient is `peak`, an exact float32.

    Raises
    ------
    RangeError
        If the largest coefficient is not finite.
    """
    largest = np.float32(peak)
    if not np.isfinite(largest):
        raise RangeError("a residual's projection passes float32's range; the weights are too large for Slot L")
    return float(np.float32(1) if largest <= np.float32(1e-12) else largest / np.float32(127))


def quantized_leaf(coefficients: NDArray[np.float32], scale: float) -> NDArray[np.int8]:
    """Return coefficients (n, 8) as Slot L."""
    slot_l = np.empty(coefficients.shape, np.int8)
    _leaf.quantize_i8(coefficients.reshape(-1), np.float32(scale), slot_l.reshape(-1))
    return slot_l


def encode_rows(rows: ArrayLike, centroids: ArrayLike, basis: SvdBasis) -> tuple[NDArray[np.int8], float]:
    """Encode rows (n, n_cols), each against its own centroid (n, n_cols), into Slot L (n, 8) and its scale.

    Raises
    ------
    ValueError
        If counts or widths differ, or a value is not finite.
    """
    checked_rows, checked_centroids = as_rows(rows), as_rows(centroids)
    if checked_centroids.n_rows != checked_rows.n_rows:
        raise ValueError(
            f"{checked_rows.n_rows} rows but {checked_centroids.n_rows} centroids; they must be equal in number"
        )
    return encode_leaf(checked_rows, checked_centroids.read(0, checked_centroids.n_rows), None, basis)


def decode_rows(centroids: ArrayLike, slot_l: ArrayLike, scale: float, basis: SvdBasis) -> NDArray[np.float32]:
    """Decode Slot L (n, 8) back to rows (n, n_cols) upon their centroids.

    Raises
    ------
    ValueError
        If counts or widths differ, a code is no int8, or the scale is not finite.
    """
    if not math.isfinite(scale):
        raise ValueError(f"the scale of Slot L must be finite, got {scale}")
    checked_centroids = as_rows(centroids)
    codes = np.require(slot_l, np.int8, ["C"])
    if not np.array_equal(codes, np.asarray(slot_l)):
        raise ValueError("codes of Slot L must be whole numbers from -128 to 127")
    rows = np.empty((checked_centroids.n_rows, checked_centroids.n_cols), np.float32)
    _leaf.reconstruct(checked_centroids.read(0, checked_centroids.n_rows), None, codes, scale, basis.vectors, rows)
    return rows


def decode_row(centroid: ArrayLike, slot_l_row: ArrayLike, scale: float, basis: SvdBasis) -> NDArray[np.float32]:
    """Decode one row's Slot L (8,) back to a row (n_cols,) upon its centroid (n_cols,).

    Raises
    ------
    ValueError
        If a shape is another, a code is no int8, or the scale is not finite.
    """
    base, codes = np.asarray(centroid), np.asarray(slot_l_row)
    if base.shape != (basis.n_cols,) or codes.shape != (SLOT_L_LANES,):
        raise ValueError(
            f"a row's centroid must have shape ({basis.n_cols},) and its codes ({SLOT_L_LANES},), "
            f"got {base.shape} and {codes.shape}"
        )
    row: NDArray[np.float32] = decode_rows(base[None], codes[None], scale, basis)[0]
    return row
