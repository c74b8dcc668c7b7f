"""What is kept is told: because no rate reaches what is asked, or because there is nothing to encode."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

import hhtld
from hhtld.api.conversion_report import ConversionReport
from hhtld.commands.main import main
from hhtld.commands.report import report_facts
from hhtld.commands.verify import verify
from hhtld.encoding.gate_report import GateReport
from hhtld.errors import GateError
from hhtld.gates import Threshold, Unreached

BEYOND = {"index": Threshold(0.99999, 0.9999)}


def model() -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    return {
        "embed.weight": rng.standard_normal((600, 128)).astype(np.float32),
        "l.q_proj.weight": rng.standard_normal((2048, 128)).astype(np.float32),
        "norm": np.ones(128, np.float32),
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    save_file(model(), tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def converted(source: Path, **options: Any) -> ConversionReport:
    return hhtld.convert(source, source.with_suffix(".hhtld"), **({"profile": "gates", "min_ratio": 1} | options))


def test_what_no_rate_reaches_fails_and_is_named(source: Path) -> None:
    with pytest.raises(
        GateError, match=r"6 bits a weight do not reach 0\.99999 and 0\.9999 for embed\.weight"
    ) as missed:
        converted(source, gates=BEYOND)
    facts = missed.value.report.to_json()
    assert facts["gates"]["unreached"] == {"embed.weight": {"regime": "index", "median": 0.99999, "p5": 0.9999}}
    told = {tensor["name"]: tensor.get("unreached") for tensor in facts["tensors"]}
    assert [name for name, unreached in told.items() if unreached] == ["embed.weight"]


def test_allow_keep_takes_it_for_a_pass_and_still_tells_it(source: Path) -> None:
    report = converted(source, gates=BEYOND, allow_keep=True)
    assert report
    assert list(report.gates.unreached) == ["embed.weight"]
    with hhtld.open(source.with_suffix(".hhtld")) as pack:
        assert pack.info("embed.weight").unreached is not None
        assert pack.get_tensor("embed.weight").tobytes() == model()["embed.weight"].tobytes()
    again = verify(source.with_suffix(".hhtld"), source)
    assert again
    assert again.gates is not None
    assert list(again.gates.unreached) == ["embed.weight"]


def test_every_table_has_a_row_for_it(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = str(source.with_suffix(".hhtld"))
    asked = ["--profile", "gates", "--gate", "index=0.99999,0.9999", "--min-ratio", "1"]

    def printed(*args: str) -> tuple[int, str]:
        code = main(list(args))
        return code, capsys.readouterr().out

    code, out = printed("convert", str(source), target, *asked)
    assert code == 1
    assert out.rstrip().splitlines()[-1].startswith(f"FAILED: {target} is written, but 6 bits a weight do not reach")
    for command in (
        ["convert", str(source), target, *asked, "--dry-run"],
        ["convert", str(source), target, *asked, "--allow-keep"],
        ["verify", target, str(source)],
    ):
        code, out = printed(*command)
        assert code == 0, command
        row = next(line.split() for line in out.splitlines() if line.startswith("index"))
        assert row == ["index", "0.99999", "/", "0.9999", "kept", "embed.weight"], command
    code, out = printed("inspect", target)
    assert "Kept byte for byte because 6 bits do not reach what was asked: 1" in out
    assert "index 0.99999 / 0.9999" in out
    facts = json.loads(printed("inspect", target, "--json")[1])
    assert facts["tensors"][0]["unreached"] == {"regime": "index", "median": 0.99999, "p5": 0.9999}


def test_the_page_has_a_row_for_it(source: Path) -> None:
    pytest.importorskip("matplotlib")
    page = source.with_suffix(".html")
    target = str(source.with_suffix(".hhtld"))
    args = ["convert", str(source), target, "--profile", "gates", "--gate", "index=0.99999,0.9999"]
    assert main([*args, "--report", str(page)]) == 1
    text = page.read_text()
    assert "6 bits a weight do not reach 0.99999 and 0.9999 for embed.weight" in text
    assert re.search(r'>kept</td>\s*<td class="n"[^>]*>0\.99999</td>', text)


def test_a_resumed_conversion_tells_it_too(source: Path) -> None:
    from hhtld.errors import OutputError

    target = source.with_suffix(".hhtld")
    calls = 0

    def stop(stage: str, name: str, nbytes: int) -> None:
        nonlocal calls
        calls += name == "norm"
        if name == "norm":
            raise OutputError("stop")

    with pytest.raises(OutputError):
        converted(source, gates=BEYOND, progress=stop)
    report = converted(source, gates=BEYOND, allow_keep=True, resume=True)
    assert list(report.gates.unreached) == ["embed.weight"]
    with hhtld.open(target) as pack:
        assert pack.info("embed.weight").unreached is not None


@pytest.mark.parametrize(
    ("tensors", "options", "why"),
    [
        ({}, {}, "the source holds no tensors"),
        ({"norm": np.ones(128, np.float32)}, {}, "no tensor is a matrix that this profile encodes"),
        ({"ids": np.arange(10)}, {}, "no tensor is of floats"),
        ({"a.weight": np.linspace(0, 1, 8, dtype=np.float32).reshape(2, 4)}, {}, "would not save a byte"),
        (model(), {"rules": [("*", "keep")]}, "kept by a rule"),
    ],
)
def test_nothing_to_encode_is_a_sentence_and_no_failure(
    tensors: dict[str, NDArray[Any]],
    options: dict[str, Any],
    why: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_file(tensors, tmp_path / "m.safetensors")
    report = hhtld.convert(tmp_path / "m.safetensors", tmp_path / "m.hhtld", **options)
    assert report
    (note,) = [note for note in report.notes if note.startswith("nothing was encoded: ")]
    assert why in note
    assert main(["verify", str(tmp_path / "m.hhtld"), str(tmp_path / "m.safetensors")]) == 0
    out = capsys.readouterr().out
    assert "regime" not in out, "an empty table says nothing"
    assert ("kept and equal the source" in out) == bool(tensors)


def test_a_missed_ratio_says_what_takes_the_bytes(source: Path) -> None:
    with pytest.raises(
        GateError, match=r"16\.[0-9]+ times|9 is asked: of [0-9,]+ bytes .* are encoded tensors"
    ) as missed:
        converted(source, min_ratio=9)
    assert "a lower min_ratio (--min-ratio) asks for less" in str(missed.value)
    assert "is written, but" in str(missed.value)


def test_a_file_larger_than_its_source_fails_whatever_its_ratio_to_bfloat16(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((600, 128)).astype(ml_dtypes.float8_e4m3fn)
    kept = np.random.default_rng(1).standard_normal((600, 128)).astype(ml_dtypes.float8_e4m3fn)
    plain = hhtld.encode({"w": rows, "k": kept}, "bits:2")
    hhtld.save(plain, tmp_path / "a.hhtld")
    hhtld.convert(tmp_path / "a.hhtld", tmp_path / "m.safetensors")
    options: dict[str, Any] = {"profile": "gates", "gates": {"argmax": Threshold(0.5, 0.5)}, "rules": [("k", "keep")]}
    report = hhtld.convert(tmp_path / "m.safetensors", tmp_path / "m.hhtld", min_ratio=1, **options)
    assert report.ratio > report.gates.source_ratio > 1, "8 bits a weight count as 16 in the ratio, and both are told"
    assert report.to_json()["gates"]["source_ratio"] == pytest.approx(report.gates.source_ratio, abs=1e-6)
    larger = GateReport(enforced=True)
    larger.add("w", "argmax", np.ones(3))
    larger.ratio, larger.source_ratio = 2.1, 0.99
    assert not larger
    assert "the file is larger than its source, which is 0.990 times the file as stored" in larger.verdict()
    larger.min_ratio = 0.9
    assert larger, "who asks for less gets it"


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1])
def test_a_ratio_that_cannot_be_meant_is_refused(wrong: float, source: Path) -> None:
    with pytest.raises(ValueError, match=r"min_ratio .* must be a finite number, 0 or more"):
        converted(source, min_ratio=wrong)
    assert not source.with_suffix(".hhtld").exists()


def test_one_ratio_for_one_file(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(model(), folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text(" " * 100_000)
    report = hhtld.convert(folder, tmp_path / "m.hhtld", profile="gates")
    facts, _ = report_facts(tmp_path / "m.hhtld", folder)
    for key in ("ratio", "source_nbytes", "bf16_nbytes", "files_nbytes", "target_nbytes"):
        assert facts[key] == report.to_json()[key], key
    assert facts["gates"]["ratio"] == report.to_json()["gates"]["ratio"]
    again = verify(tmp_path / "m.hhtld", folder)
    assert again.gates is not None
    assert round(again.gates.ratio, 4) == facts["ratio"]


@pytest.mark.parametrize(
    "record",
    [1, {}, {"regime": "argmax"}, {"regime": "other", "median": 0.9, "p5": 0.9}]
    + [{"regime": "index", "median": wrong, "p5": 0.9} for wrong in (2, "0.9", None, True)],
)
def test_a_record_that_is_none_of_ours_is_refused(record: object) -> None:
    with pytest.raises(ValueError, match="unreached must"):
        Unreached.from_json(record)


def test_a_record_comes_back() -> None:
    held = Unreached("index", Threshold(0.99999, 0.9999))
    assert Unreached.from_json(held.to_json()) == held
