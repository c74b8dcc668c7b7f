"""Comparing two sources: what counts as the same, what is measured, and values that are not finite."""

from __future__ import annotations

import io
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

import hhtld
from hhtld.commands.diff import DiffReport, TensorDiff, diff, print_diff
from hhtld.cosines import row_cosines, summarize

Model = dict[str, NDArray[np.generic]]


def written(folder: Path, name: str, tensors: Model) -> Path:
    from safetensors.numpy import save_file

    path = folder / f"{name}.safetensors"
    save_file(tensors, path)
    return path


@pytest.fixture
def model(rng: np.random.Generator) -> Model:
    return {
        "w": rng.standard_normal((700, 40)).astype(np.float32),
        "half": rng.standard_normal((30, 8)).astype(np.float16),
        "norm": rng.standard_normal(17).astype(np.float32),
        "scalar": np.array(3, np.float32),
        "ids": np.arange(12).reshape(3, 4),
        "empty": np.empty((5, 0), np.float32),
        "no_rows": np.empty((0, 5), np.float32),
    }


def found(report: DiffReport, name: str) -> TensorDiff:
    return next(tensor for tensor in report.tensors if tensor.name == name)


def printed(report: DiffReport) -> str:
    out = io.StringIO()
    print_diff(report, Console(file=out, width=200))
    return out.getvalue()


@pytest.mark.parametrize("jobs", [1, 3])
def test_the_same_is_the_same(model: Model, tmp_path: Path, jobs: int) -> None:
    seen: list[tuple[str, str, int]] = []
    paths = written(tmp_path, "a", model), written(tmp_path, "b", model)
    report = diff(*paths, jobs=jobs, progress=lambda *call: seen.append(call))
    assert report
    assert [tensor.name for tensor in report.tensors] == sorted(model)
    assert all(tensor.identical for tensor in report.tensors)
    assert found(report, "w").max_error == 0
    assert found(report, "w").cosines is not None
    assert found(report, "ids").cosines is found(report, "empty").cosines is found(report, "no_rows").cosines is None
    assert seen == [("compare", name, model[name].nbytes) for name in sorted(model)]
    assert "7 of 7 tensors in both are the same byte for byte" in printed(report)


def test_numbers_are_those_of_the_rows(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hhtld.sources.rows.BLOCK_NBYTES", 4096)  # so that there is more than one block
    other = {**model, "w": model["w"] + np.float32(0)}
    other["w"][613] *= np.float32(-0.5)
    other["w"][7, 3] += np.float32(9)
    report = diff(written(tmp_path, "a", model), written(tmp_path, "b", other), jobs=2)
    tensor = found(report, "w")
    assert not report
    assert not tensor.identical
    assert tensor.cosines == summarize(row_cosines(model["w"], other["w"]))
    assert tensor.cosines.worst_row == 613
    assert tensor.max_error == np.abs(model["w"].astype(np.float64) - other["w"]).max()
    record = next(r for r in report.to_json()["tensors"] if r["name"] == "w")
    assert record["cosine"]["min"] == tensor.cosines.minimum < -0.99
    assert record["max_error"] == tensor.max_error
    assert sum(not t.identical for t in report.tensors) == 1
    assert "613" in printed(report)


def test_types_shapes_and_names_that_differ(model: Model, tmp_path: Path) -> None:
    other: Model = {
        **model,
        "half": model["half"].astype(ml_dtypes.bfloat16),
        "ids": model["ids"].astype(np.int32),
        "norm": model["norm"].reshape(1, 17),
        "<b>[red]new": np.zeros(2, np.float32),
    }
    del other["scalar"]
    report = diff(written(tmp_path, "a", model), written(tmp_path, "b", other))
    assert not report
    assert (report.only_a, report.only_b) == (["scalar"], ["<b>[red]new"])
    assert report.reshaped == {"norm": ((17,), (1, 17))}
    half, ids = found(report, "half"), found(report, "ids")
    assert (half.dtype_a, half.dtype_b, half.identical) == ("F16", "BF16", False)
    assert half.cosines is not None
    assert half.cosines.minimum > 0.999
    assert not ids.identical
    assert ids.cosines is None
    assert (ids.nbytes_a, ids.nbytes_b) == (96, 48)
    facts = report.to_json()
    assert facts["schema"] == "hhtld.diff/1"
    assert facts["reshaped"] == {"norm": {"a": [17], "b": [1, 17]}}
    assert facts["identical"] is False
    text = printed(report)
    assert "<b>[red]new" in text
    assert "F16 / BF16" in text


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("both", [False, True])
def test_values_that_are_not_finite(model: Model, tmp_path: Path, value: float, both: bool) -> None:
    bad = {**model, "w": model["w"].copy()}
    bad["w"][5, 2] = value
    report = diff(written(tmp_path, "a", bad if both else model), written(tmp_path, "b", bad))
    tensor = found(report, "w")
    assert tensor.identical == both
    assert tensor.cosines is not None
    assert (tensor.cosines.minimum, tensor.cosines.worst_row) == (-1, 5)
    assert tensor.max_error == (0 if both else np.inf)
    facts = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert next(r for r in facts["tensors"] if r["name"] == "w")["max_error"] == (0 if both else None)
    assert ("inf" in printed(report)) != both


def test_errors_and_cosines_are_those_of_float64(tmp_path: Path, rng: np.random.Generator) -> None:
    tiny, huge = rng.standard_normal((2, 20, 8)) * 1e-300, rng.standard_normal((2, 20, 8)) * 1e300
    near = np.array([[1.0, 2.0], [3.0, 4.0]])
    a: Model = {"tiny": tiny[0], "huge": huge[0], "near": near, "same": huge[0]}
    b: Model = {"tiny": tiny[1], "huge": huge[1], "near": near + np.array([0, 1e-12]), "same": huge[0]}
    report = diff(written(tmp_path, "a", a), written(tmp_path, "b", b))
    for name, rows in (("tiny", tiny * 1e300), ("huge", huge * 1e-300)):
        cosines = row_cosines(*rows.astype(np.float32))
        summary = found(report, name).cosines
        assert summary is not None
        assert summary.minimum == pytest.approx(cosines.min(), abs=2e-6)
        assert found(report, name).max_error == np.abs(a[name] - b[name]).max()  # type: ignore[operator]  # None fails, too
    assert found(report, "near").max_error == pytest.approx(1e-12, rel=1e-3)
    assert found(report, "same").max_error == 0


def test_rows_of_zeros_that_are_lost_are_shown(tmp_path: Path) -> None:
    some = np.eye(3, 4, dtype=np.float32)
    some[1] = 0
    a: Model = {"all": np.zeros((3, 4), np.float32), "some": some}
    b: Model = {"all": np.eye(3, 4, dtype=np.float32), "some": np.eye(3, 4, dtype=np.float32)}
    lines = printed(diff(written(tmp_path, "a", a), written(tmp_path, "b", b))).splitlines()
    (all_lost,) = (line for line in lines if "all " in line and "F32" in line)
    assert "differs, 3 rows of zeros lost" in all_lost
    assert "1.000000" not in all_lost
    (some_lost,) = (line for line in lines if "some " in line and "F32" in line)
    assert some_lost.split()[-5:] == ["1.000000", "1.000000", "1.000000", "1", "1"], "the last are the row and error"
    assert "differs, 1 row of zeros lost" in some_lost


def test_a_pack_against_its_source(model: Model, tmp_path: Path) -> None:
    tensors: Model = {"lm_head.weight": np.tile(model["w"], (1, 2)), "norm": model["norm"]}
    source, pack, back = written(tmp_path, "m", tensors), tmp_path / "m.hhtld", tmp_path / "back.safetensors"
    gates = hhtld.convert(source, pack, profile="gates").gates
    hhtld.convert(pack, back)
    report = diff(source, pack)
    tensor = found(report, "lm_head.weight")
    assert not report
    assert tensor.cosines == gates.tensors["lm_head.weight"]
    with hhtld.open(pack) as opened:
        assert tensor.nbytes_b == opened.nbytes("lm_head.weight")
    assert found(report, "norm").identical
    assert diff(pack, back)
    assert diff(pack, pack)


def test_what_cannot_be_read_is_an_error(model: Model, tmp_path: Path) -> None:
    path = written(tmp_path, "a", model)
    with pytest.raises(FileNotFoundError):
        diff(path, tmp_path / "none.safetensors")
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(hhtld.FormatError):
        diff(tmp_path / "junk", path)
