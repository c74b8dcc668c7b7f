"""`hhtld gate-parity`: whether the decoded model still says what the source says."""

from __future__ import annotations

import argparse
import json

from hhtld.commands.arguments import add_json, number, positive
from hhtld.commands.exit_codes import DONE, FAILED
from hhtld.display.streams import emit
from hhtld.errors import GateError

__all__ = ["DESCRIPTION", "EXAMPLES", "add_arguments", "run"]

DESCRIPTION = (
    "Compare a model with what its pack decodes to, on held-out prompts: agreement on the next token at every "
    "position, KL divergence, perplexity and greedy continuations of a causal language model; for a text encoder "
    "the cosines of 1,000 sentence embeddings and agreement on the nearest other sentence. One model is in memory "
    "at a time, as float32; the source's logits wait in a temporary file (TMPDIR). Exit code 1 when top-1 "
    "agreement is below --min-top1: the share itself is judged, its 95 % intervals are printed."
)
EXAMPLES = """\
  hhtld gate-parity snapshot/ model.hhtld
  hhtld gate-parity snapshot/ model.hhtld --prompts own.txt --min-top1 0.95 --report page.html
"""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
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
        "--min-top1", type=number, default=0.9, metavar="SHARE", help="top-1 agreement to reach (default 0.9)"
    )
    command.add_argument(
        "--max-tokens", type=positive, default=512, metavar="N", help="tokens of a prompt at most (default 512)"
    )
    command.add_argument(
        "--jobs", type=positive, default=1, metavar="N", help="threads (default 1; last bits depend on their number)"
    )
    command.add_argument("--report", metavar="FILE", help="write a page of tables as well (.html or .json)")
    add_json(command)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from hhtld.display.page import check_page
    from hhtld.display.progress_bar import progress_bar
    from hhtld.display.terminal import console
    from hhtld.evaluation.parity import gate_parity, print_parity
    from hhtld.evaluation.parity.page import write_parity_page
    from hhtld.evaluation.parity.prompts import chosen_prompts

    if arguments.report:
        check_page(arguments.report, [arguments.model, arguments.pack, arguments.prompts])
    total = sum(len(prompt.text.encode()) for prompt in chosen_prompts(arguments.prompts)[1])
    with progress_bar(total, wanted=not arguments.json) as progress:
        try:
            report = gate_parity(
                arguments.model,
                arguments.pack,
                arguments.prompts,
                min_top1=arguments.min_top1,
                max_tokens=arguments.max_tokens,
                jobs=arguments.jobs,
                progress=progress,
            )
        except GateError as missed:
            report = missed.report
    if arguments.json:
        emit(json.dumps(report.to_json(), indent=2, allow_nan=False))
    else:
        print_parity(report, console())
    if arguments.report:  # after the numbers are out: a page that cannot be written must not cost them
        write_parity_page(arguments.report, report)
    return DONE if report else FAILED
