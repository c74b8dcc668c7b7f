"""Memory and time of conversions by size, threads and dask's workers, each in a process of its own.

    python benchmarks/any_size.py FOLDER [GIB ...] [--memory MIB] [--profile P] [--jobs N] [--dask]

Writes checkpoints of GIB (default .25 .5 1) with `large_checkpoint.py` into FOLDER where they are missing, and converts
them. Memory is the peak of the resident set, VmHWM, less what the process had with everything imported; with
dask it is the client's, and the largest worker's in brackets. Time is a median of the rounds, in which everything that
is compared runs in turn; processor time is of all processes and says what a busy machine would hide. The slope is
that of time by size.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from large_checkpoint import write
from lookup_grade import processor


def resident(key: str, pid: int | str = "self") -> int:
    """Return a figure of /proc/PID/status in bytes, 0 where the process is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(key)), 0)


def children() -> list[int]:
    """Return the processes below this one."""
    found, parents = [os.getpid()], {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    while more := [pid for pid, parent in parents.items() if parent in found and pid not in found]:
        found += more
    return found[1:]


def convert(source: str, target: str, options: dict[str, Any]) -> None:
    """Convert and print what it took; runs in the child."""
    import rich  # noqa: F401  # what the command line imports too

    import hhtld
    import hhtld.api.convert

    before, workers = resident("VmRSS"), [0]

    def look(stage: str, name: str, nbytes: int) -> None:
        if str(options.get("executor")).startswith("dask"):
            workers[0] = max([workers[0], *(resident("VmHWM", pid) for pid in children())])

    started = time.perf_counter()
    report = hhtld.convert(source, target, progress=look, min_ratio=0.1, **options)
    seconds = time.perf_counter() - started
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    facts = {
        "seconds": seconds,
        "processor": sum(usage.ru_utime + usage.ru_stime for usage in usages),
        "peak": resident("VmHWM") - before,
        "worker": workers[0],
        "source": report.source_nbytes,
        "target": report.target_nbytes,
        "sha256": hashlib.sha256(Path(target).read_bytes()).hexdigest(),
    }
    print(json.dumps(facts))


def measured(source: Path, **options: Any) -> dict[str, Any]:
    """Return what one conversion took."""
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        command = [sys.executable, __file__, "--child", str(source), f"{folder}/m.hhtld", json.dumps(options)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def main() -> None:
    """Read the command line and print a table."""
    parser = argparse.ArgumentParser(description="Measure conversions by size.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("gib", type=float, nargs="*", default=[0.25, 0.5, 1.0])
    parser.add_argument("--memory", type=int, default=1024, help="MiB")
    parser.add_argument("--profile", default="gates")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--dask", action="store_true", help="dask:local too, with 1 worker and with --jobs")
    args = parser.parse_args()
    shared = {"profile": args.profile, "memory": args.memory << 20}
    crews: list[dict[str, Any]] = [{"jobs": 1}, {"jobs": args.jobs}]
    if args.dask:
        crews += [{"executor": "dask:local", "jobs": jobs} for jobs in (1, args.jobs)]
    print(f"{processor()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}; profile {args.profile}, memory")
    print(f"{args.memory} MiB, rows of {args.hidden}; median of {args.rounds}\n")
    print("    GiB  executor    jobs  seconds  processor s  MB/s  peak MiB        file MiB")
    fastest: list[tuple[float, float]] = []
    for gib in args.gib:
        source = args.folder / f"checkpoint-{gib:g}-{args.hidden}"
        if not (source / "config.json").exists():
            write(source, gib, hidden=args.hidden)
        rounds = [[measured(source, **shared, **crew) for crew in crews] for _ in range(args.rounds)]
        for crew, runs in zip(crews, zip(*rounds, strict=True), strict=True):
            seconds, first = median(run["seconds"] for run in runs), runs[0]
            worker = f" ({max(run['worker'] for run in runs) >> 20})" if first["worker"] else ""
            who = f"{crew.get('executor', 'threads'):10}  {crew['jobs']:4}"
            peak = f"{max(run['peak'] for run in runs) >> 20}{worker}"
            print(
                f"{first['source'] / 2**30:7.2f}  {who}  {seconds:7.1f}  "
                f"{median(run['processor'] for run in runs):11.1f}  {first['source'] / seconds / 1e6:4.0f}  {peak:14}  "
                f"{first['target'] / 2**20:8.1f}",
                flush=True,
            )
            if crew == crews[1]:
                fastest.append((first["source"] / 2**30, seconds))
        if len({run["sha256"] for runs in rounds for run in runs}) != 1:
            raise SystemExit("the files differ")
    print("\nevery file of a size has the same bytes")
    if len(fastest) > 1:
        (low, first_seconds), (high, last_seconds) = fastest[0], fastest[-1]
        slope = (last_seconds - first_seconds) / (high - low)
        print(f"{args.jobs} threads: {slope:.1f} s a GiB, {first_seconds - slope * low:.1f} s whatever the size")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        convert(sys.argv[2], sys.argv[3], json.loads(sys.argv[4]))
    else:
        main()
