"""`hhtld gate-wav`: whether a voice speaks from its pack as it spoke before."""

from __future__ import annotations

import argparse
import json

from hhtld.commands.arguments import add_json
from hhtld.commands.exit_codes import DONE, FAILED
from hhtld.display.streams import emit

__all__ = ["DESCRIPTION", "EXAMPLES", "add_arguments", "run"]

DESCRIPTION = (
    "Let a Piper voice say sentences with its own weights and with those its pack decodes to: the same graph and "
    "phonemes, no noise, one thread, offline. 'Within 5 %' means, for the median sentence: RMS, how loud it is; "
    "zero crossings a second, how bright, silence left out; duration, how slowly it speaks; each differs from the "
    "original's by at most 0.05 of it; and the RMS envelopes in 20 ms frames, when it is loud and when it pauses, "
    "correlate by 0.95 or more. Of each score all but a twentieth of the sentences must be within 10 % and 0.90. "
    "Envelopes are aligned first, by dynamic time warping of the spectra over at most 150 ms: at low rates "
    "durations change, and equal times are not equal sounds. 'unaligned' tells the correlation without it, "
    "'shift' what it moved. Spectrum, the log-spectral distance, is told and not judged. Exit code 1 when not "
    "within."
)
EXAMPLES = """\
  hhtld gate-wav voice.onnx voice.hhtld --wav sounds/
  hhtld gate-wav voice.onnx --find
"""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    command.add_argument("voice", metavar="VOICE", help="a Piper voice: .onnx, with its .onnx.json beside it")
    command.add_argument(
        "pack", metavar="PACK", nargs="?", help="the .hhtld made from that .onnx (--find does without)"
    )
    command.add_argument(
        "--text", default="builtin", metavar="FILE", help="one sentence a line (default: builtin, English ones)"
    )
    command.add_argument(
        "--find",
        action="store_true",
        help="convert VOICE at profile gates and at 2 to 6 bits in halves, in temporary files, and show size and "
        "scores of each and the smallest that passes",
    )
    command.add_argument(
        "--report",
        metavar="FILE",
        help="write a page of tables, plots and sound as well (.html, extra 'report'; or .json)",
    )
    command.add_argument("--wav", metavar="FOLDER", help="write what was said there, as WAV files")
    add_json(command)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    if arguments.pack is None and not arguments.find:
        raise ValueError("gate-wav compares VOICE with PACK: name the .hhtld made from it, or ask for --find")
    if arguments.pack is None and (arguments.report or arguments.wav):
        raise ValueError("--report and --wav are of what PACK says; name the .hhtld")
    from hhtld.api.convert import convert
    from hhtld.display.page import check_page
    from hhtld.display.progress_bar import progress_bar
    from hhtld.display.terminal import console
    from hhtld.evaluation.speech import SpeechGate
    from hhtld.evaluation.speech.page import write_speech_page
    from hhtld.evaluation.speech.report import print_rates, print_speech
    from hhtld.evaluation.speech.sentences import chosen_sentences
    from hhtld.evaluation.speech.wav import write_wavs

    if arguments.report:
        check_page(arguments.report, [arguments.voice, arguments.pack, arguments.text], draws=True)
    total = sum(len(sentence.encode()) for sentence in chosen_sentences(arguments.text)[1])
    with (
        progress_bar(total, wanted=not arguments.json) as progress,
        SpeechGate(arguments.voice, arguments.text, progress=progress) as gate,
    ):
        report = gate.judge(arguments.pack) if arguments.pack is not None else None
        search = gate.find(convert) if arguments.find else None
    if arguments.json:
        rates = search.to_json() if search is not None else None
        facts = rates if report is None else report.to_json() | ({"rates": rates} if rates else {})
        emit(json.dumps(facts, indent=2, allow_nan=False))
    else:
        if report is not None:
            print_speech(report, console())
        if search is not None:
            print_rates(search, console())
    if report is None:
        return DONE if search else FAILED
    if arguments.wav:  # after the numbers are out, as the page
        write_wavs(arguments.wav, report)
    if arguments.report:
        write_speech_page(arguments.report, report)
    return DONE if report else FAILED
