"""Which rows a tensor of any rank has, and that they are the same rows to everyone who reads them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save_file

import hhtld
import hhtld.identity
import hhtld.matrix
from hhtld.codecs import parse_profile
from hhtld.commands.diff import diff
from hhtld.commands.verify import verify
from hhtld.cosines import row_cosines
from hhtld.dtypes import DTYPES
from hhtld.encoding.memory import check_memory
from hhtld.encoding.options import Encoding
from hhtld.encoding.plan import make_plan
from hhtld.encoding.resources import Work
from hhtld.errors import HeaderError
from hhtld.formats import open_source
from hhtld.matrix import TensorInfo, is_vector, row_axes
from hhtld.pack.opening import open_pack
from hhtld.pack.source import PackSource
from hhtld.pack.table_checks import read_table
from hhtld.sources.contract import ArraySource, SourceRows
from tests import spec_reader

Array = NDArray[Any]

SHAPES = {
    "llama.mlp.down_proj": ((2048, 5632), (2048, 5632)),
    "gpt_oss.experts.gate_up_proj": ((32, 2880, 5760), (32 * 2880, 5760)),
    "mixtral.experts.w1": ((8, 14336, 4096), (8 * 14336, 4096)),
    "onnx.LSTM.W of ddddocr": ((2, 2048, 512), (4096, 512)),
    "onnx.LSTM.R, one direction": ((1, 512, 128), (512, 128)),
    "onnx.GRU.W of few inputs": ((2, 768, 24), (1536, 24)),
    "vit.position_embeddings": ((1, 197, 384), (197, 384)),
    "gpt2.attn.bias": ((1, 1, 1024, 1024), (1024, 1024)),
    "swin.relative bias, given out": ((1, 12, 49, 49), (12 * 49, 49)),
    "pvt.pos_embed, channels first": ((1, 384, 14, 14), (384, 196)),
    "sam.pos_embed, channels last": ((1, 64, 64, 256), (4096, 256)),
    "transformer_lens.W_Q": ((12, 768, 64), (12 * 768, 64)),
    "flax.attention.kernel": ((768, 12, 64), (768 * 12, 64)),
    "whisper.conv1": ((384, 80, 3), (384, 240)),
    "wav2vec2.conv_layers.1": ((512, 512, 3), (512, 1536)),
    "hifigan.ups.0": ((512, 256, 16), (512, 4096)),
    "hifigan.conv_post": ((1, 32, 7), (1, 224)),
    "conformer.depthwise": ((144, 1, 31), (144, 31)),
    "silero.forward_basis": ((258, 1, 256), (258, 256)),
    "resnet.conv": ((64, 3, 7, 7), (64, 147)),
    "resnet.downsample": ((512, 256, 1, 1), (512, 256)),
    "linear as Conv1d": ((512, 256, 1), (512, 256)),
    "mobilenet.depthwise": ((96, 1, 3, 3), (96, 9)),
    "mask head": ((1, 64, 3, 3), (1, 576)),
    "style transfer, last": ((3, 32, 9, 9), (3, 2592)),
    "vit.patch_embed": ((768, 3, 16, 16), (768, 768)),
    "clip.patch_embedding": ((768, 3, 32, 32), (768, 3072)),
    "qwen_vl.patch_embed": ((1152, 3, 2, 14, 14), (1152, 1176)),
    "replknet": ((128, 1, 31, 31), (128, 961)),
    "tensorflow conv, kernel first": ((3, 3, 128, 256), (1152, 256)),
    "tensorflow conv, few channels": ((3, 3, 32, 64), (288, 64)),
    "layer norm of an ONNX model": ((1, 512, 1), (1, 512)),
    "gain to broadcast": ((1, 1, 768), (1, 768)),
}


def laplace(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng([seed, *shape]).laplace(0, 0.02, shape).astype(np.float32)


def uneven_experts() -> NDArray[np.float32]:
    experts = laplace(8, 128, 96)
    experts[:, ::4] *= 0.02
    return experts


@pytest.mark.parametrize("name", SHAPES)
def test_rows_are_what_a_model_looks_up_or_multiplies_by(name: str) -> None:
    shape, matrix = SHAPES[name]
    info = TensorInfo(name, DTYPES["F32"], shape)
    assert (info.n_rows, info.n_cols) == matrix
    n_axes = row_axes(shape)
    assert matrix == (math.prod(shape[:n_axes]), math.prod(shape[n_axes:]))


def test_rows_of_packed_types_fill_whole_bytes() -> None:
    assert TensorInfo("w", DTYPES["F4"], (20, 30, 41)).row_axes == 1
    assert TensorInfo("w", DTYPES["F4"], (20, 31, 41)).row_axes == 0
    assert TensorInfo("w", DTYPES["F4"], (20, 31, 42)).row_axes == 2


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((), True),
        ((5,), True),
        ((1, 5), True),
        ((5, 1, 1), True),
        ((1, 1), True),
        ((2, 2), False),
        ((1, 2, 1, 2), False),
    ],
)
def test_a_vector_has_one_axis_longer_than_one(shape: tuple[int, ...], expected: bool) -> None:
    assert is_vector(shape) == expected


# ---- the same numbers in more axes ----


@pytest.mark.parametrize("profile", ["gates", "parity", "bits:3"])
@pytest.mark.parametrize("weights", [uneven_experts(), laplace(1, 197, 384)], ids=["experts", "positions"])
def test_more_axes_are_coded_as_the_matrix_they_are(weights: NDArray[np.float32], profile: str) -> None:
    name = "model.experts.gate_up_proj"
    flat = weights.reshape(-1, weights.shape[-1])
    pack, as_matrix = hhtld.encode({name: weights}, profile), hhtld.encode({name: flat}, profile)
    assert pack.info(name).codec == "hhtl_t"
    assert pack.info(name).gates == as_matrix.info(name).gates
    np.testing.assert_array_equal(pack.get_tensor(name).reshape(flat.shape), as_matrix.get_tensor(name))
    assert pack.get_tensor(name).shape == weights.shape


def test_rows_of_experts_that_are_small_pass_the_gates() -> None:
    experts = uneven_experts()
    decoded = hhtld.encode({"experts.up_proj": experts}, "gates").get_tensor("experts.up_proj")
    cosines = row_cosines(experts.reshape(-1, 96), decoded.reshape(-1, 96))
    assert np.quantile(cosines, 0.05) >= 0.9
    assert np.median(cosines) >= 0.95


def test_a_row_of_an_expert_is_found_by_its_number() -> None:
    experts = uneven_experts()
    pack = hhtld.encode({"experts.up_proj": experts}, "bits:4")
    whole = pack.get_tensor("experts.up_proj")
    rows = pack.get_rows("experts.up_proj", [3 * 128 + 17, -1, 0])
    np.testing.assert_array_equal(rows, np.stack([whole[3, 17], whole[7, 127], whole[0, 0]]))
    best = pack.scorer("experts.up_proj").topk(whole[5, 3], 1, rescore=experts)
    assert best.rows[0] == 5 * 128 + 3


@pytest.mark.parametrize("name", ["coded", "kept", "convolution"])
@pytest.mark.parametrize(
    "key",
    [
        3,
        -1,
        np.int64(2),
        slice(None),
        slice(1, 3),
        slice(5, 1, -2),
        (2, 5),
        (2, slice(3, 9)),
        (slice(1, 7, 2), 4),
        (slice(None), slice(None), 5),
        (1, 2, 3),
        (slice(2, 2),),
        ...,
        (..., 1),
        None,
        [1, 2],
        (3, [4, 1]),
        (2, slice(None), [1, 0, 2]),
        (slice(1, 3), 2, [0, 2]),
        (slice(None), [1, 0]),
        (2, np.arange(24) % 2 == 0),
    ],
    ids=str,
)
def test_slices_are_those_of_the_array(name: str, key: Any) -> None:
    tensors = {"coded": laplace(8, 24, 40), "kept": np.arange(8 * 24 * 40).reshape(8, 24, 40) % 7, "ones": np.ones(3)}
    tensors["convolution"] = laplace(8, 24, 7, 7)
    pack = hhtld.encode(tensors, "bits:3")
    assert pack.info("coded").codec == pack.info("convolution").codec == "hhtl_t"
    expected = pack.get_tensor(name)[key]
    found = pack.get_slice(name)[key]
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)


def test_a_slice_of_one_expert_reads_that_experts_rows_alone() -> None:
    pack = hhtld.encode({"w": laplace(8, 24, 40)}, "bits:3")
    asked: list[Any] = []
    get_rows = pack.get_rows
    pack.get_rows = lambda name, rows: (asked.append(rows), get_rows(name, rows))[1]  # type: ignore[method-assign]  # a spy
    pack.get_slice("w")[2, 5:7]
    assert [rows.tolist() for rows in asked] == [[2 * 24 + 5, 2 * 24 + 6]]


# ---- what is kept ----


@pytest.mark.parametrize("shape", [(1, 1, 768), (1, 512, 1), (1, 512, 1, 1), (1, 1024), (600, 1), (3, 1, 1)])
@pytest.mark.parametrize("profile", ["gates", "parity", "bits:2"])
def test_gains_and_biases_are_kept_whatever_their_axes(shape: tuple[int, ...], profile: str) -> None:
    gains = 1 + laplace(*shape)
    pack = hhtld.encode({"norm.gain": gains}, profile)
    assert pack.info("norm.gain").codec == "keep"
    assert pack.get_tensor("norm.gain", "source").tobytes() == gains.tobytes()


def whole_numbers() -> dict[str, Array]:
    causal = np.tril(np.ones((1, 1, 96, 96), np.float32))
    return {
        "causal": causal,
        "filled": np.where(causal > 0, 0, -1e9).astype(np.float32),
        "halves": np.where(causal > 0, 0, -65504).astype(np.float16),
        "least": np.where(causal > 0, 0, np.finfo(np.float32).min).astype(np.float32),
        "infinite": np.where(causal > 0, 0, -np.inf).astype(np.float32),
        "positions": np.arange(4096, dtype=np.float32).reshape(64, 64),
        "one-hot": np.eye(64, dtype=np.float64),
        "ternary": np.sign(laplace(64, 80)).astype(ml_dtypes.bfloat16),
        "late": np.concatenate([np.zeros((600, 600)), np.ones((1, 600))]).astype(np.float32),
    }


def test_masks_and_integers_in_float_types_are_kept_and_told() -> None:
    source = ArraySource(whole_numbers())
    plan = make_plan(source, Encoding("gates"))
    assert {plan.tensors[name].codec.id for name in source.infos()} == {"keep"}
    (note,) = plan.notes
    assert note.startswith("9 tensors hold whole numbers only, as masks do, and are kept byte for byte: 'causal', ")
    pack = hhtld.encode(source, "gates")
    for name, array in whole_numbers().items():
        assert pack.get_tensor(name, "source").tobytes() == array.tobytes()


def test_one_mask_is_told_of_in_one() -> None:
    plan = make_plan(ArraySource({"attn.bias": np.tril(np.ones((8, 8), np.float32))}), Encoding("parity"))
    assert plan.notes == ("1 tensor holds whole numbers only, as masks do, and is kept byte for byte: 'attn.bias'",)


def test_what_only_looks_like_whole_numbers_is_coded() -> None:
    rng = np.random.default_rng(4)
    late = np.ones((600, 600), np.float32)
    late[-1, -1] = 0.5
    tensors = {
        "late": late,
        "large": (laplace(64, 64) * 1e30).astype(np.float32),
        "two fills": np.where(rng.random((64, 64)) < 0.5, 1e9, -1e9).astype(np.float32),
        "zeros": np.zeros((64, 64), np.float32),
        "sinusoids": np.sin(np.arange(4096).reshape(64, 64) / 50).astype(np.float32),
    }
    plan = make_plan(ArraySource(tensors), Encoding("bits:3"))
    assert {name for name in tensors if plan.tensors[name].codec.id == "hhtl_t"} == set(tensors)
    assert plan.notes == ()


def test_lookup_grades_code_whole_numbers_as_they_did() -> None:
    plan = make_plan(ArraySource({"w": np.arange(600 * 64, dtype=np.float32).reshape(600, 64) % 5}), Encoding("lookup"))
    assert plan.tensors["w"].codec.id == "hhtl_d"


# ---- memory ----


class Shapes(ArraySource):
    """Tensors of given shapes, of which nothing is held and any row is noise."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__({name: np.broadcast_to(np.float32(0.5), shape) for name, shape in shapes.items()})


@pytest.mark.parametrize("profile", ["gates", "parity", "bits:6"])
@pytest.mark.parametrize(
    "shape", [(2, 2048, 512), (1, 1, 1024, 1024), (4, 2880, 2880), (128, 2880, 5760), (64, 1 << 20)]
)
def test_the_default_memory_is_enough_for_tensors_of_more_axes(shape: tuple[int, ...], profile: str) -> None:
    source = Shapes(w=shape)
    check_memory(source, make_plan(source, Encoding(profile)), Work())


def test_few_wide_rows_are_coded_in_pieces_and_as_well() -> None:
    wide = np.random.default_rng(5).standard_normal((2, 70_000)).astype(np.float32)
    pack = hhtld.encode({"w": wide}, "bits:3")
    narrow = hhtld.encode({"w": wide.reshape(-1, 1000)}, "bits:3").info("w").gates
    found = pack.info("w").gates
    assert found is not None
    assert narrow is not None
    assert found.n_rows == 2
    assert abs(found.median - narrow.median) < 1e-3
    profile = parse_profile("bits:3")
    assert profile.codec.task_nbytes(profile, 2, 1 << 20, 4 << 20) < 80 << 20


# ---- files ----


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tensors = {
        "experts.up_proj": uneven_experts(),
        "conv.weight": laplace(32, 16, 3, 3),
        "ids": np.arange(24).reshape(2, 3, 4),
    }
    save_file(tensors, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


@pytest.fixture
def of_first_axes(model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file as writers made it when rows were the first axis of any rank."""
    with monkeypatch.context() as patched:
        for module in (hhtld.matrix, hhtld.identity):
            patched.setattr(module, "row_axes", lambda shape: 1)
        hhtld.convert(model, model.with_name("old.hhtld"), profile="bits:3", min_ratio=0)
    return model.with_name("old.hhtld")


def test_files_of_more_axes_are_read_as_the_specification_says(model: Path) -> None:
    path = model.with_name("m.hhtld")
    hhtld.convert(model, path, profile="gates", min_ratio=0)
    read = spec_reader.read(path)
    with open_pack(path) as pack:
        assert pack.info("experts.up_proj").info.n_rows == 1024
        for name in pack:
            np.testing.assert_array_equal(read[name], pack.get_tensor(name))
    assert verify(path, model)


def test_files_whose_rows_are_the_first_axis_are_read_as_ever(model: Path, of_first_axes: Path) -> None:
    read = spec_reader.read(of_first_axes)
    with open_pack(of_first_axes) as pack:
        assert pack.info("experts.up_proj").info.n_rows == 8
        assert pack.get_rows("experts.up_proj", [3]).shape == (1, 128 * 96)
        for name in pack:
            np.testing.assert_array_equal(read[name], pack.get_tensor(name))
        np.testing.assert_array_equal(pack.get_slice("experts.up_proj")[2, 5:9], read["experts.up_proj"][2, 5:9])
    assert verify(of_first_axes, model)


def test_rows_of_an_older_file_are_compared_and_coded_as_the_rows_they_are(model: Path, of_first_axes: Path) -> None:
    found = {tensor.name: tensor for tensor in diff(model, of_first_axes).tensors}
    assert found["experts.up_proj"].cosines is not None
    assert found["experts.up_proj"].cosines.n_rows == 1024
    with open_source(of_first_axes) as source, open_pack(of_first_axes) as pack:
        whole = pack.get_tensor("experts.up_proj").reshape(1024, 96)
        np.testing.assert_array_equal(SourceRows(source, "experts.up_proj").read(100, 300), whole[100:300])
        np.testing.assert_array_equal(
            SourceRows(source, "experts.up_proj", 128 * 96).read(2, 3), whole[256:384].reshape(1, -1)
        )
        assert source.read_rows("experts.up_proj", 1024, 1024).shape == (0, 96 * 4)
    again, back = model.with_name("again.hhtld"), model.with_name("back.safetensors")
    hhtld.convert(of_first_axes, again, profile="bits:4", min_ratio=0)
    hhtld.convert(of_first_axes, back)
    with open_pack(again) as pack:
        assert pack.info("experts.up_proj").info.n_rows == 1024
    np.testing.assert_array_equal(hhtld.load_file(back)["experts.up_proj"], whole.reshape(8, 128, 96))


def test_files_of_matrices_and_convolutions_are_what_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = ((64, 80), (32, 16, 3, 3), (48, 24, 5), (64, 32, 1, 1), (40, 3, 2, 8, 8), (33, 1, 31), (3, 32, 9, 9))
    save_file({f"w{i}": laplace(*shape) for i, shape in enumerate(shapes)}, tmp_path / "m.safetensors")
    hhtld.convert(tmp_path / "m.safetensors", tmp_path / "new.hhtld", profile="bits:3", min_ratio=0)
    for module in (hhtld.matrix, hhtld.identity):
        monkeypatch.setattr(module, "row_axes", lambda shape: 1)
    hhtld.convert(tmp_path / "m.safetensors", tmp_path / "old.hhtld", profile="bits:3", min_ratio=0)
    assert (tmp_path / "new.hhtld").read_bytes() == (tmp_path / "old.hhtld").read_bytes()


def test_long_rows_of_an_older_file_are_decoded_once(of_first_axes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_source(of_first_axes) as source:
        assert isinstance(source, PackSource)
        asked: list[Any] = []
        get_rows = source.pack.get_rows
        monkeypatch.setattr(
            source.pack, "get_rows", lambda *args, **kw: (asked.append(args[1]), get_rows(*args, **kw))[1]
        )
        for start in range(0, 1024, 50):
            source.read_rows("experts.up_proj", start, min(start + 50, 1024))
    assert asked == [[row] for row in range(8)]


def test_a_group_whose_rows_are_no_axes_of_a_tensor_is_refused(model: Path) -> None:
    with hhtld.encode({"w": laplace(8, 24, 40)}, "bits:3") as pack:
        table = pack.table.to_json() | {"sections": []}
        for matrix in ([24, 320], [8 * 24 * 40, 1], [1, 8 * 24 * 40], [8, 959], [16, 480]):
            table["groups"][0]["shape"] = matrix
            with pytest.raises(HeaderError, match="does not fit group"):
                read_table(table, pack.sections)


# ---- any shape ----

NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn}


@given(
    shape=st.lists(st.sampled_from([0, 1, 1, 2, 3, 5, 7, 8, 9, 17, 33]), max_size=5).filter(
        lambda s: math.prod(s) < 40_000
    ),
    dtype=st.sampled_from(sorted(NUMPY)),
    content=st.sampled_from(["weights", "mask", "zeros"]),
    fortran=st.booleans(),
)
def test_any_shape_comes_back(shape: list[int], dtype: str, content: str, fortran: bool) -> None:
    rng = np.random.default_rng([len(shape), *shape])
    made = {"weights": rng.laplace(0, 0.3, shape), "mask": rng.integers(0, 2, shape), "zeros": np.zeros(shape)}[content]
    array = np.asarray(made, NUMPY[dtype], order="F" if fortran else "C")
    pack = hhtld.encode({"w": array}, "bits:5")
    record = pack.info("w")
    assert record.info.shape == array.shape == pack.get_tensor("w").shape
    assert record.info.n_rows * record.info.n_cols == array.size
    if is_vector(shape) or not array.size or (content == "mask" and array.any()):
        assert record.codec == "keep"
    if record.codec == "keep":
        assert pack.get_tensor("w", "source").tobytes() == array.tobytes()
    else:
        rows, decoded = (
            a.astype(np.float32, "C").reshape(-1, record.info.n_cols) for a in (array, pack.get_tensor("w"))
        )
        assert row_cosines(rows, decoded).min() > (0.9 if content == "weights" else 0.999)
    if record.info.has_rows and array.size:
        last = record.info.n_rows - 1
        np.testing.assert_array_equal(pack.get_rows("w", [last])[0], pack.get_tensor("w").reshape(last + 1, -1)[-1])
