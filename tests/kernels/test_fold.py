"""fold.h on every tier against its twin."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hhtld._kernels import _fold
from tests.kernels import reference

Fence = Callable[[Any], NDArray[Any]]
DIM_OF_POSITION = {11 * i % 17: i for i in range(17)}


def check_fold(rows: NDArray[np.float32], isa: str, fenced: Fence) -> NDArray[np.int16]:
    dims, expected = (np.full((len(rows), 17), 12345, np.int16) for _ in range(2))
    dims = fenced(dims)
    _fold.base17_fold(fenced(rows), dims, isa=isa)
    reference.base17_fold(rows, expected)
    np.testing.assert_array_equal(dims, expected)
    return dims


@pytest.mark.parametrize("scale", [1.0, 1e-3, 200.0, 1e38])
def test_fold(scale: float, isa: str, n_cols: int, ragged_rows: tuple[int, ...], fenced: Fence) -> None:
    rng = np.random.default_rng(n_cols)
    for n_rows in ragged_rows:
        check_fold((rng.standard_normal((n_rows, n_cols)) * scale).clip(-3e38, 3e38).astype(np.float32), isa, fenced)


def test_fold_order_of_sums(isa: str, n_cols: int, fenced: Fence) -> None:
    rng = np.random.default_rng(n_cols)
    exponents = rng.integers(-20, 20, (8, n_cols))
    check_fold((rng.standard_normal((8, n_cols)) * 10.0**exponents).astype(np.float32), isa, fenced)


@pytest.mark.parametrize(
    ("value", "dim"),
    [
        (0.0, 0),
        (-0.0, 0),
        (0.5 / 256, 1),
        (-0.5 / 256, -1),
        (float(np.nextafter(np.float32(0.5 / 256), np.float32(0))), 0),
        (2.5 / 256, 3),
        (-2.5 / 256, -3),
        (32766.5 / 256, 32767),
        (-32767.5 / 256, -32768),
        (128.0, 32767),
        (-128.0, -32768),
        (-128.5, -32768),
        (3.4e38, 32767),
        (-3.4e38, -32768),
        (1e-45, 0),
    ],
)
def test_fold_rounds_half_away_from_zero_and_clamps(value: float, dim: int, isa: str, fenced: Fence) -> None:
    for n_cols in (17, 34, 51):  # means of up to three equal values are exact
        assert (check_fold(np.full((3, n_cols), value, np.float32), isa, fenced) == dim).all()


def test_fold_of_no_columns_is_zero(isa: str) -> None:
    dims = np.full((2, 17), 7, np.int16)
    _fold.base17_fold(np.empty((2, 0), np.float32), dims, isa=isa)
    assert not dims.any()


def test_fold_puts_each_column_in_its_dim(isa: str, fenced: Fence) -> None:
    rows = np.diag(np.arange(1, 18, dtype=np.float32))
    dims = check_fold(rows, isa, fenced)
    for column in range(17):
        expected = np.zeros(17, np.int16)
        expected[DIM_OF_POSITION[column]] = 256 * (column + 1)
        np.testing.assert_array_equal(dims[column], expected)


def test_unfold(isa: str, n_cols: int, ragged_rows: tuple[int, ...], fenced: Fence) -> None:
    rng = np.random.default_rng(n_cols)
    for n_rows in ragged_rows:
        dims = rng.integers(-32768, 32768, (n_rows, 17), dtype=np.int16)
        rows, expected = (
            fenced(np.zeros((n_rows, n_cols), np.float32)),
            np.zeros((n_rows, n_cols), np.float32),
        )
        _fold.base17_unfold(fenced(dims), rows, isa=isa)
        reference.base17_unfold(dims, expected)
        np.testing.assert_array_equal(rows, expected)


def test_folding_undoes_unfolding(isa: str) -> None:
    rng = np.random.default_rng(3)
    dims = rng.integers(-32768, 32768, (50, 17), dtype=np.int16)
    rows, again = np.empty((50, 17 * 16), np.float32), np.empty((50, 17), np.int16)
    _fold.base17_unfold(dims, rows, isa=isa)
    _fold.base17_fold(rows, again, isa=isa)
    np.testing.assert_array_equal(again, dims)


def test_no_rows(isa: str) -> None:
    _fold.base17_fold(np.empty((0, 5), np.float32), np.empty((0, 17), np.int16), isa=isa)
    _fold.base17_unfold(np.empty((0, 17), np.int16), np.empty((0, 5), np.float32), isa=isa)
    _fold.base17_unfold(np.zeros((2, 17), np.int16), np.empty((2, 0), np.float32), isa=isa)
