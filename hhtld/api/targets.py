"""What a calibration makes of a target: a level of rates, and the options of an encoding at that level."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

from hhtld.api.conversion_report import as_bf16_nbytes
from hhtld.encoding.calibrated_rates import BITS_STEP, Calibration
from hhtld.encoding.groups import WhyKept
from hhtld.encoding.options import Encoding
from hhtld.encoding.pack_size import GroupSize, most_nbytes
from hhtld.encoding.plan import make_plan
from hhtld.encoding.resources import DEFAULT_MEMORY, Work
from hhtld.errors import FormatError
from hhtld.slots.slot_t import MAX_RATE, MIN_RATE
from hhtld.sources.contract import TensorSource

__all__ = ["at_level", "level_for_bits"]

_LOWEST, _HIGHEST = round(MIN_RATE / 16 / BITS_STEP), round(MAX_RATE / 16 / BITS_STEP)
_N_GUIDED = 6  # tries, of which three or four find the level of most models


def at_level(encoding: Encoding, calibration: Calibration, level: float) -> Encoding:
    """Return options with the rates of a level, and with the column scales and moments of a calibration."""
    return replace(
        encoding,
        column_scales=calibration.column_scales,
        rates=calibration.bits(level),
        moments=calibration.moments,
    )


def level_for_bits(
    calibration: Calibration, bits: float, source: TensorSource, encoding: Encoding, memory: int = DEFAULT_MEMORY
) -> float:
    """Return the highest level, in 1024ths, at which a pack takes `bits` a weight at most.

    All of the file counts but side files.

    Parameters
    ----------
    calibration : Calibration
    bits : float
        As many sixteenths of what the model takes as bfloat16.
    source : TensorSource
    encoding : Encoding
        Its other options.
    memory : int
        Bytes to stay below.

    Raises
    ------
    FormatError
        If the lowest rates may take more, or the source holds no values.
    """
    if not 0 < bits < math.inf:
        raise ValueError(f"target_bits (--target-bits) must be a positive number of bits a weight, got {bits}")
    planned = make_plan(source, encoding)
    tensors = planned.tensors.values()
    as_bf16 = sum(as_bf16_nbytes(tensor.info) for tensor in tensors if tensor.alias_of is None)
    if not as_bf16:
        raise FormatError("the source holds no values, so target_bits (--target-bits) has no weights to count by")
    budget = int(bits / 16 * as_bf16)
    rated = {tensor.info.name for tensor in tensors if tensor.group is not None and tensor.profile == planned.profile}
    sizes: dict[tuple[Any, ...], GroupSize | WhyKept] = {}

    def pack_nbytes(step: int) -> int:
        plan = make_plan(source, at_level(encoding, calibration, step * BITS_STEP))
        return most_nbytes(source, plan, Work(memory=memory), sizes)

    fits, exceeds = _LOWEST - 1, _HIGHEST + 1
    rest = 0  # what does not follow the rates: the table, norms, centroids, and what rules decide for
    for n_tried in itertools.count():
        step = round(calibration.level_for_nbytes(budget - rest, rated) / BITS_STEP)
        if n_tried >= _N_GUIDED and n_tried % 2:  # what rates decide tells too little here
            step = (fits + exceeds) // 2
        step = min(max(step, fits + 1), exceeds - 1)
        nbytes = pack_nbytes(step)
        if nbytes <= budget:
            fits = step
        else:
            exceeds = step
        if fits + 1 >= exceeds:
            break
        rest = nbytes - calibration.nbytes(step * BITS_STEP, rated)
    if fits < _LOWEST:
        raise FormatError(
            f"{bits:g} bits a weight may not hold all that is stored, which takes at most {16 * nbytes / as_bf16:.3f} "
            f"at the lowest rates; ask for more with target_bits (--target-bits)"
        )
    return fits * BITS_STEP
