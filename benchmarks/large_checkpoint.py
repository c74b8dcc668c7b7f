"""Write a checkpoint of any size that looks like a language model's: sharded, bfloat16, with index and config.

    python benchmarks/large_checkpoint.py FOLDER GIB [--seed N] [--hidden N]

A llama's names and proportions, as many layers as fill GIB. A matrix is low-rank structure whose singular values fall
by a power law, plus noise, its columns scaled by a heavy tail. Blocks of Gaussian rows are drawn once; every block of
every tensor takes them in another order, turned by other columns, with a small product and gains of its own, so
that no two rows are equal. Rows are streamed: memory does not grow with GIB.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

RANK = 32
POOL_ROWS = 1024
SHARD_NBYTES = 2 << 30
BLOCK_ROWS = 1024


class Weights:
    """Rows of any tensor, from a few blocks drawn once."""

    def __init__(self, n_cols: int, seed: int) -> None:
        rng = np.random.default_rng([seed, n_cols])
        self.noise = rng.standard_normal((POOL_ROWS, n_cols), np.float32)
        self.directions = rng.standard_normal((RANK, n_cols), np.float32)

    def blocks(self, name: str, n_rows: int, seed: int) -> Iterator[NDArray[np.generic]]:
        """Yield bfloat16 rows of the tensor `name`."""
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        n_cols = self.noise.shape[1]
        columns = np.exp(0.25 * rng.standard_t(5, n_cols)).clip(0.2, 8).astype(np.float32)
        spectrum = 0.6 * np.arange(1, RANK + 1, dtype=np.float32) ** -0.8
        directions = self.directions * spectrum[:, None] * columns
        for start in range(0, n_rows, BLOCK_ROWS):
            count = min(BLOCK_ROWS, n_rows - start)
            rows = rng.standard_normal((count, RANK), np.float32) @ directions
            # The pool's rows in another order and turned by another number of columns: never the same row twice.
            picked = np.roll(self.noise[rng.permutation(POOL_ROWS)[:count]], int(rng.integers(n_cols)), axis=1)
            rows += picked * columns
            gains = np.exp(0.2 * rng.standard_normal((count, 1), np.float32))
            yield (rows * gains * np.float32(0.02)).astype(ml_dtypes.bfloat16)


def tensors(gib: float, hidden: int) -> tuple[dict[str, tuple[int, ...]], int]:
    """Return names and shapes that take about `gib`, and the number of layers."""
    inner, key, vocabulary = hidden * 11 // 4, hidden // 4, 16 * hidden
    layer = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (key, hidden),
        "self_attn.v_proj": (key, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    own = 2 * sum(rows * cols for rows, cols in layer.values())
    n_layers = max(1, round((gib * 2**30 - 2 * 2 * vocabulary * hidden) / own))
    for number in range(n_layers):
        prefix = f"model.layers.{number}"
        shapes |= {f"{prefix}.{name}.weight": shape for name, shape in layer.items()}
        shapes |= {f"{prefix}.{name}.weight": (hidden,) for name in ("input_layernorm", "post_attention_layernorm")}
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}, n_layers


def shards(shapes: dict[str, tuple[int, ...]]) -> list[list[str]]:
    """Return the names of each shard."""
    found: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        nbytes = 2 * int(np.prod(shape))
        if size and size + nbytes > SHARD_NBYTES:
            found.append([])
            size = 0
        found[-1].append(name)
        size += nbytes
    return found


def write(folder: Path, gib: float, seed: int = 0, hidden: int = 1024) -> int:
    """Write a checkpoint and return its tensors' bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes, n_layers = tensors(gib, hidden)
    pools = {n_cols: Weights(n_cols, seed) for n_cols in {shape[-1] for shape in shapes.values() if len(shape) == 2}}
    parts, weight_map, total = shards(shapes), {}, 0
    for number, names in enumerate(parts, 1):
        shard = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        header, end = {"__metadata__": {"format": "pt"}}, 0
        for name in names:
            begin, end = end, end + 2 * int(np.prod(shapes[name]))
            header[name] = {"dtype": "BF16", "shape": list(shapes[name]), "data_offsets": [begin, end]}
            weight_map[name] = shard
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / shard).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                if len(shapes[name]) == 1:
                    file.write(np.ones(shapes[name], ml_dtypes.bfloat16).tobytes())
                    continue
                for block in pools[shapes[name][1]].blocks(name, shapes[name][0], seed):
                    file.write(block.tobytes())
        total += end
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": hidden * 11 // 4,
        "num_hidden_layers": n_layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "vocab_size": 16 * hidden,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return total


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Write a checkpoint that looks like a language model's.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("gib", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hidden", type=int, default=1024)
    args = parser.parse_args()
    total = write(args.folder, args.gib, args.seed, args.hidden)
    print(f"{args.folder}: {total / 2**30:.2f} GiB of tensors")


if __name__ == "__main__":
    main()
