"""Calibrations in files: safetensors with what each tensor's columns and rows told, and the rest as metadata.

Layout
------
Tensors, of each matrix NAME: "scale:NAME" F32 (n_cols,), column scales; "costs:NAME" F32 (n_rows,), what errors in rows
cost; and of moments, "factors:NAME" I8 (rank, n_cols), "exponents:NAME" I16 (rank,) and "rest:NAME" F32 (n_cols,).
Metadata: "schema" = "hhtld.calibration/2", "calibration" = a JSON object with ``n_cols`` {NAME: int}, ``measurements``
[{level, top1, kl, n_positions, n_texts, error}] and ``facts`` {str: str}, of which "source" is `weights_digest` of what
was calibrated, and "unfinished" stands only in the file of an interrupted run.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hhtld.encoding.calibrated_rates import Calibration, Costs, Measurement
from hhtld.encoding.fingerprint import weights_digest
from hhtld.errors import FormatError, HeaderError, shown
from hhtld.formats.safetensors import SafetensorsFile, SafetensorsFormat
from hhtld.progress import Progress
from hhtld.slots.moments import Moments
from hhtld.sources.contract import ArraySource, TensorSource

__all__ = ["calibrated", "check_calibrates", "read_calibration", "write_calibration"]

SCHEMA = "hhtld.calibration/2"
_SCALE, _COSTS = "scale:", "costs:"
_FACTORS, _EXPONENTS, _REST = "factors:", "exponents:", "rest:"


def write_calibration(calibration: Calibration, path: str | os.PathLike[str]) -> None:
    """Write a calibration, atomically.

    Raises
    ------
    OutputError
        If the file cannot be written; what stood there before is untouched.
    """
    facts = {
        "n_cols": {name: costs.n_cols for name, costs in calibration.costs.items()},
        "measurements": [vars(m) for m in calibration.measurements],
        "facts": dict(calibration.facts),
    }
    metadata = {"schema": SCHEMA, "calibration": json.dumps(facts, sort_keys=True, allow_nan=False)}
    arrays: dict[str, NDArray[Any]] = {f"{_SCALE}{name}": array for name, array in calibration.column_scales.items()}
    arrays |= {f"{_COSTS}{name}": costs.rows for name, costs in calibration.costs.items()}
    for name, moments in calibration.moments.items():
        arrays[f"{_FACTORS}{name}"] = moments.factors
        arrays[f"{_EXPONENTS}{name}"] = moments.exponents
        arrays[f"{_REST}{name}"] = moments.rest
    SafetensorsFormat().write_source(ArraySource(arrays, metadata), Path(path))


def read_calibration(path: str | os.PathLike[str]) -> Calibration:
    """Read a calibration.

    Raises
    ------
    FormatError
        If the file holds no calibration, or a damaged one.
    """
    with SafetensorsFile(path) as file:
        schema = str(file.metadata.get("schema"))
        if schema == "hhtld.calibration/1":
            raise HeaderError(
                f"{path} was made by an earlier version of hhtld; calibrate again with calibrate='builtin' "
                f"(--calibrate builtin)"
            )
        if schema != SCHEMA:
            raise HeaderError(f"{path}: not a calibration (schema {shown(schema)})")
        arrays = {name: file.read_tensor(name) for name in file.infos()}
        text = file.metadata.get("calibration", "")
    try:
        written = json.loads(text)
        n_cols = {str(name): int(count) for name, count in written["n_cols"].items()}
        measurements = tuple(_measurement(item) for item in written["measurements"])
        facts = {str(key): str(value) for key, value in written["facts"].items()}
        costs = {name: Costs(_checked_costs(arrays[_COSTS + name]), count) for name, count in n_cols.items()}
        moments = {
            name: Moments(arrays[_FACTORS + name], arrays[_EXPONENTS + name], arrays[_REST + name])
            for name in _names(arrays, _FACTORS)
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise HeaderError(f"{path}: the calibration is damaged: {error!r}"[:300]) from None
    if not costs and "unfinished" not in facts:
        raise HeaderError(f"{path}: a calibration must name at least one tensor")
    scales = {name: arrays[_SCALE + name] for name in _names(arrays, _SCALE)}
    return Calibration(scales, costs, measurements, moments, facts)


def _names(arrays: Mapping[str, NDArray[Any]], prefix: str) -> list[str]:
    return [name.removeprefix(prefix) for name in arrays if name.startswith(prefix)]


def _checked_costs(rows: NDArray[Any]) -> NDArray[np.float32]:
    if rows.dtype != np.float32 or rows.ndim != 1 or not len(rows) or not (np.isfinite(rows) & (rows >= 0)).all():
        raise ValueError("costs of rows must be finite, and not negative")
    return rows


def _measurement(item: dict[str, Any]) -> Measurement:
    numbers = {key: float(item[key]) for key in ("level", "top1", "kl", "error")}
    n_positions, n_texts = int(item["n_positions"]), int(item["n_texts"])
    if (
        not all(map(math.isfinite, numbers.values()))
        or not 0 <= numbers["top1"] <= 1
        or numbers["error"] < 0
        or n_positions < 1
        or n_texts < 1
    ):
        raise ValueError(f"a measurement of {numbers}")
    return Measurement(**numbers, n_positions=n_positions, n_texts=n_texts)


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
    n_tokens: int | None = None,
    jobs: int,
    progress: Progress,
) -> tuple[Calibration, str | None]:
    """Return what to convert a source with, and the file that it was written to, if it was.

    Parameters
    ----------
    calibrate : Calibration or path
        A calibration, the `.safetensors` file of one, or a text to run `model` on ("builtin" for the built-in one).
        What a text gives is kept beside `target`, and read from there when the same model and text come again; what an
        interrupted run found is kept there too, and gone on from.
    source : TensorSource
        Of `model`.
    model : path
    target : Path
        What will be written.
    n_tokens : int, optional
        About how many tokens of a text are read; `hhtld.evaluation.calibration_text.DEFAULT_TOKENS` by default.

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
        if "unfinished" in calibration.facts:
            raise FormatError(
                f"{text} is of a run that was interrupted; give its text with calibrate=TEXT (--calibrate TEXT) to "
                f"finish it"
            )
        return calibration, None
    from hhtld.evaluation.calibrate import calibrate as run
    from hhtld.evaluation.calibration_text import DEFAULT_TOKENS, text_digest

    n_tokens = DEFAULT_TOKENS if n_tokens is None else n_tokens
    made_from = weights_digest(source), text_digest(text, n_tokens)
    beside = target.with_name(target.name.removesuffix(target.suffix) + ".calibration.safetensors")
    begun = None
    if beside.is_file():
        with contextlib.suppress(FormatError):
            earlier = read_calibration(beside)
            if (earlier.facts.get("source"), earlier.facts.get("text")) == made_from:
                if "unfinished" not in earlier.facts:
                    return earlier, None
                begun = earlier
    calibration = run(
        model,
        text,
        n_tokens=n_tokens,
        jobs=jobs,
        progress=progress,
        begun=begun,
        keep=lambda done: write_calibration(done, beside),
    )
    write_calibration(calibration, beside)
    return calibration, str(beside)
