"""Draw docs/plots/agreement.svg from the table in docs/profiles.md: `python docs/plots/agreement.py` (extra `report`).

The numbers are those of `benchmarks/llama_types.py` on SmolLM2-135M-Instruct.
"""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
PAGE = HERE.parent / "profiles.md"
ROW = re.compile(r"^\| ([^|]*[A-Za-z][^|]*) \| [\d.]+ \| ([\d.]+) \| ([\d.]+) \| [\d.]+ \|$", re.MULTILINE)
FAMILIES = (
    ("parity, calibrated", "#b2182b", "o-", lambda name: "parity" in name),
    ("bits:B", "#d6604d", "s--", lambda name: name.startswith("`bits")),
    ("llama.cpp + imatrix", "#2166ac", "^-", lambda name: name.endswith("imatrix")),
    ("llama.cpp", "#67a9cf", "v--", lambda name: name[0] in "QI" and not name.endswith("imatrix")),
)


def table() -> list[tuple[str, float, float]]:
    """Return name, bits a weight and share of equal next tokens of every row."""
    return [(name, float(bits), float(share)) for name, bits, share in ROW.findall(PAGE.read_text(encoding="utf-8"))]


def draw(path: Path) -> None:
    """Write the plot; equal tables give equal bytes."""
    with plt.rc_context({"svg.hashsalt": "hhtld", "font.size": 10, "svg.fonttype": "path"}):
        figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
        for label, color, style, belongs in FAMILIES:
            points = sorted((bits, share) for name, bits, share in table() if belongs(name))
            axes.plot(*zip(*points, strict=True), style, color=color, label=label, markersize=5)
        axes.set(xlabel="bits a weight", ylabel="share of equal next tokens", ylim=(0.4, 1.0))
        axes.set_title("SmolLM2-135M-Instruct: next tokens as before, by size", fontsize=11)
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", frameon=False)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    draw(HERE / "agreement.svg")
