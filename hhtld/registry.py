"""Plugins by name: "module:Class" strings, built in or from an entry-point group, loaded on first use.

A name means one thing for ever: a second claim on it is an error, built-in names included. A plugin
that fails to import is reported where plugins are listed and raises where it is asked for; it never
stops the others.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import ForwardRef

__all__ = ["Plugin", "Registry", "later"]


@dataclass(frozen=True)
class Plugin:
    """Where a name leads and who claims it."""

    name: str
    target: str
    origin: str

    def load(self) -> object:
        """Import and return the class."""
        module, _, attribute = self.target.partition(":")
        loaded: object = getattr(importlib.import_module(module), attribute)
        return loaded


class Registry:
    """Built-in plugins and those of an entry-point group.

    Parameters
    ----------
    group : str
        Entry-point group, for example "hhtld.formats".
    builtins : mapping of str to str
        Name to "module:Class".
    """

    def __init__(self, group: str, builtins: Mapping[str, str]) -> None:
        self._group = group
        self._builtins = dict(builtins)
        self._plugins: dict[str, Plugin] | None = None

    def plugins(self) -> dict[str, Plugin]:
        """Return every plugin by name, built-in ones first.

        Raises
        ------
        ValueError
            If two distributions claim one name.
        """
        if self._plugins is None:
            plugins_by_name = {n: Plugin(n, t, "hhtld") for n, t in self._builtins.items()}
            for point in sorted(metadata.entry_points(group=self._group), key=lambda p: (p.name, p.value)):
                origin = f"{point.dist.name} {point.dist.version}" if point.dist else "unknown distribution"
                if point.name in plugins_by_name:
                    if plugins_by_name[point.name].target == point.value:
                        continue  # the same distribution seen twice on the path
                    first = plugins_by_name[point.name]
                    raise ValueError(
                        f"two plugins claim the name {point.name!r} in {self._group}: "
                        f"{first.origin} ({first.target}) and {origin} ({point.value})"
                    )
                plugins_by_name[point.name] = Plugin(point.name, point.value, origin)
            self._plugins = plugins_by_name
        return self._plugins

    def __iter__(self) -> Iterator[Plugin]:
        return iter(self.plugins().values())


def later(target: str) -> ForwardRef:
    """Return what stands for a class in annotations, so that `typing.get_type_hints` finds it and nobody else loads it.

    Parameters
    ----------
    target : str
        "module:Class".
    """
    module, _, name = target.partition(":")
    return ForwardRef(f"__import__({module!r}, fromlist=[{name!r}]).{name}")
