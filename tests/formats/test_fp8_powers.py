"""FP8 tables with scales that are powers of two, under the names that DeepSeek publishes them with since V4."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import hhtld
from hhtld.errors import HeaderError

N_ROWS, N_COLS = 160, 256
NAME, SCALE = "layers.1.engram.embed.weight", "layers.1.engram.embed.scale"


def write(path: Path, weight: np.ndarray, scale: np.ndarray, scale_type: str = "F8_E8M0") -> Path:
    header, offset = {}, 0
    for name, kind, array in ((NAME, "F8_E4M3", weight), (SCALE, scale_type, scale)):
        header[name] = {
            "dtype": kind,
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + weight.tobytes() + scale.tobytes())
    return path


@pytest.mark.parametrize(("block", "config"), [((128, 128), None), ((32, 32), None), ((1, 32), None), ((32, 32), 32)])
def test_a_table_is_read_as_the_weights_it_means(tmp_path: Path, block: tuple[int, int], config: int | None) -> None:
    draw = np.random.default_rng(0)
    weight = draw.standard_normal((N_ROWS, N_COLS)).astype(ml_dtypes.float8_e4m3fn)
    down, across = -(-N_ROWS // block[0]), N_COLS // block[1]
    powers = draw.integers(115, 130, (down, across)).astype(np.uint8)
    write(tmp_path / "model.safetensors", weight, powers)
    if config is not None:
        told = {"quant_method": "fp8", "fmt": "e4m3", "scale_fmt": "ue8m0", "weight_block_size": [config, config]}
        (tmp_path / "config.json").write_text(json.dumps({"quantization_config": told}))
    scales = np.exp2(powers.astype(np.float32) - 127).repeat(block[0], 0)[:N_ROWS].repeat(block[1], 1)
    expected = weight.astype(np.float32) * scales
    hhtld.convert(tmp_path, tmp_path / "m.hhtld", rules=[("*", "keep")], jobs=1)
    with hhtld.open(tmp_path / "m.hhtld") as pack:
        assert NAME in pack
        assert SCALE not in pack
        assert pack.info(NAME).info.dtype.name == "BF16"
        np.testing.assert_array_equal(pack.get_rows(NAME, np.arange(N_ROWS)[::-1]), expected[::-1])


def test_scales_of_another_shape_are_refused_and_other_types_are_no_scales(tmp_path: Path) -> None:
    weight = np.ones((N_ROWS, N_COLS), ml_dtypes.float8_e4m3fn)
    path = write(tmp_path / "m.safetensors", weight, np.full((3, 7), 127, np.uint8))
    with pytest.raises(HeaderError, match=r"its scale 'layers.1.engram.embed.scale' has shape \[3, 7\], expected"):
        hhtld.convert(path, tmp_path / "m.hhtld", rules=[("*", "keep")], jobs=1)
    path = write(tmp_path / "n.safetensors", weight, np.ones(N_COLS, np.float32), "F32")  # a gain, say
    hhtld.convert(path, tmp_path / "n.hhtld", rules=[("*", "keep")], jobs=1)
    with hhtld.open(tmp_path / "n.hhtld") as pack:
        assert pack.keys() == [SCALE, NAME]
