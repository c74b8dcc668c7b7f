"""Converting: from any readable source to any writable format, with a report of every number."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from hhtld.api.advice import kept_notes, profile_notes, ratio_advice, size_note
from hhtld.api.conversion_report import ConversionReport, tell_as_stored
from hhtld.api.counting import count_files, count_pack, count_predicted, count_source, stored_bits
from hhtld.api.executors import check_unchanged, crew, open_in_worker
from hhtld.api.run_options import Run
from hhtld.api.targets import at_level, level_for_bits
from hhtld.encoding.calibrated_rates import Calibration
from hhtld.encoding.fingerprint import source_facts
from hhtld.encoding.gate_report import GateReport
from hhtld.encoding.options import Encoding
from hhtld.encoding.plan import Plan, check_quantized, make_plan
from hhtld.encoding.resources import Work
from hhtld.errors import GateError, QuantizedError
from hhtld.evaluation.calibration_file import calibrated
from hhtld.formats import format_for_output, open_source
from hhtld.formats.base import Format
from hhtld.gates import Threshold
from hhtld.pack.source import PackSource
from hhtld.progress import Progress, silent
from hhtld.sources.contract import TensorSource
from hhtld.sources.crew import Crew, default_jobs, workers
from hhtld.sources.reopened import ReopenedSource
from hhtld.sources.selection import select_tensors
from hhtld.storage.file_reading import Location
from hhtld.storage.journal import journal_path, partial_path
from hhtld.storage.locations import locate, output_path, spelled

__all__ = ["convert"]

_TARGET_TOP1 = 0.9  # with a calibration, if nothing else is asked


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    profile: str | None = None,
    rules: Sequence[tuple[str, str]] = (),
    roles: Sequence[tuple[str, str]] = (),
    gates: Mapping[str, Threshold] | None = None,
    min_ratio: float | None = None,
    allow_keep: bool = False,
    to: str | None = None,
    jobs: int | None = None,
    executor: str | Executor | None = None,
    memory: int | None = None,
    budget: int | None = None,
    resume: bool = False,
    nonfinite: str = "refuse",
    quantized: str = "refuse",
    seed: int | None = None,
    column_scales: Mapping[str, ArrayLike] | None = None,
    rates: Mapping[str, ArrayLike] | None = None,
    calibration: Calibration | None = None,
    calibrate: Calibration | str | os.PathLike[str] | None = None,
    calibrate_tokens: int | None = None,
    target_top1: float | None = None,
    target_bits: float | None = None,
    files: bool = True,
    dry_run: bool = False,
    progress: Progress | None = None,
    original: str | os.PathLike[str] | None = None,
    tensors: Sequence[str] = (),
    rows: slice | None = None,
    max_nbytes: int | None = None,
    codes: bool = False,
    type: str | None = None,
) -> ConversionReport:
    """Convert a source to a file or a folder.

    Parameters
    ----------
    src : path
        A .safetensors file, a sharded snapshot folder or its index, a model's folder in a hub's cache, a .hhtld file,
        a packed folder, the URL of one of these, a .gguf or .onnx file, or "demo:".
    dst : path
        Its suffix chooses the format unless `to` names one. An existing file is replaced once the
        new one is complete and verified. A name without suffix, one that ends in a slash and an empty folder are
        written as a model folder; a folder that holds something is refused.
    only : sequence of glob
        Tensors whose names match one of them are converted, as if the source had no others; all if there is none. A
        debug export (.h5) takes `tensors` instead.
    skip : sequence of glob
        Tensors whose names match one of them are left out, so that a large table and the rest of its model can lie in
        two files. Neither is for formats whose files are loaded as whole models: .gguf, .onnx and `to="hf"`.
    profile : str
        "parity" (the default), "gates", "bits:B", "lookup" or "f32". This, `rules`, `roles`, `gates`, `min_ratio`,
        `seed`, `column_scales`, `rates`, `calibration`, `calibrate`, `calibrate_tokens`, `target_top1` and
        `target_bits` are for formats that encode only: .hhtld, and packed folders (`to="hf"`).
    rules : sequence of (glob, profile)
        The first whose glob matches a tensor's name decides for it; "keep" keeps it as it is.
    roles : sequence of (glob, "index" or "argmax")
        The first whose glob matches a tensor's name decides whether each of its rows must keep its identity, as those
        of tables and heads must, and what gates ask of it; see `hhtld.sources.regimes`.
    gates : mapping of "argmax" and "index" to Threshold, optional
        Cosines that rows under "gates" and "parity" must reach instead of `hhtld.gates.THRESHOLDS` and
        `hhtld.gates.PARITY_THRESHOLD`.
    min_ratio : float
        Bytes as bfloat16 over the file that profiles "gates" and "parity" must reach, 2 by default; a finite number,
        and 0 asks for none. A file that is larger than its source as stored fails too, unless `min_ratio` is below 1.
        Not asked if nothing is encoded.
    allow_keep : bool
        Whether tensors that are kept byte for byte, because no rate reaches what `gates` ask, pass; they are told
        either way.
    jobs : int, optional
        Threads; all processors by default. The bytes are the same for any number.
    executor : str or concurrent.futures.Executor, optional
        "threads" (the default), "dask:local" for `jobs` worker processes on this machine, "dask:ADDRESS" for a
        cluster whose workers reach `src` by the same path (extra `dask`); or any executor, given `2 * jobs` tasks at
        most at a time (not the one whose last free worker makes this call: it would wait for itself). For formats that
        encode only, as the next two.
    memory : int
        Bytes to stay below, beyond what the interpreter and its modules take; 1 GiB by default.
    budget : int
        Bytes that all tensors of a .hhtld file may take decoded, on disk: a small file may declare more than any disk
        holds. 64 GiB by default, or 100 times the file where that is more.
    resume : bool
        Continue what an earlier conversion of the same source with the same settings left beside `dst` when it was
        interrupted, killed, or could not write.
    nonfinite : {"refuse", "keep"}
        What becomes of weight tensors that hold an infinity or NaN.
    quantized : {"refuse", "keep"}
        What becomes of a model whose weights are quantized already (GPTQ, AWQ, bitsandbytes, MLX, ...): refused, or
        what belongs to quantized weights is kept byte for byte and the rest is encoded.
    seed : int
        Of the rotations, 0 by default.
    column_scales : mapping of str to array (n_cols,), optional
        See `hhtld.encoding.options.Encoding`. A dry run predicts without them.
    rates : mapping of str to number or array (n_rows,), optional
        Bits a weight, 1 to 6, for tensors of profile "parity", or for each of their rows; see
        `hhtld.encoding.options.Encoding`.
    calibration : Calibration, optional
        For profile "parity": what a run of the model told, from `hhtld.evaluation.calibrate.calibrate`.
    calibrate : path, "builtin" or Calibration, optional
        The same from a text that the model of `src` is run on, or from what an earlier run told
        (`DST.calibration.safetensors`); see `hhtld.evaluation.calibration_file.calibrated`. Without it every group gets
        the rate at which its rows lose little (`hhtld.gates.PARITY_THRESHOLD`).
    calibrate_tokens : int, optional
        About how many tokens of the text the model reads, spread over all of its texts and kinds; 6656 by default. A
        text encoder is fitted to 8/13 of them, and judged on the beginnings of at most 600 sentences, proportionally
        fewer below the default.
    target_top1 : float, optional
        Share of next tokens that shall stay the same, for profile "parity" with a calibration; 0.9 by default.
    target_bits : float, optional
        Bits a weight that the pack may take, all of the file counted but side files, instead of `target_top1`. A note
        names the tensors if it takes more, because they turned out to need it while their rows were coded.
    files : bool
        Whether the model's side files (config, tokenizer, ...; see `hhtld.storage.side_files`) come along into .hhtld
        files and folders. They count on both sides of the ratio.
    dry_run : bool
        Predict sizes and cosines, write nothing.
    progress : callable, optional
        Called with a stage, a tensor's name and its bytes when that stage is done with it.
    original, tensors, rows, max_nbytes, codes
        Of a debug export (.h5): what `src` was made from, names, rows and size to export, and whether Slot T's
        codes are; see `hhtld.formats.hdf5.export.export_pack`.
    type : {"source", "F32", "F16", "BF16", "Q8_0"}, optional
        Of a .gguf file: the type of its matrices; "source", the default, gives each the one that it had in the GGUF
        file that `src` came from. See `hhtld.formats.gguf.writing`.

    Returns
    -------
    ConversionReport

    Raises
    ------
    GateError
        If profile "gates" or "parity" misses a gate. The file is complete and stays; the report is the error's.
    FormatError, NonFiniteError
        If the source cannot be converted.
    QuantizedError
        If its weights are quantized already.
    BudgetError
        If `memory` does not suffice, before anything is written.
    OutputError
        If the target cannot be written; what stood there before is untouched.
    """
    if calibration is not None:
        if calibrate is not None:
            raise ValueError("calibration and calibrate say the same: give one")
        calibrate = calibration
    encoding = Encoding(
        profile=profile,
        rules=rules,
        roles=roles,
        gates=gates,
        min_ratio=min_ratio,
        allow_keep=allow_keep,
        nonfinite=nonfinite,
        quantized=quantized,
        seed=seed,
        column_scales=column_scales,
        rates=rates,
        calibrate=calibrate,
        calibrate_tokens=calibrate_tokens,
        target_top1=target_top1,
        target_bits=target_bits,
    )
    run = Run(
        jobs=jobs or default_jobs(),
        executor=executor,
        memory=memory,
        budget=budget,
        resume=resume,
        files=files,
        dry_run=dry_run,
        progress=progress or silent,
    )
    export = {
        "original": original,
        "tensors": tuple(tensors) or None,
        "rows": rows,
        "max_nbytes": max_nbytes,
        "codes": codes or None,
        "type": type,
    }
    export = {key: value for key, value in export.items() if value is not None}
    return _converted(src, dst, to, encoding, run, export, only, skip)


def _converted(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    to: str | None,
    encoding: Encoding,
    run: Run,
    export: dict[str, Any],
    only: Sequence[str],
    skip: Sequence[str],
) -> ConversionReport:
    """Convert with checked options; `export` holds those of one format that were given."""
    started = time.perf_counter()
    encoding.check_values()
    source_path, target = locate(src), output_path(dst)
    output = format_for_output(dst, to)
    _check_output(output, encoding, run, export)
    _check_selection(output, encoding, only, skip)
    original_path = locate(export["original"]) if "original" in export else None
    for path in (source_path, original_path):
        if path is not None:
            _check_apart(target, path, output)
    plan: Plan | None = None
    with ExitStack() as stack:
        whole = stack.enter_context(open_source(source_path))
        if isinstance(whole, PackSource) and "max_nbytes" not in output.options:
            whole.check_budget(run.budget, "budget (--budget)")
        source = select_tensors(whole, only, skip)
        if original_path is not None:
            export = export | {"original": stack.enter_context(open_source(original_path))}
        report = ConversionReport(spelled(src), str(target), None, GateReport(enforced=False), dry_run=run.dry_run)
        if output.encodes:
            plan = _encode(report, output, source, whole, source_path, target, encoding, run)
        else:
            _copy(report, output, source, target, run, export)
        tell_as_stored(report, source)
        if run.files and output.name in ("folder", "hf", "hhtld"):
            report.notes += source.file_notes
    _judge(report, plan, encoding)
    report.seconds = time.perf_counter() - started
    if not report:
        raise GateError(f"{target} is written, but {report.gates.verdict()}", report)
    return report


def _check_output(output: Format, encoding: Encoding, run: Run, export: Mapping[str, Any]) -> None:
    """Raise `ValueError` for options that the format of the target does not take, or that contradict one another."""
    if not set(export) <= output.options:
        untaken = sorted(set(export) - output.options)
        takes = "a .gguf file" if untaken == ["type"] else "a debug export (.h5)"
        raise ValueError(f"format {output.name!r} takes no {_listed(untaken)}; only {takes} does")
    if not run.files and output.name not in ("hhtld", "folder"):
        raise ValueError(f"files=False (--no-files) is for .hhtld files and folders, not for format {output.name!r}")
    others = _listed(encoding.given() | run.given())
    if others and not output.encodes:
        raise ValueError(
            f"format {output.name!r} takes no {others}; only formats that encode do: .hhtld, and to='hf' (--to hf)"
        )
    encoding.check_calibration()
    if run.dry_run and "max_nbytes" in output.options:
        raise ValueError("dry_run (--dry-run) predicts what is encoded, and an export encodes nothing")


def _check_selection(output: Format, encoding: Encoding, only: Sequence[str], skip: Sequence[str]) -> None:
    """Raise `ValueError` if tensors are chosen although all, or others, are needed."""
    given = _listed(keyword for keyword, globs in (("only", only), ("skip", skip)) if globs)
    if given and "tensors" in output.options:
        raise ValueError(f"format {output.name!r} takes no {given}; tensors (--tensor) choose what it shows")
    if given and output.name in ("gguf", "hf", "onnx"):
        raise ValueError(f"format {output.name!r} takes no {given}; what it writes is loaded as a whole model")
    if given and encoding.calibrate is not None:
        raise ValueError(f"calibrate (--calibrate) runs the whole model, and {given} would leave tensors of it out")


def _listed(keywords: Iterable[str]) -> str:
    """Return keywords for a message, each with its option in brackets if the command line has one."""
    spelled_otherwise = {"rules": "--rule", "roles": "--role", "gates": "--gate", "tensors": "--tensor"}
    options = spelled_otherwise | {"max_nbytes": "--max-size", "column_scales": ""}
    named = ((keyword, options.get(keyword, f"--{keyword.replace('_', '-')}")) for keyword in keywords)
    return " and ".join(f"{keyword} ({option})" if option else keyword for keyword, option in named)


def _check_apart(target: Path, path: Location, output: Format) -> None:
    """Raise `ValueError` if writing the target would replace, or lie inside, what is read."""
    what = _overwrites(target, path)
    if what is not None:
        raise ValueError(f"{what} the source itself; give the result another name")
    if isinstance(path, Path) and output.name in ("folder", "hf") and path.is_dir() and _inside(target, path):
        raise ValueError(f"{target} lies inside the source folder {path}; give a folder outside of it")


def _copy(
    report: ConversionReport,
    output: Format,
    source: TensorSource,
    target: Path,
    run: Run,
    export: Mapping[str, Any],
) -> None:
    """Write tensors as they are, and count them."""
    with workers(run.jobs) as threads:
        offered = {"executor": threads, "progress": run.progress, "files": run.files}
        taken = dict(export) | {key: value for key, value in offered.items() if key in output.options}
        output.check_source(source, **taken)
        if not run.dry_run:
            report.notes = output.write_source(source, target, **taken) or []
    report.notes += source.notes
    count_source(report, source, target)
    count_files(report, source if output.name == "folder" and run.files else None)


def _encode(
    report: ConversionReport,
    output: Format,
    source: TensorSource,
    whole: TensorSource,
    place: Location,
    target: Path,
    encoding: Encoding,
    run: Run,
) -> Plan:
    """Plan and encode a source, or predict what that would give, and count it.

    Journals and workers know the source by `whole`, all that lies at `place`: a worker opens it by that path.
    """
    plan, calibration_notes = _planned(report.source, source, place, target, encoding, run)
    plan.files = plan.files if run.files else ()
    report.profile = plan.profile.text
    ratio = 2.0 if encoding.min_ratio is None else encoding.min_ratio
    report.gates = GateReport(plan.profile.judged, plan.thresholds, ratio)
    report.gates.allow_keep = encoding.allow_keep
    report.gates.exempt = {name for name, tensor in plan.tensors.items() if tensor.profile != plan.profile}
    report.is_text_model = {"config.json", "tokenizer_config.json"} <= set(source.files())
    if run.dry_run:
        count_predicted(report, source, plan, Work(Crew(jobs=run.jobs), run.memory_limit))
    else:
        with crew(run.executor, run.jobs) as workforce:
            facts = source_facts(whole, place)
            work = Work(workforce, run.memory_limit, run.progress, source_facts=facts, resume=run.resume)
            here = (place, facts["content"], json.dumps(facts))
            shared = ReopenedSource(source, open_in_worker, here, partial(check_unchanged, whole, place, facts))
            report.notes = output.write_plan(shared, plan, target, report.gates, work)
        count_pack(report, plan, target)
    report.notes += [*plan.notes, *calibration_notes, *profile_notes(plan, encoding.calibrate is not None)]
    count_files(report, source if run.files else None)
    holds_values = report.bf16_nbytes > report.files_nbytes
    if encoding.calibrate is not None and not run.dry_run and holds_values:
        report.notes.append(size_note(report, plan, stored_bits(report, target), encoding.target_bits))
    return plan


def _planned(
    where: str, source: TensorSource, place: Location, target: Path, encoding: Encoding, run: Run
) -> tuple[Plan, list[str]]:
    """Plan a source, after a run of the model if a calibration is asked for, and return what to tell of that."""
    if encoding.quantized == "refuse":
        try:
            check_quantized(source, encoding.rules)
        except QuantizedError as error:
            raise QuantizedError(f"{where}: {error}") from None
    if encoding.calibrate is None:
        return make_plan(source, encoding), []
    encoding, notes = _calibrated(encoding, encoding.calibrate, source, place, target, run)
    return make_plan(source, encoding), notes


def _judge(report: ConversionReport, plan: Plan | None, encoding: Encoding) -> None:
    """Put ratios into the gates, and why tensors were kept into the notes."""
    report.gates.ratio = report.ratio
    report.gates.source_ratio = report.source_nbytes / report.target_nbytes if report.target_nbytes else math.inf
    if plan is None:
        return
    report.gates.ratio_advice = ratio_advice(report)
    if all(tensor.regime is None for tensor in report.tensors):
        of_profile = set(profile_notes(plan, encoding.calibrate is not None))
        report.notes = [note for note in report.notes if note not in of_profile]
    report.notes = [*kept_notes(report, plan), *report.notes]


def _calibrated(
    encoding: Encoding,
    calibrate: Calibration | str | os.PathLike[str],
    source: TensorSource,
    model: Location,
    target: Path,
    run: Run,
) -> tuple[Encoding, list[str]]:
    """Return the options with the rates, column scales and moments of a calibration, and what to tell of it."""
    calibration, kept_at = calibrated(
        calibrate,
        source,
        str(model),
        target,
        n_tokens=encoding.calibrate_tokens,
        jobs=run.jobs,
        progress=run.progress,
    )
    if encoding.target_bits is not None:
        level = level_for_bits(calibration, encoding.target_bits, source, encoding, run.memory_limit)
        wanted = f"{encoding.target_bits:g} bits a weight in all"
    else:
        target_top1 = _TARGET_TOP1 if encoding.target_top1 is None else encoding.target_top1
        level = calibration.level_for(target_top1)
        wanted = f"a top-1 agreement of {target_top1:g}"
    notes = [f"rates of {level:g} bits a weight on average were chosen for {wanted}: {calibration.promise(level)}"]
    if "n_text_tokens" in calibration.facts:
        n_read, n_tokens = (int(calibration.facts[fact]) for fact in ("n_tokens", "n_text_tokens"))
        notes.append(f"the model read {n_read:,} of the {n_tokens:,} tokens of the calibration's text")
    if kept_at is not None:
        notes.append(f"what the model told is kept in {kept_at}; give it to calibrate (--calibrate) for other targets")
    return at_level(encoding, calibration, level), notes


def _overwrites(target: Path, source: Location) -> str | None:
    """What of what is read writing `target` would replace, as the beginning of a sentence: the source, or its shard."""
    if not isinstance(source, Path) or not source.exists():
        return None
    for path in (target, partial_path(target), journal_path(target)):
        if path.exists() and path.samefile(source):
            return f"{target} is" if path == target else f"{path}, where {target.name} is kept until it is whole, is"
    folder = source if source.is_dir() else source.parent if source.suffix == ".json" else None
    # Shards and their index; a .hhtld that stands beside them is none of the source.
    inside = folder is not None and target.exists() and target.parent.samefile(folder)
    return f"{target} is a file of" if inside and target.suffix in (".safetensors", ".json") else None


def _inside(target: Path, folder: Path) -> bool:
    return folder.resolve() in target.resolve().parents
