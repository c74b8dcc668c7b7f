"""product.h on every tier against its twin."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hhtld._kernels import _score, _trellis
from hhtld.slots.rotation import Rotation
from hhtld.slots.slot_t import Trellis
from tests.kernels import reference

Fence = Callable[[Any], NDArray[Any]]

WIDTHS = (1, 2, 16, 33, 128, 160, 300, 576)


def case(n_rows: int, n_cols: int, n_inputs: int, rate: int = 40) -> tuple[Any, ...]:
    rng = np.random.default_rng((n_rows, n_cols, n_inputs))
    code = Trellis.trained(rate)
    codes = rng.integers(0, 256, (n_rows, code.row_nbytes(n_cols)), np.uint8)
    gains = rng.standard_normal(n_rows).astype(np.float32)
    inputs = rng.standard_normal((n_inputs, n_cols)).astype(np.float32)
    inputs[0] = 0
    return code, codes, gains, Rotation(n_cols, 3).signs, inputs


@pytest.mark.parametrize("n_planes", [1, 2])
@pytest.mark.parametrize("n_cols", WIDTHS)
def test_products_are_the_twins(n_cols: int, n_planes: int, isa: str, fenced: Fence) -> None:
    for n_rows, n_inputs in ((1, 1), (5, 1), (50, 2), (49, 33)):
        code, codes, gains, signs, inputs = case(n_rows, n_cols, n_inputs)
        scale = (1 + np.arange(n_cols) % 5).astype(np.float32) / 4
        for column_scale in (None, scale):
            out, expected = fenced(np.zeros((n_inputs, n_rows), np.float32)), np.zeros((n_inputs, n_rows), np.float32)
            assert _score.trellis_products(
                fenced(codes),
                code.levels,
                code.rate,
                fenced(gains),
                fenced(signs),
                fenced(inputs),
                n_planes,
                out,
                column_scale=column_scale,
                crossed=code.crossed,
                isa=isa,
            )
            assert reference.trellis_products(
                codes, code.levels, code.rate, gains, signs, inputs, n_planes, expected, column_scale
            )
            np.testing.assert_array_equal(out, expected)


def test_planes_come_near_the_decoded_product() -> None:
    code, codes, gains, signs, inputs = case(200, 576, 4, 64)
    rows = np.empty((200, 576), np.float32)
    _trellis.decode(codes, code.levels, code.rate, gains, rows, crossed=code.crossed)
    Rotation(576, 3).unrotate(rows)
    exact = inputs.astype(np.float64) @ rows.astype(np.float64).T
    for n_planes, most in ((1, 1.2e-2), (2, 5e-5)):
        out = np.zeros((4, 200), np.float32)
        assert _score.trellis_products(
            codes, code.levels, code.rate, gains, signs, inputs, n_planes, out, crossed=code.crossed
        )
        error = np.linalg.norm(out - exact, axis=1)[1:] / np.linalg.norm(exact, axis=1)[1:]
        assert error.max() < most
        assert not out[0].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_finite_is_told(bad: float, isa: str) -> None:
    code, codes, gains, signs, inputs = case(3, 64, 2)
    inputs[1, :2] = bad  # 3e38 passes float32's range in the rotation
    out = np.zeros((2, 3), np.float32)
    assert not _score.trellis_products(codes, code.levels, code.rate, gains, signs, inputs, 1, out, isa=isa)


def test_bad_arguments_are_named() -> None:
    code, codes, gains, signs, inputs = case(3, 64, 2)
    out = np.zeros((2, 3), np.float32)
    for change, message in (
        ({"gains": gains[:2]}, r"gains must be \(3,\)"),
        ({"out": out[:1]}, r"out \(2, 3\)"),
        ({"signs": signs[:, :63].copy()}, r"signs must be \(2, 64\)"),
        ({"n_planes": 3}, "n_planes must be 1 or 2, got 3"),
        ({"column_scale": np.ones(63, np.float32)}, r"column_scale must be \(64,\)"),
    ):
        given = {"gains": gains, "signs": signs, "inputs": inputs, "n_planes": 1, "out": out} | change
        with pytest.raises(ValueError, match=message):
            _score.trellis_products(codes, code.levels, code.rate, **given)
    none = np.zeros((0, 3), np.float32)
    assert _score.trellis_products(codes, code.levels, code.rate, gains, signs, inputs[:0], 1, none)
