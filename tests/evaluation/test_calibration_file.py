"""Calibrations in files, and conversions that use them."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import hhtld
from hhtld.api.advice import size_note
from hhtld.api.targets import at_level, level_for_bits
from hhtld.commands.main import main
from hhtld.encoding.calibrated_rates import Calibration, Costs, Measurement
from hhtld.encoding.fingerprint import weights_digest
from hhtld.encoding.options import Encoding
from hhtld.encoding.pack_size import most_nbytes
from hhtld.encoding.plan import make_plan
from hhtld.errors import FormatError
from hhtld.evaluation.calibration_file import read_calibration, write_calibration
from hhtld.formats import open_source
from hhtld.slots.moments import Moments

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
        {
            HEAD: Costs(np.linspace(0.1, 0.2, 300, dtype=np.float32), 64),
            QUERY: Costs(np.linspace(0.05, 0.1, 96, dtype=np.float32), 64),
        },
        (Measurement(4.5, 0.8, 0.1, 1000, 20, 0.01), Measurement(5.25, 0.88, 0.04, 1000, 20)),
        {HEAD: Moments.of(np.eye(64) + np.ones((64, 64)), 8)},
        facts,
    )


def test_a_calibration_comes_back_from_its_file(calibration: Calibration, tmp_path: Path) -> None:
    write_calibration(calibration, tmp_path / "c.safetensors")
    back = read_calibration(tmp_path / "c.safetensors")
    assert (back.measurements, back.facts) == (calibration.measurements, calibration.facts)
    assert set(back.column_scales) == {QUERY}
    np.testing.assert_array_equal(back.column_scales[QUERY], calibration.column_scales[QUERY])
    assert set(back.costs) == {HEAD, QUERY}
    for name, costs in calibration.costs.items():
        np.testing.assert_array_equal(back.costs[name].rows, costs.rows)
        assert back.costs[name].n_cols == costs.n_cols
    assert set(back.moments) == {HEAD}
    assert back.moments[HEAD].tobytes() == calibration.moments[HEAD].tobytes()


def test_a_file_names_its_format(calibration: Calibration, tmp_path: Path) -> None:
    write_calibration(calibration, tmp_path / "c.safetensors")
    assert b"hhtld.calibration/2" in (tmp_path / "c.safetensors").read_bytes()


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
    assert f"rates of {level:g} bits a weight on average were chosen for a top-1 agreement of 0.85" in report.notes[-2]
    assert "judged on 1,000 positions of 20 texts; hhtld gate-parity" in report.notes[-2]
    again = hhtld.convert(
        model, tmp_path / "2.hhtld", profile="parity", calibrate=calibration, target_top1=0.85, min_ratio=0, jobs=1
    )
    assert again.target_nbytes == report.target_nbytes
    assert (tmp_path / "2.hhtld").read_bytes() == out.read_bytes()
    hhtld.convert(model, tmp_path / "3.hhtld", calibration=calibration, target_top1=0.85, min_ratio=0)
    assert (tmp_path / "3.hhtld").read_bytes() == out.read_bytes(), "parity is the default"
    with pytest.raises(ValueError, match="give one"):
        hhtld.convert(model, tmp_path / "4.hhtld", calibration=calibration, calibrate="builtin")


def test_rows_take_rates_of_their_own(model: Path, calibration: Calibration, tmp_path: Path) -> None:
    rows = np.exp2(2 * np.random.default_rng(3).standard_normal(300)).astype(np.float32)
    spread = replace(calibration, costs={**calibration.costs, HEAD: Costs(rows, 64)})
    options = {"calibrate": spread, "target_bits": 6, "min_ratio": 0}
    hhtld.convert(model, tmp_path / "m.hhtld", **options)
    with open_source(model) as source:
        bits = spread.bits(level_for_bits(spread, 6, source, Encoding()))
    with hhtld.open(tmp_path / "m.hhtld") as pack:
        head = pack.get_encoded(HEAD).row_class
        group = pack.table.groups[pack.info(HEAD).group or 0].numbers
        assert "row_class" not in pack.info(QUERY).sections
    rates = np.array(group["rates"])[head] / 16
    assert np.abs(rates - bits[HEAD]).max() <= 0.25
    assert np.asarray(bits[HEAD]).mean() - 2 / 300 <= rates.mean() <= np.asarray(bits[HEAD]).mean()
    hhtld.convert(model, tmp_path / "2.hhtld", jobs=1, executor="threads", **options)
    assert (tmp_path / "2.hhtld").read_bytes() == (tmp_path / "m.hhtld").read_bytes()


def test_rows_with_rates_of_their_own_go_on_where_they_were(
    model: Path, calibration: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hhtld.codecs.base.SPAN_NBYTES", 1 << 13)
    monkeypatch.setattr("hhtld.codecs.base.BLOCK_NBYTES", 1 << 13)
    rows = np.exp2(2 * np.random.default_rng(3).standard_normal(300)).astype(np.float32)
    spread = replace(calibration, costs={**calibration.costs, HEAD: Costs(rows, 64)})
    stages: list[str] = []

    def stop(stage: str, name: str, nbytes: int) -> None:
        stages.append(stage)
        if stages.count("encode") == 4:
            raise KeyboardInterrupt

    options = {"calibrate": spread, "target_bits": 6, "min_ratio": 0, "jobs": 1}
    hhtld.convert(model, tmp_path / "whole.hhtld", **options)
    with pytest.raises(KeyboardInterrupt):
        hhtld.convert(model, tmp_path / "m.hhtld", progress=stop, **options)
    stages.clear()
    hhtld.convert(model, tmp_path / "m.hhtld", resume=True, progress=lambda stage, *_: stages.append(stage), **options)
    assert stages.count("resume") >= 3
    assert (tmp_path / "m.hhtld").read_bytes() == (tmp_path / "whole.hhtld").read_bytes()


@pytest.mark.parametrize("calibrate", ["c.safetensors", None])
def test_how_much_is_read_is_said_of_texts_only(calibrate: str | None, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"how much of a text is read; give calibrate \(--calibrate\)"):
        hhtld.convert(model, tmp_path / "m.hhtld", calibrate=calibrate, calibrate_tokens=100)
    with pytest.raises(ValueError, match=r"calibrate_tokens \(--calibrate-tokens\) must be a positive integer, got 0"):
        hhtld.convert(model, tmp_path / "m.hhtld", calibrate="builtin", calibrate_tokens=0)


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
        (lambda found: found.update(calibration="{"), "is damaged"),
        (lambda found: found.update(calibration="[]"), "is damaged"),
        (lambda found: found.update(schema="hhtld.calibration/1"), "earlier version of hhtld; calibrate again"),
        (lambda found: _edit(found, lambda told: told.pop("n_cols")), "is damaged"),
        (lambda found: _edit(found, lambda told: told["n_cols"].update(other=3)), "is damaged"),
        (lambda found: _edit(found, lambda told: told["n_cols"].clear()), "must name at least one tensor"),
        (lambda found: _edit(found, lambda told: told["measurements"][0].update(n_texts=0)), "is damaged"),
        (lambda found: _edit(found, lambda told: told["measurements"][0].update(top1=2)), "is damaged"),
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
        (["--profile", "gates", "--calibrate", "builtin"], "are for profile 'parity' only"),
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


@pytest.mark.parametrize("rules", [(), (("*.q_proj.weight", "keep"),)])
@pytest.mark.parametrize("asked", [3.3, 4.85])
def test_a_pack_takes_the_bits_that_were_asked_for(
    asked: float, rules: tuple[tuple[str, str], ...], tmp_path: Path
) -> None:
    """All of the file counts: norms that are kept, centroids, the table; but not the side files of the model."""
    rng = np.random.default_rng(2)
    centres = 3 * rng.standard_normal((16, 256))
    arrays = {
        "model.embed_tokens.weight": centres[rng.integers(0, 16, 2500)] + rng.standard_normal((2500, 256)),
        "model.layers.0.q_proj.weight": rng.standard_normal((1024, 256)),
        "model.layers.1.q_proj.weight": rng.standard_normal((64, 256)),
        "model.norm.weight": np.ones(20_000),
    }
    costs = {name: Costs(rng.uniform(0.01, 1, len(array)).astype(np.float32), 256) for name, array in arrays.items()}
    del costs["model.norm.weight"]
    if rules:
        asked += 16 * 0.25  # about a quarter of the weights is kept
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({name: array.astype(np.float16) for name, array in arrays.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"hidden_size": 256}))
    (folder / "tokenizer.json").write_text(json.dumps({"words": "x" * 200_000}))
    with open_source(folder) as source:
        facts = {"source": weights_digest(source)}
    points = (Measurement(4.5, 0.8, 0.1, 1000, 20, 0.01), Measurement(5.25, 0.88, 0.04, 1000, 20))
    scales = {"model.layers.0.q_proj.weight": np.ones(256, np.float32)}
    told = Calibration(scales, costs, points, {}, facts)
    report = hhtld.convert(folder, tmp_path / "m.hhtld", calibrate=told, target_bits=asked, rules=rules, min_ratio=0)
    n_weights = sum(array.size for array in arrays.values())
    bits = 8 * (report.target_nbytes - report.files_nbytes) / n_weights
    assert asked - 1 / 16 < bits <= asked
    assert f"the pack takes {bits:.3f} bits a weight, side files aside" in report.notes
    with hhtld.open(tmp_path / "m.hhtld") as pack:
        assert "twigs" in pack.info("model.embed_tokens.weight").sections


@pytest.mark.parametrize("rule", ["bits:6", "bits:3", "keep"])
@pytest.mark.parametrize("possible", [1, 1.75, 4])
def test_the_highest_level_that_fits_is_found_beside_rules(
    possible: float, rule: str, model: Path, calibration: Calibration
) -> None:
    """The head's bytes do not follow the level, though a calibration of all tensors counts them."""
    encoding = Encoding(rules=((HEAD, rule),))
    with open_source(model) as source:
        as_bf16 = 2 * sum(math.prod(info.shape) for info in source.infos().values())

        def bits(level: float) -> float:
            return 16 * most_nbytes(source, make_plan(source, at_level(encoding, calibration, level))) / as_bf16

        asked = bits(possible) + 1e-9
        level = level_for_bits(calibration, asked, source, encoding)
        assert bits(level) <= asked
        assert level >= possible
        assert level == 6 or bits(level + 1 / 1024) > asked


def test_a_pack_that_takes_more_than_was_asked_for_says_why(tmp_path: Path) -> None:
    """What is found only while rows are coded: sampled rows do not show it."""
    rng = np.random.default_rng(5)
    tensors = {HEAD: rng.standard_normal((600, 64)), QUERY: rng.standard_normal((2048, 64))}
    tensors[QUERY][1999] *= 2e38 / np.abs(tensors[QUERY][1999]).max()
    path = tmp_path / "m.safetensors"
    save_file({name: array.astype(np.float32) for name, array in tensors.items()}, path)
    with open_source(path) as source:
        facts = {"source": weights_digest(source)}
    costs = {name: Costs(np.ones(len(array), np.float32), 64) for name, array in tensors.items()}
    points = (Measurement(4.5, 0.8, 0.1, 1000, 20, 0.01), Measurement(5.25, 0.88, 0.04, 1000, 20))
    told = Calibration({}, costs, points, {}, facts)
    report = hhtld.convert(path, tmp_path / "m.hhtld", calibrate=told, target_bits=5, min_ratio=0)
    assert re.fullmatch(
        r"the pack takes \d\d\.\d+ bits a weight, side files aside, more than the 5 of target_bits \(--target-bits\): "
        rf"values near an end of float32's range, .* keep '?{re.escape(QUERY)}'? byte for byte; .*=keep\).*",
        report.notes[-1],
    )


def test_the_note_of_a_pack_names_tensors_whose_rates_rose(
    model: Path, calibration: Calibration, tmp_path: Path
) -> None:
    report = hhtld.convert(model, tmp_path / "m.hhtld", calibrate=calibration, min_ratio=0, rules=((QUERY, "gates"),))
    assert "more" not in report.notes[-1]
    with open_source(model) as source:
        plan = make_plan(source, Encoding(rules=((QUERY, "gates"),), rates={HEAD: 4}))
    assert "more" not in size_note(report, plan, 5, 5)
    assert f"cosines measured while rows were coded decided for {QUERY!r}; rules" in size_note(report, plan, 5.01, 5)


def test_a_source_without_values_has_no_bits_a_weight(calibration: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    save_file({"e": np.zeros((0, 4), np.float32)}, path)
    with open_source(path) as source:
        empty = replace(calibration, column_scales={}, costs={}, moments={}, facts={"source": weights_digest(source)})
    with pytest.raises(FormatError, match="holds no values"):
        hhtld.convert(path, tmp_path / "m.hhtld", calibrate=empty, target_bits=4, min_ratio=0)
    report = hhtld.convert(path, tmp_path / "m.hhtld", calibrate=empty, target_top1=0.85, min_ratio=0)
    assert not any("the pack takes" in note for note in report.notes)
    assert hhtld.load_file(tmp_path / "m.hhtld")["e"].shape == (0, 4)


def test_bits_that_the_lowest_rates_pass_are_refused(
    model: Path, calibration: Calibration, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_calibration(calibration, tmp_path / "c.safetensors")
    args = ["convert", str(model), str(tmp_path / "m.hhtld"), "--calibrate", str(tmp_path / "c.safetensors")]
    assert main([*args, "--target-bits", "1"]) == 3
    assert "1 bits a weight may not hold all that is stored, which takes at most " in capsys.readouterr().err
    assert main([*args, "--target-bits", "-1"]) == 2
    assert main([*args, "--target-bits", "5", "--target-top1", "0.9"]) == 2


def test_moments_that_do_not_fit_are_refused(calibration: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    for change in ({f"rest:{HEAD}": np.ones(3, np.float32)}, {f"exponents:{HEAD}": np.full(8, 100, np.int16)}):
        write_calibration(calibration, path)
        with open_source(path) as file:
            metadata = file.metadata
        save_file(load_file(path) | change, path, metadata)
        with pytest.raises(FormatError, match="is damaged"):
            read_calibration(path)


def test_the_file_of_an_interrupted_run_is_refused(calibration: Calibration, model: Path, tmp_path: Path) -> None:
    unfinished = replace(calibration, facts={**calibration.facts, "unfinished": "yes"})
    write_calibration(unfinished, tmp_path / "c.safetensors")
    with pytest.raises(FormatError, match="interrupted; give its text"):
        hhtld.convert(model, tmp_path / "m.hhtld", calibrate=tmp_path / "c.safetensors")
