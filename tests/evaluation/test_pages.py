"""Every HTML page escapes what files and models say; the templates ship, and their extra is named if it is missing."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import hhtld
from hhtld.commands.report import write_report
from hhtld.display.page import check_page
from hhtld.encoding.gate_report import GateReport
from hhtld.errors import MissingExtraError
from hhtld.evaluation.parity.metrics import PositionScores
from hhtld.evaluation.parity.page import write_parity_page
from hhtld.evaluation.parity.prompts import Prompt
from hhtld.evaluation.parity.report import EmbeddingReport, ParityReport, PromptParity
from hhtld.evaluation.speech.metrics import SpeechScores
from hhtld.evaluation.speech.page import write_speech_page
from hhtld.evaluation.speech.report import SpeechReport, SpokenSentence

EVIL = "<script>alert(1)</script>'\"><img src=x onerror=alert(2)>&\x1b\u202e"
PACKAGE = Path(hhtld.__file__).parent


def conversion(path: Path) -> None:
    gates = GateReport(enforced=True)
    gates.add(EVIL, "argmax", np.linspace(0.5, 1, 700))
    cosines = gates.tensors[EVIL]
    tensor = {"name": EVIL, "dtype": EVIL, "shape": [700, 8], "codec": EVIL, "regime": EVIL, "regime_reason": EVIL}
    tensor |= {"nbytes": 5, "source_nbytes": 9, "bits_per_weight": 2.0}
    tensor["cosine"] = cosines.to_json() | {"median": cosines.median, "p5": cosines.p5, "min": cosines.minimum}
    sizes = {"source_nbytes": 9, "bf16_nbytes": 9, "target_nbytes": 5, "ratio": 1.8, "seconds": 1.0}
    named = {"source": EVIL, "target": EVIL, "profile": EVIL, "notes": [EVIL], "differences": [EVIL]}
    told = gates.to_json() | {"unreached": {EVIL: {"regime": EVIL, "median": 0.99, "p5": 0.98}}, "ratio_advice": EVIL}
    facts = {**named, **sizes, "gates": told, "tensors": [tensor], "sections": {"<script>alert(1)</script>": 5}}
    write_report(path, facts, gates.regimes)


def next_tokens(path: Path) -> None:
    scores = PositionScores(4, 3, 4, 0.1, 4.0, 5.0)
    item = PromptParity(Prompt(EVIL, EVIL), scores, ([1, 2], [1, 3]), (EVIL, f"{EVIL}\n{EVIL}"))
    write_parity_page(path, ParityReport(EVIL, EVIL, EVIL, 0.9, [item], 2))


def embeddings(path: Path) -> None:
    sentences, neighbours = [Prompt(EVIL, EVIL)] * 3, np.array([[1, 2, 0], [1, 0, 0]])
    write_parity_page(path, EmbeddingReport(EVIL, EVIL, EVIL, 0.9, sentences, np.array([0.9, 0.8, 1.0]), neighbours))


def speech(path: Path) -> None:
    wave = np.sin(np.arange(8000, dtype=np.float32) / 9)
    spoken = SpokenSentence(EVIL, wave, wave, SpeechScores(0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0))
    silent = replace(spoken, decoded=wave[:0], note=EVIL)
    write_speech_page(path, SpeechReport(EVIL, EVIL, EVIL, 16000, [spoken, silent]))


PAGES = [conversion, next_tokens, embeddings, speech]


@pytest.mark.parametrize("write", PAGES)
def test_nothing_that_a_file_says_is_markup(tmp_path: Path, write: Callable[[Path], None]) -> None:
    pytest.importorskip("matplotlib", reason="the extra 'report' is not installed")
    write(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 5
    assert "<script>alert" not in text
    assert "<img" not in text
    assert "&amp;lt;" not in text, "escaped twice"
    assert not {"\x1b", "\u202e"} & set(text)
    assert len(re.findall("<script", text)) == len(re.findall("</script>", text)) == 1


@pytest.mark.parametrize("write", PAGES)
def test_without_jinja2_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None]
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"jinja2: pip install 'hhtld\[report\]'"):
        check_page(tmp_path / "page.html", [])
    write(tmp_path / "page.json")
    monkeypatch.delitem(sys.modules, "jinja2")
    check_page(tmp_path / "page.html", [])
    assert importlib.import_module("jinja2")
    assert [path.name for path in tmp_path.iterdir()] == ["page.json"]


@pytest.mark.parametrize("name", ["config.json", "folder/config.json", "page.html"])
def test_a_page_replaces_nothing_that_it_is_about(tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib", reason="the extra 'report' is not installed")
    page = tmp_path / "model" / name
    page.parent.mkdir(parents=True)
    page.write_text("{}")
    source = page if name.endswith(".html") else tmp_path / "model"
    with pytest.raises(ValueError, match="is a file of what the report is about; give the report another name"):
        check_page(page, [source, None])
    check_page(page, [tmp_path / "other", "demo:"])
    check_page(page.with_name("new.json"), [source])


def test_every_template_ships() -> None:
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
        "setuptools"
    ]["package-data"]
    shipped = {
        path
        for package, patterns in declared.items()
        for pattern in patterns
        for path in PACKAGE.parent.joinpath(*package.split(".")).glob(pattern)
    }
    templates = {*PACKAGE.rglob("*.jinja"), *(PACKAGE / "display" / "templates").iterdir()}
    assert len(templates) == 7
    assert templates <= shipped
