"""leaf.h on every tier against its twin."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hhtld._kernels import _leaf
from tests.kernels import reference

Fence = Callable[[Any], NDArray[Any]]
Array = NDArray[Any]


def bf16_valued(values: NDArray[Any]) -> NDArray[np.float32]:
    """Drop the low 16 bits: the products with a float32 are then exact in float64."""
    return (values.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def same_bits(actual: Array, expected: Array) -> None:
    unsigned = f"u{expected.itemsize}"
    np.testing.assert_array_equal(actual.view(unsigned), expected.view(unsigned))


def check_project(rows: Array, entries: Array, twigs: Array | None, basis: Array, isa: str, fenced: Fence) -> None:
    coefficients, expected = (
        fenced(np.zeros((len(rows), 8), np.float32)),
        np.zeros((len(rows), 8), np.float32),
    )
    fenced_twigs = None if twigs is None else fenced(twigs)
    _leaf.project(fenced(rows), fenced(entries), fenced_twigs, fenced(basis), coefficients, isa=isa)
    reference.project(rows, entries, twigs, basis, expected)
    same_bits(coefficients, expected)


@pytest.mark.parametrize("with_twigs", [True, False])
def test_project(with_twigs: bool, isa: str, n_cols: int, ragged_rows: tuple[int, ...], fenced: Fence) -> None:
    rng = np.random.default_rng(n_cols)
    basis = bf16_valued(rng.standard_normal((n_cols, 8))).astype(np.float64)
    for n_rows in ragged_rows:
        rows = rng.standard_normal((n_rows, n_cols)).astype(np.float32)
        entries = rng.standard_normal((7 if with_twigs else n_rows, n_cols)).astype(np.float32)
        twigs = rng.integers(0, 7, n_rows, dtype=np.uint8) if with_twigs else None
        check_project(rows, entries, twigs, basis, isa, fenced)


def test_project_order_of_sums(isa: str, n_cols: int, fenced: Fence) -> None:
    rng = np.random.default_rng(n_cols)
    spread = 10.0 ** rng.integers(-15, 15, (11, n_cols))
    rows = (rng.standard_normal((11, n_cols)) * spread).astype(np.float32)
    basis = bf16_valued(rng.standard_normal((n_cols, 8)) * 10.0 ** rng.integers(-9, 9, (n_cols, 8)))
    check_project(rows, np.zeros_like(rows), None, basis.astype(np.float64), isa, fenced)


def test_project_rounds_the_residual_to_float32(isa: str) -> None:
    rows, entries = np.full((9, 3), 1 + 2**-23, np.float32), np.full((9, 3), -(2.0**24), np.float32)
    basis, coefficients = np.ones((3, 8)), np.empty((9, 8), np.float32)
    _leaf.project(rows, entries, None, basis, coefficients, isa=isa)
    assert (coefficients == np.float32(3 * float(np.float32(2**24 + 1 + 2**-23)))).all()


def test_project_of_no_columns_is_zero(isa: str) -> None:
    coefficients = np.ones((2, 8), np.float32)
    empty = np.empty((2, 0), np.float32)
    _leaf.project(empty, empty, None, np.empty((0, 8)), coefficients, isa=isa)
    assert not coefficients.any()


@pytest.mark.parametrize("scale", [1.0, 0.0078125, 0.1, 3.0e-38, 1e-45, 3.4e38])
def test_quantize(scale: float, isa: str, fenced: Fence) -> None:
    rng = np.random.default_rng(5)
    steps = np.arange(-260, 261, dtype=np.float64) / 2
    with np.errstate(over="ignore"):
        ties = (steps * scale).astype(np.float32)
        near = [
            np.nextafter(ties, np.float32(0)),
            ties,
            np.nextafter(ties, np.copysign(np.float32(3e38), ties)),
        ]
        spread = (rng.standard_normal(500) * 60 * scale).astype(np.float32)
    values = np.concatenate([*near, spread, np.array([0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38], np.float32)])
    values = values[np.isfinite(values)]
    for count in (*range(18), len(values)):
        codes, expected = fenced(np.zeros(count, np.int8)), np.zeros(count, np.int8)
        _leaf.quantize_i8(fenced(values[:count]), scale, codes, isa=isa)
        reference.quantize_i8(values[:count], scale, expected)
        np.testing.assert_array_equal(codes, expected)
    assert np.abs(codes.astype(int)).max() <= 127


def test_quantize_rounds_half_away_from_zero(isa: str) -> None:
    codes = np.empty(10, np.int8)
    values = np.array([0.5, -0.5, 1.5, -2.5, 126.5, -126.5, 127.5, -127.5, 1e30, -1e30], np.float32)
    _leaf.quantize_i8(values, 1.0, codes, isa=isa)
    assert codes.tolist() == [1, -1, 2, -3, 127, -127, 127, -127, 127, -127]
    below = np.nextafter(np.array([0.5, -0.5, 1.5, -1.5], np.float32), np.float32(0))
    _leaf.quantize_i8(below, 1.0, codes[:4], isa=isa)
    assert codes[:4].tolist() == [0, 0, 1, -1]


@pytest.mark.parametrize("with_twigs", [True, False])
def test_reconstruct(with_twigs: bool, isa: str, n_cols: int, ragged_rows: tuple[int, ...], fenced: Fence) -> None:
    rng = np.random.default_rng(n_cols)
    basis = rng.standard_normal((8, n_cols)).astype(np.float32)
    for n_rows in ragged_rows:
        entries = rng.standard_normal((7 if with_twigs else n_rows, n_cols)).astype(np.float32)
        twigs = rng.integers(0, 7, n_rows, dtype=np.uint8) if with_twigs else None
        codes = rng.integers(-128, 128, (n_rows, 8), dtype=np.int8)
        scale = float(rng.uniform(1e-4, 1e-1))
        out, expected = fenced(np.zeros((n_rows, n_cols), np.float32)), np.zeros((n_rows, n_cols), np.float32)
        fenced_twigs = None if twigs is None else fenced(twigs)
        _leaf.reconstruct(fenced(entries), fenced_twigs, fenced(codes), scale, fenced(basis), out, isa=isa)
        reference.reconstruct(entries, twigs, codes, scale, basis, expected)
        same_bits(out, expected)


def test_reconstruct_without_leaf_copies_the_entries(isa: str, n_cols: int, fenced: Fence) -> None:
    rng = np.random.default_rng(n_cols)
    entries = rng.integers(0, 1 << 32, (5, n_cols), dtype=np.uint32).view(np.float32)
    twigs = np.array([4, 0, 4, 2], np.uint8)
    out = fenced(np.zeros((4, n_cols), np.float32))
    _leaf.reconstruct(entries, twigs, None, 0.0, None, out, isa=isa)
    same_bits(out, entries[twigs])
    out = fenced(np.zeros((5, n_cols), np.float32))
    _leaf.reconstruct(entries, None, None, 0.0, None, out, isa=isa)
    same_bits(out, entries)


def test_reconstruct_never_fuses(isa: str) -> None:
    step = np.float32(1 + 2**-12)
    entries = np.full((1, 40), -1 - 2**-11, np.float32)
    codes, basis = np.zeros((1, 8), np.int8), np.full((8, 40), step, np.float32)
    codes[0, 0] = 1
    out = np.empty((1, 40), np.float32)
    _leaf.reconstruct(entries, None, codes, float(step), basis, out, isa=isa)
    assert not out.any(), "2^-24 is left only when multiply and add are fused"


def test_no_rows(isa: str) -> None:
    none = np.empty((0, 3), np.float32)
    _leaf.project(none, none, None, np.ones((3, 8)), np.empty((0, 8), np.float32), isa=isa)
    _leaf.reconstruct(none, None, None, 1.0, None, none.copy(), isa=isa)
