"""Rows of zeros are counted apart wherever cosines are told, and buy nothing for the others."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import hhtld
from hhtld.commands.main import main
from hhtld.cosines import row_cosines


@pytest.fixture
def padded(tmp_path: Path) -> Path:
    """A table of which 55 % are rows of zeros, as of a vocabulary that was padded."""
    rows = np.random.default_rng(0).standard_normal((2000, 128)).astype(np.float32)
    rows[900:] = 0
    save_file({"embed.weight": rows, "zeros.weight": np.zeros((600, 128), np.float32)}, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def test_live_rows_keep_what_is_asked(padded: Path) -> None:
    report = hhtld.convert(padded, padded.with_suffix(".hhtld"), profile="gates")
    with hhtld.open(padded.with_suffix(".hhtld")) as pack, hhtld.open(padded.with_suffix(".hhtld")) as again:
        decoded, gates = pack.get_tensor("embed.weight"), again.info("embed.weight").gates
        assert not pack.get_tensor("zeros.weight").any()
    assert gates is not None
    assert (gates.n_rows, gates.n_zero_rows, gates.n_zero_rows_lost) == (2000, 1100, 0)
    live = row_cosines(source_rows(padded)[:900], decoded[:900])
    assert np.sort(live)[449] >= 0.98, "it used to be .95, told as 1.0"
    assert gates.median <= np.sort(live)[449]
    assert not decoded[900:].any()
    told = report.to_json()["gates"]["regimes"]
    assert sum(found.get("n_zero_rows", 0) for found in told.values()) == 1700


def source_rows(path: Path) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    from safetensors.numpy import load_file

    return load_file(path)["embed.weight"]


def test_every_table_tells_them(padded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = str(padded.with_suffix(".hhtld"))
    assert main(["convert", str(padded), target, "--profile", "gates"]) == 0
    assert "zeros" in capsys.readouterr().out
    assert main(["verify", target, str(padded)]) == 0
    assert "1,100" in capsys.readouterr().out
    assert main(["verify", target, str(padded), "--json"]) == 0
    regimes = json.loads(capsys.readouterr().out)["gates"]["regimes"]
    assert regimes["index"]["n_zero_rows"] == 1100
    assert main(["inspect", target]) == 0
    assert "1,100 of them zeros" in capsys.readouterr().out
    assert main(["inspect", target, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["regimes"]["index"]["n_zero_rows"] == 1100
    assert main(["inspect", target, "--tensor", "embed.weight"]) == 0
    assert "1,100 rows of zeros apart" in capsys.readouterr().out


def test_an_export_counts_them_and_gives_no_cosine_of_them(padded: Path) -> None:
    h5py = pytest.importorskip("h5py")
    target = padded.with_suffix(".hhtld")
    hhtld.convert(padded, target, profile="gates")
    for original in (None, padded):
        hhtld.convert(target, padded.with_suffix(".h5"), original=original)
        with h5py.File(padded.with_suffix(".h5")) as file:
            held: list[dict[str, object]] = []
            file.visititems(lambda name, item, held=held: held.append(dict(item.attrs)))
            counts = [attributes["n_zero_rows"] for attributes in held if "n_zero_rows" in attributes]
            assert 1100 in counts
            assert any(attributes.get("index_n_zero_rows") == 1100 for attributes in held)


def test_the_page_counts_them(padded: Path) -> None:
    pytest.importorskip("matplotlib")
    args = ["convert", str(padded), str(padded.with_suffix(".hhtld")), "--profile", "gates"]
    assert main([*args, "--report", str(padded.with_suffix(".html"))]) == 0
    text = padded.with_suffix(".html").read_text()
    assert re.search(r'<td class="n"[^>]*>1,100</td>', text)
    assert "Rows of zeros must come back as zeros" in text
