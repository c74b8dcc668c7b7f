"""From a source to sections: the one encoder, for arrays in memory and for files.

Sections are written in the order groups (shared, then each tensor by name), then what is kept, by name, then side
files, by name. What a group shares is found first; then the sizes of its tensors' sections are known, and runs of rows
are coded by a crew, a bounded number at a time, and placed as they come. If a group misses its threshold on all of its
rows, its sections are dropped and coded again one rate up. The bytes are the same for any crew, memory and length of
runs.
"""

from __future__ import annotations

import zlib
from dataclasses import replace

from hhtld.codecs import KEEP
from hhtld.codecs.base import GroupCode
from hhtld.encoding.gate_report import GateReport
from hhtld.encoding.group_attempt import Attempt, ReservedTensor, begin, resume
from hhtld.encoding.groups import GroupFinder, PlannedGroup, WhyKept, judged_threshold, planned_groups
from hhtld.encoding.memory import TaskMemory
from hhtld.encoding.plan import Plan
from hhtld.encoding.resources import Work
from hhtld.encoding.row_dispatch import RowCoder
from hhtld.errors import RangeError
from hhtld.gates import Unreached
from hhtld.pack.section_interfaces import SectionSink, as_bytes
from hhtld.pack.table import GroupRecord, PackTable, TensorRecord
from hhtld.sources.contract import TensorSource
from hhtld.sources.rows import row_ranges

__all__ = ["encode_source"]


class _Encoder:
    """Encodes the groups of a plan one after another, and keeps the rest."""

    def __init__(self, source: TensorSource, plan: Plan, sink: SectionSink, report: GateReport, work: Work) -> None:
        self._source, self._plan, self._sink, self._report = source, plan, sink, report
        self._journal, self._progress = work.journal, work.progress
        memory = TaskMemory(source, plan, work)
        self._finder = GroupFinder(source, plan, work, memory)
        self._rows = RowCoder(source, plan, sink, work, memory)
        self.groups: list[GroupRecord] = []
        self.records: dict[str, TensorRecord] = {}

    def add_groups(self, groups: list[PlannedGroup]) -> None:
        """Encode groups, or keep their tensors."""
        try:
            for group in groups:
                # A codec that reads whole tensors takes the memory that finding ahead would.
                following = [] if group.codec.reads_whole_tensors else groups[group.number + 1 :]
                self._add_group(group, following)
        finally:
            self._finder.cancel()

    def _add_group(self, group: PlannedGroup, following: list[PlannedGroup]) -> None:
        """Code a group's tensors at the first rate that passes on all of their rows, or keep them."""
        mark = len(self._sink)
        attempt = self._first_attempt(group)
        self._finder.find_ahead(following)
        while isinstance(attempt, Attempt):
            is_coded = self._code(attempt)
            if is_coded and attempt.cosines.passes():
                self._record(attempt)
                return
            self._sink.rewind(mark)
            for name, nbytes in attempt.coded_nbytes.items():
                self._progress("again", name, nbytes)
            attempt = self._next_attempt(attempt) if is_coded else WhyKept.OUT_OF_RANGE
        self._keep_group(group, attempt)

    def _first_attempt(self, group: PlannedGroup) -> Attempt | WhyKept:
        """Return an earlier run's attempt or decision if it can be trusted, else one at the lowest rate."""
        facts = self._journal.trusted("group", group.number)
        if isinstance(facts, str):
            return WhyKept(facts)
        attempt = None if facts is None else resume(group, facts, judged_threshold(self._plan, group), self._sink)
        return attempt or self._begun(group, self._finder.find(group))

    def _next_attempt(self, attempt: Attempt) -> Attempt | WhyKept:
        """Return an attempt one rate up."""
        return self._begun(attempt.group, self._finder.worthwhile(attempt.group, attempt.code.richer()))

    def _begun(self, group: PlannedGroup, code: GroupCode | WhyKept) -> Attempt | WhyKept:
        if isinstance(code, WhyKept):
            return code
        return begin(group, code, judged_threshold(self._plan, group), self._sink, self._journal)

    def _code(self, attempt: Attempt) -> bool:
        """Code all rows; False if float32 does not suffice for them, at no rate."""
        try:
            self._rows.code(attempt)
        except RangeError as error:
            if attempt.group.codec.is_specified:
                raise attempt.group.named(error) from None
            return False
        return True

    def _record(self, attempt: Attempt) -> None:
        """Enter a group that passed into the table and the report."""
        key = attempt.group.key
        self.groups.append(GroupRecord(key, attempt.sections, attempt.code.numbers))
        for tensor in attempt.tensors:
            planned = self._plan.tensors[tensor.name]
            self.records[tensor.name] = TensorRecord(
                planned.info,
                planned.codec.id,
                tensor.sections,
                len(self.groups) - 1,
                tensor.slot_l_scale,
                source_crc32=self._source_crc(tensor),
                regime_reason=None if key.regime == key.implied_regime else planned.regime_reason,
                class_rows=tensor.class_rows,
            )
        self._report.add_group(attempt.cosines, key.regime, str(key))

    def _source_crc(self, tensor: ReservedTensor) -> int | None:
        if not self._source.is_stored or self._plan.tensors[tensor.name].codec.is_specified:
            return None
        return tensor.source_crcs.whole(4 * tensor.rows.n_rows * tensor.rows.n_cols)

    # ---- what is kept ----

    def _keep_group(self, group: PlannedGroup, why: WhyKept) -> None:
        if self._journal.trusted("group", group.number) != why:
            self._journal.put("group", group.number, value=why)
        regime = group.key.regime
        for name in group.names:
            self.keep(name)
            if why is WhyKept.UNREACHED:
                unreached = Unreached(regime, self._plan.threshold(group.profile, regime))
                self._report.unreached[name] = unreached
                self.records[name] = replace(self.records[name], unreached=unreached)
            elif why is WhyKept.OUT_OF_RANGE:
                self._report.out_of_range.append(name)

    def keep(self, name: str) -> None:
        """Store a tensor as it came."""
        info = self._source.infos()[name]
        index = self._sink.reserve("raw", info.nbytes)
        for start, stop in row_ranges(info.n_rows, info.row_nbytes):
            stage = "resume" if self._recall_raw(name, index, start, stop) else "encode"
            if stage == "encode":
                block = self._source.read_rows(name, start, stop)
                crc = zlib.crc32(as_bytes(block))
                self._sink.write_at(index, start * info.row_nbytes, block, crc)
                self._journal.put("raw", name, start, value=crc)
            self._progress(stage, name, (stop - start) * info.row_nbytes)
        self.records[name] = TensorRecord(info, KEEP.id, {"raw": index})

    def _recall_raw(self, name: str, index: int, start: int, stop: int) -> bool:
        """Take over rows that an earlier run stored; False if it did not, or their bytes are gone."""
        crc = self._journal.get("raw", name, start)
        if crc is None:
            return False
        if self._journal.is_doubted and crc != zlib.crc32(as_bytes(self._source.read_rows(name, start, stop))):
            return False
        width = self._source.infos()[name].row_nbytes
        return self._sink.recall([(index, start * width, (stop - start) * width, crc)]) is not None

    def add_file(self, name: str) -> int:
        """Store a side file and return the number of its section."""
        data = self._source.read_file(name)
        return self._sink.add("file", len(data), [data])


def encode_source(
    source: TensorSource,
    plan: Plan,
    sink: SectionSink,
    report: GateReport | None = None,
    work: Work | None = None,
) -> PackTable:
    """Write a source's sections to a sink, measure every encoded row, and return the table that names them.

    Raises
    ------
    NonFiniteError
        If a tensor that is to be encoded holds an infinity or NaN.
    BudgetError
        If a tensor cannot be encoded in the memory given; nothing has been written then.
    FormatError
        If the source was written to meanwhile.
    """
    report = GateReport(enforced=False) if report is None else report
    encoder = _Encoder(source, plan, sink, report, work or Work())
    encoder.add_groups(planned_groups(plan))
    for name in plan.kept():
        encoder.keep(name)
    for name, tensor in plan.tensors.items():
        if tensor.alias_of is not None:
            encoder.records[name] = TensorRecord(tensor.info, KEEP.id, alias_of=tensor.alias_of)
    files = {name: encoder.add_file(name) for name in plan.files}
    source.check_unchanged()
    records = dict(sorted(encoder.records.items()))
    table = PackTable(plan.profile.text, tuple(encoder.groups), records, source.metadata, source.description, files)
    return table.with_gates(report.tensors)
