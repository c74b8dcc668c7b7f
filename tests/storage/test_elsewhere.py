"""Systems other than Linux: what they lack is hidden, one by one and all at once, and files are written and read."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import hhtld
from hhtld.errors import OutputError
from hhtld.storage import descriptors
from hhtld.storage.atomic import replacing
from hhtld.storage.atomic_folder import new_folder, write_bytes
from hhtld.storage.file_reading import is_url
from hhtld.storage.journal import Journal

TESTS = Path(__file__).parents[1]
# Of these names Windows has none; macOS lacks some, by its version.
CALLS = ["preadv", "pread", "pwrite", "fchmod", "sched_getaffinity", "fcntl"]
CALLS += ["O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_DIRECT"]
HABITS = ["open files", "open folders"]
# These tests ask for the protection itself that goes with a call, or move files that they hold open.
OF_LINUX = {
    "fcntl": "two_writers_do_not_share_a_file",
    "O_NONBLOCK": "fifo_that_takes_a_files_place",
    "open files": (
        "what_is_verified_is_what_was_written or folder_removed_meanwhile or open_pack_outlives_its_name"
        " or pack_may_replace_its_own_file or source_may_be_the_file_that_is_replaced or shards_are_opened_when_read"
    ),
}
CORE = "disk or short or failing or reach or umask or rows_read or journal_keeps or damaged_bytes or two_writers"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    return path


def without(hidden: Sequence[str], *arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a Python whose system lacks what is named, and that warns if an encoding is left to the system."""
    paths = [str(TESTS / "storage" / "elsewhere"), os.environ.get("PYTHONPATH", "")]
    settings = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "HHTLD_HIDDEN": ",".join(hidden)}
    settings |= {"PYTHONWARNDEFAULTENCODING": "1"} | more
    return subprocess.run(
        [sys.executable, *arguments], env=os.environ | settings, capture_output=True, text=True, check=False
    )


def run_tests(hidden: Sequence[str], *arguments: str | Path, only: str = "") -> None:
    """Run tests in such a Python; an encoding that hhtld leaves to the system is a warning, and fails them."""
    without_these = "".join(f" and not ({OF_LINUX[name]})" for name in hidden if name in OF_LINUX)
    chosen = ["-k", f"({only or 'test'}){without_these}"]
    done = without(
        hidden,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-W",
        "ignore::EncodingWarning:test_",
        *chosen,
        *arguments,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_what_is_named_is_hidden() -> None:
    look = f"import os, sys; print([n for n in {CALLS} if hasattr(os, n)], sys.modules['fcntl'])"
    assert without(CALLS, "-c", look).stdout == "[] None\n"
    assert without([], "-c", "import os; print(os.pread, end='')").stdout == str(os.pread)


def test_every_module_is_imported_without_them() -> None:
    look = (
        "import importlib, pkgutil, sys, hhtld, hhtld.formats\n"
        "EXTRAS = {'torch', 'transformers', 'onnx', 'onnxruntime', 'piper', 'gguf', 'matplotlib', 'jinja2', 'dask',\n"
        "          'distributed', 'fsspec'}\n"
        "for path, root in ((hhtld.__path__, 'hhtld.'), (hhtld.formats.__path__, 'hhtld.formats.')):\n"
        "    for found in pkgutil.walk_packages(path, root):\n"
        "        if 'integrations' in found.name or found.name.endswith(('__main__', '.example')): continue\n"
        "        try: importlib.import_module(found.name)\n"
        "        except ModuleNotFoundError as error: assert error.name in EXTRAS, error\n"
        "print(len([n for n in sys.modules if n.startswith('hhtld.')]) > 100)"
    )
    done = without(CALLS + HABITS, "-c", look)
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


@pytest.mark.exhaustive
@pytest.mark.parametrize("hidden", [*CALLS, *HABITS])
def test_files_are_written_and_read_without(hidden: str) -> None:
    run_tests([hidden], TESTS / "formats" / "test_hhtld.py", TESTS / "api" / "test_resume.py", only=CORE)


@pytest.mark.exhaustive
def test_files_are_written_and_read_without_any() -> None:
    folders = [TESTS / "formats" / f"test_{name}.py" for name in ("hhtld", "folders", "safetensors", "golden")]
    ignored = ("--ignore", TESTS / "storage" / "test_elsewhere.py")
    run_tests(CALLS + HABITS, *ignored, TESTS / "storage", TESTS / "api" / "test_resume.py", *folders)


def test_a_folder_of_a_model_is_written_without_any(tmp_path: Path) -> None:
    """Names and metadata in no character set that the locale has; an empty folder is in the way."""
    script = (
        "import sys, numpy as np, hhtld; from pathlib import Path; from hhtld.commands.main import main\n"
        "place = Path(sys.argv[1]); rows = np.random.default_rng(1).standard_normal((600, 64)).astype(np.float32)\n"
        "tensors = {'\\u5c42.weight': rows, 'na\\u00efve': rows[0].copy()}\n"
        "hhtld.save_file(tensors, place / 'm.hhtld', profile='bits:3')\n"
        "(place / 'plain').mkdir()\n"
        "codes = [main(['convert', str(place / 'm.hhtld'), f'{place / \"plain\"}/'])]\n"
        "again = str(place / 'again.hhtld')\n"
        "codes += [main(['convert', str(place / 'plain'), again, '--resume', '--profile', 'bits:3'])]\n"
        "codes += [main(['inspect', again])]\n"
        "assert codes == [0, 0, 0], codes"
    )
    locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = without(CALLS + HABITS, "-W", "error::EncodingWarning", "-c", script, tmp_path, **locale)
    assert done.returncode == 0, done.stderr
    assert "\\u5c42.weight" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.hhtld", "m.hhtld", "plain"]


# ---- the stand-ins themselves ----


@pytest.fixture(params=[(), ("preadv",), ("preadv", "pread", "pwrite")], ids=["Linux", "macOS", "Windows"])
def fd(request: pytest.FixtureRequest, file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    for name in request.param:
        monkeypatch.delattr(os, name)
    fd = descriptors.open_descriptor(file, os.O_RDWR)
    yield fd
    os.close(fd)


def test_bytes_are_read_and_written_where_they_are_asked_for(fd: int, file: Path) -> None:
    buffer = bytearray(4)
    assert descriptors.read_into(fd, memoryview(buffer), 8) == 2
    assert buffer == b"89\0\0"
    assert descriptors.read_at(fd, 3, 2) == b"234"
    assert (descriptors.read_at(fd, 3, 10), descriptors.read_into(fd, memoryview(buffer), 11)) == (b"", 0)
    assert descriptors.write_at(fd, memoryview(b"ab"), 12) == 2
    assert descriptors.write_at(fd, memoryview(b"c"), 0) == 1
    assert file.read_bytes() == b"c123456789\0\0ab"


def test_threads_read_what_they_asked_for(fd: int, file: Path) -> None:
    file.write_bytes(bytes(range(256)) * 16)

    def read(first: int) -> bool:
        return all(
            descriptors.read_at(fd, 4, at) == bytes(k % 256 for k in range(at, at + 4)) for at in range(first, 4000, 7)
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(8)))


def test_lines_of_a_journal_come_last_wherever_it_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pread")
    fd = descriptors.open_descriptor(tmp_path / "j", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    journal = Journal(fd, tmp_path / "j")
    for turn in range(3):
        journal.put("turn", turn, value="\u00e9\r\n")
        journal.read()
        assert journal.get("turn", 0) == "\u00e9\r\n"
    os.close(fd)
    assert (tmp_path / "j").read_bytes().count(b"\n") == 3


@pytest.mark.parametrize("hidden", [(), ("O_NOFOLLOW",)])
def test_a_link_is_refused_by_who_does_not_follow(
    hidden: tuple[str, ...], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in hidden:
        monkeypatch.delattr(os, name)
    link = file.with_name("link")
    link.symlink_to(file)
    with pytest.raises(OSError, match="symbolic links") as caught:
        descriptors.open_descriptor(link, os.O_RDONLY, follow=False)
    assert caught.value.errno == errno.ELOOP
    os.close(descriptors.open_descriptor(link, os.O_RDONLY))


def test_bytes_are_no_text(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows turns line ends in what is not opened as bytes, and ends it at Ctrl-Z."""
    asked: list[int] = []
    monkeypatch.setattr(os, "O_BINARY", 1 << 30, raising=False)
    monkeypatch.setattr(os, "open", lambda path, flags, mode: asked.append(flags) or -1)
    descriptors.open_descriptor(file, os.O_RDONLY)
    assert asked[0] & 1 << 30


def test_a_lock_of_windows_keeps_others_out(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[tuple[int, int, int]] = []

    def locking(fd: int, mode: int, nbytes: int) -> None:
        if held:
            raise OSError(errno.EACCES, "Permission denied")
        held.append((os.lseek(fd, 0, os.SEEK_CUR), mode, nbytes))

    monkeypatch.setattr(descriptors, "fcntl", None)
    monkeypatch.setattr(descriptors, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2))
    with file.open("rb") as first, file.open("rb") as second:
        descriptors.lock_alone(first.fileno())
        with pytest.raises(BlockingIOError):
            descriptors.lock_alone(second.fileno())
    assert held == [(1 << 40, 2, 1)]
    monkeypatch.setattr(descriptors, "msvcrt", None)
    descriptors.lock_alone(-1)  # nobody is kept out, and nothing fails


@pytest.mark.parametrize("name", ["CON.hhtld", "nul", "com1.x.hhtld", "aux .hhtld"])
def test_devices_of_windows_are_not_written_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with replacing(tmp_path / name) as file:  # a name as any other here
        file.write(b"x")
    (tmp_path / name).unlink()
    monkeypatch.setattr(descriptors, "HAS_DEVICE_NAMES", True)
    with pytest.raises(OutputError, match="Windows takes this name for a device; give the file another name"):
        hhtld.save_file({"a": np.ones(3, np.float32)}, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", [r"C:\models\m.hhtld", "C:/models/m.hhtld", r"\\server\share\m.hhtld", "c:m.hhtld"])
def test_paths_of_windows_are_no_urls(path: str) -> None:
    assert not is_url(path)


def test_an_empty_folder_gives_way_where_it_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def as_on_windows(self: Path, target: Path) -> Path:
        if Path(target).exists():
            raise FileExistsError(errno.EEXIST, "File exists")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", as_on_windows)
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as folder:
        write_bytes(folder, "a/b.txt", b"x\r\n")
    assert (tmp_path / "out" / "a" / "b.txt").read_bytes() == b"x\r\n"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_open_pack_is_not_replaced_where_open_files_stay(tmp_path: Path) -> None:
    script = (
        "import sys, numpy as np, hhtld; from pathlib import Path\n"
        "path = Path(sys.argv[1]); tensors = {'a': np.arange(3, dtype=np.float32)}\n"
        "hhtld.save_file(tensors, path)\n"
        "with hhtld.open(path) as pack:\n"
        "    try: hhtld.save_file({'b': np.ones(3, np.float32)}, path)\n"
        "    except hhtld.OutputError as error: print(error)\n"
        "    print(pack.keys())\n"
    )
    done = without(["open files"], "-c", script, tmp_path / "m.hhtld")
    assert done.stdout.startswith("cannot write ")
    assert done.stdout.endswith("because it is in use\n['a']\n"), done.stdout + done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["m.hhtld"]
