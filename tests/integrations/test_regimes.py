"""Regimes of what transformers itself builds: its embeddings and heads in the index regime, its other layers not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hhtld.dtypes import DTYPES
from hhtld.matrix import TensorInfo
from hhtld.sources.contract import ArraySource
from hhtld.sources.regimes import choose_regimes

torch = pytest.importorskip("torch", reason="needs the package of the extra 'torch'")
transformers = pytest.importorskip("transformers", reason="needs the package of the extra 'transformers'")

KINDS = {
    "AutoModelForCausalLM": """bloom codegen ctrl deepseek_v3 falcon gemma2 gpt2 gpt_neo gpt_neox gptj granite llama
        mamba mistral mixtral mpt olmo2 openai-gpt opt phi3 qwen2 qwen3 rwkv stablelm starcoder2 xglm""",
    "AutoModelForMaskedLM": """albert bert big_bird deberta-v2 distilbert electra mobilebert mpnet roberta xlm
        xlm-roberta""",
    "AutoModelForSeq2SeqLM": "bart led longt5 m2m_100 marian mt5 pegasus t5 umt5",
    "AutoModel": """audio-spectrogram-transformer beit blip clip convnext data2vec-text deit dinov2 hubert layoutlm
        layoutlmv3 owlvit perceiver sam segformer siglip speecht5 swin vit vits wav2vec2 wavlm whisper xlnet""",
}
MODELS = [(kind, auto) for auto, kinds in KINDS.items() for kind in kinds.split()]


class Named(ArraySource):
    """The names, shapes and config of a model that has no weights."""

    def __init__(self, infos: dict[str, TensorInfo], config: dict[str, Any]) -> None:
        super().__init__({}, files={"config.json": json.dumps(config).encode()})
        self._infos = infos


@pytest.mark.exhaustive
@pytest.mark.parametrize(("kind", "auto"), MODELS, ids=[kind for kind, _ in MODELS])
def test_embeddings_and_heads_are_index_and_layers_are_not(kind: str, auto: str) -> None:
    config = transformers.CONFIG_MAPPING[kind]()
    with torch.device("meta"):
        model = getattr(transformers, auto).from_config(config)
    layers = (torch.nn.Linear, torch.nn.modules.conv._ConvNd, transformers.pytorch_utils.Conv1D)
    head = model.get_output_embeddings()
    infos, expected = {}, {}
    for name, module in model.named_modules():
        for parameter, values in module.named_parameters(name, recurse=False):
            infos[parameter] = TensorInfo(parameter, DTYPES["F32"], tuple(values.shape))
            if values.ndim > 1 and isinstance(module, (torch.nn.Embedding, *layers)):
                expected[parameter] = "index" if isinstance(module, torch.nn.Embedding) or module is head else "argmax"
    found = choose_regimes(Named(infos, {"vocab_size": getattr(config, "vocab_size", None)}))
    assert expected
    assert {name: found[name] for name, regime in expected.items() if found[name].regime != regime} == {}
