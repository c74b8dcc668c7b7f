"""Recordings as WAV files, to listen to."""

from __future__ import annotations

import io
import os
import wave
from pathlib import Path

import numpy as np

from hhtld.errors import OutputError
from hhtld.evaluation.speech.report import SpeechReport, Wave
from hhtld.storage.atomic import replacing

__all__ = ["wav_bytes", "write_wavs"]


def wav_bytes(samples: Wave, sample_rate: int) -> bytes:
    """Return a recording as a WAV file of 16-bit mono samples."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(sample_rate)
        writer.writeframes(np.rint(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return file.getvalue()


def write_wavs(folder: str | os.PathLike[str], report: SpeechReport) -> None:
    """Write 01-original.wav, 01-decoded.wav and so on, to listen to.

    Raises
    ------
    OutputError
        If the folder or a file cannot be written.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(error.errno, f"cannot make {folder}: {error.strerror}") from error
    for number, item in enumerate(report.items, 1):
        for kind, samples in (("original", item.original), ("decoded", item.decoded)):
            with replacing(Path(folder) / f"{number:02d}-{kind}.wav") as file:
                file.write(wav_bytes(samples, report.sample_rate))
