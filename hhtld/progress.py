"""What long work calls to say how far it is."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress", "silent"]

# Called with a stage ("encode", "measure", ...), a tensor's name and source bytes of it that are done. "resume" counts
# for "encode" what an earlier run had done, "again" takes back what must be encoded at a higher rate.
Progress = Callable[[str, str, int], None]


def silent(stage: str, name: str, nbytes: int) -> None:
    """Report nothing."""
