"""The hot loops of the NEON bodies, as a compiler makes them: `python tests/trust/aarch64_loops.py` prints a table.

Each function of aarch64_loops.c holds one kernel. Its hot loop is the innermost loop in which the largest share of
instructions does the kernel's work; the other loops take what is left over. The table says how many instructions the
hot loop takes for each weight. Counts need no processor of that kind, and say nothing of how fast one is. A hot loop
that works on single floats, or mostly not on vectors, is an error.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parent.parent / "hhtld" / "_kernels"
FLAGS = ["-O3", "-std=c11", "-ffp-contract=off", "-Wno-unused-function", "-Wno-psabi"]  # those of setup.py

# An operation on a vector register; on single floats; and a branch, with its address and target.
VECTOR = re.compile(r"\bv\d+\.\d*[bhsd]|\bq\d+\b")
SINGLE_FLOAT = re.compile(r"^f(add|sub|mul|div|madd|msub|nmul|cmp|cvt|max|min)\w*\s+[hsd]\d|^[su]cvtf\s+[hsd]\d")
BRANCH = re.compile(r"^(?:b|b\.\w+|cbn?z|tbn?z)\s+(?:\w+, )?(?:#\d+, )?([0-9a-f]+) <")


class Kernel(NamedTuple):
    """What does the work in a kernel's hot loop, and how many weights one such instruction serves."""

    work: str
    weights: float
    of: str = "weight"


STORED = r"^st[rp]\s+q"  # a pair counts twice

LOOPS = {
    "widen_bf16": Kernel(r"^(orr|bsl|bit|bif)\s+v", 4),
    "widen_f16": Kernel(r"^fcvtl2?\s", 4),
    "narrow_bf16": Kernel(r"^uzp2\s", 8),
    "narrow_f16": Kernel(r"^fcvtn2?\s", 4),
    "first_nonfinite": Kernel(r"^cmeq\s", 4),
    "rotation_inside": Kernel(r"^f(add|sub)\s+v", 4 / 5, "weight, 5 stages"),
    "rotation_across": Kernel(r"^f(add|sub)\s+v", 4 / 3, "weight, 3 stages"),
    "viterbi_states_2": Kernel(r"^uqadd\s", 8, "state"),
    "viterbi_states_4": Kernel(r"^uqadd\s", 8, "state"),
    "viterbi_levels": Kernel(r"^smull2\s", 4, "level"),
    "feedback": Kernel(r"^fmul\s+v", 4, "product"),
    "decode_256": Kernel(r"^fmul\s+v", 4),
    "decode_4096": Kernel(r"^fmul\s+v", 4),
    "crossed_2_bits": Kernel(r"^st4\s", 64),
    "crossed_4_bits": Kernel(r"^st2\s", 32),
    "crossed_any": Kernel(r"^ushl\s", 16 / 4),
    "widen": Kernel(r"^fmul\s+v", 4),
    "products_1x1": Kernel(r"^sadalp\s", 8, "product"),
    "products_4x4": Kernel(r"^sadalp\s", 8, "product"),
    "products_1x1_dotprod": Kernel(r"^sdot\s", 16, "product"),
    "products_4x4_dotprod": Kernel(r"^sdot\s", 16, "product"),
    "panel": Kernel(r"^sadalp\s", 16, "product"),
    "panel_dotprod": Kernel(r"^sdot\s", 16, "product"),
    "l2_exact": Kernel(r"^fmul\s+v", 2),
    "l2_bound": Kernel(r"^fmla\s+v", 4),
    "l2_screen": Kernel(r"^fminnm\s+v", 2, "centroid"),
    "l1": Kernel(r"^sabd\s", 8),
    "leaf_project": Kernel(r"^fmla\s+v", 2 / 8, "weight, 8 lanes"),
    "leaf_reconstruct": Kernel(r"^fmul\s+v", 4 / 8, "weight, 8 lanes"),
    "fold": Kernel(r"^fcvtl2?\s", 17 / 8),
    "gram": Kernel(r"^fmla\s+v", 2, "product"),
    "row_dots": Kernel(r"^fmla\s+v", 2 / 3, "weight, 3 sums"),
    "dot_f64": Kernel(r"^fmul\s+v", 2, "product"),
    "subtract_f64": Kernel(r"^fmul\s+v", 2, "product"),
    "reflect": Kernel(r"^fmul\s+v", 2 / 8, "number, two rows"),
    "estimate_leaf": Kernel(r"^fmul\s+v", 4 / 8, "row of 8 lanes"),
    "estimate_dots": Kernel(r"^scvtf\s+v", 4, "row"),
    "collect": Kernel(r"^fcmg[et]\s+v", 4, "row"),
}


def disassembly(folder: Path) -> dict[str, list[tuple[int, str]]]:
    """Return address and text of the instructions of every function."""
    compiled = folder / "loops.o"
    command = [
        "aarch64-linux-gnu-gcc",
        *FLAGS,
        f"-I{KERNELS}",
        "-c",
        str(HERE / "aarch64_loops.c"),
        "-o",
        str(compiled),
    ]
    subprocess.run(command, check=True)
    listing = ["aarch64-linux-gnu-objdump", "-d", "--no-show-raw-insn", str(compiled)]
    functions: dict[str, list[tuple[int, str]]] = {}
    for line in subprocess.run(listing, check=True, capture_output=True, text=True).stdout.splitlines():
        if begins := re.match(r"[0-9a-f]+ <([\w.]+)>:", line):
            functions[begins[1]] = []
        elif found := re.match(r"\s+([0-9a-f]+):\s+(.*)", line):
            functions[list(functions)[-1]].append((int(found[1], 16), re.sub(r"\s+", " ", found[2])))
    return functions


def innermost_loops(function: list[tuple[int, str]]) -> list[list[str]]:
    """Return the instructions of every loop that holds no other."""
    bounds = set()
    for address, text in function:
        branch = BRANCH.match(text)
        if branch and function[0][0] <= int(branch[1], 16) <= address:
            bounds.add((int(branch[1], 16), address))
    inner = [
        (first, last)
        for first, last in bounds
        if not any(first <= other and end <= last and (other, end) != (first, last) for other, end in bounds)
    ]
    return [[text for address, text in function if first <= address <= last] for first, last in inner]


def hot_loop(name: str, functions: dict[str, list[tuple[int, str]]]) -> tuple[list[str], int]:
    """Return the loop of a kernel that does its work in the fewest instructions, and how many of them do it."""
    work = re.compile(LOOPS[name].work)
    called = {found[1] for _, text in functions[name] if (found := re.match(r"bl? [0-9a-f]+ <([\w.]+)>", text))}
    loops = [loop for one in {name, *called} & set(functions) for loop in innermost_loops(functions[one])]
    counted = [(sum(bool(work.match(text)) for text in loop), loop) for loop in loops]
    count, loop = max(counted, default=(0, [""]), key=lambda item: item[0] / len(item[1]))
    return loop, count


def main() -> None:
    """Print the table, or end with what is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        functions = disassembly(Path(folder))
    wrong = []
    print(f"{'kernel':22} {'instructions':>12} {'of vectors':>10} {'a turn':>7} {'for each':>9}")
    for name, kernel in LOOPS.items():
        loop, count = hot_loop(name, functions)
        if not count:
            wrong.append(f"{name}: no loop holds {kernel.work}")
            continue
        weights = count * kernel.weights
        n_vector = sum(bool(VECTOR.search(text)) for text in loop)
        print(f"{name:22} {len(loop):12} {n_vector:10} {weights:7g} {len(loop) / weights:9.3f} {kernel.of}")
        singles = [text for text in loop if SINGLE_FLOAT.match(text)]
        if len(singles) > (2 if name == "fold" else 0):  # of 17 columns, one is left over
            wrong.append(f"{name}: the hot loop works on single floats: {', '.join(singles)}")
        if 3 * n_vector < len(loop):
            wrong.append(f"{name}: of {len(loop)} instructions only {n_vector} work on vectors")
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
