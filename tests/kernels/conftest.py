"""Every tier, every ragged width, and arrays whose surroundings are watched."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hhtld._kernels import _isa

RAGGED_COLS = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 34, 51, 63, 64, 65, 97, 100, 128, 200, 384)
RAGGED_ROWS = (1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 24, 25, 33, 65)
ENTRY_COUNTS = (1, 2, 15, 16, 17, 63, 64, 65, 255, 256)
FENCE_NBYTES = 192
# By element size; signalling NaNs to floats, so that what is read past an end shows in the result or comes back
# quiet, and not as the guard it was.
FENCES = {1: 0xA5, 2: 0x7F8A, 4: 0x7F8A5A5A, 8: 0x7FF0A5A5A5A5A5A5}


@pytest.fixture(scope="session", params=_isa.available_tiers())
def isa(request: pytest.FixtureRequest) -> str:
    """Each tier this machine can run."""
    tier: str = request.param
    return tier


@pytest.fixture(scope="session", params=RAGGED_COLS)
def n_cols(request: pytest.FixtureRequest) -> int:
    """Widths on both sides of every block size."""
    width: int = request.param
    return width


@pytest.fixture(scope="session")
def ragged_rows() -> tuple[int, ...]:
    """Row counts on both sides of every block size."""
    return RAGGED_ROWS


@pytest.fixture
def fenced() -> Iterator[Callable[[Any], NDArray[Any]]]:
    """Copy an array between guard bytes, aligned to its element and no more; guards are checked at the end.

    With HHTLD_SANITIZE=1 the copy stands alone, because only then does ASan see a step past its ends.
    """
    alone = os.environ.get("HHTLD_SANITIZE") == "1"
    memory: list[tuple[NDArray[Any], int, int, int]] = []

    def fence(contents: Any) -> NDArray[Any]:
        array: NDArray[Any] = np.asarray(contents)
        if alone:
            return array.copy()
        # Each array has a guard of its own, so that copying one over another does not go unseen.
        guard = FENCES[array.itemsize] ^ len(memory) % 128
        words = np.full((array.nbytes + 2 * FENCE_NBYTES) // array.itemsize + 64, guard, f"u{array.itemsize}")
        buffer = words.view(np.uint8)
        start = FENCE_NBYTES + (array.itemsize - FENCE_NBYTES - buffer.ctypes.data) % 64
        copy: NDArray[Any] = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        copy[...] = array
        memory.append((words, guard, start // array.itemsize, array.size))
        return copy

    yield fence
    for words, guard, start, size in memory:
        assert (words[:start] == guard).all(), "bytes before an array were written"
        assert (words[start + size :] == guard).all(), "bytes after an array were written"
