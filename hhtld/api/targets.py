"""What a calibration makes of a target: a level of rates, and the options of an encoding at that level."""

from __future__ import annotations

import math
from dataclasses import replace

from hhtld.api.conversion_report import as_bf16_nbytes
from hhtld.encoding.calibrated_rates import Calibration
from hhtld.encoding.options import Encoding
from hhtld.encoding.pack_size import most_nbytes
from hhtld.encoding.plan import make_plan
from hhtld.encoding.resources import DEFAULT_MEMORY, Work
from hhtld.errors import FormatError
from hhtld.slots.slot_t import MIN_RATE
from hhtld.sources.contract import TensorSource

__all__ = ["at_level", "level_for_bits"]

_LEAST = MIN_RATE / 16
_ROUNDS = 16  # the first two find the level unless rules decide for many tensors, whose bytes do not follow it


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
    """Return the level at which a pack takes `bits` a weight at most, all of the file counted but side files.

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
        If the lowest rates take more.
    """
    if not 0 < bits < math.inf:
        raise ValueError(f"target_bits (--target-bits) must be a positive number of bits a weight, got {bits}")
    tensors = make_plan(source, encoding).tensors.values()
    as_bf16 = sum(as_bf16_nbytes(tensor.info) for tensor in tensors if tensor.alias_of is None)
    budget = int(bits / 16 * as_bf16)

    def pack_nbytes(level: float) -> int:
        return most_nbytes(source, make_plan(source, at_level(encoding, calibration, level)), Work(memory=memory))

    level = calibration.level_for_nbytes(budget)
    rest = pack_nbytes(level) - calibration.nbytes(level)  # what does not follow the rates: tables, centroids, norms
    for _ in range(_ROUNDS):
        level = calibration.level_for_nbytes(budget - rest)
        over = pack_nbytes(level) - budget
        if over <= 0:
            return level
        if level == _LEAST:
            break
        rest += over
    takes = 16 * pack_nbytes(_LEAST) / as_bf16
    raise FormatError(
        f"{bits:g} bits a weight are fewer than all that is stored takes at the lowest rates, {takes:.3f}; ask for "
        f"more with target_bits (--target-bits)"
    )
