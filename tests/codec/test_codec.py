"""Laws of the codec mathematics, and what each part does at its edges."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from hhtld.codecs.palette import HhtlF32Tensor
from hhtld.slots.base17 import Base17
from hhtld.slots.fisher_z import FisherZTable
from hhtld.slots.palette import HhtlCache, Palette, RouteAction, build_hip_families, checked_palette_k
from hhtld.slots.slot_d_v import HeelBasin, HhtlDEntry, encode_entries, entries_from_bytes
from hhtld.slots.slot_l import SvdBasis, decode_row, decode_rows, encode_rows
from hhtld.sources.rows import ArrayRows, row_ranges

floats = st.floats(-1e4, 1e4, width=32)


def matrix(max_rows: int = 40, max_cols: int = 70) -> st.SearchStrategy[NDArray[np.float32]]:
    shapes = st.tuples(st.integers(1, max_rows), st.integers(1, max_cols))
    return shapes.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=floats))


def oracle_fold(row: NDArray[np.float32]) -> list[int]:
    """Base17 written from its definition, in Python floats."""
    out = []
    for i in range(17):
        columns = row[11 * i % 17 :: 17]
        mean = sum(map(float, columns)) / len(columns) if len(columns) else 0.0
        scaled = mean * 256
        rounded = int(scaled) + (1 if scaled - int(scaled) >= 0.5 else -1 if scaled - int(scaled) <= -0.5 else 0)
        out.append(max(-32768, min(32767, rounded)))
    return out


@given(matrix())
def test_fold_is_its_definition(rows: NDArray[np.float32]) -> None:
    folded = Base17.fold(rows)
    assert folded.dims.tolist() == [oracle_fold(row) for row in rows]
    again = Base17.fold(folded.unfold(rows.shape[1]))
    seen = sorted({11 * i % 17 for i in range(17)})[: rows.shape[1]]
    kept = [i for i in range(17) if 11 * i % 17 in seen]
    assert np.array_equal(again.dims[:, kept], folded.dims[:, kept])


@given(matrix(30, 30), st.integers(1, 256))
def test_palette_picks_are_furthest_points(rows: NDArray[np.float32], k: int) -> None:
    folded = Base17.fold(rows)
    palette = Palette.build(folded, k)
    dims = folded.dims.astype(np.int64)
    centroid = np.array([int(total / len(dims)) if abs(total) < 2**50 else 0 for total in dims.sum(axis=0)])
    picks = [int(np.abs(dims - centroid).sum(axis=1).argmin())]
    distance = np.abs(dims - dims[picks[0]]).sum(axis=1)
    for _ in range(min(k, len(dims)) - 1):
        picks.append(int(np.flatnonzero(distance == distance.max())[-1]))
        distance = np.minimum(distance, np.abs(dims - dims[picks[-1]]).sum(axis=1))
    assert np.array_equal(palette.entries.dims, folded.dims[picks])
    twigs, apart = palette.assign(folded)
    table = folded.l1(palette.entries)
    assert np.array_equal(twigs, table.argmin(axis=1))
    assert np.array_equal(apart, table.min(axis=1))
    assert palette.counts is not None
    assert palette.radii is not None
    assert palette.counts.sum() == len(rows)
    assert palette.radii.max() == apart.max()


def test_weighted_distance_and_binding() -> None:
    a, b = Base17(np.zeros((1, 17), np.int16)), Base17(np.ones((1, 17), np.int16))
    assert a.l1_weighted(b).tolist() == [[20 + 6 * 3 + 10]]
    assert a.l1(b).tolist() == [[17]]
    assert np.array_equal(a.bind(b).dims, b.dims)
    assert np.array_equal(b.bind(b).dims, a.dims)
    assert Base17.from_bytes(b.to_bytes()).dims.tolist() == b.dims.tolist()


def test_tables_are_consistent(rng: np.random.Generator) -> None:
    cache = HhtlCache(Palette.build(Base17.fold(rng.standard_normal((400, 60)))))
    assert np.array_equal(cache.distances, cache.distances.T)
    assert not cache.distances.diagonal().any()
    assert (cache.routes.diagonal() == RouteAction.ATTEND).all()
    assert np.array_equal(cache.routes, cache.routes.T)
    assert cache.route(0, 0) is RouteAction.ATTEND
    assert cache.distance(3, 5) == cache.distances[3, 5]
    table = cache.palette.entries.bind(cache.palette.entries)
    assert cache.composition[7, 7] == cache.nearest(Base17(table.dims[:1]))[0][0]
    families = build_hip_families(cache.palette)
    assert families.max() <= 15
    assert len(set(families.tolist())) > 8


@pytest.mark.parametrize("k", [1, 2, 3])
def test_tiny_palettes_have_tables(k: int) -> None:
    cache = HhtlCache(Palette.build(Base17.fold(np.eye(3, 20) * 9), k))
    assert cache.routes.shape == cache.composition.shape == cache.distances.shape == (k, k)
    assert build_hip_families(cache.palette).shape == (k,)


@pytest.mark.parametrize(("k", "error"), [(0, ValueError), (257, ValueError), (-1, ValueError), (2**40, ValueError)])
def test_palette_size_names_the_u8_limit(k: int, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"1\.\.256, because a twig is one u8"):
        HhtlF32Tensor.encode("v", np.eye(4), k)


@pytest.mark.parametrize("k", [True, 2.5, "256", None])
def test_palette_size_is_an_integer(k: object) -> None:
    with pytest.raises(TypeError, match="must be an integer"):
        checked_palette_k(k)


def test_fisher_z_round_trip(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((20, 50)).astype(np.float32)
    table = FisherZTable.build(rows)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    off = ~np.eye(20, dtype=bool)
    assert np.abs(table.cosines(table.codes) - unit @ unit.T)[off].max() < table.z_range / 254 * 1.01
    again = FisherZTable.from_bytes(table.to_bytes(), 20)
    assert again.to_bytes() == table.to_bytes()
    assert again.lookup(2, 3) == table.lookup(2, 3)
    assert len(table.to_bytes()) == table.byte_size()
    for pair in ((-1, 0), (0, 20), (20, 0), (0, -1)):
        with pytest.raises(IndexError, match=rf"entries must be 0\.\.19, got {pair[0]} and {pair[1]}"):
            table.lookup(*pair)


@pytest.mark.parametrize("rows", [np.zeros((3, 5)), np.ones((4, 5)), np.full((1, 5), 2.0), np.full((3, 5), 1e30)])
def test_fisher_z_of_degenerate_rows(rows: NDArray[np.float64]) -> None:
    table = FisherZTable.build(rows.astype(np.float32))
    assert np.isfinite(table.cosines(table.codes)).all()
    assert table.z_range > 0


@pytest.mark.parametrize("data", [b"", bytes(11), bytes(12), b"\0\0\xc0\x7f" + b"\0\0\x80\x3f" + bytes(4)])
def test_fisher_z_refuses_bad_bytes(data: bytes) -> None:
    with pytest.raises(ValueError, match="Fisher z"):
        FisherZTable.from_bytes(data, 2)


@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (40, 3), (8, 8), (200, 64), (50, 300)])
def test_basis_spans_what_numpy_finds(shape: tuple[int, int], rng: np.random.Generator) -> None:
    scale = 0.7 ** np.arange(min(shape))
    rows = (rng.standard_normal((shape[0], len(scale))) * scale) @ rng.standard_normal((len(scale), shape[1]))
    basis = SvdBasis.build(rows.astype(np.float32))
    _, values, vectors = np.linalg.svd(rows, full_matrices=False)
    keep = min(8, *shape)
    assert basis.n_components == keep
    assert basis.singular_values == pytest.approx(values[:keep], rel=1e-3)
    overlap = np.abs(basis.vectors[:keep].astype(np.float64) @ vectors[:keep].T).diagonal()
    assert overlap.min() > 0.99
    assert SvdBasis.from_bytes(basis.to_bytes()).to_bytes() == basis.to_bytes()
    assert len(basis.to_bytes()) == basis.byte_size()
    assert 0 == basis.energy_fraction(0) < basis.energy_fraction(1) <= basis.energy_fraction(keep) == 1.0
    with pytest.raises(ValueError, match="n_components must count vectors, 0 or more; got -1"):
        basis.energy_fraction(-1)


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf])
def test_a_scale_of_slot_l_must_be_finite(scale: float, rng: np.random.Generator) -> None:
    rows = rng.standard_normal((9, 30)).astype(np.float32)
    basis, codes = SvdBasis.build(rows), np.ones((9, 8), np.int8)
    with pytest.raises(ValueError, match=f"the scale of Slot L must be finite, got {scale}"):
        decode_rows(rows, codes, scale, basis)
    with pytest.raises(ValueError, match="the scale of Slot L must be finite"):
        decode_row(rows[0], codes[0], scale, basis)


def test_basis_projects_and_reconstructs(rng: np.random.Generator) -> None:
    rows = (rng.standard_normal((60, 5)) @ rng.standard_normal((5, 30))).astype(np.float32)
    basis = SvdBasis.build(rows)
    assert not basis.singular_values[5:].any(), "directions without energy are dropped"
    assert not basis.vectors[5:].any()
    again = basis.reconstruct(basis.project(rows))
    assert np.linalg.norm(again - rows) < 0.01 * np.linalg.norm(rows)


@pytest.mark.parametrize("rows", [np.zeros((5, 9)), np.ones((5, 9)), np.zeros((5, 200))])
def test_basis_of_degenerate_rows(rows: NDArray[np.float64]) -> None:
    assert np.isfinite(SvdBasis.build(rows).vectors).all()


@pytest.mark.parametrize(
    "data", [b"", bytes(8), b"\x09\0\0\0\x01\0\0\0" + bytes(54), b"\x01\0\0\0\x01\0\0\0" + bytes(5)]
)
def test_basis_refuses_bad_bytes(data: bytes) -> None:
    with pytest.raises(ValueError, match="basis"):
        SvdBasis.from_bytes(data)


def test_basis_refuses_what_is_not_finite() -> None:
    with pytest.raises(ValueError, match="finite"):
        SvdBasis.from_bytes(b"\x01\0\0\0\x01\0\0\0" + bytes(4) + b"\x80\x7f")


def test_slot_d_packs_and_unpacks(rng: np.random.Generator) -> None:
    folded = Base17.fold(rng.standard_normal((300, 40)))
    palette = Palette.build(folded, 200)
    families = build_hip_families(palette)
    entries = encode_entries(HeelBasin.GATE, folded, HhtlCache(palette), families)
    twigs, distances = palette.assign(folded)
    for row in (0, 17, 299):
        entry = HhtlDEntry(int(entries[row]["slot_d"]), int(entries[row]["slot_v"]))
        apart = folded.dims[row].astype(int) - palette.entries.dims[twigs[row]]
        assert entry.heel_basin is HeelBasin.GATE
        assert entry.twig == twigs[row]
        assert entry.hip_family == families[twigs[row]]
        assert entry.polarity == (apart[np.abs(apart).argmax()] >= 0)
        magnitude = distances[row] / max(1, np.abs(palette.entries.dims[twigs[row]].astype(int)).sum())
        assert entry.residual == pytest.approx(magnitude, rel=2**-7)
        assert entry.residual <= magnitude
    assert np.array_equal(entries_from_bytes(entries.tobytes()), entries)


@pytest.mark.parametrize(
    ("role", "basin"),
    [("other_qko", 3), ("Q_PROJ", 0), ("x.k_proj", 0), ("o_proj", 0), ("v_proj", 1), ("other_gate", 2), ("up", 3)],
)
def test_basin_of_a_role(role: str, basin: int) -> None:
    assert HeelBasin.from_role(role) == basin


@pytest.mark.parametrize("data", [b"abc", b"\x01\x00\x00\x00"])
def test_entries_refuse_bad_bytes(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"multiple of 4|reserved bit"):
        entries_from_bytes(data)


@pytest.mark.parametrize("families", [np.zeros(3, np.uint8), np.full(2, 16, np.uint8), np.zeros(2, np.int64)])
def test_hip_assignments_must_fit_the_palette(families: NDArray[np.uint8]) -> None:
    folded = Base17.fold(np.eye(2, 20))
    with pytest.raises(ValueError, match="hip_assignments"):
        encode_entries(HeelBasin.V, folded, HhtlCache(Palette.build(folded)), families)


def test_slot_l_counts_and_widths_must_agree() -> None:
    rows = np.eye(6, 10, dtype=np.float32)
    basis = SvdBasis.build(rows)
    with pytest.raises(ValueError, match="6 rows but 5 centroids"):
        encode_rows(rows, rows[:5], basis)
    with pytest.raises(ValueError, match="widths differ"):
        encode_rows(rows, rows[:, :9], basis)
    with pytest.raises(ValueError, match="widths differ"):
        encode_rows(rows[:, :9], rows[:, :9], basis)
    with pytest.raises(ValueError, match="codes"):
        decode_rows(rows, np.zeros((5, 8), np.int8), 1.0, basis)


def test_codes_and_shapes_that_are_no_slot_l_are_refused() -> None:
    basis = SvdBasis.build(np.random.default_rng(0).standard_normal((40, 20)))
    with pytest.raises(ValueError, match="whole numbers from -128 to 127"):
        decode_rows(np.zeros((1, 20)), np.full((1, 8), 300), 1.0, basis)
    with pytest.raises(ValueError, match=r"got \(1, 20\) and \(8,\)"):
        decode_row(np.zeros((1, 20)), np.zeros(8, np.int8), 1.0, basis)
    with pytest.raises(ValueError, match=r"got \(20,\) and \(7,\)"):
        decode_row(np.zeros(20), np.zeros(7, np.int8), 1.0, basis)


def test_one_row_of_slot_l_decodes_as_among_others(rng: np.random.Generator) -> None:
    rows, centroids = (rng.standard_normal((2, 9, 30))).astype(np.float32)
    basis = SvdBasis.build(rows)
    slot_l, scale = encode_rows(rows, centroids, basis)
    together = decode_rows(centroids, slot_l, scale, basis)
    for row in range(9):
        alone = decode_row(centroids[row], slot_l[row], scale, basis)
        assert alone.shape == (30,)
        assert np.array_equal(alone, together[row])
    with pytest.raises(ValueError, match="codes"):
        decode_row(centroids[0], slot_l[0, :7], scale, basis)


def test_slot_l_of_rows_equal_to_their_centroids() -> None:
    rows = np.eye(6, 10, dtype=np.float32)
    slot_l, scale = encode_rows(rows, rows, SvdBasis.build(rows))
    assert scale == 1.0
    assert not slot_l.any()


@given(matrix(20, 40))
def test_slot_l_errs_by_half_a_step(rows: NDArray[np.float32]) -> None:
    basis = SvdBasis.build(rows)
    zero = np.zeros_like(rows)
    slot_l, scale = encode_rows(rows, zero, basis)
    assert np.abs(slot_l.astype(int)).max(initial=0) <= 127
    coefficients = basis.project(rows)
    if np.abs(coefficients).max() > 1e-12:
        assert np.abs(coefficients - slot_l * np.float32(scale)).max() <= scale * 0.5001
        assert np.abs(slot_l.astype(int)).max() == 127


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1.0, np.nan]], "finite, but there is nan at row 0, column 1"),
        ([[1.0], [np.inf]], "finite, but there is inf at row 1, column 0"),
        ([[1e300]], "fit float32, but the largest value of row 0 is 1e\\+300"),
        ([1.0, 2.0], "two-dimensional"),
        ([["a"]], "real numbers"),
        ([[1j]], "real numbers"),
    ],
)
def test_rows_are_checked_at_the_door(rows: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ArrayRows(rows)  # type: ignore[arg-type]  # wrong on purpose


def test_rows_of_any_memory_order_are_the_same(rng: np.random.Generator) -> None:
    plain = rng.standard_normal((30, 21)).astype(np.float32)
    wide = np.zeros((60, 42), np.float32)
    wide[::2, ::2] = plain
    odd = np.frombuffer(b"\0" + plain.tobytes(), np.uint8)[1:].view("<f4").reshape(plain.shape)
    for other in (
        np.asfortranarray(plain),
        plain.astype(">f4"),
        wide[::2, ::2],
        plain[::-1][::-1],
        odd,
        plain.tolist(),
    ):
        assert np.array_equal(Base17.fold(other).dims, Base17.fold(plain).dims)


def test_blocks_cover_all_rows_once() -> None:
    ranges = list(row_ranges(100_003, 1536))
    assert ranges[0][0] == 0
    assert ranges[-1][1] == 100_003
    assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))
    assert list(row_ranges(2**48, 0)) == []
