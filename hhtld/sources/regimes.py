"""Which regime a tensor is judged in, and why: "index" where each row is somebody, "argmax" where rows act together.

A row that is looked up by index (a token's, a position's, a codebook's) or scored against others (a vocabulary's head)
answers for itself: one bad row is one word that the model no longer knows. Rows of layers, convolutions and adapters
act together. What decides, in this order:

1. What was asked for by name, and what a pack of the same tensors has recorded.
2. What the graph does with a tensor, if there is a graph: a Gather looks rows up, a MatMul or Conv does not.
3. What is known of its name, by whole components: ``wte`` is a table, ``patch_embed.proj`` a convolution.
4. Its shape: as many rows as a vocabulary of the model, or so many that nothing else has them.

Of names that share one tensor's bytes, the one in the index regime decides. Roles (`hhtld.identity`) are another
matter: they are parts of names as the codec's specification lists them, and profiles "lookup" and "f32" go by them.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from hhtld.errors import shown
from hhtld.identity import REGIMES
from hhtld.matrix import TensorInfo
from hhtld.sources.contract import TensorSource
from hhtld.sources.name_patterns import some_of

__all__ = ["ModelFacts", "RegimeChoice", "choose_regimes", "model_facts", "regime_of"]


class RegimeChoice(NamedTuple):
    """A regime, and what decided for it, for people: ``name: wte``, ``graph: Gather``, ``vocabulary: 50257 rows``."""

    regime: str
    reason: str


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a whole model.

    Attributes
    ----------
    vocabularies : frozenset of int
        Sizes, as the config says and as tables of words have them.
    uses : mapping of name to frozenset of str
        Operators that take a tensor, if there is a graph.
    recorded : mapping of name to RegimeChoice
        What a pack of the same tensors says of them.
    """

    vocabularies: frozenset[int] = frozenset()
    uses: Mapping[str, frozenset[str]] = field(default_factory=dict)
    recorded: Mapping[str, RegimeChoice] = field(default_factory=dict)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_HUGE_ROWS = 16384  # wider than layers are, save those whose names say what they are
_MOST_TAPS = 32  # of a convolution along one axis
_CONFIG = "config.json"

# What follows a module's name: its parameter, or a wrapper's.
_PARAMETERS = _names(
    "weight weights bias kernel weight_v weight_g default base_layer modules_to_save original_module parametrizations "
    "original0 original1"
)
_ADAPTERS = ("lora_", "loha_", "lokr_", "hada_", "oft_", "boft_", "vera_", "ia3_", "adalora_", "dora_")
_HEADS = {
    "embed_out",  # GPT-NeoX
    "lm_loss",  # XLNet
    "vocab_projector",  # DistilBERT
    "shared_head_head",  # heads of layers that predict further tokens, in GGUF
    "unembed",
}
_HEAD_PATHS = (
    ("predictions", "decoder"),  # BERT and its kin
    ("decoder", "output_projection"),  # fairseq
    ("shared_head", "head"),  # DeepSeek's and GLM's layers that predict further tokens
    ("transformer", "output_layer"),  # ChatGLM
)
_OF_A_HEAD = {"decoder", "linear", "proj", "out_proj", "output"}  # what inside an lm_head has its rows
_TABLES = {
    "shared",  # T5, BART
    "wte",
    "wpe",
    "pe",
    "pe_k",
    "pe_v",  # SpeechT5's relative positions
    "attn_rel_b",  # T5 in GGUF
    "rel_pos_h",
    "rel_pos_w",  # SAM, MViT
    "emb_rel_k",
    "emb_rel_v",  # VITS
    "token_types",
    "codevectors",  # wav2vec 2.0
    "label_embs_concat",  # HuBERT of fairseq
    "vectors",
    "latents",
    "lut",
    "input_embeds_layer",
    "input_embeds_layers",
    "position_embeds_layer",  # Bark
    "trainable_tokens_delta",  # PEFT
    "embed_tokens_per_layer",  # Gemma 3n
    "bias_values",  # Phi-4's relative positions
    "query_feat",
    "queries_features",  # RF-DETR, Mask2Former
}
# Called embeddings, and yet a product of their input: layers, or a convolution over patches.
_LAYERS = {
    "vision_embed_tokens",  # Fuyu
    "speaker_embeds_layer",  # SpeechT5
    "embedding_hidden_mapping_in",  # ALBERT
    "class_embed",
    "bbox_embed",  # DETR
    "emb_phone",  # RVC
    "embed_return",
    "embed_state",
    "embed_action",
    "predict_action",  # Decision Transformer
    "relative_pos_embeddings",  # ProphetNet
    "inner2emb",
    "xpath_unitseq2_embeddings",
    "xpath_unitseq2_inner",  # MarkupLM
    "predictor_embeddings",  # V-JEPA 2
    "codec_head",  # the specification's
}
_RANDOM_FEATURES = {"shared_image_embedding", "shared_embedding", "pe_layer"}  # SAM's positions are a product
_NGRAM_WORDS = _names("ngram ngrams bigram bigrams trigram trigrams engram engrams ple")
_TABLE_WORDS = _NGRAM_WORDS | _names(
    "embed embeds embedding embeddings emb embs embd codebook codebooks table tables token tokens"
)
_NGRAM_LAYERS = _names("wq wk wv wkv wo up down")  # what a module of n-grams holds beside its tables
_MANY_TABLES = _names("embeds embeddings embs codebooks tables tokens")  # names of lists of them
_EMBEDDED = _names(
    "token tokens word words char code hash bucket label speaker position positions ngram language "
    "lang row column query queries"
)
_LAYER_WORDS = _names("ln norm fc mlp ffn linear dense layer layers gate scale gamma matrix out")
_PRODUCT_WORD = re.compile(r"(conv|proj|mapping|transform|linear|layernorm|patch)")
_CONTINUOUS = _names("time timestep timesteps sigma guidance noise")
_WORDY = _names("token tokens tok word words wte shared vocab input")
_GATHERS = _names("Gather GatherElements GatherND GatherBlockQuantized EmbedLayerNormalization")
_PRODUCTS = _names(
    "MatMul Gemm Conv ConvTranspose LSTM GRU RNN Einsum FusedMatMul FusedConv Attention MultiHeadAttention"
)


def _words(component: str) -> list[str]:
    """Words of a component, lower-cased, without numbers: ``linear_1`` is linear, ``SelfAttention`` self attention."""
    words = " ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", component)).lower()
    return re.sub(r"\bn gram", "ngram", words).split()


class _Name(NamedTuple):
    """A tensor's name, taken apart.

    Attributes
    ----------
    module : str
        The component that holds the parameter, lower-cased.
    words : list of str
    outer : list of str
        Components before it, lower-cased, without numbers.
    is_listed : bool
        Whether the module is one of a list: a number follows its name.
    is_inner : bool
        Whether the module lies in one of a list, as what layers hold does.
    """

    module: str
    words: list[str]
    outer: list[str]
    is_listed: bool
    is_inner: bool

    @classmethod
    def parsed(cls, name: str) -> _Name:
        parts = [part for part in re.split(r"[./:]+", name) if part]
        n_parts, is_listed = len(parts), False
        while parts and (parts[-1].lower() in _PARAMETERS or parts[-1].isdigit()):
            is_listed = parts[-1].isdigit() or is_listed
            parts.pop()
        is_parameter = len(parts) == n_parts
        module = parts.pop() if parts else ""
        words = _words(module)
        if is_parameter and len(words) > 1 and words[-1] in ("weight", "bias"):
            words.pop()
        outer = [part.lower() for part in parts if not part.isdigit()]
        return cls(module.lower(), words, outer, is_listed, any(part.isdigit() for part in parts))

    @property
    def parent(self) -> str:
        return self.outer[-1] if self.outer else ""


def _index(what: str) -> RegimeChoice:
    return RegimeChoice("index", f"name: {what}")


def _argmax(what: str) -> RegimeChoice:
    return RegimeChoice("argmax", f"name: {what}")


def _is_lm_head(component: str) -> bool:
    words = _words(component)
    return words[-2:] in (["lm", "head"], ["lm", "heads"])


def _head(name: _Name) -> RegimeChoice | None:
    """What a name says of a head over a vocabulary; None if it says nothing of heads."""
    if _is_lm_head(name.module):
        return _index(name.module)
    if _is_lm_head(name.parent):
        return (_index if name.module in _OF_A_HEAD else _argmax)(f"{name.parent}.{name.module}")
    if name.module in _HEADS:
        return _index(name.module)
    if (name.parent, name.module) in _HEAD_PATHS:
        return _index(f"{name.parent}.{name.module}")
    if name.module == "output" and not name.is_inner and set(name.outer) <= {"model", "transformer", "language_model"}:
        return _index("output")  # llama.cpp's head, and Llama's own
    return None


def _has_vocabulary(name: _Name, shape: Sequence[int], facts: ModelFacts) -> bool:
    """Whether a matrix outside of layers has as many rows as a vocabulary has entries."""
    if name.is_inner or len(shape) != 2 or name.module in _LAYERS:
        return False
    # As a head may be called, too.
    is_layer = any(_PRODUCT_WORD.match(word) or word in _LAYER_WORDS for word in name.words)
    return shape[0] in facts.vocabularies and shape[0] > (4 if is_layer else 1) * shape[1]


def _named(name: _Name, shape: Sequence[int]) -> RegimeChoice | None:
    """What a name says of tables and of layers that are called like them; None if it says nothing."""
    module, words = name.module, name.words
    if module in _LAYERS or _random_features(name):
        return _argmax(module)
    if module == "reference_points":  # a table in SAM 3, a layer in Deformable DETR
        return (_index if len(shape) == 2 and shape[0] > shape[1] else _argmax)(module)
    if module in _TABLES or words[-2:] in (["embeds", "layer"], ["embed", "layer"], ["embedding", "layer"]):
        return _index(module)
    if words[-2:] == ["attention", "bias"] and "relative" in words:
        return _index(module)
    if any(_PRODUCT_WORD.match(word) for word in words) or (words and words[-1] in _LAYER_WORDS):
        return _argmax(module)
    if words and words[-1] in ("embedder", "embedders"):
        qualified = set(words) | set(_words(name.parent))
        return _index(module) if qualified & _EMBEDDED else _argmax(module)
    if any(word in ("encoding", "encodings", "enc") for word in words[-1:]) and words[0].startswith("pos"):
        return _index(module)
    if words and (words[-1] in _TABLE_WORDS or words[0] in ("embed", "emb")):
        return _table(name, shape)
    parent = _words(name.parent)
    if parent and parent[-1] in _NGRAM_WORDS and module in _NGRAM_LAYERS:
        return _argmax(module)
    if words and parent and parent[-1] in _TABLE_WORDS and not name.is_listed and not set(parent) & _CONTINUOUS:
        return (
            _argmax(module) if any(_PRODUCT_WORD.match(word) for word in parent) else _index(f"{name.parent}.{module}")
        )
    return None


def _random_features(name: _Name) -> bool:
    return name.parent in _RANDOM_FEATURES and name.words[:1] == ["positional"]


def _table(name: _Name, shape: Sequence[int]) -> RegimeChoice:
    """A module called a table: one of a list of them may be a step of a small network instead.

    No network is called after n-grams, so a list of that name holds tables, however few rows these have.
    """
    if not name.is_listed or set(name.words) & _NGRAM_WORDS:
        return _index(name.module)
    is_list = name.words[0] == "embed" or name.words[-1] in _MANY_TABLES
    looks_like_one = len(shape) == 2 and (shape[0] > 4 * shape[1] or shape[0] == 1)
    continuous = set(name.words) & _CONTINUOUS
    return _index(name.module) if (is_list or looks_like_one) and not continuous else _argmax(name.module)


def regime_of(info: TensorInfo, facts: ModelFacts | None = None) -> RegimeChoice:
    """Return the regime of a tensor and what decided for it.

    Parameters
    ----------
    info : TensorInfo
        Its name and shape.
    facts : ModelFacts, optional
        What is known of the model; without it the name decides, and the shape if it is unmistakable.
    """
    facts = facts or ModelFacts()
    recorded = facts.recorded.get(info.name)
    if recorded is not None:
        return recorded
    used = facts.uses.get(info.name, frozenset())
    if used & _GATHERS:
        return RegimeChoice("index", f"graph: {min(used & _GATHERS)}")
    name, shape = _Name.parsed(info.name), info.shape
    adapter = next((part for part in re.split(r"[./]", info.name) if part.lower().startswith(_ADAPTERS)), None)
    if adapter is not None:
        return RegimeChoice("argmax", f"adapter: {adapter}")
    if shape[:1] > (1,) and (len(shape) > 3 or (len(shape) == 3 and shape[2] <= _MOST_TAPS)):
        return RegimeChoice("argmax", f"shape: a convolution of {' x '.join(map(str, shape))}")
    choice, named = _head(name), _named(name, shape)
    is_table = named is not None and named.regime == "index"
    if choice is None and not is_table and _has_vocabulary(name, shape, facts):
        choice = RegimeChoice("index", f"vocabulary: {shape[0]} rows")
    if choice is None and used & _PRODUCTS:
        return RegimeChoice("argmax", f"graph: {min(used & _PRODUCTS)}")
    choice = choice or named
    if choice is None and len(shape) == 2 and not name.is_inner and shape[0] >= max(_HUGE_ROWS, 8 * shape[1]):
        choice = RegimeChoice("index", f"shape: {shape[0]} rows")
    return choice or RegimeChoice("argmax", "name: neither table nor head")


# ---- of a whole model ----


def model_facts(source: TensorSource) -> ModelFacts:
    """Return what a source knows beside its tensors' names and shapes."""
    sizes = {*_config_sizes(source), *_gguf_sizes(source)}
    for info in source.infos().values():
        name = _Name.parsed(info.name)
        is_wordy = set(name.words) & _WORDY or name.module in ("emb", "embed", "embedding", "embeddings", "embed_in")
        if {"type", "types", "position", "positions"} & set(name.words) or not is_wordy or len(info.shape) != 2:
            continue
        if info.shape[0] > info.shape[1] and regime_of(info).regime == "index":
            sizes.add(info.shape[0])
    recorded = {name: RegimeChoice(*choice) for name, choice in source.regimes().items()}
    return ModelFacts(frozenset(sizes), source.uses(), recorded)


def _config_sizes(source: TensorSource) -> Iterator[int]:
    """Sizes of vocabularies in the configs among a source's side files."""
    for path in source.files():
        if PurePosixPath(path).name == _CONFIG:
            try:
                yield from _vocabulary_sizes(json.loads(source.read_file(path)))
            except (ValueError, RecursionError):  # whoever needs the config says what is wrong with it
                continue


def _vocabulary_sizes(config: Any) -> Iterator[int]:
    for key, value in config.items() if isinstance(config, dict) else ():
        if isinstance(value, dict):
            yield from _vocabulary_sizes(value)
        elif type(value) is int and ("vocab_size" in key or key == "n_vocab"):
            yield value


def _gguf_sizes(source: TensorSource) -> Iterator[int]:
    """Sizes of vocabularies in the key-values of a GGUF file."""
    facts = source.description.get("gguf")
    fields = facts.get("fields") if isinstance(facts, dict) else None
    for key, entry in fields.items() if isinstance(fields, dict) else ():
        value = entry.get("value") if isinstance(entry, dict) else None
        if key.endswith(".vocab_size") and type(value) is int:
            yield value
        elif key == "tokenizer.ggml.tokens" and isinstance(value, list):
            yield len(value)


def choose_regimes(
    source: TensorSource, tied: Mapping[str, str] | None = None, asked: Any = ()
) -> dict[str, RegimeChoice]:
    """Return the regime of every tensor of a source.

    Parameters
    ----------
    source : TensorSource
    tied : mapping of name to name, optional
        Names that share another's bytes: all of them are in one regime.
    asked : sequence of (glob, regime)
        The first whose glob matches a name decides for it, and for the names tied to it.

    Raises
    ------
    TypeError
        Where `asked` is not a sequence of pairs.
    ValueError
        For an unknown regime, and a glob that no tensor matches.
    """
    if isinstance(asked, str) or not all(isinstance(role, tuple | list) and len(role) == 2 for role in asked):
        raise TypeError(f"roles must be pairs of a glob and a regime, got {asked!r:.80}")
    infos, facts = source.infos(), model_facts(source)
    for glob, regime in asked:
        if regime not in REGIMES:
            raise ValueError(f"role {glob!r}: there is no regime {regime!r}; the regimes are {', '.join(REGIMES)}")
        if not any(fnmatch.fnmatchcase(name, glob) for name in infos):
            raise ValueError(f"role {glob!r} matches no tensor; the source has {some_of(infos)}")
    families: dict[str, list[str]] = defaultdict(list)
    for name in infos:
        families[(tied or {}).get(name, name)].append(name)
    chosen: dict[str, RegimeChoice] = {}
    for names in families.values():
        given = {name: choice for name in names if (choice := _asked(name, asked)) is not None}
        chosen |= _agreed(names, given or {name: regime_of(infos[name], facts) for name in names})
    return chosen


def _asked(name: str, asked: Iterable[tuple[str, str]]) -> RegimeChoice | None:
    first = next(((glob, regime) for glob, regime in asked if fnmatch.fnmatchcase(name, glob)), None)
    return None if first is None else RegimeChoice(first[1], f"asked: {first[0]}")


def _agreed(names: Sequence[str], own: Mapping[str, RegimeChoice]) -> Iterator[tuple[str, RegimeChoice]]:
    """The strictest choice among names that share their bytes, for each of them."""
    decider = min(own, key=lambda name: (own[name].regime != "index", name))
    for name in names:
        if name in own and own[name].regime == own[decider].regime:
            yield name, own[name]
        else:
            yield name, RegimeChoice(own[decider].regime, f"tied to {shown(decider)}: {own[decider].reason}")
