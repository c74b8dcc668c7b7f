"""dot.h on every tier against its twin."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hhtld._kernels import _dot
from tests.kernels import reference

Fence = Callable[[Any], NDArray[Any]]


def spread_rows(n_rows: int, n_cols: int, seed: int) -> NDArray[np.float32]:
    """Rows whose sums depend on the order they are taken in."""
    rng = np.random.default_rng(seed)
    exponents = rng.integers(-12, 12, (n_rows, n_cols))
    return (rng.standard_normal((n_rows, n_cols)) * 10.0**exponents).astype(np.float32)


def same_bits(actual: NDArray[Any], expected: NDArray[Any]) -> None:
    np.testing.assert_array_equal(actual.view(np.uint64), expected.view(np.uint64))


def check_gram(x: NDArray[np.float32], isa: str, fenced: Fence) -> None:
    n_cols = x.shape[1]
    out, expected = fenced(np.full((n_cols, n_cols), np.nan)), np.empty((n_cols, n_cols))
    _dot.gram(fenced(x), out, isa=isa)
    reference.gram(x, expected)
    same_bits(out, expected)


def test_gram(isa: str, n_cols: int, fenced: Fence) -> None:
    for n_rows in (1, 2, 3, 8, 17, 33):
        check_gram(spread_rows(n_rows, n_cols, n_cols), isa, fenced)


def test_gram_every_row_count(isa: str, ragged_rows: tuple[int, ...], fenced: Fence) -> None:
    for n_rows in ragged_rows:
        for n_cols in (4, 12, 20, 24, 40, 71):
            check_gram(spread_rows(n_rows, n_cols, n_rows), isa, fenced)


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 3.4e38])
def test_gram_of_extremes(value: float, isa: str, fenced: Fence) -> None:
    check_gram(np.full((5, 33), value, np.float32), isa, fenced)


def test_gram_is_symmetric(isa: str) -> None:
    out = np.empty((67, 67))
    _dot.gram(spread_rows(40, 67, 1), out, isa=isa)
    same_bits(out, np.ascontiguousarray(out.T))


def test_row_dots(isa: str, n_cols: int, ragged_rows: tuple[int, ...], fenced: Fence) -> None:
    for n_rows in ragged_rows:
        x, y = spread_rows(n_rows, n_cols, n_cols), spread_rows(n_rows, n_cols, n_cols + 1)
        out, expected = fenced(np.full((n_rows, 3), np.nan)), np.empty((n_rows, 3))
        _dot.row_dots(fenced(x), fenced(y), out, isa=isa)
        reference.row_dots(x, y, expected)
        same_bits(out, expected)


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 3.4e38])
def test_row_dots_of_extremes(value: float, isa: str, fenced: Fence) -> None:
    x, y = np.full((3, 33), value, np.float32), np.full((3, 33), -3.4e38, np.float32)
    out, expected = fenced(np.zeros((3, 3))), np.empty((3, 3))
    _dot.row_dots(x, y, out, isa=isa)
    reference.row_dots(x, y, expected)
    same_bits(out, expected)


def test_nothing_to_sum_is_zero(isa: str) -> None:
    out = np.ones((3, 3))
    _dot.gram(np.empty((0, 3), np.float32), out, isa=isa)
    assert not out.any()
    out[:] = 1
    empty = np.empty((3, 0), np.float32)
    _dot.row_dots(empty, empty, out, isa=isa)
    assert not out.any()
    _dot.gram(empty, np.empty((0, 0)), isa=isa)
    _dot.row_dots(empty[:0], empty[:0], np.empty((0, 3)), isa=isa)
