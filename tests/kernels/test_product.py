"""product.h on every tier against its twin."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hhtld._kernels import _cast, _score, _trellis
from hhtld._kernels._team import Team
from hhtld.slots.rotation import Rotation
from hhtld.slots.slot_t import Trellis
from tests.kernels import reference
from tests.kernels.test_team import serving

Fence = Callable[[Any], NDArray[Any]]

WIDTHS = (1, 2, 16, 33, 128, 160, 300, 576)


@pytest.fixture
def team() -> Iterator[Team]:
    with serving(2) as made:
        yield made


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
            matrix = (fenced(codes), code.levels, code.rate, fenced(gains), None, code.crossed, False)
            held = _score.TrellisProducts([matrix], n_rows, fenced(signs), column_scale)
            assert held.write(fenced(inputs), n_planes, out, isa=isa)
            assert reference.trellis_products(
                codes, code.levels, code.rate, gains, signs, inputs, n_planes, expected, column_scale
            )
            np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("n_centroids", [1, 5, 256])
@pytest.mark.parametrize("n_cols", WIDTHS)
def test_rows_may_have_centroids(n_cols: int, n_centroids: int, isa: str, fenced: Fence, team: Team) -> None:
    rng, n_rows = np.random.default_rng(n_cols), 61
    code, codes, gains, signs, inputs = case(n_rows, n_cols, 3)
    centroids = rng.standard_normal((n_centroids, n_cols)).astype(np.float32)
    twigs = rng.integers(0, n_centroids, n_rows).astype(np.uint8)
    out, expected = fenced(np.zeros((3, n_rows), np.float32)), np.zeros((3, n_rows), np.float32)
    reference.trellis_products(codes, code.levels, code.rate, gains, signs, inputs, 2, expected, None, centroids, twigs)
    tables = (fenced(signs), None, fenced(centroids), fenced(twigs))
    whole = [(codes, code.levels, code.rate, gains, None, code.crossed, False)]
    places = rng.permutation(n_rows)
    in_parts = [
        (codes[part], code.levels, code.rate, gains[part], np.ascontiguousarray(part), code.crossed, False)
        for part in (places[:20], places[20:])
    ]
    for matrices in (whole, in_parts):
        held = _score.TrellisProducts(matrices, n_rows, *tables)
        for shared_by in (None, team):
            assert held.write(fenced(inputs), 2, out, team=shared_by, isa=isa)
            np.testing.assert_array_equal(out, expected)
            out[:] = np.nan


@pytest.mark.parametrize("kind", ["BF16", "F16"])
def test_16_bit_inputs_and_products_are_rounded_once(kind: str, isa: str, fenced: Fence) -> None:
    narrow, widen = (getattr(_cast, name + kind.lower()) for name in ("narrow_f32_", "widen_"))
    for n_rows, n_cols, n_inputs in ((1, 1, 1), (37, 96, 1), (50, 160, 3)):
        code, codes, gains, signs, inputs = case(n_rows, n_cols, n_inputs)
        held = _score.TrellisProducts(
            [(codes, code.levels, code.rate, gains, None, code.crossed, False)], n_rows, signs
        )
        inputs[-1, 0] = 1e-7  # a subnormal half
        halves = fenced(np.empty(inputs.shape, np.uint16))
        narrow(inputs.reshape(-1), halves.reshape(-1))
        rounded = np.empty(inputs.shape, np.float32)
        widen(halves.reshape(-1), rounded.reshape(-1))
        products = np.empty((n_inputs, n_rows), np.float32)
        assert held.write(rounded, 2, products, isa=isa)
        expected, out = np.empty(products.shape, np.uint16), fenced(np.zeros(products.shape, np.uint16))
        narrow(products.reshape(-1), expected.reshape(-1))
        assert held.write_at(halves.ctypes.data, kind, n_inputs, 2, out.ctypes.data, kind, isa=isa)
        np.testing.assert_array_equal(out, expected)
        wide = np.empty(products.shape, np.float32)
        assert held.write_at(halves.ctypes.data, kind, n_inputs, 2, wide.ctypes.data, "F32", isa=isa)
        np.testing.assert_array_equal(wide, products)


def test_planes_come_near_the_decoded_product() -> None:
    code, codes, gains, signs, inputs = case(200, 576, 4, 64)
    rows = np.empty((200, 576), np.float32)
    _trellis.decode(codes, code.levels, code.rate, gains, rows, crossed=code.crossed)
    Rotation(576, 3).unrotate(rows)
    exact = inputs.astype(np.float64) @ rows.astype(np.float64).T
    for n_planes, most in ((1, 1.2e-2), (2, 5e-5)):
        out = np.zeros((4, 200), np.float32)
        held = _score.TrellisProducts([(codes, code.levels, code.rate, gains, None, code.crossed, False)], 200, signs)
        assert held.write(inputs, n_planes, out)
        error = np.linalg.norm(out - exact, axis=1)[1:] / np.linalg.norm(exact, axis=1)[1:]
        assert error.max() < most
        assert not out[0].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_finite_is_told(bad: float, isa: str) -> None:
    code, codes, gains, signs, inputs = case(3, 64, 2)
    inputs[1, :2] = bad  # 3e38 passes float32's range in the rotation
    out = np.zeros((2, 3), np.float32)
    held = _score.TrellisProducts([(codes, code.levels, code.rate, gains, None, None, False)], 3, signs)
    assert not held.write(inputs, 1, out, isa=isa)


@pytest.mark.parametrize("n_planes", [1, 2])
@pytest.mark.parametrize("n_rows", [47, 2000])
def test_rows_of_several_codes_go_to_their_places(n_rows: int, n_planes: int, isa: str, team: Team) -> None:
    rng, n_cols = np.random.default_rng(9), 192
    places, signs = np.split(rng.permutation(n_rows), [1, 20, 20]), Rotation(n_cols, 3).signs
    inputs = rng.standard_normal((3, n_cols)).astype(np.float32)
    expected, out = np.zeros((3, n_rows), np.float32), np.full((3, n_rows), np.nan, np.float32)
    matrices = []
    for rate, rows in zip((64, 32, 40, 83), places, strict=True):
        code = Trellis.trained(rate)
        codes = rng.integers(0, 256, (len(rows), code.row_nbytes(n_cols)), np.uint8)
        gains = rng.standard_normal(len(rows)).astype(np.float32)
        matrices.append((codes, code.levels, rate, gains, rows, code.crossed, False))
        part = np.zeros((3, len(rows)), np.float32)
        reference.trellis_products(codes, code.levels, rate, gains, signs, inputs, n_planes, part)
        expected[:, rows] = part
    held = _score.TrellisProducts(matrices, n_rows, signs)
    for shared_by in (None, team):
        assert held.write(inputs, n_planes, out, team=shared_by, isa=isa)
        np.testing.assert_array_equal(out, expected)
        out[:] = np.nan


@pytest.mark.parametrize("n_rows", [1, 300, 5000])
def test_rings_are_opened_block_by_block(n_rows: int, isa: str, team: Team) -> None:
    rng, n_cols, code = np.random.default_rng(n_rows), 160, Trellis.trained(64, is_ring=True)
    rings = rng.integers(0, 256, (n_rows, _trellis.ring_nbytes(n_cols, 64, code.n_bits)), np.uint8)
    gains, signs = rng.standard_normal(n_rows).astype(np.float32), Rotation(n_cols, 3).signs
    inputs = rng.standard_normal((1, n_cols)).astype(np.float32)
    out, expected = np.zeros((2, 1, n_rows), np.float32)
    held = _score.TrellisProducts([(rings, code.levels, 64, gains, None, code.crossed, True)], n_rows, signs)
    assert held.write(inputs, 2, out, team=team, isa=isa)
    opened = (code.opened(rings, n_cols), code.levels, 64, gains, None, code.crossed, False)
    assert _score.TrellisProducts([opened], n_rows, signs).write(inputs, 2, expected, isa=isa)
    np.testing.assert_array_equal(out, expected)


def test_bad_arguments_are_named() -> None:
    code, codes, gains, signs, inputs = case(3, 64, 2)
    good = {"codes": codes, "levels": code.levels, "rate": code.rate, "gains": gains, "rows": None}
    good |= {"crossed": code.crossed, "is_ring": False}
    for change, message in (
        ({"gains": gains[:2]}, r"gains must be \(3,\)"),
        ({"codes": codes[:2], "gains": gains[:2]}, "a matrix of 3 rows has 2 codes"),
        ({"codes": codes[:, 1:].copy()}, r"codes must be \(n_rows, 22\)"),
        ({"rows": np.arange(2)}, r"rows must be \(3,\)"),
        ({"rows": np.array([0, 1, 3])}, r"rows must lie in 0\.\.2, got 3"),
        ({"rows": np.array([0, -1, 2])}, r"rows must lie in 0\.\.2, got -1"),
        ({"rate": 97}, "rate must be 16..96"),
        ({"crossed": code.crossed[:71]}, "a crossed codebook has 72 bytes"),
        ({"is_ring": True}, r"codes must be \(n_rows, 20\)"),
    ):
        with pytest.raises(ValueError, match=message):
            _score.TrellisProducts([tuple((good | change).values())], 3, signs)
    matrix = tuple(good.values())
    for wrong, scale, message in (
        (signs[:1], None, r"signs must be \(2, n_cols\)"),
        (signs, np.ones(63, np.float32), r"column_scale must be \(64,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            _score.TrellisProducts([matrix], 3, wrong, scale)
    centroids, twigs = np.ones((2, 64), np.float32), np.array([0, 1, 1], np.uint8)
    for some, twigs_given, message in (
        (centroids, None, "centroids and twigs come together"),
        (centroids[:, 1:].copy(), twigs, r"centroids must be \(n, 64\) and twigs \(3,\), got \(2, 63\) and \(3,\)"),
        (centroids, twigs[:2], r"twigs \(3,\), got \(2, 64\) and \(2,\)"),
        (centroids, twigs + np.uint8(1), r"twigs must lie in 0\.\.1, got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            _score.TrellisProducts([matrix], 3, signs, None, some, twigs_given)
    held, out = _score.TrellisProducts([matrix], 3, signs), np.zeros((2, 3), np.float32)
    for given, options, message in (
        ((inputs, 1, out[:1]), {}, r"out \(2, 3\)"),
        ((inputs[:, :63].copy(), 1, out), {}, r"inputs must be \(2, 64\)"),
        ((inputs, 3, out), {}, "n_planes must be 1 or 2, got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            held.write(*given, **options)
    at, to = inputs.ctypes.data, out.ctypes.data
    for given, message in (
        ((at, "F64", 2, 1, to, "F32"), "a type must be F32, BF16 or F16, got F64"),
        ((at, "F32", 2, 1, to, "I8"), "a type must be F32, BF16 or F16, got I8"),
        ((at + 2, "F32", 2, 1, to, "F32"), "inputs is not aligned to 4 bytes"),
        ((at, "F32", 2, 1, to + 1, "BF16"), "out is not aligned to 2 bytes"),
        ((at, "F32", 2, 3, to, "F32"), "n_planes must be 1 or 2, got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            held.write_at(*given)
    assert held.write(inputs[:0], 1, out[:0])
    assert _score.TrellisProducts([], 0, signs).write(inputs, 1, np.zeros((2, 0), np.float32))
