"""The rows of a group, coded into sections a run at a time, by a crew and in any order.

Every row is measured where it is coded, with what its bytes decode to. Runs that an earlier, interrupted run coded are
taken over if their bytes are still there.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hhtld.dtypes import bf16_bits
from hhtld.encoding.group_attempt import Attempt, ReservedTensor
from hhtld.encoding.groups import PlannedGroup
from hhtld.encoding.memory import TaskMemory
from hhtld.encoding.plan import Plan
from hhtld.encoding.resources import Work
from hhtld.encoding.row_tasks import Coded, code_rows, peak_of_rows
from hhtld.pack.section_interfaces import SectionSink, as_bytes
from hhtld.slots.class_layout import ByClass, row_spans
from hhtld.slots.slot_l import leaf_scale
from hhtld.sources.contract import SourceRows, TensorSource
from hhtld.sources.crew import Call, completed
from hhtld.sources.rows import Rows, row_ranges

__all__ = ["RowCoder"]


class RowCoder:
    """Codes the rows of groups.

    Parameters
    ----------
    source : TensorSource
    plan : Plan
    sink : SectionSink
    work : Work
    memory : TaskMemory
    """

    def __init__(self, source: TensorSource, plan: Plan, sink: SectionSink, work: Work, memory: TaskMemory) -> None:
        self._source, self._plan, self._sink, self._memory = source, plan, sink, memory
        self._journal, self._crew, self._progress = work.journal, work.crew, work.progress
        self._infos = source.infos()

    def code(self, attempt: Attempt) -> None:
        """Code all rows of a group's tensors into sections behind the shared ones.

        Raises
        ------
        RangeError
            If float32 does not suffice to code a row.
        """
        group = attempt.group
        # A codec that reads whole tensors has memory for one of them.
        batches = [[name] for name in group.names] if group.codec.reads_whole_tensors else [group.names]
        group_code = self._crew.share(attempt.code)
        for names in batches:
            tensors = [self._reserve(attempt, name) for name in names]
            attempt.tensors += tensors
            self._find_slot_l_scales(attempt, group_code, [tensor for tensor in tensors if tensor.has_leaf])
            calls = self._calls(attempt, group_code, tensors)
            for (tensor, start, stop), coded in completed(self._crew.executor, calls, self._n_tasks(group)):
                self._write(attempt, tensor, start, stop, coded)

    def _n_tasks(self, group: PlannedGroup) -> int:
        return self._memory.n_tasks(group.key, group.profile, group.names[0])

    # ---- a tensor ----

    def _reserve(self, attempt: Attempt, name: str) -> ReservedTensor:
        """Reserve a tensor's sections and write those that are known whole."""
        rows = SourceRows(self._source, name)
        tensor_code = self._tensor_code(attempt, name, rows)
        coder = attempt.code.coder(tensor_code)
        sections: dict[str, int] = {}
        row_layout: dict[str, int | ByClass] = {}
        for kind, part in coder.layout().items():
            if isinstance(part, int | ByClass):
                row_layout[kind] = part
                nbytes = part * rows.n_rows if isinstance(part, int) else part.nbytes
                sections[kind] = self._sink.reserve(kind, nbytes)
            else:
                sections[kind] = self._sink.add(kind, part.nbytes, [np.ascontiguousarray(part)])
        if attempt.code.is_large(tensor_code):
            tensor_code = self._crew.share(tensor_code)
        return ReservedTensor(name, rows, tensor_code, coder.has_leaf, sections, row_layout)

    def _tensor_code(self, attempt: Attempt, name: str, rows: Rows) -> Any:
        """Return what a tensor has of its own: an earlier run's, if all rows were read to find it."""
        if not attempt.group.codec.reads_whole_tensors:
            scale = self._plan.column_scales.get(name)
            scale_bits = None if scale is None else bf16_bits(scale)
            moments, row_rates = self._plan.moments.get(name), self._plan.row_rates.get(name)
            return attempt.code.tensor_code(rows, scale_bits, moments, row_rates, self._crew.run)
        facts = self._journal.trusted("palette", attempt.group.number, name)
        whole = None if facts is None else self._recalled_whole(facts)
        if whole is not None:
            return attempt.code.recalled_tensor_code(whole)
        tensor_code = attempt.code.tensor_code(rows, None, None, None, self._crew.run)
        layout = attempt.code.coder(tensor_code).layout()
        parts = {kind: part for kind, part in layout.items() if not isinstance(part, int | ByClass)}
        facts = [[kind, part.nbytes, zlib.crc32(as_bytes(part))] for kind, part in parts.items()]
        self._journal.put("palette", attempt.group.number, name, value=facts)
        return tensor_code

    def _recalled_whole(self, facts: list[tuple[str, int, int]]) -> dict[str, NDArray[np.uint8]] | None:
        """Return the sections (kind, bytes, checksum) that an earlier run wrote whole, or None if they are gone."""
        mark = len(self._sink)
        blocks = [(self._sink.reserve(kind, nbytes), 0, nbytes, crc) for kind, nbytes, crc in facts]
        recalled = self._sink.recall(blocks)
        self._sink.rewind(mark)  # they are reserved again, in the order of the layout
        if recalled is None:
            return None
        return {kind: np.array(data) for (kind, _, _), data in zip(facts, recalled, strict=True)}

    # ---- Slot L's scale ----

    def _find_slot_l_scales(self, attempt: Attempt, group_code: Any, tensors: list[ReservedTensor]) -> None:
        """Give each tensor the scale that the largest coefficient of all its rows asks for."""
        key = ("peak", attempt.group.number, attempt.structure_crc)
        peaks = {tensor.name: self._journal.trusted(*key, tensor.name) for tensor in tensors}
        unknown = [tensor for tensor in tensors if peaks[tensor.name] is None]
        n_missing = {tensor.name: len(list(_spans(attempt.group, tensor.rows))) for tensor in unknown}
        calls = (
            (tensor.name, peak_of_rows, (group_code, tensor.code, attempt.group.codec, tensor.rows, start, stop))
            for tensor in unknown
            for start, stop in _spans(attempt.group, tensor.rows)
        )
        for name, peak in completed(self._crew.executor, calls, self._n_tasks(attempt.group)):
            peaks[name] = float(np.maximum(peaks[name] or 0.0, peak))  # NaN stays
            n_missing[name] -= 1
            if not n_missing[name]:
                leaf_scale(peaks[name])  # refuses what is not finite
                self._journal.put(*key, name, value=peaks[name])
        for tensor in tensors:
            tensor.slot_l_scale = leaf_scale(peaks[tensor.name])

    # ---- runs of rows ----

    def _calls(
        self, attempt: Attempt, group_code: Any, tensors: list[ReservedTensor]
    ) -> Iterator[Call[tuple[ReservedTensor, int, int]]]:
        """Yield the calls that code the runs of rows which no earlier run has coded."""
        codec = attempt.group.codec
        for tensor in tensors:
            dtype = self._infos[tensor.name].dtype
            for start, stop in _spans(attempt.group, tensor.rows):
                if not self._recall(attempt, tensor, start, stop):
                    arguments = (group_code, tensor.code, codec, tensor.rows, start, stop, tensor.slot_l_scale, dtype)
                    yield (tensor, start, stop), code_rows, arguments

    def _write(self, attempt: Attempt, tensor: ReservedTensor, start: int, stop: int, coded: Coded) -> None:
        for kind, part in tensor.row_layout.items():
            view, done = as_bytes(coded.parts[kind]), 0
            for (offset, nbytes), crc in zip(row_spans(part, start, stop), coded.crcs[kind], strict=True):
                self._sink.write_at(tensor.sections[kind], offset, view[done : done + nbytes], crc)
                done += nbytes
        facts = {
            "cosines": base64.b64encode(coded.cosines.astype("<f8").tobytes()).decode("ascii"),
            "crcs": coded.crcs,
            "source": coded.source_crc,
            "stop": stop,
        }
        self._journal.put("rows", attempt.group.number, attempt.identity_crc, tensor.name, start, value=facts)
        self._count("encode", attempt, tensor, start, coded.cosines, coded.source_crc)

    def _recall(self, attempt: Attempt, tensor: ReservedTensor, start: int, stop: int) -> bool:
        """Take over rows that an earlier run coded; False if it did not, or their bytes are gone."""
        facts = self._journal.get("rows", attempt.group.number, attempt.identity_crc, tensor.name, start)
        if facts is None or facts["stop"] != stop or set(facts["crcs"]) != set(tensor.row_layout):
            return False
        if self._journal.is_doubted and facts["source"] != _rows_crc(tensor.rows, start, stop):
            return False
        blocks = (
            (tensor.sections[kind], offset, nbytes, crc)
            for kind, part in tensor.row_layout.items()
            for (offset, nbytes), crc in zip(row_spans(part, start, stop), facts["crcs"][kind], strict=True)
        )
        if self._sink.recall(blocks) is None:
            return False
        cosines = np.frombuffer(base64.b64decode(facts["cosines"]), "<f8")
        self._count("resume", attempt, tensor, start, cosines, facts["source"])
        return True

    def _count(
        self,
        stage: str,
        attempt: Attempt,
        tensor: ReservedTensor,
        start: int,
        cosines: NDArray[np.float64],
        source_crc: int,
    ) -> None:
        """Count a run of rows, from `start` on, that is in the sections now."""
        n_rows, width = len(cosines), 4 * tensor.rows.n_cols
        tensor.source_crcs.add(start * width, n_rows * width, source_crc)
        attempt.cosines.add(tensor.name, tensor.rows.n_rows, start, cosines)
        nbytes = n_rows * self._infos[tensor.name].row_nbytes
        attempt.coded_nbytes[tensor.name] += nbytes
        self._progress(stage, tensor.name, nbytes)


def _spans(group: PlannedGroup, rows: Rows) -> Iterator[tuple[int, int]]:
    """Yield the runs of rows that are a task each."""
    step = group.codec.span_rows(rows.n_cols)
    for start in range(0, rows.n_rows, step):
        yield start, min(start + step, rows.n_rows)


def _rows_crc(rows: Rows, start: int, stop: int) -> int:
    """Return the CRC-32 of rows as float32, read a block at a time."""
    crc = 0
    for first, last in row_ranges(stop - start, 4 * rows.n_cols):
        crc = zlib.crc32(as_bytes(rows.read(start + first, start + last)), crc)
    return crc
