"""The HTML report: what it says, that it asks nothing of the network, and how a browser shows it."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import hhtld
from hhtld.commands.report import report_facts, section_nbytes, write_report
from hhtld.encoding.gate_report import GateReport, RegimeCosines
from hhtld.errors import FormatError, MissingExtraError, OutputError

EVIL = "<script>alert(1)</script>\"'&\x1b\u202e"
VOID = {"meta", "br", "hr", "img", "input", "link"}
Counts = dict[str, NDArray[np.int64]]


def made(enforced: bool = True, shift: float = 0.0, n_tensors: int = 12) -> tuple[dict[str, Any], Counts]:
    """Facts and histograms of a conversion that never was."""
    rng = np.random.default_rng(3)
    gates = GateReport(enforced=enforced)
    tensors = []
    for i in range(n_tensors):
        name = {0: "embeddings.word_embeddings.weight", 1: EVIL}.get(i, f"layers.{i}.mlp.weight")
        regime, n_rows = ("index", 9000) if i == 0 else ("argmax", 512 + 64 * i)
        bits = 2.9 if i == 0 else 2.0 + 0.02 * ((i * 5) % n_tensors)
        cosines = np.clip(np.sqrt(1 - 2 ** (-2 * bits)) - shift + 0.003 * rng.standard_normal(n_rows), -1, 1)
        cosines[3] = -1.0
        gates.add(name, regime, cosines)
        found = gates.tensors[name]
        record = {"name": name, "dtype": "BF16", "shape": [n_rows, 96], "codec": "trellis", "regime": regime}
        record |= {"source_nbytes": n_rows * 192, "nbytes": int(n_rows * 12 * bits), "bits_per_weight": round(bits, 4)}
        record["cosine"] = found.to_json() | {"median": found.median, "p5": found.p5, "min": found.minimum}
        tensors.append(record)
    kept = {"codec": "keep", "source_nbytes": 192, "nbytes": 192, "bits_per_weight": 16.0}
    tensors.append({"name": "norm.weight", "dtype": "BF16", "shape": [96], **kept})
    tied = {"codec": "keep", "source_nbytes": 192, "nbytes": 0, "bits_per_weight": 0.0, "alias_of": "norm.weight"}
    tensors.append({"name": "tied", "dtype": "BF16", "shape": [], **tied})
    source, target = sum(t["source_nbytes"] for t in tensors), sum(t["nbytes"] for t in tensors) + 4321
    gates.ratio = source / target
    facts = {
        "schema": "hhtld.convert/1",
        "source": "models/<i>small</i>.safetensors",
        "target": "out/small & quick.hhtld",
        "profile": "gates",
        "dry_run": False,
        "source_nbytes": source,
        "bf16_nbytes": source,
        "target_nbytes": target,
        "ratio": round(gates.ratio, 4),
        "seconds": 12.345,
        "gates": gates.to_json(),
        "tensors": tensors,
        "sections": {"raw": 192, "trellis_$x$": target - 5000, "palette": 4808},
    }
    return facts, gates.regimes


class Page(HTMLParser):
    """Checks that every element is closed, and keeps texts, attributes and ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["script"], ["style"]):
            self.texts.append(data)

    def count(self, tag: str) -> int:
        return sum(found == tag for found, _ in self.seen)


def page(tmp_path: Path, facts: dict[str, Any], cosines: Counts | None = None) -> str:
    pytest.importorskip("matplotlib", reason="the extra 'report' is not installed")
    path = tmp_path / "report.html"
    write_report(path, facts, cosines)
    return path.read_text(encoding="utf-8")


def test_says_everything(tmp_path: Path) -> None:
    facts, cosines = made()
    text = page(tmp_path, facts, cosines)
    parsed = Page(text)
    words = "".join(parsed.texts)
    assert parsed.count("svg") == 4
    assert "small & quick.hhtld" in words
    assert "models/<i>small</i>.safetensors" in words
    assert "Every gate is reached." in words
    assert f"{facts['target_nbytes']:,} bytes" in words
    assert f"{facts['bf16_nbytes']:,} bytes" in words
    assert f"{int(facts['ratio'] * 100) / 100:.2f}" in words
    assert "asked 2" in words
    for found in facts["gates"]["regimes"].values():
        for number in (found["median"], found["p5"], found["min"]):
            assert f"{number:.6f}" in words
        assert f"row {found['worst']['row']}" in words
        assert f"{found['n_rows']:,} rows" in words
    values = {attrs["data-value"] for _, attrs in parsed.seen if "data-value" in attrs}
    for tensor in facts["tensors"]:
        assert str(tensor["nbytes"]) in values
        assert str(tensor["bits_per_weight"]) in values
        if "cosine" in tensor:
            assert {str(tensor["cosine"][key]) for key in ("median", "p5", "min")} <= values
    assert "= norm.weight" in words
    assert "trellis_$x$" in words
    assert "Gaussian bound" in words
    ids = [attrs["id"] for _, attrs in parsed.seen if "id" in attrs]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text))
    assert {a or b for a, b in used} <= set(ids)


def test_names_cannot_be_markup(tmp_path: Path) -> None:
    text = page(tmp_path, *made())
    assert "<script>alert" not in text
    assert r"""<script>alert(1)</script>"\'&\x1b\u202e""" in Page(text).texts
    assert "<i>" not in text
    assert Page(text).count("script") == 1


def test_asks_nothing_of_the_network(tmp_path: Path) -> None:
    text = page(tmp_path, *made())
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text
    for tag, attrs in Page(text).seen:
        assert tag not in ("link", "img", "iframe", "image")
        assert "src" not in attrs
        for key in ("href", "xlink:href"):
            assert (attrs.get(key) or "#").startswith("#")
    assert "default-src 'none'" in html.unescape(text)


def test_the_same_facts_give_the_same_bytes(tmp_path: Path) -> None:
    import matplotlib as mpl

    first = page(tmp_path, *made())
    with mpl.rc_context({"font.size": 20, "lines.linewidth": 9}):
        assert page(tmp_path, *made()) == first
        assert mpl.rcParams["font.size"] == 20
    assert not re.search(r"20\d\d-\d\d-\d\d", first)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dry_run": True}, "A dry run"),
        ({"profile": "lookup"}, "Every gate is reached"),
        ({"differences": ["tensor 'a' differs <b>"]}, "tensor 'a' differs <b>"),
    ],
)
def test_verdicts(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    facts, _ = made()
    assert words in "".join(Page(page(tmp_path, facts | change)).texts)


@pytest.mark.parametrize("enforced", [True, False])
def test_verdict_names_what_was_missed(tmp_path: Path, enforced: bool) -> None:
    facts, cosines = made(enforced, shift=0.05)
    words = "".join(Page(page(tmp_path, facts, cosines)).texts)
    assert ("Gates missed: " if enforced else "shown, not enforced") in words
    assert re.search(r"index median 0\.94\d\d, asked 0\.98", words)
    facts["gates"]["ratio"] = 1.9999
    assert "1.99 times smaller than bfloat16, asked 2" in "".join(Page(page(tmp_path, facts, cosines)).texts)


def test_nothing_encoded(tmp_path: Path) -> None:
    facts, _ = made(n_tensors=0)
    del facts["sections"]
    parsed = Page(page(tmp_path, facts | {"profile": None}, {"argmax": RegimeCosines()}))
    assert "No tensor was encoded" in "".join(parsed.texts)
    assert parsed.count("svg") == 0


@pytest.mark.parametrize("value", [-1.0, 0.0, 0.999999, 1.0])
def test_rows_that_are_all_alike_are_drawn(tmp_path: Path, value: float) -> None:
    facts, _ = made()
    gates = GateReport(enforced=True)
    gates.add("w", "argmax", np.full(700, value))
    facts["gates"] = gates.to_json()
    assert Page(page(tmp_path, facts, gates.regimes)).count("svg") == 3


def test_json_needs_no_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    facts, cosines = made()
    write_report(tmp_path / "r.JSON", facts, cosines)
    assert json.loads((tmp_path / "r.JSON").read_text()) == facts
    with pytest.raises(MissingExtraError, match=r"pip install 'hhtld\[report\]'"):
        write_report(tmp_path / "r.html", facts, cosines)
    with pytest.raises(OutputError):
        write_report(tmp_path / "nowhere" / "r.json", facts)
    assert [p.name for p in tmp_path.iterdir()] == ["r.JSON"]


def test_facts_of_a_file_and_its_source(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    rng = np.random.default_rng(8)
    source, pack = tmp_path / "m.safetensors", tmp_path / "m.hhtld"
    weight = rng.standard_normal((640, 48)).astype(np.float32)
    save_file({"lm_head.weight": weight, "norm": weight[0].copy()}, source)
    converted = hhtld.convert(source, pack, profile="gates").to_json()
    facts, cosines = report_facts(pack, source)
    assert facts.pop("sections")["raw"] == 192
    assert facts | {"seconds": converted["seconds"]} == converted
    assert sum(held.n_rows for held in cosines.values()) == 640
    with hhtld.open(pack) as opened:
        assert sum(section_nbytes(opened).values()) < pack.stat().st_size
    assert Page(page(tmp_path, *report_facts(pack, source))).count("svg") == 3
    save_file({"lm_head.weight": weight}, tmp_path / "other.safetensors")
    with pytest.raises(FormatError, match="was not made from"):
        report_facts(pack, tmp_path / "other.safetensors")


Browser = Callable[..., str]


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    """Run headless Chromium on a page and return what it prints."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium on PATH to show the page in")
    quiet = ("gpu", "quic", "background-networking", "component-update", "sync")

    def run(path: Path, width: int, height: int, *options: str) -> str:
        command = [program, "--headless", "--no-sandbox", "--no-first-run", "--hide-scrollbars"]
        command += [f"--disable-{feature}" for feature in quiet]
        command += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},{height}", *options]
        process = subprocess.Popen(
            [*command, path.as_uri()],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # it starts processes of its own
            process.communicate()
            pytest.fail("chromium did not finish within 120 s")
        assert process.returncode == 0, err
        return out

    return run


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 900)])
def test_a_browser_draws_it(tmp_path: Path, browser: Browser, width: int, height: int) -> None:
    page(tmp_path, *made())
    shot = tmp_path / "shot.png"
    browser(tmp_path / "report.html", width, height + 600, f"--screenshot={shot}")
    from matplotlib.image import imread

    pixels = imread(shot)[..., :3]
    assert pixels.shape[1] == width
    bars = (np.abs(pixels - np.array([111, 154, 189]) / 255) < 0.05).all(axis=-1)  # the accent, three quarters opaque
    assert bars.sum() > 300
    assert len(np.unique((pixels.reshape(-1, 3) * 255).astype(int), axis=0)) > 30


def asked(browser: Browser, path: Path, width: int, script: str) -> Any:
    """Return what an expression over `view`, the page's window, and `page`, its document, evaluates to.

    The page runs unchanged, under its own policy, in a frame: a window of its own is never narrower
    than 500 pixels.
    """
    source = html.escape(path.read_text(encoding="utf-8"))
    wrapper = path.with_name("wrapper.html")
    wrapper.write_text(
        f'<title></title><iframe width="{width}" height="844" style="border: 0" srcdoc="{source}"></iframe>'
        "<script>onload = () => { const view = frames[0], page = view.document; "
        f"document.title = JSON.stringify({script}); }}</script>",
        encoding="utf-8",
    )
    found = re.match(r".*?<title>(.*?)</title>", browser(wrapper, 1280, 900, "--dump-dom"), re.DOTALL)
    assert found is not None
    return json.loads(html.unescape(found[1]))


def test_fits_a_phone(tmp_path: Path, browser: Browser) -> None:
    page(tmp_path, *made())
    script = (
        "[view.innerWidth, page.documentElement.scrollWidth, "
        "...Array.from(page.querySelectorAll('svg'), plot => plot.getBoundingClientRect().right)]"
    )
    inner, scroll, *plots = asked(browser, tmp_path / "report.html", 390, script)
    assert scroll <= inner == 390
    assert len(plots) == 4
    assert max(plots) <= inner


def test_headings_sort(tmp_path: Path, browser: Browser) -> None:
    facts, cosines = made()
    page(tmp_path, facts, cosines)
    script = """Array.from(page.querySelectorAll("th button"), button => [1, 2].map(() => {
        button.click();
        const cells = Array.from(page.querySelector("table:has(button)").tBodies[0].rows,
            row => row.cells[button.parentNode.cellIndex]);
        return [button.parentNode.getAttribute("aria-sort"), cells.map(c => c.dataset.value ?? c.textContent)];
    }))"""
    columns = asked(browser, tmp_path / "report.html", 1280, script)
    assert len(columns) == 12
    for number in (1, 5, 6, 7, 8, 9, 10):
        (up, rising), (down, falling) = columns[number]
        assert (up, down) == ("ascending", "descending")
        present = [float(value) for value in rising if value]
        assert present == sorted(present)
        assert [float(value) for value in falling if value] == present[::-1]
        assert not any(rising[len(present) :] + falling[len(present) :])
    names = columns[0][0][1]
    assert names.index("layers.2.mlp.weight") < names.index("layers.10.mlp.weight")


def test_no_other_script_runs(tmp_path: Path, browser: Browser) -> None:
    text = page(tmp_path, *made())
    (tmp_path / "more.html").write_text(
        text.replace("</body>", "<script>document.title = 'x'</script></body>"), encoding="utf-8"
    )
    assert asked(browser, tmp_path / "more.html", 390, "page.title") == "small & quick.hhtld: conversion report"


def test_a_page_explains_its_words_and_says_who_wrote_it(tmp_path: Path) -> None:
    facts, cosines = made()
    parsed = Page(page(tmp_path, facts, cosines))
    words = "".join(parsed.texts)
    assert "19 of 20, reach" in words
    assert "hhtl_t: gain and trellis codes (Slots V and T)" in words
    assert f"hhtld {hhtld.__version__}" in words
    facts["gates"]["regimes"]["argmax"]["required"]["median"] = 1.0
    assert "below: " in "".join(Page(page(tmp_path, facts, cosines)).texts), "told by words, not by colour alone"
