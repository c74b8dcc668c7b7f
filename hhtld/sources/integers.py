"""Whole numbers in a float type: masks, position numbers, token ids, one-hot tables, integer weights.

Each of them means something, so they are kept as they are: a mask's 1 that comes back as .97 is no mask's 1. A tensor
is taken for such when all of its values are whole and at most 65,536 in magnitude, but for one value of any size, -inf
too, that masks are filled with. Zeros alone are no mask: they are coded exactly, and in less.

Nearly all weights are told by their first values. A tensor that begins with whole numbers is read further; one of more
than 268 million values whose sample, spread over all of it, is zero counts as zeros, so that a plan for a huge table
that nobody has filled yet does not read all of it.
"""

from __future__ import annotations

import math

import numpy as np

from hhtld.dtypes import widen
from hhtld.sizes import BLOCK_NBYTES
from hhtld.sources.contract import TensorSource

__all__ = ["holds_integers"]

_LARGEST = 65536
_FIRST = 1024  # values that tell weights from whole numbers, nearly always
_HUGE = 1 << 28  # values
_SPREAD = 64  # places of _FIRST values each


def holds_integers(source: TensorSource, name: str) -> bool:
    """Whether a tensor of a weight type holds whole numbers only; read in blocks up to the first other value."""
    total, start, step = math.prod(source.infos()[name].shape), 0, _FIRST
    if total > _HUGE and not any(
        widen(source.read_elements(name, place, place + _FIRST), source.infos()[name].dtype).any()
        for place in range(0, total - _FIRST, total // _SPREAD)
    ):
        return False
    fill: np.float32 | None = None
    is_zero = True
    while start < total:
        stop = min(start + step, total)
        values = widen(source.read_elements(name, start, stop), source.infos()[name].dtype)
        with np.errstate(invalid="ignore"):
            others = values[(values != np.trunc(values)) | ~(np.abs(values) <= _LARGEST)]
        if others.size:
            fill = others[0] if fill is None else fill
            if fill != np.trunc(fill) or (others != fill).any():  # NaN is unlike itself
                return False
        is_zero = is_zero and not values.any()
        start, step = stop, BLOCK_NBYTES // 4
    return not is_zero
