"""Hints of every public function and class resolve, though most of what they name is loaded on first use."""

from __future__ import annotations

import inspect
import subprocess
import sys
import typing
from collections.abc import Iterator
from types import ModuleType

import pytest

import hhtld
import hhtld.formats
import hhtld.formats.base
import hhtld.slots
from hhtld.storage.urls import Url


def public(module: ModuleType) -> Iterator[tuple[str, object]]:
    """The functions and classes that a module promises, with the functions of the classes."""
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isclass(value) and value.__module__.startswith("hhtld"):
            yield f"{module.__name__}.{name}", value
            for inner, attribute in inspect.getmembers_static(value):
                if not inner.startswith("_") or inner == "__init__":
                    function = getattr(attribute, "fget", getattr(attribute, "__func__", attribute))
                    if inspect.isfunction(function) and function.__module__.startswith("hhtld"):
                        yield f"{module.__name__}.{name}.{inner}", function
        elif inspect.isfunction(value):
            yield f"{module.__name__}.{name}", value


@pytest.mark.parametrize("module", [hhtld, hhtld.slots, hhtld.formats, hhtld.formats.base], ids=lambda m: m.__name__)
def test_hints_resolve(module: ModuleType) -> None:
    unresolved, n_tried = [], 0
    for name, value in public(module):
        n_tried += 1
        try:
            typing.get_type_hints(value)
        except NameError as error:
            unresolved.append(f"{name}: {error}")
    assert n_tried > 3
    assert not unresolved, "\n".join(unresolved)


def test_what_open_takes_is_known_and_loaded_by_nobody_else() -> None:
    assert Url in typing.get_args(typing.get_type_hints(hhtld.open)["path"])
    code = "import sys, hhtld; hhtld.open; print(*(name for name in sys.modules if name.endswith('.urls')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stdout.strip()
