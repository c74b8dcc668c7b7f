"""From a source to sections: the one encoder, for arrays in memory and for files.

Sections are written in the order groups (shared, then each tensor by name), then what is kept, by
name, then side files, by name. What a group shares is found first; then the sizes of its tensors' sections are known,
and runs of rows are coded by a crew, a bounded number at a time, and placed as they come. Every row is measured where
it is coded, with what its bytes decode to and beside their checksum. Where a group misses its threshold on all of its
rows, its sections are dropped and coded again one rate up. The bytes are the same for any crew, memory and length of
runs.
"""

from __future__ import annotations

import base64
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hhtld.codecs import KEEP
from hhtld.codecs.base import Codec, GroupCode, GroupRequest, Profile
from hhtld.dtypes import FLOAT32, DType, bf16_bits, rounded
from hhtld.encoding.plan import DEFAULT_PROFILE, Plan, make_plan
from hhtld.encoding.tasks import Coded, code_rows, peak_of_rows
from hhtld.errors import BudgetError, RangeError, shown
from hhtld.gates import GateReport, GroupCosines, Threshold, Unreached, judged_cosines
from hhtld.identity import PaletteGroupKey
from hhtld.pack.pack import HhtldPack
from hhtld.pack.sections import MemorySections, SectionSink, as_bytes
from hhtld.pack.table import GroupRecord, PackTable, TensorRecord
from hhtld.progress import Progress, silent
from hhtld.slots.entries import leaf_scale
from hhtld.slots.feedback import feedback_nbytes
from hhtld.sources.contract import ArraySource, ChecksummedRows, SourceRows, TensorInfo, TensorSource
from hhtld.sources.rows import Rows, map_rows, row_ranges
from hhtld.sources.schedule import Call, Crew, completed
from hhtld.storage.crc import Crc32Runs
from hhtld.storage.journal import Journal

__all__ = [
    "DEFAULT_MEMORY",
    "Work",
    "check_memory",
    "compared_rows",
    "encode",
    "encode_source",
    "expected_nbytes",
    "measure",
]

DEFAULT_MEMORY = 1 << 30
_NO_LIMIT = 1 << 62  # what is encoded in memory stays there
_TENSOR_NBYTES, _FEW = 10_000, 1_000  # what the source, plan, report and table know of one; few are not counted
# Why a group is kept: its bytes would not be fewer, no rate reaches what is asked, float32 does not suffice to code it.
_NO_SMALLER, _UNREACHED, _OUT_OF_RANGE = "keep", "unreached", "range"


@dataclass(frozen=True)
class Work:
    """How a source is encoded; nothing of it reaches the bytes.

    Attributes
    ----------
    crew : Crew
    memory : int
        Bytes to stay below, beyond what the interpreter and its modules take.
    progress : Progress
        Called with "encode" for rows that were coded, "resume" for rows that an earlier run had coded, and
        "again" for rows that must be coded at a higher rate.
    journal : Journal
        What an earlier run finished, and where this one writes what it finished.
    """

    crew: Crew = field(default_factory=Crew)
    memory: int = DEFAULT_MEMORY
    progress: Progress = silent
    journal: Journal = field(default_factory=Journal)


@dataclass(frozen=True)
class _Group:
    """A group of the plan, by its number there."""

    number: int
    key: PaletteGroupKey
    profile: Profile
    names: list[str]

    @property
    def codec(self) -> Codec:
        return self.profile.codec


@dataclass
class _Tensor:
    """A tensor whose sections are reserved.

    Attributes
    ----------
    code : Any
        What its coder needs beside the group's code.
    widths : dict of kind to bytes a row
        Of the sections that its rows fill.
    read : Crc32Runs
        Checksums of its rows as float32.
    """

    name: str
    rows: Rows
    code: Any
    has_leaf: bool
    sections: dict[str, int]
    widths: dict[str, int]
    scale: float | None = None
    read: Crc32Runs = field(default_factory=Crc32Runs)


@dataclass
class _Attempt:
    """A group's code and what coding all rows with it came to.

    Attributes
    ----------
    structure, identity : int
        Checksums of the shared sections that Slot L's scale depends on, and of all and the numbers beside them: what an
        earlier run found and coded counts only with the very same.
    """

    group: _Group
    code: GroupCode
    sections: dict[str, int]
    structure: int
    identity: int
    cosines: GroupCosines
    tensors: list[_Tensor] = field(default_factory=list)
    nbytes: Counter[str] = field(default_factory=Counter)


class _Encoder:
    def __init__(self, source: TensorSource, plan: Plan, sink: SectionSink, report: GateReport, work: Work) -> None:
        self.source, self.plan, self.sink, self.report, self.work = source, plan, sink, report, work
        self.journal, self.crew = work.journal, work.crew
        self.infos = source.infos()
        self.groups: list[GroupRecord] = []
        self.records: dict[str, TensorRecord] = {}
        self.fixed_nbytes = check_memory(source, plan, work)
        self._ahead: dict[int, Future[Any]] = {}

    def _decided(self, *key: Any) -> Any:
        """What an earlier run found in many rows, where these are known to be the same: it is found again otherwise."""
        return None if self.journal.is_doubted else self.journal.get(*key)

    # ---- what a group shares ----

    def _scales(self, group: _Group) -> list[NDArray[np.uint16] | None]:
        scales = self.plan.column_scales
        return [bf16_bits(scales[name]) if name in scales else None for name in group.names]

    def _finding(self, group: _Group) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """The call that finds what a group shares."""
        rows = [SourceRows(self.source, name) for name in group.names]
        dtype = self.infos[group.names[0]].dtype  # of one, to predict; every row is measured in its own
        request = GroupRequest(
            group.key, rows, group.profile, self._threshold(group), self.plan.seed, self._scales(group), dtype
        )
        return group.codec.find(request)

    def _look_ahead(self, following: list[_Group]) -> None:
        """Let the crew find what later groups share while a group's rows are coded."""
        for group in following if self.crew.remote else following[:1]:  # here, each takes its memory
            room = _usable(self.work.memory) - self.fixed_nbytes - self._task_nbytes(group)
            known = group.number in self._ahead or self._decided("group", group.number) is not None
            if self.crew.executor is not None and room >= 0 and not known:
                function, args = self._finding(group)
                self._ahead[group.number] = self.crew.executor.submit(function, *args)

    def cancel(self) -> None:
        """Give up what was to be found ahead."""
        for future in self._ahead.values():
            future.cancel()

    def _threshold(self, group: _Group) -> Threshold | None:
        judged = group.codec.chooses_rates and group.profile.rate is None
        return self.plan.threshold(group.profile, group.key.regime) if judged else None

    def _found(self, group: _Group) -> GroupCode | str:
        """What a group shares, or why its tensors are kept as they came."""
        ahead = self._ahead.pop(group.number, None)
        function, args = self._finding(group)
        try:
            found: GroupCode | None = self.crew.run(function, *args) if ahead is None else ahead.result()
        except RangeError:  # weights near the end of float32's range are kept as they came
            if group.codec.is_specified:
                raise
            return _OUT_OF_RANGE
        return self._worthwhile(group, found)

    def _worthwhile(self, group: _Group, code: GroupCode | None) -> GroupCode | str:
        if code is None:
            return _UNREACHED
        own = code.nbytes(len(group.names))
        if own is None:
            return code
        before = sum(self.infos[name].nbytes for name in group.names)
        scales = sum(scale.nbytes for scale in self._scales(group) if scale is not None)
        return code if own + scales < before else _NO_SMALLER

    def _begun(self, group: _Group, code: GroupCode, restored: dict[str, int] | None = None) -> _Attempt:
        """Write what a group shares, and down that it is, unless an earlier run has."""
        shared = code.sections()
        structure = zlib.crc32(b"".join(code.structure().values()))
        identity = zlib.crc32(repr(sorted(code.numbers.items())).encode(), zlib.crc32(b"".join(shared.values())))
        if restored is None:
            restored = {kind: self.sink.add(kind, len(data), [data]) for kind, data in shared.items()}
            facts = {"numbers": code.numbers, "sections": [[k, len(d), zlib.crc32(d)] for k, d in shared.items()]}
            self.journal.put("group", group.number, value=facts)
        return _Attempt(group, code, restored, structure, identity, GroupCosines(self._threshold(group)))

    def _restored(self, group: _Group, facts: dict[str, Any]) -> _Attempt | None:
        """What a group shares as an earlier run wrote it, where that can be trusted."""
        mark, sections = len(self.sink), {}
        for kind, nbytes, _ in facts["sections"]:
            sections[kind] = self.sink.reserve(kind, nbytes)
        found = self.sink.recall((sections[kind], 0, nbytes, crc) for kind, nbytes, crc in facts["sections"])
        if found is None:
            self.sink.rewind(mark)
            return None
        held = {kind: data.tobytes() for kind, data in zip(sections, found, strict=True)}
        code = group.codec.read_group(group.key, held, facts["numbers"]).ready(group.profile)
        return self._begun(group, code, sections)

    # ---- a group ----

    def add_group(self, group: _Group, following: list[_Group]) -> None:
        """Code a group's tensors at the first rate that passes on all of their rows, or keep them."""
        mark, facts = len(self.sink), self._decided("group", group.number)
        why = facts if isinstance(facts, str) else None
        attempt = None
        if facts is not None and why is None:
            attempt = self._restored(group, facts)
        if attempt is None and why is None:
            code = self._found(group)
            if isinstance(code, str):
                why = code
            else:
                attempt = self._begun(group, code)
        self._look_ahead(following)
        while attempt is not None:
            if self._passes(attempt):
                self._record(attempt)
                return
            self.sink.rewind(mark)
            for name, nbytes in attempt.nbytes.items():
                self.work.progress("again", name, nbytes)
            code = self._worthwhile(group, attempt.code.richer()) if attempt.tensors else _OUT_OF_RANGE
            why, attempt = (code, None) if isinstance(code, str) else (None, self._begun(group, code))
        assert why is not None
        if facts != why:
            self.journal.put("group", group.number, value=why)
        kind = group.key.regime
        for name in group.names:
            self.keep(name)
            if why == _UNREACHED:
                unreached = Unreached(kind, self.plan.threshold(group.profile, kind))
                self.report.unreached[name] = unreached
                self.records[name] = replace(self.records[name], unreached=unreached)
            elif why == _OUT_OF_RANGE:
                self.report.out_of_range.append(name)

    def _passes(self, attempt: _Attempt) -> bool:
        try:
            self._code(attempt)
        except RangeError:  # no rate helps weights near the end of float32's range
            if attempt.group.codec.is_specified:
                raise
            attempt.tensors.clear()
            return False
        return attempt.cosines.passes()

    def _record(self, attempt: _Attempt) -> None:
        group = attempt.group
        self.groups.append(GroupRecord(group.key, attempt.sections, attempt.code.numbers))
        for tensor in attempt.tensors:
            planned = self.plan.tensors[tensor.name]
            crc = None
            if self.source.is_stored and not planned.codec.is_specified:
                crc = tensor.read.whole(4 * tensor.rows.n_rows * tensor.rows.n_cols)
            self.records[tensor.name] = TensorRecord(
                planned.info,
                planned.codec.id,
                tensor.sections,
                len(self.groups) - 1,
                tensor.scale,
                source_crc32=crc,
                regime_reason=None if group.key.regime == group.key.implied_regime else planned.regime_reason,
            )
        self.report.add_group(attempt.cosines, group.key.regime, str(group.key))

    def _code(self, attempt: _Attempt) -> None:
        """Code all rows of a group's tensors into sections behind the shared ones."""
        if attempt.group.codec.reads_whole_tensors:  # one tensor after the other
            batches = [[name] for name in attempt.group.names]
        else:
            batches = [attempt.group.names]
        shared = self.crew.share(attempt.code)
        for names in batches:
            tensors = [self._tensor(attempt, name) for name in names]
            attempt.tensors += tensors
            self._find_scales(attempt, shared, [tensor for tensor in tensors if tensor.has_leaf])
            calls = self._calls(attempt, shared, tensors)
            for (tensor, start, stop), coded in completed(self.crew.executor, calls, self._window(attempt.group)):
                self._place(attempt, tensor, start, stop, coded)

    def _tensor(self, attempt: _Attempt, name: str) -> _Tensor:
        """Reserve a tensor's sections and write those that are known whole."""
        rows = SourceRows(self.source, name)
        tensor_code = self._tensor_code(attempt, name, rows)
        coder = attempt.code.coder(tensor_code)
        sections, widths = {}, {}
        for kind, part in coder.layout().items():
            if isinstance(part, int):
                widths[kind] = part
                sections[kind] = self.sink.reserve(kind, part * rows.n_rows)
            else:
                sections[kind] = self.sink.add(kind, part.nbytes, [np.ascontiguousarray(part)])
        if attempt.code.is_large(tensor_code):
            tensor_code = self.crew.share(tensor_code)
        return _Tensor(name, rows, tensor_code, coder.has_leaf, sections, widths)

    def _tensor_code(self, attempt: _Attempt, name: str, rows: Rows) -> Any:
        """What a tensor has of its own; if all rows were read to find it, an earlier run's where it still stands."""
        if not attempt.group.codec.reads_whole_tensors:
            scale = self.plan.column_scales.get(name)
            bits = None if scale is None else bf16_bits(scale)
            return attempt.code.tensor_code(rows, bits, self.plan.moments.get(name), self.crew.run)
        mark, facts = len(self.sink), self._decided("palette", attempt.group.number, name)
        if facts is not None:
            sections = [self.sink.reserve(kind, nbytes) for kind, nbytes, _ in facts]
            blocks = [(index, 0, nbytes, crc) for index, (_, nbytes, crc) in zip(sections, facts, strict=True)]
            recalled = self.sink.recall(blocks)
            self.sink.rewind(mark)
            if recalled is not None:
                whole = {kind: np.array(data) for (kind, _, _), data in zip(facts, recalled, strict=True)}
                return attempt.code.recalled_tensor_code(whole)
        tensor_code = attempt.code.tensor_code(rows, None, None, self.crew.run)
        layout = attempt.code.coder(tensor_code).layout()
        facts = [
            [kind, part.nbytes, zlib.crc32(as_bytes(part))]
            for kind, part in layout.items()
            if not isinstance(part, int)
        ]
        self.journal.put("palette", attempt.group.number, name, value=facts)
        return tensor_code

    # ---- rows ----

    def _spans(self, group: _Group, rows: Rows) -> Iterator[tuple[int, int]]:
        step = group.codec.span_rows(rows.n_cols)
        for start in range(0, rows.n_rows, step):
            yield start, min(start + step, rows.n_rows)

    def _find_scales(self, attempt: _Attempt, shared: Any, tensors: list[_Tensor]) -> None:
        """Give tensors with Slot L their scale: what the largest coefficient of all rows asks for."""
        number, structure, codec = attempt.group.number, attempt.structure, attempt.group.codec
        peaks = {tensor.name: self._decided("peak", number, structure, tensor.name) for tensor in tensors}
        unknown = [tensor for tensor in tensors if peaks[tensor.name] is None]
        missing = {tensor.name: len(list(self._spans(attempt.group, tensor.rows))) for tensor in unknown}
        calls = (
            (tensor.name, peak_of_rows, (shared, tensor.code, codec, tensor.rows, start, stop))
            for tensor in unknown
            for start, stop in self._spans(attempt.group, tensor.rows)
        )
        for name, peak in completed(self.crew.executor, calls, self._window(attempt.group)):
            peaks[name] = float(np.maximum(peaks[name] or 0.0, peak))  # NaN stays
            missing[name] -= 1
            if not missing[name]:
                leaf_scale(peaks[name])  # refuses what is not finite
                self.journal.put("peak", number, structure, name, value=peaks[name])
        for tensor in tensors:
            tensor.scale = leaf_scale(peaks[tensor.name])

    def _calls(
        self, attempt: _Attempt, shared: Any, tensors: list[_Tensor]
    ) -> Iterator[Call[tuple[_Tensor, int, int]]]:
        """The runs of rows that are not yet coded."""
        for tensor in tensors:
            for start, stop in self._spans(attempt.group, tensor.rows):
                if not self._recalled(attempt, tensor, start, stop):
                    dtype = self.infos[tensor.name].dtype
                    args = (shared, tensor.code, attempt.group.codec, tensor.rows, start, stop, tensor.scale, dtype)
                    yield (tensor, start, stop), code_rows, args

    def _place(self, attempt: _Attempt, tensor: _Tensor, start: int, stop: int, coded: Coded) -> None:
        for kind, width in tensor.widths.items():
            self.sink.write_at(tensor.sections[kind], start * width, coded.parts[kind], coded.crcs[kind])
        facts = {
            "cosines": base64.b64encode(coded.cosines.astype("<f8").tobytes()).decode("ascii"),
            "crcs": coded.crcs,
            "source": coded.source_crc,
            "stop": stop,
        }
        self.journal.put("rows", attempt.group.number, attempt.identity, tensor.name, start, value=facts)
        self._count("encode", attempt, tensor, start, stop, coded.cosines, coded.source_crc)

    def _recalled(self, attempt: _Attempt, tensor: _Tensor, start: int, stop: int) -> bool:
        """Whether an earlier run coded these rows and their bytes are still there."""
        facts = self.journal.get("rows", attempt.group.number, attempt.identity, tensor.name, start)
        if facts is None or facts["stop"] != stop or set(facts["crcs"]) != set(tensor.widths):
            return False
        if self.journal.is_doubted and facts["source"] != _rows_crc(tensor.rows, start, stop):
            return False
        found = self.sink.recall(
            (tensor.sections[kind], start * width, (stop - start) * width, facts["crcs"][kind])
            for kind, width in tensor.widths.items()
        )
        if found is None:
            return False
        cosines = np.frombuffer(base64.b64decode(facts["cosines"]), "<f8")
        self._count("resume", attempt, tensor, start, stop, cosines, facts["source"])
        return True

    def _count(
        self,
        stage: str,
        attempt: _Attempt,
        tensor: _Tensor,
        start: int,
        stop: int,
        cosines: NDArray[np.float64],
        source_crc: int,
    ) -> None:
        width = 4 * tensor.rows.n_cols
        tensor.read.add(start * width, (stop - start) * width, source_crc)
        attempt.cosines.add(tensor.name, tensor.rows.n_rows, start, cosines)
        nbytes = (stop - start) * self.infos[tensor.name].row_nbytes
        attempt.nbytes[tensor.name] += nbytes
        self.work.progress(stage, tensor.name, nbytes)

    def _window(self, group: _Group) -> int:
        """How many tasks may be begun and not yet written."""
        return max(
            1, min(2 * self.crew.jobs, (_usable(self.work.memory) - self.fixed_nbytes) // self._task_nbytes(group))
        )

    def _task_nbytes(self, group: _Group) -> int:
        return _local_task_nbytes(self.crew, group.profile, group.key, self.infos[group.names[0]])

    # ---- what is kept ----

    def keep(self, name: str) -> None:
        """Store a tensor as it came."""
        info = self.infos[name]
        index = self.sink.reserve("raw", info.nbytes)
        for start, stop in row_ranges(info.n_rows, info.row_nbytes):
            offset, nbytes = start * info.row_nbytes, (stop - start) * info.row_nbytes
            crc = self.journal.get("raw", name, start)
            stage = "resume"
            if self.journal.is_doubted and crc != zlib.crc32(as_bytes(self.source.read_rows(name, start, stop))):
                crc = None
            if crc is None or self.sink.recall([(index, offset, nbytes, crc)]) is None:
                stage = "encode"
                block = self.source.read_rows(name, start, stop)
                crc = zlib.crc32(as_bytes(block))
                self.sink.write_at(index, offset, block, crc)
                self.journal.put("raw", name, start, value=crc)
            self.work.progress(stage, name, nbytes)
        self.records[name] = TensorRecord(info, KEEP.id, {"raw": index})

    def add_file(self, name: str) -> int:
        """Store a side file."""
        data = self.source.read_file(name)
        return self.sink.add("file", len(data), [data])


def _rows_crc(rows: Rows, start: int, stop: int) -> int:
    """CRC-32 of rows as float32, read a block at a time."""
    crc = 0
    for first, last in row_ranges(stop - start, 4 * rows.n_cols):
        crc = zlib.crc32(as_bytes(rows.read(start + first, start + last)), crc)
    return crc


def _local_task_nbytes(crew: Crew, profile: Profile, key: PaletteGroupKey, info: TensorInfo) -> int:
    """Bytes that a task takes here: all of them, or its result where other machines do the work."""
    if crew.remote:
        return 2 * profile.codec.result_nbytes(*key.shape)
    return profile.codec.task_nbytes(profile, *key.shape, info.row_nbytes)


def check_memory(source: TensorSource, plan: Plan, work: Work) -> int:
    """Return the bytes to set aside for what is found of groups and counted of rows, or raise.

    Raises
    ------
    BudgetError
        Naming the tensor or the side file that needs more than there is.
    """
    infos, found, counted, largest = source.infos(), 0, 0, (0, "", "", "")

    def needs(nbytes: int, name: str, what: str, kind: str = "tensor") -> None:
        nonlocal largest
        largest = max(largest, (nbytes, name, what, kind))

    for (key, profile), names in plan.groups().items():
        # Cosines of the tensors whose tasks are under way, NumPy's copies of them, and the histogram.
        counted = max(counted, 4 * 8 * key.shape[0] + (8 << 20))
        own = 0 if work.crew.remote else profile.codec.finding_nbytes(key, len(names))
        found = max(found, own)
        one = _local_task_nbytes(work.crew, profile, key, infos[names[0]])
        needs(4 * 8 * key.shape[0] + (8 << 20) + max(own, one), names[0], f"group {key}")
        fed = [name for name in names if name in plan.moments]
        if fed:
            found = max(found, own, feedback_nbytes(key.shape[1]))
            needs(one + feedback_nbytes(key.shape[1]), fed[0], "feedback")
    for name in plan.kept():
        needs(2 * infos[name].row_nbytes, name, "one row")
    held = source.files()
    for name in plan.files:
        needs(2 * held[name], name, "whole", "side file")
    nbytes, name, what, kind = largest
    tables = _TENSOR_NBYTES * max(0, len(infos) - _FEW)
    if tables:
        nbytes, what = nbytes + tables, f"{what}, beside what is known of {len(infos):,} tensors"
    if nbytes > _usable(work.memory):
        asked = (nbytes * 9 // 8 >> 20) + 1
        raise BudgetError(
            f"{kind} {shown(name)} needs {nbytes * 9 // 8:,} bytes of memory ({what}), {work.memory:,} are given; "
            f"give it {asked} MiB with memory= (--memory {asked}MiB)"
        )
    return counted + found + tables


def expected_nbytes(source: TensorSource, plan: Plan, work: Work) -> int:
    """Return the bytes that encoding will take at most, beyond what the interpreter takes: `memory` or less."""
    fixed, infos, most = check_memory(source, plan, work), source.infos(), 0
    for (key, profile), names in plan.groups().items():
        one = _local_task_nbytes(work.crew, profile, key, infos[names[0]])
        spans = len(names) * -(-key.shape[0] // profile.codec.span_rows(key.shape[1]))
        most = max(most, one * min(2 * work.crew.jobs, spans))
    return min(work.memory, (fixed + most) * 9 // 8)


def _usable(memory: int) -> int:
    """What may be allocated so that the process stays below `memory`: freed pieces are not all given back at once."""
    return memory * 8 // 9


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
        When a tensor that is to be encoded holds an infinity or NaN.
    BudgetError
        Before anything is written, when a tensor cannot be encoded in the memory given.
    FormatError
        When the source was written to meanwhile.
    """
    report = GateReport(enforced=False) if report is None else report
    encoder = _Encoder(source, plan, sink, report, work or Work())
    planned = plan.groups().items()
    groups = [_Group(number, key, profile, names) for number, ((key, profile), names) in enumerate(planned)]
    try:
        for group in groups:
            # A tensor's own palette takes the memory that looking ahead would.
            encoder.add_group(group, [] if group.codec.reads_whole_tensors else groups[group.number + 1 :])
    finally:
        encoder.cancel()
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


def compared_rows(
    rows: Rows, decoded: Callable[[slice], NDArray[Any]], executor: Executor | None, dtype: DType = FLOAT32
) -> NDArray[np.float64]:
    """Return the `judged_cosines` of every row with what is given back of it in a type, float64 (n_rows,).

    `decoded` gives a slice of rows as float32.
    """
    cosines = np.empty(rows.n_rows)
    for start, stop, found in map_rows(_compared, rows, executor, decoded, dtype):
        cosines[start:stop] = found
    return cosines


def _compared(
    block: NDArray[np.float32], start: int, stop: int, decoded: Callable[[slice], NDArray[Any]], dtype: DType
) -> NDArray[np.float64]:
    return judged_cosines(block, rounded(decoded(slice(start, stop)), dtype))


def measure(
    pack: HhtldPack,
    source: TensorSource,
    report: GateReport,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> dict[str, int | None]:
    """Compare every row of every encoded tensor of a pack with its source and add it to a report.

    Returns
    -------
    dict of name to CRC-32 of the source's rows as float32
    """
    crcs: dict[str, int | None] = {}
    for name, record in pack.table.tensors.items():
        if record.group is None:
            continue
        rows = ChecksummedRows(SourceRows(source, name, record.info.n_cols))
        cosines = compared_rows(rows, partial(pack.get_rows, name), executor, record.info.dtype)
        key = pack.table.groups[record.group].key
        report.add(name, key.regime, cosines, str(key))
        crcs[name] = rows.crc32
        progress("measure", name, record.info.nbytes)
    return crcs


def encode(
    tensors: TensorSource | Mapping[str, Any],
    profile: str = DEFAULT_PROFILE,
    *,
    metadata: Mapping[str, str] | None = None,
    nonfinite: str = "refuse",
    quantized: str = "refuse",
    column_scales: Mapping[str, ArrayLike] | None = None,
    rates: Mapping[str, int] | None = None,
    moments: Mapping[str, ArrayLike] | None = None,
    executor: Executor | None = None,
) -> HhtldPack:
    """Encode arrays, or any source, into a pack in memory.

    Parameters
    ----------
    tensors : mapping of str to array, or TensorSource
    profile : str
        "parity" (the default), "gates", "bits:B", "lookup" or "f32".
    metadata : mapping of str to str, optional
        Travels with the pack; a source brings its own.
    nonfinite, quantized : {"refuse", "keep"}
    column_scales, rates, moments : mappings, optional
        See `hhtld.encoding.plan.make_plan`.
    executor : concurrent.futures.Executor, optional
        Threads to spread blocks of rows over.
    """
    source = tensors if isinstance(tensors, TensorSource) else ArraySource(tensors, metadata)
    plan = make_plan(
        source,
        profile,
        nonfinite=nonfinite,
        quantized=quantized,
        column_scales=column_scales,
        rates=rates,
        moments=moments,
    )
    sections = MemorySections()
    crew = Crew(executor, os.cpu_count() or 1) if executor is not None else Crew()
    table = encode_source(source, plan, sections, work=Work(crew, memory=_NO_LIMIT))
    return HhtldPack(table, sections.reader())
