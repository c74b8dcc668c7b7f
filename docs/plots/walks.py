"""Draw docs/plots/walk-*.svg, the walks of docs/architecture.md: `python docs/plots/walks.py`.

A walk is a table of that page below a heading such as "Walk: open"; its second column names functions. A test follows
the calls of a real run and compares.
"""

from __future__ import annotations

import re
import runpy
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent / "architecture.md"
WALK = re.compile(r"^### Walk: (\w+)\n(.*?)(?=^#|\Z)", re.DOTALL | re.MULTILINE)
STEP = re.compile(r"^\| \d+ \| `(hhtld[\w.]+)` \|", re.MULTILINE)
LANE, STEP_HEIGHT, LEFT, TOP, LABELS = 34, 26, 24, 92, 420


def walks() -> dict[str, list[str]]:
    """Return the names of the functions that every walk passes, in order."""
    return {name: STEP.findall(text) for name, text in WALK.findall(PAGE.read_text(encoding="utf-8"))}


def package(function: str, leaves: set[str]) -> str:
    """Return the package that holds a function, as tests/test_layering.py calls it."""
    first = function.split(".")[1]
    return "leaves" if first in leaves else first


def draw(steps: list[str], path: Path) -> None:
    """Write the picture of a walk: a lane for each package, a dot for each step."""
    packages, leaves = runpy.run_path(str(HERE / "packages.py"))["order"]()
    passed = {package(step, leaves) for step in steps}
    lanes = [name for name in reversed(packages) if name in passed]  # the highest at the left
    middle = {name: LEFT + number * LANE for number, name in enumerate(lanes)}
    labels = LEFT + len(lanes) * LANE + 4
    width, height = labels + LABELS, TOP + len(steps) * STEP_HEIGHT + 4
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for name, x in middle.items():
        lines.append(f'<path d="M{x} {TOP - 6}V{height - 8}" stroke="#dde3ee" stroke-width="2"/>')
        lines.append(f'<text transform="translate({x + 4} {TOP - 14}) rotate(-60)">{name}</text>')
    places = [(middle[package(step, leaves)], TOP + number * STEP_HEIGHT + 8) for number, step in enumerate(steps)]
    lines.append(
        f'<path d="M{"L".join(f"{x} {y}" for x, y in places)}" fill="none" stroke="#4575b4" stroke-width="2"/>'
    )
    for number, (step, (x, y)) in enumerate(zip(steps, places, strict=True), 1):
        lines.append(f'<path d="M{x + 9} {y}H{labels - 6}" stroke="#aab" stroke-dasharray="1 4"/>')
        lines.append(f'<circle cx="{x}" cy="{y}" r="9" fill="#4575b4"/>')
        lines.append(f'<text x="{x}" y="{y + 4}" font-size="11" fill="#fff" text-anchor="middle">{number}</text>')
        lines.append(f'<text x="{labels}" y="{y + 4.5:g}">{step.removeprefix("hhtld.")}</text>')
    path.write_text("\n".join([*lines, "</svg>"]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for walk, functions in walks().items():
        draw(functions, HERE / f"walk-{walk}.svg")
