"""An attempt to encode a group: its code, its sections, and what coding all of its rows came to."""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hhtld.codecs.base import GroupCode
from hhtld.encoding.gate_report import GroupCosines
from hhtld.encoding.groups import PlannedGroup
from hhtld.gates import Threshold
from hhtld.pack.section_interfaces import SectionSink
from hhtld.slots.class_layout import ByClass
from hhtld.sources.rows import Rows
from hhtld.storage.crc import Crc32Runs
from hhtld.storage.journal import Journal

__all__ = ["Attempt", "ReservedTensor", "begin", "resume"]


@dataclass
class ReservedTensor:
    """A tensor whose sections are reserved.

    Attributes
    ----------
    name : str
    rows : Rows
    code : Any
        What its coder needs beside the group's code.
    has_leaf : bool
    sections : dict of kind to section number
    row_layout : dict of kind to bytes a row, or to where they lie
        Of the sections that its rows fill.
    slot_l_scale : float or None
    source_crcs : Crc32Runs
        Checksums of its rows as float32.
    """

    name: str
    rows: Rows
    code: Any
    has_leaf: bool
    sections: dict[str, int]
    row_layout: dict[str, int | ByClass]
    slot_l_scale: float | None = None
    source_crcs: Crc32Runs = field(default_factory=Crc32Runs)

    @property
    def class_rows(self) -> tuple[int, ...] | None:
        """How many rows are of each class, if rows have rates of their own."""
        return next((tuple(part.class_rows) for part in self.row_layout.values() if isinstance(part, ByClass)), None)


@dataclass
class Attempt:
    """A group's code and what coding all rows with it came to.

    Attributes
    ----------
    group : PlannedGroup
    code : GroupCode
    sections : dict of kind to section number
        Those that the tensors share.
    structure_crc, identity_crc : int
        Checksums of the shared sections that Slot L's scale depends on, and of all of them with the numbers of the
        group's record. What an earlier run found and coded counts only with the very same.
    cosines : GroupCosines
    tensors : list of ReservedTensor
    coded_nbytes : Counter of name to bytes of the source
    """

    group: PlannedGroup
    code: GroupCode
    sections: dict[str, int]
    structure_crc: int
    identity_crc: int
    cosines: GroupCosines
    tensors: list[ReservedTensor] = field(default_factory=list)
    coded_nbytes: Counter[str] = field(default_factory=Counter)


def begin(
    group: PlannedGroup, code: GroupCode, threshold: Threshold | None, sink: SectionSink, journal: Journal
) -> Attempt:
    """Write what a group shares, and note it in the journal."""
    shared = code.sections()
    sections = {kind: sink.add(kind, len(data), [data]) for kind, data in shared.items()}
    written = [[kind, len(data), zlib.crc32(data)] for kind, data in shared.items()]
    journal.put("group", group.number, value={"numbers": code.numbers, "sections": written})
    return _attempt(group, code, sections, threshold)


def resume(
    group: PlannedGroup, facts: dict[str, Any], threshold: Threshold | None, sink: SectionSink
) -> Attempt | None:
    """Return the attempt that an earlier run began, or None if the sections that it wrote are not there any more.

    Parameters
    ----------
    group : PlannedGroup
    facts : dict
        What `begin` noted.
    threshold : Threshold or None
        The cosines that rows must reach.
    sink : SectionSink
    """
    mark = len(sink)
    sections = {kind: sink.reserve(kind, nbytes) for kind, nbytes, _ in facts["sections"]}
    blocks = sink.recall((sections[kind], 0, nbytes, crc) for kind, nbytes, crc in facts["sections"])
    if blocks is None:
        sink.rewind(mark)
        return None
    shared = {kind: data.tobytes() for kind, data in zip(sections, blocks, strict=True)}
    code = group.codec.read_group(group.key, shared, facts["numbers"]).ready(group.profile)
    return _attempt(group, code, sections, threshold)


def _attempt(group: PlannedGroup, code: GroupCode, sections: dict[str, int], threshold: Threshold | None) -> Attempt:
    structure_crc = zlib.crc32(b"".join(code.structure().values()))
    numbers_crc = zlib.crc32(repr(sorted(code.numbers.items())).encode())
    identity_crc = zlib.crc32(b"".join(code.sections().values()), numbers_crc)
    return Attempt(group, code, sections, structure_crc, identity_crc, GroupCosines(threshold))
