"""Make the golden packs: `python tests/golden/make.py`.

Inputs are formulas, exact on every machine; packs of this format version must decode to the same bits for
ever. Files that exist are never written over: a changed byte is a format change, not a refresh. A new kind
of pack is added to `goldens` and made beside them.
"""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

import hhtld
from hhtld.sources.contract import ArraySource

FOLDER = Path(__file__).parent / "packs"  # not "hhtld": beside a script that would be a package


def hashed(n_rows: int, n_cols: int, salt: int) -> NDArray[np.int64]:
    """Integers in 0..65536 that depend on row, column and salt."""
    i, j = np.arange(n_rows, dtype=np.int64)[:, None], np.arange(n_cols, dtype=np.int64)
    return ((i + 7 * salt) * 2654435761 + (j + salt) * 40503 + i * j * 9176) % 65537


def matrix(n_rows: int, n_cols: int, salt: int, distinct: int | None = None) -> NDArray[np.float32]:
    """Rank 6 and some noise, in multiples of 2^-18, so that every sum is exact in float32.

    With `distinct`, rows repeat with that period.
    """
    rows = hashed(n_rows, 6, salt) % 129 - 64
    columns = hashed(6, n_cols, salt + 1) % 65 - 32
    low_rank = (rows * np.array([16, 11, 7, 5, 3, 2])) @ columns
    noise = hashed(n_rows, n_cols, salt + 2) // 64 - 512
    values = (low_rank + noise).astype(np.float32) / np.float32(1 << 18)
    return values if distinct is None else values[np.arange(n_rows) % distinct]


@dataclass(frozen=True)
class Golden:
    """What one pack is made of.

    Attributes
    ----------
    profile : str
    tensors : dict of str to array
    metadata : dict of str to str
    is_written : bool
        False if encoders of before made it, and those of today make something else of the inputs.
    """

    profile: str
    tensors: dict[str, NDArray[Any]]
    metadata: dict[str, str] = field(default_factory=dict)
    column_scales: dict[str, NDArray[Any]] = field(default_factory=dict)
    rates: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    is_written: bool = True

    def encode(self, executor: Executor | None = None) -> hhtld.HhtldPack:
        """Encode the inputs anew."""
        source = ArraySource(self.tensors, self.metadata, self.files)
        return hhtld.encode(source, self.profile, column_scales=self.column_scales, rates=self.rates, executor=executor)


def kept() -> dict[str, NDArray[Any]]:
    """Tensors too small to be encoded, of many types."""
    ramp = (np.arange(52, dtype=np.float32) - 26) / 16
    return {
        "kept.bf16": ramp.astype(ml_dtypes.bfloat16),
        "kept.bool": np.array([True, False, True]),
        "kept.empty": np.zeros((0, 4), np.float16),
        "kept.f16": ramp.reshape(4, 13).astype(np.float16),
        "kept.f32": ramp * np.float32(1.1),
        "kept.f64": ramp.astype(np.float64) / 3,
        "kept.f8": ramp.astype(ml_dtypes.float8_e4m3fn),
        "kept.i64": np.array([[-(2**63), -1], [0, 2**63 - 1]]),
        "kept.scalar": np.array(0.1, np.float32),
        "kept.u8": np.arange(7, dtype=np.uint8),
    }


def listed(name: str) -> str:
    """Return the name of the pack of the same inputs whose codebooks list their levels."""
    return {"v1_crossed_files": "v1_files"}.get(name, name.replace("crossed", "slot_t"))


def goldens() -> dict[str, Golden]:
    """Return every golden pack's inputs by file name."""
    up = {f"layers.{layer}.mlp.up_proj.weight": matrix(512, 52, layer) for layer in (0, 1)}
    embed = matrix(520, 98, 5).astype(ml_dtypes.bfloat16)
    tied = {"model.embed.weight": embed, "model.lm_head.weight": embed}
    leaf = {"talker.embed.weight": matrix(640, 84, 9, distinct=300).astype(np.float16)}
    down = {"layers.0.mlp.down_proj.weight": matrix(520, 50, 13), "layers.0.mlp.down_proj.bias": matrix(1, 50, 14)[0]}
    small = {
        "a.q_proj": matrix(40, 300, 17),
        "b.conv": matrix(24, 150, 18).reshape(24, 6, 5, 5),
        "c.w": matrix(60, 97, 19),
    }
    near = matrix(1100, 64, 21, distinct=16) * 8 + matrix(1100, 64, 22) / 4
    trellis = {
        "v1_crossed": Golden("bits:2.3125", small | kept()),
        "v1_crossed_gates": Golden("gates", {"x.down_proj": matrix(70, 333, 23).astype(ml_dtypes.bfloat16)}),
        "v1_crossed_scaled": Golden(
            "bits:3",
            {"s.up_proj": matrix(40, 130, 41), "t.up_proj": matrix(40, 130, 42)},
            column_scales={"s.up_proj": 1 + np.arange(130) % 7 / np.float32(4)},
        ),
        "v1_crossed_levels": Golden("bits:2+1.5", {"z.v_proj": matrix(50, 200, 31)}),
        "v2_crossed_leaf": Golden("gates", {"y.embed": near}),
        "v1_crossed_files": Golden(
            "bits:2.5",
            {"f.o_proj": matrix(30, 90, 51), "f.norm": matrix(1, 90, 52)[0]},
            {"format": "pt"},
            files={
                "config.json": b'{"model_type": "golden"}\n',
                "empty.txt": b"",
                "tokenizer.model": bytes(range(256)),
                "\u00e9.txt": b"name beyond ASCII",
            },
        ),
    }
    rings = {"v1_crossed_files": "v1_ring_files", "v1_crossed_scaled": "v1_ring_scaled"}
    return {
        "v1_lookup.hhtld": Golden("lookup", up | kept(), {"format": "pt", "text": 'quote " and \u00e9'}),
        "v1_f32.hhtld": Golden("f32", down),
        "v2_lookup_leaf.hhtld": Golden("lookup", tied),
        "v2_f32_leaf.hhtld": Golden("f32", leaf, {"format": "np"}),
        # Encoders of before listed the levels of a codebook; those packs are read as ever.
        **{f"{listed(name)}.hhtld": replace(golden, is_written=False) for name, golden in trellis.items()},
        # Encoders of before closed no rows to rings.
        **{f"{name}.hhtld": replace(golden, is_written=name not in rings) for name, golden in trellis.items()},
        **{f"{ring}.hhtld": trellis[name] for name, ring in rings.items()},
        "v1_ring.hhtld": Golden("bits:4", {"engram.weight": matrix(90, 160, 71).astype(ml_dtypes.bfloat16)}),
        "v1_rows.hhtld": Golden(
            "parity",
            {f"layers.{i}.k_proj": matrix(60, 150, 61 + i) for i in (0, 1)} | {"w.one": matrix(9, 40, 63)},
            rates={
                "layers.0.k_proj": 1 + np.arange(60) * 37 % 81 / 16,  # of all 81 rates, so that 16 are chosen
                "layers.1.k_proj": 2 + np.arange(60) % 3 / np.float32(3),
                "w.one": 2.5,
            },
        ),
        "v2_rows_leaf.hhtld": Golden(
            "parity", {"y.embed": near}, rates={"y.embed": np.where(np.arange(len(near)) % 7 == 0, 4.5, 2.25)}
        ),
    }


def facts(path: Path) -> dict[str, Any]:
    """Return what the manifest says of a file: its hash and those of its tensors, decoded."""
    tensors = {}
    with hhtld.open(path) as pack:
        for name in pack:
            decoded = pack.get_tensor(name)
            tensors[name] = {
                "dtype": str(decoded.dtype),
                "shape": list(decoded.shape),
                "sha256": hashlib.sha256(decoded.tobytes()).hexdigest(),
            }
        files = {name: hashlib.sha256(pack.read_file(name)).hexdigest() for name in pack.files()}
    if files:
        return {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "tensors": tensors, "files": files}
    return {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "tensors": tensors}


def make() -> Iterator[Path]:
    """Write the packs that do not exist yet and add them to the manifest."""
    manifest = FOLDER / "MANIFEST.json"
    found = json.loads(manifest.read_text()) if manifest.exists() else {}
    FOLDER.mkdir(exist_ok=True)
    for name, golden in goldens().items():
        path = FOLDER / name
        if name in found or path.exists():
            continue
        hhtld.save(golden.encode(), path)
        found[name] = facts(path)
        manifest.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
        yield path


if __name__ == "__main__":
    for path in make():
        print(f"{path}: {path.stat().st_size} bytes")
