"""Packs in torch: state dicts, packed modules, ops that compile and export, whole models."""

from __future__ import annotations

import copy
import functools
import gc
import io
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import hhtld
from hhtld.pack.pack import HhtldPack

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")
nn = torch.nn

from hhtld.integrations.torch import (  # noqa: E402 - after the skip
    HhtlEmbedding,
    HhtlLinear,
    PackedWeight,
    iter_tensors,
    load_state_dict,
    packed_counts,
    replace_modules,
)
from hhtld.integrations.torch import ops as torch_ops  # noqa: E402 - after the skip

GOLDEN = sorted((Path(__file__).parent.parent / "golden" / "packs").rglob("*.hhtld"))


def matrix(n_rows: int, n_cols: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng([seed, n_rows, n_cols]).standard_normal((n_rows, n_cols)).astype(np.float32)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pack() -> HhtldPack:
    """Rates with one and two levels, a bias, and a matrix that is kept."""
    return hhtld.encode(
        {"emb.weight": matrix(300, 96), "lin.weight": matrix(200, 96, 1), "lin.bias": matrix(1, 200)[0]},
        profile="bits:4",
    )


def encoded_matrices() -> Iterator[Any]:
    for path in GOLDEN:
        with hhtld.open(path) as golden:
            for name in golden:
                info = golden.info(name)
                if info.codec != "keep" and len(info.info.shape) == 2 and info.name == name:
                    yield pytest.param(path, name, id=f"{path.stem}-{name}"[-60:])


# ---- state dicts ----

TYPES = {
    "bf16": "bfloat16",
    "f16": "float16",
    "f8": "float8_e4m3fn",
    "f64": "float64",
    "i64": "int64",
    "u16": "uint16",
    "flag": "bool",
    "c64": "complex64",
    "e8": "float8_e8m0fnu",
}


def source_arrays() -> dict[str, NDArray[Any]]:
    import ml_dtypes

    values = matrix(7, 5)
    return {
        "bf16": values.astype(ml_dtypes.bfloat16),
        "f16": values.astype(np.float16),
        "f8": values.astype(ml_dtypes.float8_e4m3fn),
        "f64": values.astype(np.float64),
        "i64": np.array(-(2**40)),
        "u16": np.array([65535, 1], np.uint16),
        "flag": np.array([True, False, True]),
        "c64": np.array([1 + 2j], np.complex64),
        "e8": np.array([1, 2, 4], ml_dtypes.float8_e8m0fnu),
        "empty": np.zeros((0, 4), np.float32),
        "nothing": np.zeros((3, 0), np.float32),
    }


def test_kept_tensors_come_bit_for_bit_in_their_types(tmp_path: Path) -> None:
    arrays = {n: a for n, a in source_arrays().items() if n != "e8" or hasattr(torch, "float8_e8m0fnu")}
    hhtld.save(hhtld.encode(arrays, profile="lookup"), tmp_path / "k.hhtld")
    for opened in (tmp_path / "k.hhtld", str(tmp_path / "k.hhtld"), hhtld.open(tmp_path / "k.hhtld", mmap=False)):
        found = load_state_dict(opened)
        assert list(found) == sorted(arrays)
        for name, array in arrays.items():
            assert str(found[name].dtype) == f"torch.{TYPES.get(name, 'float32')}"
            assert tuple(found[name].shape) == array.shape
            assert found[name].reshape(-1).view(torch.uint8).numpy().tobytes() == array.tobytes()


def test_a_type_is_asked_of_weights_only() -> None:
    arrays = source_arrays()
    kept = hhtld.encode(
        {n: arrays[n] for n in ("bf16", "f8", "i64", "flag")}, profile="lookup"
    )  # which keeps what is small
    found = load_state_dict(kept, dtype="float32")
    assert [str(found[n].dtype)[6:] for n in ("bf16", "f8", "i64", "flag")] == ["float32", "float32", "int64", "bool"]
    for name in ("bf16", "f8"):
        np.testing.assert_array_equal(found[name].numpy(), arrays[name].astype(np.float32))
    assert load_state_dict(kept, dtype=torch.float64, names="bf16")["bf16"].dtype == torch.float64
    for bad in ("int8", "nope", torch.int32, 3):
        with pytest.raises(ValueError, match="floating-point type"):
            load_state_dict(kept, dtype=bad)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_packs_decode_as_the_pack_does(path: Path) -> None:
    with hhtld.open(path) as golden:
        found, wide = load_state_dict(path), load_state_dict(path, dtype="float32")
        for name in golden:
            expected = np.ascontiguousarray(golden.get_tensor(name, "source"))
            assert found[name].reshape(-1).view(torch.uint8).numpy().tobytes() == expected.tobytes(), name
            if golden.info(name).info.dtype.is_weight:
                np.testing.assert_array_equal(wide[name].numpy(), golden.get_tensor(name))


def test_names_that_share_a_tensor_share_storage() -> None:
    one = matrix(300, 96)
    tied = hhtld.encode({"a.weight": one, "b.weight": one.copy(), "c.bias": one[0]}, profile="bits:3")
    assert tied.table.tensors["b.weight"].alias_of == "a.weight"
    found = load_state_dict(tied)
    assert found["a.weight"] is found["b.weight"]
    assert found["a.weight"].data_ptr() != found["c.bias"].data_ptr()
    assert [name for name, _ in iter_tensors(tied)] == ["a.weight", "b.weight", "c.bias"]
    assert list(load_state_dict(tied, names=["b.weight"])) == ["b.weight"]


def test_names_pick_and_meta_decodes_nothing(pack: HhtldPack) -> None:
    assert list(load_state_dict(pack, names="lin.*")) == ["lin.bias", "lin.weight"]
    assert load_state_dict(pack, names=[]) == {}
    with pytest.raises(KeyError, match=r"'lin\.weigth' names no tensor of the pack; did you mean 'lin\.weight'"):
        load_state_dict(pack, names=["lin.weigth"])
    meta = load_state_dict(pack, device="meta", dtype="float16")
    assert {name: (t.device.type, tuple(t.shape), t.dtype) for name, t in meta.items()} == {
        "emb.weight": ("meta", (300, 96), torch.float16),
        "lin.weight": ("meta", (200, 96), torch.float16),
        "lin.bias": ("meta", (200,), torch.float16),
    }


def test_the_budget_of_a_pack_holds(pack: HhtldPack) -> None:
    small = HhtldPack(pack.table, pack.sections, budget=1000)
    with pytest.raises(hhtld.FormatError, match=r"'emb\.weight' takes 115200 bytes to decode, the budget is 1000"):
        load_state_dict(small)


def test_packed_floats_come_as_safetensors_gives_them(tmp_path: Path) -> None:
    """4-bit floats are pairs; of 6-bit ones torch knows nothing."""
    import json
    import struct

    header = {
        "four": {"dtype": "F4", "shape": [2, 4], "data_offsets": [0, 4]},
        "six": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [4, 7]},
    }
    text = json.dumps(header).encode()
    path = tmp_path / "p.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(range(1, 8)))
    hhtld.convert(path, tmp_path / "p.hhtld", min_ratio=0, profile="gates")
    with pytest.raises(TypeError, match=r"'six': torch .* has no type for F6_E2M3"):
        load_state_dict(tmp_path / "p.hhtld")
    if hasattr(torch, "float4_e2m1fn_x2"):
        four = load_state_dict(tmp_path / "p.hhtld", names="four")["four"]
        assert tuple(four.shape) == (2, 2)
        assert four.view(torch.uint8).flatten().tolist() == [1, 2, 3, 4]


# ---- modules ----


@pytest.mark.parametrize(("path", "name"), list(encoded_matrices()))
def test_every_codec_looks_up_and_multiplies(path: Path, name: str) -> None:
    with hhtld.open(path) as golden:
        dense = golden.get_tensor(name)
        embedding = HhtlEmbedding(golden, name, dtype="float32", resident=True)
        linear = HhtlLinear(golden, name, dtype="float32")
    ids = torch.tensor([[0, len(dense) - 1, 0], [len(dense) // 2, 0, 0]])
    np.testing.assert_array_equal(embedding(ids).numpy(), dense[ids.numpy()])
    x = torch.from_numpy(matrix(3, dense.shape[1]))
    expected = x.numpy().astype(np.float64) @ dense.T.astype(np.float64)
    scale = np.linalg.norm(dense) * 3**0.5
    assert np.linalg.norm(linear(x).numpy() - expected) <= 1e-4 * scale
    linear.scored_rows = 0
    assert np.linalg.norm(linear(x).numpy() - expected) <= 1e-6 * scale


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("shape", [(), (1,), (0,), (7,), (2, 0, 3), (2, 3, 4)])
def test_ids_of_any_shape(pack: HhtldPack, shape: tuple[int, ...], dtype: Any) -> None:
    module = HhtlEmbedding(pack, "emb.weight", padding_idx=-1)
    assert (module.num_embeddings, module.embedding_dim, module.padding_idx) == (300, 96, 299)
    ids = torch.randint(0, 300, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    dense = nn.Embedding.from_pretrained(load_state_dict(pack)["emb.weight"])
    assert torch.equal(module(ids), dense(ids))


def test_ids_outside_are_refused(pack: HhtldPack) -> None:
    module = HhtlEmbedding(pack, "emb.weight")
    for bad in ([0, 300], [-1, 5]):
        with pytest.raises(IndexError, match=r"0\.\.299"):
            module(torch.tensor(bad))
    with pytest.raises(TypeError, match=r"float32"):
        module(torch.zeros(2))
    with pytest.raises(ValueError, match="300 embeddings"):
        HhtlEmbedding(pack, "emb.weight", padding_idx=300)


def test_a_row_asked_for_often_is_decoded_once(pack: HhtldPack, monkeypatch: pytest.MonkeyPatch) -> None:
    from hhtld.codecs.trellis import HhtlTTensor

    asked: list[int] = []
    real = HhtlTTensor.reconstruct_rows

    def counted(self: HhtlTTensor, rows: Any = None, levels: int = 2) -> Any:
        asked.append(len(rows))
        return real(self, rows, levels)

    module = HhtlEmbedding(pack, "emb.weight")
    monkeypatch.setattr(HhtlTTensor, "reconstruct_rows", counted)
    module(torch.tensor([5, 5, 9, 5] * 10))
    assert asked == [2]


@pytest.mark.parametrize("n_rows", [1, 2, torch_ops.SCORED_ROWS, torch_ops.SCORED_ROWS + 1, 100])
def test_few_rows_are_scored_and_many_multiplied(pack: HhtldPack, n_rows: int) -> None:
    module = HhtlLinear(pack, "lin.weight", "lin.bias")
    tensors = load_state_dict(pack)
    x = torch.from_numpy(matrix(n_rows, 96))
    expected = nn.functional.linear(x, tensors["lin.weight"], tensors["lin.bias"])
    found = module(x)
    error = float((found - expected).norm() / expected.norm())
    assert error < (1e-4 if n_rows <= torch_ops.SCORED_ROWS else 1e-6)
    assert torch.equal(module(x), found)


@pytest.mark.parametrize("shape", [(96,), (0, 96), (2, 3, 96), (2, 0, 96), (5, 20, 96)])
def test_any_leading_shape(pack: HhtldPack, shape: tuple[int, ...]) -> None:
    module = HhtlLinear(pack, "lin.weight", torch.ones(200))
    x = torch.linspace(-1, 1, int(np.prod(shape))).reshape(shape)
    expected = nn.functional.linear(x, load_state_dict(pack)["lin.weight"], torch.ones(200))
    assert module(x).shape == expected.shape
    torch.testing.assert_close(module(x), expected, rtol=0, atol=2e-3)
    strided = torch.stack([x, x], -1)[..., 0]
    assert torch.equal(module(strided), module(x))


def test_types_of_inputs_and_outputs(pack: HhtldPack) -> None:
    dense = load_state_dict(pack)["lin.weight"]
    x = torch.from_numpy(matrix(4, 96))
    module = HhtlLinear(pack, "lin.weight", torch.zeros(200))
    precise = module(x.double()).double()
    assert torch.allclose(precise, (x.double() @ dense.double().T).float().double(), rtol=0, atol=1e-6)
    half = copy.deepcopy(module).to(torch.bfloat16)
    assert half.weight.dtype == half.bias.dtype == torch.bfloat16
    assert half(x.bfloat16()).dtype == torch.bfloat16
    assert module.weight.dtype == torch.float32
    assert module.double()(x.double()).dtype == torch.float64
    with pytest.raises(TypeError, match="int64"):
        module(torch.zeros(3, 96, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"96 columns for a weight of \(200, 96\), got \(3, 95\)"):
        module(torch.zeros(3, 95))
    with pytest.raises(ValueError, match=r"bias must have shape \(200,\), got \(3,\)"):
        HhtlLinear(pack, "lin.weight", torch.zeros(3))


def test_infinities_spread_as_in_a_dense_product(pack: HhtldPack) -> None:
    dense = load_state_dict(pack)["lin.weight"]
    x = torch.zeros(2, 96)
    x[0, 3], x[1, 4] = float("inf"), float("nan")
    torch.testing.assert_close(HhtlLinear(pack, "lin.weight")(x), x @ dense.T, equal_nan=True)


def test_rows_of_many_columns_are_multiplied() -> None:
    """Integers cannot sum them."""
    wide = hhtld.encode({"w": matrix(4, 70_000)}, profile="bits:2")
    x = torch.from_numpy(matrix(2, 70_000))
    expected = x @ load_state_dict(wide)["w"].T
    torch.testing.assert_close(HhtlLinear(wide, "w")(x), expected, rtol=1e-5, atol=1e-2)


def test_kept_matrices_are_held_dense() -> None:
    kept = hhtld.encode(
        {"w": matrix(20, 10), "n": np.arange(6).reshape(2, 3)}, profile="lookup"
    )  # which keeps what is small
    x, ids = torch.from_numpy(matrix(3, 10)), torch.tensor([3, 3, 19])
    linear, embedding = HhtlLinear(kept, "w"), HhtlEmbedding(kept, "w", padding_idx=3)
    dense = torch.from_numpy(matrix(20, 10))
    assert torch.equal(linear(x), nn.functional.linear(x, dense))
    assert torch.equal(embedding(ids), dense[ids])
    assert HhtlLinear(kept, "w", dtype="bfloat16").weight.dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"'n', I64 \[2, 3\], is not a matrix of weights"):
        HhtlLinear(kept, "n")
    with pytest.raises(ValueError, match=r"'w', \[20, 10\], is kept as it came"):
        PackedWeight(kept, "w")
    with pytest.raises(KeyError, match="'x'"):
        HhtlEmbedding(kept, "x")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_kept_matrices_take_inputs_of_any_type(dtype: Any) -> None:
    tensors = {"w": matrix(1, 64).astype(np.float32), "b": np.ones(1, np.float32)}
    layer = HhtlLinear(hhtld.encode(tensors, "bits:4"), "w", "b")
    assert isinstance(layer.weight, nn.Parameter)
    x = torch.from_numpy(matrix(3, 64, seed=1)).to(dtype)
    found = layer(x)
    expected = x.double() @ torch.from_numpy(tensors["w"]).double().T + 1
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    if dtype != torch.float64:  # which a dense layer does not take there either
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16


@pytest.mark.parametrize("profile", ["gates", "bits:2", "parity"])
def test_16_bit_rows_stay_finite_as_in_a_state_dict(profile: str, tmp_path: Path) -> None:
    rows = (matrix(64, 64) * 1e4).astype(np.float16)
    rows[3] = np.sign(matrix(1, 64)[0]) * 65504
    rows[5, ::2] = 65504
    hhtld.save(hhtld.encode({"embed_tokens.weight": rows}, profile), tmp_path / "m.hhtld")
    with hhtld.open(tmp_path / "m.hhtld") as pack:
        expected = load_state_dict(pack)["embed_tokens.weight"]
        assert torch.isfinite(expected).all()
        for resident in (True, False):
            table = HhtlEmbedding(pack, "embed_tokens.weight", resident=resident)
            assert torch.equal(table(torch.arange(64)), expected)
            assert torch.equal(table.weight.decoded(), expected)


def test_a_default_device_takes_no_numbers_away(pack: HhtldPack) -> None:
    name = next(name for name in pack if pack.info(name).codec != "keep" and len(pack.info(name).info.shape) == 2)
    expected = load_state_dict(pack)[name]
    with torch.device("meta"):
        layer = HhtlLinear(pack, name)
        decoded = layer.weight.decoded()
        product = layer(torch.zeros((2, layer.in_features), device="cpu"))
    assert torch.equal(decoded, expected)
    assert product.device.type == "cpu"


def test_a_file_may_be_closed_and_gone(pack: HhtldPack, tmp_path: Path) -> None:
    hhtld.save(pack, tmp_path / "p.hhtld")
    embedding = HhtlEmbedding.from_pack(
        tmp_path / "p.hhtld", "emb.weight", padding_idx=2, dtype="float16", resident=True
    )
    linear = HhtlLinear.from_pack(tmp_path / "p.hhtld", "lin.weight")
    (tmp_path / "p.hhtld").unlink()
    assert embedding(torch.tensor([2])).dtype == torch.float16
    np.testing.assert_array_equal(linear.bias.numpy(), pack.get_tensor("lin.bias"))
    assert linear(torch.zeros(96)).equal(linear.bias)


# ---- the weight ----


def test_a_weight_answers_without_decoding(pack: HhtldPack) -> None:
    module = HhtlEmbedding(pack, "emb.weight", dtype="float16")
    weight = module.weight
    assert (tuple(weight.shape), weight.dtype, weight.device.type) == ((300, 96), torch.float16, "cpu")
    assert (weight.size(0), weight.dim(), weight.ndim, weight.numel()) == (300, 2, 2, 28800)
    assert tuple(weight.size()) == (300, 96)
    assert weight.requires_grad is False
    assert weight.nbytes < 28800
    assert "300" in repr(module)
    assert torch.equal(weight.decoded(), load_state_dict(pack, dtype="float16")["emb.weight"])


def test_functions_take_a_packed_weight_where_they_can(pack: HhtldPack) -> None:
    weight = PackedWeight(pack, "emb.weight")
    x, ids = torch.from_numpy(matrix(3, 96)), torch.tensor([1, 4])
    assert torch.equal(nn.functional.linear(x, weight), weight.product(x))
    assert torch.equal(nn.functional.linear(x, weight, bias=torch.zeros(300)), weight.product(x))
    assert torch.equal(nn.functional.embedding(ids, weight), weight.rows(ids))
    with pytest.raises(TypeError, match=r"matmul needs the numbers of a packed weight, 'emb\.weight'"):
        torch.matmul(x, weight)
    with pytest.raises(TypeError, match="as its weight only"):
        nn.functional.linear(weight, x)
    with pytest.raises(TypeError, match="as its weight only"):
        nn.functional.embedding(weight, x)
    with pytest.raises(TypeError, match="max_norm"):
        nn.functional.embedding(ids, weight, max_norm=1.0)


def test_only_the_type_of_what_it_gives_moves(pack: HhtldPack) -> None:
    module = HhtlEmbedding(pack, "emb.weight")
    before = [part.clone() for part in module.weight.parts()]
    module.to_empty(device="cpu")
    assert module.half()(torch.tensor([1])).dtype == torch.float16
    assert all(torch.equal(a, b) for a, b in zip(before, module.weight.parts(), strict=True))
    with pytest.raises(ValueError, match=r"cannot move to meta; load tensor 'emb\.weight' decoded"):
        module.to("meta")
    assert module(torch.tensor([1])).shape == (1, 96)


def test_no_gradient_is_made_up(pack: HhtldPack) -> None:
    x = torch.zeros(2, 96, requires_grad=True)
    out = HhtlLinear(pack, "lin.weight")(x)
    with pytest.raises(RuntimeError, match=r"pass no gradients on.*dequantize|does not require grad"):
        out.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_inputs_may_lie_in_memory_as_they_like(pack: HhtldPack, dtype: Any) -> None:
    layer = HhtlLinear(pack, "lin.weight", dtype=dtype)
    x = torch.from_numpy(matrix(4, 96)).to(dtype)
    expected = layer(x.float()).to(dtype)
    assert torch.equal(layer(x), expected)
    assert torch.equal(layer(x.t().contiguous().t()), expected)
    assert torch.equal(layer(torch.stack([x, -x], 2)[:, :, 0]), expected)
    assert torch.equal(layer(torch._neg_view(-x)), expected)
    assert torch.equal(layer(x.to_sparse()), expected)
    assert torch.equal(layer(torch._efficientzerotensor((4, 96), dtype=dtype)), torch.zeros(4, 200, dtype=dtype))
    assert torch.equal(layer(x[0]), expected[0])
    assert layer(x[:0]).shape == (0, 200)
    assert layer(x.view(2, 2, 96)).shape == (2, 2, 200)
    assert not torch.isfinite(layer(torch.full_like(x, torch.inf))).any()


def test_many_inputs_may_be_negated_or_sparse_too(pack: HhtldPack) -> None:
    layer, x = HhtlLinear(pack, "lin.weight", scored_rows=0), torch.from_numpy(matrix(4, 96))
    assert torch.equal(layer(torch._neg_view(-x)), layer(x))
    assert torch.equal(layer(x.to_sparse()), layer(x))
    endless = torch.full_like(x, torch.inf)
    assert not torch.isfinite(HhtlLinear(pack, "lin.weight")(torch._neg_view(endless))).any()


@pytest.mark.parametrize("scored_rows", [0, 32])
def test_a_tangent_passes_through_the_layer(pack: HhtldPack, scored_rows: int) -> None:
    forward_ad = torch.autograd.forward_ad
    layer = HhtlLinear(pack, "lin.weight", "lin.bias", scored_rows=scored_rows)
    unbiased = HhtlLinear.of_weight(layer.weight, scored_rows=scored_rows)
    x, tangent, bias_tangent = (torch.from_numpy(matrix(*size)) for size in ((3, 96), (3, 96), (1, 200)))
    expected = unbiased(tangent)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, tangent)
        assert torch.equal(forward_ad.unpack_dual(layer(dual)).tangent, expected)
        out = forward_ad.unpack_dual(nn.functional.linear(dual, layer.weight))
        assert torch.equal(out.tangent, nn.functional.linear(tangent, layer.weight))
        assert forward_ad.unpack_dual(layer(x)).tangent is None
        assert torch.equal(forward_ad.unpack_dual(layer(dual)).primal, layer(x))
        bias = forward_ad.make_dual(layer.bias.detach(), bias_tangent[0])
        out = forward_ad.unpack_dual(layer.weight.product(x, bias, scored_rows))
        assert torch.equal(out.tangent, bias_tangent.expand(3, 200))
    value, pushed = torch.func.jvp(layer, (x,), (tangent,))
    assert torch.equal(value, layer(x))
    assert torch.equal(pushed, expected)
    if not scored_rows:
        assert torch.equal(torch.func.jacfwd(layer)(x[0]), unbiased(torch.eye(96)).T)


def test_what_would_lose_a_tangent_is_refused(pack: HhtldPack) -> None:
    layer, x = HhtlLinear(pack, "lin.weight"), torch.ones(2, 96)
    with pytest.raises(RuntimeError, match=r"no tangents of tangents on: make the model an ordinary one"):
        torch.func.jvp(lambda y: torch.func.jvp(layer, (y,), (y,))[0], (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        with pytest.raises(RuntimeError, match=r"hhtld::linear passes no tangents on: differentiate the layer itself"):
            torch.ops.hhtld.linear(dual, layer.weight.parts(), layer.weight.table, x.dtype, None, 32, False)


def test_transforms_that_do_not_work_are_refused_by_name(pack: HhtldPack) -> None:
    layer, x = HhtlLinear(pack, "lin.weight", "lin.bias"), torch.ones(4, 2, 96)
    with pytest.raises(RuntimeError, match=r"no tangents of a torch\.vmap on: take torch\.vmap of what calls"):
        torch.func.jvp(torch.vmap(layer), (x,), (x,))
    pushed = torch.vmap(lambda y: torch.func.jvp(layer, (y,), (y,))[1])(x)
    assert torch.equal(pushed[0], torch.func.jvp(layer, (x[0],), (x[0],))[1])
    embedding, ids = HhtlEmbedding(pack, "emb.weight"), torch.tensor([1, 2])
    for module, given in ((layer, x), (embedding, ids)):
        stacked = torch.func.stack_module_state([module, copy.deepcopy(module)])
        call = functools.partial(torch.func.functional_call, module)
        with pytest.raises(RuntimeError, match=r"cannot be stacked for torch\.vmap: call one model after the other"):
            torch.vmap(functools.partial(call, args=(given,)))(stacked)


def test_a_compiler_is_refused_tangents_which_it_would_lose(pack: HhtldPack) -> None:
    layer, x = HhtlLinear(pack, "lin.weight"), torch.ones(2, 96)
    compiled = torch.compile(lambda y: torch.func.jvp(layer, (y,), (y,))[1], backend="eager")
    with pytest.raises(Exception, match=r"hhtld::linear passes no tangents on: differentiate the layer itself"):
        compiled(x)


def test_vmap_takes_the_batch_as_a_leading_axis(pack: HhtldPack) -> None:
    layer, x = (
        HhtlLinear(pack, "lin.weight", "lin.bias", scored_rows=0),
        torch.from_numpy(matrix(12, 96)).view(4, 3, 96),
    )
    biases = torch.from_numpy(matrix(4, 200))
    close = {"rtol": 1e-5, "atol": 1e-4}
    torch.testing.assert_close(torch.vmap(layer)(x), layer(x), **close)
    torch.testing.assert_close(torch.vmap(layer, in_dims=1, out_dims=1)(x), layer(x), **close)
    one_each = torch.vmap(layer.weight.product, in_dims=(0, 0))(x, biases)
    torch.testing.assert_close(one_each, layer.weight.product(x) + biases[:, None], rtol=0.02, atol=0.5)
    wide = HhtlLinear(pack, "lin.weight", dtype=torch.float64).weight.product
    one_each = torch.vmap(wide, in_dims=(0, 0))(x.double(), biases.double())
    torch.testing.assert_close(one_each, wide(x.double()) + biases.double()[:, None], rtol=1e-12, atol=1e-11)
    one_input = torch.vmap(lambda bias: layer.weight.product(x[0], bias, 0))(biases)
    torch.testing.assert_close(one_input, layer.weight.product(x[0], None, 0) + biases[:, None], **close)
    ids = torch.tensor([[1, 2, 3], [299, 0, 1]])
    embedding = HhtlEmbedding(pack, "emb.weight")
    assert torch.equal(torch.vmap(embedding)(ids), embedding(ids))
    assert torch.equal(torch.vmap(embedding, in_dims=1)(ids), embedding(ids.T))


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_modules_copy_and_pickle(pack: HhtldPack, how: str) -> None:
    weight = PackedWeight(pack, "emb.weight")
    pair = nn.ModuleList([HhtlEmbedding.of_weight(weight), HhtlLinear.of_weight(weight, torch.ones(300))])
    ids, x = torch.tensor([7, 7, 3]), torch.from_numpy(matrix(2, 96))
    expected = pair[0](ids), pair[1](x)
    if how == "deepcopy":
        twin = copy.deepcopy(pair)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(pair))
    else:
        file = io.BytesIO()
        torch.save(pair, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert twin[0].weight is twin[1].weight
    assert twin[0].weight.slot_t.data_ptr() != weight.slot_t.data_ptr()
    assert torch.equal(twin[0](ids), expected[0])
    assert torch.equal(twin[1](x), expected[1])


def test_nothing_outlives_its_module(pack: HhtldPack) -> None:
    gc.collect()
    before = len(torch_ops._UNFOLDED)
    module = HhtlLinear(pack, "lin.weight")
    module(torch.zeros(1, 96))
    assert len(torch_ops._UNFOLDED) == before + 1
    del module
    gc.collect()
    assert len(torch_ops._UNFOLDED) == before


def test_a_group_shares_its_sections() -> None:
    two = hhtld.encode({f"layers.{i}.q_proj.weight": matrix(200, 64, i) for i in (0, 1)}, profile="bits:4")
    a, b = (HhtlLinear(two, name).weight for name in two)
    assert a.codebook is b.codebook
    assert a.slot_t is not b.slot_t


# ---- compiling and exporting ----


class Toy(nn.Module):
    """An embedding, a linear with bias and a norm, and a head tied to the embedding."""

    def __init__(self, kind: Any = nn.Linear) -> None:
        super().__init__()
        self.emb = nn.Embedding(300, 96, padding_idx=1)
        self.mid = kind(96, 96)
        self.norm = nn.BatchNorm1d(96)
        self.head = nn.Linear(96, 300, bias=False)
        self.head.weight = self.emb.weight
        self.register_buffer("angles", torch.linspace(0, 1, 96), persistent=False)

    def forward(self, ids: Any) -> Any:
        hidden = self.mid(self.emb(ids)) + self.angles
        hidden = self.norm(hidden.flatten(0, -2)).view_as(hidden)
        return self.head(hidden)


def toy_pack(profile: str = "bits:4", **more: NDArray[Any]) -> HhtldPack:
    tensors = {
        "emb.weight": matrix(300, 96),
        "mid.weight": matrix(96, 96),
        "mid.bias": matrix(1, 96)[0],
        "norm.weight": np.full(96, 0.5, np.float32),
        "norm.bias": np.full(96, 0.25, np.float32),
        "norm.running_mean": np.full(96, 0.125, np.float32),
        "norm.running_var": np.full(96, 90, np.float32),
        "norm.num_batches_tracked": np.array(9),
    }
    return hhtld.encode(tensors | more, profile=profile)


def dense_toy(pack: HhtldPack) -> Any:
    model = Toy().eval()
    tensors = load_state_dict(pack)
    model.load_state_dict({**tensors, "head.weight": tensors["emb.weight"]})
    return model


@pytest.fixture(scope="module")
def toy() -> Any:
    return replace_modules(Toy().eval(), toy_pack())


IDS = torch.tensor([[1, 299, 5], [5, 5, 17]])


def test_the_ops_pass_torchs_own_checks(pack: HhtldPack) -> None:
    weight = PackedWeight(pack, "lin.weight")
    ops, parts = torch.ops.hhtld, weight.parts()
    torch.library.opcheck(ops.embedding.default, (IDS % 200, parts, weight.table, torch.bfloat16))
    for x in (torch.randn(3, 96), torch.randn(2, 40, 96)):
        for bias in (None, torch.randn(200)):
            torch.library.opcheck(ops.linear.default, (x, parts, weight.table, torch.float32, bias, 32, True))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_models_compile_in_one_graph(toy: Any, backend: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(toy, backend=backend, fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(IDS), toy(IDS))
        assert torch.equal(compiled(IDS[:1].repeat(4, 20)), toy(IDS[:1].repeat(4, 20)))


def test_models_export_whole(toy: Any) -> None:
    with torch.no_grad():
        batch = torch.export.Dim("batch", min=2, max=64)
        program = torch.export.export(toy, (IDS,), dynamic_shapes=({0: batch},))
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        again = torch.export.load(file)
        for ids in (IDS, IDS.repeat(5, 1)):
            assert torch.equal(again.module()(ids), toy(ids))


def test_what_looks_at_calls_sees_the_op(pack: HhtldPack) -> None:
    """Plain calls go past the dispatcher; compilers, tracers, modes and gradients must not be passed by."""
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[str] = []

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.seen.append(str(function))
            return function(*args, **(kwargs or {}))

    module = HhtlLinear(pack, "lin.weight")
    x = torch.randn(3, module.in_features)
    plain = module(x)
    with Watch() as watch:
        assert torch.equal(module(x), plain)
    assert "hhtld.linear.default" in watch.seen
    traced = make_fx(module)(x)
    assert "hhtld.linear" in traced.code
    assert torch.equal(traced(2 * x), module(2 * x)), "nothing of the first input stayed in it"
    with pytest.warns(Warning, match="TorchScript|trace"):
        scripted = torch.jit.trace(module, x)
    assert torch.equal(scripted(2 * x), module(2 * x))
    with pytest.raises(RuntimeError, match="no gradients"):
        module(x.requires_grad_()).sum().backward()
    with torch.no_grad():
        assert torch.equal(module(x), plain)
    x = x.detach()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        assert torch.equal(module(x), plain)
    assert "hhtld::linear" in {event.key for event in profile.key_averages()}
    assert module(x.to("meta")).shape == plain.shape
    bias = nn.Parameter(torch.ones(module.out_features))
    biased = HhtlLinear.of_weight(module.weight, bias)
    head = nn.Linear(module.out_features, 1)  # which would hide that nothing reaches the bias
    with pytest.raises(RuntimeError, match="no gradients"):
        head(biased(x)).sum().backward()
    with torch.no_grad():
        assert torch.equal(biased(x), plain + 1)
    bias.requires_grad_(False)
    assert not biased(x).requires_grad


def test_fake_tensors_pass_through(toy: Any) -> None:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        found = toy.emb(torch.zeros(4, 7, dtype=torch.int64))
    assert tuple(found.shape) == (4, 7, 96)


# ---- whole models ----


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_model_holds_its_matrices_packed(device: str) -> None:
    source = toy_pack()
    with torch.device(device):
        model = Toy().eval()
    model.angles = torch.linspace(0, 1, 96)
    model.mid.train()
    assert replace_modules(model, source) is model
    assert type(model.emb) is HhtlEmbedding
    assert type(model.mid) is HhtlLinear
    assert model.mid.training
    assert model.emb.padding_idx == 1
    assert model.emb.weight is model.head.weight
    counts = packed_counts(model)
    assert (counts.n_embeddings, counts.n_linears, counts.n_weights) == (1, 2, 2)
    assert counts.n_values == 300 * 96 + 96 * 96
    assert counts.nbytes == sum({id(b): b.nbytes for b in model.buffers() if b.dtype == torch.uint8}.values())
    assert counts.nbytes < counts.n_values
    assert int(model.norm.num_batches_tracked) == 9
    with torch.no_grad():
        expected = dense_toy(source)(IDS)
        assert float((model(IDS) - expected).norm() / expected.norm()) < 1e-4
    assert [name for name, _ in model.named_parameters()] == ["mid.bias", "norm.weight", "norm.bias"]


def test_the_model_decides_types() -> None:
    model = replace_modules(Toy().to(torch.bfloat16), toy_pack())
    assert model.emb.weight.dtype == model.mid.bias.dtype == model.norm.weight.dtype == torch.bfloat16
    assert model.emb(IDS).dtype == torch.bfloat16


def test_some_may_stay_dense() -> None:
    model = replace_modules(Toy(), toy_pack(), names=["emb.*"])
    assert type(model.emb) is HhtlEmbedding
    assert type(model.mid) is nn.Linear
    assert torch.equal(model.mid.weight, load_state_dict(toy_pack())["mid.weight"])
    with pytest.raises(KeyError, match=r"'norm\.weight' names no encoded tensor"):
        replace_modules(Toy(), toy_pack(), names="norm.weight")


def test_names_missing_on_either_side_are_named() -> None:
    model = Toy()
    before = model.emb
    odd = toy_pack(extra=matrix(3, 3))
    with pytest.raises(KeyError, match=r"'extra' \(not in the model\)"):
        replace_modules(model, odd)
    assert model.emb is before
    few = hhtld.encode({"emb.weight": matrix(300, 96)}, profile="bits:4")
    with pytest.raises(KeyError, match=r"'mid\.weight' \(not in the pack\), 'mid\.bias' \(not in the pack\)"):
        replace_modules(model, few)
    loose = replace_modules(model, few, strict=False)
    assert type(loose.head) is HhtlLinear
    assert type(loose.mid) is nn.Linear


def test_buffers_that_a_model_makes_itself_are_not_missed() -> None:
    model = replace_modules(Toy(), toy_pack(angles=np.full(96, 7, np.float32)))
    assert torch.equal(model.angles, torch.linspace(0, 1, 96))


def test_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'mid\.weight' is \[96, 96\] in the model and \[97, 96\] in the pack"):
        replace_modules(Toy(), toy_pack(**{"mid.weight": matrix(97, 96)}))
    with pytest.raises(ValueError, match=r"'emb\.weight' and 'head\.weight' are one tensor of the model and different"):
        replace_modules(Toy(), toy_pack(**{"head.weight": matrix(300, 96, 5)}))
    both = toy_pack(**{"head.weight": matrix(300, 96)})
    assert both.table.tensors["head.weight"].alias_of == "emb.weight"
    assert packed_counts(replace_modules(Toy(), both)).n_weights == 2
    with torch.device("meta"):
        model = Toy()
    model.angles = torch.empty(96, device="meta")  # transformers, once used, makes linspace real even there
    with pytest.raises(ValueError, match=r"buffers on the meta device .* 'angles'"):
        replace_modules(model, toy_pack())


class Scaled(nn.Linear):
    """More than its base."""

    def forward(self, x: Any) -> Any:
        return 2 * super().forward(x)


def test_modules_without_a_packed_form_are_decoded_and_named() -> None:
    with pytest.warns(UserWarning, match=r"1 encoded tensors are held decoded.*'mid\.weight' \(Scaled\)"):
        model = replace_modules(Toy(Scaled).eval(), toy_pack())
    assert type(model.mid) is Scaled
    assert torch.equal(model.mid.weight, load_state_dict(toy_pack())["mid.weight"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replace_modules(Toy(Scaled), toy_pack(), names="emb.weight")


def test_a_module_alone_and_a_module_held_twice(pack: HhtldPack) -> None:
    lone = hhtld.encode({"weight": matrix(200, 96), "bias": matrix(1, 200)[0]}, profile="bits:4")
    assert type(replace_modules(nn.Linear(96, 200), lone)) is HhtlLinear
    twice = nn.ModuleDict({"emb": nn.Embedding(300, 96), "lin": nn.Linear(96, 200)})
    twice["again"] = twice["lin"]
    replace_modules(twice, pack)
    assert twice["again"] is twice["lin"]
    assert type(twice["lin"]) is HhtlLinear


def test_an_untied_model_shares_what_the_pack_shares() -> None:
    tied = hhtld.encode({"0.weight": matrix(300, 96), "1.weight": matrix(300, 96)}, profile="bits:4")
    model = replace_modules(nn.Sequential(nn.Embedding(300, 96), nn.Linear(96, 300, bias=False)), tied)
    assert model[0].weight.slot_t is model[1].weight.slot_t
    assert packed_counts(model).nbytes == model[0].weight.nbytes


def test_transformers_layers_take_packed_linears() -> None:
    """Their fast path reads weights itself, and steps back from what is not a tensor."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True).eval()
    source = hhtld.encode({n: t.numpy() for n, t in layer.state_dict().items()}, profile="bits:6")
    x = torch.randn(2, 5, 64)
    dense = copy.deepcopy(layer)
    dense.load_state_dict(load_state_dict(source))
    with pytest.warns(UserWarning, match="NonDynamicallyQuantizableLinear"):
        replace_modules(layer, source)
    assert type(layer.linear1) is HhtlLinear
    with torch.no_grad():
        torch.testing.assert_close(layer(x), dense(x), rtol=0, atol=1e-3)


# ---- one plane of int8 ----


@pytest.mark.one_plane
def test_products_are_of_one_plane_unless_they_are_exact(tmp_path: Path) -> None:
    weight = torch.randn(300, 200, generator=torch.Generator().manual_seed(0))
    tensors = {"lin.weight": weight.numpy(), "down.weight": weight.T.contiguous().numpy()}
    hhtld.save_file(tensors, tmp_path / "m.hhtld", profile="bits:4")
    with hhtld.open(tmp_path / "m.hhtld") as pack:
        rough, exact = (HhtlLinear(pack, "lin.weight", exact=exact) for exact in (False, True))
        wide = HhtlLinear(pack, "down.weight")
        x = torch.randn(5, 200)
        dense = x @ rough.weight.decoded().T
        errors = [float((linear(x) - dense).norm() / dense.norm()) for linear in (rough, exact)]
        assert 1e-3 < errors[0] < 1.2e-2
        assert errors[1] < 1e-4
        assert not rough.weight.exact
        long = torch.randn(5, 300)
        decoded = long @ wide.weight.decoded().T
        assert float((wide(long) - decoded).norm() / decoded.norm()) < 1e-4  # more columns than rows
        assert torch.equal(rough(x), rough(x))
        x[0, 0] = torch.inf
        assert not torch.isfinite(rough(x)[0]).any()
