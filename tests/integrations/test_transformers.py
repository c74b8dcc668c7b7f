"""Models of transformers from packs and packed folders, packed and decoded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hhtld

torch = pytest.importorskip("torch", reason="needs the extra 'transformers'")
transformers = pytest.importorskip("transformers", reason="needs the extra 'transformers'")
pytest.importorskip("tokenizers")

from hhtld.integrations.torch import PackedWeight, packed_counts  # noqa: E402 - after the skip
from hhtld.integrations.transformers import from_pretrained, load_tokenizer  # noqa: E402 - after the skip

IDS = torch.arange(3, 150, 7)[None]
SIZES = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


@pytest.fixture(autouse=True)
def quiet() -> Any:
    """No bars, and the rounding of sums that one thread gives."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    yield
    torch.set_num_threads(threads)
    transformers.utils.logging.enable_progress_bar()


def saved(model: Any, folder: Path) -> Path:
    """A snapshot folder; layers weigh enough that a tied head does not just repeat the last token."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embed" not in name:
                parameter.mul_(8)
    model.save_pretrained(folder)
    return folder


def llama(tied: bool = True, **more: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, **TOKENS, num_key_value_heads=2, tie_word_embeddings=tied, **more)
    return transformers.LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = saved(llama(), tmp_path_factory.mktemp("llama") / "src")
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(299)} | {"<unk>": 299}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="w2")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pack(snapshot: Path) -> Path:
    hhtld.convert(snapshot, snapshot.parent / "m.hhtld", profile="bits:4")
    return snapshot.parent / "m.hhtld"


@pytest.fixture(scope="module")
def folder(snapshot: Path) -> Path:
    hhtld.convert(snapshot, snapshot.parent / "packed", to="hf", profile="bits:4")
    return snapshot.parent / "packed"


def said(model: Any, n: int = 20) -> list[int]:
    """The greedy continuation."""
    with torch.inference_mode():
        mask = torch.ones_like(IDS)
        found = model.generate(IDS, attention_mask=mask, max_new_tokens=n, min_new_tokens=n, do_sample=False)
    return list(found[0, IDS.shape[1] :].tolist())


def test_packed_and_decoded_say_the_same(pack: Path, folder: Path) -> None:
    packed, decoded = from_pretrained(pack), from_pretrained(pack, packed=False)
    assert type(packed) is type(decoded) is transformers.LlamaForCausalLM
    assert packed.dtype == decoded.dtype == torch.float32
    assert not packed.training
    counts = packed_counts(packed)
    assert (counts.n_embeddings, counts.n_linears, counts.n_weights) == (1, 15, 15)
    assert packed.lm_head.weight is packed.model.embed_tokens.weight
    assert decoded.lm_head.weight is decoded.model.embed_tokens.weight
    assert packed_counts(decoded).n_weights == 0
    assert "quantization_config" not in decoded.config.to_dict()
    by_auto = transformers.AutoModelForCausalLM.from_pretrained(folder)
    plain = pack.parent / "plain"
    hhtld.convert(pack, plain)
    without = transformers.AutoModelForCausalLM.from_pretrained(plain)
    for (name, ours), (other, theirs) in zip(decoded.named_parameters(), without.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(ours, theirs), "a decoded folder is what an ordinary load gives"
    expected = said(without)
    assert len(set(expected)) > 3
    for model in (packed, decoded, by_auto, from_pretrained(folder), from_pretrained(folder / "model.hhtld")):
        assert said(model) == expected


@pytest.mark.parametrize("how", ["beams", "padding", "assisted"])
def test_every_way_of_generating_says_what_the_decoded_model_says(pack: Path, how: str) -> None:
    packed, decoded = from_pretrained(pack, exact=True), from_pretrained(pack, packed=False)
    ids = torch.cat([IDS[:1], IDS[:1].flip(1)])
    mask = torch.ones_like(ids)
    options: dict[str, Any] = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 2}
    if how == "beams":
        options |= {"num_beams": 3, "num_return_sequences": 2}
    elif how == "padding":
        ids[1, :2], mask[1, :2] = 2, 0
    else:
        ids, mask = ids[:1], mask[:1]
    found = []
    for model in (packed, decoded):
        helper = {"assistant_model": from_pretrained(pack)} if how == "assisted" else {}
        with torch.inference_mode():
            found.append(model.generate(ids, attention_mask=mask, **options, **helper))
    assert torch.equal(*found)


def test_without_hhtld(pack: Path, folder: Path) -> None:
    """A decoded folder loads; a packed one fails loudly, also for whoever does not know ``transformers_weights``."""
    hhtld.convert(pack, pack.parent / "alone")
    shutil.copytree(folder, folder.parent / "older")
    config = json.loads((folder / "config.json").read_text())
    del config["transformers_weights"]
    (folder.parent / "older" / "config.json").write_text(json.dumps(config))
    code = (
        "import sys; sys.modules['hhtld'] = None\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model, info = AutoModelForCausalLM.from_pretrained('alone', output_loading_info=True)\n"
        "print({key: found for key, found in info.items() if found}, AutoTokenizer.from_pretrained('alone')('w7 w8'))\n"
        "for name, kind in (('packed', ValueError), ('older', RuntimeError)):\n"
        "    try: AutoModelForCausalLM.from_pretrained(name)\n"
        "    except kind as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder.parent, capture_output=True, text=True, check=True)
    plain, first, second = done.stdout.splitlines()
    assert plain.startswith("{} {'input_ids': [7, 8]")
    assert "model.hhtld" in first
    assert "ignore_mismatched_sizes" in second
    assert "Unknown quantization type, got hhtld" in done.stderr


def test_dtypes_devices_and_states(pack: Path, folder: Path) -> None:
    half = from_pretrained(pack, dtype=torch.bfloat16)
    assert half.dtype == half.lm_head.weight.dtype == torch.bfloat16
    assert half.model.norm.weight.dtype == torch.bfloat16
    assert half(IDS).logits.dtype == torch.bfloat16
    assert transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float64").dtype == torch.float64
    some = from_pretrained(pack, modules_to_not_convert=["lm_head", "q_proj"])
    counts = packed_counts(some)
    assert (counts.n_embeddings, counts.n_linears) == (0, 12), "what is tied to a module goes with it"
    assert said(some) == said(from_pretrained(pack))
    base = transformers.AutoModel.from_pretrained(folder)
    assert type(base) is transformers.LlamaModel
    assert packed_counts(base).n_weights == 15


def test_a_config_that_tells_no_dtype(pack: Path, snapshot: Path, tmp_path: Path) -> None:
    config = json.loads((snapshot / "config.json").read_text())
    del config["dtype"]
    odd = rewritten(pack, tmp_path / "odd.hhtld", config=json.dumps(config).encode())
    assert from_pretrained(odd).dtype == from_pretrained(odd, packed=False).dtype == torch.float32


def test_other_devices_are_refused(folder: Path) -> None:
    pytest.importorskip("accelerate")
    for place in ("auto", "cpu"):
        assert packed_counts(from_pretrained(folder, device_map=place)).n_weights == 15
    with pytest.raises(ValueError, match="packed=False"):
        from_pretrained(folder, device_map={"": "cuda:0"})


def test_saving(pack: Path, tmp_path: Path) -> None:
    model = from_pretrained(pack)
    with pytest.raises(ValueError, match=r"dequantize\(\)"):
        model.save_pretrained(tmp_path / "no")
    assert not (tmp_path / "no").exists()
    expected = said(model)
    model.dequantize()
    assert packed_counts(model).n_weights == 0
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert said(model) == expected
    model.save_pretrained(tmp_path / "yes")
    assert "hhtld" not in (tmp_path / "yes" / "config.json").read_text()
    assert said(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "yes")) == expected


def test_tokenizer_and_pipeline(pack: Path, folder: Path) -> None:
    for place in (pack, folder, hhtld.open(pack)):
        tokenizer = load_tokenizer(place)
        assert tokenizer("w7 w8 nothing")["input_ids"] == [7, 8, 299]
        assert tokenizer.name_or_path == str(place if isinstance(place, Path) else pack)
    say = transformers.pipeline("text-generation", model=str(folder))
    found = say("w7 w8", max_new_tokens=3, do_sample=False)[0]["generated_text"]
    assert found.startswith("w7 w8")
    made = transformers.pipeline("text-generation", model=from_pretrained(pack), tokenizer=load_tokenizer(pack))
    assert made("w7 w8", max_new_tokens=3, do_sample=False)[0]["generated_text"] == found


def test_a_pack_in_memory(snapshot: Path, pack: Path) -> None:
    from hhtld.formats import open_source

    with open_source(snapshot) as source:
        held = hhtld.encode(source, "bits:4")
    assert said(from_pretrained(held)) == said(from_pretrained(pack))


def test_nothing_is_left_in_the_folder_for_temporary_files(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    said(from_pretrained(pack), 2)
    load_tokenizer(pack)
    assert list(tmp_path.iterdir()) == []


ARCHITECTURES = {
    # Experts are merged into one tensor on loading, so those stay decoded.
    "mixtral": (
        transformers.MixtralForCausalLM,
        transformers.MixtralConfig,
        {"num_local_experts": 4, "num_key_value_heads": 2},
        9,
    ),
    # The head's bias is tied as well, and padded to the head.
    "bert": (transformers.BertForMaskedLM, transformers.BertConfig, {}, 16),
    # Embeddings that scale, tied to a head that does not: all of them are decoded.
    "gemma": (transformers.GemmaForCausalLM, transformers.GemmaConfig, {"head_dim": 16, "num_key_value_heads": 2}, 14),
}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_models_of_other_kinds(kind: str, tmp_path: Path) -> None:
    cls, config, more, n_modules = ARCHITECTURES[kind]
    torch.manual_seed(1)
    source = saved(cls(config(**SIZES, **TOKENS, **more)), tmp_path / "src")
    hhtld.convert(source, tmp_path / "packed", to="hf", profile="bits:5", min_ratio=1)
    hhtld.convert(tmp_path / "packed", tmp_path / "plain")
    packed, info = cls.from_pretrained(tmp_path / "packed", output_loading_info=True)
    assert {key: found for key, found in info.items() if found} == {}
    counts = packed_counts(packed)
    assert counts.n_embeddings + counts.n_linears in (n_modules, n_modules + 1)
    with torch.inference_mode():
        plain, decoded = (
            model(IDS).logits
            for model in (cls.from_pretrained(tmp_path / "plain"), from_pretrained(tmp_path / "packed", packed=False))
        )
        assert torch.equal(plain, decoded)
        error = (packed(IDS).logits - plain).norm() / plain.norm()
    assert error < 1e-3


def rewritten(pack: Path, target: Path, **files: bytes | None) -> Path:
    """The pack with other side files."""
    from hhtld.encoding.options import Encoding
    from hhtld.encoding.plan import make_plan
    from hhtld.pack.memory_sections import MemorySections
    from hhtld.pack.pack import HhtldPack
    from hhtld.pack.source import PackSource

    class Changed(PackSource):
        def files(self) -> dict[str, int]:
            own = {name: len(self.read_file(name)) for name in self.pack.files()}
            return {name: size for name, size in own.items() if files.get(name.partition(".")[0], b"") is not None}

        def read_file(self, name: str) -> bytes:
            return files.get(name.partition(".")[0]) or self.pack.read_file(name)

    from hhtld.encoding.encoder import encode_source

    with hhtld.open(pack) as held:
        source, sections = Changed(held), MemorySections()
        table = encode_source(source, make_plan(source, Encoding("bits:2")), sections)
        hhtld.save(HhtldPack(table, sections), target)
    return target


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "holds no config.json"),
        (b"{", "cannot be read as JSON"),
        (b"[]", "must be a JSON object"),
        (b'{"model_type": "nonsense"}', "transformers cannot read its config.json"),
        (b'{"model_type": "llama", "architectures": ["NonsenseForCausalLM"]}', "no class 'NonsenseForCausalLM'"),
        (b'{"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}', "is quantized already"),
    ],
)
def test_packs_that_no_model_can_be_made_of(config: bytes | None, message: str, pack: Path, tmp_path: Path) -> None:
    odd = rewritten(pack, tmp_path / "odd.hhtld", config=config)
    with pytest.raises(hhtld.FormatError, match=f"odd.hhtld.*{message}"):
        from_pretrained(odd)


def test_folders_that_no_model_can_be_made_of(snapshot: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(hhtld.FormatError, match="--to hf"):
        from_pretrained(snapshot)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    data = bytearray((copy / "model.hhtld").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "model.hhtld").write_bytes(data)
    with pytest.raises(hhtld.FormatError, match=r"copy.model\.hhtld: section"):
        transformers.AutoModelForCausalLM.from_pretrained(copy)
    hhtld.save_file({"other.weight": np.ones((8, 8), np.float32)}, copy / "model.hhtld")
    with pytest.raises(hhtld.FormatError, match=r"does not belong to the model\.safetensors"):
        transformers.AutoModelForCausalLM.from_pretrained(copy)
    (copy / "model.hhtld").unlink()
    with pytest.raises(FileNotFoundError, match=r"snapshot_download.*model\.hhtld"):
        transformers.AutoModelForCausalLM.from_pretrained(copy)


def test_a_weight_that_is_computed_with_says_so(pack: Path) -> None:
    model = from_pretrained(pack)
    assert isinstance(model.lm_head.weight, PackedWeight)
    weight = model.lm_head.weight
    for asked in (
        lambda: weight @ torch.ones(64),
        lambda: torch.ones(3, 300) @ weight,
        lambda: weight[3],
        lambda: weight.mean(),
        lambda: weight.data,
        lambda: -weight,
        lambda: len(weight),
        lambda: weight.div_(2),
    ):
        with pytest.raises(TypeError, match=r"packed weight, 'model\.embed_tokens\.weight', which holds none"):
            asked()
    assert weight, "there is one"
    assert not hasattr(weight, "div_"), "code that looks first goes on"
    assert not hasattr(weight, "quant_state")
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = weight.nonsense


# ---- what a packed model cannot do, and how it says so ----


def test_a_state_dict_of_a_packed_model_is_an_error_and_not_a_part_of_it(pack: Path) -> None:
    import io

    model = from_pretrained(pack)
    with pytest.raises(ValueError, match=r"'model\.embed_tokens\.weight' is packed, .*model\.dequantize\(\)"):
        model.state_dict()
    with pytest.raises(ValueError, match="is packed"):
        model.model.layers[0].state_dict()
    whole = io.BytesIO()
    torch.save(model, whole)
    whole.seek(0)
    again = torch.load(whole, weights_only=False)
    assert said(again, 4) == said(model, 4)
    assert again.num_parameters() == model.num_parameters()
    plain = from_pretrained(pack, packed=False)
    model.dequantize()
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_loading_numbers_into_packed_weights_is_an_error(pack: Path) -> None:
    model, plain = from_pretrained(pack), from_pretrained(pack, packed=False)
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=r"'lm_head\.weight' is packed, so no other numbers.*dequantize"):
            model.load_state_dict(plain.state_dict(), strict=strict)


def test_parameters_are_counted_as_the_ordinary_models(pack: Path) -> None:
    packed, plain = from_pretrained(pack), from_pretrained(pack, packed=False)
    assert packed.num_parameters() == plain.num_parameters() > 80_000
    assert packed.num_parameters(exclude_embeddings=True) == plain.num_parameters(exclude_embeddings=True)
    assert packed.num_parameters(only_trainable=True) < 1000
    packed.dequantize()
    assert packed.num_parameters() == plain.num_parameters()
    assert "num_parameters" not in vars(packed)


def test_training_through_packed_weights_says_what_to_do(pack: Path) -> None:
    model = from_pretrained(pack).train()
    for module in model.modules():  # as an adapter between packed layers would ask
        if type(module).__name__ == "LlamaRMSNorm":
            module.weight.requires_grad_(True)
    loss = model(IDS, labels=IDS).loss
    with pytest.raises(RuntimeError, match=r"pass no gradients on.*model\.dequantize\(\)"):
        loss.backward()


def test_ties_hold_and_vocabularies_are_not_resized(pack: Path) -> None:
    model = from_pretrained(pack)
    expected = said(model, 4)
    model.tie_weights()
    assert said(model, 4) == expected
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    with pytest.raises(ValueError, match=r"cannot be resized: .*model\.dequantize\(\)"):
        model.resize_token_embeddings(400)
    model.set_input_embeddings(torch.nn.Embedding(300, 64))
    with pytest.raises(ValueError, match=r"'lm_head\.weight' and .* are not tied any more.*dequantize"):
        model.tie_weights()
    grown = from_pretrained(pack)
    grown.dequantize()
    grown.resize_token_embeddings(400)
    assert grown(torch.tensor([[399]])).logits.shape == (1, 1, 400)


def test_an_adapter_of_peft_says_what_to_do(pack: Path) -> None:
    peft = pytest.importorskip("peft", reason="needs peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match=r"packed \(dequantize\(\) gives nn\.Linear\)"):
        peft.get_peft_model(from_pretrained(pack), config)
    model = from_pretrained(pack)
    model.dequantize()
    adapted = peft.get_peft_model(model, config)
    adapted(IDS, labels=IDS).loss.backward()
    assert any(p.grad is not None for n, p in adapted.named_parameters() if "lora_B" in n)


def test_a_checkpoint_of_a_trainer_is_refused(pack: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers' Trainer needs it")
    arguments = transformers.TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    with pytest.raises(ValueError, match="cannot perform fine-tuning on purely quantized models"):
        transformers.Trainer(model=from_pretrained(pack), args=arguments)


ODD = {
    # Their code computes with a weight itself: x @ dt_proj.weight, weight.div_(...), Linear inside another's forward.
    "mamba": (
        "MambaForCausalLM",
        "MambaConfig",
        {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8},
        "dt_proj",
    ),
    "rwkv": (
        "RwkvForCausalLM",
        "RwkvConfig",
        {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2, "context_length": 64},
        "output",
    ),
    "deberta": (
        "DebertaV2Model",
        "DebertaV2Config",
        {**SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16},
        "rel_embeddings",
    ),
}


@pytest.mark.parametrize("kind", ODD)
def test_a_model_that_computes_with_its_weights_names_the_option(kind: str, tmp_path: Path) -> None:
    name, config, options, module = ODD[kind]
    torch.manual_seed(0)
    source = saved(getattr(transformers, name)(getattr(transformers, config)(**options)), tmp_path / "src")
    hhtld.convert(source, tmp_path / "packed", to="hf", profile="bits:6", min_ratio=0)
    model = from_pretrained(tmp_path / "packed")
    with torch.inference_mode(), pytest.raises(TypeError, match=rf"modules_to_not_convert=\['{module}'\]"):
        model(IDS)
    more = [module] if kind != "rwkv" else ["output", "feed_forward.value"]
    loaded = from_pretrained(tmp_path / "packed", modules_to_not_convert=more)
    plain = from_pretrained(tmp_path / "packed", packed=False)
    with torch.inference_mode():
        ours, theirs = (model(IDS)[0] for model in (loaded, plain))
    assert packed_counts(loaded).n_weights > 0
    assert float((ours - theirs).norm() / theirs.norm()) < 2e-3


def test_parity_takes_a_packed_folder(snapshot: Path, folder: Path) -> None:
    from hhtld.evaluation.parity import gate_parity

    report = gate_parity(snapshot, folder, ["w3 w4 w5 w6 w7", "w9 w8 w7"], min_top1=0, n_continued=3)
    assert report.to_json()["pack"] == str(folder)


def test_the_config_in_a_folder_is_transformers_own(folder: Path, snapshot: Path) -> None:
    added = json.loads((folder / "config.json").read_text())
    for key in ("quantization_config", "transformers_weights"):
        added.pop(key)
    assert added == json.loads((snapshot / "config.json").read_text())
