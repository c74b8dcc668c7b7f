"""Final hidden states of a causal language model, as queries for its lm_head.

    python benchmarks/hidden_states.py MODEL OUT.npy

MODEL is a folder that transformers loads (with its tokenizer); the text is the help that Python ships
(`pydoc_data.topics`), so that anyone gets the same. Needs torch and transformers.
"""

from __future__ import annotations

import argparse
import random
from pydoc_data.topics import topics

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--count", type=int, default=1024)
    parser.add_argument("--length", type=int, default=128, help="tokens read at a time")
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    texts = [topics[name] for name in sorted(topics)]
    random.Random(0).shuffle(texts)
    tokens = tokenizer("\n".join(texts), return_tensors="pt").input_ids[0]
    per_chunk = args.length // 2  # the later half of a chunk: positions that have read something
    found = []
    with torch.inference_mode():
        for start in range(0, args.count // per_chunk * args.length + args.length, args.length):
            chunk = tokens[start : start + args.length].unsqueeze(0)
            found.append(model.model(chunk).last_hidden_state[0, -per_chunk:])
    states = torch.cat(found)[: args.count].numpy()
    np.save(args.out, states)
    print(f"{args.out}: {states.shape[0]} states of {states.shape[1]} columns")


if __name__ == "__main__":
    main()
