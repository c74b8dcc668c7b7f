"""Packed weights answer exactly here, so that tests compare them with decoded ones; one test is about the default."""

import pytest


@pytest.fixture(autouse=True)
def exact_products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two planes of int8 unless a test is marked as one of the default."""
    try:
        import torch  # noqa: F401 - imported to see whether it is there
    except ImportError:
        return
    from hhtld.integrations.torch.packed import PackedWeight

    if "one_plane" not in request.keywords:
        monkeypatch.setattr(PackedWeight, "exact", True)
