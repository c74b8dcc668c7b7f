"""The command line where streams are closed, full or left, and targets stand in its way."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import hhtld
from hhtld.commands.main import main

COMMAND = [sys.executable, "-m", "hhtld.formats"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from safetensors.numpy import save_file

    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    rows = np.random.default_rng(1).standard_normal((600, 64)).astype(np.float32)
    save_file({f"layers.{i}.up_proj.weight": rows + i for i in range(40)} | {"norm": rows[0].copy()}, path)
    return path


@pytest.fixture(scope="module")
def pack(source: Path) -> Path:
    hhtld.convert(source, source.with_name("m.hhtld"), profile="bits:2")
    return source.with_name("m.hhtld")


def shell(line: str, **names: Path | str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "HHTLD": " ".join(COMMAND), **{name: str(path) for name, path in names.items()}}
    return subprocess.run(["bash", "-c", line], env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    "closed",
    [">&-", "<&- >&- 2>&-", *(pytest.param(one, marks=pytest.mark.exhaustive) for one in ("2>&-", ">&- 2>&-", "<&-"))],
)
def test_closed_streams_change_no_exit_code_and_no_file(source: Path, pack: Path, tmp_path: Path, closed: str) -> None:
    target = tmp_path / "m.hhtld"
    assert shell(f"$HHTLD convert $SRC $OUT --profile bits:2 {closed}", SRC=source, OUT=target).returncode == 0
    assert target.read_bytes() == pack.read_bytes()
    for command in ("inspect $PACK", "inspect $PACK --json", "list", "verify $PACK $SRC", "--version", "--help"):
        done = shell(f"$HHTLD {command} {closed}", SRC=source, PACK=pack)
        assert (done.returncode, done.stderr) == (0, ""), command
    assert shell(f"$HHTLD inspect nowhere {closed}").returncode == 3
    assert target.read_bytes() == pack.read_bytes(), "nothing was printed into a file"


TAKEN = """
import os, sys
from hhtld.display.streams import open_closed_streams
other = os.open(sys.argv[1], os.O_RDONLY)  # as a library does that keeps a file of its own open
open_closed_streams()
print("printed to nobody", flush=True)
sys.exit(0 if other == 1 and os.path.samestat(os.fstat(1), os.stat(sys.argv[1])) else 5)
"""


def test_a_closed_streams_number_that_another_file_took_stays_that_files(source: Path) -> None:
    done = shell('"$PYTHON" -c "$CODE" $SRC >&-', PYTHON=sys.executable, CODE=TAKEN, SRC=source)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_goes_away_changes_no_exit_code(source: Path, pack: Path, tmp_path: Path) -> None:
    for command in ("inspect $PACK", "inspect $PACK --json", "diff $SRC $SRC", "--help"):
        done = shell(f"set -o pipefail; $HHTLD {command} | head -c 1 > /dev/null", SRC=source, PACK=pack)
        assert (done.returncode, done.stderr) == (0, ""), command
    line = "set -o pipefail; $HHTLD convert $SRC $OUT --profile gates --min-ratio 99 | head -c 1 > /dev/null"
    assert shell(line, SRC=source, OUT=tmp_path / "m.hhtld").returncode == 1, "the gate is missed all the same"
    assert shell("set -o pipefail; $HHTLD diff $SRC $PACK | true", SRC=source, PACK=pack).returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_named(pack: Path) -> None:
    for more in ("", "--json"):
        done = shell(f"$HHTLD inspect $PACK {more} > /dev/full", PACK=pack)
        assert done.returncode == 4
        assert done.stderr == "hhtld: cannot write to standard output: No space left on device\n"


def test_a_full_disk_names_the_folder_that_was_asked_for(pack: Path, tmp_path: Path) -> None:
    done = shell("ulimit -f 20; $HHTLD convert $PACK $OUT/", PACK=pack, OUT=tmp_path / "plain")
    assert done.returncode == 4
    assert done.stderr == f"hhtld: cannot write {tmp_path}/plain/model.safetensors: File too large\n"


@pytest.mark.parametrize("name", ["m.hhtld", "m.safetensors", "m.h5"])
def test_a_replaced_file_keeps_its_permissions(source: Path, pack: Path, tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    target.write_bytes(b"old")
    target.chmod(0o640)
    (tmp_path / "link.hhtld").symlink_to(target)
    if name == "m.hhtld":
        hhtld.convert(source, target, profile="bits:2")
    else:
        hhtld.convert(pack, target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    hhtld.save_file({"a": np.zeros(3)}, tmp_path / "link.hhtld")
    assert not (tmp_path / "link.hhtld").is_symlink()
    assert stat.S_IMODE((tmp_path / "link.hhtld").stat().st_mode) == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("convert", "SRC", "-"), 4, "cannot write to standard output: give the name of a file"),
        (("convert", "demo", "x.hhtld"), 3, "demo: no such file or folder (the demo model is demo: with a colon)"),
        (("convert", "meta/Llama-3.2", "x.hhtld"), 3, "no such file or folder"),
        (("convert", "meta/Llama", "x.hhtld"), 3, "(a model of a hub is hf://meta/Llama, with the extra 'fsspec'"),
        (("convert", "~/m.safetensors", "x.hhtld"), 3, "(a shell expands ~ where it is not in quotes)"),
        (("inspect", "EMPTY"), 3, "the format is not recognised: the folder holds no .safetensors file"),
        (("inspect", "PICKLE"), 3, "pytorch_model.bin are pickles, which may run code: convert them to safetensors"),
        (("verify", "SRC"), 3, "it is safetensors: hhtld convert "),
        (("inspect", "SRC", "--tensor", "layers.0.up_proj.weight", "--rows", "900:910"), 2, "has 600 rows, numbered"),
        (("convert", "SRC", "x.hhtld", "--report", "x.pdf"), 2, "a report ends in .html, or in .json"),
        (("convert", "SRC", "x.hhtld", "--report", "nowhere/x.json"), 4, "cannot write nowhere/x.json"),
        (("report", "PACK", "SRC", "x.pdf"), 2, "a report ends in .html, or in .json"),
        (("convert", "SRC"), 2, "hhtld convert: the following arguments are required: DST\nsee hhtld convert --help\n"),
    ],
)
def test_errors_say_what_to_do(
    source: Path,
    pack: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {name: tmp_path / name.lower() for name in ("EMPTY", "PICKLE")}
    for folder in places.values():
        folder.mkdir()
    (places["PICKLE"] / "pytorch_model.bin").write_bytes(b"\x80\x02")
    words = [str({**places, "SRC": source, "PACK": pack}.get(word, word)) for word in arguments]
    assert _code(words) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "pickle"], "nothing was begun"


def _code(words: list[str]) -> object:
    try:
        return main(words)
    except SystemExit as stop:  # of the parser
        return stop.code


def test_a_report_without_matplotlib_is_refused_before_the_work(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    target = tmp_path / "m.hhtld"
    assert main(["convert", str(source), str(target), "--report", str(tmp_path / "p.html")]) == 2
    assert "pip install 'hhtld[report]'" in capsys.readouterr().err
    assert not target.exists()
    words = ["convert", str(source), str(target), "--profile", "bits:2", "--report", str(tmp_path / "p.json")]
    assert main(words) == 0
    assert json.loads((tmp_path / "p.json").read_text())["target"] == str(target)


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--version"], ["-V"]):
        assert main(words) == 0
        assert capsys.readouterr().out == f"hhtld {hhtld.__version__}\n"
    for words in (["help"], ["help", "convert"]):
        assert _code(words) == 0
        assert capsys.readouterr().out.startswith(f"usage: hhtld {'convert' if len(words) > 1 else '['}")


def test_logs_get_a_line_now_and_then(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["convert", str(source), str(tmp_path / "m.hhtld"), "--profile", "bits:2"]
    assert main(words) == 0
    assert capsys.readouterr().err == "", "what takes less than half a minute needs none"
    monkeypatch.setattr("hhtld.display.progress_bar._TELL_SECONDS", 0.0)
    assert main(words) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "encode: 6.14 MB of 6.14 MB, 100 %"


@pytest.mark.parametrize("seconds", [0.3, 0.5, 0.8])
def test_an_interrupt_while_modules_load_is_no_traceback(seconds: float) -> None:
    line = (
        "from hhtld.__main__ import main; import sys\n"
        # On a slow machine what comes earlier would still be the line below, which no program can look after.
        "sys.addaudithook(lambda event, of: event == 'import' and of[0] == 'hhtld.commands' and print(flush=True))\n"
        "sys.exit(main())"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", line, "gate-parity", "demo:", "x"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert child.stdout is not None
    child.stdout.readline()
    time.sleep(seconds - 0.3)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert "Traceback" not in said
    assert child.returncode in (130, 2, 3, -signal.SIGINT), said  # the last: it had answered and was ending
