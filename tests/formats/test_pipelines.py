"""Folders of several models: one pack, and back as the folder that it was, file by file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import hhtld
from hhtld.commands.main import main
from hhtld.errors import FormatError, HeaderError
from hhtld.formats import format_for_output, open_source
from hhtld.sources.contract import TensorSource
from tests.conftest import low_rank

Arrays = dict[str, NDArray[Any]]
PT = {"format": "pt"}
SAME = {"conv_in.weight": low_rank(80, 32, 1), "norm.bias": np.ones(32, np.float32)}  # in both, under one name
UNET = {
    "diffusion_pytorch_model-00001-of-00002.safetensors": SAME,
    "diffusion_pytorch_model-00002-of-00002.safetensors": {"out.weight": low_rank(60, 32, 2).astype(np.float16)},
}
VAE = {"conv_in.weight": low_rank(96, 32, 3), "odd": np.arange(5, dtype=np.int64), "one": np.array(2, np.float32)}
TEXT = {"text_model.embeddings.token_embedding.weight": low_rank(128, 32, 4)}
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.30.0",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "safety_checker": [None, None],
}


def written(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data, indent=2))


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """A pipeline of diffusers: three models, of which one is sharded, a tokenizer, a scheduler, and other folders."""
    folder = tmp_path / "pipe"
    written(folder / "model_index.json", INDEX)
    written(folder / "README.md", "# a pipeline")
    for name in ("unet", "vae", "text_encoder"):
        written(folder / name / "config.json", {"_class_name": name} if name != "text_encoder" else {"vocab_size": 128})
    for shard, arrays in UNET.items():
        save_file(arrays, folder / "unet" / shard, PT)
    weight_map = {name: shard for shard, arrays in UNET.items() for name in arrays}
    written(
        folder / "unet" / "diffusion_pytorch_model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map}
    )
    save_file(VAE, folder / "vae" / "diffusion_pytorch_model.safetensors", PT)
    save_file(TEXT, folder / "text_encoder" / "model.safetensors", PT)
    written(folder / "tokenizer" / "vocab.json", {"a": 1})
    written(folder / "tokenizer" / "merges.txt", "a b")
    written(folder / "scheduler" / "scheduler_config.json", {"_class_name": "DDIMScheduler"})
    written(folder / "samples" / "config.json", {})  # which the index does not name
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_pipeline_comes_back_file_by_file(pipe: Path, tmp_path: Path) -> None:
    pack, back = tmp_path / "p.hhtld", tmp_path / "back"
    report = hhtld.convert(pipe, pack, rules=[("*", "keep")])
    assert any("'samples/' (folders that the model's files do not name)" in note for note in report.notes)
    hhtld.convert(pack, back)
    before, after = files(pipe), files(back)
    assert before.pop("samples/config.json")
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    assert json.loads(after.pop(index))["weight_map"] == json.loads(before.pop(index))["weight_map"]
    assert after == before


def test_names_are_unique_and_encoded_weights_come_back_where_they_were(pipe: Path, tmp_path: Path) -> None:
    pack = tmp_path / "p.hhtld"
    hhtld.convert(pipe, pack, profile="bits:4", min_ratio=0, jobs=1)
    decoded = hhtld.load_file(pack)
    assert {"unet/conv_in.weight", "vae/conv_in.weight"} < set(decoded)
    assert main(["verify", str(pack), str(pipe)]) == 0
    hhtld.convert(pack, f"{tmp_path}/back/")
    for folder in ("unet", "vae", "text_encoder"):
        for file in (tmp_path / "back" / folder).glob("*.safetensors"):
            for name, values in load_file(file).items():
                assert np.array_equal(values, decoded[f"{folder}/{name}"])
    source = load_file(pipe / "vae" / "diffusion_pytorch_model.safetensors")["conv_in.weight"]
    assert 0.98 < np.corrcoef(source.ravel(), decoded["vae/conv_in.weight"].ravel())[0, 1] < 1


def test_embeddings_in_a_folder_keep_their_regime(pipe: Path, tmp_path: Path) -> None:
    report = hhtld.convert(pipe, tmp_path / "p.hhtld", profile="bits:4", min_ratio=0, jobs=1)
    regimes = {tensor.info.name: tensor.regime for tensor in report.tensors}
    assert regimes["text_encoder/text_model.embeddings.token_embedding.weight"] == "index"
    assert regimes["unet/conv_in.weight"] == "argmax"


def test_a_sentence_transformer_without_weights_in_its_root(tmp_path: Path) -> None:
    folder = tmp_path / "st"
    paths = ("0_Transformer", "1_Pooling", "2_Dense")
    written(folder / "modules.json", [{"idx": n, "path": path, "type": "t"} for n, path in enumerate(paths)])
    for path in paths:
        written(folder / path / "config.json", {"path": path})
    save_file({"w.weight": low_rank(80, 32, 1)}, folder / "0_Transformer" / "model.safetensors", PT)
    save_file({"linear.weight": low_rank(64, 32, 2)}, folder / "2_Dense" / "model.safetensors", PT)
    hhtld.convert(folder, tmp_path / "st.hhtld", rules=[("*", "keep")])
    with hhtld.open(tmp_path / "st.hhtld") as pack:
        assert sorted(pack.keys()) == ["0_Transformer/w.weight", "2_Dense/linear.weight"]
    hhtld.convert(tmp_path / "st.hhtld", tmp_path / "back")
    assert files(tmp_path / "back") == files(folder)


def test_files_of_every_folder_are_watched(pipe: Path) -> None:
    from hhtld.encoding.fingerprint import source_facts

    with open_source(pipe) as source:
        facts = source_facts(source, pipe)["files"]
        assert len(facts) == 4
        assert {"vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"} < set(facts)
        with pytest.raises(ValueError, match="no tensor 'unet/x'"):
            source.read_rows("unet/x", 0, 1)


def test_a_model_that_is_quantized_already_is_named(pipe: Path, tmp_path: Path) -> None:
    packed = {"q.qweight": np.ones((8, 64), np.int32), "q.scales": np.ones((2, 64), np.float16)}
    save_file(packed | {"q.qzeros": np.ones((2, 8), np.int32)}, pipe / "vae" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(hhtld.QuantizedError, match=r"GPTQ or AWQ.*'vae/q"):
        hhtld.convert(pipe, tmp_path / "p.hhtld")


def test_a_folder_behind_a_link_out_of_the_pipeline_is_refused(pipe: Path, tmp_path: Path) -> None:
    (pipe / "vae").rename(tmp_path / "elsewhere")
    (pipe / "vae").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HeaderError, match="link out of the model's folder"):
        open_source(pipe)


def test_what_packs_one_model_refuses_several(pipe: Path, tmp_path: Path) -> None:
    with pytest.raises(HeaderError, match=r"config\.json"):
        hhtld.convert(pipe, tmp_path / "packed", to="hf")
    assert not (tmp_path / "packed").exists()


class Told(TensorSource):
    """A source that says of its folders what it is given."""

    def __init__(self, source: TensorSource, description: dict[str, Any]) -> None:
        self._of, self._description = source, description
        self.held = dict(source.infos())
        self.beside = {name: source.read_file(name) for name in source.files()}

    @property
    def description(self) -> dict[str, Any]:
        return self._description

    def infos(self) -> Any:
        return self.held

    def read_rows(self, name: str, start: int, stop: int) -> Any:
        return self._of.read_rows(name, start, stop)

    def files(self) -> Any:
        return {name: len(data) for name, data in self.beside.items()}

    def read_file(self, name: str) -> bytes:
        return self.beside[name]


def _shard(source: Told, shard: str | None) -> None:
    from dataclasses import replace

    source.held["vae/odd"] = replace(source.held["vae/odd"], shard=shard)


HOSTILE: dict[str, tuple[Callable[[Told], Any], str]] = {
    "folders are a list": (lambda s: s.description.update(folders=[]), "no JSON object of objects"),
    "a folder is a text": (lambda s: s.description["folders"].update(vae="x"), "no JSON object of objects"),
    "a folder is missing": (lambda s: s.description["folders"].pop("vae"), "'vae/.*' is in none of the source's"),
    "a folder above": (lambda s: s.description["folders"].update({"..": {}}), "not a plain file name|folder '..'"),
    "a folder in a folder": (lambda s: s.description["folders"].update({"a/b": {}}), "lies in another one"),
    "a hidden folder": (lambda s: s.description["folders"].update({".git": {}}), r"folder '\.git'"),
    "no folder": (lambda s: s.description["folders"].update({"": {}}), "the source's folder ''"),
    "metadata": (lambda s: s.description["folders"]["vae"].update(metadata=[1]), "no JSON object of texts"),
    "metadata of numbers": (lambda s: s.description["folders"]["vae"].update(metadata={"a": 1}), "of texts"),
    "an entrance elsewhere": (lambda s: s.description["folders"]["vae"].update(entrance="../x.safetensors"), "shard"),
    "a file elsewhere": (lambda s: _shard(s, "unet/x.safetensors"), "is not in the folder 'vae'"),
    "no file": (lambda s: _shard(s, None), "is not in the folder 'vae'"),
    "a side file in place of weights": (
        lambda s: s.beside.update({"text_encoder/Model.safetensors": b"x"}),
        "are one file on some systems",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_a_table_may_say_of_folders_is_checked(case: str, pipe: Path, tmp_path: Path) -> None:
    change, message = HOSTILE[case]
    hhtld.convert(pipe, tmp_path / "p.hhtld", rules=[("*", "keep")])
    with open_source(tmp_path / "p.hhtld") as source:
        told = Told(source, json.loads(json.dumps(source.description)))
        change(told)
        with pytest.raises(FormatError, match=message):
            format_for_output("x/").write_source(told, tmp_path / "out")
    assert not (tmp_path / "out").exists()
