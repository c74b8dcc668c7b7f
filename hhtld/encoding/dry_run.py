"""What a conversion would give, from samples of rows: in some ten seconds and 256 MiB, whatever the model is.

Groups are sampled in turn, those of the most weights first, until the time is over. The others are taken to need the
rate of the sampled group that is most like them. The prediction says how much was sampled.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from hhtld.codecs.base import GroupEstimate, GroupRequest
from hhtld.encoding.groups import PlannedGroup, group_row_rates, judged_threshold, planned_groups
from hhtld.encoding.memory import expected_nbytes
from hhtld.encoding.plan import Plan
from hhtld.encoding.resources import Work
from hhtld.errors import RangeError
from hhtld.sources.contract import SourceRows, TensorSource

__all__ = ["PredictedPack", "PredictedTensor", "predict_pack"]

_SECONDS = 5.0  # of sampling; the group that is being sampled then is finished
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
        See `hhtld.api.conversion_report.ConversionReport`.
    """

    tensors: dict[str, PredictedTensor] = field(default_factory=dict)
    shared_nbytes: int = 0
    unreached: set[str] = field(default_factory=set)
    expected: dict[str, Any] | None = None


@dataclass
class _Samples:
    """What samples of groups tell.

    Attributes
    ----------
    estimates : dict of group number to GroupEstimate or None
        None if no rate suffices. Groups for which there was no time are not in it.
    out_of_range : set of group numbers
        Those that float32 does not suffice to code.
    """

    estimates: dict[int, GroupEstimate | None] = field(default_factory=dict)
    out_of_range: set[int] = field(default_factory=set)


def predict_pack(source: TensorSource, plan: Plan, work: Work) -> PredictedPack:
    """Return what a conversion under a plan would give."""
    memory_nbytes = expected_nbytes(source, plan, work)
    pack = PredictedPack()
    groups = planned_groups(plan)
    samples = _sampled(source, plan, groups)
    seconds, n_sampled, n_coded = 0.0, 0, 0
    for group in groups:
        if not group.codec.chooses_rates:
            _add(pack, group, *group.codec.predicted_nbytes(group.key))
            continue
        n_coded += _n_weights(group)
        n_sampled += _n_weights(group) if group.number in samples.estimates else 0
        seconds += _add_estimated(pack, group, groups, samples, plan)
    if seconds and all(group.codec.chooses_rates for group in groups):
        pack.expected = {
            "seconds": round(seconds / work.crew.jobs, 1),
            "jobs": work.crew.jobs,
            "memory_nbytes": memory_nbytes,
            "sampled_share": round(n_sampled / n_coded, 4),
        }
    return pack


def _n_weights(group: PlannedGroup) -> int:
    return group.key.shape[0] * group.key.shape[1] * len(group.names)


def _add(
    pack: PredictedPack, group: PlannedGroup, nbytes: int, shared_nbytes: int, median: float | None = None
) -> None:
    pack.shared_nbytes += shared_nbytes
    pack.tensors.update(dict.fromkeys(group.names, PredictedTensor(group.codec.id, nbytes, median)))


def _add_estimated(
    pack: PredictedPack, group: PlannedGroup, groups: list[PlannedGroup], samples: _Samples, plan: Plan
) -> float:
    """Add a group to what a pack would hold, if it would be encoded, and return the seconds that it takes."""
    is_sampled = group.number in samples.estimates
    estimate = samples.estimates[group.number] if is_sampled else _most_alike(group, groups, samples, plan.seed)
    if estimate is None:
        if group.profile.rate is None and group.number not in samples.out_of_range:
            pack.unreached.update(group.names)
        return 0.0
    nbytes, shared_nbytes = estimate.nbytes(group.key, group.profile)
    if shared_nbytes + nbytes * len(group.names) >= sum(plan.tensors[name].info.nbytes for name in group.names):
        return 0.0
    _add(pack, group, nbytes, shared_nbytes, estimate.median if is_sampled else None)
    return estimate.seconds(group.key, group.profile, len(group.names))


def _sampled(source: TensorSource, plan: Plan, groups: list[PlannedGroup]) -> _Samples:
    """Sample the groups whose rates are chosen, the largest first, while there is time."""
    chosen = [group for group in groups if group.codec.chooses_rates]
    until = time.perf_counter() + _SECONDS
    n_weights = max(_LEAST, min(_MOST, _WEIGHTS // max(1, len(chosen))))
    samples = _Samples()
    for group in sorted(chosen, key=_n_weights, reverse=True):
        if samples.estimates and time.perf_counter() > until:
            break
        rows = [SourceRows(source, name) for name in group.names]
        threshold, dtype = judged_threshold(plan, group), plan.tensors[group.names[0]].info.dtype
        scales = [None] * len(rows)  # they change the cosines little
        row_rates = group_row_rates(plan, group)
        is_fed_back = any(name in plan.moments for name in group.names)
        request = GroupRequest(
            group.key, rows, group.profile, threshold, plan.seed, scales, dtype, row_rates, is_fed_back
        )
        try:
            samples.estimates[group.number] = group.codec.estimate(request, n_weights)
        except RangeError:  # the group will be kept
            samples.estimates[group.number] = None
            samples.out_of_range.add(group.number)
    return samples


def _most_alike(group: PlannedGroup, groups: list[PlannedGroup], samples: _Samples, seed: int) -> GroupEstimate | None:
    """Return what the most similar sampled group of the same profile tells: of the regime, and of the row length."""

    sampled = [
        (groups[number], estimate)
        for number, estimate in samples.estimates.items()
        if estimate is not None and groups[number].profile == group.profile
    ]
    if not sampled:
        return None

    def distance(pair: tuple[PlannedGroup, GroupEstimate]) -> tuple[bool, int]:
        key = pair[0].key
        return key.regime != group.key.regime, abs(key.shape[1] - group.key.shape[1])

    return min(sampled, key=distance)[1].like(group.key, seed)
