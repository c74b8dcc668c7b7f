"""A language model packed, dense and in llama.cpp: what a token and a prompt take, memory, and what the model says.

    pip install -e '.[bench,transformers,gguf]'
    python benchmarks/language_model.py FOLDER [--model SNAPSHOT] [--pack PACK] [--threads 1 2] [--tiers avx2 avx512]
        [--measure tokens prompt answers] [--tokens 16] [--prompt 256] [--rounds 5]

Without --model it is a llama of 1.03 billion random weights. FOLDER takes it in three forms, 0.9 GB, which stay for the
next run. One layer and the embedding, to which the head is tied, are drawn, encoded at bits:4, and quantized to Q4_K by
llama.cpp. The model has 22 copies of that layer, each in memory of its own, so a token reads as many bytes as it would
of 22 layers. What such a model says has no meaning. --model is the folder of a language model and --pack what hhtld
made of it, by default at bits:4; llama.cpp has no Q4_K for rows that are no multiple of 256, and takes no part.

`tokens` generates greedily, packed and dense in bfloat16 and in float32, and in llama.cpp. `prompt` reads so many
tokens at once in float32. Their forms take turns in one process for each tier and number of threads, and the median of
the rounds counts: of a time, and of what the times of a round are beside that of the packed form. Processor time is
that of all threads; if other work keeps the processors busy, it tells more than the clock. Memory is what the process
holds more after it has loaded a form and generated. On the tier avx2, hhtld and torch are told so by their environment
(HHTLD_ISA, ATEN_CPU_CAPABILITY and oneDNN's); what the package holds of llama.cpp is AVX2's on any tier.

`answers`, of a model of --model, compares what is packed with the same weights decoded to float32: the divergence of
the next token's probabilities after up to 32 tokens of each prompt of gate-parity, so that all inputs are taken as
int8, and how many of 64 generated tokens are the same with `exact=True`.
"""

from __future__ import annotations

import argparse
import copy
import gc
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


# --- the random model in three forms ------------------------------------------------------------


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


# --- what takes part ----------------------------------------------------------------------------

FORMS = {
    "packed": "hhtld",
    "packed float32": "hhtld, float32",
    "bfloat16": "dense bfloat16",
    "float32": "dense float32",
    "llama.cpp": "llama.cpp Q4_K",
}
TOKEN_FORMS = ("packed", "bfloat16", "float32", "llama.cpp")
PROMPT_FORMS = ("packed float32", "float32")


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


def loaded(form: str, args: argparse.Namespace) -> Any:
    """Return a form that transformers runs."""
    import torch
    import transformers

    from hhtld.integrations.transformers import from_pretrained

    if form == "packed":
        model = from_pretrained(args.pack)
    elif form == "packed float32":
        model = from_pretrained(args.pack, dtype=torch.float32)
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, form))
    return deepened(model) if args.is_random else model


def torch_steps(model: Any) -> Callable[[int], None]:
    """Return what generates so many tokens with transformers."""
    import torch

    ids = torch.tensor([PROMPT])

    def generate(n_tokens: int) -> None:
        with torch.inference_mode():
            out = model.generate(ids, max_new_tokens=n_tokens, min_new_tokens=n_tokens, do_sample=False)
        assert out.shape[1] == len(PROMPT) + n_tokens

    return generate


def llama_steps(gguf: Path, n_threads: int) -> Callable[[int], None]:
    """Return what generates so many tokens with llama.cpp."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(gguf)
    parameters.n_ctx, parameters.warmup, parameters.verbosity, parameters.n_parallel = 512, False, -1, 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = n_threads
    server = xllamacpp.Server(parameters)
    asked = {"prompt": PROMPT, "temperature": 0, "ignore_eos": True, "cache_prompt": False}

    def generate(n_tokens: int) -> None:
        answer = server.handle_completions(asked | {"max_tokens": n_tokens})
        assert answer["usage"]["completion_tokens"] == n_tokens, answer["usage"]

    return generate


# --- measurements -------------------------------------------------------------------------------


def resident_nbytes() -> int:
    """Return the bytes of memory that this process holds."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def seconds(call: Callable[[], object]) -> np.ndarray:
    """Return what a call takes, of the clock and of the processor."""
    begin = np.array([time.perf_counter(), time.process_time()])
    call()
    return np.array([time.perf_counter(), time.process_time()]) - begin


def measured_tokens(args: argparse.Namespace) -> dict[str, Any]:
    """Return seconds a token in every round, (n_rounds, 2), and bytes of memory by form.

    The time of a run of two tokens, which is that of the prompt for the most part, is taken off.
    """
    generate, memory = {}, {}
    for form in TOKEN_FORMS:
        if form == "llama.cpp" and not args.gguf:
            continue
        before = resident_nbytes()
        if form == "llama.cpp":
            generate[form] = llama_steps(args.gguf, args.threads[0])
        else:
            generate[form] = torch_steps(loaded(form, args))
        generate[form](2)  # whatever is made on first use
        memory[form] = resident_nbytes() - before
    times: dict[str, list[Any]] = {form: [] for form in generate}
    for _ in range(args.rounds):
        for form, steps in generate.items():
            few, many = (seconds(lambda n=n, steps=steps: steps(n)) for n in (2, 2 + args.tokens))
            times[form].append(((many - few) / args.tokens).tolist())
    return {"times": times, "memory": memory}


def measured_prompt(args: argparse.Namespace) -> dict[str, Any]:
    """Return seconds of a prompt in every round, (n_rounds, 2), and bytes of memory by form."""
    import torch

    ids = torch.randint(3, 10_000, (1, args.prompt), generator=torch.Generator().manual_seed(0))
    read, memory = {}, {}

    def reader(model: Any) -> Callable[[], object]:
        return lambda: model(input_ids=ids, use_cache=True, logits_to_keep=1)

    times: dict[str, list[Any]] = {form: [] for form in PROMPT_FORMS}
    with torch.inference_mode():
        for form in PROMPT_FORMS:
            before = resident_nbytes()
            read[form] = reader(loaded(form, args))
            read[form]()
            memory[form] = resident_nbytes() - before
        for _ in range(args.rounds):
            for form, call in read.items():
                times[form].append(seconds(call).tolist())
    return {"times": times, "memory": memory}


def measured_answers(args: argparse.Namespace) -> dict[str, Any]:
    """Return how far packed weights are from the same weights decoded: of one plane of int8, and of two."""
    import torch

    from hhtld.evaluation.parity.metrics import PositionScores, compare_positions
    from hhtld.evaluation.parity.prompts import chosen_prompts
    from hhtld.integrations.torch.ops import SCORED_ROWS
    from hhtld.integrations.transformers import from_pretrained, load_tokenizer

    tokenizer = load_tokenizer(args.pack)
    prompts = [
        tokenizer(prompt.text, truncation=True, max_length=SCORED_ROWS)["input_ids"]
        for prompt in chosen_prompts("builtin")[1]
    ]

    def said(**options: Any) -> tuple[list[np.ndarray], list[int]]:
        model = from_pretrained(args.pack, dtype=torch.float32, **options)
        with torch.inference_mode():
            logits = [model(input_ids=torch.tensor([ids])).logits[0, :-1].numpy() for ids in prompts]
            out = model.generate(torch.tensor([prompts[0]]), max_new_tokens=64, min_new_tokens=64, do_sample=False)
        return logits, out[0, len(prompts[0]) :].tolist()

    found = {}
    decoded, text = said(packed=False)
    for name, exact in (("one plane", False), ("exact=True", True)):
        logits, generated = said(exact=exact)
        compared = (compare_positions(*pair, ids[1:]) for *pair, ids in zip(decoded, logits, prompts, strict=True))
        scores = PositionScores.total(list(compared))
        found[name] = {
            "kl": scores.kl / scores.n_positions,
            "top1": scores.top1 / scores.n_positions,
            "n_positions": scores.n_positions,
            "same": next((at for at, pair in enumerate(zip(text, generated, strict=True)) if pair[0] != pair[1]), 64),
        }
    return found


# --- all of them --------------------------------------------------------------------------------

MEASURE = {"tokens": measured_tokens, "prompt": measured_prompt, "answers": measured_answers}


def main() -> None:
    """Measure, and print a table for every tier and number of threads."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, help="folder of a language model, instead of the random one")
    parser.add_argument("--pack", type=Path, help="a pack of --model")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tiers", nargs="+", choices=ENVIRONMENT, default=["avx2"])
    parser.add_argument("--measure", nargs="+", choices=MEASURE, default=list(MEASURE))
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=256, help="tokens of the prompt that is read at once")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.is_random = args.model is None
    args.gguf = None
    if args.is_random:
        args.model, args.pack = args.folder / "dense", args.folder / "packed.hhtld"
        args.gguf = args.folder / "q4_k.gguf"
    elif args.pack is None:
        args.pack = args.folder / f"{args.model.name}.hhtld"
    if args.child:
        child(args)
        return
    if args.is_random:
        write_models(args.folder)
    elif not args.pack.exists():
        import hhtld

        args.folder.mkdir(parents=True, exist_ok=True)
        hhtld.convert(args.model, args.pack, profile="bits:4")
    print(f"{processor()}, {os.cpu_count()} processors; {args.rounds} rounds")
    for tier in args.tiers:
        for n_threads in args.threads:
            threads = f"{n_threads} thread{'s' if n_threads > 1 else ''}"
            for what in args.measure:
                if what == "answers" and (args.is_random or n_threads != args.threads[0]):
                    continue
                told, found = one_process(what, args, tier, n_threads)
                title = {"tokens": "a token", "prompt": f"{args.prompt} tokens of prompt", "answers": "answers"}[what]
                print(f"\n{title}, {told}, {threads}\n")
                (print_answers if what == "answers" else print_times)(found)


def child(args: argparse.Namespace) -> None:
    """Measure one thing in this process, and print it as JSON."""
    import torch
    import transformers

    import hhtld.integrations.transformers  # noqa: F401  (loaded before memory is looked at, so that it is not counted)
    from hhtld._kernels import _isa

    torch.set_num_threads(args.threads[0])
    tiny = transformers.LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    torch_steps(transformers.LlamaForCausalLM(tiny))(2)  # the same, of what is loaded on first use
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    told = f"hhtld on {_isa.tier()}, torch on {torch.backends.cpu.get_cpu_capability()}"
    print(json.dumps([told, MEASURE[args.measure[0]](args)]))


def one_process(what: str, args: argparse.Namespace, tier: str, n_threads: int) -> tuple[str, dict[str, Any]]:
    """Return the tiers that took part, and one measurement, made in a process of its own."""
    options = {"--measure": what, "--tokens": args.tokens, "--prompt": args.prompt, "--rounds": args.rounds}
    options |= {"--threads": n_threads} | ({} if args.is_random else {"--model": args.model, "--pack": args.pack})
    command = [sys.executable, __file__, args.folder, "--child", *(part for pair in options.items() for part in pair)]
    environment = os.environ | ENVIRONMENT[tier] | {"OMP_NUM_THREADS": str(n_threads)}
    done = subprocess.run(
        [str(part) for part in command], env=environment, stdout=subprocess.PIPE, check=True, text=True
    )
    told, found = json.loads(done.stdout.splitlines()[-1])
    return told, found


def print_times(found: dict[str, Any]) -> None:
    """Print a row for every form, and how many times as long as the packed form it takes."""
    times = {form: np.array(rounds) for form, rounds in found["times"].items()}
    packed = next(iter(times.values()))
    print("| | processor time | beside packed | by the clock | beside packed | memory |\n|---|---|---|---|---|---|")
    for form, rounds in times.items():
        wall, spent = np.median(rounds, 0) * 1e3
        wall_ratio, spent_ratio = np.median(rounds / packed, 0)
        print(
            f"| {FORMS[form]} | {spent:.1f} ms | {spent_ratio:.2f} | {wall:.1f} ms | {wall_ratio:.2f} "
            f"| {found['memory'][form] / 1e6:,.0f} MB |",
            flush=True,
        )


def print_answers(found: dict[str, Any]) -> None:
    """Print how far each number of planes is from the decoded weights."""
    print("| inputs | positions | KL, nats | next tokens that agree | of 64 generated, the same up to |")
    print("|---|---|---|---|---|")
    for name, facts in found.items():
        print(f"| {name} | {facts['n_positions']} | {facts['kl']:.1e} | {facts['top1']:.1%} | {facts['same']} |")


if __name__ == "__main__":
    main()
