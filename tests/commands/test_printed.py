"""What commands print, word for word, in a pipe and on a terminal of 80 columns.

`python tests/commands/test_printed.py` writes the texts beside this file anew; look at what changed before it is kept.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
import zlib
from collections.abc import Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from safetensors.numpy import save_file

from hhtld.commands.main import main
from hhtld.formats import open_source
from hhtld.sources.contract import TensorSource

TEXTS = Path(__file__).parent / "printed"
COMMAND = [sys.executable, "-m", "hhtld.formats"]

# Name of a text, and what is typed; in this order, each finding what those before it wrote.
TYPED = {
    "convert": "convert model m.hhtld --profile gates",
    "convert_parity": "convert small.safetensors p.hhtld",
    "convert_bits": "convert small.safetensors b.hhtld --profile bits:3",
    "convert_kept": "convert small.safetensors k.hhtld --rule *=keep --min-ratio 0",
    "convert_missed": "convert small.safetensors f.hhtld --profile gates --min-ratio 9",
    "convert_dry_run": "convert small.safetensors d.hhtld --profile gates --dry-run",
    "convert_back": "convert m.hhtld plain/",
    "convert_again": "convert m.hhtld plain/",
    "verify": "verify m.hhtld",
    "verify_source": "verify m.hhtld model",
    "verify_other": "verify m.hhtld small.safetensors",
    "inspect": "inspect m.hhtld",
    "inspect_source": "inspect small.safetensors",
    "inspect_tensor": "inspect m.hhtld --tensor layers.0.attention.q_proj.weight",
    "inspect_rows": "inspect small.safetensors --tensor lm_head.weight --rows 2:4",
    "diff": "diff small.safetensors b.hhtld",
    "diff_same": "diff m.hhtld m.hhtld",
    "list": "list",
    "error_usage": "convert small.safetensors",
    "error_profile": "convert small.safetensors x.hhtld --profile bits:7",
    "error_rule": "convert small.safetensors x.hhtld --rule nothing*=keep",
    "error_missing": "inspect nowhere.hhtld",
    "error_demo": "convert demo x.hhtld",
    "error_format": "convert small.safetensors x.zip",
    "error_pickle": "inspect pytorch_model.bin",
    "error_folder": "inspect empty",
    "error_tensor": "inspect m.hhtld --tensor lm_head",
    "error_rows": "inspect small.safetensors --tensor lm_head.weight --rows 900:",
    "error_not_a_pack": "verify small.safetensors",
    "error_truncated": "verify cut.hhtld",
    "error_damaged": "verify damaged.hhtld",
    "error_infinite": "convert infinite.safetensors x.hhtld --profile bits:3",
    "error_memory": "convert small.safetensors x.hhtld --memory 1KiB",
    "error_output": "convert small.safetensors nowhere/x.hhtld",
    "error_same": "convert small.safetensors small.safetensors",
    "error_magic": "verify junk.hhtld",
    "error_header": "inspect header.safetensors",
    "convert_huge": "convert huge.safetensors x.hhtld --profile bits:3",
    "error_quantized": "convert quantized x.hhtld",
    "error_budget": "convert m.hhtld x.safetensors --budget 1KB",
    "error_size": "convert small.safetensors x.hhtld --memory much",
    "error_report": "convert small.safetensors x.hhtld --report page.pdf",
    "error_extra": "convert small.safetensors x.hhtld --report page.html",
    "error_range": "convert largest.safetensors x.hhtld --profile f32",
    "error_version": "inspect version.hhtld",
    "error_closed": "inspect closed.hhtld --tensor embed_tokens.weight --rows 0:2",
}
# Packages that are not installed while a command runs.
MISSING = {"error_extra": ("jinja2",)}
ON_A_TERMINAL = {
    "terminal_convert": "convert model t.hhtld --profile gates",
    "terminal_inspect": "inspect m.hhtld",
    "terminal_verify": "verify m.hhtld model",
    "terminal_diff": "diff model m.hhtld",
    "terminal_list": "list",
}


def _written(folder: Path) -> None:
    """Write the models that are typed about."""
    rng = np.random.default_rng(7)
    parts = {"attention.q_proj": (96, 64), "attention.o_proj": (64, 96), "mlp.up_proj": (160, 64)}
    tensors = {"embed_tokens.weight": rng.standard_normal((700, 64)).astype(np.float32)}
    for layer in range(12):
        for part, shape in parts.items():
            tensors[f"layers.{layer}.{part}.weight"] = rng.standard_normal(shape).astype(np.float32)
        tensors[f"layers.{layer}.norm.weight"] = np.ones(64, np.float32)
    (folder / "model").mkdir()
    save_file(tensors, folder / "model" / "model.safetensors", {"format": "pt"})
    (folder / "model" / "config.json").write_text('{"model_type": "llama"}\n')
    (folder / "model" / "tokenizer_config.json").write_text("{}\n")
    small = {"lm_head.weight": rng.standard_normal((640, 48)).astype(np.float32), "norm": np.ones(48, np.float32)}
    save_file(small, folder / "small.safetensors")
    infinite = small["lm_head.weight"].copy()
    infinite[3, 5] = np.inf
    save_file({"lm_head.weight": infinite}, folder / "infinite.safetensors")
    save_file({"lm_head.weight": small["lm_head.weight"] * np.float32(6e37)}, folder / "huge.safetensors")
    largest = np.full((600, 48), 3.4e38, np.float32)
    save_file({"lm_head.weight": largest}, folder / "largest.safetensors")
    (folder / "junk.hhtld").write_bytes(b"PK\3\4" + bytes(200))
    (folder / "header.safetensors").write_bytes((9).to_bytes(8, "little") + b'{"w": [1]' + bytes(16))
    (folder / "quantized").mkdir()
    save_file({"q_proj.qweight": np.ones((8, 64), np.int32)}, folder / "quantized" / "model.safetensors")
    (folder / "quantized" / "config.json").write_text('{"quantization_config": {"quant_method": "gptq", "bits": 4}}\n')
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02}q\0.")
    (folder / "empty").mkdir()


def _damaged(folder: Path) -> None:
    data = bytearray((folder / "m.hhtld").read_bytes())
    (folder / "closed.hhtld").write_bytes(data)
    (folder / "cut.hhtld").write_bytes(data[:-100])
    newer = data[:8] + b"\x09\x00" + data[10:60]
    (folder / "version.hhtld").write_bytes(newer + zlib.crc32(newer).to_bytes(4, "little") + data[64:])
    data[200] ^= 1
    (folder / "damaged.hhtld").write_bytes(data)


def _normal(text: str) -> str:
    """Without what differs from run to run and from machine to machine."""
    text = re.sub(r"\b\d+\.\d s\b", "T s", text)
    text = re.sub(r"about \d+ s with (one thread|\d+ threads)", "about T s with N threads", text)
    text = re.sub(r"at most [\d.]+ [kMG]?B of memory", "at most SIZE of memory", text)
    text = re.sub(r"needs [\d,]+ bytes of memory", "needs N bytes of memory", text)
    return re.sub(r"[\d.]+ ?MiB", "N MiB", text)


def _closed_at_once(path: object, **options: Any) -> TensorSource:
    """Open a source that something else closes before its reader comes to it."""
    source = open_source(str(path), **options)
    if Path(str(path)).name == "closed.hhtld":
        source.close()
    return source


def _piped(name: str) -> str:
    out, typed = io.StringIO(), TYPED[name]
    without = patch.dict(sys.modules, dict.fromkeys(MISSING.get(name, ())))
    closing = patch("hhtld.formats.open_source", _closed_at_once)
    with redirect_stdout(out), redirect_stderr(out), without, closing:
        try:
            code = main(typed.split())
        except SystemExit as stop:  # of the parser
            code = int(stop.code or 0)
    return _normal(f"$ hhtld {typed}\n{out.getvalue()}[{code}]\n")


def _on_a_terminal(typed: str, folder: Path) -> str:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    env = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR", "LINES")}
    env |= {"TERM": "xterm", "PYTHONUTF8": "1"}
    with subprocess.Popen(
        [*COMMAND, *typed.split()], cwd=folder, env=env, stdout=theirs, stderr=subprocess.DEVNULL
    ) as child:
        os.close(theirs)
        text = b"".join(_read(ours)).decode().replace("\r\n", "\n")
    return _normal(f"$ hhtld {typed}\n" + re.sub(r"\x1b\[[0-9;]*m", "", text) + f"[{child.returncode}]\n")


def _read(fd: int) -> Iterator[bytes]:
    with os.fdopen(fd, "rb", 0) as file:
        while True:
            try:
                part = file.read(65536)
            except OSError:  # as Linux says that the other end is closed
                return
            if not part:
                return
            yield part


def _printed(folder: Path) -> dict[str, str]:
    _written(folder)
    found = {}
    before = os.environ.pop("COLUMNS", None)
    try:
        with chdir(folder):
            for name in TYPED:
                found[name] = _piped(name)
                if name == "convert":
                    _damaged(folder)
    finally:
        os.environ |= {} if before is None else {"COLUMNS": before}
    return found | {name: _on_a_terminal(typed, folder) for name, typed in ON_A_TERMINAL.items()}


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return _printed(tmp_path_factory.mktemp("typed"))


@pytest.mark.parametrize("name", [*TYPED, *ON_A_TERMINAL])
def test_what_is_printed(printed: dict[str, str], name: str) -> None:
    text = printed[name]
    assert text == (TEXTS / f"{name}.txt").read_text(encoding="utf-8")
    lines = text.splitlines()
    assert "Traceback" not in text
    assert not re.search(r"\[Errno|\b1 (tensors|rows|files)\b", text)
    if name in ON_A_TERMINAL:
        assert max(map(len, lines[1:])) <= 80
        assert len(lines) <= 80
    else:
        assert [line for line in lines[1:] if line != line.rstrip()] == [], "no blanks at line ends"


@pytest.mark.parametrize("words", [("-m", "hhtld"), ("-m", "hhtld.formats")])
def test_the_ways_in_are_one_program(words: tuple[str, ...]) -> None:
    """The installed command is `hhtld.__main__:main`, which `python -m hhtld` runs as well."""
    said = [
        subprocess.run([sys.executable, *words, *typed], capture_output=True, text=True, check=False)
        for typed in (["--version"], ["convert", "nowhere", "x.hhtld"], ["convert"])
    ]
    assert [done.returncode for done in said] == [0, 3, 2]
    assert said[0].stdout.startswith("hhtld ")
    assert said[1].stderr.startswith("hhtld: nowhere: no such file or folder")
    assert said[2].stderr.startswith("hhtld convert: the following arguments are required: SRC, DST")


if __name__ == "__main__":
    TEXTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        texts = dict(_printed(Path(place)))  # a command that fails here leaves the old texts as they are
    for old in TEXTS.glob("*.txt"):
        old.unlink()
    for key, said in texts.items():
        (TEXTS / f"{key}.txt").write_text(said, encoding="utf-8")
