"""Gate 4: does a voice speak from its pack as it spoke from its own weights?

    from hhtld.evaluation.speech import find_rate, gate_wav

    report = gate_wav("voice.onnx", "voice.hhtld")  # raises GateError if it is not within 5 %
    print(report.median.envelope)
    print(find_rate("voice.onnx", convert=hhtld.convert).smallest.profile)  # "bits:4.5"

One graph in onnxruntime speaks every sentence twice: with its own weights, and with those of the pack in their place.
Both times it gets the same phonemes and no noise, and runs on one thread. Speaking needs the extra ``speech``;
`SpeechGate` raises `MissingExtraError` without it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from hhtld.errors import GateError, HeaderError, HhtldError, MissingExtraError, shown
from hhtld.evaluation.speech.metrics import SpeechScores, compare
from hhtld.evaluation.speech.report import (
    BOUNDS,
    TAIL_BOUNDS,
    Bounds,
    RateSearch,
    RateTrial,
    SpeechReport,
    SpokenSentence,
)
from hhtld.evaluation.speech.sentences import BUILTIN, Text, chosen_sentences
from hhtld.pack.opening import open_pack as open_file
from hhtld.pack.pack import HhtldPack
from hhtld.progress import Progress, silent

if TYPE_CHECKING:
    from hhtld.evaluation.speech.voice import Speaker, Wave

__all__ = [
    "BOUNDS",
    "PROFILES",
    "TAIL_BOUNDS",
    "Bounds",
    "RateSearch",
    "RateTrial",
    "SpeechGate",
    "SpeechReport",
    "SpeechScores",
    "SpokenSentence",
    "find_rate",
    "gate_wav",
]

PathLike = str | os.PathLike[str]

Convert = Callable[..., Any]
PROFILES = ("gates", *(f"bits:{half / 2:g}" for half in range(4, 13)))  # what find_rate tries: 2 to 6 bits in halves


def gate_wav(
    voice: PathLike, pack: HhtldPack | PathLike, text: Text = BUILTIN, *, progress: Progress | None = None
) -> SpeechReport:
    """Compare a Piper voice's speech with what its pack decodes to.

    Parameters
    ----------
    voice : path
        The .onnx file; its .onnx.json lies beside it.
    pack : HhtldPack or path
        Made from that .onnx.
    text : "builtin", path, or sequence of str
        Sentences; a file holds one on each line.
    progress : callable, optional
        Called with "original" or "decoded", a sentence and its bytes whenever one has been spoken.

    Returns
    -------
    SpeechReport

    Raises
    ------
    GateError
        If the median sentence is beyond `BOUNDS`, or more than a twentieth of the sentences beyond `TAIL_BOUNDS`; the
        error's `report` holds every number.
    FormatError
        If the files are no voice, the voice does not speak the same twice, or the pack was not made from it.
    MissingExtraError
        If onnx or onnxruntime is not installed, or the phonemes need piper, and it is not installed.
    """
    with SpeechGate(voice, text, progress=progress) as gate:
        report = gate.judge(pack)
    if not report:
        raise GateError(f"gate 4 failed for {report.pack}: {report.verdict}", report)
    return report


def find_rate(
    voice: PathLike,
    text: Text = BUILTIN,
    *,
    convert: Convert,
    profiles: Sequence[str] = PROFILES,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> RateSearch:
    """Convert a voice at several rates and judge each.

    Parameters
    ----------
    voice, text, progress : as in `gate_wav`
        The stages of progress are the profiles.
    convert : callable
        `hhtld.convert`, which stands above this package.
    profiles : sequence of str
    jobs : int, optional
        Threads that convert; the voice speaks on one.
    """
    with SpeechGate(voice, text, progress=progress) as gate:
        return gate.find(convert, profiles, jobs)


class SpeechGate:
    """A voice that says its sentences once and judges packs against them; a context manager.

    Parameters
    ----------
    voice, text, progress : as in `gate_wav`
    """

    def __init__(self, voice: PathLike, text: Text = BUILTIN, *, progress: Progress | None = None) -> None:
        try:
            from hhtld.evaluation.speech.voice import Voice
        except ImportError as error:
            raise MissingExtraError(
                f"hhtld.evaluation.speech needs onnx and onnxruntime ({error}): pip install 'hhtld[speech]'"
            ) from error

        self._progress = progress or silent
        self._from, self._sentences = chosen_sentences(text)
        self._voice = Voice(voice)
        self._phonemes = [self._voice.phonemised(sentence) for sentence in self._sentences]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._voice.__exit__()

    @cached_property
    def _originals(self) -> list[Wave]:
        speaker = self._voice.speaker()
        return [self._original(speaker, number) for number in range(len(self._sentences))]

    def _original(self, speaker: Speaker, number: int) -> Wave:
        """Say a sentence twice: without this check, noise of the graph itself would count against the pack."""
        where = f"{self._voice.path}: sentence {number + 1}, {shown(self._sentences[number], 40)}"
        try:
            first, second = (speaker.say(self._phonemes[number]) for _ in range(2))
        except HhtldError as error:
            raise HeaderError(f"{where}: {error}") from error
        if not np.isfinite(first).all() or not first.any():
            raise HeaderError(f"{where}: the voice itself says {'nothing' if np.isfinite(first).all() else 'no sound'}")
        if first.size != second.size:
            raise HeaderError(f"{where}: two runs differ, {first.size} and {second.size} samples long: {_WHY}")
        if not np.array_equal(first, second):
            place = int(np.flatnonzero(first != second)[0])
            raise HeaderError(f"{where}: two runs differ from sample {place} on: {_WHY}")
        self._progress("original", self._sentences[number], len(self._sentences[number].encode()))
        return first

    def judge(self, pack: HhtldPack | PathLike, stage: str = "decoded") -> SpeechReport:
        """Let a pack say the sentences; a pack that fails is reported, and nothing is raised."""
        if not isinstance(pack, HhtldPack):
            with open_file(pack) as opened:
                return self._report(opened, os.fspath(pack), stage)
        return self._report(pack, "the pack", stage)

    def _report(self, pack: HhtldPack, where: str, stage: str) -> SpeechReport:
        speaker = self._voice.speaker(pack, where)  # before the originals, so that a wrong pack fails at once
        items = []
        for sentence, phonemes, original in zip(self._sentences, self._phonemes, self._originals, strict=True):
            decoded, note = _said(speaker, phonemes)
            scores = compare(original, decoded, self._voice.sample_rate)
            items.append(SpokenSentence(sentence, original, decoded, scores, note))
            self._progress(stage, sentence, len(sentence.encode()))
        return SpeechReport(str(self._voice.path), where, self._from, self._voice.sample_rate, items)

    def find(self, convert: Convert, profiles: Sequence[str] = PROFILES, jobs: int | None = None) -> RateSearch:
        """Convert the voice at each profile with `hhtld.convert`, in a temporary folder, and judge what comes of it."""
        if not profiles:
            raise ValueError("profiles are empty: give at least one")
        with tempfile.TemporaryDirectory(prefix="hhtld-") as folder:
            trials = [self._trial(convert, profile, Path(folder) / "voice.hhtld", jobs) for profile in profiles]
        trials.sort(key=lambda trial: trial.nbytes)
        return RateSearch(str(self._voice.path), self._from, trials)

    def _trial(self, convert: Convert, profile: str, target: Path, jobs: int | None) -> RateTrial:
        try:
            conversion = convert(self._voice.path, target, profile=profile, jobs=jobs)
        except GateError as missed:  # of the rows; whether the voice speaks is another question
            conversion = missed.report
        with open_file(target) as pack:
            report = self._report(pack, profile, profile)
        return RateTrial(profile, conversion.target_nbytes, conversion.ratio, report)


def _said(speaker: Speaker, phonemes: list[list[int]]) -> tuple[Wave, str]:
    """Return the samples of a sentence, and why there are none, or ""."""
    try:
        samples = speaker.say(phonemes)
    except HhtldError as error:
        return np.empty(0, np.float32), str(error)
    if not np.isfinite(samples).all():
        return np.empty(0, np.float32), "samples are not finite"
    return samples, ""


_WHY = "it draws random numbers of its own that scales of 0 do not silence, so its pack cannot be judged"
