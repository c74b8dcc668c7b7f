"""The table of gate 1: the cosines that rows reached, beside what is asked of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.text import Text

from hhtld.display.numbers import reached
from hhtld.display.tables import Table
from hhtld.display.terminal import EXPLAINED, safe
from hhtld.encoding.gate_report import GateReport
from hhtld.gates import Threshold

__all__ = ["gate_table"]

_KEPT = "kept: 6 bits a weight do not reach what is asked, so these tensors are stored byte for byte"


def gate_table(gates: GateReport) -> Table:
    """Return the row cosines by regime beside what gate 1 asks."""

    def rows() -> Iterator[tuple[Any, ...]]:
        for regime, cosines in gates.regimes.items():
            record = cosines.to_json()
            if not record["n_rows"]:
                continue
            asked = gates.thresholds[regime]
            verdict = "pass" if cosines.passes(asked) else "below"
            worst = record.get("lost", record.get("worst"))
            digits = max(4, *(len(_asked(value)) - len("0.") for value in (asked.median, asked.p5)))
            yield (
                regime,
                f"{record['n_rows']:,}",
                *([f"{record.get('n_zero_rows', 0):,}"] if with_zeros else []),
                *(reached(record[key], min(digits, 6)) if key in record else "" for key in ("median", "p5", "min")),
                f"{_asked(asked.median)} / {_asked(asked.p5)}",
                verdict,
                worst["row"] if worst else "",
                safe(worst["tensor"]) if worst else "",
            )

        for (regime, asked), names in _kept_by(gates).items():
            empty = [""] * (5 if with_zeros else 4)
            first, more = names[0], f" and {len(names) - 1:,} more" if len(names) > 1 else ""
            asks = f"{_asked(asked.median)} / {_asked(asked.p5)}"
            yield regime, *empty, asks, "kept", "", Text.assemble(safe(first), more)

    # Rows of zeros are counted apart: the cosines are those of the others.
    with_zeros = any(cosines.n_zero_rows for cosines in gates.regimes.values())
    headings = ("regime", ">rows", *([">zeros"] if with_zeros else []), ">median", ">p5", ">min", ">gate 1 asks")
    zeros = ("zeros: rows of zeros, which must come back as zeros; the cosines are those of the others",)
    return Table(
        (*headings, "verdict", ">worst row", "of tensor"),
        rows(),
        "Cosine of every encoded row with what the file gives back",
        spared=("min", "rows"),
        notes=(
            f"{EXPLAINED}; gate 1 asks for both",
            *(zeros if with_zeros else ()),
            *([_KEPT] if gates.unreached else []),
        ),
    )


def _kept_by(gates: GateReport) -> dict[tuple[str, Threshold], list[str]]:
    """Tensors that are kept because no rate reaches what is asked, by regime and what that is."""
    kept: dict[tuple[str, Threshold], list[str]] = {}
    for name, unreached in sorted(gates.unreached.items()):
        kept.setdefault((unreached.regime, unreached.threshold), []).append(name)
    return kept


def _asked(number: float) -> str:
    """A threshold with the digits that it has, two at least."""
    text = f"{number:g}"
    return text if len(text) > len("0.95") else f"{number:.2f}"
