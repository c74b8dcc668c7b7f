"""The mathematics of a row, a file a slot: what is computed from rows and what rows are computed from.

What codecs use of it is named here and loaded when it is first used: opening a pack computes nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hhtld.slots.base17 import Base17 as Base17
    from hhtld.slots.class_layout import MAX_CLASSES as MAX_CLASSES
    from hhtld.slots.class_layout import ByClass as ByClass
    from hhtld.slots.class_layout import RowPlaces as RowPlaces
    from hhtld.slots.class_layout import class_order as class_order
    from hhtld.slots.class_layout import class_starts as class_starts
    from hhtld.slots.class_layout import row_spans as row_spans
    from hhtld.slots.feedback import feedback_matrix as feedback_matrix
    from hhtld.slots.fisher_z import FisherZTable as FisherZTable
    from hhtld.slots.levels import CodeMatrix as CodeMatrix
    from hhtld.slots.levels import LevelCodes as LevelCodes
    from hhtld.slots.levels import TrellisLevel as TrellisLevel
    from hhtld.slots.levels import encode_level as encode_level
    from hhtld.slots.palette import HhtlCache as HhtlCache
    from hhtld.slots.palette import Palette as Palette
    from hhtld.slots.palette import build_hip_families as build_hip_families
    from hhtld.slots.palette import checked_palette_k as checked_palette_k
    from hhtld.slots.rotation import Rotation as Rotation
    from hhtld.slots.row_rates import class_rates as class_rates
    from hhtld.slots.row_rates import classes_of_rows as classes_of_rows
    from hhtld.slots.row_rates import mean_rate as mean_rate
    from hhtld.slots.shared_parts import ScaledRows as ScaledRows
    from hhtld.slots.shared_parts import TrellisShared as TrellisShared
    from hhtld.slots.shared_parts import leaf_peak as leaf_peak
    from hhtld.slots.shared_parts import scaled_rows as scaled_rows
    from hhtld.slots.shared_parts import shared_rows as shared_rows
    from hhtld.slots.slot_d_v import ENTRY_DTYPE as ENTRY_DTYPE
    from hhtld.slots.slot_d_v import Entries as Entries
    from hhtld.slots.slot_d_v import HeelBasin as HeelBasin
    from hhtld.slots.slot_d_v import HhtlDEntry as HhtlDEntry
    from hhtld.slots.slot_d_v import encode_entries as encode_entries
    from hhtld.slots.slot_d_v import entries_from_bytes as entries_from_bytes
    from hhtld.slots.slot_d_v import twig as twig
    from hhtld.slots.slot_l import SAMPLE_ROWS as SAMPLE_ROWS
    from hhtld.slots.slot_l import SLOT_L_LANES as SLOT_L_LANES
    from hhtld.slots.slot_l import SvdBasis as SvdBasis
    from hhtld.slots.slot_l import basis_nbytes as basis_nbytes
    from hhtld.slots.slot_l import decode_row as decode_row
    from hhtld.slots.slot_l import decode_rows as decode_rows
    from hhtld.slots.slot_l import encode_leaf as encode_leaf
    from hhtld.slots.slot_l import encode_rows as encode_rows
    from hhtld.slots.slot_l import leaf_coefficients as leaf_coefficients
    from hhtld.slots.slot_l import leaf_scale as leaf_scale
    from hhtld.slots.slot_l import quantized_leaf as quantized_leaf
    from hhtld.slots.slot_t import Trellis as Trellis
    from hhtld.slots.slot_t import gain_bits as gain_bits
    from hhtld.slots.slot_t import gain_values as gain_values
    from hhtld.slots.slot_t import is_ring as is_ring
    from hhtld.slots.slot_t import search_cols as search_cols

_HOMES = {
    "Base17": "base17",
    "ByClass": "class_layout",
    "CodeMatrix": "levels",
    "ENTRY_DTYPE": "slot_d_v",
    "Entries": "slot_d_v",
    "FisherZTable": "fisher_z",
    "HeelBasin": "slot_d_v",
    "HhtlCache": "palette",
    "HhtlDEntry": "slot_d_v",
    "LevelCodes": "levels",
    "MAX_CLASSES": "class_layout",
    "Palette": "palette",
    "Rotation": "rotation",
    "RowPlaces": "class_layout",
    "SAMPLE_ROWS": "slot_l",
    "SLOT_L_LANES": "slot_l",
    "ScaledRows": "shared_parts",
    "SvdBasis": "slot_l",
    "Trellis": "slot_t",
    "TrellisShared": "shared_parts",
    "TrellisLevel": "levels",
    "basis_nbytes": "slot_l",
    "build_hip_families": "palette",
    "checked_palette_k": "palette",
    "class_order": "class_layout",
    "class_rates": "row_rates",
    "class_starts": "class_layout",
    "decode_row": "slot_l",
    "decode_rows": "slot_l",
    "encode_entries": "slot_d_v",
    "encode_level": "levels",
    "encode_leaf": "slot_l",
    "encode_rows": "slot_l",
    "entries_from_bytes": "slot_d_v",
    "feedback_matrix": "feedback",
    "gain_bits": "slot_t",
    "gain_values": "slot_t",
    "is_ring": "slot_t",
    "leaf_coefficients": "slot_l",
    "leaf_peak": "shared_parts",
    "leaf_scale": "slot_l",
    "mean_rate": "row_rates",
    "quantized_leaf": "slot_l",
    "classes_of_rows": "row_rates",
    "row_spans": "class_layout",
    "scaled_rows": "shared_parts",
    "shared_rows": "shared_parts",
    "search_cols": "slot_t",
    "twig": "slot_d_v",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'hhtld.slots' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"hhtld.slots.{home}"), name)
    globals()[name] = value  # the next use does not come through here
    return value
