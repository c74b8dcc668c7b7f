"""Profile parity from end to end: a small language model is run, and its pack keeps what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hhtld.api.convert import convert
from hhtld.commands.main import main
from hhtld.encoding.calibrated_rates import Measurement
from hhtld.errors import FormatError, GateError
from hhtld.evaluation.parity import gate_parity
from hhtld.formats import open_source

pytest.importorskip("transformers")
TEXT = "\n".join(" ".join(f"w{(3 * i * i + 17 * j * (i + 2)) % 500}" for j in range(20)) for i in range(24))
OTHER = [" ".join(f"w{(7 * i * i + 13 * j * (i + 1)) % 500}" for j in range(12)) for i in range(60)]


@pytest.fixture(scope="module")
def llama(write_llama: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("llama"), hidden_size=128, initializer_range=0.1)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def calibration(llama: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from hhtld.evaluation.calibrate import calibrate
    from hhtld.evaluation.calibration_file import write_calibration

    seen: list[int] = []
    found = calibrate(llama, text, progress=lambda stage, label, nbytes: seen.append(nbytes))
    assert len(seen) == 12 + 3  # texts that are fitted to, and levels
    path = tmp_path_factory.mktemp("calibration") / "c.safetensors"
    write_calibration(found, path)
    with open_source(llama) as source:
        n_bytes = sum(info.nbytes for info in source.infos().values())
    assert 0.99 * n_bytes < sum(seen) <= n_bytes, "a bar that tells how long it takes"
    return path


def test_what_a_run_tells(llama: Path, calibration: Path) -> None:
    from hhtld.evaluation.calibration_file import read_calibration

    found = read_calibration(calibration)
    names = set(found.costs)
    assert "model.embed_tokens.weight" in names
    assert len(names) == 1 + 2 * 7
    assert set(found.column_scales) == set(found.moments) == names  # the tied embedding is a head
    assert all(np.ptp(cost.rows) == 0 and cost.mean > 0 for cost in found.costs.values()), "240 tokens tell no rows"
    assert [measured.kl for measured in found.measurements] == sorted((m.kl for m in found.measurements), reverse=True)
    assert calibration.stat().st_size < 0.15 * 2 * sum(cost.n_weights for cost in found.costs.values())


def test_column_scales_are_those_of_what_layers_read(llama: Path, calibration: Path) -> None:
    import torch
    import transformers

    from hhtld.encoding.calibrated_rates import column_scale
    from hhtld.evaluation.calibration_file import read_calibration

    model = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    read: list[torch.Tensor] = []
    model.lm_head.register_forward_hook(lambda module, args, out: read.append(args[0][0]))
    with torch.inference_mode():
        for line in TEXT.splitlines()[::2]:
            model(torch.tensor([tokenizer(line)["input_ids"]]))
    states = torch.cat(read).double().numpy()
    weight = model.lm_head.weight.detach().double().numpy()
    found = read_calibration(calibration)
    expected = column_scale((states**2).mean(0), (weight**2).sum(0))
    np.testing.assert_allclose(found.column_scales["model.embed_tokens.weight"], expected, rtol=1e-4)
    products = states.T @ states
    told = found.moments["model.embed_tokens.weight"].dense()
    np.testing.assert_allclose(told.diagonal(), products.diagonal() / products.diagonal().max(), rtol=0.03, atol=1e-3)
    assert np.abs(told - products / products.diagonal().max()).mean() < 0.1 * np.abs(told).mean() + 0.02


def test_a_pack_reaches_its_target_on_other_text(llama: Path, calibration: Path, tmp_path: Path) -> None:
    report = convert(
        llama, tmp_path / "m.hhtld", profile="parity", calibrate=calibration, target_top1=0.65, files=False
    )
    convert(llama, tmp_path / "plain.hhtld", profile="bits:2", files=False, min_ratio=0)
    assert gate_parity(llama, tmp_path / "m.hhtld", OTHER, min_top1=0.65, n_continued=0)
    with pytest.raises(GateError):
        gate_parity(llama, tmp_path / "plain.hhtld", OTHER, min_top1=0.65, n_continued=0)
    assert report.ratio > 2


def test_the_command_runs_the_model_once(
    llama: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m.hhtld"
    command = ["convert", str(llama), str(out), "--profile", "parity", "--calibrate", str(text), "--json"]
    assert main([*command, "--target-top1", "0.7"]) == 0
    first = out.read_bytes()
    told = json.loads(capsys.readouterr().out)
    kept = tmp_path / "m.calibration.safetensors"
    assert kept.is_file()
    assert any(str(kept) in note for note in told["notes"])

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model was run again")

    monkeypatch.setattr("hhtld.evaluation.calibrate.calibrate", refuse)
    assert main([*command, "--target-top1", "0.7"]) == 0
    assert out.read_bytes() == first


def test_a_run_that_was_interrupted_goes_on(
    llama: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hhtld.evaluation import calibrate as module
    from hhtld.evaluation.calibration_file import read_calibration

    whole = module.calibrate(llama, text)
    monkeypatch.setattr(module, "PRODUCTS_NBYTES", 4 * 300**2)
    steps: list[int] = []

    def interrupt(stage: str, label: str, nbytes: int) -> None:
        steps.append(nbytes)
        if len(steps) == 14:  # in the second pass
            raise KeyboardInterrupt

    out = tmp_path / "m.hhtld"
    with pytest.raises(KeyboardInterrupt):
        convert(llama, out, calibrate=text, target_top1=0.7, progress=interrupt)
    kept = tmp_path / "m.calibration.safetensors"
    begun = read_calibration(kept)
    assert begun.facts["unfinished"] == "yes"
    assert begun.costs
    assert begun.moments
    assert not begun.measurements
    done = set(begun.moments)
    n_before = len(steps)
    assert convert(llama, out, calibrate=text, target_top1=0.7, progress=lambda *_: steps.append(0)).ratio > 2
    found = read_calibration(kept)
    assert "unfinished" not in found.facts
    assert done < set(found.moments) == set(whole.moments)
    assert len(steps) > n_before
    for name, moments in whole.moments.items():
        assert found.moments[name].tobytes() == moments.tobytes(), "as many passes as memory asks for, the same sums"
    assert found.measurements == whole.measurements


def test_a_calibrated_conversion_that_was_stopped_twice_gives_the_same_bytes(
    llama: Path, text: Path, tmp_path: Path
) -> None:
    class Stop(BaseException):
        """What stands for a process that ends."""

    out, options = tmp_path / "m.hhtld", {"calibrate": text, "target_top1": 0.7, "jobs": 1}
    stages: list[str] = []

    def stop_at(stage: str, n_done: int) -> Callable[[str, str, int], None]:
        def progress(told: str, label: str, nbytes: int) -> None:
            stages.append(told)
            if stages.count(stage) == n_done:
                raise Stop

        return progress

    with pytest.raises(Stop):
        convert(llama, out, progress=stop_at("calibrate", 13), **options)
    stages.clear()
    with pytest.raises(Stop):
        convert(llama, out, resume=True, progress=stop_at("encode", 3), **options)
    assert stages.count("calibrate") == 3, "what was fitted is not fitted again"
    assert not out.exists()
    stages.clear()
    convert(llama, out, resume=True, progress=stop_at("", 1), **options)
    assert stages.count("calibrate") == 0
    assert stages.count("resume") >= 2
    convert(llama, tmp_path / "whole.hhtld", **options)
    assert out.read_bytes() == (tmp_path / "whole.hhtld").read_bytes()


def test_the_report_says_how_much_of_the_text_was_read(llama: Path, text: Path, tmp_path: Path) -> None:
    options = {"calibrate": text, "target_bits": 5, "jobs": 1, "files": False}
    whole = convert(llama, tmp_path / "m.hhtld", **options)
    assert "the model read 480 of the 480 tokens of the calibration's text" in whole.notes
    few = convert(llama, tmp_path / "m.hhtld", calibrate_tokens=320, **options)
    assert "the model read 300 of the 480 tokens of the calibration's text" in few.notes, "not what was kept for all"


def test_a_model_whose_matrices_are_too_wide_for_feedback_has_costs(
    llama: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hhtld.evaluation import calibrate as module

    monkeypatch.setattr(module, "MAX_FEEDBACK_COLS", 16)
    monkeypatch.setattr(module, "LEVELS", (5.0, 4.0))
    found = module.calibrate(llama, text, n_tokens=200)
    assert not found.moments
    assert len(found.costs) == 15
    assert all(cost.mean > 0 for cost in found.costs.values())


def test_a_lower_level_is_measured_if_a_model_still_agrees(
    llama: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small model keeps nearly all of its answers at 3.25 bits, and nearly none at 1: nothing between is a guess."""
    from hhtld.evaluation import calibrate as module

    agreement = {5.25: 0.99, 4.25: 0.98, 3.25: 0.96, 2.25: 0.9}

    def measured(_: object, level: float) -> Measurement:
        return Measurement(level, agreement[level], 0.1, 1000, 20)

    monkeypatch.setattr(module._Answers, "measured", measured)
    found = module.calibrate(llama, text, n_tokens=200)
    assert {m.level: m.top1 for m in found.measurements} == agreement
    assert [m.level for m in found.measurements] == sorted(agreement)
    agreement[3.25] = 0.74
    assert [m.level for m in module.calibrate(llama, text, n_tokens=200).measurements] == [3.25, 4.25, 5.25]


def test_inputs_that_are_all_zeros_have_no_moments_to_speak_of() -> None:
    from hhtld.evaluation.calibrate import _moments

    assert not _moments(np.zeros((16, 16))).dense().any()


def test_a_model_none_of_whose_matrices_is_in_the_files_is_refused(
    llama: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hhtld.evaluation import calibrate as module

    monkeypatch.setattr(module, "matched", lambda model, source: {})
    with pytest.raises(FormatError, match="no weight matrix of the files is one of the model's parameters"):
        module.calibrate(llama, text)


def test_too_few_texts_are_refused(llama: Path) -> None:
    from hhtld.evaluation.calibrate import calibrate

    with pytest.raises(FormatError, match="1 text is too few for a calibration"):
        calibrate(llama, ["w1 w2 w3"])
    with pytest.raises(FormatError, match="3 texts are too few for a calibration"):
        calibrate(llama, ["w1 w2 w3"] * 3)
    with pytest.raises(FormatError, match="is 1 token long"):
        calibrate(llama, ["w1 w2 w3", "w1", "w2 w3", "w4 w5"])


def test_one_text_that_breaks_does_not_stand_for_all() -> None:
    from hhtld.evaluation.calibrate import typical

    rng = np.random.default_rng(0)
    sizes = [80] * 32
    agreed = [float(count) for count in rng.binomial(80, 0.9, 32)]
    mean, error = typical(agreed, sizes)
    assert mean == pytest.approx(np.mean(agreed) / 80, abs=0.003)
    assert error == pytest.approx(np.std(agreed, ddof=1) / 80 / 32**0.5, rel=0.15)
    broken = [20.0, *agreed[1:]]
    assert typical(broken, sizes)[0] == pytest.approx(mean, abs=0.005)
    assert np.mean(broken) / 80 < mean - 0.018
    assert typical(broken, sizes)[1] == pytest.approx(error, rel=0.25)
    two = [20.0, 20.0, *agreed[2:]]
    assert typical(two, sizes)[0] < mean - 0.03, "two of 32 are no accident"
    assert typical([3.0, 9.0], [10, 10]) == (pytest.approx(0.6), pytest.approx(0.3))
    assert typical([3.0, 18.0], [10, 20])[0] == pytest.approx(0.7), "positions count alike"


def test_rows_of_a_text_encoder_share_a_rate(
    text: Path, write_tokenizer: Callable[[Path], None], tmp_path: Path
) -> None:
    import transformers

    from hhtld.evaluation.calibrate import calibrate

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.BertModel(transformers.BertConfig(vocab_size=512, **sizes)).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    found = calibrate(tmp_path, text)
    assert all(np.ptp(costs.rows) == 0 for costs in found.costs.values())
    assert len({costs.mean for costs in found.costs.values()}) > 1
    assert all(isinstance(bits, float) for bits in found.bits(4).values())
