"""Sentences that tell what a conversion's profile promises, why tensors were kept, and what would help."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from hhtld.api.conversion_report import ConversionReport
from hhtld.encoding.groups import judged_threshold, planned_groups
from hhtld.encoding.plan import Plan
from hhtld.errors import shown
from hhtld.matrix import TensorInfo
from hhtld.sources.name_patterns import some_of

__all__ = ["GATES_NOTE", "kept_notes", "profile_notes", "ratio_advice", "size_note"]

GATES_NOTE = (
    "profile gates keeps the cosines of rows, not a model's answers; for a model that must keep working: "
    "profile='parity' (--profile parity), then hhtld gate-parity"
)


def profile_notes(plan: Plan, is_calibrated: bool) -> Iterator[str]:
    """What profiles, by name or by rule, say of a model's answers."""
    used = {tensor.profile.text: tensor.profile for tensor in plan.tensors.values() if tensor.group is not None}
    if "parity" in used and not is_calibrated:
        asked = sorted({plan.threshold(used["parity"], kind).median for kind in plan.thresholds})
        yield (
            f"no calibration was given; rates keep a row cosine of {' and '.join(f'{cosine:g}' for cosine in asked)}, "
            f"which says nothing about the model's answers; calibrate (--calibrate) measures those"
        )
    if "gates" in used:
        yield GATES_NOTE


def kept_notes(report: ConversionReport, plan: Plan) -> Iterator[str]:
    """Why tensors were kept that a profile could have encoded, and, if none is encoded, why all were kept."""
    out_of_range = report.gates.out_of_range
    if out_of_range:
        yield (
            f"values near an end of float32's range, which codecs compute in, keep {len(out_of_range)} of the tensors "
            f"byte for byte: {', '.join(map(shown, sorted(out_of_range)[:3]))}"
        )
    if any(tensor.regime is not None for tensor in report.tensors):
        return
    stored = [tensor for tensor in plan.tensors.values() if tensor.alias_of is None]
    planned = [tensor.info.name for tensor in stored if tensor.group is not None]
    floats = [tensor for tensor in stored if tensor.info.dtype.is_weight]
    if not stored:
        why = "the source holds no tensors"
    elif not floats:
        why = "no tensor is of floats; others are kept as they are"
    elif planned and len(report.gates.unreached) == len(planned):
        why = "6 bits a weight do not reach what is asked"
    elif planned and set(planned) <= set(out_of_range):
        why = "every tensor that could be encoded holds such values"
    elif planned:
        why = "coding would not save a byte: small matrices cost more for what they share than they save"
    elif any(_takes_rows(tensor.info) for tensor in floats):
        why = "what could be encoded is kept by a rule, or for what the notes say"
    else:
        why = "no tensor is a matrix that this profile encodes; vectors and scalars are kept as they are"
    yield f"nothing {'would be' if report.dry_run else 'was'} encoded: {why}"


def _takes_rows(info: TensorInfo) -> bool:
    return info.has_rows and info.n_rows * info.n_cols > 0


def size_note(report: ConversionReport, plan: Plan, bits: float, target_bits: float | None) -> str:
    """How many bits a weight a pack takes, and if they are more than was asked for, which tensors took them."""
    taken = f"the pack takes {bits:.3f} bits a weight, side files aside"
    if target_bits is None or bits <= target_bits * (1 + 1e-9):
        return taken
    kept = list(map(shown, report.gates.out_of_range))
    judged = [group.names for group in planned_groups(plan) if judged_threshold(plan, group) is not None]
    if kept:
        why = (
            f"values near an end of float32's range, found while rows were coded, keep {some_of(kept)} byte for byte; "
            f"rules (--rule NAME=keep) let the rates of others make up for that"
        )
    elif judged:
        why = (
            f"cosines measured while rows were coded decided for {some_of(map(shown, itertools.chain(*judged)))}; "
            f"rules (--rule NAME=bits:B) fix such a rate"
        )
    else:
        why = "more was stored than was counted before rows were coded"
    return f"{taken}, more than the {target_bits:g} of target_bits (--target-bits): {why}"


def ratio_advice(report: ConversionReport) -> str:
    """What takes a file's bytes, and what would help if they are too many."""
    stored = [tensor for tensor in report.tensors if tensor.alias_of is None]
    kept = sum(tensor.nbytes for tensor in stored if tensor.regime is None)
    encoded = sum(tensor.nbytes for tensor in stored if tensor.regime is not None)
    rest = report.target_nbytes - kept - encoded - report.files_nbytes
    parts = {
        "encoded tensors": encoded,
        "tensors kept byte for byte": kept,
        "the table and what groups share": rest,
        "side files": report.files_nbytes,
    }
    most = max(parts, key=lambda part: parts[part])
    sizes = ", ".join(f"{nbytes:,} are {part}" for part, nbytes in parts.items() if nbytes > 0)
    unreached = sum(tensor.nbytes for tensor in stored if tensor.unreached is not None)
    out_of_range = sum(tensor.nbytes for tensor in stored if tensor.info.name in report.gates.out_of_range)
    advice = {
        "encoded tensors": "a lower rate, profile='bits:B' (--profile bits:B), takes fewer",
        "tensors kept byte for byte": (
            f"{unreached:,} of these for what is asked of them and 6 bits do not reach"
            if unreached
            else f"{out_of_range:,} of these because values lie near an end of float32's range"
            if out_of_range
            else "rules, or their shapes and types, keep them"
        ),
        "the table and what groups share": "small models cost what every file holds",
        "side files": "files=False (--no-files) leaves them behind",
    }[most]
    if report.source_nbytes < report.bf16_nbytes:
        advice += f"; the source itself takes {report.source_nbytes:,}, less than 16 bits a weight"
    return f"of {report.target_nbytes:,} bytes {sizes}; {advice}, and a lower min_ratio (--min-ratio) asks for less"
