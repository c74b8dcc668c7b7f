"""Tokens a second, processor time and memory of a llama of 1.03 billion weights: packed, dense, and in llama.cpp.

    pip install -e '.[bench,transformers,gguf]'
    python benchmarks/language_model.py FOLDER [--threads 1 2] [--tiers avx2 avx512] [--tokens 16] [--rounds 3]

FOLDER takes the model in three forms, 0.9 GB, which stay for the next run. Its weights are random: one layer and the
embedding, to which the head is tied, are drawn, encoded at bits:4, and quantized to Q4_K by llama.cpp. The model has
22 copies of that layer, each in memory of its own, so a token reads as many bytes as it would of 22 layers. What such
a model says has no meaning; all three take the same number of steps after the same prompt.

Every measurement is a process of its own, in which the best of all rounds counts. Processor time is that of all
threads. Memory is what the process holds after it has generated, less what it held before it loaded the model. On the
tier avx2, hhtld and torch are told so by their environment; what the package holds of llama.cpp is AVX2's on any tier.
If other work keeps the processors busy, processor time tells more than tokens a second.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from lookup_grade import processor

PROMPT = [1, 100, 101, 102]
SHAPE = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "tie_word_embeddings": True,
}
N_LAYERS = 22
ENVIRONMENT = {
    "avx2": {
        "HHTLD_ISA": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "DNNL_MAX_CPU_ISA": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
    "avx512": {},
}
# In the order of GGUF's names and those of transformers.
NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


# --- the model in three forms -------------------------------------------------------------------


def write_models(folder: Path) -> None:
    """Write what is missing of one layer in bfloat16, its pack, and all layers in Q4_K."""
    import torch
    import transformers

    import hhtld

    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "dense" / "model.safetensors").exists():
        torch.manual_seed(0)
        config = transformers.LlamaConfig(num_hidden_layers=1, **SHAPE)
        transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "dense")
    if not (folder / "packed.hhtld").exists():
        hhtld.convert(folder / "dense", folder / "packed.hhtld", profile="bits:4")
    if not (folder / "q4_k.gguf").exists():
        write_gguf(folder / "dense", folder / "q4_k.gguf")


def write_gguf(folder: Path, path: Path) -> None:
    """Write the model of all layers with every matrix in Q4_K."""
    import gguf
    from ggml import Ggml
    from safetensors.torch import load_file

    weights, ggml = load_file(folder / "model.safetensors"), Ggml()
    made = gguf.GGUFWriter(path, "llama")
    made.add_context_length(2048)
    made.add_embedding_length(SHAPE["hidden_size"])
    made.add_block_count(N_LAYERS)
    made.add_feed_forward_length(SHAPE["intermediate_size"])
    made.add_head_count(SHAPE["num_attention_heads"])
    made.add_head_count_kv(SHAPE["num_key_value_heads"])
    made.add_rope_dimension_count(SHAPE["hidden_size"] // SHAPE["num_attention_heads"])
    made.add_layer_norm_rms_eps(1e-6)
    made.add_tokenizer_model("llama")
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256))]
    tokens += [f"t{n}" for n in range(SHAPE["vocab_size"] - len(tokens))]
    made.add_token_list(tokens)
    made.add_token_scores([0.0] * len(tokens))
    made.add_token_types([2, 3, 3, *[6] * 256, *[1] * (len(tokens) - 259)])
    made.add_bos_token_id(1)
    made.add_eos_token_id(2)

    def add(names: list[str], of: str) -> None:
        values = weights[of].float().numpy()
        kind = None
        if values.ndim == 2:
            values, kind = ggml.encode("Q4_K", values), gguf.GGMLQuantizationType.Q4_K
        for name in names:
            made.add_tensor(name, values, raw_dtype=kind)

    add(["token_embd.weight"], "model.embed_tokens.weight")
    add(["output_norm.weight"], "model.norm.weight")
    for name, of in NAMES.items():
        add([f"blk.{block}.{name}.weight" for block in range(N_LAYERS)], f"model.layers.0.{of}.weight")
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()


# --- one measurement ----------------------------------------------------------------------------


def resident_nbytes() -> int:
    """Return the bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def deepened(model: Any) -> Any:
    """Give a model of one layer copies of it, which share no memory."""
    layers = model.model.layers
    for number in range(1, N_LAYERS):
        layer = copy.deepcopy(layers[0])
        layer.self_attn.layer_idx = number
        layers.append(layer)
    model.config.num_hidden_layers = N_LAYERS
    model.config.layer_types = None
    return model


def torch_steps(what: str, folder: Path, n_threads: int) -> Callable[[int], None]:
    """Return what generates so many tokens with transformers."""
    import torch
    import transformers

    from hhtld.integrations.transformers import from_pretrained

    torch.set_num_threads(n_threads)
    if what == "hhtld":
        model = from_pretrained(folder / "packed.hhtld")
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder / "dense", dtype=torch.bfloat16)
    model, ids = deepened(model), torch.tensor([PROMPT])

    def generate(n_tokens: int) -> None:
        with torch.inference_mode():
            out = model.generate(ids, max_new_tokens=n_tokens, min_new_tokens=n_tokens, do_sample=False)
        assert out.shape[1] == len(PROMPT) + n_tokens

    return generate


def llama_steps(folder: Path, n_threads: int) -> Callable[[int], None]:
    """Return what generates so many tokens with llama.cpp."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(folder / "q4_k.gguf")
    parameters.n_ctx, parameters.warmup, parameters.verbosity, parameters.n_parallel = 512, False, -1, 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = n_threads
    server = xllamacpp.Server(parameters)
    asked = {"prompt": PROMPT, "temperature": 0, "ignore_eos": True, "cache_prompt": False}

    def generate(n_tokens: int) -> None:
        answer = server.handle_completions(asked | {"max_tokens": n_tokens})
        assert answer["usage"]["completion_tokens"] == n_tokens, answer["usage"]

    return generate


def measured(what: str, folder: Path, n_threads: int, n_tokens: int, n_rounds: int) -> dict[str, float]:
    """Return seconds a token, of the clock and of the processor, and bytes of memory.

    The time of a run of two tokens, which is that of the prompt for the most part, is taken off.
    """
    import torch  # noqa: F401  (loaded before memory is looked at, so that its own is not counted)
    import transformers  # noqa: F401  (the same)

    import hhtld.integrations.transformers  # noqa: F401  (the same)

    before = resident_nbytes()
    generate = llama_steps(folder, n_threads) if what == "llama.cpp" else torch_steps(what, folder, n_threads)
    generate(2)  # whatever is made on first use
    best = np.full((2, 2), np.inf)
    for _ in range(n_rounds):
        for number, count in enumerate((2, 2 + n_tokens)):
            begin = np.array([time.perf_counter(), time.process_time()])
            generate(count)
            best[number] = np.minimum(best[number], [time.perf_counter(), time.process_time()] - begin)
    wall, processor_time = (best[1] - best[0]) / n_tokens
    return {"wall": wall, "processor": processor_time, "memory": resident_nbytes() - before}


# --- all of them --------------------------------------------------------------------------------

WHAT = {"hhtld": "hhtld, bits:4", "dense": "dense bfloat16", "llama.cpp": "llama.cpp Q4_K"}


def main() -> None:
    """Measure, and print a table for every tier and number of threads."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tiers", nargs="+", choices=ENVIRONMENT, default=["avx2"])
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", choices=WHAT, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measured(args.measure, args.folder, args.threads[0], args.tokens, args.rounds)))
        return
    write_models(args.folder)
    print(f"{processor()}; best of {args.rounds} runs of {args.tokens} tokens; memory is without that of the program")
    for tier in args.tiers:
        for n_threads in args.threads:
            measurements = {what: one_process(what, args, tier, n_threads) for what in WHAT}
            print(f"\n{tier}, {n_threads} thread{'s' if n_threads > 1 else ''}")
            print("| | tokens/s | processor time a token | beside hhtld's | memory |\n|---|---|---|---|---|")
            for what, facts in measurements.items():
                ratio = facts["processor"] / measurements["hhtld"]["processor"]
                print(
                    f"| {WHAT[what]} | {1 / facts['wall']:.2f} | {facts['processor'] * 1e3:.0f} ms | {ratio:.2f} "
                    f"| {facts['memory'] / 1e6:,.0f} MB |",
                    flush=True,
                )


def one_process(what: str, args: argparse.Namespace, tier: str, n_threads: int) -> dict[str, float]:
    """Return one measurement, made in a process of its own."""
    options = {"--measure": what, "--tokens": args.tokens, "--rounds": args.rounds, "--threads": n_threads}
    command = [sys.executable, __file__, args.folder, *(part for option in options.items() for part in option)]
    environment = os.environ | ENVIRONMENT[tier] | {"OMP_NUM_THREADS": str(n_threads)}
    done = subprocess.run(
        [str(part) for part in command], env=environment, stdout=subprocess.PIPE, check=True, text=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
