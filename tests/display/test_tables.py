"""Tables as text: what fits a terminal, what a pipe gets, and lines for many tensors of one kind."""

from __future__ import annotations

import io

from rich.console import Console
from rich.text import Text

from hhtld.display.tables import FactGrid, Table, alike, shortened_middle


def printed(body: object, width: int | None = None, **more: object) -> list[str]:
    """What a terminal of a width shows, or a pipe gets."""
    file = io.StringIO()
    out = Console(file=file, width=width or 160, soft_wrap=width is None, **more)  # type: ignore[arg-type]  # of any option
    out.print(body)
    return file.getvalue().splitlines()


ROWS = [("layers.0.attention.query.weight", 7, "words of a sentence"), ("b", 1234, "")]


def test_a_pipe_gets_whole_rows_without_blanks_at_their_ends() -> None:
    assert printed(Table(("name", ">n", "~what"), ROWS, "Title", spared=("n",), notes=("a note " * 40,))) == [
        "Title",
        "name                                n  what",
        "layers.0.attention.query.weight     7  words of a sentence",
        "b                                1234",
        ("a note " * 40),
    ]


def test_a_terminal_gets_what_fits_and_is_told_what_does_not() -> None:
    table = Table(("name", ">n", "~what"), ROWS, spared=("n",))
    assert printed(table, 80) == printed(table)
    assert printed(table, 42) == [
        "name                   n  what",
        "layers.0\u2026ry.weight     7  words of a",
        "                          sentence",
        "b                   1234",
    ]
    assert printed(table, 30) == [
        "name          what",
        "layer\u2026weight  words of a",
        "              sentence",
        "b",
        "not shown at this width: n",
    ]
    for width in range(12, 60):
        assert max(map(len, printed(table, width))) <= width


def test_numbers_that_do_not_fit_are_left_out_and_named() -> None:
    table = Table(("name", *(f">number {i}" for i in range(9))), [("x", *(10**9 + i for i in range(9)))])
    lines = printed(table, 40)
    assert max(map(len, lines)) <= 40
    assert " ".join(lines).endswith("number 6, number 7, number 8") or "not shown" in lines[2]


def test_styles_of_cells_are_kept() -> None:
    lines = printed(Table(("a", "b"), [("x", Text("pass", "green"))]), force_terminal=True, color_system="standard")
    assert lines[1] == "x  \x1b[32mpass\x1b[0m"


def test_facts_are_wrapped_beside_their_names() -> None:
    facts = FactGrid([("name", "one two three four five six"), ("n", "1\n2")])
    assert printed(facts, 22) == ["name  one two three", "      four five six", "n     1", "      2"]
    assert printed(facts) == ["name  one two three four five six", "n     1", "      2"]


def test_names_lose_their_middle() -> None:
    assert shortened_middle("abcdefghij", 10) == "abcdefghij"
    assert shortened_middle("abcdefghij", 7) == "abc\u2026hij"
    assert shortened_middle("abcdefghij", 7, ascii_only=True) == "ab...ij"
    assert shortened_middle("\u5b57" * 9, 7) == "\u5b57\u2026\u5b57\u5b57"


def test_many_tensors_share_lines_where_their_names_differ_in_numbers_alone() -> None:
    few = [f"layers.{i}.fc1.weight" for i in range(30)]
    assert alike(few, len, False) == ([(name, [name]) for name in few], [])
    many = [f"layers.{i}.{part}.weight" for i in range(100) for part in ("fc1", "fc2")]
    lines, notes = alike(many, lambda name: "", False)
    assert [(name, len(own)) for name, own in lines] == [("layers.*.fc1.weight", 100), ("layers.*.fc2.weight", 100)]
    assert "--all" in notes[0]
    lines, _ = alike(many, lambda name: name.startswith("layers.7."), False)
    assert [len(own) for _, own in lines] == [99, 99, 1, 1], "another shape, another line"
    assert lines[2][0] == "layers.7.fc1.weight"
    assert len(alike(many, len, True)[0]) == 200
    assert [name for name, _ in alike([f"t{i:05}" for i in range(99)], len, False)[0]] == ["t*"]


def test_what_is_not_alike_is_cut() -> None:
    names = ["".join("abcdefghij"[int(digit)] for digit in str(i)) for i in range(99)]
    lines, notes = alike(names, len, False)
    assert (len(lines), notes) == (30, ["and 69 tensors more (--all shows them)"])
