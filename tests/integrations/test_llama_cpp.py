"""What goes back to GGUF runs in llama.cpp: a tiny llama with a tokenizer, whose answers are those of the source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hhtld

gguf = pytest.importorskip("gguf", reason="needs the package of the extra 'gguf'")
llama_cpp = pytest.importorskip("xllamacpp", reason="needs the package of the extra 'integrations'")

N_EMBD, N_FF, N_HEADS, N_BLOCKS = 64, 128, 2, 2


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of random weights in F16, norms in F32, with a tokenizer of bytes."""
    path, rng = tmp_path_factory.mktemp("llama") / "tiny.gguf", np.random.default_rng(11)
    made = gguf.GGUFWriter(path, "llama")
    made.add_context_length(256)
    made.add_embedding_length(N_EMBD)
    made.add_block_count(N_BLOCKS)
    made.add_feed_forward_length(N_FF)
    made.add_head_count(N_HEADS)
    made.add_rope_dimension_count(N_EMBD // N_HEADS)
    made.add_layer_norm_rms_eps(1e-5)
    made.add_file_type(1)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256))]
    made.add_tokenizer_model("llama")
    made.add_token_list(tokens)
    made.add_token_scores([0.0] * len(tokens))
    made.add_token_types([2, 3, 3, *[6] * 256])
    made.add_bos_token_id(1)
    made.add_eos_token_id(2)

    def matrix(name: str, *shape: int) -> None:
        made.add_tensor(name, (rng.standard_normal(shape) / 16).astype(np.float16))

    matrix("token_embd.weight", len(tokens), N_EMBD)
    matrix("output.weight", len(tokens), N_EMBD)
    made.add_tensor("output_norm.weight", np.ones(N_EMBD, np.float32))
    for block in range(N_BLOCKS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"blk.{block}.{name}.weight", N_EMBD, N_EMBD)
        matrix(f"blk.{block}.ffn_gate.weight", N_FF, N_EMBD)
        matrix(f"blk.{block}.ffn_up.weight", N_FF, N_EMBD)
        matrix(f"blk.{block}.ffn_down.weight", N_EMBD, N_FF)
        for name in ("attn_norm", "ffn_norm"):
            made.add_tensor(f"blk.{block}.{name}.weight", np.ones(N_EMBD, np.float32))
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()
    return path


def said(path: Path) -> list[dict[str, float]]:
    """The likeliest tokens at each of some greedy steps, with their log probabilities."""
    parameters = llama_cpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx, parameters.warmup, parameters.verbosity = 128, False, -1
    parameters.cpuparams.n_threads = 1
    server = llama_cpp.Server(parameters)
    asked: dict[str, Any] = {"prompt": "abc", "max_tokens": 8, "temperature": 0, "seed": 1, "logprobs": 5}
    answer = server.handle_completions(asked)
    steps = answer["choices"][0]["logprobs"]["content"]
    return [{str(top["id"]): top["logprob"] for top in step["top_logprobs"]} for step in steps]


def distance(one: list[dict[str, float]], other: list[dict[str, float]]) -> float:
    """The largest difference of log probabilities at the first step, which no earlier choice decides."""
    shared = set(one[0]) & set(other[0])
    assert len(shared) >= 3
    return max(abs(one[0][token] - other[0][token]) for token in shared)


def test_what_was_kept_answers_as_the_source(tiny: Path, tmp_path: Path) -> None:
    hhtld.convert(tiny, tmp_path / "m.hhtld", rules=[("*", "keep")])
    hhtld.convert(tmp_path / "m.hhtld", tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == tiny.read_bytes()
    assert said(tiny) == said(tmp_path / "back.gguf") != []


@pytest.mark.parametrize(("type", "most"), [("source", 0.0), ("F32", 0.01), ("BF16", 0.02), ("Q8_0", 0.05)])
def test_every_type_runs_and_answers_as_the_decoded_weights(tiny: Path, tmp_path: Path, type: str, most: float) -> None:
    hhtld.convert(tiny, tmp_path / "m.hhtld", profile="bits:6", min_ratio=0)
    hhtld.convert(tmp_path / "m.hhtld", tmp_path / "decoded.gguf")
    hhtld.convert(tmp_path / "m.hhtld", tmp_path / "back.gguf", type=type)
    decoded, back = said(tmp_path / "decoded.gguf"), said(tmp_path / "back.gguf")
    assert distance(decoded, back) <= most
    assert distance(said(tiny), back) <= 0.2
