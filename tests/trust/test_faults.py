"""Writing where it cannot be done: the old file survives, the error names the path, and what is left goes on."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import hhtld
from hhtld.commands.main import main
from hhtld.errors import OutputError
from hhtld.storage.journal import journal_path, partial_path
from tests.conftest import low_rank
from tests.trust import faults

pytestmark = pytest.mark.exhaustive

OLD = faults.OLD
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


@pytest.fixture
def pack() -> hhtld.HhtldPack:
    """About 70 KB."""
    return hhtld.encode({"w.up_proj": low_rank(600, 400)}, "bits:2")


def assert_untouched(target: Path) -> None:
    assert target.read_bytes() == OLD
    assert list(target.parent.iterdir()) == [target]


# --- injected into system calls -------------------------------------------------------------------


def test_the_faults_are_those_of_a_conversion() -> None:
    """Every write, sync and rename of it and of its journal, by every error and by kill."""
    found = list(faults.every_fault())
    assert len(found) == len({fault.what for fault in found}) == 6 * (faults.N_WRITES + faults.N_LINES) + 21


@pytest.mark.skipif(not faults.can_inject(), reason="needs strace and the right to trace")
@pytest.mark.parametrize(
    "what",
    [
        "pwrite64:error=ENOSPC:when=5",
        "pwrite64:signal=KILL:when=5",
        "pwrite64:signal=KILL:when=11",
        "pwrite64:retval=1:when=5",
        "write:error=ENOSPC:when=3",
        "write:retval=1:when=3",
        "unlink:signal=KILL:when=2",
        "fsync:error=EIO:when=1",
        "fsync:error=EIO:when=2",
        "fsync:signal=KILL:when=2",
        "/rename:error=EXDEV",
        "/rename:signal=KILL",
    ],
)
def test_a_fault_leaves_the_old_file_or_the_new_one(what: str, tmp_path: Path) -> None:
    """Some of `faults.every_fault`; all of them are tried by `python -m tests.trust faults`."""
    fault = next(fault for fault in faults.every_fault() if fault.what == what)
    assert faults.injected(fault, faults.source(tmp_path), tmp_path / "out" / "m.hhtld") == []


def test_an_error_of_close_is_an_error(pack: hhtld.HhtldPack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Network file systems tell of a full disk as late as this."""
    target, close = tmp_path / "m.hhtld", os.close
    target.write_bytes(OLD)
    failed: list[int] = []

    def failing(fd: int) -> None:
        close(fd)
        if not failed:
            failed.append(fd)
            raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "close", failing)
    with pytest.raises(OutputError, match=r"cannot write .*m\.hhtld: Disk quota exceeded"):
        hhtld.save(pack, target)
    monkeypatch.undo()
    assert failed
    assert_untouched(target)


# --- disks that are full or closed ----------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB that can be mounted anew."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if sys.platform != "linux" or mounted.returncode != 0:
        pytest.skip("needs the right to mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@linux
def test_a_disk_of_64_kib(pack: hhtld.HhtldPack, small_disk: Path) -> None:
    target = small_disk / "m.hhtld"
    target.write_bytes(OLD)
    with pytest.raises(OutputError, match=r"cannot write .*m\.hhtld: No space left on device") as caught:
        hhtld.save(pack, target)
    assert caught.value.errno == errno.ENOSPC
    assert_untouched(target)
    with hhtld.open(save_small(small_disk / "n.hhtld")) as small:
        assert len(small) == 1


def save_small(path: Path) -> Path:
    hhtld.save_file({"w": np.ones(5, np.float32)}, path)
    return path


@linux
def test_a_disk_that_is_read_only(pack: hhtld.HhtldPack, small_disk: Path) -> None:
    target = small_disk / "m.hhtld"
    target.write_bytes(OLD)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OutputError, match=r"cannot write .*m\.hhtld: Read-only file system"):
        hhtld.save(pack, target)
    assert_untouched(target)


@pytest.mark.parametrize("suffix", [".hhtld", ".safetensors", ".h5"])
@linux
def test_a_limit_on_file_sizes(suffix: str, pack: hhtld.HhtldPack, tmp_path: Path) -> None:
    """The system's answer is EFBIG here: every format of output says so and leaves the old file."""
    import resource

    hhtld.save(pack, tmp_path / "in.hhtld")
    target = tmp_path / "out" / f"m{suffix}"
    target.parent.mkdir()
    target.write_bytes(OLD)
    done = subprocess.run(
        [sys.executable, "-m", "hhtld.formats", "convert", str(tmp_path / "in.hhtld"), str(target)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)),
    )
    assert done.returncode == 4, done.stderr
    assert done.stderr.startswith("hhtld: "), done.stderr
    assert str(target) in done.stderr
    for left in (partial_path(target), journal_path(target)):
        assert left.exists() == (suffix == ".hhtld")
        left.unlink(missing_ok=True)
    assert_untouched(target)


@linux
def test_results_and_pages_that_cannot_be_written(pack: hhtld.HhtldPack, tmp_path: Path) -> None:
    hhtld.save(pack, tmp_path / "in.hhtld")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "hhtld.formats", "inspect", str(tmp_path / "in.hhtld"), "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(pack: hhtld.HhtldPack, tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        hhtld.save(pack, folder / "m.hhtld")
    assert list(folder.iterdir()) == []


def test_a_folder_that_is_a_file_and_a_name_too_long(pack: hhtld.HhtldPack, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(OLD)
    for target in (tmp_path / "file" / "m.hhtld", tmp_path / ("n" * 256 + ".hhtld")):
        with pytest.raises(OutputError, match="cannot write"):
            hhtld.save(pack, target)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@linux
def test_a_name_that_is_not_unicode(pack: hhtld.HhtldPack, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / os.fsdecode(b"m\xff.hhtld")
    hhtld.save(pack, target)
    assert main(["verify", str(target)]) == 0
    target.write_bytes(target.read_bytes()[:-1])
    capsys.readouterr()
    assert main(["verify", str(target)]) == 3
    assert main(["verify", str(target), "--json"]) == 3


# --- who is written over --------------------------------------------------------------------------


def test_what_is_read_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = faults.source(tmp_path)
    link, hard, data = tmp_path / "link.safetensors", tmp_path / "hard.safetensors", path.read_bytes()
    link.symlink_to(path)
    hard.hardlink_to(path)
    for target in (path, link, hard):
        assert main(["convert", str(path), str(target)]) == 2
        assert "is the source itself" in capsys.readouterr().err
        assert path.read_bytes() == hard.read_bytes() == data


def test_replacing_one_name_of_a_file_leaves_the_other(pack: hhtld.HhtldPack, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(OLD)
    (tmp_path / "b.hhtld").hardlink_to(tmp_path / "a")
    hhtld.save(pack, tmp_path / "b.hhtld")
    assert (tmp_path / "a").read_bytes() == OLD


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0, 0o666)])
@pytest.mark.parametrize("suffix", [".hhtld", ".safetensors", ".h5"])
def test_modes_are_those_of_the_umask_or_of_the_file_that_is_replaced(
    pack: hhtld.HhtldPack, tmp_path: Path, suffix: str, umask: int, mode: int
) -> None:
    hhtld.save(pack, tmp_path / "in.hhtld")
    target = tmp_path / f"m{suffix}"
    before = os.umask(umask)
    try:
        for expected in (mode, 0o640):
            if suffix == ".hhtld":
                hhtld.save(pack, target)
            else:
                hhtld.convert(tmp_path / "in.hhtld", target, jobs=1)
            assert stat.S_IMODE(target.stat().st_mode) == expected
            target.chmod(0o640)
    finally:
        os.umask(before)
