"""cholesky.h on every tier against its twin, and against what factors are."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hhtld._kernels import _cholesky
from tests.kernels import reference

Fence = Callable[[Any], NDArray[Any]]


def positive(n: int) -> NDArray[np.float64]:
    rows = np.random.default_rng(n).standard_normal((n + 3, n))
    return rows.T @ rows


@pytest.mark.parametrize("n", [1, 2, 3, 15, 16, 17, 31, 32, 33, 65, 100])
def test_cholesky(n: int, isa: str, fenced: Fence) -> None:
    given = positive(n)
    found, expected = fenced(given), given.copy()
    _cholesky.cholesky(found, isa=isa)
    reference.cholesky(expected)
    assert found.tobytes() == expected.tobytes()
    lower = np.tril(found)
    assert np.abs(lower @ lower.T - given).max() <= 1e-14 * np.abs(given).max() * n
    assert np.array_equal(np.triu(found, 1), np.triu(given, 1)), "what is above is not touched"


@pytest.mark.parametrize("m", [1, 2, 15, 16, 17, 33, 70])
@pytest.mark.parametrize("count", [1, 3, 32])
def test_divide_rows(m: int, count: int, isa: str, fenced: Fence) -> None:
    factor, given = positive(70), np.random.default_rng(m).standard_normal((count, m))
    reference.cholesky(factor)
    found, expected = fenced(given), given.copy()
    _cholesky.divide_rows(fenced(factor), found, isa=isa)
    reference.divide_rows(factor, expected)
    assert found.tobytes() == expected.tobytes()
    assert np.abs(found @ np.tril(factor)[:m, :m] - given).max() <= 1e-12 * np.abs(found).max() * m


@pytest.mark.parametrize("bad", [-1.0, 0.0, float("nan")])
def test_what_is_not_positive_definite_is_refused(bad: float, isa: str) -> None:
    matrix = np.eye(40)
    matrix[35, 35] = bad
    with pytest.raises(ValueError, match="not positive definite: its first 36 rows"):
        _cholesky.cholesky(matrix, isa=isa)


def test_nothing_is_done_with_nothing(isa: str) -> None:
    _cholesky.cholesky(np.empty((0, 0)), isa=isa)
    _cholesky.divide_rows(np.eye(3), np.empty((0, 3)), isa=isa)
    _cholesky.divide_rows(np.eye(3), np.empty((2, 0)), isa=isa)
