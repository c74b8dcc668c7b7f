"""What `hhtld convert` prints: what became of the tensors, whether gates passed, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from hhtld.api.conversion_report import ConversionReport, TensorOutcome
from hhtld.commands.option_names import as_options
from hhtld.display.gate_table import gate_table
from hhtld.display.numbers import counted, human_nbytes, reached, shape_text
from hhtld.display.tables import alike, tensor_table
from hhtld.display.terminal import EXPLAINED, safe
from hhtld.formats.hf import loads_with_transformers

__all__ = ["print_conversion"]

_USES = {
    "lookup": "profile lookup routes and looks up; it does not reconstruct weights",
    "f32": "profile f32 looks rows up in a palette of real ones; it does not reconstruct weights",
    "bits": "a rate says nothing about a model's answers: hhtld gate-parity or gate-wav measures them",
}


def print_conversion(report: ConversionReport, out: Console, every: bool = True) -> None:
    """Print a report: tables, then what was made, what it is good for and what to type next.

    Where not `every` tensor is asked for, those whose names differ in numbers alone share a line.
    """
    if report.profile is None:
        verb = "would take" if report.dry_run else "is written:"
        _say(f"{report.target} {verb} {human_nbytes(report.target_nbytes)}; {report.seconds:.1f} s", out)
    else:
        _print_tables(report, out, every)
        for line in _summary(report):
            _say(line, out)
    for note in report.notes:
        _say(f"note: {note}", out)
    if report.profile is not None:
        _say(f"next: {'; '.join(_next_steps(report))}", out)
    if not report:
        failed = f"FAILED: {report.target} is written, but {report.gates.verdict()}"
        out.print(Text(as_options(failed), "bold red"))


def _say(line: str, out: Console) -> None:
    out.print(Text(as_options(line)))


def _print_tables(report: ConversionReport, out: Console, every: bool) -> None:
    encoded = {t.info.name: t for t in report.tensors if t.regime is not None}
    if encoded:
        _print_encoded(report, encoded, out, every)
    if (report.dry_run or not encoded) and not report.gates.unreached:
        return
    if encoded:
        out.print()
    out.print(gate_table(report.gates))
    if not report.gates.enforced and not report.dry_run:
        _say(f"The gates are shown, not enforced, for profile {report.profile}.", out)


def _print_encoded(report: ConversionReport, encoded: dict[str, TensorOutcome], out: Console, every: bool) -> None:
    lines, notes = alike(list(encoded), lambda name: _kind(encoded[name]), every)
    rows = [_row(name, [encoded[each] for each in names]) for name, names in lines]
    headings = ("encoded tensor", ">tensors", "shape", "codec", "regime", ">source", ">file", ">bits/weight")
    spared = ("why", "codec", "tensors", "source", "regime", "p5", "shape")
    if report.dry_run:
        notes.append(EXPLAINED)
    out.print(tensor_table((*headings, ">median", ">p5", "why"), rows, spared=spared, notes=notes))


def _kind(tensor: TensorOutcome) -> tuple[Any, ...]:
    """What tensors of one line have in common."""
    return tensor.info.shape, tensor.info.dtype.name, tensor.codec, tensor.regime, tensor.alias_of is None


def _row(name: str, tensors: Sequence[TensorOutcome]) -> tuple[Any, ...]:
    first = tensors[0]
    measured = [tensor.cosines for tensor in tensors if tensor.cosines is not None]
    predicted = [tensor.predicted_median for tensor in tensors if tensor.predicted_median is not None]
    median = p5 = ""
    if measured:
        median, p5 = (reached(min(values)) for values in zip(*((c.median, c.p5) for c in measured), strict=True))
    elif predicted:
        median = f"~{min(predicted):.4f}"
    return (
        safe(name),
        f"{len(tensors):,}",
        shape_text(first.info.shape),
        first.codec if first.alias_of is None else "tied",
        first.regime,
        human_nbytes(sum(tensor.source_nbytes for tensor in tensors)),
        human_nbytes(sum(tensor.nbytes for tensor in tensors)),
        f"{sum(tensor.bits_per_weight for tensor in tensors) / len(tensors):.3f}",
        median,
        p5,
        safe(first.regime_reason or ""),
    )


def _summary(report: ConversionReport) -> Iterator[str]:
    size, bf16 = human_nbytes(report.target_nbytes), human_nbytes(report.bf16_nbytes)
    verb = "would take about" if report.dry_run else "takes"
    if report.ratio >= 1:
        how = f"{reached(report.ratio, 2)} times smaller than"
    else:
        how = f"{1 / (report.ratio or 1):.2f} times as large as"
    yield f"{report.target} {verb} {size}: {how} the model as bfloat16, {bf16}"
    if report.source_nbytes < report.bf16_nbytes:
        times = report.source_nbytes / report.target_nbytes if report.target_nbytes else 0.0
        yield f"the source as it is stored, {human_nbytes(report.source_nbytes)}, is {times:.2f} times that"
    tied = sum(t.alias_of is not None for t in report.tensors)
    encoded = sum(t.regime is not None and t.alias_of is None for t in report.tensors)
    yield (
        f"{counted(encoded, 'tensor')} encoded, {len(report.tensors) - encoded - tied:,} kept byte for byte"
        + (f", {tied:,} tied" if tied else "")
        + f"; source {human_nbytes(report.source_nbytes)}"
        + (f", {human_nbytes(report.files_nbytes)} of side files on both sides" if report.files_nbytes else "")
        + f"; {report.seconds:.1f} s"
    )
    if report.expected is not None:
        threads = "one thread" if report.expected["jobs"] == 1 else f"{report.expected['jobs']} threads"
        yield (
            f"it would take about {report.expected['seconds']:.0f} s with {threads} as fast as coding a sample was "
            f"just now, and at most {human_nbytes(report.expected['memory_nbytes'])} of memory beyond Python's own"
        )
        yield _certainty(report.expected["sampled_share"])
    use = _USES.get((report.profile or "").partition(":")[0])
    if use is not None and encoded:
        yield use


def _certainty(share: float) -> str:
    if share == 1:
        return "sizes come from samples of every group of tensors, and may be 3 % off"
    return (
        f"sizes come from samples of groups with {100 * share:.0f} % of the weights, and may be 3 % off there; "
        "the others are taken to need the rate of the group most like them"
    )


def _next_steps(report: ConversionReport) -> Iterator[str]:
    """Commands to type after it, and the line of Python that opens what was written."""
    source, target = shlex.quote(report.source), shlex.quote(report.target)
    if report.dry_run:
        yield "the same command without --dry-run writes it"
        return
    if not Path(report.target).is_dir():
        yield f"hhtld verify {target} {source} checks every row"
        yield f"hhtld.open({report.target!r}) reads rows in Python"
    elif loads_with_transformers(Path(report.target)):
        yield f"hhtld.integrations.transformers.from_pretrained({report.target!r}) loads it in Python"
    else:
        yield f"hhtld convert {target} plain/ makes a folder that loads as the source did"
    if report.is_text_model:
        yield f"hhtld gate-parity {source} {target} compares the models' answers"
