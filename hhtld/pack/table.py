"""The table of a pack: which tensors there are, what they became and which sections hold them.

It is one JSON object in a file (see formats/hhtld/SPEC.md); `hhtld.pack.table_checks` reads it back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hhtld.codecs.section_kinds import group_codecs
from hhtld.errors import no_such_tensor
from hhtld.gates import CosineSummary, Unreached
from hhtld.identity import PaletteGroupKey
from hhtld.matrix import TensorInfo

__all__ = ["GroupRecord", "PackTable", "TensorRecord"]


@dataclass(frozen=True)
class GroupRecord:
    """A group and its shared sections.

    Attributes
    ----------
    key : PaletteGroupKey
    sections : mapping of kind to section number
    numbers : mapping of str to int or tuple of int
        What its codec needs beside sections: of Slot T "rate" and "rate_2", in sixteenths of a bit, or "rates", those
        of the classes of rows, the rotation's "seed", and "ring", True, of rows that close to rings.
    """

    key: PaletteGroupKey
    sections: Mapping[str, int]
    numbers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def codecs(self) -> list[str]:
        """The ids of the codecs that its sections and numbers belong to."""
        return group_codecs(self.sections, self.numbers)

    def to_json(self) -> dict[str, Any]:
        """Return the table's object."""
        key = self.key
        record: dict[str, Any] = {
            "component": key.component,
            "role": key.role,
            "shape": list(key.shape),
            "sections": dict(self.sections),
        }
        if key.regime != key.implied_regime:  # absent if the role says it, so that such tables are what they were
            record["regime"] = key.regime
        numbers = {key: list(number) if isinstance(number, tuple) else number for key, number in self.numbers.items()}
        return record | numbers


@dataclass(frozen=True)
class TensorRecord:
    """A tensor: what it was, what it became, and how well it came back.

    Attributes
    ----------
    info : TensorInfo
    codec : str
        The id of its codec, as `hhtld.codecs` knows it.
    sections : mapping of kind to section number
    group : int or None
    slot_l_scale : float or None
        An exact float32.
    gates : CosineSummary or None
        Row cosines measured when the pack was made.
    source_crc32 : int or None
        CRC-32 of the source's elements as float32, if the source was a file.
    regime_reason : str or None
        What decided for its group's regime, if that is not the one that the role implies.
    unreached : Unreached or None
        What no rate reached, of a tensor that is kept for that.
    class_rows : tuple of int or None
        How many rows are of each class, if rows have rates of their own.
    alias_of : str or None
        The tensor whose bytes this one shares; all of the above is then that tensor's.
    """

    info: TensorInfo
    codec: str
    sections: Mapping[str, int] = field(default_factory=dict)
    group: int | None = None
    slot_l_scale: float | None = None
    gates: CosineSummary | None = None
    source_crc32: int | None = None
    regime_reason: str | None = None
    unreached: Unreached | None = None
    class_rows: tuple[int, ...] | None = None
    alias_of: str | None = None

    @property
    def name(self) -> str:
        """The tensor's name."""
        return self.info.name

    @property
    def is_encoded(self) -> bool:
        """Whether it was encoded; False for a tensor that is kept as it came, and for an alias."""
        return self.group is not None

    def _repr_html_(self) -> str:
        from hhtld.pack.notebook import card

        facts: dict[str, object] = {"type": self.info.dtype.name, "shape": list(self.info.shape), "codec": self.codec}
        if self.alias_of is not None:
            facts["shares the bytes of"] = self.alias_of
        if self.gates is not None:
            facts["row cosine, median"], facts["reached by 19 rows of 20"] = self.gates.median, self.gates.p5
            facts["worst row"] = f"{self.gates.worst_row}: {self.gates.minimum}"
        return card(self.name, facts)

    def to_json(self) -> dict[str, Any]:
        """Return the table's object; what is absent is left out."""
        record: dict[str, Any] = {
            "name": self.info.name,
            "dtype": self.info.dtype.name,
            "shape": list(self.info.shape),
        }
        if self.info.shard is not None:
            record["shard"] = self.info.shard
        if self.alias_of is not None:
            return record | {"alias_of": self.alias_of}
        record |= {"codec": self.codec, "sections": dict(self.sections)}
        if self.group is not None:
            record["group"] = self.group
        if self.slot_l_scale is not None:
            record["slot_l_scale"] = self.slot_l_scale
        if self.gates is not None:
            record["gates"] = self.gates.to_json()
        if self.source_crc32 is not None:
            record["source_crc32"] = self.source_crc32
        if self.regime_reason is not None:
            record["regime_reason"] = self.regime_reason
        if self.class_rows is not None:
            record["class_rows"] = list(self.class_rows)
        if self.unreached is not None:
            record["unreached"] = self.unreached.to_json()
        return record


@dataclass(frozen=True)
class PackTable:
    """Everything of a pack that is not section bytes.

    Attributes
    ----------
    profile : str
        What the pack was made with.
    groups : tuple of GroupRecord
    tensors : dict of name to TensorRecord, in ascending order of names
    metadata : dict of str to str
        The source's own.
    source : dict
        JSON-able facts of the source: config, shard names.
    files : dict of name to section number, in ascending order of names
        Side files that came with the tensors.
    """

    profile: str
    groups: tuple[GroupRecord, ...]
    tensors: Mapping[str, TensorRecord]
    metadata: Mapping[str, str] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, int] = field(default_factory=dict)

    def with_gates(self, gates: Mapping[str, CosineSummary]) -> PackTable:
        """Return the table with what was measured."""
        tensors = {n: replace(r, gates=gates[n]) if n in gates else r for n, r in self.tensors.items()}
        return replace(self, tensors=tensors)

    def renumbered(self, numbers: Mapping[int, int]) -> PackTable:
        """Return the table with every section number replaced."""

        def moved(sections: Mapping[str, int]) -> dict[str, int]:
            return {kind: numbers[index] for kind, index in sections.items()}

        groups = tuple(replace(g, sections=moved(g.sections)) for g in self.groups)
        tensors = {n: replace(r, sections=moved(r.sections)) for n, r in self.tensors.items()}
        files = {name: numbers[index] for name, index in self.files.items()}
        return replace(self, groups=groups, tensors=tensors, files=files)

    def resolved(self, name: str) -> TensorRecord:
        """Return the record that holds a tensor's sections, or KeyError with the nearest names."""
        record = self.tensors.get(name)
        if record is None:
            raise KeyError(no_such_tensor(name, self.tensors))
        return record if record.alias_of is None else self.tensors[record.alias_of]

    def regime(self, name: str) -> str | None:
        """Return the regime, "index" or "argmax", of an encoded tensor; None for one that is kept."""
        group = self.resolved(name).group
        return None if group is None else self.groups[group].key.regime

    def regime_reason(self, name: str) -> str | None:
        """Return what decided for the regime of an encoded tensor, of tied ones together; None for one that is kept."""
        record = self.resolved(name)
        if record.group is None:
            return None
        return record.regime_reason or f"role: {self.groups[record.group].key.role}"

    def to_json(self) -> dict[str, Any]:
        """Return the table's object."""
        table: dict[str, Any] = {
            "profile": self.profile,
            "groups": [group.to_json() for group in self.groups],
            "tensors": [tensor.to_json() for tensor in self.tensors.values()],
            "metadata": dict(self.metadata),
            "source": dict(self.source),
        }
        if self.files:  # absent if there are none, so that such tables are what they always were
            table["files"] = [{"name": name, "section": index} for name, index in self.files.items()]
        return table
