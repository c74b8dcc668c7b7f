"""Converting: from any readable source to any writable format, with a report of every number."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from hhtld.codecs import KEEP, parse_profile
from hhtld.encoding.calibration import Calibration
from hhtld.encoding.fingerprint import content_digest, source_facts
from hhtld.encoding.plan import DEFAULT_PROFILE, Plan, TensorPlan, check_quantized, make_plan
from hhtld.encoding.prediction import predict_pack
from hhtld.encoding.quality import GateReport
from hhtld.encoding.work import DEFAULT_MEMORY, Work
from hhtld.errors import GateError, HeaderError, HhtldError, QuantizedError, shown
from hhtld.evaluation.calibration_file import calibrated
from hhtld.formats import format_for_output, open_source
from hhtld.gates import CosineSummary, Threshold, Unreached, checked_thresholds
from hhtld.matrix import TensorInfo
from hhtld.pack.notebook import card
from hhtld.pack.opening import open_pack
from hhtld.pack.source import PackSource
from hhtld.progress import Progress, silent
from hhtld.sources.contract import TensorSource
from hhtld.sources.remote import CarryingExecutor, RemoteSource
from hhtld.sources.schedule import Crew, default_jobs, workers
from hhtld.storage.journal import journal_path, partial_path
from hhtld.storage.locations import locate, output_path, spelled
from hhtld.storage.urls import Location

__all__ = [
    "GATES_NOTE",
    "ConversionReport",
    "TensorOutcome",
    "convert",
    "crew",
    "tell_as_stored",
    "tied_too",
]

_FEW_POSITIONS = 1000  # the share of 0.9 of them has a standard error of 0.01

GATES_NOTE = (
    "profile gates keeps the cosines of rows, not a model's answers; for a model that must keep working: "
    "--profile parity, then hhtld gate-parity"
)


@contextmanager
def crew(executor: str | Executor | None, jobs: int) -> Iterator[Crew]:
    """Give a crew: threads, dask's workers, or an executor that is given."""
    if isinstance(executor, str) and executor.startswith("dask:"):
        from hhtld.integrations.dask import dask_crew

        with dask_crew(executor.removeprefix("dask:"), jobs) as found:
            yield found
    elif executor is None or executor == "threads":
        with workers(jobs) as threads:
            yield Crew(threads, jobs)
    elif isinstance(executor, str):
        raise ValueError(f"no executor {executor!r}; available: threads, dask:local, dask:ADDRESS")
    elif not callable(getattr(executor, "submit", None)):
        raise TypeError(f"an executor is a name or has submit(), got {type(executor).__name__}")
    else:
        yield Crew(executor if isinstance(executor, ThreadPoolExecutor) else CarryingExecutor(executor), jobs)


def as_bf16_nbytes(info: TensorInfo) -> int:
    """Return a tensor's bytes with floats as bfloat16, what models are shipped in."""
    return 2 * info.n_rows * info.n_cols if info.dtype.is_weight else info.nbytes


@dataclass(frozen=True)
class TensorOutcome:
    """What became of one tensor."""

    info: TensorInfo
    codec: str
    nbytes: int
    regime: str | None = None
    regime_reason: str | None = None
    alias_of: str | None = None
    cosines: CosineSummary | None = None
    predicted_median: float | None = None
    stored: tuple[str, int] | None = None
    unreached: Unreached | None = None

    @property
    def source_nbytes(self) -> int:
        """Bytes in the source, as stored there."""
        return self.info.nbytes if self.stored is None else self.stored[1]

    @property
    def bits_per_weight(self) -> float:
        """Bits of its own sections over its elements."""
        elements = self.info.n_rows * self.info.n_cols
        return 8 * self.nbytes / elements if elements else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return every number."""
        record: dict[str, Any] = {
            "name": self.info.name,
            "dtype": self.info.dtype.name,
            "shape": list(self.info.shape),
            "codec": self.codec,
            "source_nbytes": self.source_nbytes,
            "nbytes": self.nbytes,
            "bits_per_weight": round(self.bits_per_weight, 4),
        }
        if self.stored is not None and self.stored[0] != self.info.dtype.name:
            record["stored_as"] = self.stored[0]
        if self.alias_of is not None:
            record["alias_of"] = self.alias_of
        if self.regime is not None:
            record |= {"regime": self.regime, "regime_reason": self.regime_reason}
        if self.unreached is not None:
            record["unreached"] = self.unreached.to_json()
        if self.predicted_median is not None:
            record["predicted_median"] = round(self.predicted_median, 6)
        if self.cosines is not None:
            record["cosine"] = self.cosines.to_json() | {
                "median": self.cosines.median,
                "p5": self.cosines.p5,
                "min": self.cosines.minimum,
            }
        return record


@dataclass(repr=False)
class ConversionReport:
    """Everything a conversion did; truthy when every enforced gate passed.

    Attributes
    ----------
    source, target : str
    profile : str or None
        None where nothing was encoded.
    source_nbytes, bf16_nbytes, target_nbytes : int
        Tensor bytes of the source as stored, the same with floats as bfloat16, and the file or folder (predicted
        ones in a dry run, where `gates.tensors` is empty). Side files that came along count in all three.
    files_nbytes : int
        Of those side files.
    tensors : list of TensorOutcome
    gates : GateReport
    seconds : float
    dry_run : bool
    expected : dict or None
        Of a dry run whose encoded tensors all get Slot T: "seconds" with "jobs" threads, from the time that coding
        samples took, "memory_nbytes" at most, beyond what the interpreter takes, and "sampled_share", that of the
        encoded weights that are in groups which were sampled; the others are taken to need the same rate.
    notes : list of str
        What a user should know, one sentence each.
    is_text_model : bool
        Whether a tokenizer and a config stand beside the weights, so that `hhtld gate-parity` can run the model.
    """

    source: str
    target: str
    profile: str | None
    gates: GateReport
    source_nbytes: int = 0
    bf16_nbytes: int = 0
    target_nbytes: int = 0
    files_nbytes: int = 0
    tensors: list[TensorOutcome] = field(default_factory=list)
    seconds: float = 0.0
    dry_run: bool = False
    expected: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    is_text_model: bool = False

    @property
    def ratio(self) -> float:
        """Source as bfloat16 over the target."""
        return self.bf16_nbytes / self.target_nbytes if self.target_nbytes else 0.0

    def __bool__(self) -> bool:
        return self.dry_run or bool(self.gates)

    def __repr__(self) -> str:
        how = "predicted" if self.dry_run else "passed" if self else "a gate was missed"
        profile = "" if self.profile is None else f", profile {self.profile}"
        return (
            f"<ConversionReport {self.target}: {self.target_nbytes:,} bytes, {self.ratio:.2f} times smaller than as "
            f"bfloat16{profile}, {how}>"
        )

    def _repr_html_(self) -> str:
        facts = {
            "source": f"{self.source}, {self.source_nbytes:,} bytes, as bfloat16 {self.bf16_nbytes:,}",
            **{"note" if i == 0 else f"note {i + 1}": note for i, note in enumerate(self.notes)},
        }
        rows = (
            (
                t.info.name,
                list(t.info.shape),
                t.codec,
                f"{t.nbytes:,}",
                *((c.median, c.p5) if (c := t.cosines) else ("", "")),
            )
            for t in self.tensors
        )
        return card(repr(self)[1:-1], facts, ("tensor", "shape", "codec", "bytes", "median cosine", "p5"), rows)

    def to_json(self) -> dict[str, Any]:
        """Return every number, for scripts."""
        return {
            "schema": "hhtld.convert/1",
            "source": self.source,
            "target": self.target,
            "profile": self.profile,
            "dry_run": self.dry_run,
            **({} if self.expected is None else {"expected": self.expected}),
            "source_nbytes": self.source_nbytes,
            "bf16_nbytes": self.bf16_nbytes,
            "target_nbytes": self.target_nbytes,
            "files_nbytes": self.files_nbytes,
            "ratio": round(self.ratio, 4),
            "seconds": round(self.seconds, 3),
            "gates": self.gates.to_json(),
            "notes": self.notes,
            "tensors": [tensor.to_json() for tensor in self.tensors],
        }

    def to_text(self) -> str:
        """Return `to_json()` as indented text."""
        return json.dumps(self.to_json(), indent=2, allow_nan=False)


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
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
    calibration: Calibration | None = None,
    calibrate: Calibration | str | os.PathLike[str] | None = None,
    target_top1: float | None = None,
    files: bool = True,
    dry_run: bool = False,
    progress: Progress | None = None,
    original: str | os.PathLike[str] | None = None,
    tensors: Sequence[str] = (),
    rows: slice | None = None,
    max_nbytes: int | None = None,
    codes: bool = False,
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
    profile : str
        "parity" (the default), "gates", "bits:B", "lookup" or "f32". This, `rules`, `roles`, `gates`, `min_ratio`,
        `seed`, `column_scales`, `calibration`, `calibrate` and `target_top1` are for formats that encode only: .hhtld,
        and packed folders (`to="hf"`).
    rules : sequence of (glob, profile)
        The first whose glob matches a tensor's name decides for it; "keep" keeps it as it is.
    roles : sequence of (glob, "index" or "argmax")
        The first whose glob matches a tensor's name decides whether each of its rows must keep its identity, as those
        of tables and heads must, and what gates ask of it; see `hhtld.sources.regimes`.
    gates : mapping of "argmax" and "index" to Threshold, optional
        Cosines that rows under "gates" and "parity" must reach instead of `hhtld.gates.THRESHOLDS` and
        `hhtld.encoding.plan.PARITY_THRESHOLD`.
    min_ratio : float
        Bytes as bfloat16 over the file that profiles "gates" and "parity" must reach, 2 by default; a finite number,
        and 0 asks for none. A file that is larger than its source as stored fails too, unless `min_ratio` is below 1.
        Not asked where nothing is encoded.
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
        See `hhtld.encoding.plan.make_plan`; a dry run predicts without them.
    calibration : Calibration, optional
        For profile "parity": what a run of the model told, from `hhtld.evaluation.calibrate.calibrate`.
    calibrate : path, "builtin" or Calibration, optional
        The same from a text that the model of `src` is run on, or from what an earlier run told
        (`DST.calibration.safetensors`); see `hhtld.evaluation.calibration_file.calibrated`. Without it every group gets
        the rate at which its rows lose little (`hhtld.encoding.plan.PARITY_THRESHOLD`).
    target_top1 : float, optional
        Share of next tokens that shall stay the same, for profile "parity" with a calibration; 0.9 by default.
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

    Returns
    -------
    ConversionReport

    Raises
    ------
    GateError
        When profile "gates" or "parity" misses a gate. The file is complete and stays; the report is the error's.
    FormatError, NonFiniteError
        When the source cannot be converted.
    QuantizedError
        When its weights are quantized already.
    BudgetError
        When `memory` does not suffice, before anything is written.
    OutputError
        When the target cannot be written; what stood there before is untouched.
    """
    started = time.perf_counter()
    if profile is not None:
        parse_profile(profile)  # before anything is opened
    if calibration is not None:
        if calibrate is not None:
            raise ValueError("calibration and calibrate say the same: give one")
        calibrate = calibration
    if min_ratio is not None and not 0 <= min_ratio < math.inf:
        raise ValueError(f"min_ratio (--min-ratio) must be a finite number, 0 or more, got {min_ratio!r}")
    checked_thresholds(gates)
    source_path, target = locate(src), output_path(dst)
    output = format_for_output(dst, to)
    options: dict[str, Any] = {
        "original": original,
        "tensors": tuple(tensors) or None,
        "rows": rows,
        "max_nbytes": max_nbytes,
    }
    given = {key: value for key, value in (options | {"codes": codes or None}).items() if value is not None}
    if not set(given) <= output.options:
        others = " and ".join(sorted(set(given) - output.options))
        raise ValueError(f"format {output.name!r} takes no {others}; only a debug export (.h5) does")
    if not files and output.name not in ("hhtld", "folder"):
        raise ValueError(f"format {output.name!r} has no choice of side files (--no-files); .hhtld and folders have")
    if not output.encodes:
        encoding: dict[str, Any] = {
            "profile": profile,
            "rules": tuple(rules) or None,
            "roles": tuple(roles) or None,
            "gates": gates or None,
            "min_ratio": min_ratio,
            "allow_keep": allow_keep or None,
        }
        encoding |= {"seed": seed, "column_scales": column_scales, "calibrate": calibrate, "target_top1": target_top1}
        encoding |= {"executor": executor, "memory": memory, "resume": resume or None}
        others = " and ".join(key for key, value in encoding.items() if value is not None)
        if others:
            raise ValueError(f"format {output.name!r} takes no {others}; only what encodes (.hhtld, --to hf) does")
    if (profile or DEFAULT_PROFILE) != "parity" and (calibrate is not None or target_top1 is not None):
        raise ValueError("calibrate and target_top1 (--calibrate, --target-top1) are for profile 'parity'")
    if calibrate is None and target_top1 is not None:
        raise ValueError(
            "target_top1 (--target-top1) needs calibrate (--calibrate): 'builtin', a text, or a calibration"
        )
    if calibrate is not None and column_scales is not None:
        raise ValueError("a calibration brings its own column_scales")
    if dry_run and "max_nbytes" in output.options:
        raise ValueError("a dry run predicts what is encoded; an export stays below max_nbytes (--max-size)")
    original_path = None if original is None else locate(original)
    for path in (source_path, original_path):
        what = None if path is None else _overwrites(target, path)
        if what is not None:
            raise ValueError(f"{what} the source itself; give the result another name")
        if isinstance(path, Path) and output.name in ("folder", "hf") and path.is_dir() and _inside(target, path):
            raise ValueError(f"{target} lies inside the source folder {path}; give a folder outside of it")
    with ExitStack() as stack:
        source = stack.enter_context(open_source(source_path))
        if isinstance(source, PackSource) and "max_nbytes" not in output.options:
            source.check_budget(budget, "hhtld.convert(..., budget=...) (--budget)")
        if original_path is not None:
            given["original"] = stack.enter_context(open_source(original_path))
        if not output.encodes:
            threads = stack.enter_context(workers(jobs or default_jobs()))
            report = ConversionReport(spelled(src), str(target), None, GateReport(enforced=False), dry_run=dry_run)
            if not dry_run:
                offered = {"executor": threads, "progress": progress or silent, "files": files}
                given |= {key: value for key, value in offered.items() if key in output.options}
                report.notes = output.write_source(source, target, **given) or []
            report.notes += source.notes
            _count(report, source, target)
            _count_files(report, source if output.name == "folder" and files else None)
        else:
            told: dict[str, Any] = {}
            notes: list[str] = []
            if quantized == "refuse":
                try:
                    check_quantized(source, rules)
                except QuantizedError as error:
                    raise QuantizedError(f"{spelled(src)}: {error}") from None
            if calibrate is not None:
                wanted = 0.9 if target_top1 is None else target_top1
                told, notes = _calibrated(
                    calibrate, source, source_path, target, wanted, jobs or default_jobs(), progress or silent
                )
            plan = make_plan(
                source,
                profile or DEFAULT_PROFILE,
                rules=rules,
                roles=roles,
                thresholds=gates,
                nonfinite=nonfinite,
                quantized=quantized,
                seed=seed or 0,
                **({"column_scales": column_scales} | told),
            )
            plan.files = plan.files if files else ()
            of_profile = list(_profile_notes(plan, calibrate is not None))
            notes += of_profile
            measured = GateReport(plan.profile.judged, plan.thresholds, 2.0 if min_ratio is None else min_ratio)
            measured.allow_keep = allow_keep
            measured.exempt = {n for n, t in plan.tensors.items() if t.profile != plan.profile}
            report = ConversionReport(spelled(src), str(target), plan.profile.text, measured, dry_run=dry_run)
            notes = [*plan.notes, *notes]
            report.is_text_model = {"config.json", "tokenizer_config.json"} <= set(source.files())
            limit = DEFAULT_MEMORY if memory is None else memory
            if dry_run:
                _predict_pack(report, source, plan, Work(Crew(jobs=jobs or default_jobs()), limit))
                report.notes = notes
            else:
                work = Work(stack.enter_context(crew(executor, jobs or default_jobs())), limit, progress or silent)
                facts = source_facts(source, source_path)
                here = (source_path, facts["content"], json.dumps(facts))
                look = partial(_check_unchanged, source, source_path, facts)
                shared = RemoteSource(source, _opened_there, here, look)
                report.notes = output.write_plan(
                    shared, plan, target, measured, work, source_facts=facts, resume=resume
                )
                report.notes += notes
                _count_pack(report, plan, target)
            _count_files(report, source if files else None)
        tell_as_stored(report, source)
        if files and output.name in ("folder", "hf", "hhtld"):
            report.notes += source.file_notes
    report.gates.ratio = report.ratio
    report.gates.source_ratio = report.source_nbytes / report.target_nbytes if report.target_nbytes else math.inf
    if report.profile is not None:
        report.gates.ratio_advice = _ratio_advice(report)
        if all(tensor.regime is None for tensor in report.tensors):
            report.notes = [note for note in report.notes if note not in of_profile]
        report.notes = [*_kept_notes(report, plan), *report.notes]
    report.seconds = time.perf_counter() - started
    if not report:
        raise GateError(f"{target} is written, but {report.gates.verdict()}", report)
    return report


def _opened_there(path: Location, content: str, facts: str) -> TensorSource:
    """Open a source in a worker; the facts are the client's, so that what has been replaced is opened again."""
    try:
        source = open_source(path)
    except (HhtldError, OSError) as error:
        raise HhtldError(f"a worker cannot open {path}: {error}; workers need the source at the same path") from error
    if content_digest(source) != content:
        source.close()
        raise HhtldError(f"a worker finds another model at {path} than this process; workers need the same files")
    return source


def _check_unchanged(source: TensorSource, place: Location, facts: dict[str, Any]) -> None:
    """Raise where workers, who open a source by its path, may have found another one there than this process."""
    if not place.exists() or source_facts(source, place) != facts:
        raise HeaderError(f"{place}: was written to or replaced while workers read it; convert it again")


def _calibrated(
    calibrate: Calibration | str | os.PathLike[str],
    source: TensorSource,
    model: Location,
    target: Path,
    target_top1: float,
    jobs: int,
    progress: Progress,
) -> tuple[dict[str, Any], list[str]]:
    """What to plan with, and what to tell of it."""
    found, kept = calibrated(
        calibrate, source, str(model), target, target_top1=target_top1, jobs=jobs, progress=progress
    )
    level = found.level_for(target_top1)
    n_positions = min((measured.n_positions for measured in found.measurements), default=0)
    counted = f"{n_positions:,} positions" + (", too few to rely on" if n_positions < _FEW_POSITIONS else "")
    notes = [
        f"rates about {level:g} bits were chosen for top-1 agreement of {target_top1:g}: "
        f"{found.expected_top1(level):.3f} is expected on text like that of the calibration, measured on {counted}; "
        f"hhtld gate-parity measures it on other text"
    ]
    if kept is not None:
        notes.append(f"what the model told is kept in {kept}; give it to calibrate (--calibrate) for other targets")
    facts = {"column_scales": found.column_scales, "rates": found.rates(level), "moments": found.moments}
    return facts, notes


def _profile_notes(plan: Plan, is_calibrated: bool) -> Iterator[str]:
    """What profiles, by name or by rule, say of a model's answers."""
    used = {tensor.profile.text: tensor.profile for tensor in plan.tensors.values() if tensor.group is not None}
    if "parity" in used and not is_calibrated:
        asked = sorted({plan.threshold(used["parity"], kind).median for kind in plan.thresholds})
        yield (
            f"no calibration was given; rates keep a row cosine of {' and '.join(f'{cosine:g}' for cosine in asked)}, "
            f"which says nothing about the model's answers (see --calibrate)"
        )
    if "gates" in used:
        yield GATES_NOTE


def _kept_notes(report: ConversionReport, plan: Plan) -> Iterator[str]:
    """Why tensors were kept that profiles could have encoded, and why all were where none is encoded."""
    out_of_range = report.gates.out_of_range
    if out_of_range:
        yield (
            f"values near the end of float32's range, which codecs compute in, keep {len(out_of_range)} of the tensors "
            f"byte for byte: {', '.join(map(shown, sorted(out_of_range)[:3]))}"
        )
    if any(tensor.regime is not None for tensor in report.tensors):
        return
    own = [tensor for tensor in plan.tensors.values() if tensor.alias_of is None]
    planned = [tensor.info.name for tensor in own if tensor.group is not None]
    floats = [tensor for tensor in own if tensor.info.dtype.is_weight]
    if not own:
        why = "the source holds no tensors"
    elif not floats:
        why = "no tensor is of floats; others are kept as they are"
    elif planned and len(report.gates.unreached) == len(planned):
        why = "6 bits a weight do not reach what is asked"
    elif planned:
        why = "coding would not save a byte: small matrices cost more for what they share than they save"
    elif any(_takes_rows(tensor.info) for tensor in floats):
        why = "what could be encoded is kept by a rule, or for what the notes say"
    else:
        why = "no tensor is a matrix that this profile encodes; vectors and scalars are kept as they are"
    yield f"nothing {'would be' if report.dry_run else 'was'} encoded: {why}"


def _takes_rows(info: TensorInfo) -> bool:
    return info.has_rows and info.n_rows * info.n_cols > 0


def _ratio_advice(report: ConversionReport) -> str:
    """What takes a file's bytes, and what would help where they are too many."""
    own = [tensor for tensor in report.tensors if tensor.alias_of is None]
    kept = sum(tensor.nbytes for tensor in own if tensor.regime is None)
    encoded = sum(tensor.nbytes for tensor in own if tensor.regime is not None)
    rest = report.target_nbytes - kept - encoded - report.files_nbytes
    parts = {
        "encoded tensors": encoded,
        "tensors kept byte for byte": kept,
        "the table and what groups share": rest,
        "side files": report.files_nbytes,
    }
    most = max(parts, key=lambda part: parts[part])
    told = ", ".join(f"{nbytes:,} are {part}" for part, nbytes in parts.items() if nbytes > 0)
    unreached = sum(tensor.nbytes for tensor in own if tensor.unreached is not None)
    advice = {
        "encoded tensors": "a lower rate (--profile bits:B) takes fewer",
        "tensors kept byte for byte": (
            f"{unreached:,} of these for what is asked of them and 6 bits do not reach"
            if unreached
            else "rules, or their shapes and types, keep them"
        ),
        "the table and what groups share": "small models cost what every file holds",
        "side files": "--no-files leaves them behind",
    }[most]
    if report.source_nbytes < report.bf16_nbytes:
        advice += f"; the source itself takes {report.source_nbytes:,}, less than 16 bits a weight"
    return f"of {report.target_nbytes:,} bytes {told}; {advice}, and --min-ratio asks for less"


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


def _written_nbytes(target: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    if not target.is_dir():
        return target.stat().st_size
    return sum(path.stat().st_size for path in target.rglob("*") if path.is_file())


def _count_files(report: ConversionReport, source: TensorSource | None) -> None:
    """Side files are as large on both sides; what was written has counted them already."""
    nbytes = sum(source.files().values()) if source is not None else 0
    report.files_nbytes = nbytes
    report.source_nbytes += nbytes
    report.bf16_nbytes += nbytes
    report.target_nbytes += nbytes if report.dry_run else 0


def tell_as_stored(report: ConversionReport, source: TensorSource) -> None:
    """Put the types and bytes into a report that tensors have in the source, where they are given as wider ones."""
    for number, tensor in enumerate(report.tensors):
        found = replace(tensor, stored=source.stored(tensor.info.name))
        report.source_nbytes += found.source_nbytes - tensor.info.nbytes
        report.tensors[number] = found
    kinds = sorted({t.stored[0] for t in report.tensors if t.stored is not None and t.stored[0] != t.info.dtype.name})
    if kinds and report.target_nbytes > report.source_nbytes:
        report.notes.append(
            f"this takes {report.target_nbytes:,} bytes, more than the {report.source_nbytes:,} of the source, whose "
            f"tensors are stored as {', '.join(kinds)}"
        )


def _count(report: ConversionReport, source: TensorSource, target: Path) -> None:
    for info in source.infos().values():
        report.tensors.append(TensorOutcome(info, KEEP.id, info.nbytes))
        report.source_nbytes += info.nbytes
        report.bf16_nbytes += as_bf16_nbytes(info)
    report.target_nbytes = report.source_nbytes if report.dry_run else _written_nbytes(target)


def _count_pack(report: ConversionReport, plan: Plan, target: Path) -> None:
    with open_pack(target) as pack:
        records = {name: (pack.table.tensors[name], pack.nbytes(name)) for name in pack}
    report.target_nbytes = _written_nbytes(target)
    for name, tensor in plan.tensors.items():
        record, nbytes = records[name]
        told = _regime(tensor) if record.is_encoded else (None, None)
        cosines = report.gates.tensors.get(name)
        unreached = report.gates.unreached.get(name)
        outcome = TensorOutcome(tensor.info, record.codec, nbytes, *told, tensor.alias_of, cosines, unreached=unreached)
        report.tensors.append(outcome)
        _add_source(report, tensor)
    report.tensors = tied_too(report.tensors)


def _regime(tensor: TensorPlan) -> tuple[str | None, str | None]:
    """The regime of what is encoded, and what decided for it."""
    return (None, None) if tensor.group is None else (tensor.group.regime, tensor.regime_reason)


def tied_too(outcomes: Iterable[TensorOutcome]) -> list[TensorOutcome]:
    """Return outcomes in which names that share another's bytes tell how well these came back."""
    held = {outcome.info.name: outcome for outcome in outcomes}
    return [
        outcome if outcome.alias_of is None else replace(held[outcome.alias_of], **_own(outcome))
        for outcome in held.values()
    ]


def _own(outcome: TensorOutcome) -> dict[str, Any]:
    return {key: getattr(outcome, key) for key in ("info", "codec", "nbytes", "alias_of", "stored")}


def _add_source(report: ConversionReport, tensor: TensorPlan) -> None:
    report.source_nbytes += tensor.info.nbytes
    if tensor.alias_of is None:
        report.bf16_nbytes += as_bf16_nbytes(tensor.info)


def _predict_pack(report: ConversionReport, source: TensorSource, plan: Plan, work: Work) -> None:
    """Fill a report with what a conversion would give, from samples of rows."""
    found = predict_pack(source, plan, work)
    report.target_nbytes += found.shared_nbytes
    for name, tensor in plan.tensors.items():
        own = found.tensors.get(name)
        if own is None:
            nbytes = 0 if tensor.alias_of else tensor.info.nbytes
            if name in found.unreached and tensor.group is not None:
                missed = tensor.group.regime
                report.gates.unreached[name] = Unreached(missed, plan.threshold(tensor.profile, missed))
            unreached = report.gates.unreached.get(name)
            outcome = TensorOutcome(tensor.info, KEEP.id, nbytes, alias_of=tensor.alias_of, unreached=unreached)
        else:
            told = _regime(tensor)
            outcome = TensorOutcome(tensor.info, own.codec, own.nbytes, *told, predicted_median=own.median)
        report.tensors.append(outcome)
        report.target_nbytes += outcome.nbytes
        _add_source(report, tensor)
    report.tensors = tied_too(report.tensors)
    report.expected = found.expected
