"""Old files stay readable, newer ones are read as far as they allow, and the changes file tells of every change."""

from __future__ import annotations

import json
import re
import struct
import zlib
from pathlib import Path

import pytest

import hhtld
from hhtld.codecs.section_kinds import SECTION_KINDS
from hhtld.errors import UnsupportedVersionError
from hhtld.pack.container import MAJOR_VERSIONS, ContainerReader
from tests.trust.damage import GOLDEN

ROOT = Path(__file__).parent.parent.parent
every_pack = pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.stem)


def with_header(data: bytes, **fields: int) -> bytes:
    """The file with words of its header changed and its checksum made right."""
    head = bytearray(data[:60])
    for name, value in fields.items():
        code, offset = {"major": ("<H", 8), "minor": ("<H", 10), "required": ("<Q", 16), "optional": ("<Q", 24)}[name]
        struct.pack_into(code, head, offset, value)
    return bytes(head) + struct.pack("<I", zlib.crc32(head)) + data[64:]


def with_section(data: bytes, kind: str, content: bytes) -> bytes:
    """The file with one more section before its table, as a newer writer may add it."""
    offset, nbytes = struct.unpack_from("<QQ", data, len(data) - 64)
    table = json.loads(data[offset : offset + nbytes])
    table["sections"].append({"kind": kind, "offset": offset, "nbytes": len(content), "crc32": 0})
    text = json.dumps(table, sort_keys=True, separators=(",", ":")).encode()
    out = data[:offset] + content + bytes(-len(content) % 64)
    place = struct.pack("<QQ", len(out), len(text))
    out += text + bytes(-len(text) % 64)
    place += struct.pack("<I", zlib.crc32(place + text))
    rest = struct.pack("<Q24x8s", len(out) + 64, b"\x89HHTLE\r\n")
    return out + place + struct.pack("<I", zlib.crc32(place + bytes(4) + rest)) + rest


def everything(path: Path) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in hhtld.load_file(path).items()}


def test_every_version_and_every_kind_of_section_has_a_golden_pack() -> None:
    versions, kinds = set(), set()
    for path in GOLDEN:
        with hhtld.open(path) as pack:
            assert isinstance(pack.sections, ContainerReader)
            versions.add(pack.sections.major)
            kinds.update(pack.sections.kinds())
    assert versions == set(MAJOR_VERSIONS)
    assert kinds == set(SECTION_KINDS)


@every_pack
def test_a_golden_pack_is_written_again_byte_for_byte(golden: Path, tmp_path: Path) -> None:
    with hhtld.open(golden) as pack:
        hhtld.save(pack, tmp_path / "again.hhtld")
    assert (tmp_path / "again.hhtld").read_bytes() == golden.read_bytes()


@every_pack
def test_a_newer_minor_version_is_read(golden: Path, tmp_path: Path) -> None:
    path = tmp_path / "newer.hhtld"
    path.write_bytes(with_header(golden.read_bytes(), minor=7, optional=1 << 63))
    assert everything(path) == everything(golden)


@every_pack
def test_a_section_that_nobody_knows_is_skipped_with_a_warning(golden: Path, tmp_path: Path) -> None:
    path = tmp_path / "more.hhtld"
    path.write_bytes(with_section(golden.read_bytes(), "index_of_tomorrow", b"anything"))
    with pytest.warns(UserWarning, match="unknown kind 'index_of_tomorrow' is ignored; a newer hhtld wrote it"):
        found = everything(path)
    assert found == everything(golden)


@every_pack
@pytest.mark.parametrize("bit", [10, 31, 32, 63])
def test_a_required_feature_that_nobody_knows_is_refused_by_name(golden: Path, tmp_path: Path, bit: int) -> None:
    path, data = tmp_path / "needs.hhtld", golden.read_bytes()
    known = struct.unpack_from("<Q", data, 16)[0]
    path.write_bytes(with_header(data, required=known | 1 << bit))
    with pytest.raises(UnsupportedVersionError, match=f"feature bit {bit}, which this hhtld does not know"):
        hhtld.open(path)


@pytest.mark.parametrize("major", [0, max(MAJOR_VERSIONS) + 1, 255, 65535])
def test_a_major_version_that_nobody_knows_is_refused_by_name(tmp_path: Path, major: int) -> None:
    path = tmp_path / "major.hhtld"
    path.write_bytes(with_header(GOLDEN[0].read_bytes(), major=major))
    with pytest.raises(UnsupportedVersionError, match=rf"version {major}\.0; this hhtld reads versions 1 and 2"):
        hhtld.open(path)


def test_the_changes_name_every_version_and_feature_of_the_format() -> None:
    """A line that changes bytes on disk is marked, and names what it added."""
    text = (ROOT / "CHANGELOG.md").read_text()
    marked = " ".join(re.findall(r"^- \*\*format\*\*(.*(?:\n  .*)*)", text, re.MULTILINE))
    for version in MAJOR_VERSIONS:
        assert re.search(rf"versions?\b[^.]*\b{version}\b", marked), version
    for feature in {kind.feature for kind in SECTION_KINDS.values()} - {None}:
        assert f"feature bit {feature}" in marked
        codes = [kind.code for kind in SECTION_KINDS.values() if kind.feature == feature]
        assert (f"kinds {min(codes)} to {max(codes)}" if len(codes) > 1 else f"kind {codes[0]}") in marked
