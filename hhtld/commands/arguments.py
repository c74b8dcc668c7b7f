"""What several commands take, and how texts of the command line become values."""

from __future__ import annotations

import argparse
import re
import sys
from fractions import Fraction

__all__ = [
    "add_all",
    "add_jobs",
    "add_json",
    "add_selection",
    "every",
    "gate",
    "number",
    "positive",
    "role",
    "row_range",
    "rule",
    "size",
    "whole_number",
]


def add_jobs(command: argparse.ArgumentParser) -> None:
    """Add --jobs."""
    command.add_argument("--jobs", type=positive, metavar="N", help="threads (default: all processors)")


def add_all(command: argparse.ArgumentParser) -> None:
    """Add --all."""
    command.add_argument(
        "--all", action="store_true", help="give every tensor a line of its own on a terminal, as in a pipe"
    )


def add_json(command: argparse.ArgumentParser) -> None:
    """Add --json."""
    command.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


def add_selection(command: argparse.ArgumentParser) -> None:
    """Add --only and --skip."""
    command.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="GLOB",
        help="take just the tensors whose name matches, as if SRC had no others; may be given several times",
    )
    command.add_argument(
        "--skip",
        action="append",
        default=[],
        metavar="GLOB",
        help="leave out the tensors whose name matches, as if SRC did not have them; may be given several times",
    )


def every(arguments: argparse.Namespace) -> bool:
    """Whether each tensor has a line: always in a pipe, which may be searched."""
    return bool(arguments.all) or not sys.stdout.isatty()


def positive(text: str) -> int:
    """Return a whole number of at least 1."""
    value = whole_number(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def whole_number(text: str) -> int:
    """Return a whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None


def number(text: str) -> float:
    """Return a number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None


def size(text: str) -> int:
    """Return the bytes of a size such as 64MB or 1GiB."""
    units = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Z]*)", text.upper())
    if not match or match[2] not in units or not Fraction(match[1]):
        raise argparse.ArgumentTypeError(f"expected a size such as 64MB or 1GiB, got {text!r}")
    return int(Fraction(match[1]) * units[match[2]])


def rule(text: str) -> tuple[str, str]:
    """Return the glob and the profile of GLOB=PROFILE."""
    glob, equals, profile = text.rpartition("=")
    if not equals or not glob:
        raise argparse.ArgumentTypeError(f"expected GLOB=PROFILE, got {text!r}")
    return glob, profile


def role(text: str) -> tuple[str, str]:
    """Return the glob and the regime of GLOB=REGIME."""
    glob, _, regime = text.rpartition("=")
    if not glob or regime not in ("index", "argmax"):
        raise argparse.ArgumentTypeError(f"expected GLOB=index or GLOB=argmax, got {text!r}")
    return glob, regime


def gate(text: str) -> tuple[str, float, float]:
    """Return the regime and the two cosines of REGIME=MEDIAN,P5."""
    regime, _, numbers = text.partition("=")
    try:
        median, p5 = (float(number) for number in numbers.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected REGIME=MEDIAN,P5, got {text!r}") from None
    if regime not in ("argmax", "index") or not (-1 <= p5 <= 1 and -1 <= median <= 1):
        raise argparse.ArgumentTypeError(f"expected argmax or index and two cosines, got {text!r}")
    return regime, median, p5


def row_range(text: str) -> slice:
    """Return the rows of A:B, A:B:STEP or A."""
    parts = text.split(":")
    try:
        numbers = [int(part) if part else None for part in parts]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected A:B, got {text!r}") from None
    if len(numbers) == 1 and numbers[0] is not None:
        return slice(numbers[0], numbers[0] + 1 or None)
    if len(numbers) > 3 or len(numbers) < 2:
        raise argparse.ArgumentTypeError(f"expected A:B, got {text!r}")
    if len(numbers) == 3 and numbers[2] == 0:
        raise argparse.ArgumentTypeError("a step cannot be 0")
    return slice(*numbers)
