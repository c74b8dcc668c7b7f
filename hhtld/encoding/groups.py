"""The groups of a plan, and what the tensors of each share: found, and found ahead of time."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hhtld.codecs.base import Codec, GroupCode, GroupRequest, Profile
from hhtld.dtypes import bf16_bits
from hhtld.encoding.memory import TaskMemory
from hhtld.encoding.plan import Plan
from hhtld.encoding.resources import Work
from hhtld.errors import RangeError, shown
from hhtld.gates import Threshold
from hhtld.identity import PaletteGroupKey
from hhtld.sources.contract import SourceRows, TensorSource

__all__ = ["GroupFinder", "PlannedGroup", "WhyKept", "group_row_rates", "judged_threshold", "planned_groups"]


@dataclass(frozen=True)
class PlannedGroup:
    """A group of a plan, by its number there."""

    number: int
    key: PaletteGroupKey
    profile: Profile
    names: list[str]

    @property
    def codec(self) -> Codec:
        """The codec of its tensors."""
        return self.profile.codec

    def named(self, error: RangeError) -> RangeError:
        """Return the error of a codec with the names of the tensors that it was coding, and a way on."""
        return RangeError(
            f"{' and '.join(map(shown, self.names[:3]))}{', ...' if len(self.names) > 3 else ''}: {error}; "
            f"rules (--rule NAME=keep) can keep such a tensor byte for byte"
        )


def planned_groups(plan: Plan) -> list[PlannedGroup]:
    """Return the groups of a plan in the order in which they are encoded."""
    groups = plan.groups().items()
    return [PlannedGroup(number, key, profile, names) for number, ((key, profile), names) in enumerate(groups)]


def judged_threshold(plan: Plan, group: PlannedGroup) -> Threshold | None:
    """Return the cosines that a group's rows must reach, or None if its rate is given."""
    is_judged = group.codec.chooses_rates and group.profile.rate is None and not group.profile.by_row
    return plan.threshold(group.profile, group.key.regime) if is_judged else None


def group_row_rates(plan: Plan, group: PlannedGroup) -> list[NDArray[np.int32]]:
    """Return what the rows of a group's tensors ask for, if they have rates of their own."""
    return [plan.row_rates[name] for name in group.names] if group.profile.by_row else []


class WhyKept(StrEnum):
    """Why the tensors of a group are kept as they came; the words stand in journals."""

    NO_SMALLER = "keep"  # their bytes would not be fewer
    UNREACHED = "unreached"  # no rate reaches the cosines that were asked for
    OUT_OF_RANGE = "range"  # float32 does not suffice to code them


class GroupFinder:
    """Finds what the tensors of a group share.

    Parameters
    ----------
    source : TensorSource
    plan : Plan
    work : Work
    memory : TaskMemory
    """

    def __init__(self, source: TensorSource, plan: Plan, work: Work, memory: TaskMemory) -> None:
        self._source, self._plan, self._memory = source, plan, memory
        self._journal, self._crew = work.journal, work.crew
        self._ahead: dict[int, Future[Any]] = {}

    def find(self, group: PlannedGroup) -> GroupCode | WhyKept:
        """Return what a group's tensors share, or why they are kept as they came."""
        ahead = self._ahead.pop(group.number, None)
        try:
            if ahead is not None:
                code = ahead.result()
            else:
                function, arguments = group.codec.find(self._request(group))
                code = self._crew.run(function, *arguments)
        except RangeError as error:  # weights near an end of float32's range are kept as they came
            if group.codec.is_specified:
                raise group.named(error) from None
            return WhyKept.OUT_OF_RANGE
        return self.worthwhile(group, code)

    def worthwhile(self, group: PlannedGroup, code: GroupCode | None) -> GroupCode | WhyKept:
        """Return a group's code, or why its tensors are kept if there is none or it saves no bytes."""
        if code is None:
            return WhyKept.UNREACHED
        encoded_nbytes = code.nbytes(len(group.names))
        if encoded_nbytes is None:
            return code
        scale_nbytes = sum(scale.nbytes for scale in self._column_scales(group) if scale is not None)
        source_nbytes = sum(self._source.infos()[name].nbytes for name in group.names)
        return code if encoded_nbytes + scale_nbytes < source_nbytes else WhyKept.NO_SMALLER

    def find_ahead(self, following: list[PlannedGroup]) -> None:
        """Let the crew find what the following groups share while the rows of one are coded."""
        if self._crew.executor is None:
            return
        for later in following if self._crew.remote else following[:1]:  # here, each takes its memory
            is_known = later.number in self._ahead or self._journal.trusted("group", later.number) is not None
            if not is_known and self._memory.has_room(later.key, later.profile, later.names[0]):
                function, arguments = later.codec.find(self._request(later))
                self._ahead[later.number] = self._crew.executor.submit(function, *arguments)

    def cancel(self) -> None:
        """Give up what was to be found ahead."""
        for future in self._ahead.values():
            future.cancel()

    def _request(self, group: PlannedGroup) -> GroupRequest:
        rows = [SourceRows(self._source, name) for name in group.names]
        dtype = self._source.infos()[group.names[0]].dtype  # to predict; every tensor is measured in its own
        threshold, seed = judged_threshold(self._plan, group), self._plan.seed
        scales, row_rates = self._column_scales(group), group_row_rates(self._plan, group)
        is_fed_back = any(name in self._plan.moments for name in group.names)
        return GroupRequest(group.key, rows, group.profile, threshold, seed, scales, dtype, row_rates, is_fed_back)

    def _column_scales(self, group: PlannedGroup) -> list[NDArray[np.uint16] | None]:
        scales = self._plan.column_scales
        return [bf16_bits(scales[name]) if name in scales else None for name in group.names]
