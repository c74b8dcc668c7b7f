"""Vector instructions that AVX2 and AVX-512 take for 32 weights of a product, read off the disassembly.

    pip install -e '.[bench]' && python benchmarks/x86_loops.py

Takes a C compiler and objdump. Beside the loops of crossed.h for one query stands the loop of Q4_K in the package
xllamacpp. Moves are not counted, because they take no unit that computes; nor is what stands outside the loop.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

KERNELS = Path(__file__).resolve().parent.parent / "hhtld" / "_kernels"
FLAGS = ["-O3", "-std=c11", "-ffp-contract=off", "-Wno-unused-function"]  # those of setup.py
SOURCE = """
#include "crossed.h"
#define READS(tier, plan_of, name, body)                                                                      \\
    void name(const hh_crossed_use *with, const plan_of *plan, const uint8_t *codes, ptrdiff_t row_nbytes,    \\
              ptrdiff_t n_rows, ptrdiff_t n_cols, int32_t *sums) {                                            \\
        hh_crossed_read_##tier##_(HH_CROSSED_DOT, body, with, plan, codes, row_nbytes, n_rows, n_cols, sums, \\
                                  NULL, 0, NULL, NULL);                                                       \\
    }
HH_TARGET_AVX2_BEGIN
READS(avx2, hh_crossed_plan_avx2, two_bits_avx2, HH_CROSSED_TWO_BITS)
READS(avx2, hh_crossed_plan_avx2, four_bits_avx2, HH_CROSSED_FOUR_BITS)
READS(avx2, hh_crossed_plan_avx2, up_to_5_bits_avx2, HH_CROSSED_SHARED)
READS(avx2, hh_crossed_plan_avx2, any_rate_avx2, HH_CROSSED_ANY)
HH_TARGET_END
HH_TARGET_AVX512VNNI_BEGIN
READS(avx512vnni, hh_block_plan_avx512vnni, four_bits_avx512vnni, HH_CROSSED_FOUR_BITS)
READS(avx512vnni, hh_block_plan_avx512vnni, any_rate_avx512vnni, HH_CROSSED_ANY)
HH_TARGET_END
"""

WEIGHTS = {"vpmaddubsw": 32, "vpdpbusd": 64}  # that one such instruction multiplies
BRANCH = re.compile(r"j\w+\s+([0-9a-f]+)")
COMPUTES = re.compile(r"v(?!mov(dq|ss|aps|ups))")


class Function(dict[int, str]):
    """Instructions by address."""

    def loops(self) -> list[list[str]]:
        """Return innermost loops."""
        backward = []
        for at, text in self.items():
            branch = BRANCH.match(text)
            if branch and int(branch[1], 16) in self and int(branch[1], 16) <= at:
                backward.append((int(branch[1], 16), at))
        inner = [
            (first, last)
            for first, last in backward
            if not any(first <= other and end <= last and (other, end) != (first, last) for other, end in backward)
        ]
        return [[text for at, text in self.items() if first <= at <= last] for first, last in inner]


def functions(path: Path, symbol: str | None = None) -> dict[str, Function]:
    """Disassemble an object file, or one symbol of a shared object."""
    chosen = [f"--disassemble={symbol}"] if symbol else []
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", *chosen, path], check=True, capture_output=True, text=True
    ).stdout
    found: dict[str, Function] = {}
    for line in listing.splitlines():
        if name := re.match(r"[0-9a-f]+ <([\w.]+)>:", line):
            current = found.setdefault(name[1], Function())
        elif instruction := re.match(r"\s+([0-9a-f]+):\s+(.*)", line):
            current[int(instruction[1], 16)] = instruction[2]
    return found


def multiplied(body: list[str]) -> int:
    return sum(weights for line in body for name, weights in WEIGHTS.items() if line.startswith(name))


def print_loops(title: str, found: Function) -> None:
    for body in found.loops():
        if n_weights := multiplied(body):
            counted = sum(bool(COMPUTES.match(line)) for line in body)
            print(f"  {title:24} {32 * counted / n_weights:5.1f} of {32 * len(body) / n_weights:5.1f}")


def main() -> None:
    """Print a line for every loop."""
    print("vector instructions for 32 weights, of all instructions of the loop")
    with tempfile.TemporaryDirectory() as folder:
        source, built = Path(folder) / "loops.c", Path(folder) / "loops.o"
        source.write_text(SOURCE)
        subprocess.run(["cc", *FLAGS, f"-I{KERNELS}", "-c", source, "-o", built], check=True)
        for name, found in functions(built).items():
            print_loops(name, found)
    spec = find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        raise SystemExit("xllamacpp is not installed: pip install -e '.[bench]'")
    library = next(Path(spec.origin).parent.glob("xllamacpp*.so"))
    for routine in functions(library, "ggml_vec_dot_q4_K_q8_K").values():
        print_loops("Q4_K_avx2", routine)


if __name__ == "__main__":
    main()
