"""Slots D, V and L of a row.

Layout
------
Slot D (u16): bits 15..14 HEEL basin, 13..10 HIP family, 9..2 TWIG (palette entry), 1 polarity,
0 reserved (0). Slot V (u16): bfloat16 of the residual's magnitude. A row's entry is Slot D then
Slot V, little-endian, 4 bytes. Slot L: 8 int8 on the group's basis, 8 bytes a row, one float32 scale
a tensor.

Rounding
--------
Slot V is float32(L1(row, entry) / max(1, sum |entry dims|)) TRUNCATED to bfloat16. Polarity is 1 when
the residual dim of largest magnitude (first wins) is >= 0. Slot L: c = float32 of the float64 dot of
(row - entry, in float32) with the bfloat16 basis, columns ascending; scale = max|c| / 127 over the
tensor, 1 when max|c| <= 1e-12; byte = c / scale in float32, rounded half away from zero, clamped to
+-127. Decoding: entry, then + (byte * scale) * basis[lane] for lanes 0..7 in float32.

Error
-----
Half of scale a lane, plus everything of the row outside entry and basis.

Edge cases
----------
Lanes without a basis vector are 0. Row and entry counts must be equal, widths must be equal: anything
else is an error, never a truncated loop.

Source
------
The HHTL-D design published in AdaWorldAPI/lance-graph (crates/bgz-tensor).
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hhtld._kernels import _cast, _leaf
from hhtld.errors import RangeError
from hhtld.identity import SLOT_L_LANES
from hhtld.slots.base17 import Base17
from hhtld.slots.basis import SvdBasis
from hhtld.slots.palette import HhtlCache
from hhtld.sources.rows import Rows, as_rows, map_rows

__all__ = [
    "ENTRY_DTYPE",
    "SLOT_L_LANES",
    "HeelBasin",
    "HhtlDEntry",
    "decode_row",
    "decode_rows",
    "encode_entries",
    "encode_leaf",
    "encode_rows",
    "heel_basin",
    "hip_family",
    "leaf_coefficients",
    "leaf_scale",
    "polarity",
    "quantized_leaf",
    "residual",
    "twig",
]

ENTRY_DTYPE = np.dtype([("slot_d", "<u2"), ("slot_v", "<u2")])

Entries = NDArray[np.void]


class HeelBasin(IntEnum):
    """Which kind of projection a tensor is."""

    QK = 0
    V = 1
    GATE = 2
    FFN = 3

    @classmethod
    def from_role(cls, role: str) -> Self:
        """Return the basin of a role's text, matched by substring."""
        text = role.lower()
        if any(part in text for part in ("q_proj", "k_proj", "o_proj")):
            return cls(0)
        if "v_proj" in text:
            return cls(1)
        return cls(2) if "gate" in text else cls(3)


def heel_basin(slot_d: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Return the basins 0..3 of Slots D."""
    return (slot_d >> 14).astype(np.uint8)


def hip_family(slot_d: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Return the families 0..15 of Slots D."""
    return (slot_d >> 10 & 0x0F).astype(np.uint8)


def twig(slot_d: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Return the palette entries of Slots D."""
    return (slot_d >> 2 & 0xFF).astype(np.uint8)


def polarity(slot_d: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """Return the polarities of Slots D."""
    return (slot_d & 2).astype(np.bool_)


def residual(slot_v: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the magnitudes of Slots V."""
    out = np.empty(slot_v.shape, np.float32)
    _cast.widen_bf16(np.require(slot_v, np.uint16, ["C", "A"]).reshape(-1), out.reshape(-1))
    return out


@dataclass(frozen=True)
class HhtlDEntry:
    """One row's Slots D and V, for looking at; arrays of rows use `ENTRY_DTYPE`."""

    slot_d: int
    slot_v: int

    @property
    def heel_basin(self) -> HeelBasin:
        """Bits 15..14."""
        return HeelBasin(self.slot_d >> 14)

    @property
    def hip_family(self) -> int:
        """Bits 13..10."""
        return self.slot_d >> 10 & 0x0F

    @property
    def twig(self) -> int:
        """Bits 9..2."""
        return self.slot_d >> 2 & 0xFF

    @property
    def polarity(self) -> bool:
        """Bit 1."""
        return bool(self.slot_d & 2)

    @property
    def residual(self) -> float:
        """Slot V as a number."""
        return float(residual(np.array([self.slot_v], np.uint16))[0])


def encode_entries(basin: HeelBasin, dims: Base17, cache: HhtlCache, hip_assignments: NDArray[np.uint8]) -> Entries:
    """Return the entries, `ENTRY_DTYPE` of shape (n,), of folded rows."""
    families = np.asarray(hip_assignments)
    if families.shape != (cache.k,) or families.dtype != np.uint8 or (families > 15).any():
        raise ValueError(f"hip_assignments must be {cache.k} uint8 families 0..15, one a palette entry")
    twigs, distances = cache.nearest(dims)
    palette = cache.palette.entries.dims.astype(np.int32)
    apart = dims.dims.astype(np.int32) - palette[twigs]
    dominant = np.take_along_axis(apart, np.abs(apart).argmax(axis=1)[:, None], axis=1)[:, 0]
    magnitude = np.maximum(np.abs(palette).sum(axis=1), 1)[twigs]
    entries = np.empty(len(dims), ENTRY_DTYPE)
    entries["slot_d"] = (
        int(basin) << 14
        | families[twigs].astype(np.uint16) << 10
        | twigs.astype(np.uint16) << 2
        | (dominant >= 0).astype(np.uint16) << 1
    )
    values = np.empty(len(dims), np.uint16)
    _cast.truncate_f32_bf16((distances / magnitude).astype(np.float32), values)
    entries["slot_v"] = values
    return entries


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
    for start, stop, found in map_rows(_projected, rows, executor, centroids, twigs, basis):
        coefficients[start:stop] = found
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
    own = centroids[start:stop] if twigs is None else centroids
    return leaf_coefficients(block, own, None if twigs is None else twigs[start:stop], basis)


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
        When the largest coefficient is not finite.
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
        When counts or widths differ, or a value is not finite.
    """
    given, entries = as_rows(rows), as_rows(centroids)
    if entries.n_rows != given.n_rows:
        raise ValueError(f"{given.n_rows} rows but {entries.n_rows} centroids; they must be equal in number")
    return encode_leaf(given, entries.read(0, entries.n_rows), None, basis)


def decode_rows(centroids: ArrayLike, slot_l: ArrayLike, scale: float, basis: SvdBasis) -> NDArray[np.float32]:
    """Decode Slot L (n, 8) back to rows (n, n_cols) upon their centroids.

    Raises
    ------
    ValueError
        When counts or widths differ, or a code is no int8.
    """
    entries = as_rows(centroids)
    given = np.asarray(slot_l)
    codes = np.require(given, np.int8, ["C"])
    if not np.array_equal(codes, given):
        raise ValueError("codes of Slot L must be whole numbers from -128 to 127")
    out = np.empty((entries.n_rows, entries.n_cols), np.float32)
    _leaf.reconstruct(entries.read(0, entries.n_rows), None, codes, scale, basis.vectors, out)
    return out


def decode_row(centroid: ArrayLike, slot_l_row: ArrayLike, scale: float, basis: SvdBasis) -> NDArray[np.float32]:
    """Decode one row's Slot L (8,) back to a row (n_cols,) upon its centroid (n_cols,).

    Raises
    ------
    ValueError
        When a shape is another, or a code is no int8.
    """
    base, codes = np.asarray(centroid), np.asarray(slot_l_row)
    if base.shape != (basis.n_cols,) or codes.shape != (SLOT_L_LANES,):
        raise ValueError(
            f"a row's centroid must have shape ({basis.n_cols},) and its codes ({SLOT_L_LANES},), "
            f"got {base.shape} and {codes.shape}"
        )
    row: NDArray[np.float32] = decode_rows(base[None], codes[None], scale, basis)[0]
    return row


def entries_from_bytes(data: bytes | memoryview | NDArray[Any]) -> Entries:
    """Read 4 bytes a row.

    Raises
    ------
    ValueError
        When the length is no multiple of 4 or a reserved bit is set.
    """
    if len(data) % ENTRY_DTYPE.itemsize:
        raise ValueError(f"{len(data)} bytes are not a multiple of {ENTRY_DTYPE.itemsize}")
    entries = np.frombuffer(data, ENTRY_DTYPE)
    reserved = np.flatnonzero(entries["slot_d"] & 1)
    if len(reserved):
        raise ValueError(f"the reserved bit of Slot D is set in row {reserved[0]}")
    return entries
