"""What feedback is for: products with correlated inputs lose less."""

import numpy as np
import pytest

from hhtld.slots.feedback import feedback_matrix
from hhtld.slots.rotation import Rotation
from hhtld.slots.slot_t import Trellis


def lost(error: np.ndarray, moments: np.ndarray) -> float:
    return float(np.einsum("ij,jk,ik", error, moments, error))


@pytest.mark.parametrize("n_cols", [48, 192, 300])
@pytest.mark.parametrize("rate", [32, 64, 80])
def test_products_with_correlated_inputs_lose_less(n_cols: int, rate: int) -> None:
    rng = np.random.default_rng(n_cols)
    inputs = rng.standard_normal((4 * n_cols, n_cols // 6)) @ rng.standard_normal((n_cols // 6, n_cols))
    inputs += 0.3 * rng.standard_normal(inputs.shape)
    moments, scale = inputs.T @ inputs / len(inputs), np.exp(rng.standard_normal(n_cols) / 4).astype(np.float32)
    rows, rotation, code = (
        rng.standard_normal((64, n_cols)).astype(np.float32),
        Rotation(n_cols, 3),
        Trellis.trained(rate),
    )
    coded = rows * scale
    rotation.rotate(coded)
    errors = []
    for feedback in (None, feedback_matrix(moments, rotation, scale)):
        codes, gains = code.encode(coded, feedback)
        decoded = code.decode(codes, gains, n_cols)
        rotation.unrotate(decoded)
        errors.append((decoded / scale - rows).astype(np.float64))
    before, after = (lost(error, moments) for error in errors)
    assert after < (0.65 if n_cols < 100 else 0.35) * before
    assert (errors[1] ** 2).sum() < 1.5 * (errors[0] ** 2).sum()  # and rows themselves little more


def test_inputs_without_correlation_ask_for_nothing() -> None:
    found = feedback_matrix(np.eye(128), Rotation(128), np.ones(128, np.float32))
    assert np.abs(found).max() < 1e-6


def test_columns_that_were_never_read_and_huge_ones() -> None:
    moments = np.zeros((96, 96))
    moments[:40, :40] = 1e30
    found = feedback_matrix(moments, Rotation(96), np.full(96, 1e-6, np.float32))
    assert np.isfinite(found).all()
    assert np.isfinite(feedback_matrix(np.zeros((64, 64)), Rotation(64), np.ones(64, np.float32))).all()


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"moments must be \(8, 8\)"):
        feedback_matrix(np.eye(7), Rotation(8), np.ones(8, np.float32))
