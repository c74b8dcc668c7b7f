"""What a user without an extra is told."""

from __future__ import annotations

import importlib
import sys

import pytest

from hhtld.errors import MissingExtraError


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # Only the door itself: a second copy of the package would stay behind for the tests that follow.
    monkeypatch.delitem(sys.modules, "hhtld.integrations.torch", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hhtld\[torch\]'"):
        importlib.import_module("hhtld.integrations.torch")


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "hhtld.integrations.transformers", raising=False)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hhtld\[transformers\]'"):
        importlib.import_module("hhtld.integrations.transformers")
