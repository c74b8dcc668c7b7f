"""What a conversion would give, from samples of rows: in some ten seconds and 256 MiB, whatever the model.

Groups are sampled in turn, those of the most weights first, until the time is over; the rest is taken to need the rate
of the sampled group that is most like it. How much was sampled is told with the sizes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hhtld.codecs.base import Profile
from hhtld.codecs.trellis_rate import PREDICTION_ROWS, Estimate, estimate_group
from hhtld.codecs.trellis_tensor import TrellisShared
from hhtld.encoding.memory import expected_nbytes
from hhtld.encoding.plan import Plan
from hhtld.encoding.work import Work
from hhtld.errors import RangeError
from hhtld.identity import PaletteGroupKey
from hhtld.slots.rotation import Rotation
from hhtld.slots.trellis import Trellis
from hhtld.sources.contract import SourceRows, TensorSource

__all__ = ["PredictedPack", "PredictedTensor", "predict_pack"]

_SECONDS = 5.0  # of sampling; the group that is at work when they are over is finished
_RATES = 8  # that a search tries
_WEIGHTS = 1 << 21  # coded for all groups together, at each rate
_MOST, _LEAST = 1 << 17, 1 << 14  # for one


@dataclass(frozen=True)
class PredictedTensor:
    """What one encoded tensor would become."""

    codec: str
    nbytes: int
    median: float | None = None


@dataclass
class PredictedPack:
    """What a pack would hold.

    Attributes
    ----------
    tensors : dict of name to PredictedTensor
        Those that would be encoded.
    shared_nbytes : int
        Of what groups share.
    unreached : set of str
        Tensors that would be kept because no rate reaches what is asked.
    expected : dict or None
        See `hhtld.api.convert.ConversionReport`.
    """

    tensors: dict[str, PredictedTensor] = field(default_factory=dict)
    shared_nbytes: int = 0
    unreached: set[str] = field(default_factory=set)
    expected: dict[str, Any] | None = None


_Group = tuple[PaletteGroupKey, Profile]


def predict_pack(source: TensorSource, plan: Plan, work: Work) -> PredictedPack:
    """Return what a conversion under a plan would give."""
    found = PredictedPack()
    memory, all_timed, coding = expected_nbytes(source, plan, work), True, 0.0
    sampled, out_of_range = _sampled(source, plan)
    n_sampled = n_coded = 0
    for group, names in plan.groups().items():
        key, profile = group
        if not profile.codec.chooses_rates:
            all_timed = False
            own, shared = profile.codec.predicted_nbytes(key)
            found.shared_nbytes += shared
            found.tensors.update(dict.fromkeys(names, PredictedTensor(profile.codec.id, own)))
            continue
        n_weights = key.shape[0] * key.shape[1] * len(names)
        n_coded += n_weights
        n_sampled += n_weights if group in sampled else 0
        told = sampled[group] if group in sampled else _most_alike(group, sampled, plan.seed)
        if told is None:
            if profile.rate is None and group not in out_of_range:
                found.unreached.update(names)
            continue
        second = None if profile.rate_2 is None else Trellis.trained(profile.rate_2, profile.state_bits)
        coded = replace(told.shared, second=second)
        own = coded.tensor_nbytes(key.shape[0])
        if coded.shared_nbytes() + own * len(names) >= sum(plan.tensors[name].info.nbytes for name in names):
            continue
        at_rates = 0 if profile.rate is not None else _RATES * min(n_weights, PREDICTION_ROWS * key.shape[1])
        coding += (n_weights + at_rates) * told.seconds
        found.shared_nbytes += coded.shared_nbytes()
        median = told.prediction.median if group in sampled else None
        found.tensors.update(dict.fromkeys(names, PredictedTensor(profile.codec.id, own, median)))
    if all_timed and coding:
        found.expected = {
            "seconds": round(coding / work.crew.jobs, 1),
            "jobs": work.crew.jobs,
            "memory_nbytes": memory,
            "sampled_share": round(n_sampled / n_coded, 4),
        }
    return found


def _sampled(source: TensorSource, plan: Plan) -> tuple[dict[_Group, Estimate | None], set[_Group]]:
    """What samples of groups told, None of those that no rate suffices, and which of these float32 does not suffice.

    Groups that time did not allow are in neither.
    """
    groups = {group: names for group, names in plan.groups().items() if group[1].codec.chooses_rates}
    until = time.perf_counter() + _SECONDS
    n_weights = max(_LEAST, min(_MOST, _WEIGHTS // max(1, len(groups))))
    found: dict[_Group, Estimate | None] = {}
    out_of_range: set[_Group] = set()
    largest_first = sorted(groups, key=lambda group: -group[0].shape[0] * group[0].shape[1] * len(groups[group]))
    for group in largest_first:
        if found and time.perf_counter() > until:
            break
        key, profile = group
        rows = [SourceRows(source, name) for name in groups[group]]
        threshold = None if profile.rate is not None else plan.threshold(profile, key.regime)
        try:
            dtype = plan.tensors[groups[group][0]].info.dtype
            found[group] = estimate_group(
                rows, profile.rate, threshold, plan.seed, profile.state_bits, n_weights, dtype
            )
        except RangeError:  # the group will be kept
            found[group] = None
            out_of_range.add(group)
    return found, out_of_range


def _most_alike(group: _Group, sampled: Mapping[_Group, Estimate | None], seed: int) -> Estimate | None:
    """What the sampled group of the same profile and regime told whose rows are most nearly as long."""
    key, profile = group
    others = [
        (other.regime != key.regime, abs(other.shape[1] - key.shape[1]), told)
        for (other, same), told in sampled.items()
        if same == profile and told is not None
    ]
    if not others:
        return None
    told = min(others, key=lambda found: found[:2])[2]
    return replace(told, shared=TrellisShared(told.shared.trellis, Rotation(key.shape[1], seed)))
