"""Small models in folders, as transformers writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def _write_tokenizer(folder: Path) -> None:
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    vocabulary = {word: i for i, word in enumerate(["<end>", "<unk>", "<pad>", *(f"w{i}" for i in range(500))])}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, eos_token="<end>", unk_token="<unk>", pad_token="<pad>"
    )
    wrapped.save_pretrained(folder)


def _write_llama(folder: Path, seed: int = 0, **changes: Any) -> Path:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    settings = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 2,
    }
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**(settings | changes)))
    model.to(torch.bfloat16).save_pretrained(folder)
    _write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def write_tokenizer() -> Callable[..., None]:
    """Write a tokenizer of the words w0 to w499 into a folder."""
    return _write_tokenizer


@pytest.fixture(scope="session")
def write_llama() -> Callable[..., Path]:
    """Write a small Llama with its tokenizer into a folder; keywords change its config."""
    return _write_llama
