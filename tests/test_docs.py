"""README and docs/: blocks run as they stand and print what stands below them; links lead somewhere."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import pty
import re
import runpy
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import hhtld

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PROSE = [*PAGES, *([CONTRIBUTING] if CONTRIBUTING.exists() else [])]  # it does not lie beside an installed copy
BESIDE = ["CHANGELOG.md", "SECURITY.md", "formats/hhtld/SPEC.md", "formats/hdf5/SPEC.md"]
BESIDE += [f"tests/{folder}/README.md" for folder in ("golden/lookup", "trust", "viewers")]
LINKING = [*PROSE, *(ROOT / name for name in BESIDE if (ROOT / name).exists())]
# What depends on the machine: "0.65 ms", "13 rows read". Shares and words must be the same.
MEASURED = re.compile(r"\d[\d,.]*(?= (?:µs|ms|MB|rows read))")
BLOCK = re.compile(
    r"(?:^<!-- (?P<comment>[^\n]*) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```\n"
    r"(?:\n```text\n(?P<shown>.*?)^```\n)?",
    re.DOTALL | re.MULTILINE,
)
NAME = re.compile(r"`(hhtld(?:\.\w+)+)(?:\([^`]*\))?`")
FILE = re.compile(r"`((?:hhtld|formats|tests|benchmarks|docs)/[\w./-]*)`")
COMMANDS = {"first command", "test command", "integrations command"}  # .ci/run runs these in a fresh clone
# How many blocks of each page do not run: raise one only with a reason in the page.
NOT_RUN = {
    "benchmarks.md": 0,
    "inside.md": 1,
    "large-models.md": 1,
    "models.md": 7,
    "profiles.md": 1,
    "release.md": 1,
    "search.md": 2,
    "sources.md": 1,
    "tables.md": 3,
}


@dataclass(frozen=True)
class Block:
    """A block of code, with the comment above it and the text that is shown below it."""

    page: Path
    line: int
    language: str
    code: str
    shown: str
    comment: str

    @property
    def runs(self) -> bool:
        """Whether the block is code that no comment excludes."""
        return self.language in {"python", "bash"} and not self.comment.startswith("not run: ") and not self.is_command

    @property
    def is_command(self) -> bool:
        """Whether it is one of the commands that continuous integration takes from the README."""
        return self.comment in COMMANDS


def blocks(page: Path) -> Iterator[Block]:
    """Yield every block of a page in order."""
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("code")) + 1
        yield Block(page, line, found["language"], found["code"], found["shown"] or "", found["comment"] or "")


def run_shell(block: Block) -> None:
    """Run every line of a block; `hhtld` is the module's command, whatever is on the path."""
    for line in block.code.splitlines():
        words = shlex.split(line, comments=True)
        assert words[0] == "hhtld", f"{block.page.name}:{block.line}: only hhtld's own commands run"
        command = [sys.executable, "-m", "hhtld.formats", *words[1:]]
        environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, f"{block.page.name}:{block.line}: {line}\n{done.stdout}{done.stderr}"
    if block.shown:  # what the last command prints last
        assert done.stdout.endswith(block.shown), f"{block.page.name}:{block.line}: {done.stdout}"


def run_python(block: Block, names: dict[str, Any]) -> None:
    """Run a block with the names of those before it."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile("\n" * (block.line - 1) + block.code, str(block.page), "exec"), names)
    assert MEASURED.sub("#", out.getvalue()) == MEASURED.sub("#", block.shown), f"{block.page.name}:{block.line}"


def named(page: Path) -> str:
    """Return a page's name for the report of a test."""
    return page.relative_to(ROOT).with_suffix("").as_posix()


RUNNING = [page for page in PAGES if any(block.runs for block in blocks(page))]
OF_THE_DEMO = [page for page in RUNNING if any("demo:" in block.code for block in blocks(page) if block.runs)]


@pytest.mark.parametrize("page", OF_THE_DEMO, ids=named)
def test_blocks_with_the_demo_model_print_what_is_shown(
    page: Path, minilm_to_encode: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_blocks(page, tmp_path, monkeypatch)


@pytest.mark.parametrize("page", [page for page in RUNNING if page not in OF_THE_DEMO], ids=named)
def test_blocks_print_what_is_shown(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_blocks(page, tmp_path, monkeypatch)


def run_blocks(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a page's blocks one after the other in an empty folder."""
    if page.stem == "sources":
        pytest.importorskip("fsspec")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    try:
        for block in blocks(page):
            if block.runs and block.language == "python":
                run_python(block, names)
            elif block.runs:
                run_shell(block)
    finally:
        if "pack" in names and hasattr(names["pack"], "close"):
            names["pack"].close()


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_python_blocks_compile(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python":
            compile(block.code, f"{page.name}:{block.line}", "exec")


def test_every_block_is_found_and_those_that_do_not_run_are_counted() -> None:
    for page in PAGES:
        fences = len(re.findall(r"^```", page.read_text(encoding="utf-8"), re.MULTILINE))
        found = list(blocks(page))
        assert fences == 2 * (len(found) + sum(bool(block.shown) for block in found)), page.name
    reasons = [block for page in PAGES for block in blocks(page) if block.comment.startswith("not run:")]
    assert all(len(block.comment.removeprefix("not run:").split()) >= 3 for block in reasons)
    assert Counter(block.page.name for block in reasons) == {name: n for name, n in NOT_RUN.items() if n}


def test_sessions_with_commands_are_run_or_say_why_not() -> None:
    for page in PAGES:
        for block in blocks(page):
            if block.code.startswith("$ "):
                assert block.comment.startswith("not run: "), f"{page.name}:{block.line}"


def on_a_terminal(words: list[str], folder: Path) -> str:
    """Return what one of hhtld's commands prints on a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "TERM": "dumb"}
    command = [sys.executable, "-m", "hhtld.formats", *words]
    process = subprocess.Popen(command, stdout=theirs, stderr=subprocess.DEVNULL, cwd=folder, env=environment)
    os.close(theirs)
    printed = b""
    with contextlib.suppress(OSError):  # the end of a terminal on Linux
        while part := os.read(ours, 1 << 16):
            printed += part
    os.close(ours)
    assert process.wait() == 0
    return "\n".join(line.rstrip() for line in printed.decode().splitlines())


def test_the_first_command_prints_what_the_readme_shows(minilm_to_encode: Path, tmp_path: Path) -> None:
    shown = next(block.code for block in blocks(README) if block.code.startswith("encoded tensor"))
    parts = [re.escape(re.sub(r"\d[\d.]* s$", "SECONDS", part, flags=re.MULTILINE)) for part in shown.split("...\n")]
    printed = on_a_terminal(["convert", "demo:", "minilm.hhtld"], tmp_path) + "\n"
    printed = re.sub(r"\d[\d.]* s$", "SECONDS", printed, flags=re.MULTILINE)
    assert re.fullmatch("(?:.*\n)*".join(parts), printed), printed


def test_readme_is_short_and_its_commands_are_marked() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 180
    purpose = text.split("\n\n")[1]
    assert len(purpose.split()) <= 20
    assert {block.comment for block in blocks(README) if block.is_command} == COMMANDS


def anchor(heading: str) -> str:
    """Return the anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


# Installed copies are tested beside README.md, docs/ and tests/ alone: what else is linked is looked for in a checkout.
@pytest.mark.parametrize("page", LINKING, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    in_checkout = (ROOT / "setup.py").exists()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, fragment = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        inside = path.relative_to(ROOT.resolve())
        if in_checkout or inside.parts[0] in {"docs", "tests", "README.md"}:
            assert path.exists(), f"{page.name}: {target}"
        if fragment and path.exists():
            headings = re.findall(r"^#+ (.*)", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert fragment in map(anchor, headings), f"{page.name}: {target}"


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    for n_module in range(len(parts), 0, -1):
        with contextlib.suppress(ModuleNotFoundError, hhtld.MissingExtraError):
            found: Any = importlib.import_module(".".join(parts[:n_module]))
            for part in parts[n_module:]:
                if not hasattr(found, part):
                    return False
                found = getattr(found, part)
            return True
    return False


@pytest.mark.parametrize("page", PROSE, ids=named)
def test_names_and_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    without_extras = {name for name in NAME.findall(text) if not name.startswith("hhtld.integrations.")}
    assert [name for name in sorted(without_extras) if not exists(name)] == []
    if (ROOT / "setup.py").exists():
        assert [name for name in sorted(set(FILE.findall(text))) if not (ROOT / name).exists()] == []


def test_the_tests_that_the_landing_script_names_exist() -> None:
    script = ROOT / ".ci" / "run"
    if not script.exists():
        pytest.skip("the script does not lie beside an installed copy")
    named = set(re.findall(r"(?<![\w$/])tests/[\w./]+", script.read_text(encoding="utf-8")))
    assert len(named) > 10
    assert [name for name in sorted(named) if not any(ROOT.glob(f"{name}*"))] == []


def test_sizes_of_rows_are_those_of_the_kernel() -> None:
    from hhtld.slots.slot_t import Trellis, is_ring

    text = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")
    lines = re.findall(
        r"^\| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", text, re.MULTILINE
    )
    assert len(lines) == 4
    for line in lines:
        n_cols, bfloat16, *sizes = (int(number.replace(",", "")) for number in line)
        assert bfloat16 == 2 * n_cols
        fixed = [Trellis.trained(rate, is_ring(n_cols, rate)) for rate in (32, 48, 64)]
        assert sizes == [2 + code.row_nbytes(n_cols) for code in (*fixed, Trellis.trained(88))]


def test_sizes_of_n_gram_rows_are_those_of_the_kernel() -> None:
    from hhtld.slots.slot_t import Trellis, is_ring

    text = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\|" + r" ([\d.]+) \|" * 6 + r" ([\d.]+) GB \|$", text, re.MULTILINE)
    assert len(lines) == 2
    n_rows = int(re.findall(r"\| ([\d,]+) rows at `bits:4` \|", text)[0].replace(",", ""))
    for line in lines:
        n_cols, bfloat16, fp8, iq4_nl, *ours = (int(number) for number in line[:-1])
        assert (bfloat16, fp8, iq4_nl) == (2 * n_cols, n_cols, 18 * n_cols // 32)
        codes = [Trellis.trained(rate, is_ring(n_cols, rate)) for rate in (64, 48)]
        assert ours == [2 + code.row_nbytes(n_cols) for code in codes]
        assert line[-1] == f"{n_rows * ours[0] / 1e9:.1f}"


def test_the_picture_of_a_row_is_what_its_script_draws(tmp_path: Path) -> None:
    names = runpy.run_path(str(ROOT / "docs" / "plots" / "row.py"))
    names["draw"](tmp_path / "row.svg")
    assert (tmp_path / "row.svg").read_bytes() == (ROOT / "docs" / "plots" / "row.svg").read_bytes()


def test_no_decimal_lacks_its_zero() -> None:
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        assert not re.findall(r"(?<![\w./])\.\d", text), page.name


def test_the_plot_is_drawn_from_the_table(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    names: dict[str, Any] = {"__name__": "agreement", "__file__": str(ROOT / "docs" / "plots" / "agreement.py")}
    exec(compile(Path(names["__file__"]).read_text(encoding="utf-8"), names["__file__"], "exec"), names)
    rows = names["table"]()
    assert len(rows) == 19
    assert all(sum(belongs(name) for _, _, _, belongs in names["FAMILIES"]) == 1 for name, _, _ in rows)
    names["draw"](tmp_path / "drawn.svg")
    assert (tmp_path / "drawn.svg").stat().st_size > 10_000
    assert (ROOT / "docs" / "plots" / "agreement.svg").exists()
