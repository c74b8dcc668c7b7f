"""Every bit, every length and every lost block of the golden packs: damage is a FormatError and nothing else."""

from __future__ import annotations

import mmap
import shutil
from pathlib import Path

import pytest

import hhtld
from hhtld.commands.main import main
from hhtld.errors import ChecksumError, FormatError
from hhtld.pack.container import ContainerReader
from tests.trust import damage

pytestmark = pytest.mark.exhaustive

every_pack = pytest.mark.parametrize("golden", damage.GOLDEN, ids=lambda path: path.stem)


@pytest.fixture
def copy(golden: Path, tmp_path: Path) -> Path:
    """The pack, to be spoiled."""
    path = tmp_path / golden.name
    shutil.copy(golden, path)
    return path


def test_there_are_packs_of_every_version() -> None:
    assert {path.name[:2] for path in damage.GOLDEN} == {"v1", "v2"}


@every_pack
def test_every_flipped_bit(copy: Path, golden: Path) -> None:
    found = damage.flipped_bits(copy, every=False)
    assert found.missed == []
    assert found.tried >= golden.stat().st_size
    assert copy.read_bytes() == golden.read_bytes()


@every_pack
def test_every_truncation(copy: Path, golden: Path) -> None:
    found = damage.truncations(copy)
    assert found.missed == []
    assert found.tried == golden.stat().st_size


@every_pack
def test_lost_blocks_and_added_bytes(copy: Path) -> None:
    assert damage.lost_and_added(copy).missed == []


@every_pack
def test_rows_of_a_damaged_file_are_refused_or_read(copy: Path, golden: Path) -> None:
    flips, read = damage.rows_read_past_the_checksums(copy, max(1, golden.stat().st_size // 400))
    assert 0 < read < flips


@every_pack
def test_the_tried_is_the_real_reader(copy: Path, golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Some of the same flips through the doors that users take."""
    data, sound = golden.read_bytes(), hhtld.load_file(golden)
    for offset in range(0, len(data), len(data) // 8):
        copy.write_bytes(data[:offset] + bytes([data[offset] ^ 16]) + data[offset + 1 :])
        assert main(["verify", str(copy)]) == 3
        assert "hhtld: " in capsys.readouterr().err
        try:
            found = hhtld.load_file(copy)
        except FormatError:
            continue
        assert {n: a.tobytes() for n, a in found.items()} == {n: a.tobytes() for n, a in sound.items()}, offset


def test_whoever_reads_a_side_file_hears_of_damage(tmp_path: Path) -> None:
    path, read = tmp_path / "a.hhtld", 0
    shutil.copy(next(golden for golden in damage.GOLDEN if golden.stem == "v1_files"), path)
    with hhtld.open(path) as pack:
        assert isinstance(pack.sections, ContainerReader)
        records = [record for record in pack.sections.records if record.kind == "file" and record.nbytes]
    for record in records:
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as image:
            image[record.offset] ^= 2
    with hhtld.open(path) as pack:
        for name, nbytes in pack.files().items():
            if nbytes:
                with pytest.raises(ChecksumError):
                    pack.read_file(name)
                read += 1
    assert read == len(records) > 0


@every_pack
def test_whoever_reads_all_of_a_tensor_hears_of_damage(copy: Path, tmp_path: Path) -> None:
    """Rows are read without their checksums; a source whose rows are handed on must not be."""
    with hhtld.open(copy) as pack:
        assert isinstance(pack.sections, ContainerReader)
        records = [record for record in pack.sections.records if record.nbytes and record.kind != "file"]
    for record in records:
        with copy.open("r+b") as file, mmap.mmap(file.fileno(), 0) as image:
            image[record.offset] ^= 2
        with pytest.raises(FormatError):
            hhtld.load_file(copy)
        with pytest.raises(FormatError):
            hhtld.convert(copy, tmp_path / "back.safetensors", jobs=1)
        with copy.open("r+b") as file, mmap.mmap(file.fileno(), 0) as image:
            image[record.offset] ^= 2
    assert not (tmp_path / "back.safetensors").exists()
    assert len(list(tmp_path.iterdir())) == 1
