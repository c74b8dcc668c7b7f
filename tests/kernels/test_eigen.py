"""eigen.h on every tier against its twin, and against what eigenpairs are."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hhtld._kernels import _eigen
from tests.kernels import reference

Fence = Callable[[Any], NDArray[Any]]
Pairs = tuple[NDArray[np.float64], NDArray[np.float64]]


def eigenpairs(matrix: NDArray[np.float64], count: int = 8, isa: str | None = None) -> Pairs:
    count = min(count, len(matrix))
    values, vectors = np.empty(count), np.empty((count, len(matrix)))
    _eigen.largest_eigenpairs(np.ascontiguousarray(matrix), values, vectors, isa=isa)
    return values, vectors


def symmetric(kind: str, n: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(n)
    rows = rng.standard_normal((2 * n + 1, n))
    orthogonal, _ = np.linalg.qr(rng.standard_normal((n, n)))
    return {
        "gram": rows.T @ rows,
        "indefinite": rows[:n] + rows[:n].T,
        "rank 3": rows[:3].T @ rows[:3],
        "ones": np.ones((n, n)),
        "zeros": np.zeros((n, n)),
        "identity": np.eye(n),
        "identity and a constant": np.eye(n) + 0.5,
        "8 equal": orthogonal * np.where(np.arange(n) < 8, 1.0, 0.1) @ orthogonal.T,
        "diagonal": np.diag(np.arange(float(n))),
        "wilkinson": np.diag(np.abs(np.arange(float(n)) - n // 2)) + np.eye(n, k=1) + np.eye(n, k=-1),
        "tiny": rows.T @ rows * 1e-90,
        "huge": rows.T @ rows * 1e78,
    }[kind]


KINDS = [
    *("gram", "indefinite", "rank 3", "ones", "zeros", "identity", "identity and a constant", "8 equal", "diagonal"),
    *("wilkinson", "tiny", "huge"),
]


@cache
def expected(kind: str, n: int) -> tuple[bytes, bytes]:
    values, vectors = np.empty(min(n, 8)), np.empty((min(n, 8), n))
    reference.largest_eigenpairs(symmetric(kind, n), values, vectors)
    return values.tobytes(), vectors.tobytes()


@pytest.mark.parametrize("n", [1, 2, 3, 15, 16, 17, 18, 31, 33, 40])
def test_largest_eigenpairs(n: int, isa: str, fenced: Fence) -> None:
    for kind in ("gram", "rank 3", "identity and a constant", "zeros", "huge"):
        matrix, count = symmetric(kind, n), min(n, 8)
        values, vectors = fenced(np.full(count, np.nan)), fenced(np.full((count, n), np.nan))
        _eigen.largest_eigenpairs(fenced(matrix), values, vectors, isa=isa)
        assert (values.tobytes(), vectors.tobytes()) == expected(kind, n), kind


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 2, 9, 16, 40, 190])
def test_they_are_eigenpairs_and_the_largest(kind: str, n: int) -> None:
    matrix = symmetric(kind, n)
    values, vectors = eigenpairs(matrix)
    size = np.abs(matrix).sum(axis=1).max() or 1.0
    assert np.abs(values - np.linalg.eigvalsh(matrix)[::-1][: len(values)]).max() <= 1e-14 * size
    assert np.abs(vectors @ matrix - values[:, None] * vectors).max() <= 1e-14 * size
    assert np.abs(vectors @ vectors.T - np.eye(len(values))).max() <= 1e-13


@pytest.mark.parametrize("kind", ["gram", "identity and a constant", "8 equal"])
def test_every_tier_gives_the_same_bits_of_what_no_twin_has_time_for(kind: str, isa: str) -> None:
    matrix = symmetric(kind, 301)
    for ours, scalar in zip(eigenpairs(matrix, isa=isa), eigenpairs(matrix, isa="scalar"), strict=True):
        assert ours.tobytes() == scalar.tobytes()
