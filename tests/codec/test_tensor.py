"""Encoded tensors and groups: the one decoder, row access, edges, and the files before Slot L."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

import hhtld
from hhtld.codecs.base import sample_basis
from hhtld.codecs.lookup import HhtlDTensor, SharedPaletteGroup, build_group_with_fisher_z, build_group_with_leaf
from hhtld.codecs.palette import HhtlF32Tensor
from hhtld.codecs.trellis import HhtlTTensor
from hhtld.errors import RangeError
from hhtld.identity import PaletteGroupKey
from hhtld.slots.slot_d_v import ENTRY_DTYPE
from hhtld.slots.slot_l import SvdBasis
from hhtld.sources.rows import ArrayRows

Tensor = HhtlDTensor | HhtlF32Tensor
Builder = Callable[..., SharedPaletteGroup]


def structured(n_rows: int, n_cols: int, rng: np.random.Generator) -> NDArray[np.float32]:
    return (rng.standard_normal((n_rows, 4)) @ rng.standard_normal((4, n_cols))).astype(np.float32)


def group(rows: NDArray[np.float32], leaf: bool) -> SharedPaletteGroup:
    key = PaletteGroupKey("other", "embed" if leaf else "gate", rows.shape)
    return (build_group_with_leaf if leaf else build_group_with_fisher_z)(key, [("w", rows)])


def encoded(codec: str, rows: NDArray[np.float32]) -> Tensor:
    if codec.startswith("d"):
        return group(rows, codec == "d+l").tensor("w")
    if codec == "f32":
        return HhtlF32Tensor.encode("v", rows)
    return HhtlF32Tensor.encode_with_leaf("v", rows, 256, sample_basis(ArrayRows(rows)))


CODECS = ["d", "d+l", "f32", "f32+l"]
SHAPES = [(1, 1), (1, 40), (2, 3), (3, 16), (5, 17), (7, 33), (40, 8), (300, 51), (513, 20)]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shape", SHAPES)
def test_any_rows_are_rows_of_the_whole(codec: str, shape: tuple[int, int], rng: np.random.Generator) -> None:
    tensor = encoded(codec, structured(*shape, rng))
    whole = tensor.reconstruct_rows()
    assert whole.shape == shape
    assert whole.dtype == np.float32
    assert np.isfinite(whole).all()
    picks = rng.integers(0, shape[0], 11)
    assert np.array_equal(tensor.reconstruct_rows(picks), whole[picks])
    assert np.array_equal(tensor.reconstruct_rows(slice(None, None, -2)), whole[::-2])
    assert np.array_equal(tensor.reconstruct_rows([-1]), whole[-1:])
    assert np.array_equal(tensor.reconstruct_row(shape[0] - 1), whole[-1])
    assert tensor.reconstruct_rows([]).shape == (0, shape[1])


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("kind", ["zeros", "duplicates", "one row of zeros", "tiny", "huge", "negative zero"])
def test_degenerate_rows(codec: str, kind: str, rng: np.random.Generator) -> None:
    rows = structured(30, 25, rng)
    if kind == "zeros":
        rows[:] = 0
    elif kind == "duplicates":
        rows[:] = rows[0]
    elif kind == "one row of zeros":
        rows[3] = 0
    elif kind == "tiny":
        rows *= np.float32(1e-40)
    elif kind == "huge":
        rows *= np.float32(1e30)
    else:
        rows[:] = -0.0
    decoded = encoded(codec, rows).reconstruct_rows()
    assert np.isfinite(decoded).all()
    if kind == "zeros":
        assert not decoded.any()
    if kind == "duplicates" and codec == "f32":
        assert len(np.unique(decoded, axis=0)) == 1


@pytest.mark.parametrize("codec", ["f32", "f32+l"])
@pytest.mark.parametrize("n_rows", [30, 600])
def test_zero_rows_of_a_palette_come_back_zero(codec: str, n_rows: int, rng: np.random.Generator) -> None:
    rows = rng.standard_normal((n_rows, 60)).astype(np.float32)
    rows[[3, n_rows - 1]] = 0  # in the middle of all others, so that it is picked last
    tensor = encoded(codec, rows)
    assert not tensor.reconstruct_rows([3, n_rows - 1]).any()
    live = np.delete(rows, [3, n_rows - 1], axis=0)
    entries = HhtlF32Tensor.encode("v", live, min(255, len(live))).palette_bits
    assert np.array_equal(tensor.palette_bits[:-1], entries), "the other entries are those of the other rows"
    nearest = ((live[:, None] - tensor.palette_f32.astype(np.float64)) ** 2).sum(axis=2).argmin(axis=1)
    assert (np.delete(tensor.twigs, [3, n_rows - 1]) == nearest).mean() > 0.98, "but for bfloat16's rounding"


@pytest.mark.parametrize("codec", CODECS)
def test_bytes_do_not_depend_on_threads(codec: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = structured(700, 40, rng)
    alone = encoded(codec, rows)
    monkeypatch.setattr("hhtld.sources.rows.BLOCK_NBYTES", 4096)
    with ThreadPoolExecutor(7) as threads:
        if codec.startswith("d"):
            key = PaletteGroupKey("other", "embed" if codec == "d+l" else "gate", rows.shape)
            build = build_group_with_leaf if codec == "d+l" else build_group_with_fisher_z
            together: Tensor = build(key, [("w", rows)], executor=threads).tensor("w")
        elif codec == "f32":
            together = HhtlF32Tensor.encode("v", rows, executor=threads)
        else:
            together = HhtlF32Tensor.encode_with_leaf("v", rows, 256, sample_basis(ArrayRows(rows)), threads)
    assert together.entries_to_bytes() == alone.entries_to_bytes()
    assert together.slot_l_to_bytes() == alone.slot_l_to_bytes()


def test_without_slot_l_nothing_of_it_exists(rng: np.random.Generator) -> None:
    rows = structured(40, 30, rng)
    plain, leafed = group(rows, False), group(rows, True)
    tensor = plain.tensor("w")
    assert tensor.slot_l is tensor.slot_l_scale is tensor.svd_basis is None
    assert tensor.slot_l_to_bytes() is None
    assert tensor.slot_l_byte_size() == plain.slot_l_byte_size() == plain.svd_basis_byte_size() == 0
    assert plain.slot_l_for("w") is None
    # The older part of an object with Slot L is what it was, but for the role's basin.
    assert leafed.tensor_entries["w"]["slot_v"].tobytes() == plain.tensor_entries["w"]["slot_v"].tobytes()
    assert leafed.fisher_z.to_bytes() == plain.fisher_z.to_bytes()


def test_sizes(rng: np.random.Generator) -> None:
    rows = structured(600, 50, rng)
    held = group(rows, True)
    tensor = held.tensor("w")
    assert tensor.fisher_z is not None
    assert tensor.entries_byte_size() == 2400
    assert tensor.slot_l_byte_size() == held.slot_l_byte_size() == 4800
    assert tensor.total_byte_size() == 7200 + tensor.fisher_z.byte_size()
    assert tensor.compression_ratio() == 2 * 600 * 50 / 7200
    assert held.svd_basis_byte_size() == 8 + 8 * (4 + 100)
    assert held.palette_byte_size() == 256 * 34
    assert held.tensor_names == ["w"]
    f32 = HhtlF32Tensor.encode("v", rows)
    assert f32.total_byte_size() == 600 + 256 * 100
    assert f32.compression_ratio() == 2 * 600 * 50 / f32.total_byte_size()

    trellis = hhtld.encode({"w": rows}, "bits:2").get_encoded("w")
    assert isinstance(trellis, HhtlTTensor)
    assert trellis.compression_ratio() == 2 * 600 * 50 / trellis.total_byte_size()


@pytest.mark.parametrize(
    ("profile", "change", "said"),
    [
        (
            "bits:2",
            {"row_class": np.zeros(600, np.uint8)},
            "row_class and the group's classes come together or not at all",
        ),
        ("bits:2", {"original_shape": (600, 63)}, "the group's rows have 64 columns, the tensor's 63"),
        (
            "bits:2",
            {"slot_t": np.zeros((600, 5), np.uint8)},
            r"slot_t must be \(600, \d+\) and slot_v \(600,\), got \(600, 5\)",
        ),
        ("bits:2", {"slot_v_2": np.zeros(600, np.uint16)}, "the group's second code come together or not at all"),
        ("bits:2+1", {"slot_t_2": np.zeros((600, 5), np.uint8)}, r"slot_t_2 must be \(600, \d+\), got \(600, 5\)"),
        ("f32", {"twigs": np.zeros(5, np.uint8)}, r"twigs must be 600 of uint8, got \(5,\) of uint8"),
        ("f32", {"palette_bits": np.zeros((4, 5), np.uint16)}, r"the palette must have 64 columns, got shape \(4, 5\)"),
        ("lookup", {"slot_l": np.zeros((600, 7), np.int8)}, r"slot_l must have shape \(600, 8\), got \(600, 7\)"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(
    profile: str, change: dict[str, object], said: str, rng: np.random.Generator
) -> None:
    name = "embed_tokens.weight"
    whole = hhtld.encode({name: structured(600, 64, rng)}, profile).get_encoded(name)
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(whole, **change)  # type: ignore[type-var]  # each of them is a dataclass


def test_serialised_parts_come_back(rng: np.random.Generator) -> None:
    tensor = group(structured(50, 30, rng), True).tensor("w")
    assert tensor.slot_l is not None
    assert tensor.entries.dtype == ENTRY_DTYPE
    assert np.array_equal(HhtlDTensor.entries_from_bytes(tensor.entries_to_bytes()), tensor.entries)
    with pytest.raises(ValueError, match="multiple of 8"):
        HhtlDTensor.slot_l_from_bytes(bytes(9))
    entry = tensor.entry(3)
    assert entry.twig == tensor.twigs[3]
    assert entry.heel_basin is tensor.basin


@pytest.mark.parametrize("codec", ["d+l", "f32+l"])
def test_slot_l_goes_to_bytes_with_its_scale_and_comes_back(codec: str, rng: np.random.Generator) -> None:
    tensor = encoded(codec, structured(50, 30, rng))
    written = tensor.slot_l_to_bytes()
    assert written is not None
    data, scale = written
    assert (type(data), len(data), scale) == (bytes, 8 * 50, tensor.slot_l_scale)
    assert np.array_equal(type(tensor).slot_l_from_bytes(data), tensor.slot_l)
    assert encoded(codec.removesuffix("+l"), structured(5, 30, rng)).slot_l_to_bytes() is None


@pytest.mark.parametrize("role", ["qko", "v", "gate", "up", "down", "projection", "other"])
def test_build_group_with_leaf_gives_argmax_roles_no_leaf(role: str, rng: np.random.Generator) -> None:
    rows = structured(60, 30, rng)
    key = PaletteGroupKey("talker", role, rows.shape)
    asked, plain = build_group_with_leaf(key, [("w", rows)]), build_group_with_fisher_z(key, [("w", rows)])
    assert asked.svd_basis is None
    assert asked.slot_l_for("w") is None
    assert asked.svd_basis_byte_size() == asked.slot_l_byte_size() == 0
    assert asked.cache.palette.entries.to_bytes() == plain.cache.palette.entries.to_bytes()
    assert asked.fisher_z.to_bytes() == plain.fisher_z.to_bytes()
    assert asked.tensor("w").entries_to_bytes() == plain.tensor("w").entries_to_bytes()


@pytest.mark.parametrize("role", ["embed", "lm_head"])
def test_build_group_with_leaf_gives_index_roles_one_basis_and_slot_l(role: str, rng: np.random.Generator) -> None:
    tensors = {name: structured(60, 30, rng) for name in "abc"}
    held = build_group_with_leaf(PaletteGroupKey("other", role, (60, 30)), tensors.items())
    assert held.svd_basis is not None
    assert held.svd_basis_byte_size() == held.svd_basis.byte_size() == 8 + 8 * (4 + 2 * 30)
    assert held.slot_l_byte_size() == 3 * 60 * 8
    assert all(held.tensor(name).svd_basis is held.svd_basis for name in tensors)


@pytest.mark.parametrize("build", [build_group_with_fisher_z, build_group_with_leaf])
def test_builders_take_the_palette_size(build: Builder, rng: np.random.Generator) -> None:
    rows = structured(300, 30, rng)
    key = PaletteGroupKey("other", "embed", rows.shape)
    for k in (1, 7, 256):
        held = build(key, [("w", rows)], k)
        assert held.cache.k == k
        assert held.palette_byte_size() == 34 * k
        assert len(held.fisher_z.codes) == k
    assert build(key, [("w", rows)]).cache.k == 256
    for k in (0, 257, 300):
        with pytest.raises(ValueError, match=r"1\.\.256, because a twig is one u8"):
            build(key, [("w", rows)], k)


def test_palette_size_comes_before_the_basis(rng: np.random.Generator) -> None:
    rows = structured(60, 30, rng)
    basis = SvdBasis.build(rows)
    tensor = HhtlF32Tensor.encode_with_leaf("embed", rows, 20, basis)
    assert len(tensor.palette_bits) == 20
    assert tensor.svd_basis is basis
    with pytest.raises(TypeError, match="the palette size comes before the basis"):
        HhtlF32Tensor.encode_with_leaf("embed", rows, basis, 20)
    with pytest.raises(TypeError, match="svd_basis"):
        HhtlF32Tensor.encode_with_leaf("embed", rows, basis)


def test_cosine_lookup_is_that_of_the_entries(rng: np.random.Generator) -> None:
    rows = structured(30, 30, rng)
    tensor = group(rows, False).tensor("w")
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert tensor.cosine_lookup(2, 9) == pytest.approx(float(unit[2] @ unit[9]), abs=0.05)
    f32 = HhtlF32Tensor.encode("v", rows)
    assert f32.cosine_lookup(2, 9) == pytest.approx(float(unit[2] @ unit[9]), abs=0.02)
    assert HhtlF32Tensor.encode("v", np.zeros((2, 3))).cosine_lookup(0, 1) == 0.0
    tensor.fisher_z = None
    with pytest.raises(ValueError, match="no Fisher z"):
        tensor.cosine_lookup(0, 1)


def test_f32_palette_never_picks_twice(rng: np.random.Generator) -> None:
    rows = np.repeat(structured(5, 12, rng), 3, axis=0)
    tensor = HhtlF32Tensor.encode("v", rows)
    assert len(tensor.palette_bits) == 5
    assert np.abs(tensor.reconstruct_rows() - rows).max() <= np.abs(rows).max() * 2**-8


def test_f32_palette_holds_no_infinity() -> None:
    rows = np.array([[1, 2], [3.4e38, 0]], np.float32)
    with pytest.raises(RangeError, match="row 1 holds a weight that bfloat16 would round to infinity"):
        HhtlF32Tensor.encode("x", rows)


@pytest.mark.parametrize("profile", ["f32", "lookup"])
def test_singular_values_past_float32_are_refused(profile: str) -> None:
    """A basis that holds infinity would be written, and refused by every reader."""
    rows = np.full((600, 48), 3.38e38, np.float32)
    rows[::2] *= -1
    with pytest.raises(RangeError, match=r"^'lm_head.weight': a singular value .* rules \(--rule NAME=keep\)"):
        hhtld.encode({"lm_head.weight": rows}, profile)


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([5], IndexError, "must lie in 0..4"),
        ([-6], IndexError, "must lie in 0..4"),
        ([[1]], TypeError, "flat sequence"),
        ([1.5], TypeError, "flat sequence"),
    ],
)
def test_bad_row_numbers(rows: object, error: type[Exception], message: str) -> None:
    tensor = HhtlF32Tensor.encode("v", np.eye(5))
    with pytest.raises(error, match=message):
        tensor.reconstruct_rows(rows)  # type: ignore[arg-type]  # wrong on purpose


def test_constructors_check_what_they_are_given(rng: np.random.Generator) -> None:
    tensor = group(structured(20, 12, rng), True).tensor("w")
    parts = (tensor.role, tensor.cache)
    with pytest.raises(ValueError, match="entries must be 19"):
        HhtlDTensor(*parts, tensor.entries, (19, 12))
    with pytest.raises(ValueError, match="come together"):
        HhtlDTensor(*parts, tensor.entries, (20, 12), slot_l=tensor.slot_l)
    with pytest.raises(ValueError, match="basis has 12 columns"):
        HhtlDTensor(
            *parts, tensor.entries, (20, 13), slot_l=tensor.slot_l, slot_l_scale=1.0, svd_basis=tensor.svd_basis
        )
    with pytest.raises(ValueError, match="finite and positive"):
        HhtlDTensor(
            *parts, tensor.entries, (20, 12), slot_l=tensor.slot_l, slot_l_scale=-1.0, svd_basis=tensor.svd_basis
        )
    bad = tensor.entries.copy()
    bad["slot_d"][7] = 255 << 2
    with pytest.raises(ValueError, match="row 7 has twig 255, but the palette has 20"):
        HhtlDTensor(*parts, bad, (20, 12))
    with pytest.raises(ValueError, match="row 1 has twig 9, but the palette has 1"):
        HhtlF32Tensor("v", np.zeros((1, 3), np.uint16), np.array([0, 9], np.uint8), (2, 3))
    with pytest.raises(ValueError, match="finite"):
        HhtlF32Tensor("v", np.full((1, 3), 0x7F80, np.uint16), np.zeros(2, np.uint8), (2, 3))


def test_groups_refuse_what_does_not_belong(rng: np.random.Generator) -> None:
    held = group(structured(20, 12, rng), False)
    with pytest.raises(ValueError, match="cannot hold rows of shape"):
        held.add("x", structured(21, 12, rng))
    with pytest.raises(ValueError, match="already holds 'w'"):
        held.add("w", structured(20, 12, rng))
    with pytest.raises(ValueError, match="no tensors"):
        build_group_with_leaf(held.key, [])
    with pytest.raises(ValueError, match="at least one row"):
        HhtlF32Tensor.encode("v", np.zeros((0, 3)))
    assert str(held.key) == "other/gate 20 x 12"


def test_a_group_is_built_from_its_first_tensor(rng: np.random.Generator) -> None:
    first, second = structured(60, 20, rng), structured(60, 20, rng)
    key = PaletteGroupKey("other", "up", (60, 20))
    both = build_group_with_fisher_z(key, [("a", first), ("b", second)])
    alone = build_group_with_fisher_z(key, [("a", first)])
    assert both.cache.palette.entries.to_bytes() == alone.cache.palette.entries.to_bytes()
    assert both.tensor("a").entries_to_bytes() == alone.tensor("a").entries_to_bytes()
    assert both.tensor_names == ["a", "b"]


def test_basis_sample_is_the_first_4096_rows(rng: np.random.Generator) -> None:
    rows = structured(5000, 9, rng)
    assert sample_basis(ArrayRows(rows)).to_bytes() == SvdBasis.build(rows[:4096]).to_bytes()
