"""Models that are quantized already: every scheme is recognised by what lies there, and no scale is ever coded."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import hhtld
from hhtld.commands.main import main
from hhtld.dtypes import DTYPES
from hhtld.errors import HeaderError, QuantizedError
from hhtld.formats import open_source
from hhtld.matrix import TensorInfo
from hhtld.sources.contract import ArraySource
from hhtld.sources.quantized import SCHEMES, quantized_tensors
from tests.conftest import low_rank

Tensors = dict[str, NDArray[Any]]
BF16, F8, E8 = (np.dtype(getattr(ml_dtypes, name)) for name in ("bfloat16", "float8_e4m3fn", "float8_e8m0fnu"))
M = "model.layers.0.mlp.up_proj."
_NAMES = {
    BF16: "BF16",
    F8: "F8_E4M3",
    E8: "F8_E8M0",
    np.dtype(ml_dtypes.float8_e5m2): "F8_E5M2",
    np.dtype("<f4"): "F32",
    np.dtype("<f2"): "F16",
    np.dtype("u1"): "U8",
    np.dtype("i1"): "I8",
    np.dtype("<i2"): "I16",
    np.dtype("<i4"): "I32",
    np.dtype("<u4"): "U32",
    np.dtype("<i8"): "I64",
}


def file(path: Path, tensors: Tensors) -> Path:
    """A safetensors file; the package's own writer knows fewer types."""
    table, data = {}, b""
    for name, values in tensors.items():
        raw = values.tobytes()
        offsets = [len(data), len(data) + len(raw)]
        table[name] = {"dtype": _NAMES[values.dtype], "shape": list(values.shape), "data_offsets": offsets}
        data += raw
    header = json.dumps(table).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def ints(dtype: str, *shape: int) -> NDArray[Any]:
    info = np.iinfo(dtype)
    return np.random.default_rng([*shape, 7]).integers(info.min, info.max, shape, dtype, endpoint=True)


def floats(*shape: int, dtype: Any = np.float16) -> NDArray[Any]:
    values = np.abs(np.random.default_rng([*shape, 3]).standard_normal(shape)) + 0.01
    return np.asarray(values, np.float32).astype(dtype).reshape(shape)


def bnb(kind: str) -> Tensors:
    return {
        M + "weight": ints("u1", 4096, 1),
        M + "weight.absmax": ints("u1", 128),
        M + "weight.nested_absmax": floats(64, 4, dtype=np.float32),
        M + "weight.quant_map": floats(16, dtype=np.float32),
        M + f"weight.quant_state.bitsandbytes__{kind}": ints("u1", 81),
    }


GIVEN: dict[str, tuple[str, Tensors]] = {
    "bitsandbytes nf4": ("bitsandbytes", bnb("nf4")),
    "bitsandbytes fp4": ("bitsandbytes", bnb("fp4")),
    "bitsandbytes, packed as BF16": ("bitsandbytes", bnb("nf4") | {M + "weight": floats(2048, 1, dtype=BF16)}),
    "bitsandbytes without its state": (
        "bitsandbytes",
        {M + "weight": ints("u1", 4096, 1), M + "weight.absmax": floats(64, 2, dtype=np.float32)},
    ),
    "bitsandbytes int8": (
        "bitsandbytes",
        {M + "weight": ints("i1", 64, 64), M + "SCB": floats(64, 1, dtype=np.float32)},
    ),
    "MLX": (
        "MLX",
        {M + "weight": ints("u4", 64, 8), M + "scales": floats(64, 4, dtype=BF16), M + "biases": floats(64, 4)},
    ),
    "MLX experts": ("MLX", {M + "weight": ints("u4", 2, 64, 8), M + "scales": floats(2, 64, 4)}),
    "NVFP4 of ModelOpt": (
        "NVFP4",
        {
            M + "weight": ints("u1", 64, 32),
            M + "weight_scale": floats(64, 4, dtype=F8),
            M + "weight_scale_2": floats(dtype=np.float32),
            M + "input_scale": floats(dtype=np.float32),
        },
    ),
    "NVFP4 of compressed-tensors": (
        "NVFP4",
        {
            M + "weight_packed": ints("u1", 64, 32),
            M + "weight_scale": floats(64, 4, dtype=F8),
            M + "weight_global_scale": floats(1, dtype=np.float32),
        },
    ),
    "MXFP4": (
        "MXFP4",
        {
            M + "gate_up_proj_blocks": ints("u1", 2, 8, 4, 16),
            M + "gate_up_proj_scales": ints("u1", 2, 8, 4),
            M + "gate_up_proj_bias": floats(64, 64, dtype=BF16),
        },
    ),
    "compressed-tensors, 4 bits": (
        "compressed-tensors",
        {
            M + "weight_packed": ints("i4", 64, 8),
            M + "weight_scale": floats(64, 4, dtype=BF16),
            M + "weight_zero_point": ints("i4", 8, 4),
            M + "weight_shape": np.array([64, 64], "<i8"),
        },
    ),
    "compressed-tensors, 8 bits": (
        "integers with scales",
        {M + "weight": ints("i1", 64, 64), M + "weight_scale": floats(64, 1, dtype=BF16)},
    ),
    "GPTQ": (
        "GPTQ or AWQ",
        {
            M + "qweight": ints("i4", 8, 64),
            M + "qzeros": ints("i4", 4, 8),
            M + "scales": floats(4, 64),
            M + "g_idx": np.arange(64, dtype="<i4") // 16,
        },
    ),
    "AWQ": ("GPTQ or AWQ", {M + "qweight": ints("i4", 64, 8), M + "scales": floats(4, 64)}),
    "GPTQ, its integers in another shard": (
        "GPTQ or AWQ",
        {M + "qzeros": ints("i4", 4, 8), M + "scales": floats(4, 64)},
    ),
    "SVDQuant": (
        "GPTQ or AWQ",
        {M + "qweight": ints("i1", 64, 32), M + "wscales": floats(4, 64, dtype=BF16), M + "proj_down": floats(64, 8)},
    ),
    "Marlin": ("Marlin", {M + "B": ints("i4", 4, 128), M + "s": floats(4, 64)}),
    "HQQ": ("HQQ", {M + "W_q": ints("u1", 32, 64), M + "scale": floats(64, 4), M + "zero": floats(64, 4)}),
    "HQQ, packed as floats": (
        "HQQ",
        {M + "W_q": floats(32, 64), M + "scale": floats(64, 4), M + "zero": floats(64, 4)},
    ),
    "quanto": ("quanto", {M + "weight._data": ints("i1", 64, 64), M + "weight._scale": floats(64, 1)}),
    "quanto, FP8": ("quanto", {M + "weight._data": floats(64, 64, dtype=F8), M + "weight._scale": floats(64, 1)}),
    "quanto, 4 bits": (
        "quanto",
        {
            M + "weight._data._data": ints("u1", 32, 64),
            M + "weight._scale": floats(4, 64),
            M + "weight._shift": floats(4, 64),
        },
    ),
    "torchao": (
        "torchao",
        {
            M + "_weight_qdata": ints("i1", 64, 64),
            M + "_weight_scale": floats(64, 4),
            M + "_weight_zero_point": floats(64, 4),
        },
    ),
    "EXL2": (
        "EXL2",
        {
            M + "q_weight": ints("i4", 16, 64),
            M + "q_scale": ints("i4", 4, 8),
            M + "q_scale_max": floats(4),
            M + "bias": floats(64, 2),
        },
    ),
    "EXL3": ("EXL3", {M + "trellis": ints("i2", 4, 4, 64), M + "suh": floats(64, 1), M + "svh": floats(64, 1)}),
    "AQLM": (
        "AQLM",
        {M + "codes": ints("i2", 64, 8, 1), M + "codebooks": floats(1, 64, 1, 8), M + "scales": floats(64, 1, 1, 1)},
    ),
    "VPTQ": ("VPTQ", {M + "indices": ints("i4", 1, 8, 64), M + "centroids.weight": floats(1, 64)}),
    "QuIP#": ("QuIP#", {M + "Qidxs": ints("i8", 64, 8), M + "SU": floats(64, 1), M + "SV": floats(64, 1)}),
    "HIGGS": (
        "HIGGS",
        {M + "weight": ints("i2", 16, 64), M + "scales": floats(64, 2), M + "tables": floats(4, 4)},
    ),
    "BitNet": ("BitNet", {M + "weight": ints("u1", 16, 64), M + "weight_scale": floats(1, dtype=BF16)}),
    "EETQ": (
        "integers with scales",
        {M + "weight": ints("i1", 64, 64), M + "weight_scales": floats(64, 1)},
    ),
    "experts of integers": (
        "integers with scales",
        {M + "gate_up_proj": ints("i1", 2, 64, 32), M + "gate_up_proj_scale": floats(2, 64, 1)},
    ),
    "MXFP4 of DeepSeek": (
        "integers with scales",
        {M + "weight": ints("i1", 64, 32), M + "scale": floats(64, 2, dtype=E8)},
    ),
    "names without a module": ("integers with scales", {"w": ints("i1", 64, 64), "w_scale": floats(64, 4)}),
}
PLAIN: Tensors = {
    "model.embed_tokens.weight": low_rank(256, 64),
    "model.norm.weight": np.ones(64, np.float32),
    "model.layers.0.mlp.down_proj.weight": low_rank(64, 64, seed=1),
}


def refused(given: Callable[[], object], scheme: str) -> str:
    with pytest.raises(QuantizedError, match="the model is already quantized") as caught:
        given()
    message = str(caught.value)
    assert scheme in message
    for way_on in ("Convert the original", "dequantized with", "--quantized keep", "quantized='keep'"):
        assert way_on in message
    return message


@pytest.mark.parametrize("case", GIVEN)
def test_every_scheme_is_refused_by_name_as_a_file_a_folder_and_arrays(case: str, tmp_path: Path) -> None:
    scheme, tensors = GIVEN[case]
    folder = tmp_path / "model"
    folder.mkdir()
    path = file(folder / "model.safetensors", tensors | PLAIN)
    assert str(path) in refused(lambda: hhtld.convert(path, tmp_path / "x.hhtld"), scheme)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    assert str(folder) in refused(lambda: hhtld.convert(folder, tmp_path / "x.hhtld", profile="bits:4"), scheme)
    refused(lambda: hhtld.encode(tensors | PLAIN), scheme)
    assert not (tmp_path / "x.hhtld").exists()


@pytest.mark.parametrize("case", GIVEN)
def test_kept_they_come_back_byte_for_byte_and_the_rest_is_coded(case: str, tmp_path: Path) -> None:
    scheme, tensors = GIVEN[case]
    path = file(tmp_path / "model.safetensors", tensors | PLAIN)
    report = hhtld.convert(path, tmp_path / "x.hhtld", profile="bits:4", quantized="keep")
    assert f"{len(tensors)} tensors of quantized weights ({scheme}) are kept byte for byte" in report.notes
    with hhtld.open(tmp_path / "x.hhtld") as pack:
        assert {name for name in pack if pack.info(name).codec == "keep"} == {*tensors, "model.norm.weight"}
    back = hhtld.load_file(tmp_path / "x.hhtld")
    for name, values in tensors.items():
        assert (back[name].dtype, back[name].shape, back[name].tobytes()) == (
            values.dtype,
            values.shape,
            values.tobytes(),
        )


def test_every_line_of_the_table_is_tried_here() -> None:
    assert {scheme for scheme, _ in GIVEN.values()} >= {scheme.name for scheme in SCHEMES} - {
        "floats of 4 or 6 bits with scales",  # numpy has no such type
        "FP8 with scales",  # those that are not read as what they mean, below
    }


def test_shards_and_urls_are_refused_as_well(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    tensors = GIVEN["GPTQ"][1]
    folder = tmp_path / "m"
    folder.mkdir()
    shards = {"a.safetensors": PLAIN, "b.safetensors": tensors}
    for name, held in shards.items():
        file(folder / name, held)
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for given in (folder, folder / "model.safetensors.index.json", folder / "b.safetensors"):
        refused(lambda given=given: hhtld.convert(given, tmp_path / "x.hhtld"), "GPTQ or AWQ")  # type: ignore[misc]  # mypy infers no lambda with a default
    memory = fsspec.filesystem("memory")
    for path in folder.iterdir():
        memory.pipe(f"quantized/{path.name}", path.read_bytes())
    try:
        refused(lambda: hhtld.convert("memory://quantized", tmp_path / "x.hhtld"), "GPTQ or AWQ")
    finally:
        memory.rm("quantized", recursive=True)


CONFIGS: dict[str, tuple[str, Any]] = {
    "config.json says 'awq'": ("config.json", {"quantization_config": {"quant_method": "awq"}}),
    "config.json says so in quantization": ("config.json", {"quantization": {"bits": 4, "group_size": 64}}),
    "config.json says so in quantization_config": ("config.json", {"quantization_config": {"load_in_4bit": True}}),
    "config.json says 'modelopt' 'NVFP4'": (
        "config.json",
        {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}},
    ),
    "hf_quant_config.json says 'W4A8_AWQ'": ("hf_quant_config.json", {"quantization": {"quant_algo": "W4A8_AWQ"}}),
    "quantize_config.json says so": ("quantize_config.json", {"bits": 4, "group_size": 128}),
    "quant_config.json says so": ("quant_config.json", {"w_bit": 4, "zero_point": True}),
    "quanto_qmap.json says so": ("quanto_qmap.json", {"proj": {"weights": "qint8"}}),
}


@pytest.mark.parametrize("says", CONFIGS)
def test_what_a_config_says_is_told_and_makes_unknown_integers_quantized(says: str, tmp_path: Path) -> None:
    name, config = CONFIGS[says]
    tensors: Tensors = {M + "strange": ints("u1", 64, 32), M + "stranger": floats(64, 4)}
    file(tmp_path / "model.safetensors", tensors | PLAIN)
    (tmp_path / name).write_text(json.dumps(config))
    assert f"({says}: '{M}strange' is U8 beside '{M}stranger')" in refused(
        lambda: hhtld.convert(tmp_path, tmp_path / "x.hhtld"), says
    )
    hhtld.convert(tmp_path, tmp_path / "x.hhtld", profile="bits:4", quantized="keep")
    back = hhtld.load_file(tmp_path / "x.hhtld")
    assert all(back[name].tobytes() == values.tobytes() for name, values in tensors.items())


@pytest.mark.parametrize("says", CONFIGS)
def test_a_config_that_was_left_over_is_told_and_plain_weights_are_coded(says: str, tmp_path: Path) -> None:
    name, config = CONFIGS[says]
    file(tmp_path / "model.safetensors", PLAIN)
    (tmp_path / name).write_text(json.dumps(config))
    report = hhtld.convert(tmp_path, tmp_path / "x.hhtld", profile="bits:4")
    note = f"the model is said to be quantized ({says}), but no tensor here is: the floats are coded as they are"
    assert note in report.notes


INNOCENT: Tensors = {
    "clip.logit_scale": floats(),
    "vision.layer_scale": floats(64, 64),
    "vision.blocks.0.ls1.gamma": floats(64),
    "norm.scale": floats(64),
    "norm.weight_scale": floats(64, 64),
    "film.scales": floats(64, 64),
    "film.weight": floats(64, 64),
    "attn.logit_scale": floats(64, 1, 1),
    "attn.relative_position_index": ints("i8", 49, 49),
    "attn.weight": floats(64, 64),
    "lora.lora_A.weight": floats(64, 64),
    "lora.scales": floats(64, 64),
    "bn.num_batches_tracked": np.array(3, "<i8"),
    "bn.weight": floats(64),
    "tokens.ids": ints("i4", 8, 64),
    "tokens.weight": floats(64, 64),
    "vq.embed": floats(64, 64),
    "vq.cluster_size_scale": floats(64, 64),
    "fake_quant.scale": floats(64),
    "fake_quant.zero_point": ints("i4", 64),
    "plain8.weight": floats(64, 64, dtype=F8),
    "b": floats(64, 64),
    "s": floats(64, 64),
    "biases": floats(64, 64),
    "absmax": floats(64, 64),
}


def test_innocent_names_are_not_refused(tmp_path: Path) -> None:
    source = ArraySource(INNOCENT)
    assert quantized_tensors(source.infos()) == {}
    report = hhtld.convert(file(tmp_path / "m.safetensors", INNOCENT), tmp_path / "x.hhtld", profile="bits:4")
    assert report.notes == []


UNKNOWN: dict[str, Tensors] = {
    "scales of another name": {M + "codes8": ints("i1", 512, 64), M + "step": floats(512, 8)},
    "minima and maxima": {M + "nibbles": ints("i4", 512, 8), M + "low": floats(256, 8), M + "high": floats(256, 8)},
    "a table of values a row": {M + "picks": ints("u1", 512, 64), M + "values": floats(512, 16)},
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_may_be_scales_of_an_unknown_scheme_is_kept_and_told(case: str, tmp_path: Path) -> None:
    tensors = UNKNOWN[case]
    path = file(tmp_path / "m.safetensors", tensors | PLAIN)
    report = hhtld.convert(path, tmp_path / "x.hhtld", profile="bits:4")
    suspects = [name for name, values in tensors.items() if values.dtype.kind == "f"]
    note = next(note for note in report.notes if "may be scales of a quantization that hhtld does not know" in note)
    assert note.startswith(f"{min(suspects)!r} beside the integers ")
    assert (" and 1 more " in note) == (len(suspects) > 1)
    back = hhtld.load_file(tmp_path / "x.hhtld")
    assert all(back[name].tobytes() == values.tobytes() for name, values in tensors.items())
    rules = [(name, "bits:4") for name in suspects]
    report = hhtld.convert(path, tmp_path / "x.hhtld", profile="bits:4", rules=rules)
    assert not any("may be scales" in note for note in report.notes)
    assert hhtld.load_file(tmp_path / "x.hhtld")[suspects[0]].tobytes() != tensors[suspects[0]].tobytes()


def test_a_rule_that_keeps_the_floats_beside_is_enough(tmp_path: Path) -> None:
    path = file(tmp_path / "m.safetensors", GIVEN["MLX"][1] | PLAIN)
    refused(lambda: hhtld.convert(path, tmp_path / "x.hhtld", rules=[("*.scales", "keep")]), "MLX")
    rules = [("*.scales", "keep"), ("*.biases", "keep")]
    assert hhtld.convert(path, tmp_path / "x.hhtld", profile="bits:4", rules=rules)


def test_no_rule_codes_a_scale(tmp_path: Path) -> None:
    path = file(tmp_path / "m.safetensors", GIVEN["MLX"][1] | PLAIN)
    hhtld.convert(path, tmp_path / "x.hhtld", profile="bits:4", rules=[("*", "bits:2")], quantized="keep")
    assert hhtld.load_file(tmp_path / "x.hhtld")[M + "scales"].tobytes() == GIVEN["MLX"][1][M + "scales"].tobytes()


def test_a_pack_that_keeps_them_is_refused_again(tmp_path: Path) -> None:
    path = file(tmp_path / "m.safetensors", GIVEN["GPTQ"][1] | PLAIN)
    hhtld.convert(path, tmp_path / "x.hhtld", profile="bits:4", quantized="keep")
    refused(lambda: hhtld.convert(tmp_path / "x.hhtld", tmp_path / "y.hhtld"), "GPTQ or AWQ")


def test_copies_and_looks_need_no_refusal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = file(tmp_path / "m.safetensors", GIVEN["GPTQ"][1] | PLAIN)
    assert main(["inspect", str(path)]) == 0
    assert "GPTQ or AWQ 4 tensors: never coded" in " ".join(capsys.readouterr().out.split())
    assert main(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quantized"] == {"GPTQ or AWQ": 4}
    assert main(["convert", str(path), str(tmp_path / "copy.safetensors")]) == 0
    with open_source(tmp_path / "copy.safetensors") as copy, open_source(path) as source:
        assert all(copy.read_tensor(n).tobytes() == source.read_tensor(n).tobytes() for n in source.infos())
    capsys.readouterr()
    assert main(["convert", str(path), str(tmp_path / "x.hhtld"), "--dry-run"]) == 3
    assert "--quantized keep" in capsys.readouterr().err
    assert main(["convert", str(path), str(tmp_path / "x.hhtld"), "--quantized", "keep", "--profile", "bits:4"]) == 0
    assert "4 tensors of quantized weights (GPTQ or AWQ) are kept byte for byte" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["float8_e4m3fnuz", "float8_e5m2fnuz"])
def test_fp8_that_is_not_read_as_what_it_means_is_refused(dtype: str) -> None:
    tensors = {M + "weight": floats(64, 64, dtype=getattr(ml_dtypes, dtype)), M + "weight_scale": floats(64, 1)}
    refused(lambda: hhtld.encode(tensors), "FP8 with scales")


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F6_E3M2"])
def test_floats_of_few_bits_are_quantized_where_scales_lie_beside(dtype: str) -> None:
    infos = {
        name: TensorInfo(name, DTYPES[kind], (64, 64))
        for name, kind in ((M + "weight", dtype), (M + "weight_scale", "F32"), ("head.weight", "F32"))
    }
    assert {name: scheme.name for name, scheme in quantized_tensors(infos).items()} == dict.fromkeys(
        (M + "weight", M + "weight_scale"), "floats of 4 or 6 bits with scales"
    )


def test_only_two_words_are_known_for_it() -> None:
    with pytest.raises(ValueError, match="quantized must be 'refuse' or 'keep', got 'code'"):
        hhtld.encode(PLAIN, quantized="code")


def test_a_calibration_is_not_begun_for_a_model_that_is_refused(tmp_path: Path) -> None:
    file(tmp_path / "model.safetensors", GIVEN["GPTQ"][1] | PLAIN)
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    refused(lambda: hhtld.convert(tmp_path, tmp_path / "x.hhtld", profile="parity", calibrate="builtin"), "GPTQ")


def test_a_packed_folder_does_not_say_two_things_of_its_weights(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    file(folder / "model.safetensors", PLAIN)
    (folder / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    with pytest.raises(hhtld.FormatError, match=r"quantized already, .*; convert to a \.hhtld, or remove"):
        hhtld.convert(folder, tmp_path / "packed", to="hf", profile="bits:4")
    assert not (tmp_path / "packed").exists()


HOSTILE: list[Any] = [{}, [], "x", 3, True, [[]], {"a": []}, 1e300]


@pytest.mark.parametrize(
    "key", ["quant_method", "quant_algo", "fmt", "weight_block_size", "config_groups", "quantization"]
)
@pytest.mark.parametrize("value", HOSTILE, ids=str)
def test_configs_may_say_anything_and_no_error_is_without_a_name(key: str, value: Any, tmp_path: Path) -> None:
    weights: dict[str, Any] = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": value}
    group = {"format": "float-quantized", "config_groups": {"a": {"weights": weights}}}
    for method in ("fp8", "FP8", "modelopt", "compressed-tensors", value):
        config = {"quantization_config": {"quant_method": method} | group | {key: value}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        file(tmp_path / "model.safetensors", PLAIN)
        with contextlib.suppress(HeaderError), open_source(tmp_path) as source:
            assert set(source.infos()) == set(PLAIN)


def test_names_of_many_parts_cost_no_time(tmp_path: Path) -> None:
    deep = ".".join(["a"] * 30_000)
    tensors = {f"{deep}.{number}.weight": np.zeros(1, np.float32) for number in range(40)} | GIVEN["GPTQ"][1]
    started = time.process_time()
    assert set(quantized_tensors(ArraySource(tensors).infos())) == set(GIVEN["GPTQ"][1])
    assert time.process_time() - started < 2
