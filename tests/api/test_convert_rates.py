"""Rates by row through every command and every way out: the numbers are those of the whole tensor."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import hhtld
from hhtld.commands.main import main

NAME, N_ROWS, N_COLS = "model.embed_tokens.weight", 700, 96


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rng = np.random.default_rng(11)
    tensors = {
        NAME: rng.standard_normal((N_ROWS, N_COLS)).astype(np.float32),
        "model.norm.weight": rng.standard_normal(N_COLS).astype(np.float32),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def rates() -> dict[str, NDArray[np.float64]]:
    return {NAME: np.clip(4 + np.random.default_rng(12).standard_normal(N_ROWS), 1, 6)}


def converted(source: Path, rates: Any, **options: Any) -> Path:
    target = source.parent / "model.hhtld"
    hhtld.convert(source, target, rates=rates, gates={}, **options)
    return target


def test_the_bytes_are_the_same_for_any_crew(
    source: Path, rates: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    alone = converted(source, rates, jobs=1).read_bytes()
    monkeypatch.setattr(hhtld.codecs.base, "BLOCK_NBYTES", 20_000)
    monkeypatch.setattr(hhtld.codecs.base, "SPAN_NBYTES", 50_000)
    with ThreadPoolExecutor(3) as executor:
        assert converted(source, rates, executor=executor, jobs=3).read_bytes() == alone


def test_commands_take_it(source: Path, rates: Any, capsys: pytest.CaptureFixture[str]) -> None:
    target = converted(source, rates)
    for arguments in (
        ["verify", target, source],
        ["verify", target],
        ["inspect", target],
        ["inspect", target, "--tensor", NAME],
        ["diff", source, target],
        ["probe", target, source],
        ["report", target, source],
    ):
        capsys.readouterr()
        assert main([str(each) for each in arguments]) in (0, 1), arguments
        assert "Traceback" not in "".join(capsys.readouterr())
    assert main(["inspect", str(target), "--json"]) == 0
    (group,) = json.loads(capsys.readouterr().out)["groups"]
    assert len(group["classes"]) == 16


def test_it_comes_back_as_safetensors(source: Path, rates: Any, tmp_path: Path) -> None:
    target = converted(source, rates)
    hhtld.convert(target, tmp_path / "back.safetensors")
    with hhtld.open(target) as pack:
        assert np.array_equal(load_file(tmp_path / "back.safetensors")[NAME], pack.get_tensor(NAME))


def test_a_dry_run_predicts_its_size(source: Path, rates: Any) -> None:
    predicted = hhtld.convert(source, source.parent / "none.hhtld", rates=rates, dry_run=True)
    target = converted(source, rates)
    assert predicted.target_nbytes == pytest.approx(
        target.stat().st_size, rel=0.1
    )  # a codebook for each class is not in it
