"""The mathematics of a row, a file a slot: what is computed from rows and what rows are computed from."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hhtld.slots.entries import SLOT_L_LANES as SLOT_L_LANES
    from hhtld.slots.entries import decode_row as decode_row
    from hhtld.slots.entries import decode_rows as decode_rows
    from hhtld.slots.entries import encode_rows as encode_rows

__all__ = ["SLOT_L_LANES", "decode_row", "decode_rows", "encode_rows"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'hhtld.slots' has no attribute {name!r}")
    return getattr(importlib.import_module("hhtld.slots.entries"), name)
