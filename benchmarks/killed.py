"""Conversions killed at random moments and resumed: the same bytes, and how much work was done twice.

    python benchmarks/killed.py FOLDER [--gib .25] [--kills 10] [--jobs 2] [--seed 0]

Writes a checkpoint with `large_checkpoint.py` into FOLDER where it is missing, converts it undisturbed, then kills a
conversion (SIGKILL) when random shares of it are done, resuming it every time. Work done twice is what had been coded
when the process died, less what the next one took over, as a share of the former.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from large_checkpoint import write

import hhtld


def child(source: str, target: str, log: str, jobs: int) -> None:
    """Convert, and tell a file what was coded and what was taken over as it happens."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def tell(stage: str, name: str, nbytes: int) -> None:
        os.write(out, f"{stage} {nbytes}\n".encode())

    hhtld.convert(source, target, profile="gates", min_ratio=0, jobs=jobs, resume=True, progress=tell)


def told(log: Path) -> dict[str, int]:
    """Return bytes by stage."""
    found: dict[str, int] = {}
    for line in log.read_text().splitlines() if log.exists() else []:
        stage, nbytes = line.split()
        found[stage] = found.get(stage, 0) + int(nbytes)
    return found


def done(found: dict[str, int]) -> int:
    """Return the bytes that are coded."""
    return found.get("resume", 0) + found.get("encode", 0) - found.get("again", 0)


def main() -> None:
    """Read the command line and print a line a kill."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gib", type=float, default=0.25)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    source = args.folder / f"checkpoint-{args.gib:g}-1024"
    if not (source / "config.json").exists():
        write(source, args.gib, hidden=1024)
    whole, target, log = args.folder / "whole.hhtld", args.folder / "killed.hhtld", args.folder / "killed.log"
    for path in (whole, target, log):
        path.unlink(missing_ok=True)
    hhtld.convert(source, whole, profile="gates", min_ratio=0, jobs=args.jobs)
    nbytes = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    rng = random.Random(args.seed)
    moments = sorted(rng.uniform(0.02, 0.98) for _ in range(args.kills))
    command = [sys.executable, __file__, "--child", str(source), str(target), str(log), str(args.jobs)]
    print("kill  coded before   taken over  done twice")
    coded, worst, kills = 0, 0.0, 0
    while True:
        log.unlink(missing_ok=True)
        with subprocess.Popen(command) as process:
            while process.poll() is None:
                if kills < args.kills and done(told(log)) >= moments[kills] * nbytes:
                    process.send_signal(signal.SIGKILL)
                    break
                time.sleep(0.01)
        found = told(log)
        if coded:
            over = found.get("resume", 0)
            worst = max(worst, (coded - over) / coded)
            print(f"{kills:4}  {coded:12,}  {over:11,}  {(coded - over) / coded:10.1%}", flush=True)
        if process.returncode == 0:
            break
        if process.returncode != -signal.SIGKILL:
            raise SystemExit(f"the conversion ended with {process.returncode}")
        kills, coded = kills + 1, done(found)
    same = hashlib.sha256(whole.read_bytes()).digest() == hashlib.sha256(target.read_bytes()).digest()
    print(f"{kills} kills; at most {worst:.1%} of finished work done twice; {'the same' if same else 'OTHER'} bytes")
    sys.exit(not same)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]))
    else:
        main()
