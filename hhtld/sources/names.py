"""Choosing tensors by name."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence

from hhtld.errors import did_you_mean, shown

__all__ = ["matching"]


def matching(names: Iterable[str], globs: Sequence[str]) -> list[str]:
    """Return the names that globs, or names as they are, choose, in the order of `names`; all if there is no glob.

    Raises
    ------
    ValueError
        When a glob matches nothing; with the nearest names.
    """
    known = list(names)
    for glob in globs:
        if not any(_matches(name, glob) for name in known):
            raise ValueError(f"no tensor matches {shown(glob)}{did_you_mean(glob, known)}")
    return [name for name in known if not globs or any(_matches(name, glob) for glob in globs)]


def _matches(name: str, glob: str) -> bool:
    return name == glob or fnmatch.fnmatchcase(name, glob)
