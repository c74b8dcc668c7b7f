"""Slots, threads and crews refuse what cannot be meant, and say what they take."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

from hhtld.slots.base17 import Base17
from hhtld.slots.palette import Palette
from hhtld.slots.slot_l import SvdBasis
from hhtld.sources.crew import workers
from hhtld.storage.thread_pool import Threads


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Base17(np.zeros((3, 16), np.int16)), "dims must have shape (n, 17), got (3, 16)"),
        (lambda: Base17.from_bytes(bytes(35)), "35 bytes are not a multiple of 34"),
        (lambda: Palette.build(Base17(np.zeros((0, 17), np.int16))), "a palette needs at least one row"),
        (lambda: SvdBasis.build(np.ones((3, 4)), 9), "n_components must be 1..8, got 9"),
        (lambda: SvdBasis.build(np.ones((0, 4))), "a basis needs at least one row and one column, got shape (0, 4)"),
        (lambda: Threads(0), "there must be at least 1 thread, got 0"),
        (lambda: workers(0).__enter__(), "jobs must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(call: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        call()
