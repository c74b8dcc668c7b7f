"""Gate 2: next tokens of a small language model and neighbours of a small encoder, beside their packs."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hhtld.api.convert import convert
from hhtld.commands.main import main
from hhtld.errors import FormatError, GateError, MissingExtraError, NonFiniteError
from hhtld.evaluation.parity import EmbeddingReport, ParityReport, Prompt, gate_parity
from hhtld.evaluation.parity import metrics as parity_metrics
from hhtld.evaluation.parity.metrics import (
    Agreement,
    PositionScores,
    compare_positions,
    first_difference,
    nearest_others,
)
from hhtld.evaluation.parity.prompts import chosen_prompts, parse_prompts, retrieval_sentences

WORDS = [f"w{i}" for i in range(500)]  # of the tokenizer in conftest.py
Writer = Callable[..., Any]
TEXTS = [" ".join(WORDS[(7 * i * i + 13 * j * (i + 1)) % 500] for j in range(12)) for i in range(6)]
PROMPTS = [Prompt("odd" if i % 2 else "even", text) for i, text in enumerate(TEXTS)]


# ---- numbers, without torch ----


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    e = np.exp(logits.astype(np.float64))
    return e / e.sum(axis=1, keepdims=True)


def test_scores_are_the_direct_ones(rng: np.random.Generator) -> None:
    source = rng.standard_normal((40, 50)).astype(np.float32)
    packed = (source + 0.7 * rng.standard_normal((40, 50))).astype(np.float32)
    ids = rng.integers(0, 50, 40).tolist()
    found = compare_positions(source, packed, ids)
    p, q = softmax(source), softmax(packed)
    best = source.argmax(axis=1)
    fives = np.argsort(-packed, axis=1, kind="stable")[:, :5]
    assert found.n_positions == 40
    assert found.top1 == sum(best == packed.argmax(axis=1))
    assert found.top5 == sum(b in five for b, five in zip(best, fives, strict=True))
    assert 0 < found.top1 < found.top5 < 40
    assert found.kl == pytest.approx((p * np.log(p / q)).sum(), rel=1e-12)
    assert found.nll_packed == pytest.approx(-np.log(q[range(40), ids]).sum(), rel=1e-12)
    assert found.perplexities[0] == pytest.approx(math.exp(-np.log(p[range(40), ids]).mean()), rel=1e-12)


def test_blocks_add_up(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    source, packed = rng.standard_normal((2, 9, 30)).astype(np.float32)
    whole = compare_positions(source, packed, [3] * 9)
    monkeypatch.setattr(parity_metrics, "_BLOCK_NBYTES", 8 * 30 * 2)
    parts = compare_positions(source, packed, [3] * 9)
    assert (parts.top1, parts.top5) == (whole.top1, whole.top5)
    assert parts.kl == pytest.approx(whole.kl, rel=1e-14)


def test_ties_go_to_the_lower_token() -> None:
    flat, last = np.zeros((1, 8), np.float32), np.eye(8, dtype=np.float32)[7:]
    assert compare_positions(flat, flat, [0]) == PositionScores(1, 1, 1, 0.0, math.log(8), math.log(8))
    found = compare_positions(last, flat, [0])  # token 7 is the last of eight equals
    assert (found.top1, found.top5) == (0, 0)


def test_logits_that_are_not_finite_are_refused() -> None:
    good = np.zeros((2, 4), np.float32)
    bad = good.copy()
    bad[1, 2] = np.nan
    with pytest.raises(NonFiniteError, match="not a number"):
        compare_positions(good, bad, [0, 0])


def test_intervals() -> None:
    found = Agreement.of([(90, 100)])
    assert found.share == 0.9
    assert found.wilson == pytest.approx((0.8256343, 0.9447709), abs=1e-6)  # from the formula's textbook form
    assert found.bootstrap is None
    assert Agreement.of([(5, 5)]).wilson[1] == 1.0
    prompts = [(10, 10), (0, 10), (10, 10), (5, 10)] * 5  # whole prompts fail: much less is known than of 200 coins
    clustered = Agreement.of(prompts)
    assert clustered.bootstrap is not None
    width = clustered.bootstrap[1] - clustered.bootstrap[0]
    assert width > 1.5 * (clustered.wilson[1] - clustered.wilson[0])
    assert Agreement.of(prompts) == clustered


def test_first_difference() -> None:
    assert first_difference([1, 2], [1, 2]) is None
    assert first_difference([1, 2, 3], [1, 4, 3]) == 1
    assert first_difference([1, 2], [1, 2, 3]) == 2


def test_nearest_others(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rng.standard_normal((23, 6)).astype(np.float32)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = unit @ unit.T - 3 * np.eye(23)
    monkeypatch.setattr(parity_metrics, "_BLOCK_NBYTES", 8 * 23 * 5)
    assert nearest_others(rows).tolist() == cosines.argmax(axis=1).tolist()


# ---- prompts ----


def test_builtin_prompts() -> None:
    origin, prompts = chosen_prompts("builtin")
    assert origin == "builtin"
    assert len(prompts) == 48
    kinds = {prompt.kind for prompt in prompts}
    assert kinds == {"prose", "code", "dialogue", "languages", "mathematics", "instructions", "tables"}
    assert len({prompt.text for prompt in prompts}) == 48


def test_sentences_are_a_thousand_different_ones_and_always_the_same() -> None:
    prompts = chosen_prompts("builtin")[1]
    found = retrieval_sentences(prompts, 1000)
    assert len({sentence.text for sentence in found}) == 1000
    assert found == retrieval_sentences(prompts, 1000)
    assert len({sentence.kind for sentence in found}) > 3


def test_three_forms_of_a_file_of_prompts() -> None:
    blocks = "a head\n=== code\n\nx = 1\n\n# y\n\n=== prose\nOne.\n==== no mark\n"
    assert parse_prompts(blocks, "p.txt") == [Prompt("code", "x = 1\n\n# y"), Prompt("prose", "One.\n==== no mark")]
    assert parse_prompts("one\n\ntwo\n", "p.txt") == [Prompt("text", "one"), Prompt("text", "two")]
    entries = json.dumps(["one", {"kind": "code", "text": "x"}, {"text": "y"}])
    assert parse_prompts(entries, "P.JSON") == [Prompt("text", "one"), Prompt("code", "x"), Prompt("text", "y")]


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("p.txt", "\n \n", "holds no prompt"),
        ("p.txt", "=== a\nx\n=== b\n\n", "prompt 2, of kind 'b', is empty"),
        ("p.json", "[", "not JSON"),
        ("p.json", "{}", "expected a JSON list"),
        ("p.json", "[1]", "expected strings or objects with a text"),
        ("p.json", '[{"kind": "x"}]', "expected strings or objects with a text"),
    ],
)
def test_bad_files_of_prompts(name: str, text: str, match: str) -> None:
    with pytest.raises(FormatError, match=match):
        parse_prompts(text, name)


def test_empty_prompts_and_bytes(tmp_path: Path) -> None:
    for prompts in ([], ["x", " "]):
        with pytest.raises(ValueError, match="prompts are empty"):
            chosen_prompts(prompts)
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FormatError, match="not UTF-8"):
        chosen_prompts(tmp_path / "p.txt")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hhtld\[transformers\]'"):
        gate_parity("model", "pack")


# ---- models ----


@pytest.fixture(scope="module")
def llama(write_llama: Writer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def packs(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("packs")
    for profile in ("bits:1.5", "bits:6"):
        convert(llama, folder / f"{profile}.hhtld", profile=profile, min_ratio=0)
    convert(llama, folder / "keep.hhtld", rules=[("*", "keep")], min_ratio=0)
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def bert(write_tokenizer: Writer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    transformers.BertModel(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture
def quiet() -> Iterator[None]:
    """Settings of the process as they were, whatever happened."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads(), torch.is_inference_mode_enabled()
    yield
    assert (torch.get_num_threads(), torch.is_inference_mode_enabled()) == before


@pytest.mark.usefixtures("quiet")
def test_a_pack_that_keeps_everything_agrees_in_everything(llama: Path, packs: dict[str, Path]) -> None:
    report = gate_parity(llama, packs["keep"], PROMPTS, min_top1=1.0)
    assert isinstance(report, ParityReport)
    assert report
    assert report.top1.share == 1.0
    assert report.scores.top5 == report.scores.n_positions == 6 * 11
    assert report.scores.kl == 0.0
    assert report.scores.nll_source == report.scores.nll_packed
    assert all(item.diverged_at is None and item.tokens[0] == item.tokens[1] for item in report.items)
    assert all(len(item.tokens[0]) == 20 or item.tokens[0][-1] == 0 for item in report.items)


@pytest.mark.usefixtures("quiet")
def test_numbers_are_those_of_the_two_models(llama: Path, packs: dict[str, Path]) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from hhtld.integrations.torch import load_state_dict

    with pytest.raises(GateError, match="asked 1: below") as caught:
        gate_parity(llama, packs["bits:1.5"], PROMPTS, min_top1=1.0)
    report = caught.value.report
    assert not report
    source = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    packed = transformers.AutoModelForCausalLM.from_config(source.config, dtype=torch.float32).eval()
    packed.load_state_dict(load_state_dict(packs["bits:1.5"], dtype="float32"), strict=False)
    packed.tie_weights()
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    agreed, divergence = 0, 0.0
    for item in report.items:
        ids = torch.tensor([tokenizer(item.prompt.text)["input_ids"]])
        with torch.inference_mode():
            a, b = (model(ids).logits[0, :-1].numpy() for model in (source, packed))
            for model, tokens in zip((source, packed), item.tokens, strict=True):
                said = model.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :].tolist()
                assert tokens == said
        p, q = softmax(a), softmax(b)
        agreed += int((a.argmax(1) == b.argmax(1)).sum())
        divergence += float((p * np.log(p / q)).sum())
    assert report.top1.agreed == agreed < report.top1.total
    assert report.scores.kl == pytest.approx(divergence, rel=1e-5)
    by_kind = report.kinds
    assert list(by_kind) == ["even", "odd"]
    assert sum(scores.top1 for _, scores in by_kind.values()) == agreed


@pytest.mark.usefixtures("quiet")
def test_more_bits_agree_more_and_runs_repeat(llama: Path, packs: dict[str, Path]) -> None:
    few, many, again = (gate_parity(llama, packs[p], TEXTS, min_top1=0) for p in ("bits:1.5", "bits:6", "bits:6"))
    assert few.top1.share < many.top1.share
    assert many.to_json() == again.to_json()


@pytest.mark.usefixtures("quiet")
def test_long_prompts_are_cut(llama: Path, packs: dict[str, Path]) -> None:
    long = " ".join(WORDS[:100])
    report = gate_parity(llama, packs["keep"], [long], max_tokens=8, n_continued=0)
    assert isinstance(report, ParityReport)
    assert report.scores.n_positions == 7
    assert report.items[0].tokens == ([], [])
    with pytest.raises(FormatError, match="64 positions, too few"):
        gate_parity(llama, packs["keep"], [long], n_continued=63)
    report = gate_parity(llama, packs["keep"], [long])  # 64 positions, 20 of them for the continuation
    assert isinstance(report, ParityReport)
    assert report.scores.n_positions == 43


@pytest.mark.usefixtures("quiet")
def test_an_encoder_is_measured_by_its_embeddings(bert: Path, tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    convert(bert, tmp_path / "keep.hhtld", rules=[("*", "keep")], min_ratio=0)
    convert(bert, tmp_path / "few.hhtld", profile="bits:1", min_ratio=0)
    report = gate_parity(bert, tmp_path / "keep.hhtld", [*TEXTS, TEXTS[0]], min_top1=1.0)
    assert isinstance(report, EmbeddingReport)
    assert len(report.sentences) == 6
    assert report.top1.share == 1.0
    assert report.cosines.min() == pytest.approx(1.0, abs=1e-12)
    few = gate_parity(bert, tmp_path / "few.hhtld", TEXTS, min_top1=0)
    assert isinstance(few, EmbeddingReport)
    assert 0 < few.cosines.max() < 0.999
    model = transformers.AutoModel.from_pretrained(bert)
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    with torch.inference_mode():
        states = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0).numpy() for text in TEXTS]
    assert few.neighbours[0].tolist() == nearest_others(np.stack(states)).tolist()
    assert few.to_json()["task"] == "embedding"
    with pytest.raises(FormatError, match="at least 3 different sentences"):
        gate_parity(bert, tmp_path / "keep.hhtld", ["one", "one", "two"])


# ---- what is refused ----


@pytest.mark.usefixtures("quiet")
def test_packs_of_other_models_are_named(
    write_llama: Writer, llama: Path, packs: dict[str, Path], tmp_path: Path
) -> None:
    deeper = write_llama(tmp_path / "deeper", num_hidden_layers=3)
    with pytest.raises(
        FormatError, match=r"'model\.layers\.2\.input_layernorm\.weight' of the source is missing.*6 more"
    ):
        gate_parity(deeper, packs["keep"], TEXTS)
    shallower = write_llama(tmp_path / "shallower", num_hidden_layers=1)
    with pytest.raises(FormatError, match=r"'model\.layers\.1\..*' is not in the source"):
        gate_parity(shallower, packs["keep"], TEXTS)
    wider = write_llama(tmp_path / "wider", intermediate_size=256)
    with pytest.raises(FormatError, match=r"mlp\.down_proj\.weight' is BF16 \(64, 128\), the source BF16 \(64, 256\)"):
        gate_parity(wider, packs["keep"], TEXTS)
    other = write_llama(tmp_path / "other", seed=1)
    with pytest.raises(FormatError, match="is kept but its bytes differ"):
        gate_parity(other, packs["keep"], TEXTS)
    with pytest.raises(FormatError, match=r"row \d+ of tensor .* has cosine .* on record has"):
        gate_parity(other, packs["bits:6"], TEXTS)


@pytest.mark.usefixtures("quiet")
def test_folders_that_are_no_such_model(
    write_llama: Writer, llama: Path, packs: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        gate_parity(tmp_path / "nowhere", packs["keep"], TEXTS)
    with pytest.raises(FormatError, match="must be a snapshot folder"):
        gate_parity(llama / "model.safetensors", packs["keep"], TEXTS)
    folder = write_llama(tmp_path / "changed")
    config = json.loads((folder / "config.json").read_text())
    for changes in ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, {"architectures": ["X"]}):
        (folder / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(FormatError, match="is neither a causal language model nor a text encoder"):
            gate_parity(folder, packs["keep"], TEXTS)
    (folder / "config.json").write_text(json.dumps({"model_type": "no such type"}))
    with pytest.raises(FormatError, match=r"cannot read config\.json"):
        gate_parity(folder, packs["keep"], TEXTS)
    (folder / "config.json").write_text(json.dumps({**config, "architectures": None}))
    assert gate_parity(folder, packs["keep"], TEXTS[:1], n_continued=0)  # a type that is causal and nothing else
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FormatError, match="has no tokenizer"):
        gate_parity(folder, packs["keep"], TEXTS)


@pytest.mark.usefixtures("quiet")
def test_arguments(llama: Path, packs: dict[str, Path]) -> None:
    for bad in ({"min_top1": 1.5}, {"max_tokens": 1}, {"jobs": 0}, {"n_continued": -1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            gate_parity(llama, packs["keep"], TEXTS, **bad)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(FormatError, match="prompt 1, 'w1', is 1 token long"):
        gate_parity(llama, packs["keep"], ["w1"])


@pytest.mark.usefixtures("quiet")
def test_no_room_for_logits(llama: Path, packs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from hhtld.errors import OutputError
    from hhtld.evaluation.parity.models import LogitSpool

    with pytest.raises(OutputError, match="set TMPDIR to a larger one"), LogitSpool(1 << 60):
        pass
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    with LogitSpool(1) as spool:
        spool.append(rows)
        spool.append(rows[:1, :2])
        assert spool[1].tolist() == [[0, 1]]
        assert spool[0].tolist() == rows.tolist()


# ---- command line ----


@pytest.fixture
def prompt_file(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"=== {prompt.kind}\n{prompt.text}\n" for prompt in PROMPTS))
    return path


@pytest.mark.usefixtures("quiet")
def test_command(
    llama: Path, packs: dict[str, Path], prompt_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["gate-parity", str(llama), str(packs["keep"]), "--prompts", str(prompt_file)]
    page = tmp_path / "page.html"
    assert main([*command, "--report", str(page)]) == 0
    text = capsys.readouterr().out
    for words in ("next-token top-1 agreement is 1.0000, asked 0.9: pass", "Wilson", "even", "Greedy continuations"):
        assert words in text
    html = page.read_text()
    assert "<script src" not in html
    assert "http" not in html.replace("http-equiv", "")
    assert html.count("<tr>") == 1 + 3 + 1 + 6  # two heads, two kinds and all, six prompts
    assert 'class="verdict good"' in html
    assert main([*command, "--json", "--max-tokens", "5", "--report", str(tmp_path / "page.json")]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == json.loads((tmp_path / "page.json").read_text())
    assert facts["schema"] == "hhtld.parity/1"
    assert facts["passed"] is True
    assert facts["task"] == "next-token"
    assert facts["top1"]["total"] == facts["all"]["n_positions"] == 6 * 4
    assert set(facts["kinds"]) == {"even", "odd"}
    assert len(facts["items"]) == 6


@pytest.mark.usefixtures("quiet")
def test_exit_codes(
    llama: Path, packs: dict[str, Path], prompt_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["gate-parity", str(llama), str(packs["bits:1.5"]), "--prompts", str(prompt_file)]
    assert main([*command, "--min-top1", "1"]) == 1
    assert "FAILED: next-token top-1 agreement" in capsys.readouterr().out
    assert main([*command, "--min-top1", "1", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["passed"] is False
    assert main([*command, "--min-top1", "2"]) == 2
    assert main([*command, "--prompts", str(tmp_path / "none.txt")]) == 3
    assert main(["gate-parity", str(tmp_path), str(packs["keep"]), "--prompts", str(prompt_file)]) == 3
    assert "must be a snapshot folder" in capsys.readouterr().err


@pytest.mark.usefixtures("quiet")
def test_command_for_an_encoder(
    bert: Path, prompt_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(bert, tmp_path / "keep.hhtld", rules=[("*", "keep")], min_ratio=0)
    command = ["gate-parity", str(bert), str(tmp_path / "keep.hhtld"), "--prompts", str(prompt_file)]
    assert main([*command, "--report", str(tmp_path / "page.html")]) == 0
    assert "agreement on the nearest other sentence is 1.0000" in capsys.readouterr().out
    assert "furthest from their packed selves" in (tmp_path / "page.html").read_text()
