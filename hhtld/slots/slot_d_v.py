"""Slots D and V of a row: the address of its centroid, and how far the row is from it.

Layout
------
Slot D (u16): bits 15..14 HEEL basin, 13..10 HIP family, 9..2 TWIG (palette entry), 1 polarity, 0 reserved (0).
Slot V (u16): bfloat16 of the residual's magnitude. A row's entry is Slot D then Slot V, little-endian, 4 bytes.

Rounding
--------
Slot V is float32(L1(row, entry) / max(1, sum |entry dims|)) TRUNCATED to bfloat16. Polarity is 1 when
the residual dim of largest magnitude (first wins) is >= 0.

Source
------
The HHTL-D design published in AdaWorldAPI/lance-graph (crates/bgz-tensor).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hhtld._kernels import _cast
from hhtld.slots.base17 import Base17
from hhtld.slots.palette import HhtlCache

__all__ = [
    "ENTRY_DTYPE",
    "Entries",
    "HeelBasin",
    "HhtlDEntry",
    "encode_entries",
    "entries_from_bytes",
    "heel_basin",
    "hip_family",
    "polarity",
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
    magnitudes = np.empty(slot_v.shape, np.float32)
    _cast.widen_bf16(np.require(slot_v, np.uint16, ["C", "A"]).reshape(-1), magnitudes.reshape(-1))
    return magnitudes


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
    slot_v = np.empty(len(dims), np.uint16)
    _cast.truncate_f32_bf16((distances / magnitude).astype(np.float32), slot_v)
    entries["slot_v"] = slot_v
    return entries


def entries_from_bytes(data: bytes | memoryview | NDArray[Any]) -> Entries:
    """Read 4 bytes a row.

    Raises
    ------
    ValueError
        If the length is no multiple of 4 or a reserved bit is set.
    """
    if len(data) % ENTRY_DTYPE.itemsize:
        raise ValueError(f"{len(data)} bytes are not a multiple of {ENTRY_DTYPE.itemsize}")
    entries = np.frombuffer(data, ENTRY_DTYPE)
    reserved = np.flatnonzero(entries["slot_d"] & 1)
    if len(reserved):
        raise ValueError(f"the reserved bit of Slot D is set in row {reserved[0]}")
    return entries
