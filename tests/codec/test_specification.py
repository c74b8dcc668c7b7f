"""The specification's own sentences as tests, written from its words by somebody who had not read the code.

Where a sentence is arithmetic it is done again here, small and slow, so that a test says what the rule is and not what
the kernels happen to give.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

import hhtld
from hhtld import (
    Base17,
    FisherZTable,
    HeelBasin,
    HhtlCache,
    HhtlDTensor,
    HhtlF32Tensor,
    PaletteGroupKey,
    RouteAction,
    SharedPaletteGroup,
    SvdBasis,
    build_group_with_fisher_z,
    build_group_with_leaf,
    build_hip_families,
    classify_component,
    classify_role,
    effective_shape,
    is_encodable,
    should_use_leaf,
    slots,
)
from hhtld.slots.palette import Palette

F32 = NDArray[np.float32]
Builder = Callable[..., SharedPaletteGroup]

ARGMAX_ROLES = ("qko", "v", "gate", "up", "down", "projection", "other")
INDEX_ROLES = ("embed", "lm_head")
BUILDERS = (build_group_with_fisher_z, build_group_with_leaf)
POSITIONS = [(11 * i) % 17 for i in range(17)]
ONE = 0x3F80  # 1.0 in bfloat16


def rows_of_atoms(n_rows: int = 64, n_cols: int = 256, n_atoms: int = 8, seed: int = 1) -> F32:
    """Rows that are mixtures of a few atoms, so that a basis of as many vectors holds all of them."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n_rows, n_atoms)) @ rng.standard_normal((n_atoms, n_cols))).astype(np.float32)


def noise(n_rows: int, n_cols: int, seed: int = 2) -> F32:
    """Rows without structure."""
    return np.random.default_rng(seed).standard_normal((n_rows, n_cols)).astype(np.float32)


def cosines(a: F32, b: F32) -> NDArray[np.float64]:
    """The cosine of every row with the same row of the other matrix, in float64."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    return (x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1))


def half_away(x: float) -> int:
    """Round half away from zero."""
    return int(math.copysign(math.floor(abs(x) + 0.5), x))


def fold(row: F32) -> list[int]:
    """One row folded along the golden step."""
    dims = []
    for position in POSITIONS:
        values = [float(v) for v in row[position::17]]
        total = 0.0
        for v in values:
            total += v
        mean = total / len(values) if values else 0.0
        dims.append(min(max(half_away(mean * 256), -32768), 32767))
    return dims


def fold_rows(rows: F32) -> NDArray[np.int64]:
    """Every row folded, wide enough for sums."""
    return np.array([fold(row) for row in rows], dtype=np.int64).reshape(-1, 17)


def unfold(dims: NDArray[np.int64], n_cols: int) -> F32:
    """One folded row spread over its columns."""
    row = np.zeros(n_cols, np.float32)
    for i, position in enumerate(POSITIONS):
        row[position::17] = dims[i] / 256
    return row


def l1(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """The sum of absolute differences as an integer."""
    return int(np.abs(a.astype(np.int64) - b.astype(np.int64)).sum())


def picks(dims: NDArray[np.int64], k: int) -> list[int]:
    """Furthest-point sampling over folded rows, every tie as the specification decides it."""
    n = len(dims)
    centroid = np.array([int(total / n) for total in dims.sum(0).tolist()])
    to_centroid = [l1(row, centroid) for row in dims]
    chosen = [to_centroid.index(min(to_centroid))]
    while len(chosen) < min(k, n):
        nearest = [min(l1(row, dims[c]) for c in chosen) for row in dims]
        chosen.append(max(i for i in range(n) if nearest[i] == max(nearest)))
    return chosen


def nearest_entries(dims: NDArray[np.int64], entries: NDArray[np.int64]) -> list[int]:
    """The nearest entry of every folded row, the lowest index on a tie."""
    return [min(range(len(entries)), key=lambda e: (l1(row, entries[e]), e)) for row in dims]


def truncated_bf16(value: float) -> int:
    """The upper half of a float32."""
    return int(np.float32(value).view(np.uint32)) >> 16


def base17(dims: object) -> Base17:
    """Folded rows as the library's own class."""
    return Base17(np.array(dims, dtype=np.int16).reshape(-1, 17))


def rows_that_fold_to(dims: object) -> F32:
    """Rows of 17 columns whose fold is exactly these dims."""
    return np.array([unfold(d, 17) for d in np.array(dims).reshape(-1, 17)], dtype=np.float32)


def dims_at(**values: int) -> list[int]:
    """A folded row that is zero but at ``d<i>``."""
    dims = [0] * 17
    for name, value in values.items():
        dims[int(name[1:])] = value
    return dims


def cache_of(rows: F32, k: int) -> HhtlCache:
    """The palette of these rows."""
    return HhtlCache(Palette.build(Base17.fold(rows), k))


def unit_basis(n_cols: int, n_components: int = 8) -> SvdBasis:
    """A basis of unit vectors along the first columns, so that coefficients are the columns themselves."""
    bits = np.zeros((n_components, n_cols), np.uint16)
    bits[np.arange(n_components), np.arange(n_components)] = ONE
    return SvdBasis(np.ones(n_components, np.float32), bits)


def with_and_without_leaf(rows: F32, k: int = 16) -> tuple[HhtlDTensor, HhtlDTensor]:
    """The same rows encoded with Slot L and without it."""
    cache = cache_of(rows, k)
    hip = build_hip_families(cache.palette)
    with_leaf = HhtlDTensor.encode_with_leaf("lm_head", rows, cache, hip, SvdBasis.build(rows))
    return with_leaf, HhtlDTensor.encode("lm_head", rows, cache, hip)


def group_bytes(group: SharedPaletteGroup) -> dict[str, object]:
    """Everything of a group that is written."""
    return {
        "key": group.key,
        "palette": group.cache.palette.entries.to_bytes(),
        "hip": group.hip_assignments.tobytes(),
        "fisher_z": group.fisher_z.to_bytes(),
        "basis": None if group.svd_basis is None else group.svd_basis.to_bytes(),
        "names": list(group.tensor_names),
        "entries": {name: group.tensor(name).entries_to_bytes() for name in group.tensor_names},
        "leaf": {name: group.tensor(name).slot_l_to_bytes() for name in group.tensor_names},
        "roles": {name: group.tensor(name).role for name in group.tensor_names},
    }


# Slot L


def test_slot_l_is_8_bytes() -> None:
    rows = noise(5, 20)
    slot_l, _ = slots.encode_rows(rows, np.zeros_like(rows), SvdBasis.build(rows))
    assert slots.SLOT_L_LANES == 8
    assert slot_l.dtype == np.int8
    assert slot_l.shape == (5, 8)
    assert slot_l[0].nbytes == 8


def test_slot_l_round_trip_is_within_half_a_step_of_each_lane() -> None:
    rows, centroids = noise(50, 8), noise(50, 8, seed=3)
    slot_l, scale = slots.encode_rows(rows, centroids, unit_basis(8))
    decoded = slots.decode_rows(centroids, slot_l, scale, unit_basis(8))
    assert scale == pytest.approx(float(np.abs(rows - centroids).max()) / 127, rel=1e-6)
    assert np.abs(decoded - rows).max() <= scale / 2 * (1 + 1e-5)
    again, scale_again = slots.encode_rows(decoded, centroids, unit_basis(8))
    np.testing.assert_array_equal(again, slot_l)
    assert scale_again == pytest.approx(scale, rel=1e-5)


def test_a_zero_residual_is_zero_bytes_and_scale_one() -> None:
    rows = noise(10, 40)
    slot_l, scale = slots.encode_rows(rows, rows, SvdBasis.build(rows))
    assert not slot_l.any()
    assert scale == 1.0
    np.testing.assert_array_equal(slots.decode_rows(rows, slot_l, scale, SvdBasis.build(rows)), rows)


@pytest.mark.parametrize(("peak", "expected"), [(5e-13, 1.0), (2e-12, 2e-12 / 127)])
def test_the_scale_is_one_when_no_coefficient_is_above_1e_12(peak: float, expected: float) -> None:
    rows = np.zeros((2, 8), np.float32)
    rows[1, 3] = -peak
    _, scale = slots.encode_rows(rows, np.zeros_like(rows), unit_basis(8))
    assert scale == pytest.approx(expected, rel=1e-6)


def test_low_rank_rows_on_zero_centroids_keep_their_direction() -> None:
    rows = rows_of_atoms()
    zeros = np.zeros_like(rows)
    basis = SvdBasis.build(rows)
    decoded = slots.decode_rows(zeros, *slots.encode_rows(rows, zeros, basis), basis)
    assert cosines(decoded, rows).mean() >= 0.98
    assert cosines(decoded, rows).min() >= 0.95


@pytest.mark.parametrize(("n_rows", "n_centroids"), [(9, 10), (10, 9), (10, 1), (0, 10)])
def test_a_count_mismatch_is_an_error(n_rows: int, n_centroids: int) -> None:
    basis = unit_basis(20)
    rows, centroids = noise(n_rows, 20), noise(n_centroids, 20)
    with pytest.raises(ValueError, match=r"\d"):
        slots.encode_rows(rows, centroids, basis)
    with pytest.raises(ValueError, match=r"\d"):
        slots.decode_rows(centroids, np.zeros((n_rows, 8), np.int8), 1.0, basis)


def test_a_width_mismatch_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"\d"):
        slots.encode_rows(noise(10, 20), noise(10, 20), unit_basis(21))
    with pytest.raises(ValueError, match=r"\d"):
        slots.encode_rows(noise(10, 20), noise(10, 21), unit_basis(20))
    with pytest.raises(ValueError, match=r"\d"):
        slots.decode_rows(noise(10, 20), np.zeros((10, 8), np.int8), 1.0, unit_basis(21))


def test_slot_l_rounds_half_away_from_zero() -> None:
    rows = np.zeros((2, 8), np.float32)
    rows[0] = [127, 0.5, -0.5, 1.5, -1.5, 2.5, -2.5, 0.4375]
    rows[1] = [-127, 126.5, -126.5, 0.5625, -0.5625, 3.5, -3.5, 0]
    slot_l, scale = slots.encode_rows(rows, np.zeros_like(rows), unit_basis(8))
    assert scale == 1.0
    np.testing.assert_array_equal(slot_l, [[127, 1, -1, 2, -2, 3, -3, 0], [-127, 127, -127, 1, -1, 4, -4, 0]])


def test_slot_l_never_holds_minus_128() -> None:
    rows = -np.abs(noise(300, 8))
    slot_l, _ = slots.encode_rows(rows, np.zeros_like(rows), unit_basis(8))
    assert slot_l.min() == -127


def test_coefficients_are_float64_dot_products() -> None:
    bits = np.zeros((1, 3), np.uint16)
    bits[:] = ONE
    rows = np.array([[1e8, 1, -1e8], [0, 0, 2]], np.float32)  # in float32 the first sums to 0
    slot_l, scale = slots.encode_rows(rows, np.zeros_like(rows), SvdBasis(np.ones(1, np.float32), bits))
    assert scale == pytest.approx(2 / 127)
    np.testing.assert_array_equal(slot_l[:, 0], [64, 127])  # 63.5 away from zero


@pytest.mark.parametrize("n_rows", [1, 3, 7])
def test_lanes_without_a_basis_vector_are_zero(n_rows: int) -> None:
    rows = noise(n_rows, 30)
    basis = SvdBasis.build(rows)
    slot_l, _ = slots.encode_rows(rows, np.zeros_like(rows), basis)
    assert basis.n_components == n_rows
    assert slot_l.shape == (n_rows, 8)
    assert slot_l[:, :n_rows].any()
    assert not slot_l[:, n_rows:].any()


def test_decoding_adds_byte_times_scale_times_vector_to_the_centroid() -> None:
    rows, centroids = rows_of_atoms(), noise(64, 256)
    basis = SvdBasis.build(rows)
    slot_l, scale = slots.encode_rows(rows, centroids, basis)
    expected = centroids.copy()
    for lane in range(8):
        expected += (slot_l[:, lane : lane + 1].astype(np.float32) * np.float32(scale)) * basis.vectors[lane]
    decoded = slots.decode_rows(centroids, slot_l, scale, basis)
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, expected, rtol=1e-5, atol=1e-5)


def test_slot_l_bytes_are_those_of_the_formula() -> None:
    rows, centroids = rows_of_atoms(), noise(64, 256)
    basis = SvdBasis.build(rows)
    slot_l, scale = slots.encode_rows(rows, centroids, basis)
    c = ((rows - centroids).astype(np.float64) @ basis.vectors.T.astype(np.float64)).astype(np.float32)
    assert scale == pytest.approx(float(np.abs(c).max()) / 127, rel=1e-6)
    steps = c.astype(np.float64) / scale
    expected = np.clip(np.sign(steps) * np.floor(np.abs(steps) + 0.5), -127, 127)
    clear = np.abs(np.abs(steps) % 1 - 0.5) > 1e-3  # where float32 cannot have turned the rounding
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(slot_l[clear], expected[clear])


def test_decode_row_agrees_with_decode_rows() -> None:
    rows, centroids = rows_of_atoms(), noise(64, 256)
    basis = SvdBasis.build(rows)
    slot_l, scale = slots.encode_rows(rows, centroids, basis)
    together = slots.decode_rows(centroids, slot_l, scale, basis)
    for i in range(64):
        row = slots.decode_row(centroids[i], slot_l[i], scale, basis)
        assert row.shape == (256,)
        np.testing.assert_array_equal(row, together[i])


# The basis of Slot L


def test_the_basis_spans_what_an_accurate_svd_spans() -> None:
    rng = np.random.default_rng(7)
    spread = rng.standard_normal((200, 12)) * 0.5 ** np.arange(12)
    rows = (spread @ rng.standard_normal((12, 40))).astype(np.float32)
    basis = SvdBasis.build(rows)
    _, singular, right = np.linalg.svd(rows.astype(np.float64), full_matrices=False)
    np.testing.assert_allclose(basis.singular_values, singular[:8], rtol=1e-3)
    overlap = np.linalg.svd(basis.vectors.astype(np.float64) @ right[:8].T, compute_uv=False)
    assert basis.n_components == 8
    assert overlap.min() > 0.99


def test_the_basis_is_truncated_to_bfloat16() -> None:
    rng = np.random.default_rng(8)
    rows = ((rng.standard_normal((100, 8)) * 0.5 ** np.arange(8)) @ rng.standard_normal((8, 64))).astype(np.float32)
    right = np.linalg.svd(rows.astype(np.float64), full_matrices=False)[2][:8]
    stored = np.abs(SvdBasis.build(rows).vectors.astype(np.float64))
    exact = np.abs(right)
    large = exact > 0.02
    assert (stored[large] <= exact[large] * (1 + 1e-4)).all()
    assert (stored[large] >= exact[large] * (1 - 2**-7 - 1e-4)).all()
    assert (1 - stored[large] / exact[large]).max() > 2**-8  # further than rounding to nearest goes


@pytest.mark.parametrize(("n_rows", "n_cols"), [(3, 40), (40, 5), (1, 1), (20, 20)])
def test_the_basis_has_fewer_vectors_for_fewer_rows_or_columns(n_rows: int, n_cols: int) -> None:
    assert SvdBasis.build(noise(n_rows, n_cols)).n_components == min(8, n_rows, n_cols)


def test_basis_bytes_are_two_counts_the_singular_values_and_the_vectors() -> None:
    basis = SvdBasis.build(rows_of_atoms(64, 40))
    data = basis.to_bytes()
    assert len(data) == 8 + 4 * 8 + 2 * 8 * 40
    np.testing.assert_array_equal(np.frombuffer(data, "<u4", 2), [8, 40])
    np.testing.assert_array_equal(np.frombuffer(data, "<f4", 8, 8), basis.singular_values)
    bits = np.frombuffer(data, "<u2", 8 * 40, 40).reshape(8, 40)
    np.testing.assert_array_equal((bits.astype(np.uint32) << 16).view(np.float32), basis.vectors)
    again = SvdBasis.from_bytes(data)
    assert again.to_bytes() == data


# HhtlDTensor


def test_plain_encode_has_no_leaf_and_unchanged_bytes() -> None:
    rows = rows_of_atoms()
    with_leaf, plain = with_and_without_leaf(rows)
    assert plain.slot_l is None
    assert plain.svd_basis is None
    assert plain.slot_l_byte_size() == 0
    assert len(plain.entries_to_bytes()) == 4 * 64
    assert plain.entries_to_bytes() == with_leaf.entries_to_bytes()


def test_encode_with_leaf_keeps_the_rows() -> None:
    rows = rows_of_atoms()
    with_leaf, _ = with_and_without_leaf(rows)
    found = cosines(with_leaf.reconstruct_rows(), rows)
    assert found.mean() >= 0.85
    assert found.min() >= 0.50


def test_encode_with_leaf_is_slot_l_of_what_the_centroids_leave() -> None:
    rows = rows_of_atoms()
    with_leaf, _ = with_and_without_leaf(rows)
    dims = fold_rows(rows)
    entries = dims[picks(dims, 16)]
    centroids = np.array([unfold(entries[e], 256) for e in nearest_entries(dims, entries)])
    slot_l, scale = slots.encode_rows(rows, centroids, SvdBasis.build(rows))
    np.testing.assert_array_equal(with_leaf.slot_l, slot_l)
    assert with_leaf.slot_l_scale == scale
    expected = slots.decode_rows(centroids, slot_l, scale, SvdBasis.build(rows))
    np.testing.assert_array_equal(with_leaf.reconstruct_rows(), expected)
    np.testing.assert_array_equal(with_leaf.reconstruct_row(5), expected[5])


def test_leaf_bytes_round_trip() -> None:
    for tensor in (
        with_and_without_leaf(rows_of_atoms())[0],
        HhtlF32Tensor.encode_with_leaf("lm_head", rows_of_atoms(), 4, SvdBasis.build(rows_of_atoms())),
    ):
        packed = tensor.slot_l_to_bytes()
        assert isinstance(packed, tuple)
        data, scale = packed
        assert isinstance(data, bytes)
        assert len(data) == 8 * 64
        assert scale == tensor.slot_l_scale
        back = type(tensor).slot_l_from_bytes(data)
        assert back.dtype == np.int8
        np.testing.assert_array_equal(back, tensor.slot_l)


def test_there_are_no_leaf_bytes_without_slot_l() -> None:
    _, plain = with_and_without_leaf(rows_of_atoms())
    assert plain.slot_l_to_bytes() is None
    assert HhtlF32Tensor.encode("lm_head", rows_of_atoms(), 4).slot_l_to_bytes() is None


def test_without_leaf_a_row_is_its_centroid_alone() -> None:
    rows = rows_of_atoms()
    _, plain = with_and_without_leaf(rows)
    dims = fold_rows(rows)
    entries = dims[picks(dims, 16)]
    expected = np.array([unfold(entries[e], 256) for e in nearest_entries(dims, entries)])
    np.testing.assert_array_equal(plain.reconstruct_rows(), expected)
    np.testing.assert_array_equal(plain.reconstruct_row(7), expected[7])


def test_leaf_beats_no_leaf() -> None:
    rows = rows_of_atoms()
    with_leaf, plain = with_and_without_leaf(rows)
    assert cosines(with_leaf.reconstruct_rows(), rows).mean() > cosines(plain.reconstruct_rows(), rows).mean()


def test_entries_bytes_round_trip() -> None:
    _, plain = with_and_without_leaf(rows_of_atoms())
    data = plain.entries_to_bytes()
    np.testing.assert_array_equal(HhtlDTensor.entries_from_bytes(data), plain.entries)


def test_sizes_of_a_lookup_tensor_are_additive() -> None:
    with_leaf, plain = with_and_without_leaf(rows_of_atoms())
    assert with_leaf.entries_byte_size() == plain.entries_byte_size() == 4 * 64
    assert with_leaf.slot_l_byte_size() == 8 * 64
    assert with_leaf.total_byte_size() == plain.total_byte_size() + 8 * 64
    own_table = 0 if plain.fisher_z is None else plain.fisher_z.byte_size()
    assert plain.total_byte_size() == 4 * 64 + own_table


# Groups


@pytest.mark.parametrize("role", ARGMAX_ROLES)
def test_an_argmax_role_is_built_exactly_as_without_leaf(role: str) -> None:
    key = PaletteGroupKey("other", role, (70, 40))
    tensors = [("a", noise(70, 40)), ("b", noise(70, 40, seed=4))]
    group = build_group_with_leaf(key, tensors, k=24)
    assert group_bytes(group) == group_bytes(build_group_with_fisher_z(key, tensors, k=24))
    assert group_bytes(group) == group_bytes(build_group_with_fisher_z(key, dict(tensors), k=24))
    assert group.svd_basis is None
    assert not group.tensor_slot_l
    assert group.slot_l_for("a") is None
    assert group.slot_l_byte_size() == group.svd_basis_byte_size() == 0
    assert not should_use_leaf(role)


@pytest.mark.parametrize("role", INDEX_ROLES)
def test_an_index_role_gets_slot_l(role: str) -> None:
    key = PaletteGroupKey("other", role, (70, 40))
    tensors = [("a", noise(70, 40)), ("b", noise(70, 40, seed=4))]
    group = build_group_with_leaf(key, tensors, k=24)
    plain = build_group_with_fisher_z(key, tensors, k=24)
    assert should_use_leaf(role)
    assert group.svd_basis is not None
    for name, rows in tensors:
        leaf = group.slot_l_for(name)
        assert leaf is not None
        assert leaf[0].shape == (70, 8)
        tensor = group.tensor(name)
        assert tensor.slot_l is not None
        assert tensor.entries_to_bytes() == plain.tensor(name).entries_to_bytes()
        better = cosines(tensor.reconstruct_rows(), rows).mean()
        assert better > cosines(plain.tensor(name).reconstruct_rows(), rows).mean()
    assert plain.svd_basis is None
    assert plain.slot_l_for("a") is None


@pytest.mark.parametrize("n_tensors", [1, 2, 5])
def test_there_is_one_basis_a_group_whatever_the_number_of_tensors(n_tensors: int) -> None:
    key = PaletteGroupKey("other", "embed", (70, 40))
    tensors = [(f"t{i}", noise(70, 40, seed=10 + i)) for i in range(n_tensors)]
    group = build_group_with_leaf(key, tensors, k=24)
    assert isinstance(group.svd_basis, SvdBasis)
    assert group.svd_basis.to_bytes() == SvdBasis.build(tensors[0][1]).to_bytes()
    assert all(group.tensor(name).svd_basis is group.svd_basis for name, _ in tensors)
    assert group.svd_basis_byte_size() == len(group.svd_basis.to_bytes()) == 8 + 4 * 8 + 2 * 8 * 40


def test_the_basis_comes_from_the_first_4096_rows() -> None:
    rows = noise(4100, 12)
    rows[4096:] = 0
    rows[4096:, 11] = 1e4
    group = build_group_with_leaf(PaletteGroupKey("other", "embed", (4100, 12)), [("a", rows)], k=4)
    assert group.svd_basis is not None
    assert group.svd_basis.to_bytes() == SvdBasis.build(rows[:4096]).to_bytes()
    assert group.svd_basis.to_bytes() != SvdBasis.build(rows).to_bytes()


def test_a_shared_palette_comes_from_the_first_tensor() -> None:
    key = PaletteGroupKey("other", "gate", (30, 40))
    first, second = noise(30, 40), 5 * noise(30, 40, seed=4)
    group = build_group_with_fisher_z(key, [("a", first), ("b", second)], k=8)
    alone = build_group_with_fisher_z(key, [("a", first)], k=8)
    dims = fold_rows(first)
    assert group.tensor_names == ["a", "b"]
    np.testing.assert_array_equal(group.cache.palette.entries.dims, dims[picks(dims, 8)])
    assert group.fisher_z.to_bytes() == alone.fisher_z.to_bytes()


@pytest.mark.parametrize("build", BUILDERS)
def test_rows_of_another_shape_than_the_keys_are_an_error(build: Builder) -> None:
    with pytest.raises(ValueError, match=r"\d"):
        build(PaletteGroupKey("other", "embed", (30, 40)), [("a", noise(30, 41))])


def test_sizes_of_a_group_are_additive() -> None:
    key = PaletteGroupKey("other", "lm_head", (70, 40))
    tensors = [(name, noise(70, 40, seed=i)) for i, name in enumerate("abc")]
    group = build_group_with_leaf(key, tensors, k=24)
    assert group.slot_l_byte_size() == 3 * 8 * 70
    assert group.slot_l_byte_size() == sum(group.tensor(name).slot_l_byte_size() for name in "abc")
    assert group.svd_basis is not None
    assert group.svd_basis_byte_size() == group.svd_basis.byte_size() == len(group.svd_basis.to_bytes())


@pytest.mark.parametrize("k", [0, 257, 300])
@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("role", ["embed", "gate"])
def test_a_group_refuses_a_palette_that_a_u8_cannot_count(build: Builder, k: int, role: str) -> None:
    with pytest.raises(ValueError, match=r"u8.*256|256.*u8"):
        build(PaletteGroupKey("other", role, (400, 20)), [("a", noise(400, 20))], k=k)


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("role", ["embed", "gate"])
def test_a_group_accepts_a_palette_of_256(build: Builder, role: str) -> None:
    rows = noise(400, 20)
    group = build(PaletteGroupKey("other", role, (400, 20)), [("a", rows)], k=256)
    assert group.cache.k == 256
    default = build(PaletteGroupKey("other", role, (400, 20)), [("a", rows)])
    assert group_bytes(default) == group_bytes(group)


@pytest.mark.parametrize(
    ("key_role", "basin"), [("gate", 2), ("qko", 3), ("v", 3), ("up", 3), ("embed", 3), ("other", 3), ("down", 3)]
)
def test_a_group_passes_component_and_role_as_the_role_text(key_role: str, basin: int) -> None:
    group = build_group_with_fisher_z(PaletteGroupKey("talker", key_role, (20, 17)), [("a", noise(20, 17))], k=4)
    assert group.tensor("a").role == f"talker_{key_role}"
    assert set((group.tensor("a").entries["slot_d"] >> 14).tolist()) == {basin}


# HhtlF32Tensor


def test_centroids_of_the_f32_codec_are_real_rows() -> None:
    rows = np.random.default_rng(5).integers(-99, 100, (80, 30)).astype(np.float32)  # exact in bfloat16
    palette = HhtlF32Tensor.encode("gate", rows, 20).palette_f32
    known = {row.tobytes() for row in rows}
    assert palette.shape == (20, 30)
    assert all(entry.tobytes() in known for entry in palette)
    assert len({entry.tobytes() for entry in palette}) == 20


def test_palette_entries_of_the_f32_codec_ship_as_bfloat16() -> None:
    rows = noise(80, 30)
    palette = HhtlF32Tensor.encode("gate", rows, 20).palette_f32
    assert not (palette.view(np.uint32) & 0xFFFF).any()
    for entry in palette:
        assert (np.abs(rows - entry) <= np.abs(rows) * 2**-7).all(axis=1).sum() == 1


def test_f32_picks_start_at_the_largest_norm_and_go_furthest_first() -> None:
    rows = np.random.default_rng(6).integers(-9, 10, (60, 4)).astype(np.float32)
    rows[40:] = rows[:20]  # every tie there is, the first row wins
    norms = (rows**2).sum(1).tolist()
    chosen = [norms.index(max(norms))]
    nearest = ((rows - rows[chosen[0]]) ** 2).sum(1)
    while len(chosen) < 12:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, ((rows - rows[chosen[-1]]) ** 2).sum(1))
    tensor = HhtlF32Tensor.encode("gate", rows, 12)
    np.testing.assert_array_equal(tensor.palette_f32, rows[chosen])
    distances = ((rows[:, None] - rows[chosen][None]) ** 2).sum(2)
    twigs = np.frombuffer(tensor.entries_to_bytes(), np.uint8)
    np.testing.assert_array_equal(twigs, distances.argmin(1))
    np.testing.assert_array_equal(tensor.reconstruct_rows(), rows[chosen][distances.argmin(1)])


def test_f32_picks_stop_when_every_row_is_picked() -> None:
    rows = np.repeat(np.array([[3, 0], [0, 1], [2, 2]], np.float32), 5, axis=0)
    tensor = HhtlF32Tensor.encode("gate", rows, 256)
    np.testing.assert_array_equal(tensor.palette_f32, [[3, 0], [0, 1], [2, 2]])
    np.testing.assert_array_equal(tensor.reconstruct_rows(), rows)


def test_leaf_of_the_f32_codec_beats_no_leaf() -> None:
    rows = rows_of_atoms()
    plain = HhtlF32Tensor.encode("lm_head", rows, 8)
    with_leaf = HhtlF32Tensor.encode_with_leaf("lm_head", rows, 8, SvdBasis.build(rows))
    better = cosines(with_leaf.reconstruct_rows(), rows).mean()
    assert better >= 0.95
    assert better > cosines(plain.reconstruct_rows(), rows).mean()
    assert with_leaf.entries_to_bytes() == plain.entries_to_bytes()


def test_leaf_of_the_f32_codec_is_slot_l_of_what_the_palette_leaves() -> None:
    rows = rows_of_atoms()
    basis = SvdBasis.build(rows)
    tensor = HhtlF32Tensor.encode_with_leaf("lm_head", rows, 8, basis)
    twigs = np.frombuffer(tensor.entries_to_bytes(), np.uint8)
    slot_l, scale = slots.encode_rows(rows, tensor.palette_f32[twigs], basis)
    np.testing.assert_array_equal(tensor.slot_l, slot_l)
    assert tensor.slot_l_scale == scale


def test_without_leaf_an_f32_row_is_its_palette_entry_alone() -> None:
    tensor = HhtlF32Tensor.encode("gate", noise(50, 30), 8)
    twigs = np.frombuffer(tensor.entries_to_bytes(), np.uint8)
    assert tensor.slot_l is None
    np.testing.assert_array_equal(tensor.reconstruct_rows(), tensor.palette_f32[twigs])
    np.testing.assert_array_equal(tensor.reconstruct_row(9), tensor.palette_f32[twigs[9]])


@pytest.mark.parametrize("k", [0, 257, 300])
def test_the_f32_codec_refuses_a_palette_that_a_u8_cannot_count(k: int) -> None:
    rows = noise(400, 20)
    with pytest.raises(ValueError, match=r"u8.*256|256.*u8"):
        HhtlF32Tensor.encode("gate", rows, k)
    with pytest.raises(ValueError, match=r"u8.*256|256.*u8"):
        HhtlF32Tensor.encode_with_leaf("lm_head", rows, k, SvdBasis.build(rows))


def test_the_f32_codec_accepts_a_palette_of_256() -> None:
    rows = noise(400, 20)
    assert hhtld.MAX_PALETTE_K == 256
    assert len(HhtlF32Tensor.encode("gate", rows, 256).palette_f32) == 256
    assert len(HhtlF32Tensor.encode_with_leaf("lm_head", rows, 256, SvdBasis.build(rows)).palette_f32) == 256


def test_a_wrong_argument_order_of_encode_with_leaf_is_a_type_error_that_says_so() -> None:
    rows = noise(40, 20)
    swapped: tuple[object, ...] = ("lm_head", rows, SvdBasis.build(rows), 8)
    with pytest.raises(TypeError, match=r"(?i)order|k.*before.*basis|rows, k, svd_basis"):
        HhtlF32Tensor.encode_with_leaf(*swapped)  # type: ignore[arg-type]  # wrong on purpose


def test_sizes_of_an_f32_tensor_are_additive() -> None:
    rows = rows_of_atoms()
    plain = HhtlF32Tensor.encode("lm_head", rows, 8)
    with_leaf = HhtlF32Tensor.encode_with_leaf("lm_head", rows, 8, SvdBasis.build(rows))
    assert plain.entries_byte_size() == len(plain.entries_to_bytes()) == 64
    assert plain.slot_l_byte_size() == 0
    assert with_leaf.slot_l_byte_size() == 8 * 64
    assert with_leaf.entries_byte_size() + with_leaf.slot_l_byte_size() == 9 * 64
    assert plain.total_byte_size() == 64 + 2 * 8 * 256
    assert with_leaf.total_byte_size() == plain.total_byte_size() + 8 * 64


# Base17


@pytest.mark.parametrize("n_cols", [1, 5, 16, 17, 18, 34, 51, 100])
def test_a_fold_is_the_mean_of_each_residue_class_along_the_golden_step(n_cols: int) -> None:
    rows = 3 * noise(7, n_cols)
    np.testing.assert_array_equal(Base17.fold(rows).dims, fold_rows(rows))


def test_the_golden_step_is_11_of_17() -> None:
    row = np.arange(17, dtype=np.float32)[None]
    expected = [256 * p for p in (0, 11, 5, 16, 10, 4, 15, 9, 3, 14, 8, 2, 13, 7, 1, 12, 6)]
    np.testing.assert_array_equal(Base17.fold(row).dims[0], expected)


def test_a_fold_rounds_half_away_from_zero_and_clamps() -> None:
    rows = rows_that_fold_to([dims_at()])
    rows[0, POSITIONS[:6]] = np.array([0.5, -0.5, 2.5, -2.5, 100_000, -100_000]) / 256
    np.testing.assert_array_equal(Base17.fold(rows).dims[0, :7], [1, -1, 3, -3, 32767, -32768, 0])


def test_a_fold_without_a_column_is_zero_and_takes_34_bytes() -> None:
    folded = Base17.fold(np.ones((1, 1), np.float32))
    np.testing.assert_array_equal(folded.dims[0], [256] + [0] * 16)
    data = folded.to_bytes()
    assert data == b"\x00\x01" + bytes(32)
    np.testing.assert_array_equal(Base17.from_bytes(data).dims, folded.dims)


def test_unfolding_gives_every_column_of_the_class_the_mean() -> None:
    dims = np.random.default_rng(1).integers(-32768, 32768, (3, 17))
    np.testing.assert_array_equal(base17(dims).unfold(40), [unfold(d, 40) for d in dims])


def test_distances_of_folded_rows() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.integers(-32768, 32768, (4, 17)), rng.integers(-32768, 32768, (5, 17))
    weights = np.array([20] + [3] * 6 + [1] * 10)
    difference = np.abs(a[:, None] - b[None])
    np.testing.assert_array_equal(base17(a).l1(base17(b)), difference.sum(2))
    np.testing.assert_array_equal(base17(a).l1_weighted(base17(b)), (difference * weights).sum(2))
    np.testing.assert_array_equal(base17(a).bind(base17(b[:4])).dims, a.astype(np.int16) ^ b[:4].astype(np.int16))


# The palette


def test_the_first_pick_is_the_first_row_nearest_to_the_centroid() -> None:
    dims = [dims_at(d0=9), dims_at(d0=5), dims_at(d0=3), dims_at(d0=-1)]  # centroid 4: rows 1 and 2 tie
    np.testing.assert_array_equal(Palette.build(base17(dims), 1).entries.dims, [dims_at(d0=5)])


def test_the_centroid_is_truncated_toward_zero() -> None:
    dims = [dims_at(d0=-3), dims_at(d0=-2), dims_at(d0=0), dims_at(d0=2)]  # sum -3: 0, where floor gives -1
    np.testing.assert_array_equal(Palette.build(base17(dims), 1).entries.dims, [dims_at(d0=0)])
    dims = [dims_at(d0=-1), dims_at(d0=0)]  # sum -1: 0, where floor gives -1 and takes the first
    np.testing.assert_array_equal(Palette.build(base17(dims), 1).entries.dims, [dims_at(d0=0)])


def test_each_next_pick_is_the_last_of_the_furthest_rows() -> None:
    dims = [dims_at(), dims_at(d1=7), dims_at(d2=7), dims_at(d3=-7), dims_at(d4=1)]  # centroid (0, 1, 1, -1)
    np.testing.assert_array_equal(
        Palette.build(base17(dims), 4).entries.dims, [dims_at(), dims_at(d3=-7), dims_at(d2=7), dims_at(d1=7)]
    )


def test_picks_repeat_when_all_distances_are_zero() -> None:
    dims = [dims_at(d4=6)] * 9
    palette = Palette.build(base17(dims), 5)
    np.testing.assert_array_equal(palette.entries.dims, [dims_at(d4=6)] * 5)
    np.testing.assert_array_equal(palette.counts, [9, 0, 0, 0, 0])
    np.testing.assert_array_equal(palette.radii, [0] * 5)


@pytest.mark.parametrize("spread", [1, 2, 30_000])
@pytest.mark.parametrize("k", [1, 7, 40, 256])
def test_a_palette_is_furthest_point_sampling(spread: int, k: int) -> None:
    dims = np.random.default_rng(spread).integers(-spread, spread + 1, (60, 17))
    dims[:, 3:] = 0  # few values, many ties
    palette = Palette.build(base17(dims), k)
    entries = dims[picks(dims, k)]
    twigs = np.array(nearest_entries(dims, entries))
    distances = np.array([l1(row, entries[t]) for row, t in zip(dims, twigs, strict=True)])
    assert len(entries) == min(k, 60)
    np.testing.assert_array_equal(palette.entries.dims, entries)
    np.testing.assert_array_equal(palette.counts, np.bincount(twigs, minlength=len(entries)))
    expected_radii = [distances[twigs == c].max(initial=0) for c in range(len(entries))]
    np.testing.assert_array_equal(palette.radii, expected_radii)
    assigned, how_far = HhtlCache(palette).nearest(base17(dims))
    np.testing.assert_array_equal(assigned, twigs)
    np.testing.assert_array_equal(how_far, distances)


# Tables over the palette


@pytest.fixture
def entries() -> NDArray[np.int64]:
    """Palette entries of very different sizes."""
    rng = np.random.default_rng(17)
    dims = rng.integers(-3000, 3001, (40, 17)) * rng.integers(0, 2, (40, 17)) // rng.integers(1, 40, (40, 1))
    dims[3] = 0
    dims[5] = dims[4]
    dims[6:10, :] = 0
    dims[[6, 7, 8, 9], [4, 5, 10, 11]] = 500  # at both ends of what the perceptual weight counts
    return np.asarray(dims, dtype=np.int64)


def test_distances_of_entries_are_scaled_to_u16(entries: NDArray[np.int64]) -> None:
    cache = HhtlCache(Palette(base17(entries)))
    expected = [[l1(a, b) * 65535 // (17 * 65535) for b in entries] for a in entries]
    assert cache.distances.dtype == np.uint16
    np.testing.assert_array_equal(cache.distances, expected)
    assert not np.diag(cache.distances).any()
    assert cache.distance(2, 9) == expected[2][9]


def test_the_largest_distance_is_65535() -> None:
    cache = HhtlCache(Palette(base17([[32767] * 17, [-32768] * 17])))
    assert cache.distance(0, 1) == 65535


def test_routes_follow_quartiles_and_perceptual_weights(entries: NDArray[np.int64]) -> None:
    cache = HhtlCache(Palette(base17(entries)))
    k = len(entries)
    d = [[l1(a, b) // 17 for b in entries] for a in entries]
    off_diagonal = sorted(d[a][b] for a in range(k) for b in range(k) if a != b)
    p25, p75 = off_diagonal[len(off_diagonal) // 4], off_diagonal[3 * len(off_diagonal) // 4]
    weights = []
    for entry in np.abs(entries):
        total, focus = np.float32(entry.sum()), np.float32(entry[5:11].sum())
        weight = np.float32(0.5) + np.float32(3) * focus / total if total >= 1 else np.float32(1)
        weights.append(min(weight, np.float32(2)))
    expected = np.zeros((k, k), np.uint8)
    for a in range(k):
        for b in range(k):
            q = (weights[a] + weights[b]) / np.float32(2)
            upper, lower = (min(int(np.float32(p) * q), 65535) for p in (p75, p25))
            shorter = any(d[a][c] + d[c][b] < d[a][b] * 9 // 10 for c in range(k) if c not in (a, b))
            if a == b:
                expected[a, b] = RouteAction.ATTEND
            elif d[a][b] > upper:
                expected[a, b] = RouteAction.SKIP
            elif shorter:
                expected[a, b] = RouteAction.COMPOSE
            else:
                expected[a, b] = RouteAction.ATTEND if d[a][b] <= lower else RouteAction.ESCALATE
    np.testing.assert_array_equal(cache.routes, expected)
    assert set(np.unique(expected)) >= {RouteAction.SKIP, RouteAction.ATTEND, RouteAction.ESCALATE}


def test_a_distance_equal_to_both_quartiles_is_attend() -> None:
    entries = [dims_at(d0=500, d5=100), dims_at(d1=500, d6=100), dims_at(d2=500, d7=100)]  # every weight is 1
    cache = HhtlCache(Palette(base17(entries)))
    np.testing.assert_array_equal(cache.routes, np.full((3, 3), RouteAction.ATTEND))


@pytest.mark.parametrize("k", [1, 2, 3, 40])
def test_the_diagonal_of_the_routes_is_attend(entries: NDArray[np.int64], k: int) -> None:
    cache = HhtlCache(Palette(base17(entries[:k])))
    assert np.diag(cache.routes).tolist() == [1] * k
    assert cache.route(0, 0) is RouteAction.ATTEND


def test_route_actions_have_their_numbers() -> None:
    names = {action.name: action.value for action in RouteAction}
    assert names == {"SKIP": 0, "ATTEND": 1, "COMPOSE": 2, "ESCALATE": 3}


def test_composition_is_the_nearest_entry_to_the_binding(entries: NDArray[np.int64]) -> None:
    cache = HhtlCache(Palette(base17(entries)))
    short = entries.astype(np.int16)
    expected = [nearest_entries((a ^ short).astype(np.int64), entries) for a in short]
    np.testing.assert_array_equal(cache.composition, expected)


@pytest.mark.parametrize("k", [1, 2, 3, 17, 40])
def test_hip_families_split_at_the_farthest_pair(entries: NDArray[np.int64], k: int) -> None:
    dims = (entries[:k] // 17) * 17  # so that scaled and unscaled distances order alike
    families = [0] * k

    def split(members: list[int], depth: int) -> None:
        if depth == 4 or len(members) <= 1:
            return
        pole_a = pole_b = members[0]
        farthest = 0
        for n, i in enumerate(members):
            for j in members[n + 1 :]:
                if l1(dims[i], dims[j]) > farthest:
                    farthest, pole_a, pole_b = l1(dims[i], dims[j]), i, j
        left = [m for m in members if l1(dims[m], dims[pole_a]) <= l1(dims[m], dims[pole_b])]
        right = [m for m in members if m not in left]
        for m in right:
            families[m] += 8 >> depth
        split(left, depth + 1)
        split(right, depth + 1)

    split(list(range(k)), 0)
    np.testing.assert_array_equal(build_hip_families(Palette(base17(dims))), families)


# Fisher z


def fisher_z(representatives: F32) -> tuple[float, float, NDArray[np.float64]]:
    """z_min, z_range and the codes before they are truncated."""
    x = representatives.astype(np.float64)
    x /= np.sqrt((x * x).sum(1))[:, None]
    z = np.arctanh(np.clip(x @ x.T, -0.9999, 0.9999))
    pairs = z[np.triu_indices(len(z), 1)]
    z_range = max(pairs.max() - pairs.min(), 1e-10)
    return float(pairs.min()), float(z_range), np.clip((z - pairs.min()) / z_range * 254 - 127, -128, 127)


@pytest.mark.parametrize("n", [3, 12, 60])
def test_fisher_z_codes_truncate_toward_zero(n: int) -> None:
    representatives = rows_of_atoms(n, 40)
    table = FisherZTable.build(representatives)
    z_min, z_range, exact = fisher_z(representatives)
    assert table.z_min == pytest.approx(z_min, rel=1e-5)
    assert table.z_range == pytest.approx(z_range, rel=1e-5)
    clear = np.abs(exact - np.round(exact)) > 0.01
    np.testing.assert_array_equal(table.codes[clear], np.trunc(exact[clear]))
    assert np.abs(table.codes - np.trunc(exact)).max() <= 1
    off_diagonal = table.codes[np.triu_indices(n, 1)]
    assert off_diagonal.min() == -127
    assert off_diagonal.max() == 127


def test_fisher_z_decodes_to_the_cosine() -> None:
    representatives = rows_of_atoms(20, 40)
    table = FisherZTable.build(representatives)
    for a, b in [(0, 1), (3, 17), (19, 2)]:
        code = float(table.codes[a, b])
        expected = math.tanh((code + 127) / 254 * table.z_range + table.z_min)
        assert table.lookup(a, b) == pytest.approx(expected, abs=1e-5)
        true = float(cosines(representatives[a : a + 1], representatives[b : b + 1])[0])
        assert table.lookup(a, b) == pytest.approx(true, abs=table.z_range / 254 * 1.01)


def test_fisher_z_of_one_pair_has_the_least_range() -> None:
    table = FisherZTable.build(np.array([[1, 0], [3, 4]], np.float32))
    assert table.z_range == pytest.approx(1e-10)
    assert table.z_min == pytest.approx(math.atanh(0.6), rel=1e-6)
    np.testing.assert_array_equal(table.codes, [[127, -127], [-127, 127]])
    assert table.lookup(0, 1) == pytest.approx(0.6, abs=1e-6)


def test_fisher_z_clamps_cosines_before_atanh() -> None:
    table = FisherZTable.build(np.array([[1, 0], [-2, 0], [3, 0]], np.float32))
    assert table.z_min == pytest.approx(math.atanh(-0.9999), rel=1e-3)
    assert table.z_range == pytest.approx(2 * math.atanh(0.9999), rel=1e-3)
    np.testing.assert_array_equal(table.codes, [[127, -127, 127], [-127, 127, -127], [127, -127, 127]])


def test_fisher_z_bytes_are_least_range_and_codes() -> None:
    table = FisherZTable.build(rows_of_atoms(9, 40))
    data = table.to_bytes()
    assert len(data) == table.byte_size() == 8 + 81
    assert np.frombuffer(data, "<f4", 2).tolist() == [table.z_min, table.z_range]
    np.testing.assert_array_equal(np.frombuffer(data, np.int8, 81, 8).reshape(9, 9), table.codes)
    assert FisherZTable.from_bytes(data, 9).to_bytes() == data


def test_representatives_are_the_nearest_rows() -> None:
    rows = noise(50, 40)
    group = build_group_with_fisher_z(PaletteGroupKey("other", "gate", (50, 40)), [("a", rows)], k=9)
    dims = fold_rows(rows)
    chosen = picks(dims, 9)
    nearest = [min(range(50), key=lambda i: (l1(dims[i], dims[c]), i)) for c in chosen]
    assert group.fisher_z.to_bytes() == FisherZTable.build(rows[nearest]).to_bytes()


def test_an_entry_nobody_is_assigned_to_is_represented_by_its_unfold() -> None:
    rows = np.repeat(noise(1, 40), 5, axis=0)
    group = build_group_with_fisher_z(PaletteGroupKey("other", "gate", (5, 40)), [("a", rows)], k=3)
    own = unfold(np.array(fold(rows[0])), 40)
    expected = FisherZTable.build(np.array([rows[0], own, own], np.float32))
    assert group.fisher_z.to_bytes() == expected.to_bytes()


def test_a_tensor_looks_up_the_cosine_of_its_entries() -> None:
    rows = noise(50, 40)
    tensor = build_group_with_fisher_z(PaletteGroupKey("other", "gate", (50, 40)), [("a", rows)], k=9).tensor("a")
    twigs = (tensor.entries["slot_d"] >> 2) & 0xFF
    assert tensor.fisher_z is not None
    assert tensor.cosine_lookup(4, 30) == tensor.fisher_z.lookup(int(twigs[4]), int(twigs[30]))


# Slots D and V


@pytest.mark.parametrize(("role", "basin"), [("q_proj", 0), ("x.V_Proj", 1), ("other_gate", 2), ("lm_head", 3)])
def test_slots_d_and_v_are_laid_out_bit_by_bit(role: str, basin: int) -> None:
    rows = 2 * noise(60, 40)
    cache = cache_of(rows[:20], 12)
    hip = np.arange(12, dtype=np.uint8)
    dims = fold_rows(rows)
    entries = cache.palette.entries.dims.astype(np.int64)
    expected = b""
    for row, twig in zip(dims, nearest_entries(dims, entries), strict=True):
        residual = row - entries[twig]
        polarity = int(residual[int(np.abs(residual).argmax())] >= 0)
        slot_d = basin << 14 | int(hip[twig]) << 10 | twig << 2 | polarity << 1
        slot_v = truncated_bf16(l1(row, entries[twig]) / max(1, int(np.abs(entries[twig]).sum())))
        expected += slot_d.to_bytes(2, "little") + slot_v.to_bytes(2, "little")
    tensor = HhtlDTensor.encode(role, rows, cache, hip)
    assert tensor.entries_to_bytes() == expected


def test_the_fields_of_an_entry_are_its_bits() -> None:
    entry = hhtld.HhtlDEntry(0b10_1011_11001101_1_0, 0x3FC0)
    assert entry.heel_basin is HeelBasin.GATE
    assert entry.hip_family == 0b1011
    assert entry.twig == 0b11001101
    assert entry.polarity is True
    assert entry.residual == 1.5


@pytest.mark.parametrize(
    ("role", "basin"),
    [
        ("model.layers.0.self_attn.Q_PROJ.weight", HeelBasin.QK),
        ("k_proj", HeelBasin.QK),
        ("o_proj", HeelBasin.QK),
        ("v_proj", HeelBasin.V),
        ("mlp.gate_proj", HeelBasin.GATE),
        ("other_GATE", HeelBasin.GATE),
        ("up_proj", HeelBasin.FFN),
        ("down_proj", HeelBasin.FFN),
        ("other_qko", HeelBasin.FFN),
        ("gate.q_proj", HeelBasin.QK),
        ("gate.v_proj", HeelBasin.V),
        ("", HeelBasin.FFN),
    ],
)
def test_the_basin_comes_from_the_lower_cased_role_text(role: str, basin: HeelBasin) -> None:
    assert HeelBasin.from_role(role) is basin
    assert [b.value for b in (HeelBasin.QK, HeelBasin.V, HeelBasin.GATE, HeelBasin.FFN)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("dims", "polarity"),
    [
        (dims_at(d0=100), 1),  # the entry itself: no residual
        (dims_at(d0=100, d2=-5, d3=5), 0),  # the first of equal magnitudes decides
        (dims_at(d0=100, d2=5, d3=-5), 1),
        (dims_at(d0=90, d3=9), 0),
        (dims_at(d0=100, d1=-4, d16=5), 1),
    ],
)
def test_polarity_is_the_sign_of_the_largest_residual(dims: list[int], polarity: int) -> None:
    cache = HhtlCache(Palette(base17([dims_at(d0=100)])))
    tensor = HhtlDTensor.encode("up_proj", rows_that_fold_to([dims]), cache, np.zeros(1, np.uint8))
    assert tensor.entries["slot_d"].tolist() == [3 << 14 | polarity << 1]
    assert tensor.entry(0).polarity == bool(polarity)


@pytest.mark.parametrize(
    ("entry", "row", "bits"),
    [
        (dims_at(d0=3), dims_at(d0=5), 0x3F2A),  # 2/3 = 3F2AAAAB, where rounding to nearest gives 3F2B
        (dims_at(d0=7), dims_at(d0=-6), 0x3FED),  # 13/7 = 3FEDB6DB, where rounding to nearest gives 3FEE
        (dims_at(), dims_at(d4=-300, d5=1), 0x4396),  # an entry of zeros divides by 1: 301 = 43968000
        (dims_at(d0=3), dims_at(d0=3), 0x0000),
    ],
)
def test_slot_v_is_truncated_to_bfloat16(entry: list[int], row: list[int], bits: int) -> None:
    cache = HhtlCache(Palette(base17([entry])))
    tensor = HhtlDTensor.encode("up_proj", rows_that_fold_to([row]), cache, np.zeros(1, np.uint8))
    assert tensor.entries["slot_v"].tolist() == [bits]


# Roles, components, shapes


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("model.layers.3.self_attn.q_proj.weight", "qko"),
        ("model.layers.3.self_attn.k_proj.weight", "qko"),
        ("model.layers.3.self_attn.o_proj.weight", "qko"),
        ("model.layers.3.self_attn.v_proj.weight", "v"),
        ("model.layers.3.mlp.gate_proj.weight", "gate"),
        ("model.layers.3.mlp.up_proj.weight", "up"),
        ("model.layers.3.mlp.gate_up_proj.weight", "up"),
        ("model.layers.3.mlp.down_proj.weight", "down"),
        ("model.embed_tokens.weight", "embed"),
        ("talker.model.text_embedding.weight", "embed"),
        ("lm_head.weight", "lm_head"),
        ("LM_HEAD.weight", "lm_head"),
        ("talker.text_projection.linear_fc1.weight", "projection"),
        ("talker.codec_head.weight", "projection"),
        ("model.layers.0.mlp.gate.weight", "other"),
        ("model.norm.weight", "other"),
        ("", "other"),
        # The first of the listed words decides, wherever it stands.
        ("v_proj.q_proj", "qko"),
        ("gate_proj.v_proj", "v"),
        ("up_proj.gate_proj", "gate"),
        ("down_proj.up_proj", "up"),
        ("embed.down_proj", "down"),
        ("lm_head.embed", "embed"),
        ("projection.lm_head", "lm_head"),
    ],
)
def test_roles_by_name(name: str, role: str) -> None:
    assert classify_role(name) == role


@pytest.mark.parametrize(
    ("name", "component"),
    [
        ("talker.code_predictor.lm_head.0.weight", "code_predictor"),
        ("code_predictor.talker.weight", "code_predictor"),
        ("talker.model.layers.0.self_attn.q_proj.weight", "talker"),
        ("speaker_encoder.talker.weight", "talker"),
        ("speaker_encoder.fc.weight", "speaker_encoder"),
        ("model.layers.0.self_attn.q_proj.weight", "other"),
    ],
)
def test_components_by_name(name: str, component: str) -> None:
    assert classify_component(name) == component


def test_the_index_regime_is_embed_and_lm_head() -> None:
    assert [role for role in ARGMAX_ROLES + INDEX_ROLES if should_use_leaf(role)] == ["embed", "lm_head"]


def test_a_group_key_is_component_role_and_effective_shape() -> None:
    def key(name: str, shape: tuple[int, ...]) -> PaletteGroupKey:
        return PaletteGroupKey(classify_component(name), classify_role(name), effective_shape(shape))

    q, k = (key(f"model.layers.0.self_attn.{name}_proj.weight", (1024, 512)) for name in "qk")
    assert q == k == PaletteGroupKey("other", "qko", (1024, 512))
    assert hash(q) == hash(k)
    assert key("model.layers.9.self_attn.q_proj.weight", (1024, 512, 1)) == q
    assert key("talker.layers.0.self_attn.q_proj.weight", (1024, 512)) != q
    assert key("model.layers.0.self_attn.v_proj.weight", (1024, 512)) != q
    assert key("model.layers.0.self_attn.q_proj.weight", (512, 1024)) != q
    assert (q.component, q.role, q.shape) == ("other", "qko", (1024, 512))


@pytest.mark.parametrize(
    ("shape", "nbytes", "expected"),
    [
        ((512, 512), 524_288, True),
        ((511, 512), 523_264, False),
        ((512, 1000), 100_000, False),
        ((512, 1000), 100_001, True),
        ((512, 512, 1), 524_288, True),
        ((511, 512, 1), 523_264, False),
        ((512, 512, 2), 1_048_576, False),
        ((512, 1, 512), 524_288, False),
        ((1, 512, 512), 524_288, False),
        ((512, 512, 1, 1), 524_288, False),
        ((1_000_000,), 2_000_000, False),
        ((), 1_000_000, False),
    ],
)
def test_encodable_is_a_matrix_of_512_rows_and_more_than_100000_bytes(
    shape: tuple[int, ...], nbytes: int, expected: bool
) -> None:
    assert is_encodable(shape, nbytes) is expected


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((512, 768), (512, 768)),
        ((512, 768, 1), (512, 768)),
        ((512, 768, 3), (512, 2304)),
        ((512, 1, 5), (512, 5)),
        ((64, 3, 7, 7), (64, 147)),
        ((100,), (100, 1)),
    ],
)
def test_the_effective_shape_is_the_first_axis_and_the_product_of_the_rest(
    shape: tuple[int, ...], expected: tuple[int, int]
) -> None:
    assert effective_shape(shape) == expected
