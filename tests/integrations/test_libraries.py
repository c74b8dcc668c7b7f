"""Folders of libraries other than transformers load again after they were packed and decoded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hhtld

torch = pytest.importorskip("torch", reason="needs the extra 'transformers'")
transformers = pytest.importorskip("transformers", reason="needs the extra 'transformers'")


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as sentence-transformers writes it: a small BERT, pooling, and a dense layer with weights of its own."""
    pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")
    from safetensors.numpy import save_file

    folder = tmp_path_factory.mktemp("sentences") / "model"
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(295))]
    transformers.BertModel(transformers.BertConfig(vocab_size=300, **sizes)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    transformers.BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    modules = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"))
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    for path, config in (
        ("1_Pooling", {"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True}),
        ("2_Dense", {"in_features": 64, "out_features": 32, "bias": True, "activation_function": "torch.nn.Identity"}),
    ):
        (folder / path).mkdir()
        (folder / path / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    dense = {"linear.weight": rng.standard_normal((32, 64)).astype(np.float32), "linear.bias": np.ones(32, np.float32)}
    save_file(dense, folder / "2_Dense" / "model.safetensors", {"format": "pt"})
    return folder


def embedded(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu").encode(["w1 w2 w3", "w9 w8"])


def test_a_sentence_transformer_embeds_as_before_decoded_and_packed(sentences: Path, tmp_path: Path) -> None:
    import hhtld.integrations.transformers

    hhtld.convert(sentences, tmp_path / "m.hhtld", profile="bits:6", min_ratio=0)
    hhtld.convert(tmp_path / "m.hhtld", tmp_path / "plain")
    hhtld.convert(sentences, tmp_path / "packed", to="hf", profile="bits:6", min_ratio=0)
    before, plain, packed = (embedded(place) for place in (sentences, tmp_path / "plain", tmp_path / "packed"))
    assert before.shape == (2, 32)
    for found in (plain, packed):
        cosines = (found * before).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(before, axis=1)
        assert cosines.min() > 0.99
    np.testing.assert_allclose(packed, plain, rtol=0, atol=1e-3 * np.abs(plain).max())


def test_an_adapter_of_peft_loads_onto_its_model_as_before(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="needs peft")
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=300, **sizes)).save_pretrained(tmp_path / "base")

    def base() -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")

    adapted = peft.get_peft_model(base(), peft.LoraConfig(r=8, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    hhtld.convert(tmp_path / "adapter", tmp_path / "a.hhtld", profile="bits:6", min_ratio=0)
    hhtld.convert(tmp_path / "a.hhtld", tmp_path / "plain")
    again = peft.PeftModel.from_pretrained(base(), tmp_path / "plain")
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        ours, theirs = again(ids).logits, adapted(ids).logits
    assert float((ours - theirs).norm() / theirs.norm()) < 0.02
