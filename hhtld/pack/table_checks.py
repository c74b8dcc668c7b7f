"""The table of a file: checked, because nothing that a file says can be trusted.

`read_table` checks types, sizes, references and aliases against the sections that the file has. A table that passes
can be decoded without another check of sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from hhtld.codecs import KEEP, codec, codec_ids
from hhtld.codecs.base import RecordCheck, check_basis
from hhtld.codecs.section_kinds import SECTION_KINDS, group_codecs
from hhtld.dtypes import dtype_named
from hhtld.errors import HeaderError, shown
from hhtld.gates import CosineSummary, Unreached
from hhtld.identity import REGIMES, SLOT_L_LANES, PaletteGroupKey
from hhtld.matrix import TensorInfo, checked_name
from hhtld.pack.table import GroupRecord, PackTable, TensorRecord
from hhtld.sizes import MAX_NBYTES, MAX_NESTING, checked_shape, is_deep

if TYPE_CHECKING:
    from hhtld.pack.section_interfaces import SectionReader

__all__ = ["read_table"]

_CODEC_KEYS = {
    "codec",
    "sections",
    "group",
    "slot_l_scale",
    "gates",
    "source_crc32",
    "regime_reason",
    "class_rows",
}  # an alias has none
_KEPT_KEYS = {"codec", "sections"}
_MAX_FLOAT32 = 3.4028234663852886e38
T = TypeVar("T")


def read_table(table: object, sections: SectionReader) -> PackTable:
    """Check a table against the sections that it names, and return it.

    Parameters
    ----------
    table : object
        What the JSON of the file says.
    sections : SectionReader

    Raises
    ------
    HeaderError
        If the table breaks a rule; the message names the rule, and the tensor or group that breaks it.
    """
    facts = _object(table, "table", {"profile", "groups", "tensors", "metadata", "source"})
    claims = _Claims(sections)
    groups = tuple(_group(number, item, claims) for number, item in enumerate(_list(facts, "groups")))
    files = _files(facts, claims)
    profile = facts["profile"]
    if not isinstance(profile, str):
        raise HeaderError("table: profile must be text")
    tensors = _tensors(facts, groups, claims)
    claims.check_complete()
    return PackTable(profile, groups, tensors, _metadata(facts), _source(facts), files)


class _Claims:
    """The sections of a file, each of which belongs to one group, tensor or side file."""

    def __init__(self, sections: SectionReader) -> None:
        self._sections = sections
        self._kinds = sections.kinds()
        self._claimed: set[int] = set()

    def claim(self, where: str, record: Mapping[str, Any], required: set[str], optional: set[str]) -> dict[str, int]:
        """Return a record's section numbers by kind, or raise `HeaderError` if they cannot be its own."""
        sections = _object(record.get("sections"), f"{where}: sections", None)
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

    def nbytes(self, sections: Mapping[str, int]) -> dict[str, int]:
        """Return the sizes of sections by kind."""
        return {kind: self._sections.nbytes(index) for kind, index in sections.items()}

    def check_complete(self) -> None:
        """Raise `HeaderError` if a section of a known kind belongs to nothing."""
        for index, kind in enumerate(self._kinds):
            if kind in SECTION_KINDS and index not in self._claimed:
                raise HeaderError(f"section {index} ({kind}) belongs to no tensor, group or file")


# ---- groups ----


def _group(number: int, item: object, claims: _Claims) -> GroupRecord:
    where = f"group {number}"
    record = _object(item, where, {"component", "role", "shape", "sections"})
    component, role = record["component"], record["role"]
    shape = checked_shape(record["shape"], where)
    if not isinstance(component, str) or not isinstance(role, str) or len(shape) != 2:
        raise HeaderError(f"{where}: needs a component, a role and a shape of two sizes")
    shared_kinds = {name for name, kind in SECTION_KINDS.items() if kind.in_group}
    sections = claims.claim(where, record, set(), shared_kinds)
    check = RecordCheck(where, claims.nbytes(sections), record, 0, shape[1])
    numbers: dict[str, Any] = {}
    for owner in group_codecs(sections, record):
        numbers |= codec(owner).check_group(check)
    if "basis" in sections:
        check_basis(check)
    regime = record.get("regime", "")
    if regime not in ("", *REGIMES) or ("regime" in record and not regime):
        raise HeaderError(f"{where}: regime must be {' or '.join(REGIMES)}, got {shown(str(regime), 40)}")
    return GroupRecord(PaletteGroupKey(component, role, (shape[0], shape[1]), regime), sections, numbers)


# ---- tensors ----


def _tensors(facts: Mapping[str, Any], groups: tuple[GroupRecord, ...], claims: _Claims) -> dict[str, TensorRecord]:
    tensors: dict[str, TensorRecord] = {}
    for item in _list(facts, "tensors"):
        record = _tensor(item, groups, claims)
        if tensors and record.name <= next(reversed(tensors)):
            raise HeaderError(f"table: tensor {shown(record.name)} is out of order or listed twice")
        tensors[record.name] = record
    for record in tensors.values():
        if record.alias_of is not None:
            _check_alias(record, tensors.get(record.alias_of))
    return tensors


def _check_alias(record: TensorRecord, target: TensorRecord | None) -> None:
    where = f"tensor {shown(record.name)}: alias of {shown(str(record.alias_of))}"
    if target is None or target.alias_of is not None:
        raise HeaderError(f"{where}, which holds no bytes")
    if (target.info.shape, target.info.dtype) != (record.info.shape, record.info.dtype):
        raise HeaderError(f"{where}, which has another shape or dtype")


def _tensor(item: object, groups: tuple[GroupRecord, ...], claims: _Claims) -> TensorRecord:
    record = _object(item, "tensor", {"name", "dtype", "shape"})
    info, where = _info(record)
    codec_keys = _CODEC_KEYS & set(record)
    if "alias_of" in record:
        if not isinstance(record["alias_of"], str) or codec_keys:
            raise HeaderError(f"{where}: an alias names another tensor and holds nothing itself")
        return TensorRecord(info, KEEP.id, alias_of=record["alias_of"])
    named = record.get("codec")
    if named == KEEP.id:
        if codec_keys - _KEPT_KEYS:
            raise HeaderError(f"{where}: a kept tensor has no {min(codec_keys - _KEPT_KEYS)}")
        return _kept(where, record, info, claims)
    if named not in codec_ids():
        raise HeaderError(f"{where}: unknown codec {shown(str(named), 40)}; known: {', '.join(codec_ids())}")
    return _encoded(where, record, info, str(named), groups, claims)


def _info(record: Mapping[str, Any]) -> tuple[TensorInfo, str]:
    """Return what a record says of its tensor before any codec, and what messages about it begin with."""
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
    return info, where


def _kept(where: str, record: Mapping[str, Any], info: TensorInfo, claims: _Claims) -> TensorRecord:
    sections = claims.claim(where, record, {"raw"}, set())
    RecordCheck(where, claims.nbytes(sections), record, info.n_rows, info.n_cols).size("raw", info.nbytes)
    return TensorRecord(info, KEEP.id, sections, unreached=_optional(Unreached.from_json, record, "unreached", where))


def _encoded(
    where: str,
    record: Mapping[str, Any],
    info: TensorInfo,
    named: str,
    groups: tuple[GroupRecord, ...],
    claims: _Claims,
) -> TensorRecord:
    number = record.get("group")
    if type(number) is not int or not 0 <= number < len(groups):
        raise HeaderError(f"{where}: group {number!r} does not exist; there are {len(groups)}")
    group, used = groups[number], codec(named)
    if not info.dtype.is_weight:
        raise HeaderError(f"{where}: dtype {info.dtype.name} cannot have been encoded")
    row_axes = _row_axes(info, used.row_axes(len(info.shape)), group.key.shape)
    if row_axes is None:
        raise HeaderError(f"{where}: shape {list(info.shape)} does not fit group {group.key}")
    info = replace(info, row_axes=row_axes)
    sections = claims.claim(where, record, set(used.required), set(used.optional))
    tensor_check = RecordCheck(where, claims.nbytes(sections), record, info.n_rows, info.n_cols)
    group_nbytes = claims.nbytes(group.sections)
    used.check_tensor(tensor_check, RecordCheck(f"group {number}", group_nbytes, group.numbers, *group.key.shape))
    slot_l_scale = _slot_l_scale(tensor_check, "basis" in group.sections, number)
    gates = _optional(CosineSummary.from_json, record, "gates", where)
    if gates is not None and gates.n_rows != info.n_rows:
        raise HeaderError(f"{where}: gates speak of {gates.n_rows} rows, the tensor has {info.n_rows}")
    crc = record.get("source_crc32")
    if crc is not None and (type(crc) is not int or not 0 <= crc < 2**32):
        raise HeaderError(f"{where}: source_crc32 must lie in 0..2^32 - 1")
    reason = record.get("regime_reason")
    if reason is not None and not isinstance(reason, str):
        raise HeaderError(f"{where}: regime_reason must be text")
    class_rows = tuple(record["class_rows"]) if "row_class" in sections else None  # which the codec has checked
    return TensorRecord(info, named, sections, number, slot_l_scale, gates, crc, reason, class_rows=class_rows)


def _row_axes(info: TensorInfo, candidates: range, matrix: tuple[int, int]) -> int | None:
    """Return how many leading axes count an encoded tensor's rows, or None if no number of them fits its group.

    The lookup and palette codecs count the first axis. So did the trellis codec in every file that is older than
    `hhtld.matrix`, whose rule is tried first.
    """
    fits = [n for n in candidates if (math.prod(info.shape[:n]), math.prod(info.shape[n:])) == matrix and matrix[1]]
    return info.row_axes if info.row_axes in fits else next(iter(fits), None)


def _slot_l_scale(check: RecordCheck, has_basis: bool, group_number: int) -> float | None:
    scale = check.numbers.get("slot_l_scale")
    if ("slot_l" in check.nbytes) != (scale is not None):
        raise HeaderError(f"{check.where}: slot_l and slot_l_scale come together")
    if scale is None:
        return None
    if not isinstance(scale, int | float) or isinstance(scale, bool) or not _is_float32(scale):
        raise HeaderError(f"{check.where}: slot_l_scale must be a positive finite float32, got {scale!r}")
    if not has_basis:
        raise HeaderError(f"{check.where}: slot_l without a basis in group {group_number}")
    check.size("slot_l", check.n_rows * SLOT_L_LANES)
    return float(scale)


def _is_float32(scale: float) -> bool:
    """Whether a number is positive, finite and exactly a float32."""
    return 0 < scale <= _MAX_FLOAT32 and float(np.float32(scale)) == scale


def _optional(read: Callable[[object], T], record: Mapping[str, Any], key: str, where: str) -> T | None:
    """Return what `read` makes of an entry that a record may lack."""
    if key not in record:
        return None
    try:
        return read(record[key])
    except ValueError as error:
        raise HeaderError(f"{where}: {error}") from None


# ---- what a table says beside groups and tensors ----


def _files(facts: Mapping[str, Any], claims: _Claims) -> dict[str, int]:
    if "files" not in facts:
        return {}
    from hhtld.storage.file_names import check_together, checked_file_name  # most packs have none

    files: dict[str, int] = {}
    for item in _list(facts, "files"):
        record = _object(item, "file", {"name", "section"})
        try:
            name = checked_file_name(record["name"])
        except ValueError as error:
            raise HeaderError(f"table: {error}") from None
        if files and name <= next(reversed(files)):
            raise HeaderError(f"table: file {shown(name)} is out of order or listed twice")
        claimed = claims.claim(f"file {shown(name)}", {"sections": {"file": record["section"]}}, {"file"}, set())
        files[name] = claimed["file"]
    try:
        check_together(files)
    except ValueError as error:
        raise HeaderError(f"table: {error}") from None
    return files


def _metadata(facts: Mapping[str, Any]) -> dict[str, str]:
    metadata = _object(facts["metadata"], "metadata", None)
    for key, text in metadata.items():
        if not isinstance(text, str):
            raise HeaderError(f"metadata {shown(key)}: expected text, got {type(text).__name__}")
    return metadata


def _source(facts: Mapping[str, Any]) -> dict[str, Any]:
    source = _object(facts["source"], "source", None)
    if is_deep(source):
        raise HeaderError(f"source: nested deeper than {MAX_NESTING}")
    return source


def _object(value: object, where: str, keys: set[str] | None) -> dict[str, Any]:
    if not isinstance(value, dict) or (keys is not None and not keys <= set(value)):
        need = "" if keys is None else f" with {', '.join(sorted(keys))}"
        raise HeaderError(f"{where}: expected an object{need}")
    return value


def _list(facts: Mapping[str, Any], key: str) -> list[Any]:
    value = facts[key]
    if not isinstance(value, list):
        raise HeaderError(f"table: {key} must be a list")
    return value
