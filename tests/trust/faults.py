"""Faults of the disk, injected into a real process between two of its system calls by strace.

After each the target must hold the old bytes or all of the new ones. What is left beside it is what an unfinished
conversion leaves, a journal and a partial file, and the same conversion with `resume` makes of it the very file that an
undisturbed one writes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import hhtld
from hhtld.storage.journal import journal_path, partial_path
from tests.conftest import low_rank

OLD = b"what stood here before"
N_WRITES, N_LINES = 11, 4  # of the conversion below and of its journal; one more finds none to fail
CALLS = "trace=pwrite64,write,ftruncate,fsync,rename,renameat,renameat2,unlink,unlinkat"


@dataclass(frozen=True)
class Fault:
    """A system call that fails.

    Attributes
    ----------
    what : str
        As strace's `-e inject=` takes it.
    code : int
        The exit code it must lead to: 4, an error that names the target; 0, none; -9, the process is killed.
    """

    what: str
    code: int


def every_fault() -> Iterator[Fault]:
    """Yield faults of every call that a conversion makes."""
    for call, most in (("pwrite64", N_WRITES), ("write", N_LINES)):
        for number in range(1, most + 1):
            for error in ("ENOSPC", "EIO", "EDQUOT"):
                yield Fault(f"{call}:error={error}:when={number}", 4)
            yield Fault(f"{call}:error=EINTR:when={number}", 0)  # is tried again
            yield Fault(f"{call}:signal=KILL:when={number}", -9)
            # A disk that lies: one byte is said to be written and none is. What is nothing but zeros hides it, and a
            # journal's damaged line is as if it had never been written.
            harmless = call == "write" or number in (1, 3, 4, 8)
            yield Fault(f"{call}:retval=1:when={number}", 0 if harmless else 4)
        yield Fault(f"{call}:error=ENOSPC:when={most + 1}", 0)
    for error in ("EIO", "ENOSPC"):
        yield Fault(f"fsync:error={error}:when=1", 4)
        yield Fault(f"fsync:error={error}:when=2", 0)  # of the folder: the file has its name
        for number in (1, 2):
            yield Fault(f"ftruncate:error={error}:when={number}", 4)
    for call in ("fsync", "ftruncate", "unlink"):
        for number in (1, 2):
            yield Fault(f"{call}:signal=KILL:when={number}", -9)
    for error in ("EXDEV", "EACCES", "EROFS", "EIO"):
        yield Fault(f"/rename:error={error}", 4)
    yield Fault("/rename:signal=KILL", -9)


@cache
def can_inject() -> bool:
    """Whether strace is there and may trace."""
    if sys.platform != "linux" or shutil.which("strace") is None:
        return False
    traced = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False)
    return traced.returncode == 0


def source(folder: Path) -> Path:
    """Return a small file to convert, written into a folder."""
    path = folder / "in.safetensors"
    from safetensors.numpy import save_file

    save_file({"w.up_proj": low_rank(600, 64), "n": low_rank(1, 5)[0]}, path)
    return path


def injected(fault: Fault, src: Path, target: Path) -> list[str]:
    """Convert a file while a fault happens, and return what went wrong with what is left."""
    target.parent.mkdir(exist_ok=True)
    for old in target.parent.iterdir():
        old.unlink()
    target.write_bytes(OLD)
    unfinished = [partial_path(target), journal_path(target)]
    command = ["strace", "-f", "-o", os.devnull, "-e", CALLS, "-e", f"inject={fault.what}"]
    for path in (target.parent, target, *unfinished):  # writes to the terminal are no matter
        command += ["-P", str(path)]
    command += [sys.executable, "-m", "hhtld.formats", "convert", str(src), str(target)]
    done = subprocess.run([*command, "--profile", "bits:2", "--jobs", "1"], capture_output=True, text=True, check=False)
    wrong = []
    code = -9 if done.returncode in (-9, 137) else done.returncode
    if code != fault.code:
        wrong.append(f"{fault.what}: exit code {code}, expected {fault.code}: {done.stderr[-300:]}")
    if code == 4 and not (done.stderr.startswith("hhtld: ") and target.name in done.stderr):
        wrong.append(f"{fault.what}: the error does not name the target: {done.stderr[-300:]}")
    if target.read_bytes() == OLD:
        if code == 0:
            wrong.append(f"{fault.what}: no error, and the old file still stands")
    elif target.read_bytes() != undisturbed(src):
        wrong.append(f"{fault.what}: the target is neither the old file nor the new one")
    elif code not in (0, -9):
        wrong.append(f"{fault.what}: exit code {code}, and the target is the new file")
    left = {path for path in target.parent.iterdir() if path != target}
    if left - set(unfinished) or (left and code == 0):
        wrong.append(f"{fault.what}: left behind: {sorted(path.name for path in left)}")
    if code != 0:
        hhtld.convert(src, target, profile="bits:2", jobs=1, resume=True)
        if target.read_bytes() != undisturbed(src) or list(target.parent.iterdir()) != [target]:
            wrong.append(f"{fault.what}: what was left did not become the file")
    return wrong


@cache
def undisturbed(src: Path) -> bytes:
    """Return what a conversion writes when nothing happens."""
    target = src.with_name("undisturbed.hhtld")
    hhtld.convert(src, target, profile="bits:2", jobs=1)
    return target.read_bytes()
