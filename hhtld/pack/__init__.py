"""An open pack: its table, its sections, and rows on request; nothing here encodes."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hhtld.pack import decoded_rows as decoded_rows
    from hhtld.pack import group_codes as group_codes
    from hhtld.pack import row_bytes as row_bytes
    from hhtld.pack import row_request as row_request


def __getattr__(name: str) -> ModuleType:
    """Load what reading rows takes, and opening a pack does not, when it is first named."""
    if name not in ("decoded_rows", "group_codes", "row_bytes", "row_request"):
        raise AttributeError(f"module 'hhtld.pack' has no attribute {name!r}")
    return importlib.import_module(f"hhtld.pack.{name}")
