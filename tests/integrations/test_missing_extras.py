"""What a user without an extra is told."""

from __future__ import annotations

import sys

import pytest

from hhtld.errors import MissingExtraError


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("hhtld.integrations")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hhtld\[torch\]'"):
        import hhtld.integrations.torch  # noqa: F401
