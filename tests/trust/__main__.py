"""Everything that is tried to break trust, counted: `python -m tests.trust`.

usage: python -m tests.trust [bad | bits | faults | fuzz | machines] ... [--seconds N]

Without words all of them run, but for those whose program is missing (strace, qemu); one that is named and lacks its
program is a finding. `bits` flips every bit of every golden pack (half a minute), `faults` every fault of every call of
a conversion (a minute), `fuzz` searches N seconds a reader (10), `machines` decodes and encodes the golden packs on
emulated processors. The exit code is 1 when anything was found.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.trust import damage, faults, fuzz, machines


def bad(folder: Path) -> Iterator[str]:
    """Every bad file through the readers: how many, the slowest, the largest."""
    from tests.trust.bad_files import bad_files, refusal
    from tests.trust.catalogue import CATALOGUE
    from tests.trust.test_catalogue import collected, tried

    counts = tried(collected())
    print(f"catalogue: {sum(map(bool, counts.values()))} of {len(CATALOGUE)} numbers tried by tests", end="; ")
    print(f"{sum(bool(entry.not_here) for entry in CATALOGUE.values())} do not apply and say why")
    yield from (f"number {n} has no test" for n, count in counts.items() if not count and not CATALOGUE[n].not_here)
    found = []
    refusal(bad_files()[0].written(folder / "first"))  # what is imported on use is no cost of a bad file
    for file in bad_files():
        refused = refusal(file.written(folder / file.format))
        if refused is None:
            yield f"{file.format}: {file.case} is read to the end"
        else:
            found.append((refused, file))
    slowest, largest = max(found, key=lambda f: f[0].seconds), max(found, key=lambda f: f[0].peak_nbytes)
    print(f"bad files: {len(found)} refused by name")
    print(f"  slowest: {1e3 * slowest[0].seconds:.1f} ms, {slowest[1].format}: {slowest[1].case}")
    size = len(largest[1].data)
    print(f"  largest: {largest[0].peak_nbytes:,} bytes, {largest[1].format}: {largest[1].case}, a file of {size:,}")


def bits(folder: Path) -> Iterator[str]:
    """Every bit, every length, every block of the golden packs."""
    flips = cuts = others = 0
    for golden in damage.GOLDEN:
        path = folder / golden.name
        shutil.copy(golden, path)
        flipped, lost = damage.flipped_bits(path, every=True), damage.lost_and_added(path)
        cut = damage.truncations(path)
        flips, cuts, others = flips + flipped.tried, cuts + cut.tried, others + lost.tried
        yield from flipped.missed + lost.missed + cut.missed
    print(f"golden packs: {len(damage.GOLDEN)}; {flips:,} bits flipped, {cuts:,} truncations", end=", ")
    print(f"{others:,} blocks lost and tails added")


def every_fault(folder: Path) -> Iterator[str]:
    """Every fault of every call."""
    count, source = 0, faults.source(folder)
    for count, fault in enumerate(faults.every_fault(), 1):  # noqa: B007 - its last value is printed
        yield from faults.injected(fault, source, folder / "out" / "m.hhtld")
    print(f"faults: {count} injected into system calls")


def searches(seconds: int) -> Iterator[str]:
    """A bounded search with every reader."""
    for reader in fuzz.READERS:
        run = fuzz.guided(reader, seconds) if fuzz.has_atheris() else fuzz.unguided(reader, seconds=seconds)
        how = "guided by coverage" if run.guided else "not guided"
        print(f"fuzzing {reader}: {run.executions:,} executions, {how}, {len(run.findings)} findings")
        yield from run.findings


def processors() -> Iterator[str]:
    """The golden packs on this processor and on emulated ones."""
    from hhtld._kernels import _isa

    own = list(machines.lines())
    print(f"tiers: {', '.join(_isa.available_tiers())}; here {own[0]}")
    # One processor of each tier: those of one tier run the same kernels, and tests try which tier each chooses.
    for tier, processor in {tier: processor for processor, tier in reversed(machines.PROCESSORS.items())}.items():
        found = machines.emulated(processor)
        print(f"machines: {processor}, {found[0]}, {len(found) - 1} golden packs decoded and encoded")
        if found != [f"tier {tier}", *own[1:]]:
            yield f"{processor}: {found}"


def main() -> int:
    """Run what is asked for and print the counts."""
    parser = argparse.ArgumentParser(prog="python -m tests.trust", description=__doc__.split("\n")[0])
    parser.add_argument("what", nargs="*", metavar="WHAT", help="bad, bits, faults, fuzz, machines; default all")
    parser.add_argument("--seconds", type=int, default=10, help="of fuzzing a reader (default 10)")
    args = parser.parse_args()
    parts: dict[str, Callable[[Path], Iterator[str]]] = {
        "bad": bad,
        "bits": bits,
        "faults": every_fault,
        "fuzz": lambda folder: searches(args.seconds),
        "machines": lambda folder: processors(),
    }
    if not set(args.what) <= set(parts):
        parser.error(f"WHAT is one of {', '.join(parts)}")
    lacking = {}
    if not faults.can_inject():
        lacking["faults"] = "strace is missing or may not trace"
    if not machines.can_emulate():
        lacking["machines"] = "qemu-user is not installed"
    wrong = 0
    for name in args.what or parts:
        if name in lacking:
            wrong += bool(args.what)
            print(f"{'FOUND' if args.what else 'left out'} {name}: {lacking[name]}")
            continue
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            for problem in parts[name](Path(folder)):
                wrong += 1
                print(f"FOUND {problem}")
        print(f"  {name} took {time.perf_counter() - started:.1f} s", flush=True)
    print("nothing was found" if not wrong else f"{wrong} found")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
