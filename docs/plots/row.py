"""Draw docs/plots/row.svg, how a row is stored: `python docs/plots/row.py`.

The bars are an example; the sizes are those of formats/hhtld/SPEC.md for 384 columns at 2 bits a weight.
"""

from __future__ import annotations

from math import cos, sin
from pathlib import Path

HERE = Path(__file__).parent
N_COLS, BITS, STATE_BITS = 384, 2, 12
SLOTS = {  # bytes a row
    "D": (1, "#4575b4"),
    "V": (2, "#7b3294"),
    "L": (8, "#1a9850"),
    "T": (((N_COLS - 1) * BITS + STATE_BITS + 7) // 8, "#d6604d"),
}
N_BARS, PANEL, GAP, MIDDLE, TOP = 40, 150, 44, 110, 44
STRIP = 4 * PANEL + 3 * GAP


def parts() -> tuple[list[float], list[float], list[float]]:
    """Return an example of a centroid, a leaf and what is left for the trellis, in units of the panel's height."""
    columns = range(N_BARS)
    centroid = [0.62 * sin(0.31 * i) * cos(0.083 * i + 0.4) for i in columns]
    leaf = [0.22 * sin(0.19 * i + 1.0) for i in columns]
    rest = [0.17 * sin(2.9 * i * i + 0.7) for i in columns]
    return centroid, leaf, rest


def text(x: float, y: float, words: str, size: int = 13, color: str = "#222", anchor: str = "middle") -> str:
    """Return one line of text."""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{color}" text-anchor="{anchor}">{words}</text>'


def panel(x: float, values: list[float], color: str) -> list[str]:
    """Return the bars of one part of the row."""
    width = PANEL / N_BARS
    bars = [f'<path d="M{x} {MIDDLE}h{PANEL}" stroke="#999" stroke-width="0.6"/>']
    for i, value in enumerate(values):
        height = 58 * abs(value)
        top = MIDDLE - height if value > 0 else MIDDLE
        place = f'x="{x + i * width:.2f}" y="{top:.2f}" width="{width * 0.8:.2f}" height="{height:.2f}"'
        bars.append(f'<rect {place} fill="{color}"/>')
    return bars


def strip(y: float, nbytes: float, color: str, start: float = 0) -> str:
    """Return a bar of so many bytes, to the scale of the row as bfloat16."""
    scale = STRIP / (2 * N_COLS)
    return f'<rect x="{20 + start * scale:.2f}" y="{y}" width="{nbytes * scale:.2f}" height="16" fill="{color}"/>'


def draw(path: Path) -> None:
    """Write the picture."""
    centroid, leaf, rest = parts()
    row = [sum(values) for values in zip(centroid, leaf, rest, strict=True)]
    n_bytes = sum(size for size, _ in SLOTS.values())
    d, v, leaf_size, t = (size for size, _ in SLOTS.values())
    shown = [
        (row, "#555", "one row w", "384 weights", f"{2 * N_COLS} bytes as bfloat16"),
        (centroid, SLOTS["D"][1], "centroid[TWIG]", "the nearest row of a palette", f"Slot D: {d} byte"),
        (leaf, SLOTS["L"][1], "L · B", "8 directions the group shares", f"Slot L: {leaf_size} bytes"),
        (rest, SLOTS["T"][1], "Rᵀ(gain · level)", "the rest, at 2 bits a weight", f"Slots V and T: {v} + {t} bytes"),
    ]
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {STRIP + 40} 302" width="{STRIP + 40}" '
        'font-family="Helvetica, Arial, sans-serif">',
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for number, (values, color, formula, what, size) in enumerate(shown):
        x = 20 + number * (PANEL + GAP)
        lines += panel(x, values, color)
        lines.append(text(x + PANEL / 2, TOP - 14, formula, 15, color))
        lines.append(text(x + PANEL / 2, 188, what, 12))
        lines.append(text(x + PANEL / 2, 206, size, 12, color))
        if number:
            lines.append(text(x - GAP / 2, MIDDLE + 7, "=" if number == 1 else "+", 22))
    lines += [strip(226, 2 * N_COLS, "#bbb"), text(20 + STRIP / 2, 238.5, f"as bfloat16: {2 * N_COLS} bytes", 12)]
    start = 0
    for size, color in SLOTS.values():
        lines.append(strip(252, size, color, start))
        start += size
    in_file = f"in the file: {n_bytes} bytes (D {d}, V {v}, L {leaf_size}, T {t})"
    lines.append(text(20 + STRIP * n_bytes / (2 * N_COLS) + 10, 264.5, in_file, 12, anchor="start"))
    shared = "A group of tensors shares the palette, the basis B and the codebook of levels; R is computed from a seed."
    lines.append(text(20, 291, shared, 12, "#555", "start"))
    path.write_text("\n".join([*lines, "</svg>"]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    draw(HERE / "row.svg")
