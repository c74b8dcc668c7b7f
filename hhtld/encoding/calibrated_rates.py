"""What running a model told about its tensors, and the rates that follow for a next-token agreement or a size.

A tensor's column scale comes from the mean square h of what its columns are multiplied by: s = (h / sum of squares of
the column's weights) ** (1/4), which makes the error of the products least if the rounding noise is alike in
all columns of what is coded (docs/decisions/column-scales.md).

A tensor in which errors cost more gets more bits. What an error in each row costs is told by the gradients of one run
(`hhtld.evaluation.gradients`). An error falls by a factor of 4 for each bit, so the sum of costs is least if every
tensor gets ``level + log2(its mean cost) / 2`` bits, relative to the mean. Within a tensor its rows get more or fewer
by the same rule, at most one bit around the tensor's rate, which is their mean: few positions tell what one row costs.
A tensor whose rows differ much so loses less, and its mean cost counts as what is left. The share of next tokens that
differ falls with the root of the divergence, by a factor of nearly 2 for each bit: its logarithm is taken to be
straight between the levels at which it was measured (docs/decisions/sensitivities.md).
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hhtld.errors import FormatError
from hhtld.identity import CODEBOOK_BITS, CODEBOOK_NBYTES, PaletteGroupKey, group_key
from hhtld.slots.moments import Moments
from hhtld.slots.row_rates import class_rates, classes_of_rows, row_rates
from hhtld.slots.slot_t import MAX_RATE, MIN_RATE

__all__ = ["BITS_STEP", "FEW_POSITIONS", "FEW_TEXTS", "Calibration", "Costs", "Measurement", "column_scale"]

FEW_TEXTS, FEW_POSITIONS = 8, 1000  # that were judged: what fewer tell is told with that warning
_ROW_UNIT = 256  # of a bit: what rows ask for is whole numbers of it, the same on every processor
_AROUND = _ROW_UNIT  # one bit, which rows may lie above or below their tensor's rate
_LEAST_ROW = 1e-6  # of the mean: what a row costs at least
_LEVEL_STEP, BITS_STEP = 1 / 64, 1 / 1024  # bits, of levels for an agreement and for a size
# The 19th of 20 of Student's t, from one degree of freedom on.
_ONE_SIDED_95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812)
_GAIN_NBYTES = 2  # a row
_CLASS_BITS = 8  # a row
_SUMMED_ROWS = 1 << 16  # whose shares are numbers of Python at a time


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


@dataclass(frozen=True, eq=False)
class Costs:
    """What errors in a tensor's rows cost.

    Attributes
    ----------
    rows : ndarray of float32, shape (n_rows,)
        KL divergence (for encoders: squared distance), a weight, if a row's error is as large as the row.
    n_cols : int
    """

    rows: NDArray[np.float32]
    n_cols: int

    @property
    def n_weights(self) -> int:
        """Weights of the tensor."""
        return len(self.rows) * self.n_cols

    @property
    def mean(self) -> float:
        """The mean over rows, summed in one order on every processor."""
        return math.fsum(self.rows.tolist()) / max(1, len(self.rows))

    @cached_property
    def wants(self) -> NDArray[np.int32]:
        """How many bits rows should have beside one another, 256ths of a bit (n_rows,)."""
        mean = self.mean or 1.0
        # The C library's function, as in `column_scale`.
        logs = [math.log2(max(cost / mean, _LEAST_ROW)) for cost in self.rows.tolist()]
        return np.rint(np.array(logs) * (_ROW_UNIT / 2)).astype(np.int32)

    def around(self, rate: int) -> NDArray[np.int32] | None:
        """Return how far the bits of each row lie above a tensor's rate, in sixteenths of a bit.

        Returns
        -------
        ndarray of int32, shape (n_rows,), or None
            256ths of a bit, their sum at most 0. None if the tensor loses least if all rows have its rate: the classes
            of rows take room too.
        """
        least = max(-_AROUND, (MIN_RATE - rate) * _ROW_UNIT // 16)
        most = min(_AROUND, (MAX_RATE - rate) * _ROW_UNIT // 16)
        if (least, most) not in self._arounds:  # few rates have other bounds than one bit
            self._arounds[least, most] = self._around(least, most)
        return self._arounds[least, most]

    @cached_property
    def _arounds(self) -> dict[tuple[int, int], NDArray[np.int32] | None]:
        return {}

    def _around(self, least: int, most: int) -> NDArray[np.int32] | None:
        low, high = int(self.wants.min()) - _AROUND, int(self.wants.max()) + _AROUND
        while low < high:  # the least middle above which rows ask for no more than those below it leave
            middle = (low + high) // 2
            if int(np.clip(self.wants - middle, least, most).sum(dtype=np.int64)) > 0:
                low = middle + 1
            else:
                high = middle
        around: NDArray[np.int32] = np.clip(self.wants - low, least, most)
        left = self._mean_left(around)
        # A cost that is a quarter is worth one bit.
        gain = math.log2(self.mean / left) / 2 if left > 0 else 0.0
        return around if gain > _CLASS_BITS / self.n_cols else None

    @cached_property
    def mean_by_row(self) -> float:
        """The mean over rows, each less by what its own bits save; the mean itself if all have one rate."""
        around = self.around((MIN_RATE + MAX_RATE) // 2)
        return self.mean if around is None else self._mean_left(around)

    def _mean_left(self, around: NDArray[np.int32]) -> float:
        # Powers by Python and not by numpy, whose last bit may differ between processors.
        shares = np.array([4.0 ** (-above / _ROW_UNIT) for above in range(-_AROUND, _AROUND + 1)])
        blocks = range(0, len(around), _SUMMED_ROWS)
        left = (self.rows[i : i + _SUMMED_ROWS] * shares[around[i : i + _SUMMED_ROWS] + _AROUND] for i in blocks)
        return math.fsum(itertools.chain.from_iterable(block.tolist() for block in left)) / max(1, len(around))


@dataclass(frozen=True)
class Measurement:
    """What the model came to with every tensor's error as large as a level's rates make it.

    Attributes
    ----------
    level : float
        Bits a weight that codes take on average.
    top1, kl : float
        Share of next tokens that agree, and mean KL divergence, nats, both winsorized over texts; for encoders the
        share of texts that keep their nearest one, and the mean of 1 - cosine.
    n_positions, n_texts : int
    error : float
        Standard error of `top1` over whole texts, whose positions are not independent.
    """

    level: float
    top1: float
    kl: float
    n_positions: int
    n_texts: int
    error: float = 0.0


@dataclass(frozen=True)
class Calibration:
    """What a run of a model told.

    Attributes
    ----------
    column_scales : mapping of name to float32 array (n_cols,)
    costs : mapping of name to Costs
    measurements : tuple of Measurement
    moments : mapping of name to Moments
        Of layers and heads, for `hhtld.slots.feedback`.
    facts : mapping of str to str
        What it was made from.
    """

    column_scales: Mapping[str, NDArray[np.float32]]
    costs: Mapping[str, Costs]
    measurements: tuple[Measurement, ...] = ()
    moments: Mapping[str, Moments] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)

    # ---- rates ----

    def rates(self, level: float) -> dict[str, int]:
        """Return the rate of every tensor, sixteenths of a bit, `level` bits a weight on average or a little less.

        They are those of least cost.
        """
        wants = self._wants()
        sizes = {name: cost.n_weights for name, cost in self.costs.items()}
        budget = level * 16 * sum(sizes.values())

        def at(offset: float) -> dict[str, int]:
            return {name: _rate(want + offset) for name, want in wants.items()}

        def n_bits(rates: Mapping[str, int]) -> int:
            return sum(rates[name] * n for name, n in sizes.items())

        low, high = -max(wants.values(), default=0.0), 7 - min(wants.values(), default=0.0)
        for _ in range(60):
            middle = (low + high) / 2
            if n_bits(at(middle)) > budget:
                high = middle
            else:
                low = middle
        rates = at(low)
        # Rates rise one tensor after another as the offset does, so what is left is less than a step of the next one.
        left = budget - n_bits(rates)
        for name in sorted(wants, key=lambda name: (rates[name] / 16 - wants[name], name)):
            if rates[name] < MAX_RATE and sizes[name] <= left:
                rates[name] += 1
                left -= sizes[name]
        return rates

    def bits(self, level: float) -> dict[str, float | NDArray[np.float64]]:
        """Return the bits a weight of every tensor, or of each of its rows (n_rows,): what `hhtld.convert` takes.

        The mean of a tensor's rows is its rate at the level, or a little less.
        """
        bits: dict[str, float | NDArray[np.float64]] = {}
        for name, rate in self.rates(level).items():
            around = self.costs[name].around(rate)
            bits[name] = rate / 16 if around is None else rate / 16 + around / _ROW_UNIT
        return bits

    def _wants(self) -> dict[str, float]:
        """Return how many bits each tensor should have, but for what is added to all."""
        means = {name: cost.mean_by_row for name, cost in self.costs.items()}
        total = sum(cost.n_weights for cost in self.costs.values())
        # What no text met is held to a thousandth of what a mean weight costs.
        least = 1e-3 * sum(means[name] * cost.n_weights for name, cost in self.costs.items()) / max(1, total) + 1e-300
        return {name: math.log2(max(mean, least)) / 2 for name, mean in means.items()}

    def nbytes(self, level: float, names: Collection[str] | None = None) -> int:
        """Return the bytes of what rates decide: codes, gains, column scales, classes of rows and codebooks.

        Of the tensors `names` only, if they are given: rules may decide for others.
        """
        total = sum(2 * len(scale) for scale in self.column_scales.values())
        by_row: dict[PaletteGroupKey, list[NDArray[np.int32]]] = defaultdict(list)
        by_tensor: set[tuple[PaletteGroupKey, int]] = set()
        for name, bits in self.bits(level).items():
            if names is not None and name not in names:
                continue
            n_rows, n_cols = len(self.costs[name].rows), self.costs[name].n_cols
            key = group_key(name, (n_rows, n_cols))
            total += _GAIN_NBYTES * n_rows
            if isinstance(bits, float):
                rate = round(bits * 16)
                by_tensor.add((key, rate))
                total += n_rows * _row_nbytes(n_cols, rate)
            else:
                by_row[key].append(row_rates(bits, n_rows))
        n_codebooks = len(by_tensor)
        for key, tensors in by_row.items():
            classes = class_rates(tensors)
            n_codebooks += len(classes)
            widths = np.array([_row_nbytes(key.shape[1], rate) for rate in classes])
            total += sum(int(widths[classes_of_rows(rates, classes)].sum()) + len(rates) for rates in tensors)
        return total + CODEBOOK_NBYTES * n_codebooks

    def level_for_nbytes(self, budget: int, names: Collection[str] | None = None) -> float:
        """Return the highest level, in 1024ths, at which what rates decide takes no more bytes; 1 if none does."""
        lowest, highest = round(MIN_RATE / 16 / BITS_STEP), round(MAX_RATE / 16 / BITS_STEP)
        while lowest < highest:
            middle = (lowest + highest + 1) // 2
            if self.nbytes(middle * BITS_STEP, names) <= budget:
                lowest = middle
            else:
                highest = middle - 1
        return lowest * BITS_STEP

    # ---- agreement ----

    def level_for(self, top1: float) -> float:
        """Return the lowest level, in 64ths, at which the share `top1` of next tokens should agree on other text.

        `margin` is added to what is asked. Levels below the lowest that was measured are not returned: the model may
        break there, and nothing above tells.

        Raises
        ------
        FormatError
            If the measurements do not tell, or no rate suffices.
        """
        if not 0 < top1 < 1:
            raise ValueError(f"target_top1 must lie between 0 and 1, got {top1}")
        points, margin = self._points(), self.margin(top1)
        if margin > 0.75 * (1 - top1):
            n_texts = min(measured.n_texts for measured in self.measurements)
            raise FormatError(
                f"the calibration text is too short for a top-1 agreement of {top1:g}: judged on {n_texts} texts, "
                f"other text may fall short of what was measured by {margin:.3f}; "
                f"calibrate on more texts, or ask for less"
            )
        aim = math.log2(1 - top1 - margin)
        (low, at_low), (high, at_high) = next(
            (pair for pair in itertools.pairwise(points) if aim >= pair[1][1]), tuple(points[-2:])
        )
        wanted = low + (aim - at_low) / (at_high - at_low) * (high - low)
        level = math.ceil(wanted / _LEVEL_STEP - 1e-9) * _LEVEL_STEP
        if level > MAX_RATE / 16:
            raise FormatError(
                f"a top-1 agreement of {top1:g} needs more than {MAX_RATE / 16:g} bits a weight, the highest rate; "
                f"{self.most_top1():g} is the most that can be had with target_top1 (--target-top1), and rules "
                f"(--rule GLOB=keep) can keep the most sensitive tensors as they are"
            )
        return max(points[0][0], level)

    def most_top1(self) -> float:
        """Return the highest agreement, in thousandths, that the highest rates keep on other text."""
        thousandths, expected = 999, self.expected_top1(MAX_RATE / 16)
        while thousandths and thousandths / 1000 + self.margin(thousandths / 1000) > expected + 1e-9:
            thousandths -= 1
        return thousandths / 1000

    def margin(self, top1: float) -> float:
        """Return how far other text of the same kinds may fall short of `top1`, one time in twenty.

        The errors over whole texts tell how much more the share varies than that of as many single positions, and
        Student's t how far few texts can be trusted.
        """
        informative = [m for m in self.measurements if 0 < m.top1 < 1]
        if not informative:
            return 0.0
        excess = sum(m.error**2 * m.n_positions / (m.top1 * (1 - m.top1)) for m in informative) / len(informative)
        n_positions = sum(m.n_positions for m in informative) / len(informative)
        freedom = max(1, min(m.n_texts for m in informative) - 1)
        times = _ONE_SIDED_95[freedom - 1] if freedom <= len(_ONE_SIDED_95) else 1.645 + 1.6 / freedom
        return times * math.sqrt(excess * top1 * (1 - top1) / n_positions)

    def expected_top1(self, level: float) -> float:
        """Return the share of next tokens expected to agree at a level."""
        points = self._points()
        (low, at_low), (high, at_high) = next(
            (pair for pair in itertools.pairwise(points) if level <= pair[1][0]), tuple(points[-2:])
        )
        return max(0.0, 1 - 2 ** (at_low + (level - low) / (high - low) * (at_high - at_low)))

    def promise(self, level: float) -> str:
        """Return what is expected at a level, in words, and how far it can be trusted."""
        lowest = self._points()[0][0]
        if level < lowest:
            return (
                f"no agreement is expected, because nothing was measured below {lowest:.2f} bits and the model may "
                f"break there; hhtld gate-parity measures it"
            )
        few = [m for m in self.measurements if m.n_texts < FEW_TEXTS or m.n_positions < FEW_POSITIONS]
        n_texts = min(measured.n_texts for measured in self.measurements)
        n_positions = min(measured.n_positions for measured in self.measurements)
        expected = self.expected_top1(level)
        return (
            f"an agreement of {expected:.3f} is expected on text like that of the calibration, and "
            f"{max(0.0, expected - self.margin(expected)):.3f} or more 19 times in 20, judged on {n_positions:,} "
            f"positions of {n_texts} texts{', too few to rely on' if few else ''}; "
            f"hhtld gate-parity measures it on other text"
        )

    def _points(self) -> list[tuple[float, float]]:
        """Return levels in ascending order, and log2 of the share that differs at each."""
        points = sorted((m.level, math.log2(max(1 - m.top1, 0.5 / m.n_positions))) for m in self.measurements)
        if len({level for level, _ in points}) < 2:
            raise FormatError("the calibration holds fewer than two measured levels")
        if not _falls(height for _, height in points):
            raise FormatError("more bits did not bring more agreement in the calibration; use more text")
        return points


def _row_nbytes(n_cols: int, rate: int) -> int:
    return ((n_cols - 1) * rate // 16 + CODEBOOK_BITS + 7) // 8


def _rate(bits: float) -> int:
    return min(MAX_RATE, max(MIN_RATE, round(bits * 16)))


def _falls(heights: Iterable[float]) -> bool:
    falling = list(heights)
    return all(first > second for first, second in itertools.pairwise(falling))
