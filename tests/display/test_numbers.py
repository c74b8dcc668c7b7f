"""Numbers as people read them."""

from __future__ import annotations

import pytest

from hhtld.display.numbers import human_nbytes, reached


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.99996, 4, "0.9999"),
        (0.99, 4, "0.9900"),
        (0.29, 2, "0.29"),  # 28.999999999999996 hundredths in binary
        (1.9999, 2, "1.99"),
        (100 * 0.9996, 1, "99.9"),
        (100 * 0.57, 1, "57.0"),
        (-0.00001, 4, "-0.0001"),
        (1.0, 6, "1.000000"),
    ],
)
def test_what_is_printed_was_reached(value: float, digits: int, text: str) -> None:
    assert reached(value, digits) == text


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (5 * 10**9, "5.00 GB"), (2 * 10**15, "2000.00 TB")],
)
def test_sizes_have_the_unit_that_fits(nbytes: int, text: str) -> None:
    assert human_nbytes(nbytes) == text
