"""Moments of low rank: near to what they are made of, and the same numbers in any order of sums."""

from __future__ import annotations

import numpy as np
import pytest

from hhtld.slots.moments import MAX_RANK, Moments


def products(n_cols: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((4 * n_cols, 6)) @ rng.standard_normal((6, n_cols)) * 3
    inputs += rng.standard_normal((4 * n_cols, n_cols))
    return inputs.T @ inputs / len(inputs)


@pytest.mark.parametrize("n_cols", [1, 7, 64, 301])
def test_moments_are_near_to_what_they_are_made_of(n_cols: int) -> None:
    whole = products(n_cols)
    near = Moments.of(whole, 16).dense()
    np.testing.assert_allclose(near.diagonal(), whole.diagonal(), rtol=2e-2)
    np.testing.assert_array_equal(near, near.T)
    off = ~np.eye(n_cols, dtype=bool)
    if n_cols > 7:
        assert np.abs(near - whole)[off].mean() < 0.1 * np.abs(whole)[off].mean()
    assert np.linalg.eigvalsh(near).min() > -1e-6 * near.max()


def test_sums_are_exact_in_any_order() -> None:
    moments = Moments.of(products(90), 24)
    rng = np.random.default_rng(1)
    for order in (np.arange(24), np.arange(24)[::-1], rng.permutation(24)):
        summed = np.zeros((90, 90))
        for k in order:
            factor = moments.factors[k] * 2.0 ** moments.exponents[k]
            summed += factor[:, None] * factor
        summed[np.diag_indices(90)] += moments.rest
        np.testing.assert_array_equal(moments.dense(), summed)


def test_sums_of_the_most_factors_stay_exact() -> None:
    exponents = np.resize(np.array([-15, 0], np.int16), MAX_RANK)
    moments = Moments(np.full((MAX_RANK, 3), 127, np.int8), exponents, np.zeros(3, np.float32))
    exact = sum(127 * 127 * 2 ** (2 * int(e) + 30) for e in exponents)
    assert (moments.dense() * 2.0**30 == exact).all()
    assert exact < 2**53


def test_nothing_has_moments_of_zeros() -> None:
    assert not Moments.of(np.zeros((5, 5)), 3).dense().any()


@pytest.mark.parametrize(
    ("factors", "exponents", "rest"),
    [
        (np.zeros((2, 3), np.int8), np.zeros(3, np.int16), np.zeros(3, np.float32)),
        (np.zeros((2, 3), np.int8), np.zeros(2, np.int16), np.zeros(2, np.float32)),
        (np.zeros((2, 3), np.int16), np.zeros(2, np.int16), np.zeros(3, np.float32)),
        (np.zeros((2, 3), np.int8), np.array([0, 16], np.int16), np.zeros(3, np.float32)),
        (np.zeros((2, 3), np.int8), np.array([99, 99], np.int16), np.zeros(3, np.float32)),
        (np.zeros((2, 3), np.int8), np.zeros(2, np.int16), np.array([0, -1, 0], np.float32)),
        (np.zeros((2, 3), np.int8), np.zeros(2, np.int16), np.array([0, np.nan, 0], np.float32)),
        (np.zeros((257, 3), np.int8), np.zeros(257, np.int16), np.zeros(3, np.float32)),
        (np.zeros(3, np.int8), np.zeros(2, np.int16), np.zeros(3, np.float32)),
    ],
)
def test_numbers_of_another_kind_are_refused(factors: np.ndarray, exponents: np.ndarray, rest: np.ndarray) -> None:
    with pytest.raises(ValueError, match="moments"):
        Moments(factors, exponents, rest)
