"""The .hhtld container: every malformation by name, damage of every bit, reading rows, writing whole files."""

from __future__ import annotations

import errno
import gc
import json
import os
import stat
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray

import hhtld
from hhtld.commands.verify import verify
from hhtld.dtypes import DTYPES
from hhtld.errors import (
    BadMagicError,
    ChecksumError,
    FormatError,
    HeaderError,
    NonFiniteError,
    OutputError,
    TruncatedError,
    UnsupportedVersionError,
)
from hhtld.formats.hhtld import save_pack
from hhtld.gates import CosineSummary
from hhtld.identity import PaletteGroupKey
from hhtld.matrix import TensorInfo
from hhtld.pack.container import ContainerReader
from hhtld.pack.container_writer import ContainerWriter
from hhtld.pack.opening import open_pack
from hhtld.pack.pack import HhtldPack
from hhtld.pack.table import GroupRecord, PackTable, TensorRecord
from hhtld.storage import descriptors, run_reads
from hhtld.storage.atomic import replacing

CODES = {"raw": 1, "palette": 2, "fisher_z": 3, "entries": 4, "palette_f32": 5, "twigs": 6, "basis": 7, "slot_l": 8}
SLOT_T = {"codebook": 9, "slot_v": 10, "slot_t": 11, "centroids": 12, "column_scale": 13}
SLOT_T |= {"codebook_2": 14, "slot_v_2": 15, "slot_t_2": 16}
CODES |= SLOT_T | {"row_class": 18}
ABSENT = ...  # what is changed to this is left out


# --- a small pack, and files that are nearly it -------------------------------------------------


def bf16(*values: float) -> bytes:
    return np.array(values, ml_dtypes.bfloat16).tobytes()


def small_sections() -> list[tuple[str, bytes]]:
    """Sections 0..13 of the small pack."""
    basis = struct.pack("<II2f", 2, 20, 3.0, 1.0) + bf16(*np.linspace(-1, 1, 40))
    return [
        ("palette", np.arange(-20, 31, dtype="<i2").tobytes()),  # k = 3
        ("fisher_z", struct.pack("<ff", -0.5, 1.0) + bytes([127, 0, 3, 0, 127, 9, 3, 9, 128])),
        ("basis", basis),
        ("entries", struct.pack("<12H", *(word for row in range(6) for word in (row % 3 << 2 | 2, 0x3F80)))),
        ("slot_l", np.arange(-24, 24, dtype=np.int8).tobytes()),
        ("palette_f32", bf16(1, 2, 3, -1, -2, -3)),  # k = 2
        ("twigs", bytes([0, 1, 1, 0])),
        ("raw", np.array([1.5, -2, 3], "<f4").tobytes()),
        ("raw", b""),
        ("raw", np.array(-7, "<i8").tobytes()),
        ("raw", b"\x21\x43\x65"),
        ("raw", bf16(1, 2, 3, 4, 5, 6)),
    ]


def info(name: str, dtype: str, *shape: int) -> TensorInfo:
    return TensorInfo(name, DTYPES[dtype], shape)


def small_table() -> PackTable:
    gates = CosineSummary(6, (0.5,) * 21, 2)
    own = {"entries": 3, "slot_l": 4}
    records = [
        TensorRecord(info("a.d", "F32", 6, 20), "hhtl_d", own, 0, slot_l_scale=0.125, gates=gates),
        TensorRecord(info("b.f", "BF16", 4, 3), "hhtl_f32", {"palette_f32": 5, "twigs": 6}, 1),
        TensorRecord(info("c.f32", "F32", 3), "keep", {"raw": 7}),
        TensorRecord(info("d.alias", "F32", 6, 20), "keep", alias_of="a.d"),
        TensorRecord(info("e.empty", "F16", 0, 4), "keep", {"raw": 8}),
        TensorRecord(info("f.scalar", "I64"), "keep", {"raw": 9}),
        TensorRecord(info("g.f4", "F4", 2, 3), "keep", {"raw": 10}),
        TensorRecord(info("h.bf16", "BF16", 3, 2, 1), "keep", {"raw": 11}),
    ]
    groups = (
        GroupRecord(PaletteGroupKey("other", "embed", (6, 20)), {"palette": 0, "fisher_z": 1, "basis": 2}),
        GroupRecord(PaletteGroupKey("other", "up", (4, 3)), {}),
    )
    return PackTable("lookup", groups, {record.name: record for record in records}, {"format": "pt"}, {"config": {}})


@dataclass
class Draft:
    """A file to be built, its checksums made right whatever else is wrong."""

    sections: list[tuple[str, bytes]] = field(default_factory=small_sections)
    table: dict[str, Any] = field(default_factory=lambda: small_table().to_json())
    header: dict[str, Any] = field(default_factory=dict)
    trailer: dict[str, Any] = field(default_factory=dict)
    records: dict[int, dict[str, Any]] = field(default_factory=dict)
    rewrite: Callable[[bytes], bytes] = bytes
    dirty: int | None = None  # section after which the padding is not zero
    gap: int | None = None  # section before which 64 more bytes of padding lie
    after: Callable[[bytes], bytes] = bytes

    def tensor(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(t for t in self.table["tensors"] if t["name"] == name)
        return found

    def build(self) -> bytes:
        out = bytearray(64)
        records = []
        for number, (kind, data) in enumerate(self.sections):
            out += bytes(-len(out) % 64 + (64 if number == self.gap else 0))
            head = struct.pack("<IIQ", CODES.get(kind, 99), number, len(data))
            record = {"kind": kind, "offset": len(out), "nbytes": len(data), "crc32": zlib.crc32(head + data)}
            record |= self.records.get(number, {})
            records.append({key: value for key, value in record.items() if value is not ABSENT})
            out += data
            if number == self.dirty:
                out += b"\x01"
        out += bytes(-len(out) % 64)
        table = self.table if "sections" in self.table else self.table | {"sections": records}
        table = {key: value for key, value in table.items() if value is not ABSENT}
        text = self.rewrite(json.dumps(table, sort_keys=True, separators=(",", ":")).encode())
        offset = len(out)
        out += text + bytes(-len(text) % 64)
        return self.after(self._header() + bytes(out[64:]) + self._trailer(offset, text, len(out) + 64))

    def _header(self) -> bytes:
        kinds = {kind for kind, _ in self.sections}
        fields: dict[str, Any] = {
            "magic": b"\x89HHTLD\r\n",
            "major": 2 if {"basis", "slot_l"} & kinds else 1,
            "minor": 0,
        }
        fields |= {"length": 64, "required": 1 if SLOT_T.keys() & kinds else 0, "optional": 0, "reserved": bytes(28)}
        fields |= self.header
        head = struct.pack("<8sHHIQQ28s", *(value for key, value in fields.items() if key != "crc"))
        return head + struct.pack("<I", fields.get("crc", zlib.crc32(head)))

    def _trailer(self, offset: int, text: bytes, end: int) -> bytes:
        fields = {"offset": offset, "nbytes": len(text), "end": end, "reserved": bytes(24)}
        fields |= {"magic": b"\x89HHTLE\r\n"} | self.trailer
        place = struct.pack("<QQ", fields["offset"], fields["nbytes"])
        place += struct.pack("<I", fields.get("table_crc", zlib.crc32(place + text)))
        rest = struct.pack("<Q24s8s", fields["end"], fields["reserved"], fields["magic"])
        crc = fields.get("crc", zlib.crc32(place + bytes(4) + rest))
        return place + struct.pack("<I", crc) + rest


Change = Callable[[Draft], None]


def header(**fields: Any) -> Change:
    return lambda draft: draft.header.update(fields)


def trailer(**fields: Any) -> Change:
    return lambda draft: draft.trailer.update(fields)


def record(number: int, /, **fields: Any) -> Change:
    return lambda draft: draft.records.update({number: fields})


def table(**fields: Any) -> Change:
    return lambda draft: draft.table.update(fields)


def tensor(name: str, /, **fields: Any) -> Change:
    def change(draft: Draft) -> None:
        found = draft.tensor(name)
        found.update(fields)
        for key in [key for key, value in found.items() if value is ABSENT]:
            del found[key]

    return change


def group(number: int, /, **fields: Any) -> Change:
    def change(draft: Draft) -> None:
        found = draft.table["groups"][number]
        found.update(fields)
        for key in [key for key, value in found.items() if value is ABSENT]:
            del found[key]

    return change


def section(number: int, data: bytes | Callable[[bytes], bytes], kind: str | None = None) -> Change:
    def change(draft: Draft) -> None:
        old_kind, old = draft.sections[number]
        draft.sections[number] = (kind or old_kind, data(old) if callable(data) else data)

    return change


def text(old: bytes, new: bytes) -> Change:
    def change(draft: Draft) -> None:
        def rewrite(given: bytes) -> bytes:
            assert old in given
            return given.replace(old, new, 1)

        draft.rewrite = rewrite

    return change


def whole_text(make: Callable[[bytes], bytes]) -> Change:
    return lambda draft: setattr(draft, "rewrite", make)


def whole_file(make: Callable[[bytes], bytes]) -> Change:
    return lambda draft: setattr(draft, "after", make)


def both(*changes: Change) -> Change:
    def change(draft: Draft) -> None:
        for one in changes:
            one(draft)

    return change


def place(**fields: Any) -> Change:
    return lambda draft: [setattr(draft, key, value) for key, value in fields.items()] and None


def reorder(draft: Draft) -> None:
    draft.table["tensors"].reverse()


def twice(draft: Draft) -> None:
    draft.table["tensors"].insert(1, dict(draft.tensor("a.d")))


def swap_alike(data: bytes) -> bytes:
    """Exchange two raw sections of one length together with their checksums, and repair everything above."""
    draft = Draft()
    draft.sections.append(("raw", np.array(9, "<i8").tobytes()))
    draft.table["tensors"].append({"name": "z", "dtype": "I64", "shape": [], "codec": "keep", "sections": {"raw": 12}})
    plain = draft.build()
    offset = int.from_bytes(plain[-64:-56], "little")
    crcs = [r["crc32"] for r in json.loads(plain[offset:-64].rstrip(b"\0"))["sections"]]
    draft.sections[9], draft.sections[12] = draft.sections[12], draft.sections[9]
    draft.records = {9: {"crc32": crcs[12]}, 12: {"crc32": crcs[9]}}
    return draft.build()


TWIG_3 = struct.pack("<H", 3 << 2)
HUGE = 2**63

MALFORMED: dict[str, tuple[Change, type[FormatError], str]] = {
    # file
    "empty file": (whole_file(lambda b: b""), TruncatedError, "0 bytes"),
    "only the magic": (whole_file(lambda b: b[:8]), TruncatedError, "too few"),
    "header alone": (whole_file(lambda b: b[:64]), TruncatedError, "too few"),
    "no trailer": (whole_file(lambda b: b[:-64]), TruncatedError, "no trailer"),
    "one byte appended": (whole_file(lambda b: b + b"\0"), TruncatedError, "no trailer"),
    "64 zeros appended": (whole_file(lambda b: b + bytes(64)), TruncatedError, "no trailer"),
    "trailer twice": (whole_file(lambda b: b + b[-64:]), TruncatedError, "declares"),
    "two files in one": (whole_file(lambda b: b + b), TruncatedError, "declares"),
    "a byte missing in the middle": (whole_file(lambda b: b[:200] + b[201:]), TruncatedError, "declares"),
    "hole of zeros": (whole_file(lambda b: b[:128] + bytes(64) + b[128:]), TruncatedError, "declares"),
    # header
    "other magic": (header(magic=b"PK\x03\x04aaaa"), BadMagicError, "not a .hhtld file"),
    "line ends translated": (header(magic=b"\x89HHTLD\n\x02"), BadMagicError, "text mode"),
    "high bit stripped": (header(magic=b"\x09HHTLD\r\n"), BadMagicError, "text mode"),
    "byte-swapped magic": (header(magic=b"\n\rDLTHH\x89"), BadMagicError, "not a .hhtld file"),
    "header checksum": (header(crc=0), ChecksumError, "header"),
    "version 0": (header(major=0), UnsupportedVersionError, r"version 0\.0.*versions 1 and 2"),
    "version 3": (header(major=3, minor=1), UnsupportedVersionError, r"version 3\.1.*versions 1 and 2"),
    "version 65535": (header(major=65535), UnsupportedVersionError, r"version 65535\.0"),
    "version 1 with sections of 2": (header(major=1), HeaderError, "version 1 file holds sections of version 2"),
    "required bit 30": (header(required=1 << 30), UnsupportedVersionError, "feature bit 30"),
    "required bit 41": (header(required=1 << 41), UnsupportedVersionError, "feature bit 41"),
    "header length 0": (header(length=0), HeaderError, "header length 0"),
    "header length 128": (header(length=128), HeaderError, "header length 128"),
    "reserved header byte": (header(reserved=bytes(27) + b"\1"), HeaderError, "reserved"),
    # trailer
    "end magic": (trailer(magic=b"\x89HHTLD\r\n"), TruncatedError, "no trailer"),
    "trailer checksum": (trailer(crc=1), ChecksumError, "trailer"),
    "reserved trailer byte": (trailer(reserved=b"\1" + bytes(23)), ChecksumError, "trailer"),
    "file length wrong": (trailer(end=64), TruncatedError, "declares 64"),
    "file length 2^64-1": (trailer(end=2**64 - 1), TruncatedError, "declares"),
    "table checksum": (trailer(table_crc=7), ChecksumError, "table"),
    **{
        f"table offset {name}": (trailer(offset=value), HeaderError, "table")
        for name, value in {
            "0": 0,
            "1": 1,
            "63": 63,
            "in the header": 32,
            "64": 64,
            "2^63": HUGE,
            "2^64-1": 2**64 - 1,
            "2^64-64": 2**64 - 64,
        }.items()
    },
    **{
        f"table length {name}": (trailer(nbytes=value), HeaderError, "table")
        for name, value in {"0": 0, "1": 1, "100,000,001": 100_000_001, "2^63": HUGE, "2^64-1": 2**64 - 1}.items()
    },
    "table offset and length wrap": (trailer(offset=2**64 - 64, nbytes=128), HeaderError, "table"),
    "table a little longer": (trailer(nbytes=1), HeaderError, "table"),
    # table text
    "no JSON": (whole_text(lambda t: b"x" * len(t)), HeaderError, "not JSON"),
    "empty table": (whole_text(lambda t: b""), HeaderError, "not JSON"),
    "half a table": (whole_text(lambda t: t[: len(t) // 2]), HeaderError, "not JSON"),
    "table twice": (whole_text(lambda t: t + t), HeaderError, "not JSON"),
    "a list": (whole_text(lambda t: b"[" + t + b"]"), HeaderError, "not an object"),
    "null": (whole_text(lambda t: b"null"), HeaderError, "not an object"),
    "byte order mark": (whole_text(lambda t: b"\xef\xbb\xbf" + t), HeaderError, "not JSON"),
    "UTF-16": (whole_text(lambda t: t.decode().encode("utf-16")), HeaderError, "not JSON"),
    "UTF-8 beyond ASCII": (text(b'"pt"', '"p\u00e9"'.encode()), HeaderError, "not JSON"),
    "invalid UTF-8": (text(b'"pt"', b'"\xff\xfe"'), HeaderError, "not JSON"),
    "NUL in the text": (text(b'"pt"', b'"p\0t"'), HeaderError, "not JSON"),
    "lone surrogate in a name": (text(b'"h.bf16"', b'"h\\ud800"'), HeaderError, "not JSON"),
    "lone surrogate in metadata": (text(b'"pt"', b'"\\udfff"'), HeaderError, "not JSON"),
    "repeated key": (text(b'"format":"pt"', b'"format":"pt","format":"pt"'), HeaderError, "repeats a key"),
    "repeated key of the table": (text(b'"profile"', b'"profile":"x","profile"'), HeaderError, "repeats a key"),
    "NaN": (text(b'"config":{}', b'"config":NaN'), HeaderError, "holds NaN"),
    "infinity": (text(b'"config":{}', b'"config":-Infinity'), HeaderError, "Infinity"),
    "1e400": (text(b'"config":{}', b'"config":1e400'), HeaderError, "1e400"),
    "integer of 4301 digits": (text(b'"config":{}', b'"config":' + b"1" * 4301), HeaderError, "no float64"),
    "integer of 400 digits": (text(b'"config":{}', b'"config":' + b"1" * 400), HeaderError, "no float64"),
    "negative integer of 400 digits in an ignored key": (
        text(b'"config":{}', b'"config":{},"x":-' + b"1" * 400),
        HeaderError,
        "no float64",
    ),
    "integer of 310 digits": (text(b'"config":{}', b'"config":' + b"1" * 310), HeaderError, "no float64"),
    "nested 100,000 deep": (
        text(b'"config":{}', b'"config":' + b"[" * 100_000 + b"]" * 100_000),
        HeaderError,
        "not JSON",
    ),
    "source nested 65 deep": (
        text(b'"config":{}', b'"config":' + b"[" * 64 + b"]" * 64),
        HeaderError,
        "source: nested",
    ),
    # table keys
    **{
        f"no {key}": (table(**{key: ABSENT}), HeaderError, key)
        for key in ("groups", "metadata", "profile", "source", "tensors")
    },
    "no sections": (table(sections=None), HeaderError, "sections"),
    "tensors an object": (table(tensors={}), HeaderError, "must be a list"),
    "profile a number": (table(profile=1), HeaderError, "profile"),
    "metadata a list": (table(metadata=[]), HeaderError, "metadata"),
    "metadata of numbers": (table(metadata={"a": 1}), HeaderError, "metadata 'a'"),
    "source text": (table(source="x"), HeaderError, "source"),
    # sections
    "section unaligned": (record(1, offset=190), HeaderError, "section 1.*offset 190"),
    "section in the header": (record(0, offset=0), HeaderError, "section 0"),
    "section on another": (record(1, offset=64), HeaderError, "section 1"),
    "section beyond the file": (record(1, offset=1 << 40), HeaderError, "section 1"),
    "section offset negative": (record(0, offset=-64), HeaderError, "wrong type"),
    "section offset text": (record(0, offset="64"), HeaderError, "wrong type"),
    "section offset a float": (record(0, offset=64.0), HeaderError, "wrong type"),
    "section offset true": (record(0, offset=True), HeaderError, "wrong type"),
    "section offset of 4000 digits": (record(0, offset=10**3999), HeaderError, "no float64"),
    "section longer": (record(0, nbytes=65_000), HeaderError, "section 0.*runs into the table"),
    "section shorter": (record(0, nbytes=34), HeaderError, "section 1"),
    "section of 2^64": (record(0, nbytes=2**64), HeaderError, "section 0"),
    "section of negative length": (record(0, nbytes=-1), HeaderError, "wrong type"),
    "section kind a number": (record(0, kind=2), HeaderError, "wrong type"),
    "section without a checksum": (record(0, crc32=ABSENT), HeaderError, "section 0 needs"),
    "section checksum": (record(0, crc32=1), ChecksumError, "section 0"),
    "section checksum zero": (record(7, crc32=0), ChecksumError, "section 7"),
    "section checksum + 2^32": (record(7, crc32=1 << 32), HeaderError, "section 7.*more than 32 bits"),
    "two alike swapped with checksums": (whole_file(swap_alike), ChecksumError, "section 9"),
    "hole between sections": (place(gap=3), HeaderError, "section 3"),
    "dirty padding": (place(dirty=0), ChecksumError, "padding"),
    "dirty padding before the table": (place(dirty=11), ChecksumError, "padding"),
    "section nobody has": (lambda d: d.sections.append(("raw", b"")), HeaderError, "belongs to no tensor"),
    "palette nobody has": (lambda d: d.sections.append(("palette", bytes(34))), HeaderError, "belongs to no tensor"),
    # tensors
    "tensors out of order": (reorder, HeaderError, "out of order"),
    "tensor twice": (twice, HeaderError, "already belongs|listed twice"),
    "tensor a list": (lambda d: d.table["tensors"].append([]), HeaderError, "tensor: expected an object"),
    "tensor without a name": (tensor("h.bf16", name=ABSENT), HeaderError, "name"),
    "name a number": (tensor("h.bf16", name=5), HeaderError, "names must be str"),
    "name of 65,536 bytes": (tensor("h.bf16", name="z" * 65_536), HeaderError, "65536 bytes"),
    "name __metadata__": (tensor("a.d", name="__metadata__"), HeaderError, "not a tensor name"),
    "unknown dtype": (tensor("c.f32", dtype="F12"), HeaderError, "unknown dtype 'F12'"),
    "dtype a number": (tensor("c.f32", dtype=7), HeaderError, "unknown dtype"),
    "dtype of another size": (tensor("c.f32", dtype="F16"), HeaderError, "raw is 12 bytes long, expected 6"),
    "unknown codec": (tensor("c.f32", codec="zstd"), HeaderError, "unknown codec 'zstd'"),
    "codec a module": (tensor("c.f32", codec="os.system"), HeaderError, "unknown codec"),
    "no codec": (tensor("c.f32", codec=ABSENT), HeaderError, "unknown codec"),
    "shard a number": (tensor("c.f32", shard=1), HeaderError, "shard"),
    "shape a number": (tensor("c.f32", shape=3), HeaderError, "shape"),
    "shape of floats": (tensor("c.f32", shape=[3.0]), HeaderError, "integer"),
    "shape true": (tensor("c.f32", shape=[True]), HeaderError, "integer"),
    "negative size": (tensor("c.f32", shape=[-3]), HeaderError, r"0\.\.2\^48"),
    "size 2^48 + 1": (tensor("c.f32", shape=[2**48 + 1]), HeaderError, "2\\^48"),
    "33 dimensions": (tensor("c.f32", shape=[3] + [1] * 32), HeaderError, "32"),
    "255 dimensions": (tensor("c.f32", shape=[1] * 255), HeaderError, "32"),
    "size of 4000 digits": (tensor("c.f32", shape=[10**3999]), HeaderError, "no float64"),
    "empty beyond any array of float32": (
        tensor("e.empty", dtype="F8_E5M2", shape=[2**47, 2**15, 0]),
        HeaderError,
        "too large",
    ),
    "product beyond 2^63": (tensor("c.f32", shape=[2**48, 2**48]), HeaderError, "2\\^63"),
    "empty beyond any array": (tensor("e.empty", shape=[2**48, 2**48, 0]), HeaderError, r"2\^63"),
    "shape of another size": (tensor("c.f32", shape=[4]), HeaderError, "raw is 12 bytes long, expected 16"),
    "elements not whole bytes": (tensor("g.f4", shape=[5]), HeaderError, "whole bytes"),
    "kept without its section": (tensor("c.f32", sections={}), HeaderError, r"needs sections \['raw'\]"),
    "kept without sections": (tensor("c.f32", sections=ABSENT), HeaderError, "sections"),
    "kept with twigs": (tensor("c.f32", sections={"raw": 7, "twigs": 6}), HeaderError, "needs sections"),
    "kept with a group": (tensor("c.f32", group=0), HeaderError, "kept tensor has no group"),
    "kept with a scale": (tensor("c.f32", slot_l_scale=1.0), HeaderError, "kept tensor has no slot_l_scale"),
    "section number 99": (tensor("c.f32", sections={"raw": 99}), HeaderError, "section 99 does not exist"),
    "section number -1": (tensor("c.f32", sections={"raw": -1}), HeaderError, "does not exist"),
    "section number text": (tensor("c.f32", sections={"raw": "7"}), HeaderError, "does not exist"),
    "section number true": (tensor("c.f32", sections={"raw": True}), HeaderError, "does not exist"),
    "section of another kind": (tensor("c.f32", sections={"raw": 6}), HeaderError, "holds twigs, not raw"),
    "section of two tensors": (tensor("f.scalar", sections={"raw": 7}), HeaderError, "already belongs"),
    # aliases
    "alias of nothing": (tensor("d.alias", alias_of="zzz"), HeaderError, "holds no bytes"),
    "alias of itself": (tensor("d.alias", alias_of="d.alias"), HeaderError, "holds no bytes"),
    "alias of an alias": (
        tensor(
            "a.d", alias_of="d.alias", codec=ABSENT, sections=ABSENT, group=ABSENT, slot_l_scale=ABSENT, gates=ABSENT
        ),
        HeaderError,
        "holds no bytes|belongs to no",
    ),
    "alias of another shape": (tensor("d.alias", shape=[20, 6]), HeaderError, "another shape or dtype"),
    "alias of another dtype": (tensor("d.alias", dtype="BF16"), HeaderError, "another shape or dtype"),
    "alias a number": (tensor("d.alias", alias_of=1), HeaderError, "alias"),
    "alias with a codec": (tensor("d.alias", codec="keep"), HeaderError, "alias"),
    "alias with gates": (tensor("d.alias", gates={}), HeaderError, "alias"),
    # encoded tensors
    "no group": (tensor("a.d", group=ABSENT), HeaderError, "group None does not exist"),
    "group 2": (tensor("a.d", group=2), HeaderError, "group 2 does not exist"),
    "group -1": (tensor("a.d", group=-1), HeaderError, "group -1 does not exist"),
    "group of another width": (tensor("a.d", group=1), HeaderError, "does not fit group"),
    "encoded integers": (tensor("a.d", dtype="I32"), HeaderError, "I32 cannot have been encoded"),
    "encoded without axes": (tensor("a.d", shape=[]), HeaderError, "does not fit group"),
    "encoded of one axis": (tensor("a.d", shape=[120]), HeaderError, "does not fit group"),
    "encoded of no columns": (both(tensor("b.f", shape=[4, 0]), group(1, shape=[4, 0])), HeaderError, "does not fit"),
    "entries too short": (section(3, lambda b: b[:-4]), HeaderError, "entries is 20 bytes long, expected 24"),
    "entries empty": (section(3, b""), HeaderError, "entries is 0 bytes"),
    "reserved bit of Slot D": (section(3, lambda b: b"\1" + b[1:]), HeaderError, "reserved bit .* row 0"),
    "twig beyond the palette": (section(3, lambda b: b[:8] + TWIG_3 + b[10:]), HeaderError, "row 2 has twig 3"),
    "no entries": (tensor("a.d", sections={"slot_l": 4}), HeaderError, "needs sections"),
    "scale without Slot L": (tensor("a.d", sections={"entries": 3}), HeaderError, "come together"),
    "Slot L without a scale": (tensor("a.d", slot_l_scale=ABSENT), HeaderError, "come together"),
    "Slot L too short": (section(4, lambda b: b[:-8]), HeaderError, "slot_l is 40 bytes long, expected 48"),
    "Slot L without a basis": (group(0, sections={"palette": 0, "fisher_z": 1}), HeaderError, "without a basis"),
    **{
        f"scale {value!r}": (tensor("a.d", slot_l_scale=value), HeaderError, "slot_l_scale")
        for value in (0, -0.5, 0.1, 1e-60, 3.5e38, 10**300, "1", True, [])
    },
    "twigs too long": (section(6, lambda b: b + b"\0"), HeaderError, "twigs is 5 bytes long, expected 4"),
    "twig beyond palette_f32": (section(6, b"\0\1\2\0"), HeaderError, "row 2 has twig 2"),
    "palette_f32 empty": (section(5, b""), HeaderError, "palette_f32 must hold"),
    "palette_f32 of 257 rows": (section(5, bytes(257 * 6)), HeaderError, "palette_f32 must hold"),
    "palette_f32 cut": (section(5, lambda b: b[:-1]), HeaderError, "palette_f32 must hold"),
    "palette_f32 NaN": (section(5, lambda b: b[:-2] + b"\xc0\x7f"), HeaderError, "finite"),
    "palette_f32 infinite": (section(5, lambda b: b[:-2] + b"\x80\xff"), HeaderError, "finite"),
    "hhtl_d in a group without palette": (
        both(tensor("b.f", codec="hhtl_d", sections={"entries": 6}), section(6, bytes(16), "entries")),
        HeaderError,
        "no palette",
    ),
    **{
        f"checksum of the source {value!r}": (tensor("a.d", source_crc32=value), HeaderError, "source_crc32")
        for value in (-1, 2**32, 1.5, True, "1", [])
    },
    "kept with a checksum of the source": (tensor("c.f32", source_crc32=1), HeaderError, "kept tensor has no source"),
    "alias with a checksum of the source": (tensor("d.alias", source_crc32=1), HeaderError, "alias"),
    # groups
    "group a list": (lambda d: d.table["groups"].append([]), HeaderError, "group 2"),
    "group without a role": (group(0, role=ABSENT), HeaderError, "role"),
    "group of three axes": (group(0, shape=[6, 20, 1]), HeaderError, "two sizes"),
    "group with entries": (group(1, sections={"entries": 3}), HeaderError, "needs sections"),
    "palette empty": (section(0, b""), HeaderError, "palette must hold"),
    "palette of 257 entries": (section(0, bytes(34 * 257)), HeaderError, "palette must hold"),
    "palette cut": (section(0, lambda b: b[:-1]), HeaderError, "palette must hold"),
    "palette without fisher_z": (group(0, sections={"palette": 0, "basis": 2}), HeaderError, "fisher_z"),
    "fisher_z without palette": (group(0, sections={"fisher_z": 1, "basis": 2}), HeaderError, "without a palette"),
    "fisher_z of another k": (section(1, lambda b: b + b"\0"), HeaderError, "fisher_z is 18 bytes long, expected 17"),
    **{
        f"Fisher z {low} + {span}": (
            section(1, lambda b, low=low, span=span: struct.pack("<ff", low, span) + b[8:]),  # type: ignore[misc]  # defaults bind the loop
            HeaderError,
            "Fisher z",
        )
        for low, span in ((np.nan, 1), (np.inf, 1), (0, 0), (0, -1), (0, np.nan), (0, np.inf))
    },
    "basis of another width": (section(2, lambda b: b[:-2]), HeaderError, "basis of 94 bytes"),
    "basis of no vectors": (section(2, struct.pack("<II", 0, 20)), HeaderError, "basis of 8 bytes"),
    "basis says another width": (section(2, lambda b: b[:4] + b"\x13" + b[5:]), HeaderError, "basis"),
    "basis says 3 vectors": (section(2, lambda b: b"\3" + b[1:]), HeaderError, "basis"),
    "basis says 9 vectors": (section(2, struct.pack("<II", 9, 20) + bytes(9 * 44)), HeaderError, "basis"),
    "basis NaN": (section(2, lambda b: b[:-2] + b"\xc0\x7f"), HeaderError, "finite"),
    "singular value infinite": (
        section(2, lambda b: b[:8] + struct.pack("<f", np.inf) + b[12:]),
        HeaderError,
        "finite",
    ),
    # gates
    "gates a list": (tensor("a.d", gates=[]), HeaderError, "gates"),
    "gates of other rows": (tensor("a.d", gates=CosineSummary(7, (0.5,) * 21, 0).to_json()), HeaderError, "7 rows"),
    "gates of 20 quantiles": (tensor("a.d", gates=CosineSummary(6, (0.5,) * 20, 0).to_json()), HeaderError, "21"),
    "gates beyond 1": (tensor("a.d", gates=CosineSummary(6, (1.5,) * 21, 0).to_json()), HeaderError, "cosine"),
    "worst row 6": (tensor("a.d", gates=CosineSummary(6, (0.5,) * 21, 6).to_json()), HeaderError, "row"),
}


def read_all(path: Path, *, mmap: bool = False, budget: int = 1 << 30) -> dict[str, NDArray[Any]]:
    """Check and decode everything a file holds."""
    with open_pack(path, mmap=mmap, budget=budget) as pack:
        assert isinstance(pack.sections, ContainerReader)
        pack.sections.verify()
        for name in pack:
            pack.get_tensor(name, "source")
        return {name: pack.get_tensor(name).copy() for name in pack}


def drafted(path: Path, *changes: Change) -> Path:
    """Write the small pack, changed."""
    draft = Draft()
    for change in changes:
        change(draft)
    path.write_bytes(draft.build())
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """The small pack, as the writer writes it."""
    path = tmp_path / "small.hhtld"
    with replacing(path) as file:
        writer = ContainerWriter(file)
        for kind, data in small_sections():
            writer.add(kind, len(data), [data])
        writer.finish(small_table().to_json())
    return path


# --- malformed and damaged files ------------------------------------------------------------------


def test_draft_is_what_the_writer_writes(small: Path, tmp_path: Path) -> None:
    assert Draft().build() == small.read_bytes()
    assert sorted(read_all(small)) == [t["name"] for t in Draft().table["tensors"]]


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("case", MALFORMED)
def test_malformed(case: str, mmap: bool, tmp_path: Path) -> None:
    change, error, message = MALFORMED[case]
    path = drafted(tmp_path / "bad.hhtld", change)
    with pytest.raises(error, match=message) as caught:
        read_all(path, mmap=mmap)
    assert type(caught.value) is error
    assert len(str(caught.value)) < 8000


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        ("fisher_z", struct.pack("<ff", 0, -1) + bytes(1), "Fisher z"),
        ("basis", struct.pack("<IIf", 1, 3, 1) + bf16(1, np.nan, 0), "finite"),
        ("basis", struct.pack("<IIf", 1, 2, 1) + bf16(1, 0, 0), "basis"),
        ("centroids", bf16(1, np.inf, 0), "centroids must be finite"),
    ],
)
def test_verify_reads_groups_that_no_tensor_names(kind: str, data: bytes, message: str, tmp_path: Path) -> None:
    def change(draft: Draft) -> None:
        own: dict[str, Any] = {"component": "o", "role": "r", "shape": [1, 3]}
        parts = {kind: data}
        if kind == "fisher_z":
            parts = {"palette": bytes(34)} | parts
        if kind == "centroids":
            parts, own, draft.header = {"codebook": bytes(256)} | parts, own | {"rate": 16, "seed": 0}, {"required": 1}
        own["sections"] = {}
        for name, content in parts.items():
            own["sections"][name] = len(draft.sections)
            draft.sections.append((name, content))
        draft.table["groups"].append(own)

    path = drafted(tmp_path / "group.hhtld", change)
    read_all(path)
    with pytest.raises(HeaderError, match=message) as caught:
        verify(path)
    assert str(path) in str(caught.value)


def test_a_group_of_any_width_is_verified_without_its_width(tmp_path: Path) -> None:
    def change(draft: Draft) -> None:
        own = {"component": "o", "role": "r", "shape": [1, 1 << 47], "rate": 16, "seed": 0}
        draft.table["groups"].append(own | {"sections": {"codebook": len(draft.sections)}})
        draft.sections.append(("codebook", bytes(256)))
        draft.header = {"required": 1}

    assert verify(drafted(tmp_path / "wide.hhtld", change))


def test_every_truncation(small: Path) -> None:
    for length in range(small.stat().st_size - 1, -1, -1):
        os.truncate(small, length)
        with pytest.raises(FormatError):
            read_all(small)


@pytest.mark.parametrize("bits", ["one a byte", pytest.param("all", marks=pytest.mark.exhaustive)])
def test_every_flipped_bit(small: Path, bits: str) -> None:
    data = small.read_bytes()
    missed = []
    with small.open("r+b", buffering=0) as file:
        for offset, byte in enumerate(data):
            for bit in range(8) if bits == "all" else (offset * 5 % 8,):
                file.seek(offset)
                file.write(bytes([byte ^ 1 << bit]))
                try:
                    read_all(small)
                except FormatError:
                    continue
                missed.append((offset, bit))
            file.seek(offset)
            file.write(bytes([byte]))
    assert missed == []


@pytest.mark.parametrize("extra", [b"\0", b"\n", bytes(64), b"x" * 63, b"x" * 64, b"\x89HHTLE\r\n"])
def test_appended(small: Path, extra: bytes) -> None:
    with small.open("ab") as file:
        file.write(extra)
    with pytest.raises((TruncatedError, ChecksumError)):
        read_all(small)


def test_messages_name_the_file_and_stay_short(tmp_path: Path) -> None:
    path = drafted(tmp_path / "odd.hhtld", tensor("c.f32", name="c" + "\x1b[2J" * 200, dtype="F12"))
    with pytest.raises(HeaderError) as caught:
        read_all(path)
    assert str(path) in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 800


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_pack(tmp_path / "absent.hhtld")
    for mmap in (True, False):
        with pytest.raises(BadMagicError, match="not a regular file"):
            open_pack(tmp_path, mmap=mmap)
    pipe = tmp_path / "pipe.hhtld"
    os.mkfifo(pipe)
    with pytest.raises(BadMagicError, match="not a regular file"):
        open_pack(pipe)


def open_files() -> int:
    """How many descriptors this process holds."""
    gc.collect()  # what earlier tests left to the collector
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
def test_refusals_close_the_file(tmp_path: Path) -> None:
    paths = [drafted(tmp_path / f"{n}.hhtld", change) for n, (change, _, _) in enumerate(MALFORMED.values())]
    before = open_files()
    for path in paths:
        with pytest.raises(FormatError):
            read_all(path, mmap=True)
    assert open_files() == before


# --- what newer writers may add -------------------------------------------------------------------


def test_newer_minor_and_optional_bits_are_accepted(small: Path, tmp_path: Path) -> None:
    newer = drafted(tmp_path / "newer.hhtld", header(minor=9, optional=2**64 - 1))
    assert_same(read_all(newer), read_all(small))
    with hhtld.open(newer) as pack:
        assert isinstance(pack.sections, ContainerReader)
        assert (pack.sections.major, pack.sections.minor) == (2, 9)


def test_unknown_keys_are_ignored(small: Path, tmp_path: Path) -> None:
    more = drafted(
        tmp_path / "more.hhtld",
        table(x_new={"a": [1]}),
        tensor("a.d", x_new=1),
        group(0, x_new=None),
        record(3, x_new=[]),
    )
    assert_same(read_all(more), read_all(small))


@pytest.mark.parametrize("first", [False, True])
def test_unknown_sections_are_ignored(small: Path, tmp_path: Path, first: bool) -> None:
    def add(draft: Draft) -> None:
        draft.sections.insert(0 if first else len(draft.sections), ("moss", b"abc"))
        for owner in (*draft.table["groups"], *draft.table["tensors"]) if first else ():
            owner["sections"] = {k: n + 1 for k, n in owner.get("sections", {}).items()}
            if "alias_of" in owner:
                del owner["sections"]

    path = drafted(tmp_path / "moss.hhtld", add)
    with pytest.warns(UserWarning, match="unknown kind 'moss' is ignored"):
        found = read_all(path)
    assert_same(found, read_all(small))
    again = tmp_path / "again.hhtld"
    with pytest.warns(UserWarning, match="moss"), hhtld.open(path) as pack:
        hhtld.save(pack, again)
    assert again.read_bytes() == small.read_bytes()


def test_many_unknown_sections_are_one_warning(tmp_path: Path) -> None:
    path = drafted(tmp_path / "moss.hhtld", lambda draft: draft.sections.extend([("moss", b"abc")] * 500))
    with pytest.warns(UserWarning, match="section 12 of unknown kind 'moss' and 499 more") as caught:
        read_all(path)
    assert len(caught) == 1


def test_a_version_2_file_without_its_sections_is_read(tmp_path: Path) -> None:
    def plain(draft: Draft) -> None:
        draft.sections, draft.table["groups"] = draft.sections[7:8], []
        draft.table["tensors"] = [draft.tensor("c.f32") | {"sections": {"raw": 0}}]

    assert list(read_all(drafted(tmp_path / "one.hhtld", plain, header(major=2)))) == ["c.f32"]


def test_a_pack_of_nothing(tmp_path: Path) -> None:
    hhtld.save_file({}, tmp_path / "none.hhtld")
    assert read_all(tmp_path / "none.hhtld", mmap=True) == {}
    assert (tmp_path / "none.hhtld").stat().st_size < 512


# --- decode budget --------------------------------------------------------------------------------


def wide(draft: Draft) -> None:
    """One row of 2^47 columns in a palette of 3: 6 bytes of entries that decode to a petabyte."""
    columns = 2**47
    draft.sections = [*draft.sections[:2], ("entries", bytes(4))]
    draft.table["groups"] = [
        draft.table["groups"][0] | {"shape": [1, columns], "sections": {"palette": 0, "fisher_z": 1}}
    ]
    encoded = {"name": "w", "dtype": "F32", "shape": [1, columns], "codec": "hhtl_d", "group": 0}
    draft.table["tensors"] = [encoded | {"sections": {"entries": 2}}]


@pytest.mark.parametrize("rows", [None, [0], [], slice(0, 0)])
def test_huge_declared_rows_are_refused_before_allocation(tmp_path: Path, rows: Any) -> None:
    with hhtld.open(drafted(tmp_path / "wide.hhtld", wide)) as pack:
        assert pack.info("w").info.shape == (1, 2**47)
        assert len(pack.get_encoded("w").twigs) == 1
        with pytest.raises(HeaderError, match="the budget is"):
            pack.get_tensor("w") if rows is None else pack.get_rows("w", rows)


def test_budget_counts_rows_and_palette(small: Path) -> None:
    needed = (6 + 3) * 20 * 4
    with hhtld.open(small, budget=needed) as pack:
        pack.get_tensor("a.d")
        with pytest.raises(HeaderError, match="budget"):
            pack.get_rows("a.d", [0] * 7)
    with hhtld.open(small, budget=needed - 1) as pack:
        with pytest.raises(HeaderError, match="budget"):
            pack.get_tensor("a.d")
        assert len(pack.get_rows("a.d", [5, 5])) == 2
        pack.get_tensor("c.f32")


# --- reading --------------------------------------------------------------------------------------


def assert_same(one: dict[str, NDArray[Any]], other: dict[str, NDArray[Any]]) -> None:
    assert sorted(one) == sorted(other)
    for name, array in one.items():
        assert (array.dtype, array.shape) == (other[name].dtype, other[name].shape)
        assert array.tobytes() == other[name].tobytes(), name


def test_values(small: Path) -> None:
    found = read_all(small)
    dims = np.arange(-20, 31, dtype=np.float32).reshape(3, 17) / 256
    position = [11 * i % 17 for i in range(17)]
    rows = np.empty((6, 20), np.float32)
    for column in range(20):
        rows[:, column] = dims[np.arange(6) % 3, position.index(column % 17)]
    basis = np.frombuffer(small_sections()[2][1][16:], ml_dtypes.bfloat16).astype(np.float32).reshape(2, 20)
    codes = np.arange(-24, 24, dtype=np.float32).reshape(6, 8)
    for lane in range(2):
        rows = rows + codes[:, lane : lane + 1] * np.float32(0.125) * basis[lane]
    np.testing.assert_array_equal(found["a.d"], rows)
    np.testing.assert_array_equal(found["d.alias"], rows)
    np.testing.assert_array_equal(found["b.f"], np.float32([[1, 2, 3], [-1, -2, -3], [-1, -2, -3], [1, 2, 3]]))
    np.testing.assert_array_equal(found["c.f32"], np.float32([1.5, -2, 3]))
    assert found["e.empty"].shape == (0, 4)
    assert found["f.scalar"] == -7
    assert found["g.f4"].tobytes() == b"\x21\x43\x65"
    assert found["h.bf16"].shape == (3, 2, 1)


def test_mapped_and_runs_agree(small: Path) -> None:
    assert_same(read_all(small, mmap=True), read_all(small, mmap=False))
    with hhtld.open(small) as mapped, hhtld.open(small, mmap=False) as runs:
        for name in ("a.d", "b.f", "e.empty", "h.bf16"):
            n_rows = mapped.info(name).info.n_rows
            for rows in (
                None,
                [],
                slice(1, 3),
                slice(None, None, -2),
                np.arange(n_rows)[::-1],
                [0, -1] if n_rows else [],
            ):
                one, other = mapped.get_rows(name, rows), runs.get_rows(name, rows)
                assert one.shape == other.shape
                assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("mmap", [True, False])
def test_rows_in_any_order(small: Path, mmap: bool) -> None:
    with hhtld.open(small, mmap=mmap) as pack:
        for name in ("a.d", "b.f", "d.alias", "h.bf16"):
            whole = pack.get_tensor(name)
            whole = whole.reshape(len(whole), -1)
            last = len(whole) - 1
            for rows in (
                [last, 0, 1, 2, 0],
                [-1, -len(whole)],
                [1, 1, 1],
                np.array([2], np.uint8),
                np.array([], np.int64),
            ):
                index = np.asarray(rows, np.intp)
                np.testing.assert_array_equal(pack.get_rows(name, rows), whole[index])
            for bad in ([last + 1], [-last - 2], [0, 2**62]):
                with pytest.raises(IndexError, match="rows must lie in"):
                    pack.get_rows(name, bad)
            for wrong in ([0.5], [[0]], [True], ["0"]):
                with pytest.raises(TypeError, match="flat sequence of integers"):
                    pack.get_rows(name, wrong)  # type: ignore[arg-type]  # wrong on purpose
        with pytest.raises(IndexError):
            pack.get_rows("e.empty", [0])
        for name in ("c.f32", "f.scalar", "g.f4"):
            with pytest.raises(ValueError, match="has no rows"):
                pack.get_rows(name, [0])
        with pytest.raises(KeyError, match=r"did you mean 'd\.alias'"):
            pack.get_rows("d.alais", [0])


@pytest.mark.parametrize("mmap", [True, False])
def test_slices_are_numpy_s(small: Path, mmap: bool) -> None:
    keys: list[Any] = [
        0,
        -1,
        2,
        np.int64(1),
        True,
        None,
        ...,
        (),
        [0, 2],
        np.array([1, 0]),
        np.array([True, False, True]),
    ]
    keys += [slice(None), slice(1, 3), slice(None, None, 2), slice(None, None, -1), slice(5, 2), slice(-2, None)]
    keys += [
        (0, 1),
        (slice(1, 3), 0),
        (slice(None), slice(0, 1)),
        (..., 0),
        (1, ...),
        (None, 0),
        ([0, 1], 0),
        99,
        (0, 99),
    ]
    keys += [(slice(None), None), (0, None), (slice(0, 0), 0)]
    with hhtld.open(small, mmap=mmap) as pack:
        for name in ("a.d", "b.f", "c.f32", "d.alias", "e.empty", "f.scalar", "h.bf16"):
            whole, part = pack.get_tensor(name), pack.get_slice(name)
            assert part.get_shape() == list(pack.info(name).info.shape)
            assert part.get_dtype() == pack.info(name).info.dtype.name
            for key in keys:
                try:
                    expected = whole[key]
                except IndexError:
                    with pytest.raises(IndexError):
                        part[key]
                    continue
                found = part[key]
                assert found.shape == expected.shape, (name, key)
                np.testing.assert_array_equal(found, expected)
        with pytest.raises(TypeError, match="packed F4"):
            pack.get_slice("g.f4")[0]


def test_source_dtypes(small: Path) -> None:
    with hhtld.open(small) as pack:
        for name in pack:
            dtype = pack.info(name).info.dtype
            source = pack.get_tensor(name, "source")
            if dtype.numpy is not None:
                assert source.dtype == dtype.numpy
                assert source.shape == pack.info(name).info.shape
                np.testing.assert_array_equal(source, pack.get_tensor(name).astype(dtype.numpy))
            if name in ("a.d", "b.f", "h.bf16"):
                np.testing.assert_array_equal(
                    pack.get_rows(name, [1, 0], dtype="source"), source.reshape(len(source), -1)[[1, 0]]
                )
        with pytest.raises(ValueError, match="'float32' or 'source', got 'float16'"):
            pack.get_tensor("a.d", "float16")
        with pytest.raises(ValueError, match="'float32', 'bfloat16', 'float16', 'source', got 'float64'"):
            pack.get_rows("a.d", [0], dtype="float64")


@pytest.mark.parametrize("mmap", [True, False])
def test_closed_pack(small: Path, mmap: bool) -> None:
    with hhtld.open(small, mmap=mmap) as pack:
        given = pack.get_tensor("c.f32")
    assert list(given) == [1.5, -2, 3]
    assert pack.keys()[0] == "a.d"
    for read in (pack.get_tensor, lambda name: pack.get_rows(name, [0]), lambda name: pack.get_slice(name)[0]):
        with pytest.raises(ValueError, match="the pack is closed"):
            read("a.d")
    pack.close()


def test_an_open_pack_outlives_its_name(small: Path) -> None:
    with hhtld.open(small) as pack, hhtld.open(small, mmap=False) as other:
        hhtld.save_file({}, small)
        assert pack.get_tensor("c.f32")[0] == other.get_tensor("c.f32")[0] == 1.5
    assert read_all(small) == {}


@pytest.mark.parametrize("mmap", [True, False])
def test_many_threads_read_one_pack(small: Path, mmap: bool) -> None:
    expected = read_all(small)
    gate = threading.Barrier(8)
    with hhtld.open(small, mmap=mmap) as pack:

        def work(seed: int) -> None:
            gate.wait()
            for turn in range(40):
                name = pack.keys()[(seed + turn) % len(pack)]
                assert pack.get_tensor(name).tobytes() == expected[name].tobytes()
                if name in ("a.d", "b.f"):
                    np.testing.assert_array_equal(pack.get_rows(name, [seed % 4, 0]), expected[name][[seed % 4, 0]])

        with ThreadPoolExecutor(8) as executor:
            list(executor.map(work, range(8)))


@pytest.fixture
def embeddings(tmp_path: Path) -> Path:
    """Two tensors of 30,522 rows, one of each codec, with Slot L."""
    n_rows, n_cols = 30_522, 384
    codes = (np.arange(8 * n_rows) % 251).astype(np.uint8)
    basis = struct.pack("<II8f", 8, n_cols, *range(8, 0, -1)) + bf16(*np.linspace(-0.1, 0.1, 8 * n_cols))
    sections = [
        ("palette", np.arange(17 * 5, dtype="<i2").tobytes()),
        ("fisher_z", struct.pack("<ff", 0, 1) + bytes(25)),
        ("basis", basis),
        ("entries", b"".join(struct.pack("<HH", row % 5 << 2, 0) for row in range(n_rows))),
        ("slot_l", codes.tobytes()),
        ("palette_f32", bf16(*np.linspace(-1, 1, 7 * n_cols))),
        ("twigs", (np.arange(n_rows) % 7).astype(np.uint8).tobytes()),
        ("slot_l", codes[::-1].tobytes()),
    ]
    key = PaletteGroupKey("other", "embed", (n_rows, n_cols))
    records = {
        "d": TensorRecord(info("d", "F32", n_rows, n_cols), "hhtl_d", {"entries": 3, "slot_l": 4}, 0, 0.5),
        "f": TensorRecord(
            info("f", "F32", n_rows, n_cols), "hhtl_f32", {"palette_f32": 5, "twigs": 6, "slot_l": 7}, 0, 0.25
        ),
    }
    group_record = GroupRecord(key, {"palette": 0, "fisher_z": 1, "basis": 2})
    path = tmp_path / "embeddings.hhtld"
    with replacing(path) as file:
        writer = ContainerWriter(file)
        for kind, data in sections:
            writer.add(kind, len(data), [data])
        writer.finish(PackTable("f32", (group_record,), records).to_json())
    return path


@pytest.mark.skipif(not hasattr(os, "pread"), reason="counts positional reads")
@pytest.mark.parametrize(("name", "row_nbytes", "own"), [("d", 12, 0), ("f", 9, 2 * 7 * 384)])
def test_three_rows_read_no_other_rows(
    embeddings: Path, name: str, row_nbytes: int, own: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = 34 * 5 + (8 + 25) + (8 + 32 + 16 * 384)
    read: list[int] = []
    read_into, read_runs = descriptors.read_into, run_reads.read_runs

    def counted(fd: int, buffer: memoryview, offset: int) -> int:
        read.append(read_into(fd, buffer, offset))
        return read[-1]

    def counted_runs(fd: int, runs: run_reads.Runs, out: NDArray[np.uint8]) -> tuple[int, int]:
        read.extend(runs.nbytes.tolist())
        return read_runs(fd, runs, out)

    with hhtld.open(embeddings) as pack:
        whole = pack.get_tensor(name)
    with hhtld.open(embeddings, io="pread", io_threads=1) as pack:
        monkeypatch.setattr(descriptors, "read_into", counted)
        monkeypatch.setattr(run_reads, "read_runs", counted_runs)
        rows = pack.get_rows(name, [30_521, 3, -7])
        assert sum(read) == 3 * row_nbytes + shared + own
        read.clear()
        np.testing.assert_array_equal(pack.get_rows(name, slice(100, 103)), whole[100:103])
        assert sum(read) == 3 * row_nbytes  # what is shared is read once
        assert len(read) == 2
    np.testing.assert_array_equal(rows, whole[[30_521, 3, -7]])


def test_short_reads_are_continued(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = read_all(small)
    read_into = descriptors.read_into
    monkeypatch.setattr(descriptors, "read_into", lambda fd, buffer, offset: read_into(fd, buffer[:5], offset))
    assert_same(read_all(small), expected)


def test_a_file_cut_while_it_is_read(small: Path) -> None:
    with hhtld.open(small, mmap=False) as pack:
        os.truncate(small, 100)
        with pytest.raises(TruncatedError, match="ends at byte"):
            pack.get_tensor("c.f32")


# --- writing --------------------------------------------------------------------------------------


def weights() -> dict[str, NDArray[Any]]:
    rows = (np.arange(520)[:, None] * np.arange(1, 61) % 97 / 97 - 0.5).astype(np.float32)
    return {
        "b.up_proj": rows,
        "a.norm": np.ones(60, np.float32),
        "c.embed": rows[::-1] * rows[:, :1],
        "d.ids": np.arange(3),
    }


OLD = b"what stood here before"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A file to be replaced, alone in its folder."""
    path = tmp_path / "out" / "model.hhtld"
    path.parent.mkdir()
    path.write_bytes(OLD)
    return path


@pytest.fixture
def pack(small: Path) -> Iterator[HhtldPack]:
    with hhtld.open(small) as opened:
        yield opened


def assert_untouched(target: Path) -> None:
    assert list(target.parent.iterdir()) == [target]
    assert target.read_bytes() == OLD


def test_saving_gives_the_same_bytes(pack: HhtldPack, small: Path, target: Path) -> None:
    hhtld.save(pack, target)
    assert target.read_bytes() == small.read_bytes()
    assert list(target.parent.iterdir()) == [target]


def test_a_pack_may_replace_its_own_file(pack: HhtldPack, small: Path) -> None:
    before = small.read_bytes()
    hhtld.save(pack, small)
    assert small.read_bytes() == before


@pytest.mark.parametrize("profile", ["lookup", "f32"])
def test_encode_and_save_is_convert(profile: str, tmp_path: Path) -> None:
    safetensors.numpy.save_file(weights(), tmp_path / "in.safetensors")
    hhtld.convert(tmp_path / "in.safetensors", tmp_path / "a.hhtld", profile=profile, jobs=2)
    hhtld.save(hhtld.encode(weights(), profile), tmp_path / "b.hhtld")
    hhtld.save_file(dict(reversed(weights().items())), tmp_path / "c.hhtld", profile=profile)
    assert (tmp_path / "a.hhtld").read_bytes() == (tmp_path / "b.hhtld").read_bytes()
    assert (tmp_path / "b.hhtld").read_bytes() == (tmp_path / "c.hhtld").read_bytes()


def test_memory_and_file_hold_the_same(tmp_path: Path) -> None:
    made = hhtld.encode(weights(), profile="gates")
    hhtld.save(made, tmp_path / "a.hhtld")
    with hhtld.open(tmp_path / "a.hhtld") as pack:
        assert pack.keys() == made.keys()
        for name in pack:
            assert pack.get_tensor(name).tobytes() == made.get_tensor(name).tobytes()
            assert pack.info(name) == made.info(name)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o027, 0o640)])
def test_umask_is_respected(pack: HhtldPack, tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        hhtld.save(pack, tmp_path / "mode.hhtld")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "mode.hhtld").stat().st_mode) == mode


def failing_at(nth: int, call: Callable[..., Any], error: BaseException) -> Callable[..., Any]:
    """`call`, whose nth call raises."""
    calls = iter(range(1_000_000))

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == nth:
            raise error
        return call(*args, **kwargs)

    return wrapped


def test_a_full_disk_is_an_output_error(pack: HhtldPack, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        descriptors, "write_at", failing_at(3, descriptors.write_at, OSError(errno.ENOSPC, "No space left on device"))
    )
    with pytest.raises(OutputError, match=r"cannot write .*model\.hhtld: No space left on device") as caught:
        hhtld.save(pack, target)
    assert caught.value.errno == errno.ENOSPC
    assert_untouched(target)


def outcome(act: Callable[[], Any]) -> BaseException | None:
    """What an action raised that was to be expected, if anything."""
    try:
        act()
    except (OutputError, KeyboardInterrupt) as error:
        return error
    return None


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_every_failing_write_keeps_the_old_file(
    pack: HhtldPack, target: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_at, count = descriptors.write_at, 0
    while True:
        monkeypatch.setattr(descriptors, "write_at", failing_at(count, write_at, error))
        if outcome(lambda: hhtld.save(pack, target)) is None:
            break
        assert_untouched(target)
        count += 1
    assert count > 12
    assert target.read_bytes() != OLD


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_a_failing_step_keeps_the_old_file(
    pack: HhtldPack, target: Path, step: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, step, failing_at(0, getattr(os, step), error))
    with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt):
        hhtld.save(pack, target)
    assert_untouched(target)


def test_a_folder_that_cannot_be_synced_is_no_failure(
    pack: HhtldPack, target: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", failing_at(1, os.fsync, OSError(errno.EINVAL, "Invalid argument")))
    hhtld.save(pack, target)
    assert target.read_bytes() == small.read_bytes()


def test_short_writes_are_continued(
    pack: HhtldPack, target: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_at = descriptors.write_at
    monkeypatch.setattr(descriptors, "write_at", lambda fd, data, offset: write_at(fd, data[:7], offset))
    hhtld.save(pack, target)
    assert target.read_bytes() == small.read_bytes()


def test_bytes_that_do_not_reach_the_disk_are_found(
    pack: HhtldPack, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_at = descriptors.write_at

    def spoiled(fd: int, data: memoryview, offset: int) -> int:
        return write_at(fd, bytes([data[0] ^ 1]) + bytes(data[1:]) if offset == 64 else data, offset)

    monkeypatch.setattr(descriptors, "write_at", spoiled)
    with pytest.raises(ChecksumError, match="section 0"):
        hhtld.save(pack, target)
    assert_untouched(target)


def test_a_failing_encode_keeps_the_old_file(target: Path, tmp_path: Path) -> None:
    tensors = weights()
    tensors["c.embed"] = tensors["c.embed"].copy()
    tensors["c.embed"][519, 59] = np.nan
    safetensors.numpy.save_file(tensors, tmp_path / "nan.safetensors")
    with pytest.raises(NonFiniteError, match=r"c\.embed.*row 519, column 59"):
        hhtld.convert(tmp_path / "nan.safetensors", target, jobs=2, profile="gates")
    assert_untouched(target)


def test_interrupting_the_encode_keeps_the_old_file(target: Path, tmp_path: Path) -> None:
    safetensors.numpy.save_file(weights(), tmp_path / "in.safetensors")

    def interrupt(stage: str, name: str, nbytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        hhtld.convert(tmp_path / "in.safetensors", target, jobs=2, progress=interrupt, profile="gates")
    assert "resume=True (--resume) continues" in caught.value.__notes__[0]
    assert target.read_bytes() == OLD
    left = {path.name for path in target.parent.iterdir()} - {"in.safetensors"}
    assert left == {target.name, f"{target.name}.journal", f".{target.name}.partial"}


def test_a_link_is_replaced_not_followed(pack: HhtldPack, target: Path, small: Path) -> None:
    link = target.with_name("link.hhtld")
    link.symlink_to(target)
    hhtld.save(pack, link)
    assert not link.is_symlink()
    assert link.read_bytes() == small.read_bytes()
    assert target.read_bytes() == OLD
    dangling = target.with_name("dangling.hhtld")
    dangling.symlink_to("nowhere")
    hhtld.save(pack, dangling)
    assert not dangling.is_symlink()


def test_targets_that_are_no_files(pack: HhtldPack, tmp_path: Path) -> None:
    folder, pipe = tmp_path / "folder.hhtld", tmp_path / "pipe.hhtld"
    folder.mkdir()
    os.mkfifo(pipe)
    (tmp_path / "link.hhtld").symlink_to(folder)
    for path in (folder, pipe, tmp_path / "link.hhtld"):
        with pytest.raises(OutputError, match="not a regular file"):
            hhtld.save(pack, path)
    with pytest.raises(OutputError, match="No such file or directory"):
        hhtld.save(pack, tmp_path / "absent" / "a.hhtld")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("stem", ["n" * 249, "\u00e9" * 124, "\U0001f333" * 62])
def test_names_as_long_as_they_may_be(pack: HhtldPack, tmp_path: Path, stem: str) -> None:
    hhtld.save(pack, tmp_path / f"{stem}.hhtld")
    assert len(read_all(tmp_path / f"{stem}.hhtld")) == len(pack)


def test_declared_lengths_are_held_to(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="declared 3 bytes long and got 2"), replacing(tmp_path / "x.hhtld") as file:
        ContainerWriter(file).add("raw", 3, [b"ab"])
    assert list(tmp_path.iterdir()) == []


def test_memory_pack_is_saved_by_path_or_text(tmp_path: Path) -> None:
    made = hhtld.encode({"a": np.ones(3, np.float32)}, metadata={"k": "v \u00e9"})
    hhtld.save(made, str(tmp_path / "a.hhtld"))
    save_pack(made, tmp_path / "b.hhtld")
    assert (tmp_path / "a.hhtld").read_bytes() == (tmp_path / "b.hhtld").read_bytes()
    with hhtld.open(str(tmp_path / "a.hhtld")) as pack:
        assert pack.metadata() == {"k": "v \u00e9"}
