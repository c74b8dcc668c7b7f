"""Numbers as people read them."""

from __future__ import annotations

import pytest

from hhtld.display.numbers import reached


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
