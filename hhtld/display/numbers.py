"""Numbers, sizes and shapes as text: what is printed of a cosine was reached."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["counted", "human_nbytes", "joined", "rates_text", "reached", "shape_text", "shortened"]


def shortened(text: str, limit: int) -> str:
    """Return `text`, or its beginning and its length if it is longer than `limit`."""
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text):,} characters)"


def reached(value: float, digits: int = 4) -> str:
    """Return a cosine, a share or a ratio with so many decimals, rounded down: what is printed was reached.

    A gate that asks 1 is not reached by 0.99996, and 99.96 % of the rows are not all of them; so neither may read so.
    """
    # 0.99 * 10**4 is a little less than 9900 in binary; the small term undoes that.
    return f"{math.floor(value * 10**digits + 1e-6) / 10**digits:.{digits}f}"


def human_nbytes(nbytes: float) -> str:
    """Return a size in decimal units, as disks are sold and file managers count."""
    if nbytes < 1000:
        return f"{nbytes:.0f} B"
    for unit in ("kB", "MB", "GB"):
        nbytes /= 1000
        if nbytes < 1000:
            return f"{nbytes:.2f} {unit}"
    return f"{nbytes / 1000:.2f} TB"


def shape_text(shape: Sequence[int]) -> str:
    """Return a tensor's shape as "2 x 3", or "scalar"."""
    return " x ".join(map(str, shape)) or "scalar"


def counted(count: int, what: str) -> str:
    """Return "1 row" or "1,234 rows"."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def joined(numbers: Sequence[float]) -> str:
    """Return numbers that add up, as the rates of two levels do."""
    return " + ".join(f"{number:g}" for number in numbers)


def rates_text(group: Mapping[str, Any]) -> str:
    """Return the bits a weight of a group: one rate, the sum of two levels, or the range of the classes of rows."""
    if "classes" in group:
        return f"{min(group['classes']):g} to {max(group['classes']):g}"
    return joined(group.get("bits", ()))
