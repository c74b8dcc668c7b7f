"""GGUF files with large tables, named and typed as models have them: read as the weights they mean, by the row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import hhtld

gguf = pytest.importorskip("gguf", reason="needs the package of the extra 'gguf'")

Type = gguf.GGMLQuantizationType
N_ROWS, N_COLS = 300, 160  # no multiple of 256, so no k-quant holds such rows


def stored(kind: Any, rng: np.random.Generator) -> NDArray[Any]:
    """Return rows of a type; of IQ4_NL blocks with scales of their own, because the package only reads them."""
    rows = rng.standard_normal((N_ROWS, N_COLS), np.float32)
    if kind == Type.BF16:
        return rows.astype(ml_dtypes.bfloat16).view(np.uint8)
    if kind != Type.IQ4_NL:
        return gguf.quants.quantize(rows, kind)
    scales = rng.uniform(0.01, 0.02, (N_ROWS, N_COLS // 32, 1)).astype("<f2").view(np.uint8)
    codes = rng.integers(0, 256, (N_ROWS, N_COLS // 32, 16), dtype=np.uint8)
    return np.concatenate([scales, codes], axis=2).reshape(N_ROWS, -1)


@pytest.mark.parametrize("name", ["per_layer_token_embd.weight", "blk.1.ngram_embd.weight", "blk.1.engram_embd.weight"])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "IQ4_NL", "BF16"])
def test_a_table_of_gguf_becomes_rows_that_keep_their_identity(name: str, kind: str, tmp_path: Path) -> None:
    path, rng = tmp_path / "model.gguf", np.random.default_rng(0)
    blocks = stored(Type[kind], rng)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor(name, blocks, raw_dtype=Type[kind])
    writer.add_tensor("blk.0.ffn_up.weight", rng.standard_normal((64, 96), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    hhtld.convert(path, tmp_path / "table.hhtld", only=[name], profile="bits:4")
    wanted = gguf.quants.dequantize(blocks, Type[kind])
    ids = [N_ROWS - 1, 0, 7, 7]
    with hhtld.open(tmp_path / "table.hhtld") as pack:
        assert list(pack) == [name]
        assert pack.info(name).info.shape == (N_ROWS, N_COLS)
        assert pack.nbytes(name) <= 82.5 * N_ROWS + 72
        (group,) = pack.table.groups
        assert group.key.regime == "index"
        rows = pack.get_rows(name, ids)
    cosines = (rows * wanted[ids]).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(wanted[ids], axis=1)
    assert cosines.min() > 0.996
