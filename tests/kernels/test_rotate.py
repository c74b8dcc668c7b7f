"""rotate.h on every tier against its twin, and what a rotation must keep."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hhtld._kernels import _rotate
from hhtld.slots.rotation import Rotation
from tests.kernels import reference

Fence = Callable[[Any], NDArray[Any]]
Array = NDArray[Any]
WIDTHS = (*range(1, 41), *range(63, 67), 100, 384, 576, 896, 1000, 1024, 1536, 4097)
BOTH = pytest.mark.parametrize("name", ["rotate", "unrotate"])


def random_signs(n_cols: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng([seed, n_cols]).choice([np.float32(-1), np.float32(1)], (2, n_cols))


def awkward_rows(n_cols: int) -> NDArray[np.float32]:
    """Rows that round, vanish, stay denormal, grow large, hold signed zeros or one value only."""
    rng = np.random.default_rng(n_cols)
    rows = rng.standard_normal((9, n_cols))
    rows[1] *= 10.0 ** rng.integers(-20, 20, n_cols)
    rows[2] = 0
    rows[3] = np.copysign(0, rows[3])
    rows[4] *= 1e-40
    rows[5] *= 1e30
    rows[6] = 1e30
    rows[7] = 3.7
    rows[8] = np.arange(n_cols) == n_cols // 2
    return rows.astype(np.float32)


def same_bits(actual: Array, expected: Array) -> None:
    np.testing.assert_array_equal(actual.view(np.uint32), expected.view(np.uint32))


@BOTH
def test_like_the_twin(name: str, isa: str, fenced: Fence) -> None:
    for n_cols in WIDTHS:
        rows, signs = awkward_rows(n_cols), random_signs(n_cols)
        turned = fenced(rows)
        getattr(_rotate, name)(turned, fenced(signs), isa=isa)
        getattr(reference, name)(rows, signs)
        same_bits(turned, rows)


@BOTH
@pytest.mark.parametrize("n_rows", [0, 1, 2, 3, 7])
def test_any_number_of_rows(name: str, n_rows: int, isa: str, fenced: Fence) -> None:
    rows, signs = awkward_rows(48)[:n_rows], random_signs(48)
    turned = fenced(rows)
    getattr(_rotate, name)(turned, signs, isa=isa)
    getattr(reference, name)(rows, signs)
    same_bits(turned, rows)


@pytest.mark.parametrize("n_cols", [*range(1, 20), 33, 48, 64])
def test_the_matrix_is_orthonormal(n_cols: int, isa: str) -> None:
    matrix = np.eye(n_cols, dtype=np.float32)
    inverse = matrix.copy()
    signs = random_signs(n_cols)
    _rotate.rotate(matrix, signs, isa=isa)
    _rotate.unrotate(inverse, signs, isa=isa)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(n_cols), atol=1e-6)
    np.testing.assert_allclose(inverse, matrix.T, atol=1e-7)


def test_the_matrix_is_the_documented_one(isa: str) -> None:
    n_cols, block = 12, 8
    signs = random_signs(n_cols)
    hadamard = np.array([[(-1.0) ** (i & j).bit_count() for j in range(block)] for i in range(block)]) / np.sqrt(block)
    first, last = np.eye(n_cols), np.eye(n_cols)
    first[:block, :block] = hadamard
    last[-block:, -block:] = hadamard
    expected = last @ np.diag(signs[1]) @ first @ np.diag(signs[0])
    rows = np.eye(n_cols, dtype=np.float32)
    _rotate.rotate(rows, signs, isa=isa)  # row i becomes column i of the matrix
    np.testing.assert_allclose(rows.T, expected, atol=1e-6)


@pytest.mark.parametrize("n_cols", WIDTHS)
def test_there_and_back(n_cols: int) -> None:
    rows = np.random.default_rng(n_cols).standard_normal((5, n_cols)).astype(np.float32)
    rows *= np.array([[1], [1e-30], [1e30], [1e-3], [1]], np.float32)
    turned, rotation = rows.copy(), Rotation(n_cols, seed=n_cols)
    rotation.rotate(turned)
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    np.testing.assert_allclose(np.linalg.norm(turned.astype(np.float64), axis=1), norms, rtol=1e-6)
    rotation.unrotate(turned)
    apart = np.linalg.norm(turned.astype(np.float64) - rows, axis=1)
    assert (apart <= 2e-6 * norms).all()


def test_a_column_is_a_sign(isa: str) -> None:
    rows = np.array([[1.5], [-2.5]], np.float32)
    _rotate.rotate(rows, np.array([[-1], [1]], np.float32), isa=isa)
    assert rows.tolist() == [[-1.5], [2.5]]


@pytest.mark.parametrize("n_cols", [576, 1000, 1024])
def test_outliers_and_constants_are_spread(n_cols: int) -> None:
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((64, n_cols)).astype(np.float32)
    rows[:32, rng.choice(n_cols, 8)] *= 100
    rows[32:] = 1
    Rotation(n_cols).rotate(rows)
    rows /= rows.std(axis=1, keepdims=True)
    assert np.abs(rows).max() < 8
    kurtosis = (rows[:32].astype(np.float64) ** 4).mean()
    assert kurtosis < 4, "a Gaussian has 3"


@BOTH
def test_no_columns(name: str, isa: str) -> None:
    getattr(_rotate, name)(np.empty((3, 0), np.float32), np.empty((2, 0), np.float32), isa=isa)


@BOTH
@pytest.mark.parametrize("shape", [(1, 20), (3, 20), (2, 19), (2, 21), (0, 20), (2, 0)])
def test_signs_of_another_shape_are_refused(name: str, shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"signs has shape .* expected \(2, 20\)"):
        getattr(_rotate, name)(np.zeros((3, 20), np.float32), np.ones(shape, np.float32))


@BOTH
@pytest.mark.parametrize("argument", [0, 1])
def test_what_is_no_aligned_float32_matrix_is_refused(name: str, argument: int) -> None:
    valid = [np.zeros((3, 20), np.float32), np.ones((2, 20), np.float32)]
    array = valid[argument]
    unaligned = np.frombuffer(bytearray(array.nbytes + 1), np.float32, array.size, 1).reshape(array.shape)
    wrong = (array.astype(np.float64), array[0], np.asfortranarray(array), array.repeat(2, 1)[:, ::2], unaligned)
    for value in wrong:
        with pytest.raises(ValueError, match=r"."):
            getattr(_rotate, name)(*[value if i == argument else other for i, other in enumerate(valid)])
    for nothing in (None, array.tolist()):
        with pytest.raises(TypeError):
            getattr(_rotate, name)(*[nothing if i == argument else other for i, other in enumerate(valid)])


@BOTH
def test_read_only_signs_are_accepted_and_rows_refused(name: str) -> None:
    rows, signs = np.zeros((3, 20), np.float32), np.ones((2, 20), np.float32)
    signs.flags.writeable = False
    getattr(_rotate, name)(rows, signs)
    rows.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        getattr(_rotate, name)(rows, signs)


@BOTH
def test_an_unknown_tier_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no instruction tier 'sse9'"):
        getattr(_rotate, name)(np.zeros((3, 20), np.float32), np.ones((2, 20), np.float32), isa="sse9")
