"""Calibrations in files, and conversions that use them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import hhtld
from hhtld.commands.main import main
from hhtld.encoding.calibration import Calibration, Measurement, Sensitivity
from hhtld.encoding.fingerprint import weights_digest
from hhtld.errors import FormatError
from hhtld.evaluation.calibration_file import read_calibration, write_calibration
from hhtld.formats import open_source

HEAD, QUERY = "lm_head.weight", "layers.0.q_proj.weight"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    tensors = {HEAD: rng.standard_normal((300, 64)), QUERY: rng.standard_normal((96, 64)), "norm.weight": np.ones(64)}
    save_file({name: array.astype(np.float32) for name, array in tensors.items()}, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


@pytest.fixture
def calibration(model: Path) -> Calibration:
    with open_source(model) as source:
        facts = {"source": weights_digest(source)}
    return Calibration(
        {QUERY: np.linspace(0.5, 2, 64, dtype=np.float32)},
        (Sensitivity((HEAD,), 300 * 64, 0.02), Sensitivity((QUERY,), 96 * 64, 0.01)),
        (Measurement(4.5, 4.6, 0.8, 0.1, 1000, 0.01), Measurement(5.25, 5.35, 0.88, 0.04, 1000)),
        {HEAD: np.eye(64, dtype=np.float32)},
        facts,
    )


def test_a_calibration_comes_back_from_its_file(calibration: Calibration, tmp_path: Path) -> None:
    write_calibration(calibration, tmp_path / "c.safetensors")
    back = read_calibration(tmp_path / "c.safetensors")
    assert (back.sensitivities, back.measurements, back.facts) == (
        calibration.sensitivities,
        calibration.measurements,
        calibration.facts,
    )
    for mine, theirs in ((calibration.column_scales, back.column_scales), (calibration.moments, back.moments)):
        assert set(mine) == set(theirs)
        for name in mine:
            np.testing.assert_array_equal(mine[name], theirs[name])


def test_a_file_names_its_format(calibration: Calibration, tmp_path: Path) -> None:
    write_calibration(calibration, tmp_path / "c.safetensors")
    assert b"hhtld.calibration/1" in (tmp_path / "c.safetensors").read_bytes()


def test_a_conversion_takes_its_rates_scales_and_moments(model: Path, calibration: Calibration, tmp_path: Path) -> None:
    write_calibration(calibration, tmp_path / "c.safetensors")
    out = tmp_path / "m.hhtld"
    report = hhtld.convert(model, out, calibrate=tmp_path / "c.safetensors", target_top1=0.85, min_ratio=0)
    level = calibration.level_for(0.85)
    rates = calibration.rates(level)
    with hhtld.open(out) as pack:
        for name in (HEAD, QUERY):
            number = pack.info(name).group
            assert number is not None
            assert pack.table.groups[number].numbers["rate"] == rates[name]
        assert "column_scale" in pack.info(QUERY).sections
        assert "column_scale" not in pack.info(HEAD).sections
    assert f"rates about {level:g} bits" in report.notes[-1]
    n_positions = min(measured.n_positions for measured in calibration.measurements)
    assert f"measured on {n_positions:,} positions" in report.notes[-1]
    assert ("too few to rely on" in report.notes[-1]) == (n_positions < 1000)
    again = hhtld.convert(
        model, tmp_path / "2.hhtld", profile="parity", calibrate=calibration, target_top1=0.85, min_ratio=0, jobs=1
    )
    assert again.target_nbytes == report.target_nbytes
    assert (tmp_path / "2.hhtld").read_bytes() == out.read_bytes()
    hhtld.convert(model, tmp_path / "3.hhtld", calibration=calibration, target_top1=0.85, min_ratio=0)
    assert (tmp_path / "3.hhtld").read_bytes() == out.read_bytes(), "parity is the default"
    with pytest.raises(ValueError, match="give one"):
        hhtld.convert(model, tmp_path / "4.hhtld", calibration=calibration, calibrate="builtin")


def test_without_a_calibration_the_note_promises_nothing(model: Path, tmp_path: Path) -> None:
    report = hhtld.convert(model, tmp_path / "m.hhtld", profile="parity", min_ratio=0)
    assert [note.partition(",")[0] for note in report.notes] == [
        "no calibration was given; rates keep a row cosine of 0.9997"
    ]
    assert report.tensors[0].cosines is None or report.tensors[0].cosines.median >= 0.9997


def test_a_calibration_of_another_model_is_refused(
    model: Path, calibration: Calibration, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_calibration(calibration, tmp_path / "c.safetensors")
    other = {name: array + 1 for name, array in load_file(model).items()}
    save_file(other, tmp_path / "o.safetensors")
    args = ["convert", str(tmp_path / "o.safetensors"), str(tmp_path / "o.hhtld"), "--profile", "parity"]
    assert main([*args, "--calibrate", str(tmp_path / "c.safetensors")]) == 3
    assert "was made from another model" in capsys.readouterr().err
    assert not (tmp_path / "o.hhtld").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.update(schema="other/1"), "not a calibration"),
        (lambda found: found.update(calibration="{"), "metadata is damaged"),
        (lambda found: found.update(calibration="[]"), "metadata is damaged"),
        (lambda found: _edit(found, lambda told: told["sensitivities"][0].pop("kl")), "metadata is damaged"),
        (lambda found: _edit(found, lambda told: told["sensitivities"][0].update(n_weights=0)), "metadata is damaged"),
        (lambda found: _edit(found, lambda told: told["sensitivities"].clear()), "must name at least one tensor"),
        (
            lambda found: _edit(found, lambda told: told["sensitivities"].extend(told["sensitivities"])),
            "each of them once",
        ),
        (lambda found: _edit(found, lambda told: told["measurements"][0].update(top1=2)), "metadata is damaged"),
    ],
)
def test_damaged_calibrations_are_refused(calibration: Calibration, tmp_path: Path, change, message: str) -> None:
    path = tmp_path / "c.safetensors"
    write_calibration(calibration, path)
    with open_source(path) as file:
        metadata = file.metadata
    change(metadata)
    save_file(load_file(path), path, metadata)
    with pytest.raises(FormatError, match=message):
        read_calibration(path)


def _edit(metadata: dict[str, str], change) -> None:
    told = json.loads(metadata["calibration"])
    change(told)
    metadata["calibration"] = json.dumps(told)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--profile", "gates", "--calibrate", "builtin"],
            "--calibrate and --target-top1 are for profile 'parity' only",
        ),
        (["--profile", "parity", "--target-top1", ".9"], "--target-top1 needs --calibrate: "),
    ],
)
def test_options_that_do_not_fit_are_told(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["convert", str(model), str(tmp_path / "m.hhtld"), *options]) == 2
    assert message in capsys.readouterr().err


def test_an_ordinary_model_is_no_calibration(model: Path) -> None:
    with pytest.raises(FormatError, match="not a calibration"):
        read_calibration(model)


def test_a_calibration_that_is_missing_is_told_how_to_make(model: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"\(--calibrate builtin\) makes one"):
        hhtld.convert(model, tmp_path / "m.hhtld", calibrate=tmp_path / "none.calibration.safetensors")
