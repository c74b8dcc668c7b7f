"""Choosing tensors by name, and naming some of them."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence

from hhtld.errors import did_you_mean, shown

__all__ = ["matching", "some_of"]

_SHOWN = 5


def matching(names: Iterable[str], globs: Sequence[str]) -> list[str]:
    """Return the names that globs, or names as they are, choose, in the order of `names`; all if there is no glob.

    Raises
    ------
    ValueError
        If a glob matches nothing; with the nearest names, or the first ones.
    """
    known = list(names)
    for glob in globs:
        if not any(_matches(name, glob) for name in known):
            near = did_you_mean(glob, known) or f"; there are {some_of(known)}"
            raise ValueError(f"no tensor matches {shown(glob)}{near}")
    return [name for name in known if not globs or any(_matches(name, glob) for glob in globs)]


def some_of(names: Iterable[str]) -> str:
    """Return the first names for a message, and dots if there are more; "no tensors" if there are none."""
    ordered = sorted(names)
    if not ordered:
        return "no tensors"
    return ", ".join(ordered[:_SHOWN]) + (", ..." if len(ordered) > _SHOWN else "")


def _matches(name: str, glob: str) -> bool:
    return name == glob or fnmatch.fnmatchcase(name, glob)
