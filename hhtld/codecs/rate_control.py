"""Rate control: what a group's rows share and the smallest rate at which they pass a threshold.

A sample of rows, spread evenly over all tensors of the group, decides; it has fewer rows if they are wide, so that its
bytes are bounded. Centroids and Slot L are kept if the bits that they save in a row, the median of
``n_cols * log2(|before| / |after|)``, are more than the bits that they cost. The rate is predicted by coding the
sample; the encoder verifies it on every row and goes up if it must.

Rows of zeros decide nothing: if the sample meets some, all rows are read once and the sample is taken from the others.
A group with centroids and a row of zeros has a centroid of zeros beside them, so that this row comes back as it was.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hhtld import _kernels, slots
from hhtld.codecs.base import EncodedTensor, GroupEstimate, GroupRequest, Profile
from hhtld.cosines import is_live, judged_cosines
from hhtld.dtypes import FLOAT32, DType, bf16_bits, rounded
from hhtld.errors import RangeError
from hhtld.gates import Threshold
from hhtld.identity import MAX_PALETTE_K, MAX_RATE, MIN_RATE, SLOT_L_LANES, PaletteGroupKey
from hhtld.slots.row_rates import mean_rate
from hhtld.slots.shared_parts import TrellisShared
from hhtld.sources.rows import ArrayRows, LiveRows, Rows, has_zero_row, row_ranges

__all__ = [
    "Prediction",
    "TrellisEstimate",
    "closes_rows",
    "decide_group",
    "decide_nbytes",
    "decide_shared",
    "estimate_group",
    "predict",
    "sample_rows",
    "smallest_rate",
]

EncodeSample = Callable[[Rows, TrellisShared], EncodedTensor]  # what the codec does to rows; it stands above this
CENTROIDS = (16, 64, 256)
STRUCTURE_ROWS = 8192  # decide centroids and basis: 32 rows a centroid at most
PREDICTION_ROWS = 1024  # decide the rate: the median's standard error is 0.0001 at 576 columns
LEAF_ROWS = 512
_TURNS = 6  # of k-means
# Wide rows are sampled up to these bytes of float32: a rule, as the bytes of a file must not depend on a machine's
# memory. Up to 1536 columns the first is no limit, up to 8192 the second.
STRUCTURE_NBYTES = 48 << 20
PREDICTION_NBYTES = 32 << 20
_RATES = 3  # that a search for the smallest rate tries, as a rule
_LEAPS = 6  # attempts after which the search halves the range, whatever cosines say
_TYPICAL_GAP = 0.15  # bits a weight above the bound of Gaussian rows
_SIDE_BY_SIDE = 32  # rows that the trellis search takes at a time
_SMALLEST_NORMAL = 2.0**-126  # of bfloat16, as of float32
_ROWS_A_CENTROID = 32  # of a sample cut short: fewer would flatter centroids that 8192 rows would not


def sample_size(n_rows: int, n_cols: int, count: int, nbytes: int) -> int:
    """Return how many of `n_rows` rows are sampled: `count`, or what `nbytes` of float32 hold, but one at least."""
    return min(n_rows, count, max(1, nbytes // (4 * n_cols)))


def sample_rows(tensors: Sequence[Rows], count: int) -> NDArray[np.float32]:
    """Return about `count` rows spread evenly over tensors of one width, never twice the same."""
    total = sum(rows.n_rows for rows in tensors)
    picks = np.unique(np.linspace(0, total - 1, min(count, total)).astype(np.int64))
    sample = np.empty((len(picks), tensors[0].n_cols), np.float32)
    done = first = 0
    for rows in tensors:
        picked = picks[(picks >= first) & (picks < first + rows.n_rows)] - first
        first += rows.n_rows
        # If every fourth row is asked for, blocks are read; else single rows.
        spans = (
            row_ranges(rows.n_rows, 4 * rows.n_cols) if len(picked) * 4 > rows.n_rows else ((r, r + 1) for r in picked)
        )
        for start, stop in spans:
            asked = picked[(picked >= start) & (picked < stop)] - start
            if len(asked):
                sample[done : done + len(asked)] = rows.read(int(start), int(stop))[asked]
                done += len(asked)
    return sample


def _norms2(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    dots = np.empty((len(rows), 3))
    _kernels._dot.row_dots(rows, rows, dots)  # in a fixed order: the centroids' bytes depend on it
    return np.ascontiguousarray(dots[:, 1])


def _median_saving(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """Bits a weight that the median row saves when its energy falls from `before` to `after`."""
    live = before > 0
    if not live.any():
        return 0.0
    ratio = before[live] / np.maximum(after[live], 1e-12 * before[live])
    middle = np.sort(ratio)[[(len(ratio) - 1) // 2, len(ratio) // 2]]
    # The C library's function: numpy's own may differ in the last bit between processors.
    return sum(map(math.log2, middle.tolist())) / 4


def _centroids(sample: NDArray[np.float32], norms2: NDArray[np.float64], k: int) -> NDArray[np.uint16]:
    """k-means centroids of rows weighted as the cosine gate sees them, by 1 / |row|^2, as bfloat16 bits."""
    weights = np.divide(1.0, norms2, out=np.zeros_like(norms2), where=norms2 > 0)
    centroids = np.ascontiguousarray(sample[np.linspace(0, len(sample) - 1, k).astype(int)])
    nearest = np.empty(len(sample), np.int32)
    for _ in range(_TURNS):
        _kernels._l2.nearest_l2(sample, centroids, nearest)
        for entry in range(k):
            members = np.flatnonzero(nearest == entry)
            share = weights[members].sum()
            if share > 0:  # axis 0 sums row after row, so the order is fixed
                weighted = sample[members] * weights[members, None]
                centroids[entry] = (weighted.sum(axis=0) / share).astype(np.float32)
    return bf16_bits(centroids)


def _with_zero_centroid(
    shared: TrellisShared, sample: NDArray[np.float32], norms2: NDArray[np.float64]
) -> TrellisShared:
    """Add a centroid of zeros; if a twig can name no more, there is one less of the others."""
    assert shared.centroid_bits is not None
    bits = shared.centroid_bits
    if len(bits) == MAX_PALETTE_K:
        bits = _centroids(sample, norms2, MAX_PALETTE_K - 1)
    return replace(shared, centroid_bits=np.concatenate([bits, np.zeros((1, shared.n_cols), np.uint16)]))


def _leaf(rows: NDArray[np.float32], norms2: NDArray[np.float64]) -> tuple[slots.SvdBasis, float]:
    """The basis of rows scaled as the gate sees them, and the bits a weight that it saves on these rows."""
    scale = np.divide(1.0, np.sqrt(norms2), out=np.zeros_like(norms2), where=norms2 > 0)
    scaled = np.empty_like(rows)
    left = np.empty(len(rows))
    spans = list(row_ranges(len(rows), 4 * rows.shape[1]))  # block by block: float64 of the whole would be twice it
    for start, stop in spans:
        scaled[start:stop] = rows[start:stop] * scale[start:stop, None]
    basis = slots.SvdBasis.build(scaled)
    for start, stop in spans:
        block = rows[start:stop]
        left[start:stop] = _norms2(block - basis.reconstruct(basis.project(block)))
    return basis, _median_saving(_norms2(rows), left)


def decide_shared(
    tensors: Sequence[Rows], trellis: slots.Trellis, seed: int, zeros: bool = False, n_rows: int | None = None
) -> TrellisShared:
    """Decide from measured energy whether a group's rows carry a centroid and Slot L.

    With `zeros`, the group has rows of zeros that `tensors` leave out; with `n_rows`, they are a sample of so many.
    """
    n_cols, n_present = tensors[0].n_cols, sum(rows.n_rows for rows in tensors)
    n_rows = n_present if n_rows is None else n_rows
    best = TrellisShared(trellis, slots.Rotation(n_cols, seed))
    if n_rows < 4 * MAX_PALETTE_K or n_cols < 16:
        return best
    size = sample_size(n_present, n_cols, STRUCTURE_ROWS, STRUCTURE_NBYTES)
    sample = sample_rows(tensors, size)
    norms2 = _norms2(sample)
    if not norms2.all():  # the few that no one has met before
        sample, norms2 = sample[norms2 > 0], norms2[norms2 > 0]
    most = MAX_PALETTE_K if size == min(n_rows, STRUCTURE_ROWS) else size // _ROWS_A_CENTROID
    if not len(sample) or max(sample.max(), -sample.min()) > 1e37:  # a difference of two rows must stay finite
        return best
    rest, gained = sample, 0.0
    for k in (k for k in CENTROIDS if k <= most):
        with_centroids = replace(best, centroid_bits=_centroids(sample, norms2, k))
        left = sample - with_centroids.centroids[with_centroids.assign(sample)]
        cost = 8 + 16 * k * n_cols / n_rows  # bits a row: the twig, and the row's share of the centroids
        gain = _median_saving(norms2, _norms2(left)) * n_cols - cost
        if gain <= gained:  # more centroids would not pay where fewer do not
            break
        best, rest, gained = with_centroids, left, gain
    if best.centroid_bits is not None and (zeros or any(has_zero_row(rows) for rows in tensors)):
        best = _with_zero_centroid(best, sample, norms2)
        rest = sample - best.centroids[best.assign(sample)]
    leaf_cost = 8 * SLOT_L_LANES + 16 * SLOT_L_LANES * n_cols / n_rows
    # A few rows flatter a basis, so if it does not pay on them it does not pay at all; the whole
    # sample of a wide group takes seconds.
    few = slice(None, None, max(1, len(rest) // LEAF_ROWS))
    if _leaf(np.ascontiguousarray(rest[few]), norms2[few])[1] * n_cols > leaf_cost:
        basis, saving = _leaf(rest, norms2)
        if saving * n_cols > leaf_cost:
            return replace(best, basis=basis)
    return best


@dataclass(frozen=True)
class Prediction:
    """What coding a sample of a group's rows came to."""

    rate: int
    median: float
    p5: float

    def passes(self, threshold: Threshold) -> bool:
        """Whether the sample passes."""
        return self.median >= threshold.median and self.p5 >= threshold.p5


def predict(
    sample: NDArray[np.float32], shared: TrellisShared, encode: EncodeSample, dtype: DType = FLOAT32
) -> Prediction:
    """Encode a sample and measure its cosines with what is given back in a type."""
    tensor = encode(ArrayRows(sample), shared)
    spans = row_ranges(len(sample), 4 * sample.shape[1])
    measured = [judged_cosines(sample[a:b], rounded(tensor.reconstruct_rows(slice(a, b)), dtype)) for a, b in spans]
    cosines = np.concatenate(measured)
    cosines = np.sort(cosines[is_live(cosines)])
    if not len(cosines):  # rows of zeros come back as such at any rate
        return Prediction(shared.trellis.rate, 1.0, 1.0)
    last = len(cosines) - 1
    return Prediction(shared.trellis.rate, float(cosines[last // 2]), float(cosines[last // 20]))


def smallest_rate(
    sample: NDArray[np.float32],
    shared: TrellisShared,
    threshold: Threshold,
    encode: EncodeSample,
    dtype: DType = FLOAT32,
) -> Prediction | None:
    """Return the smallest rate at which a sample passes, or None if 6 bits do not suffice.

    Cosines grow with the rate, by about six decibels a bit, so every attempt tells where the next one is worth trying:
    three decide where halving the range took seven.
    """
    low, high = MIN_RATE, MAX_RATE + 1  # below `low` no rate passes, and `high` passes or is none
    best, n_tried = None, 0
    rate = math.ceil(16 * (_TYPICAL_GAP - math.log2(_error(threshold.median)) / 2))
    while low < high:
        rate = min(max(rate, low), high - 1)
        predicted = predict(sample, replace(shared, trellis=slots.Trellis.trained(rate)), encode, dtype)
        if predicted.passes(threshold):
            high, best = rate, predicted
        else:
            low = rate + 1
        n_tried += 1
        rate = rate + _missing(predicted, threshold) if n_tried < _LEAPS else (low + high) // 2
    return best


def _error(cosine: float) -> float:
    """The share of a row's energy that a cosine leaves out, bounded so that it has a logarithm."""
    return min(1.0, max(1e-12, 1 - cosine * cosine))


def _missing(predicted: Prediction, threshold: Threshold) -> int:
    """Sixteenths of a bit from an attempt to where it would just pass."""
    bits = max(
        math.log2(_error(had) / _error(asked)) / 2
        for had, asked in ((predicted.median, threshold.median), (predicted.p5, threshold.p5))
    )
    return math.ceil(16 * bits)


def _prediction_sample(tensors: Sequence[Rows]) -> NDArray[np.float32]:
    n_rows, n_cols = sum(rows.n_rows for rows in tensors), tensors[0].n_cols
    return sample_rows(tensors, sample_size(n_rows, n_cols, PREDICTION_ROWS, PREDICTION_NBYTES))


def _loses_lengths(sample: NDArray[np.float32]) -> bool:
    """Whether Slot V would be a denormal bfloat16 for more than 1 in 20 rows that are not zero.

    Fewer come back with their directions, and with lengths that differ by less than any number that other rows hold; a
    whole tensor of such rows would lose what no cosine tells.
    """
    norms2 = _norms2(sample)
    is_faint = (norms2 > 0) & (norms2 < sample.shape[1] * _SMALLEST_NORMAL**2)
    return bool(20 * is_faint.sum() > (norms2 > 0).sum())


def closes_rows(request: GroupRequest) -> bool:
    """Whether a group's rows are written as rings: narrow ones of one fixed rate and one level, without feedback."""
    profile = request.profile
    if profile.rate is None or profile.rate_2 is not None or profile.by_row or request.is_fed_back:
        return False
    return slots.is_ring(request.key.shape[1], profile.rate)


def decide_group(
    rows: Sequence[Rows],
    rate: int | None,
    threshold: Threshold | None,
    seed: int,
    encode: EncodeSample,
    dtype: DType = FLOAT32,
    is_ring: bool = False,
) -> tuple[TrellisShared, Prediction | None]:
    """Decide what a group shares and predict its rate, or the quality of a fixed one, given back in a type.

    With `is_ring`, rows of the fixed rate close to rings.

    Returns
    -------
    shared : TrellisShared
    prediction : Prediction or None
        None if no rate passes the threshold on the sample.

    Raises
    ------
    RangeError
        If more than 1 in 20 rows of the sample are so small that Slot V loses digits.
    """
    code = slots.Trellis.trained(32 if rate is None else rate, is_ring)
    sample = _prediction_sample(rows)
    zeros = not _norms2(sample).all()
    if zeros and (live := [live_rows for live_rows in map(LiveRows, rows) if live_rows.n_rows]):
        rows, sample = live, _prediction_sample(live)
    if _loses_lengths(sample):
        raise RangeError("rows are so small, below 1e-38, that Slot V, a bfloat16, loses digits of their lengths")
    shared = decide_shared(rows, code, seed, zeros)
    if rate is not None or threshold is None:
        return shared, predict(sample, shared, encode, dtype)
    return shared, smallest_rate(sample, shared, threshold, encode, dtype)


@dataclass(frozen=True)
class TrellisEstimate(GroupEstimate):
    """What a small sample of a group tells.

    Attributes
    ----------
    shared : TrellisShared
        At the rate of the prediction.
    median : float
    seconds_a_weight : float
        How long coding a weight took.
    """

    shared: TrellisShared
    median: float
    seconds_a_weight: float

    def nbytes(self, key: PaletteGroupKey, profile: Profile) -> tuple[int, int]:
        second = None if profile.rate_2 is None else slots.Trellis.trained(profile.rate_2)
        shared = replace(self.shared, second=second)
        own = shared.tensor_nbytes(key.shape[0]) + (key.shape[0] if profile.by_row else 0)
        return own, shared.shared_nbytes()

    def seconds(self, key: PaletteGroupKey, profile: Profile, n_tensors: int) -> float:
        n_rows, n_cols = key.shape
        n_weights = n_rows * n_cols * n_tensors
        n_searched = (
            0 if profile.rate is not None or profile.by_row else _RATES * min(n_weights, PREDICTION_ROWS * n_cols)
        )
        return (n_weights + n_searched) * self.seconds_a_weight

    def like(self, key: PaletteGroupKey, seed: int) -> TrellisEstimate:
        trellis, n_cols = self.shared.trellis, key.shape[1]
        trellis = replace(trellis, is_ring=trellis.is_ring and slots.is_ring(n_cols, trellis.rate))
        return replace(self, shared=TrellisShared(trellis, slots.Rotation(n_cols, seed)))


def estimate_group(request: GroupRequest, n_weights: int, encode: EncodeSample) -> TrellisEstimate | None:
    """Return nearly what `decide_group` would in a bounded time, or None if no rate passes the threshold.

    About `n_weights` weights decide on the rate, and eight times as many on what is shared; nothing else is read. Of
    long rows only the beginnings are coded, because the search takes as long for one row as for 32.
    """
    rate, seed = request.profile.rate, request.seed
    if request.profile.by_row:
        rate = mean_rate(request.row_rates)
    n_rows, n_cols = sum(rows.n_rows for rows in request.rows), request.key.shape[1]
    sampled = sample_rows(request.rows, sample_size(n_rows, n_cols, STRUCTURE_ROWS, 4 * 8 * n_weights))
    live = sampled[_norms2(sampled) > 0]
    kept = live if len(live) else sampled[:1]
    code = slots.Trellis.trained(32 if rate is None else rate, closes_rows(request))
    n_live = n_rows * len(live) // len(sampled)
    shared = decide_shared([ArrayRows(kept)], code, seed, len(live) < len(sampled), n_live)
    coded, width = shared, max(1, n_weights // _SIDE_BY_SIDE)
    n_coded = sample_size(len(kept), min(n_cols, width), PREDICTION_ROWS, 4 * n_weights)
    sample = sample_rows([ArrayRows(kept)], n_coded)
    if width < n_cols:
        coded = TrellisShared(slots.Trellis.trained(code.rate), slots.Rotation(width, seed))
        sample = np.ascontiguousarray(sample[:, :width])
    prediction = None
    if rate is None and request.threshold is not None:
        prediction = smallest_rate(sample, coded, request.threshold, encode, request.dtype)
        if prediction is None:
            return None
        code = slots.Trellis.trained(prediction.rate)
    started = time.perf_counter()
    timed = predict(sample, coded if code.is_ring else replace(coded, trellis=code), encode, request.dtype)
    n_timed = -(-len(sample) // _SIDE_BY_SIDE) * _SIDE_BY_SIDE * sample.shape[1]
    seconds = (time.perf_counter() - started) / n_timed
    return TrellisEstimate(replace(shared, trellis=code), (prediction or timed).median, seconds)


def decide_nbytes(n_rows: int, n_cols: int) -> int:
    """Return the bytes that deciding for a group of `n_rows` rows in all takes at most."""
    structure = 4 * n_cols * sample_size(n_rows, n_cols, STRUCTURE_ROWS, STRUCTURE_NBYTES)
    # Centroids: the sample, what they leave over, and members of a centroid as float64; a basis: the sample, what is
    # left, and that scaled.
    decided = max(6 * structure, 2 * structure + slots.basis_nbytes(structure // (4 * n_cols), n_cols))
    sample = 4 * n_cols * sample_size(n_rows, n_cols, PREDICTION_ROWS, PREDICTION_NBYTES)
    live = 9 * n_rows  # which rows are not zeros, and their numbers
    return max(decided + sample, 4 * sample) + live
