"""Calibrations in files: safetensors with a tensor of column scales for each calibrated one, and the rest as metadata.

Layout
------
Tensors: "scale:NAME" -> F32 (n_cols,), "moments:NAME" -> F32 (n_cols, n_cols). Metadata: "schema" =
"hhtld.calibration/1", "calibration" = a JSON object with ``sensitivities`` [{names, n_weights, kl}],
``measurements`` [{level, bits, top1, kl, n_positions, error}] and ``facts`` {str: str}, of which "source" is
`weights_digest` of what was calibrated.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

from hhtld.encoding.calibration import Calibration, Measurement, Sensitivity
from hhtld.encoding.fingerprint import weights_digest
from hhtld.errors import FormatError, HeaderError, shown
from hhtld.formats.safetensors import SafetensorsFile, SafetensorsFormat
from hhtld.progress import Progress
from hhtld.sources.contract import ArraySource, TensorSource

__all__ = ["calibrated", "check_calibrates", "read_calibration", "write_calibration"]

SCHEMA = "hhtld.calibration/1"
_SCALE, _MOMENTS = "scale:", "moments:"


def write_calibration(calibration: Calibration, path: str | os.PathLike[str]) -> None:
    """Write a calibration, atomically.

    Raises
    ------
    OutputError
        If the file cannot be written; what stood there before is untouched.
    """
    facts = {
        "sensitivities": [{"names": s.names, "n_weights": s.n_weights, "kl": s.kl} for s in calibration.sensitivities],
        "measurements": [vars(m) for m in calibration.measurements],
        "facts": dict(calibration.facts),
    }
    metadata = {"schema": SCHEMA, "calibration": json.dumps(facts, sort_keys=True, allow_nan=False)}
    arrays = {f"{_SCALE}{name}": array for name, array in calibration.column_scales.items()}
    arrays |= {f"{_MOMENTS}{name}": array for name, array in calibration.moments.items()}
    SafetensorsFormat().write_source(ArraySource(arrays, metadata), Path(path))


def read_calibration(path: str | os.PathLike[str]) -> Calibration:
    """Read a calibration.

    Raises
    ------
    FormatError
        If the file holds no calibration, or a damaged one.
    """
    with SafetensorsFile(path) as file:
        if file.metadata.get("schema") != SCHEMA:
            raise HeaderError(f"{path}: not a calibration (schema {shown(str(file.metadata.get('schema')))})")
        arrays = {name: file.read_tensor(name) for name in file.infos()}
        text = file.metadata.get("calibration", "")
    try:
        written = json.loads(text)
        sensitivities = tuple(_sensitivity(item) for item in written["sensitivities"])
        measurements = tuple(_measurement(item) for item in written["measurements"])
        facts = {str(key): str(value) for key, value in written["facts"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise HeaderError(f"{path}: the calibration's metadata is damaged: {error!r}"[:300]) from None
    names = [name for sensitivity in sensitivities for name in sensitivity.names]
    if not names or len(set(names)) != len(names):
        raise HeaderError(f"{path}: a calibration must name at least one tensor, and each of them once")
    scales = {name.removeprefix(_SCALE): array for name, array in arrays.items() if name.startswith(_SCALE)}
    moments = {name.removeprefix(_MOMENTS): array for name, array in arrays.items() if name.startswith(_MOMENTS)}
    return Calibration(scales, sensitivities, measurements, moments, facts)


def _sensitivity(item: dict[str, Any]) -> Sensitivity:
    names, n_weights, kl = item["names"], int(item["n_weights"]), float(item["kl"])
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise ValueError("names must be texts")
    if n_weights < 1 or not math.isfinite(kl):
        raise ValueError(f"a set of {n_weights} weights and a divergence of {kl}")
    return Sensitivity(tuple(names), n_weights, kl)


def _measurement(item: dict[str, Any]) -> Measurement:
    numbers = {key: float(item[key]) for key in ("level", "bits", "top1", "kl", "error")}
    n_positions = int(item["n_positions"])
    if (
        not all(map(math.isfinite, numbers.values()))
        or not 0 <= numbers["top1"] <= 1
        or numbers["error"] < 0
        or n_positions < 1
    ):
        raise ValueError(f"a measurement of {numbers}")
    return Measurement(**numbers, n_positions=n_positions)


def check_calibrates(calibration: Calibration, source: TensorSource, where: str) -> None:
    """Refuse a calibration that was made from another model.

    Raises
    ------
    FormatError
        If its checksum of the source is another one.
    """
    if calibration.facts.get("source") != weights_digest(source):
        raise FormatError(
            f"{where} was made from another model; calibrate this one with calibrate=TEXT (--calibrate TEXT)"
        )


def calibrated(
    calibrate: Calibration | str | os.PathLike[str],
    source: TensorSource,
    model: str | os.PathLike[str],
    target: Path,
    *,
    target_top1: float,
    jobs: int,
    progress: Progress,
) -> tuple[Calibration, str | None]:
    """Return what to convert a source with, and the file that it was written to, if it was.

    Parameters
    ----------
    calibrate : Calibration or path
        A calibration, the `.safetensors` file of one, or a text to run `model` on ("builtin" for the built-in one).
        What a text gives is kept beside `target`, and read from there when the same model and text come again.
    source : TensorSource
        Of `model`.
    model : path
    target : Path
        What will be written.

    Raises
    ------
    FormatError
        If a calibration is of another model, or the model cannot be run.
    """
    if isinstance(calibrate, Calibration):
        check_calibrates(calibrate, source, "the calibration")
        return calibrate, None
    text = os.fspath(calibrate)
    if text.lower().endswith(".safetensors"):
        if not Path(text).exists():
            raise FileNotFoundError(
                2, "no such file; calibrate='builtin' (--calibrate builtin) makes one beside the pack", text
            )
        calibration = read_calibration(text)
        check_calibrates(calibration, source, text)
        return calibration, None
    from hhtld.evaluation.calibrate import calibrate as run
    from hhtld.evaluation.calibrate import text_digest

    beside = target.with_name(target.name.removesuffix(target.suffix) + ".calibration.safetensors")
    if beside.is_file():
        with contextlib.suppress(FormatError):
            calibration = read_calibration(beside)
            made_from = calibration.facts.get("source"), calibration.facts.get("text")
            if made_from == (weights_digest(source), text_digest(text)):
                return calibration, None
    calibration = run(model, text, target_top1=target_top1, jobs=jobs, progress=progress)
    write_calibration(calibration, beside)
    return calibration, str(beside)
