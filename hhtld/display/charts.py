"""Charts that are drawn with characters."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["column_chart", "merged", "sparkline"]

# Nine heights of a cell, the first one empty; the second row for terminals that do not speak Unicode.
_LEVELS = {False: " \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588", True: " .:-=+*#@"}


def sparkline(values: Sequence[float], ascii_only: bool = False) -> str:
    """Return one character a value, from the lowest to the highest; all alike stand at half height."""
    levels = _LEVELS[ascii_only]
    low, high = min(values, default=0), max(values, default=0)
    if high == low:
        return levels[4] * len(values)
    return "".join(levels[1 + round((value - low) / (high - low) * 7)] for value in values)


def column_chart(counts: Sequence[float], height: int = 4, ascii_only: bool = False) -> list[str]:
    """Return lines, the top one first, of one column a count of 0 or more; whatever is not zero can be seen."""
    levels = _LEVELS[ascii_only]
    peak = max(counts, default=0) or 1
    heights = [math.ceil(count * height * 8 / peak) for count in counts]
    return ["".join(levels[min(max(tall - 8 * row, 0), 8)] for tall in heights) for row in range(height - 1, -1, -1)]


def merged(counts: Sequence[int], width: int) -> tuple[list[int], int]:
    """Return at most `width` sums of neighbours, and how many counts each adds up."""
    per = max(1, -(-len(counts) // max(1, width)))
    return [sum(counts[i : i + per]) for i in range(0, len(counts), per)], per
