"""How large a pack will be, from what its groups share: the rest follows from shapes, before a row is coded."""

from __future__ import annotations

from collections.abc import Collection, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

from hhtld.codecs import KEEP
from hhtld.encoding.groups import GroupFinder, PlannedGroup, WhyKept, group_row_rates, planned_groups
from hhtld.encoding.memory import TaskMemory
from hhtld.encoding.plan import Plan, TensorPlan
from hhtld.encoding.resources import Work
from hhtld.gates import N_QUANTILES, CosineSummary
from hhtld.pack.container_writer import framed_nbytes
from hhtld.pack.table import GroupRecord, PackTable, TensorRecord
from hhtld.slots.class_layout import MAX_CLASSES
from hhtld.sources.contract import TensorSource

__all__ = ["GroupSize", "most_nbytes"]

_NUMBER = 10**6 - 1  # of a section or a group: longer than those of any model
_COSINE = -0.123456  # as long as a recorded one can be


@dataclass(frozen=True)
class GroupSize:
    """What a group takes.

    Attributes
    ----------
    nbytes : int
        Of its sections, but for column scales.
    shared : tuple of str
        Kinds of the sections that its tensors share.
    numbers : dict
        Of its record.
    """

    nbytes: int
    shared: tuple[str, ...]
    numbers: dict[str, Any]


def most_nbytes(
    source: TensorSource,
    plan: Plan,
    work: Work | None = None,
    sizes: MutableMapping[tuple[Any, ...], GroupSize | WhyKept] | None = None,
) -> int:
    """Return the bytes that a pack of a source takes at most, those of its side files not counted.

    Sections are counted as they will be. Of the table, which holds what is measured while rows are coded, the longest
    text is counted. A group whose rate is found while its rows are coded may take more.

    Parameters
    ----------
    source : TensorSource
    plan : Plan
    work : Work, optional
    sizes : dict, optional
        Of groups, from earlier calls with plans of the same source that differ in their rates only. Groups that are
        alike are not found anew, and others are added.
    """
    sizes = {} if sizes is None else sizes
    work = Work() if work is None else work
    finder = GroupFinder(source, plan, work, TaskMemory(source, plan, work))
    kept, nbytes = set(plan.kept()), 0
    kinds: list[str] = []
    groups: list[GroupRecord] = []
    records = {name: TensorRecord(tensor.info, KEEP.id, {"raw": _NUMBER}) for name, tensor in plan.tensors.items()}
    for group in planned_groups(plan):
        row_rates = tuple(rates.tobytes() for rates in group_row_rates(plan, group))
        request = (group.key, group.profile, tuple(group.names), row_rates)
        if request not in sizes:
            sizes[request] = _group_size(finder, group)
        size = sizes[request]
        if isinstance(size, WhyKept):
            kept.update(group.names)
            continue
        scale_nbytes = sum(2 * plan.column_scales[name].size for name in group.names if name in plan.column_scales)
        nbytes += size.nbytes + scale_nbytes
        groups.append(GroupRecord(group.key, dict.fromkeys(size.shared, _NUMBER), size.numbers))
        kinds += size.shared
        for name in group.names:
            records[name] = _longest_record(plan.tensors[name], group, list(_own_kinds(plan, group, name, size.shared)))
            kinds += records[name].sections
    for name in kept:
        nbytes += plan.tensors[name].info.nbytes
        kinds.append("raw")
    files = dict.fromkeys(plan.files, _NUMBER)
    table = PackTable(plan.profile.text, tuple(groups), records, source.metadata, source.description, files)
    return nbytes + framed_nbytes(table.to_json(), [*kinds, *("file" for _ in files)])


def _group_size(finder: GroupFinder, group: PlannedGroup) -> GroupSize | WhyKept:
    code = finder.find(group)
    if isinstance(code, WhyKept):
        return code
    shared = code.sections()
    nbytes = code.nbytes(len(group.names))
    if nbytes is None:
        own_nbytes, _ = group.codec.predicted_nbytes(group.key)
        nbytes = sum(map(len, shared.values())) + own_nbytes * len(group.names)
    return GroupSize(nbytes, tuple(shared), code.numbers)


def _own_kinds(plan: Plan, group: PlannedGroup, name: str, shared: Collection[str]) -> Iterator[str]:
    """Yield the kinds of the sections that a tensor has, given those that its group shares."""
    yield from sorted(group.codec.required)
    comes_if = {
        "column_scale": name in plan.column_scales,
        "row_class": group.profile.by_row,
        "twigs": "centroids" in shared,
        "slot_l": "basis" in shared,
    }
    for kind in sorted(group.codec.optional):
        if comes_if.get(kind, group.profile.rate_2 is not None):
            yield kind


def _longest_record(tensor: TensorPlan, group: PlannedGroup, kinds: list[str]) -> TensorRecord:
    n_rows = tensor.info.n_rows
    return TensorRecord(
        tensor.info,
        group.codec.id,
        dict.fromkeys(kinds, _NUMBER),
        group=_NUMBER,
        slot_l_scale=-1.2345678901234567e-30,
        gates=CosineSummary(n_rows, (_COSINE,) * N_QUANTILES, n_rows, n_rows, n_rows),
        source_crc32=2**32 - 1,
        regime_reason=tensor.regime_reason,
        class_rows=(n_rows,) * MAX_CLASSES if group.profile.by_row else None,
    )
