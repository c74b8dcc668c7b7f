"""The table of a pack: which tensors there are, what they became and which sections hold them.

It travels as one JSON object (see formats/hhtld/SPEC.md). `PackTable.from_json` trusts nothing: types,
sizes against the real sections, references, aliases. What passes it can be decoded without a check
of sizes further down.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from hhtld.codecs import KEEP, codec, codec_ids
from hhtld.codecs.base import RecordCheck, check_basis
from hhtld.codecs.section_kinds import SECTION_KINDS, group_codecs
from hhtld.dtypes import DType, dtype_named
from hhtld.errors import HeaderError, no_such_tensor, shown
from hhtld.gates import CosineSummary, Unreached
from hhtld.identity import REGIMES, SLOT_L_LANES, PaletteGroupKey
from hhtld.pack.notebook import card
from hhtld.pack.sections import SectionReader
from hhtld.sizes import MAX_NBYTES, MAX_NESTING, checked_shape, is_deep
from hhtld.sources.contract import TensorInfo, checked_name
from hhtld.storage.side_files import check_together, checked_file_name

__all__ = ["GroupRecord", "PackTable", "TensorRecord"]

_CODEC_KEYS = {
    "codec",
    "sections",
    "group",
    "slot_l_scale",
    "gates",
    "source_crc32",
    "regime_reason",
}  # what an alias has not


@dataclass(frozen=True)
class GroupRecord:
    """A group and its shared sections.

    Attributes
    ----------
    key : PaletteGroupKey
    sections : mapping of kind to section number
    numbers : mapping of str to int
        What its codec needs beside sections: of Slot T "rate" and "rate_2", in sixteenths of a bit, and the rotation's
        "seed".
    """

    key: PaletteGroupKey
    sections: Mapping[str, int]
    numbers: Mapping[str, int] = field(default_factory=dict)

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
        if key.regime != key.implied_regime:  # absent where the role says it, so that such tables are what they were
            record["regime"] = key.regime
        return record | dict(self.numbers)


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
        CRC-32 of the source's elements as float32, where the source was a file.
    regime_reason : str or None
        What decided for its group's regime, where that is not the one that the role implies.
    unreached : Unreached or None
        What no rate reached, of a tensor that is kept for that.
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
        if self.files:  # absent where there are none, so that such tables are what they always were
            table["files"] = [{"name": name, "section": index} for name, index in self.files.items()]
        return table

    @classmethod
    def from_json(cls, table: object, sections: SectionReader) -> Self:
        """Read and check a table against the sections it speaks of.

        Raises
        ------
        HeaderError
            Naming the tensor or group and the rule it breaks.
        """
        checked = _Checked(table, sections)
        groups, files = checked.groups(), checked.files()
        return cls(checked.profile(), groups, checked.tensors(groups), checked.metadata(), checked.source(), files)


class _Checked:
    """One pass over a table; every section may be claimed once."""

    def __init__(self, table: object, sections: SectionReader) -> None:
        self._table = _object(table, "table", {"profile", "groups", "tensors", "metadata", "source"})
        self._sections = sections
        self._kinds = sections.kinds()
        self._claimed: set[int] = set()

    def groups(self) -> tuple[GroupRecord, ...]:
        return tuple(self._group(i, g) for i, g in enumerate(_list(self._table, "groups", "table")))

    def files(self) -> dict[str, int]:
        files: dict[str, int] = {}
        for item in _list(self._table, "files", "table") if "files" in self._table else ():
            record = _object(item, "file", {"name", "section"})
            try:
                name = checked_file_name(record["name"])
            except ValueError as error:
                raise HeaderError(f"table: {error}") from None
            if files and name <= next(reversed(files)):
                raise HeaderError(f"table: file {shown(name)} is out of order or listed twice")
            claimed = self._claim(f"file {shown(name)}", {"sections": {"file": record["section"]}}, {"file"}, set())
            files[name] = claimed["file"]
        try:
            check_together(files)
        except ValueError as error:
            raise HeaderError(f"table: {error}") from None
        return files

    def tensors(self, groups: tuple[GroupRecord, ...]) -> dict[str, TensorRecord]:
        tensors: dict[str, TensorRecord] = {}
        for item in _list(self._table, "tensors", "table"):
            record = self._tensor(item, groups)
            if tensors and record.name <= next(reversed(tensors)):
                raise HeaderError(f"table: tensor {shown(record.name)} is out of order or listed twice")
            tensors[record.name] = record
        for record in tensors.values():
            self._check_alias(record, tensors)
        unclaimed = [i for i, k in enumerate(self._kinds) if k in SECTION_KINDS and i not in self._claimed]
        if unclaimed:
            kind = self._kinds[unclaimed[0]]
            raise HeaderError(f"section {unclaimed[0]} ({kind}) belongs to no tensor, group or file")
        return tensors

    def metadata(self) -> dict[str, str]:
        metadata = _object(self._table["metadata"], "metadata", None)
        for key, text in metadata.items():
            if not isinstance(text, str):
                raise HeaderError(f"metadata {shown(key)}: expected text, got {type(text).__name__}")
        return metadata

    def profile(self) -> str:
        profile = self._table["profile"]
        if not isinstance(profile, str):
            raise HeaderError("table: profile must be text")
        return profile

    def source(self) -> dict[str, Any]:
        source = _object(self._table["source"], "source", None)
        if is_deep(source):
            raise HeaderError(f"source: nested deeper than {MAX_NESTING}")
        return source

    def _claim(self, where: str, owner: Mapping[str, Any], required: set[str], optional: set[str]) -> dict[str, int]:
        sections = _object(owner.get("sections"), f"{where}: sections", None)
        if not required <= set(sections) <= required | optional:
            raise HeaderError(f"{where}: needs sections {sorted(required)}, has {sorted(map(str, sections))[:8]}")
        for kind, index in sections.items():
            if type(index) is not int or not 0 <= index < len(self._kinds):
                raise HeaderError(f"{where}: section {index!r} does not exist; there are {len(self._kinds)}")
            if self._kinds[index] != kind:
                raise HeaderError(f"{where}: section {index} holds {self._kinds[index]}, not {kind}")
            if index in self._claimed:
                raise HeaderError(f"{where}: section {index} already belongs to another")
            self._claimed.add(index)
        return sections

    def _size(self, where: str, index: int, expected: int) -> None:
        if self._sections.nbytes(index) != expected:
            kind = self._kinds[index]
            raise HeaderError(f"{where}: {kind} is {self._sections.nbytes(index)} bytes long, expected {expected}")

    def _group(self, number: int, item: object) -> GroupRecord:
        where = f"group {number}"
        record = _object(item, where, {"component", "role", "shape", "sections"})
        component, role = record["component"], record["role"]
        shape = checked_shape(record["shape"], where)
        if not isinstance(component, str) or not isinstance(role, str) or len(shape) != 2:
            raise HeaderError(f"{where}: needs a component, a role and a shape of two sizes")
        sections = self._claim(where, record, set(), {name for name, kind in SECTION_KINDS.items() if kind.in_group})
        nbytes = {kind: self._sections.nbytes(index) for kind, index in sections.items()}
        check = RecordCheck(where, nbytes, record, 0, shape[1])
        numbers: dict[str, int] = {}
        for owner in group_codecs(sections, record):
            numbers |= codec(owner).check_group(check)
        if "basis" in sections:
            check_basis(check)
        regime = record.get("regime", "")
        if regime not in ("", *REGIMES) or ("regime" in record and not regime):
            raise HeaderError(f"{where}: regime must be {' or '.join(REGIMES)}, got {shown(str(regime), 40)}")
        key = PaletteGroupKey(component, role, (shape[0], shape[1]), regime)
        return GroupRecord(key, sections, numbers)

    def _tensor(self, item: object, groups: tuple[GroupRecord, ...]) -> TensorRecord:
        record = _object(item, "tensor", {"name", "dtype", "shape"})
        try:
            name = checked_name(record["name"])
        except (TypeError, ValueError) as error:
            raise HeaderError(f"tensor: {error}") from None
        where = f"tensor {shown(name)}"
        dtype = dtype_named(record["dtype"], where)
        shard = record.get("shard")
        if shard is not None and not isinstance(shard, str):
            raise HeaderError(f"{where}: shard must be text")
        info = TensorInfo(name, dtype, checked_shape(record["shape"], where), shard)
        if math.prod(size or 1 for size in info.shape) * max(4, dtype.nbits // 8) > MAX_NBYTES:
            raise HeaderError(f"{where}: shape {list(info.shape)} is too large for an array, even an empty one")
        of_codec = _CODEC_KEYS & set(record)
        if "alias_of" in record:
            if not isinstance(record["alias_of"], str) or of_codec:
                raise HeaderError(f"{where}: an alias names another tensor and holds nothing itself")
            return TensorRecord(info, KEEP.id, alias_of=record["alias_of"])
        named = record.get("codec")
        if named == KEEP.id:
            if of_codec - {"codec", "sections"}:
                raise HeaderError(f"{where}: a kept tensor has no {min(of_codec - {'codec', 'sections'})}")
            sections = self._claim(where, record, {"raw"}, set())
            self._size(where, sections["raw"], info.nbytes)
            try:
                unreached = Unreached.from_json(record["unreached"]) if "unreached" in record else None
            except ValueError as error:
                raise HeaderError(f"{where}: {error}") from None
            return TensorRecord(info, KEEP.id, sections, unreached=unreached)
        if named not in codec_ids():
            raise HeaderError(f"{where}: unknown codec {shown(str(named), 40)}; known: {', '.join(codec_ids())}")
        return self._encoded(where, record, info, str(named), groups)

    def _encoded(
        self, where: str, record: Mapping[str, Any], info: TensorInfo, named: str, groups: tuple[GroupRecord, ...]
    ) -> TensorRecord:
        number = record.get("group")
        if type(number) is not int or not 0 <= number < len(groups):
            raise HeaderError(f"{where}: group {number!r} does not exist; there are {len(groups)}")
        group = groups[number]
        _require_weight(where, info.dtype)
        used = codec(named)
        row_axes = _row_axes(info, used.row_axes(len(info.shape)), group.key.shape)
        if row_axes is None:
            raise HeaderError(f"{where}: shape {list(info.shape)} does not fit group {group.key}")
        info = replace(info, row_axes=row_axes)
        sections = self._claim(where, record, set(used.required), set(used.optional))
        used.check_tensor(self._check(where, sections, record, info), self._group_check(number, group))
        scale = record.get("slot_l_scale")
        if ("slot_l" in sections) != (scale is not None):
            raise HeaderError(f"{where}: slot_l and slot_l_scale come together")
        if scale is not None:
            positive = type(scale) in (int, float) and 0 < scale <= 3.4028234663852886e38
            if not positive or float(np.float32(scale)) != scale:
                raise HeaderError(f"{where}: slot_l_scale must be a positive finite float32, got {scale!r}")
            if "basis" not in group.sections:
                raise HeaderError(f"{where}: slot_l without a basis in group {number}")
            self._size(where, sections["slot_l"], info.n_rows * SLOT_L_LANES)
        gates = None
        if "gates" in record:
            try:
                gates = CosineSummary.from_json(record["gates"])
            except ValueError as error:
                raise HeaderError(f"{where}: {error}") from None
            if gates.n_rows != info.n_rows:
                raise HeaderError(f"{where}: gates speak of {gates.n_rows} rows, the tensor has {info.n_rows}")
        crc = record.get("source_crc32")
        if crc is not None and (type(crc) is not int or not 0 <= crc < 2**32):
            raise HeaderError(f"{where}: source_crc32 must lie in 0..2^32 - 1")
        reason = record.get("regime_reason")
        if reason is not None and not isinstance(reason, str):
            raise HeaderError(f"{where}: regime_reason must be text")
        return TensorRecord(info, named, sections, number, None if scale is None else float(scale), gates, crc, reason)

    def _check(
        self, where: str, sections: Mapping[str, int], record: Mapping[str, Any], info: TensorInfo
    ) -> RecordCheck:
        nbytes = {kind: self._sections.nbytes(index) for kind, index in sections.items()}
        return RecordCheck(where, nbytes, record, info.n_rows, info.n_cols)

    def _group_check(self, number: int, group: GroupRecord) -> RecordCheck:
        nbytes = {kind: self._sections.nbytes(index) for kind, index in group.sections.items()}
        return RecordCheck(f"group {number}", nbytes, group.numbers, *group.key.shape)

    def _check_alias(self, record: TensorRecord, tensors: Mapping[str, TensorRecord]) -> None:
        if record.alias_of is None:
            return
        where = f"tensor {shown(record.name)}"
        target = tensors.get(record.alias_of)
        if target is None or target.alias_of is not None:
            raise HeaderError(f"{where}: alias of {shown(record.alias_of)}, which holds no bytes")
        if (target.info.shape, target.info.dtype) != (record.info.shape, record.info.dtype):
            raise HeaderError(f"{where}: alias of {shown(record.alias_of)}, which has another shape or dtype")


def _object(value: object, where: str, keys: set[str] | None) -> dict[str, Any]:
    if not isinstance(value, dict) or (keys is not None and not keys <= set(value)):
        need = "" if keys is None else f" with {', '.join(sorted(keys))}"
        raise HeaderError(f"{where}: expected an object{need}")
    return value


def _list(table: Mapping[str, Any], key: str, where: str) -> list[Any]:
    value = table[key]
    if not isinstance(value, list):
        raise HeaderError(f"{where}: {key} must be a list")
    return value


def _row_axes(info: TensorInfo, candidates: range, matrix: tuple[int, int]) -> int | None:
    """Return how many leading axes count an encoded tensor's rows, or None if its group's rows are none of it.

    The lookup and palette codecs count the first; Slot T did so in every file before rows were `hhtld.matrix`'s.
    """
    fits = [n for n in candidates if (math.prod(info.shape[:n]), math.prod(info.shape[n:])) == matrix and matrix[1]]
    return info.row_axes if info.row_axes in fits else next(iter(fits), None)


def _require_weight(where: str, dtype: DType) -> None:
    if not dtype.is_weight:
        raise HeaderError(f"{where}: dtype {dtype.name} cannot have been encoded")
