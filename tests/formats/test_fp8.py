"""FP8 weights with scales: read as what they mean, bit for bit as a plain twin says, or refused by name."""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray

import hhtld
from hhtld.commands.main import main
from hhtld.errors import FormatError, HeaderError, NonFiniteError, QuantizedError
from hhtld.formats import open_source

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
BF16 = np.dtype(ml_dtypes.bfloat16)
W, INV, SCALE = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight_scale_inv", "_scale"
DEEPSEEK: dict[str, Any] = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}


def compressed(strategy: str = "channel", **weights: Any) -> dict[str, Any]:
    facts = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy, "block_structure": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": facts | weights}},
    }


def stored(n_rows: int, n_cols: int, seed: int = 0) -> NDArray[Any]:
    """FP8 weights: every finite value there is, in random order."""
    rng = np.random.default_rng([seed, n_rows, n_cols])
    finite = np.array([byte for byte in range(256) if byte & 0x7F != 0x7F], np.uint8)
    return rng.choice(finite, (n_rows, n_cols)).view(E4M3)


def scales(*shape: int, seed: int = 1, dtype: Any = np.float32) -> NDArray[Any]:
    rng = np.random.default_rng([seed, *shape])
    return np.asarray(2.0 ** rng.uniform(-14, -6, shape), np.float32).astype(dtype).reshape(shape)


def twin(weight: NDArray[Any], scale: NDArray[Any], block: tuple[int, int]) -> NDArray[Any]:
    """Each weight times its own scale in float64, which is exact, rounded to float32 and then to bfloat16."""
    out = np.empty(weight.shape, np.float32)
    grid = scale.astype(np.float64)
    for row, values in enumerate(weight.astype(np.float64)):
        for column, value in enumerate(values):
            out[row, column] = value * grid[row // block[0], column // block[1]]
    return out.astype(BF16)


def snapshot(folder: Path, tensors: dict[str, NDArray[Any]], quantization: Any = DEEPSEEK) -> Path:
    folder.mkdir(exist_ok=True)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    config = {"model_type": "deepseek_v3", "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    return folder


def sharded(folder: Path, shards: list[dict[str, NDArray[Any]]], quantization: Any = DEEPSEEK) -> Path:
    folder.mkdir(exist_ok=True)
    weight_map = {}
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        safetensors.numpy.save_file(tensors, folder / name)
        weight_map |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    return folder


# --- what is read -----------------------------------------------------------------------------

GRIDS = {
    "edge blocks": ((300, 200), (3, 2), (128, 128), DEEPSEEK, "_scale_inv"),
    "whole blocks": ((256, 128), (2, 1), (128, 128), DEEPSEEK, "_scale_inv"),
    "less than a block": ((5, 3), (1, 1), (128, 128), DEEPSEEK, "_scale_inv"),
    "one row": ((1, 300), (1, 3), (128, 128), DEEPSEEK, "_scale_inv"),
    "one column": ((300, 1), (3, 1), (128, 128), DEEPSEEK, "_scale_inv"),
    "other blocks": ((70, 50), (5, 2), (16, 32), DEEPSEEK | {"weight_block_size": [16, 32]}, "_scale_inv"),
    "blocks of one row": ((9, 50), (9, 2), (1, 32), DEEPSEEK | {"weight_block_size": [1, 32]}, "_scale_inv"),
    "block size unsaid": ((300, 200), (3, 2), (128, 128), {"quant_method": "fp8"}, "_scale_inv"),
    "a tensor's, inverse": ((9, 5), (), (9, 5), {"quant_method": "fp8", "weight_block_size": None}, "_scale_inv"),
    "a tensor's": ((9, 5), (), (9, 5), {"quant_method": "fp8", "weight_block_size": None}, "_scale"),
    "a tensor's, one axis": ((9, 5), (1,), (9, 5), compressed("tensor"), "_scale"),
    "a tensor's, two axes": ((9, 5), (1, 1), (9, 5), compressed("tensor"), "_scale"),
    "rows": ((300, 20), (300, 1), (1, 20), compressed(), "_scale"),
    "rows, one axis": ((300, 20), (300,), (1, 20), compressed(), "_scale"),
    "rows of fbgemm": ((300, 20), (300, 1), (1, 20), {"quant_method": "fbgemm_fp8"}, "_scale"),
    "blocks of compressed-tensors": (
        (300, 200),
        (5, 2),
        (64, 128),
        compressed("block", block_structure=[64, 128]),
        "_scale",
    ),
}


@pytest.mark.parametrize("case", GRIDS)
@pytest.mark.parametrize("dtype", [np.float32, BF16], ids=["F32", "BF16"])
def test_weights_mean_what_the_twin_says(case: str, dtype: Any, tmp_path: Path) -> None:
    shape, grid, block, quantization, suffix = GRIDS[case]
    weight, scale = stored(*shape), scales(*grid, dtype=dtype)
    spread = scale.reshape(-1, 1) if scale.ndim < 2 else scale
    expected = twin(weight, spread, block)
    folder = snapshot(tmp_path / "m", {W: weight, W + suffix: scale, "norm": np.ones(3, np.float32)}, quantization)
    with open_source(folder) as source:
        assert sorted(source.infos()) == [W, "norm"]
        info = source.infos()[W]
        assert (info.dtype.name, info.shape, info.nbytes) == ("BF16", shape, 2 * weight.size)
        whole = source.read_tensor(W)
        np.testing.assert_array_equal(whole.view(np.uint16), expected.view(np.uint16))
        np.testing.assert_array_equal(source.read_tensor("norm"), np.ones(3, np.float32))
        for start in {0, 1, shape[0] // 2, max(0, shape[0] - 3)}:  # rows alone are rows of the whole
            for stop in {start, start + 1, min(start + 130, shape[0]), shape[0]}:
                if stop <= shape[0]:
                    rows = source.read_rows(W, start, stop)
                    assert rows.shape == (stop - start, info.row_nbytes)
                    np.testing.assert_array_equal(rows.view(np.uint16), expected[start:stop].view(np.uint16))


def test_what_became_of_the_scales_is_told(tmp_path: Path) -> None:
    tensors = {W: stored(9, 5), INV: scales(1, 1), W.replace("weight", "input_scale"): scales(1), "k_scale": scales(1)}
    with open_source(snapshot(tmp_path / "m", tensors)) as source:
        assert sorted(source.infos()) == ["k_scale", W]  # a scale of something else stays
        assert source.description == {
            "config": {"model_type": "deepseek_v3", "torch_dtype": "bfloat16"},
            "dequantized": {
                "from": "F8_E4M3",
                "to": "BF16",
                "quant_method": "fp8",
                "block": [128, 128],
                "n_tensors": 1,
                "n_scales_left_out": 2,
            },
            "stored_nbytes": 9 * 5 + 4 + 4,
        }
        assert source.stored(W) == ("F8_E4M3", 9 * 5 + 4)
        with pytest.raises(ValueError, match="no tensor"):
            source.read_rows(INV, 0, 1)


def test_scales_may_lie_in_another_shard(tmp_path: Path) -> None:
    weight, scale = stored(300, 200), scales(3, 2)
    folder = sharded(tmp_path / "m", [{W: weight, "norm": np.ones(3, np.float32)}, {INV: scale}])
    for given in (folder, folder / "model.safetensors.index.json"):
        with open_source(given) as source:
            np.testing.assert_array_equal(source.read_tensor(W), twin(weight, scale, (128, 128)))
            assert source.infos()[W].shard == "model-00001-of-00002.safetensors"
    with pytest.raises(
        HeaderError, match=r"its scale, .*weight_scale_inv'.*, is missing; if the model is sharded, give"
    ):
        open_source(folder / "model-00001-of-00002.safetensors")
    with pytest.raises(HeaderError, match=r"scales '.*weight', which is not here; if the model is sharded, give"):
        open_source(folder / "model-00002-of-00002.safetensors")


def test_a_file_alone(tmp_path: Path) -> None:
    weight, scale = stored(70, 50), scales(5, 2)
    folder = snapshot(tmp_path / "m", {W: weight, INV: scale}, DEEPSEEK | {"weight_block_size": [16, 32]})
    with open_source(folder / "model.safetensors") as source:  # the config beside it tells the blocks
        np.testing.assert_array_equal(source.read_tensor(W), twin(weight, scale, (16, 32)))
    safetensors.numpy.save_file({W: stored(300, 200), INV: scales(3, 2)}, tmp_path / "alone.safetensors")
    with open_source(tmp_path / "alone.safetensors") as source:
        np.testing.assert_array_equal(source.read_tensor(W), twin(stored(300, 200), scales(3, 2), (128, 128)))
        assert "quant_method" not in source.description["dequantized"]


def test_other_models_are_left_alone(tmp_path: Path) -> None:
    plain = {W: np.ones((4, 4), np.float32), W + SCALE: np.ones(4, np.float32), "b.weight": stored(4, 4)}
    for tensors in (plain, {W: stored(4, 4)}):
        safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors")
        with open_source(tmp_path / "x.safetensors") as source:
            assert set(source.infos()) == set(tensors)
            assert source.description == {}
            for name, values in tensors.items():
                np.testing.assert_array_equal(source.read_tensor(name), values)


def test_several_threads_read_at_once(tmp_path: Path) -> None:
    weight, scale = stored(1000, 200), scales(8, 2)
    with open_source(snapshot(tmp_path / "m", {W: weight, INV: scale})) as source, ThreadPoolExecutor(8) as executor:
        blocks = list(executor.map(lambda start: source.read_rows(W, start, start + 10), range(0, 1000, 10)))
    np.testing.assert_array_equal(np.concatenate(blocks).view(BF16), twin(weight, scale, (128, 128)))


def test_other_processes_open_it_for_themselves(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    sharded(tmp_path / "m", [{W: stored(300, 200)}, {INV: scales(3, 2)}])
    hhtld.convert(tmp_path / "m", tmp_path / "here.hhtld", profile="bits:2")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
        url = f"local://{tmp_path.as_posix()}/m"
        hhtld.convert(url, tmp_path / "there.hhtld", profile="bits:2", executor=processes, jobs=1)
    assert (tmp_path / "there.hhtld").read_bytes() == (tmp_path / "here.hhtld").read_bytes()


def test_behind_a_url(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    weight, scale = stored(300, 200), scales(3, 2)
    memory = fsspec.filesystem("memory")
    for path in sharded(tmp_path / "m", [{W: weight}, {INV: scale}]).iterdir():
        memory.pipe(f"fp8/{path.name}", path.read_bytes())
    try:
        with open_source("memory://fp8") as source:
            np.testing.assert_array_equal(source.read_tensor(W), twin(weight, scale, (128, 128)))
    finally:
        memory.rm("fp8", recursive=True)


@pytest.mark.parametrize("packed", [False, True])
def test_folders_of_it_say_no_more_that_they_are_quantized(packed: bool, tmp_path: Path) -> None:
    weight, scale = stored(300, 200), scales(3, 2)
    folder = snapshot(tmp_path / "m", {W: weight, INV: scale})
    (folder / "tokenizer.json").write_bytes(b"{}")
    if packed:
        hhtld.convert(folder, tmp_path / "out", to="hf", profile="bits:4")
        assert json.loads((tmp_path / "out/config.json").read_bytes())["quantization_config"]["quant_method"] == "hhtld"
    else:
        hhtld.convert(folder, tmp_path / "out/")
    with open_source(tmp_path / "out") as found, open_source(folder) as source:
        assert found.files() == source.files()
        assert json.loads(found.read_file("config.json")) == {"model_type": "deepseek_v3", "torch_dtype": "bfloat16"}
        assert len(found.read_file("config.json")) == found.files()["config.json"]
        assert found.read_file("tokenizer.json") == b"{}"
        assert list(found.infos()) == [W]
        if not packed:
            np.testing.assert_array_equal(found.read_tensor(W), twin(weight, scale, (128, 128)))


# --- what is refused --------------------------------------------------------------------------

GOOD = {W: stored(300, 200), INV: scales(3, 2)}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "scale transposed": ({INV: scales(2, 3)}, r"has shape \[2, 3\], expected \[3, 2\] for blocks of 128 x 128"),
    "scale too short": ({INV: scales(2, 2)}, r"has shape \[2, 2\], expected \[3, 2\]"),
    "scale of one axis": ({INV: scales(6)}, r"has shape \[6\], expected \[3, 2\]"),
    "scale of no axis": ({INV: scales()}, r"has shape \[\], expected \[3, 2\]"),
    "scale of integers": (
        {INV: np.ones((3, 2), np.int32)},
        "is I32, and F32, BF16, F16 or F8_E8M0 was expected; dequantize",
    ),
    "scale missing": ({INV: None}, r"is F8_E4M3 and its scale, '.*weight_scale_inv' or '.*weight_scale', is missing"),
    "weight missing": ({W: None}, "which is not here"),
    "two scales": ({W + SCALE: scales(3, 2)}, "has two scales"),
    "weight of F32": (
        {W: np.ones((300, 200), np.float32)},
        "is F32, and F8_E4M3 or F8_E5M2 was expected; .*leave the scales",
    ),
    "weight of BF16": ({W: np.ones((300, 200), BF16)}, "is BF16, and F8_E4M3"),
    "weight of one axis": ({W: stored(1, 200)[0]}, r"the shape \[200\], and two axes or more"),
    "weight of three axes": (
        {W: stored(300, 200).reshape(3, 100, 200)},
        r"\[3, 2\], expected \[3, 1, 2\] .*; dequantize the model with the library that wrote it",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together(case: str, tmp_path: Path) -> None:
    change, message = REFUSED[case]
    tensors = {name: values for name, values in (GOOD | change).items() if values is not None}
    folder = snapshot(tmp_path / "m", tensors)
    with pytest.raises(HeaderError, match=message) as caught:
        open_source(folder)
    assert W in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("value", [0.0, -1.0, -0.0, np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("suffix", ["_scale_inv", "_scale"])
def test_scales_that_no_weight_can_have(value: float, suffix: str, tmp_path: Path) -> None:
    bad = scales(3, 2) if suffix == "_scale_inv" else scales(300)
    place = (2, 1) if suffix == "_scale_inv" else 290
    bad[place] = value
    folder = snapshot(tmp_path / "m", {W: stored(300, 200), W + suffix: bad})
    with open_source(folder) as source:
        source.read_rows(W, 0, 128)  # its own scales are sound
        with pytest.raises(HeaderError, match=rf"weight{suffix}' holds .* at row \d+, column \d; scales must be"):
            source.read_rows(W, 256, 300)
    with pytest.raises(FormatError, match="scales must be finite and above 0"):
        hhtld.convert(folder, tmp_path / "m.hhtld", profile="gates")
    assert not (tmp_path / "m.hhtld").exists()


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "fp8", "fmt": "e5m2"},
        {"quant_method": "fp8", "expert_dtype": "fp4"},
        {"quant_method": "bitsandbytes"},
        {"quant_method": None},
        {"quant_method": "compressed-tensors"},
        compressed() | {"format": "pack-quantized"},
        compressed() | {"sparsity_config": {"format": "sparse-24-bitmask"}},
        compressed(num_bits=4),
        compressed(type="int"),
        compressed(symmetric=False),
        compressed("group"),
        {},
        [],
        "fp8",
    ],
)
def test_other_quantizations_stay_refused(quantization: Any, tmp_path: Path) -> None:
    folder = snapshot(tmp_path / "m", GOOD, quantization)
    with open_source(folder) as source:
        np.testing.assert_array_equal(source.read_tensor(W).view(np.uint8), GOOD[W].view(np.uint8))
    with pytest.raises(QuantizedError, match=r"the model is already quantized \(.*config.json says .*--quantized keep"):
        hhtld.convert(folder, tmp_path / "m.hhtld")
    assert not (tmp_path / "m.hhtld").exists()


@pytest.mark.parametrize("block", [[128], [128, 0], [-1, 128], [1.5, 128], "128", [True, 128], {}, 128])
def test_block_sizes_that_are_none(block: Any, tmp_path: Path) -> None:
    with pytest.raises(HeaderError, match="weight_block_size must be two positive integers"):
        open_source(snapshot(tmp_path / "m", GOOD, DEEPSEEK | {"weight_block_size": block}))


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path) -> None:
    weight = (np.arange(120_000) % 0x38).astype(np.uint8).reshape(600, 200)  # below 1, so that 3e38 times it is finite
    weight[70, 3] = 0x7F
    folder = snapshot(tmp_path / "m", {W: weight.view(E4M3), INV: scales(5, 2)})
    with pytest.raises(NonFiniteError, match="holds nan at row 70, column 3"):
        hhtld.convert(folder, tmp_path / "m.hhtld", profile="gates")
    weight[70, 3] = 0x7E  # 448 times 3e38 passes float32
    folder = snapshot(tmp_path / "m", {W: weight.view(E4M3), INV: np.full((5, 2), 3e38, np.float32)})
    with pytest.raises(NonFiniteError, match="holds inf at row 70, column 3"):
        hhtld.convert(folder, tmp_path / "m.hhtld", profile="gates")


# --- all the way ------------------------------------------------------------------------------


def test_a_converted_model_is_an_ordinary_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(3)
    weight, scale = (rng.standard_normal((600, 200)) * 30).astype(E4M3), scales(5, 2)
    folder = snapshot(tmp_path / "m", {W: weight, INV: scale, "model.norm.weight": np.ones(200, BF16)})
    pack, back = tmp_path / "m.hhtld", tmp_path / "back.safetensors"
    report = hhtld.convert(folder, pack, profile="gates")
    assert report.gates
    assert main(["verify", str(pack), str(folder)]) == 0
    assert main(["convert", str(pack), str(back)]) == 0
    found = safetensors.numpy.load_file(back)
    assert {name: (values.dtype, values.shape) for name, values in found.items()} == {
        W: (BF16, (600, 200)),
        "model.norm.weight": (BF16, (200,)),
    }
    meant = twin(weight, scale, (128, 128)).astype(np.float64)
    decoded = found[W].astype(np.float64)
    cosines = (meant * decoded).sum(1) / np.linalg.norm(meant, axis=1) / np.linalg.norm(decoded, axis=1)
    assert np.median(cosines) >= 0.95
    plain = tmp_path / "plain.safetensors"
    assert main(["convert", str(folder), str(plain)]) == 0
    np.testing.assert_array_equal(safetensors.numpy.load_file(plain)[W], twin(weight, scale, (128, 128)))
    capsys.readouterr()
    assert main(["inspect", str(pack), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["source"]["dequantized"]["n_tensors"] == 1


# --- other layouts ----------------------------------------------------------------------------

E8M0, E5M2 = np.dtype(ml_dtypes.float8_e8m0fnu), np.dtype(ml_dtypes.float8_e5m2)
EXPERTS = "model.layers.0.mlp.experts.gate_up_proj"
FP8: dict[str, Any] = {"quant_method": "fp8", "weight_block_size": None}


def header_file(path: Path, tensors: dict[str, NDArray[Any]]) -> Path:
    """A safetensors file; the package's own writer knows no F8_E8M0."""
    names = {E4M3: "F8_E4M3", E5M2: "F8_E5M2", E8M0: "F8_E8M0", BF16: "BF16", np.dtype("<f4"): "F32"}
    table, data = {}, b""
    for name, values in tensors.items():
        offsets = [len(data), len(data) + values.nbytes]
        table[name] = {"dtype": names[values.dtype], "shape": list(values.shape), "data_offsets": offsets}
        data += values.tobytes()
    header = json.dumps(table).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


EXPERT_GRIDS = {
    "one for all": ((), (300, 200), FP8, "_scale"),
    "one each, one axis": ((3,), (300, 200), compressed("tensor"), "_scale"),
    "one each, two axes": ((3, 1), (300, 200), compressed("tensor"), "_scale"),
    "one each, three axes": ((3, 1, 1), (300, 200), compressed("tensor"), "_scale"),
    "one each, inverse": ((3, 1, 1), (300, 200), FP8, "_scale_inv"),
    "rows": ((3, 300, 1), (1, 200), compressed(), "_scale"),
    "rows, two axes": ((3, 300), (1, 200), compressed(), "_scale"),
    "columns": ((3, 1, 200), (300, 1), {"quant_method": "fbgemm_fp8"}, "_scale"),
    "blocks": ((3, 3, 2), (128, 128), DEEPSEEK, "_scale_inv"),
    "blocks of compressed-tensors": ((3, 5, 2), (64, 128), compressed("block", block_structure=[64, 128]), "_scale"),
}


@pytest.mark.parametrize("case", EXPERT_GRIDS)
def test_experts_of_three_axes_mean_what_their_matrices_mean(case: str, tmp_path: Path) -> None:
    grid, block, quantization, suffix = EXPERT_GRIDS[case]
    weight, scale = stored(900, 200).reshape(3, 300, 200), scales(*grid)
    down, across = -(-300 // block[0]), -(-200 // block[1])
    each = np.broadcast_to(scale, (3, down, across)) if scale.size == 1 else scale.reshape(3, down, across)
    expected = np.stack([twin(matrix, own, block) for matrix, own in zip(weight, each, strict=True)])
    folder = snapshot(
        tmp_path / "m", {EXPERTS: weight, EXPERTS + suffix: scale, EXPERTS + "_input_scale": scales(3)}, quantization
    )
    with open_source(folder) as source:
        assert list(source.infos()) == [EXPERTS]
        np.testing.assert_array_equal(source.read_tensor(EXPERTS).view(np.uint16), expected.view(np.uint16))
        info = source.infos()[EXPERTS]
        rows = expected.view(np.uint16).reshape(info.n_rows, info.n_cols)
        for start in range(info.n_rows):  # rows alone are rows of the whole
            found = source.read_rows(EXPERTS, start, start + 1).view(np.uint16)
            np.testing.assert_array_equal(found, rows[start : start + 1])


@pytest.mark.parametrize("quantization", [DEEPSEEK | {"scale_fmt": "ue8m0"}, DEEPSEEK | {"quant_method": "FP8"}])
def test_scales_that_are_powers_of_two_and_methods_in_capitals(quantization: Any, tmp_path: Path) -> None:
    powers = scales(3, 2).astype(E8M0)
    folder = snapshot(tmp_path / "m", GOOD, quantization)
    header_file(folder / "model.safetensors", {W: GOOD[W], INV: powers})
    with open_source(folder) as source:
        expected = twin(GOOD[W], powers.astype(np.float32), (128, 128))
        np.testing.assert_array_equal(source.read_tensor(W).view(np.uint16), expected.view(np.uint16))
    powers.view(np.uint8)[2, 1] = 0xFF  # its only value that is no power
    header_file(folder / "model.safetensors", {W: GOOD[W], INV: powers})
    with open_source(folder) as source, pytest.raises(HeaderError, match="holds nan at row 2, column 1"):
        source.read_tensor(W)


MODELOPT: dict[str, tuple[dict[str, Any], tuple[int, ...], tuple[int, int]]] = {
    "a tensor": ({"quant_algo": "FP8"}, (), (300, 200)),
    "rows": ({"quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"}, (300,), (1, 200)),
    "blocks": ({"quant_algo": "FP8_PB_WO"}, (3, 1, 2, 1), (128, 128)),
}


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("case", MODELOPT)
def test_fp8_of_modelopt_is_read(case: str, beside: bool, tmp_path: Path) -> None:
    facts, grid, block = MODELOPT[case]
    scale = scales(*grid)
    tensors = {W: stored(300, 200), W + SCALE: scale, W.replace("weight", "input_scale"): scales()}
    folder = snapshot(tmp_path / "m", tensors, None if beside else {"quant_method": "modelopt"} | facts)
    if beside:
        (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": facts}))
    expected = twin(tensors[W], scale.reshape(-(-300 // block[0]), -(-200 // block[1])), block)
    with open_source(folder) as source:
        assert list(source.infos()) == [W]
        np.testing.assert_array_equal(source.read_tensor(W).view(np.uint16), expected.view(np.uint16))
        assert list(source.files()) == ["config.json"]  # the other file would say that it still is quantized
        with pytest.raises(KeyError):
            source.read_file("hf_quant_config.json")
    with open_source(header_file(tmp_path / "alone.safetensors", tensors)) as source:
        np.testing.assert_array_equal(source.read_tensor(W).view(np.uint16), expected.view(np.uint16))


def test_a_block_of_zeros_may_have_the_scale_zero(tmp_path: Path) -> None:
    weight, scale = stored(300, 200), scales(3, 2)
    weight[128:256, :128], scale[1, 0] = 0, 0
    with open_source(snapshot(tmp_path / "m", {W: weight, INV: scale})) as source:
        np.testing.assert_array_equal(source.read_tensor(W), twin(weight, scale, (128, 128)))
    weight[255, 127] = 1
    with (
        open_source(snapshot(tmp_path / "m", {W: weight, INV: scale})) as source,
        pytest.raises(
            HeaderError, match=r"holds 0\.0 at row 1, column 0; scales must be .*, or 0 where all their weights"
        ),
    ):
        source.read_tensor(W)


def test_fp8_without_a_scale_beside_scaled_ones_is_what_it_is(tmp_path: Path) -> None:
    plain, head = stored(64, 64, seed=2), "lm_head.weight"
    path = header_file(tmp_path / "m.safetensors", GOOD | {head: plain})
    with open_source(path) as source:
        assert {name: info.dtype.name for name, info in source.infos().items()} == {W: "BF16", head: "F8_E4M3"}
        np.testing.assert_array_equal(source.read_tensor(head).view(np.uint8), plain.view(np.uint8))
    header_file(path, GOOD | {W.replace(".0.", ".1."): plain})  # of layer 0 it has one
    with pytest.raises(HeaderError, match=r"layers\.1\..*is missing; if the model is sharded, give the folder"):
        open_source(path)


def test_e5m2_is_read_as_well(tmp_path: Path) -> None:
    weight = (np.random.default_rng(4).standard_normal((300, 200)) * 30).astype(E5M2)
    with open_source(header_file(tmp_path / "m.safetensors", {W: weight, INV: scales(3, 2)})) as source:
        np.testing.assert_array_equal(source.read_tensor(W), twin(weight, scales(3, 2), (128, 128)))
        assert source.description["dequantized"]["from"] == "F8_E5M2"


def test_sizes_are_told_as_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = snapshot(tmp_path / "m", GOOD)
    report = hhtld.convert(folder, tmp_path / "m.hhtld", profile="bits:4", files=False)
    assert report.source_nbytes == 300 * 200 + 4 * 6
    assert report.to_json()["tensors"][0] | {"stored_as": "F8_E4M3"} == report.to_json()["tensors"][0]
    for path, key in ((folder, "nbytes"), (tmp_path / "m.hhtld", "source_nbytes")):
        assert main(["inspect", str(path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["totals"][key] == 300 * 200 + 4 * 6


@pytest.mark.parametrize("grid", [(), (1,), (300,), (300, 1)], ids=str)
def test_scales_of_comfyui_are_read(grid: tuple[int, ...], tmp_path: Path) -> None:
    weight, scale, module = stored(300, 200), scales(*grid), "model.diffusion_model.double_blocks.0.img_mlp.0"
    tensors = {
        f"{module}.weight": weight,
        f"{module}.scale_weight": scale,
        f"{module}.scale_input": scales(),
        "model.diffusion_model.final.weight": stored(64, 64),
        "scaled_fp8": np.zeros(2, E4M3),
    }
    with open_source(header_file(tmp_path / "m.safetensors", tensors)) as source:
        kinds = {name: info.dtype.name for name, info in source.infos().items()}
        assert kinds == {f"{module}.weight": "BF16", "model.diffusion_model.final.weight": "F8_E4M3"}
        expected = twin(weight, scale.reshape(-1, 1), (1, 200) if scale.size > 1 else (300, 200))
        np.testing.assert_array_equal(source.read_tensor(f"{module}.weight").view(np.uint16), expected.view(np.uint16))
