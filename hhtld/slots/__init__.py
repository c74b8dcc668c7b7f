"""The mathematics of a row, a file a slot: what is computed from rows and what rows are computed from.

What codecs use of it is named here and loaded when it is first used: opening a pack computes nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hhtld.slots.address import ENTRY_DTYPE as ENTRY_DTYPE
    from hhtld.slots.address import Entries as Entries
    from hhtld.slots.address import HeelBasin as HeelBasin
    from hhtld.slots.address import HhtlDEntry as HhtlDEntry
    from hhtld.slots.address import encode_entries as encode_entries
    from hhtld.slots.address import entries_from_bytes as entries_from_bytes
    from hhtld.slots.address import twig as twig
    from hhtld.slots.base17 import Base17 as Base17
    from hhtld.slots.feedback import feedback_matrix as feedback_matrix
    from hhtld.slots.fisher_z import FisherZTable as FisherZTable
    from hhtld.slots.leaf import SAMPLE_ROWS as SAMPLE_ROWS
    from hhtld.slots.leaf import SLOT_L_LANES as SLOT_L_LANES
    from hhtld.slots.leaf import SvdBasis as SvdBasis
    from hhtld.slots.leaf import basis_nbytes as basis_nbytes
    from hhtld.slots.leaf import decode_row as decode_row
    from hhtld.slots.leaf import decode_rows as decode_rows
    from hhtld.slots.leaf import encode_leaf as encode_leaf
    from hhtld.slots.leaf import encode_rows as encode_rows
    from hhtld.slots.leaf import leaf_coefficients as leaf_coefficients
    from hhtld.slots.leaf import leaf_scale as leaf_scale
    from hhtld.slots.leaf import quantized_leaf as quantized_leaf
    from hhtld.slots.palette import HhtlCache as HhtlCache
    from hhtld.slots.palette import Palette as Palette
    from hhtld.slots.palette import build_hip_families as build_hip_families
    from hhtld.slots.palette import checked_palette_k as checked_palette_k
    from hhtld.slots.rotation import Rotation as Rotation
    from hhtld.slots.row_classes import MAX_CLASSES as MAX_CLASSES
    from hhtld.slots.row_classes import RowPlaces as RowPlaces
    from hhtld.slots.row_classes import class_order as class_order
    from hhtld.slots.row_classes import class_starts as class_starts
    from hhtld.slots.row_rates import class_rates as class_rates
    from hhtld.slots.row_rates import classes_of_rows as classes_of_rows
    from hhtld.slots.row_rates import mean_rate as mean_rate
    from hhtld.slots.trellis import Trellis as Trellis
    from hhtld.slots.trellis import gain_bits as gain_bits
    from hhtld.slots.trellis import gain_values as gain_values
    from hhtld.slots.trellis import is_ring as is_ring
    from hhtld.slots.trellis import search_cols as search_cols

_HOMES = {
    "Base17": "base17",
    "ENTRY_DTYPE": "address",
    "Entries": "address",
    "FisherZTable": "fisher_z",
    "HeelBasin": "address",
    "HhtlCache": "palette",
    "HhtlDEntry": "address",
    "MAX_CLASSES": "row_classes",
    "Palette": "palette",
    "Rotation": "rotation",
    "RowPlaces": "row_classes",
    "SAMPLE_ROWS": "leaf",
    "SLOT_L_LANES": "leaf",
    "SvdBasis": "leaf",
    "Trellis": "trellis",
    "basis_nbytes": "leaf",
    "build_hip_families": "palette",
    "checked_palette_k": "palette",
    "class_order": "row_classes",
    "class_rates": "row_rates",
    "class_starts": "row_classes",
    "decode_row": "leaf",
    "decode_rows": "leaf",
    "encode_entries": "address",
    "encode_leaf": "leaf",
    "encode_rows": "leaf",
    "entries_from_bytes": "address",
    "feedback_matrix": "feedback",
    "gain_bits": "trellis",
    "gain_values": "trellis",
    "is_ring": "trellis",
    "leaf_coefficients": "leaf",
    "leaf_scale": "leaf",
    "mean_rate": "row_rates",
    "quantized_leaf": "leaf",
    "classes_of_rows": "row_rates",
    "search_cols": "trellis",
    "twig": "address",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'hhtld.slots' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"hhtld.slots.{home}"), name)
    globals()[name] = value  # the next use does not come through here
    return value
