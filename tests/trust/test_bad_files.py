"""What every bad file must get: a FormatError, soon, for little memory, the same by every door, nothing left."""

from __future__ import annotations

from pathlib import Path

import pytest

from hhtld.commands.main import main
from tests.trust.bad_files import BadFile, bad_files, refusal

SECONDS = 2.0
PEAK_NBYTES = 64 << 20
FORMATS = sorted({bad.format for bad in bad_files()})


def of_format(name: str) -> list[BadFile]:
    return [bad for bad in bad_files() if bad.format == name]


@pytest.mark.parametrize("name", FORMATS)
def test_every_bad_file_is_refused_soon_and_for_little_memory(name: str, tmp_path: Path) -> None:
    assert len(of_format(name)) > 60
    for bad in of_format(name):
        found = refusal(bad.written(tmp_path))
        assert found is not None, bad.case
        assert found.seconds < SECONDS, bad.case
        assert found.peak_nbytes < PEAK_NBYTES, bad.case
        assert str(tmp_path) in str(found.error), bad.case
        assert "\x1b" not in str(found.error), bad.case


@pytest.mark.filterwarnings("ignore:.*unknown kind 'moss'")
@pytest.mark.parametrize("name", FORMATS)
def test_the_command_line_refuses_it_too_and_leaves_nothing(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pack whose damage lies where a conversion does not look is refused by `verify`."""
    target = tmp_path / "out.hhtld" if name != "hhtld" else tmp_path / "out.safetensors"
    for bad in of_format(name):
        path = bad.written(tmp_path / "in")
        before, old = sorted(tmp_path.rglob("*")), path.read_bytes()
        words = ["convert", str(path), str(target), "--jobs", "1"]
        for command in ([*words, "--dry-run"], words) if name != "hhtld" else (["verify", str(path)],):
            assert main(command) == 3, (bad.case, command[0])
            captured = capsys.readouterr()
            assert captured.err.startswith("hhtld: "), bad.case
            assert captured.err.count("\n") == 1, bad.case
            assert captured.out == "", bad.case
        assert sorted(tmp_path.rglob("*")) == before, bad.case
        assert path.read_bytes() == old, bad.case


@pytest.mark.filterwarnings("ignore:.*unknown kind 'moss'")
def test_converting_a_bad_pack_gives_an_error_or_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, converted = tmp_path / "out.safetensors", []
    for bad in of_format("hhtld"):
        code = main(["convert", str(bad.written(tmp_path)), str(target), "--jobs", "1"])
        assert code in (0, 3), bad.case
        if code == 0:
            converted.append(bad.case)
            target.unlink()
        assert [path.name for path in tmp_path.iterdir()] == ["bad.hhtld"], bad.case
    capsys.readouterr()
    assert converted == ["dirty padding", "dirty padding before the table"]
