"""The catalogue of bad inputs: complete, and every test it names is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.trust.catalogue import CATALOGUE

ROOT = Path(__file__).parent.parent.parent


def collected() -> list[str]:
    """Names of every test in the files that the catalogue speaks of."""
    files = sorted({test.split("::")[0] for entry in CATALOGUE.values() for test in entry.tests})
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "", "-p", "no:cacheprovider", *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return [line for line in done.stdout.splitlines() if "::" in line]


def tried(names: list[str]) -> dict[int, int]:
    """How many tests each number has."""
    return {number: sum(name.startswith(entry.tests) for name in names) for number, entry in CATALOGUE.items()}


def test_numbers_are_complete() -> None:
    assert list(CATALOGUE) == list(range(1, 129))
    for number, entry in CATALOGUE.items():
        assert bool(entry.tests) != bool(entry.not_here), number


@pytest.mark.exhaustive
def test_every_test_it_names_is_there() -> None:
    names = collected()
    skipped = [] if any("test_onnx.py" in name for name in names) else ["test_onnx.py"]
    skipped += [] if any("test_urls.py" in name for name in names) else ["test_urls.py"]
    skipped += [] if any("test_gguf.py" in name for name in names) else ["test_gguf.py"]
    missing = [
        (number, test)
        for number, entry in CATALOGUE.items()
        for test in entry.tests
        if not any(name.startswith(test) for name in names) and not any(file in test for file in skipped)
    ]
    assert missing == []
    assert sum(tried(names).values()) > 700
