"""What running a model told about its tensors, and the rates that follow for a next-token agreement.

A tensor's column scale comes from the mean square h of what its columns are multiplied by: s = (h / sum of squares of
the column's weights) ** (1/4), which makes the error of the products least if the rounding noise is alike in
all columns of what is coded (docs/decisions/column-scales.md).

A sensitive tensor gets more bits. What a set of tensors costs is measured: it is the KL divergence of the model with
only that set coded, at `TRIAL_RATE` sixteenths of a bit a weight. The divergence falls by a factor of 4 for each bit.
Its sum is therefore least if every set gets ``level + log2(KL a weight) / 2`` bits, relative to the mean. The share of
next tokens that differ falls with the root of the divergence, by a factor of nearly 2 for each bit:
`Calibration.level_for` draws that line through the measured levels (docs/decisions/sensitivities.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hhtld.errors import FormatError
from hhtld.slots.trellis import MAX_RATE, MIN_RATE

__all__ = ["TRIAL_RATE", "Calibration", "Measurement", "Sensitivity", "column_scale"]

TRIAL_RATE = 56  # 3.5 b: what single sets lose stands out from rounding, and the model is still itself
_STEP = 1 / 16  # of rates
_LEVEL_STEP = 1 / 64  # rates of sets are rounded each for itself, so finer levels are other mixtures
_ONE_SIDED_95 = 1.6449  # standard errors


def column_scale(energies: NDArray[np.floating], rows_squared: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the scale of a tensor's columns, float32 (n_cols,), its geometric mean 1.

    Parameters
    ----------
    energies : ndarray, shape (n_cols,)
        Mean squares of what the columns are multiplied by.
    rows_squared : ndarray, shape (n_cols,)
        Sums of squares of the columns' weights.

    Notes
    -----
    Columns that are never used, or hold nothing, take the least scale of the others, at most 1/64 of the largest.
    """
    energies, weights = energies.astype(np.float64), rows_squared.astype(np.float64)
    live = (energies > 0) & (weights > 0)
    if not live.any():
        return np.ones(len(energies), np.float32)
    logs = np.full(len(energies), -np.inf)
    # The C library's functions: numpy's own may differ in the last bit between processors.
    logs[live] = [(math.log2(e) - math.log2(w)) / 4 for e, w in zip(energies[live], weights[live], strict=True)]
    logs = np.maximum(logs, logs[live].max() - 6)
    return np.fromiter(map(math.exp2, logs - logs.mean()), np.float32, len(logs))


@dataclass(frozen=True)
class Sensitivity:
    """A set of tensors that get one rate, and the KL divergence that coding them alone at `TRIAL_RATE` costs, nats."""

    names: tuple[str, ...]
    n_weights: int
    kl: float


@dataclass(frozen=True)
class Measurement:
    """What the model came to with every tensor coded at a level's rates.

    Attributes
    ----------
    level, bits : float
        Bits a weight: asked of the codes on average, and what all sections took.
    top1, kl : float
        Share of next tokens that agree, and mean KL divergence, nats.
    n_positions : int
    error : float
        Standard error of `top1` over whole texts, whose positions are not independent.
    """

    level: float
    bits: float
    top1: float
    kl: float
    n_positions: int
    error: float = 0.0


@dataclass(frozen=True)
class Calibration:
    """What a run of a model told.

    Attributes
    ----------
    column_scales : mapping of name to float32 array (n_cols,)
    sensitivities : tuple of Sensitivity
    measurements : tuple of Measurement
    moments : mapping of name to float32 array (n_cols, n_cols)
        Of heads: mean products of their inputs, for `hhtld.slots.feedback`.
    facts : mapping of str to str
        What it was made from.
    """

    column_scales: Mapping[str, NDArray[np.float32]]
    sensitivities: tuple[Sensitivity, ...]
    measurements: tuple[Measurement, ...] = ()
    moments: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)

    def rates(self, level: float) -> dict[str, int]:
        """Return the rate of every tensor, sixteenths of a bit, about `level` bits a weight on average."""
        total = sum(s.n_weights for s in self.sensitivities)
        # A set that measured nothing, or less by chance, is held to a thousandth of what a mean weight costs.
        least = 1e-3 * sum(s.kl for s in self.sensitivities) / max(1, total) + 1e-300
        wants = [math.log2(max(s.kl / s.n_weights, least)) / 2 for s in self.sensitivities]
        mean = sum(w * s.n_weights for w, s in zip(wants, self.sensitivities, strict=True)) / max(1, total)
        rates: dict[str, int] = {}
        for want, sensitivity in zip(wants, self.sensitivities, strict=True):
            rate = min(MAX_RATE, max(MIN_RATE, round((level + want - mean) / _STEP)))
            rates |= dict.fromkeys(sensitivity.names, rate)
        return rates

    def level_for(self, top1: float) -> float:
        """Return the lowest level, in 64ths, at which the share `top1` of next tokens should agree on other text.

        `margin` is added to what is asked, or half of what is missing to 1 where that is less.

        Raises
        ------
        FormatError
            When the measurements do not tell, or no rate suffices.
        """
        if not 0 < top1 < 1:
            raise ValueError(f"target_top1 must lie between 0 and 1, got {top1}")
        slope, at_0 = self._line()
        aim = min(top1 + self.margin, (1 + top1) / 2)
        level = math.ceil((math.log2(1 - aim) - at_0) / slope / _LEVEL_STEP - 1e-9) * _LEVEL_STEP
        highest = MAX_RATE * _STEP
        if level > highest:
            best = 1 - 2 ** (at_0 + slope * highest)
            raise FormatError(
                f"top-1 agreement of {top1:g} needs more than {highest:g} bits a weight, where {best:.3f} is expected; "
                f"ask for less with target_top1 (--target-top1), or keep the most sensitive tensors with rules "
                f"(--rule GLOB=keep)"
            )
        return max(MIN_RATE * _STEP, level)

    @property
    def margin(self) -> float:
        """How far other text of the same kinds may fall short of what was measured, one time in twenty."""
        return _ONE_SIDED_95 * sum(m.error for m in self.measurements) / max(1, len(self.measurements))

    def expected_top1(self, level: float) -> float:
        """Return the share of next tokens expected to agree at a level."""
        slope, at_0 = self._line()
        return 1 - 2 ** (at_0 + slope * level)

    def _line(self) -> tuple[float, float]:
        """Slope and height at level 0 of log2 of the share that differs, by least squares over the measurements."""
        points = [(m.level, math.log2(max(1 - m.top1, 0.5 / m.n_positions))) for m in self.measurements]
        if len({level for level, _ in points}) < 2:
            raise FormatError("the calibration holds fewer than two measured levels")
        levels, heights = (np.array(column) for column in zip(*points, strict=True))
        apart = levels - levels.mean()
        slope = float((apart * heights).sum() / (apart * apart).sum())
        if slope >= 0:
            raise FormatError("more bits did not bring more agreement in the calibration; use more text")
        return slope, float(heights.mean() - slope * levels.mean())
