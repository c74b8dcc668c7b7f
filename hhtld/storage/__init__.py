"""Bytes here and behind URLs: read by position, written so that nobody ever sees half of a file."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hhtld.storage import run_reads as run_reads
    from hhtld.storage import thread_pool as thread_pool


def __getattr__(name: str) -> ModuleType:
    """Load what opening a file does not need when it is first named; the next use does not come here."""
    if name not in ("run_reads", "thread_pool"):
        raise AttributeError(f"module 'hhtld.storage' has no attribute {name!r}")
    return importlib.import_module(f"hhtld.storage.{name}")
