"""`--help` teaches: every command says what it is for, with examples that the program takes, and how it ends."""

from __future__ import annotations

import shlex

import pytest

from hhtld.commands.main import COMMANDS, main, parser


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", [60, 80, 250])
@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS)], ids=" ".join)
def test_lines_have_at_most_100_columns(
    words: list[str], columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = shown(capsys, *words)
    assert max(map(len, text.splitlines())) <= 110, "examples keep their lines"
    assert max(map(len, text.partition("examples:")[0].splitlines())) <= max(78, min(100, columns))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_examples_that_it_takes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, name)
    assert "exit codes: 0 done" in text
    lines = [line.strip() for line in text.partition("examples:")[2].splitlines()]
    commands = [line.split("   ")[0] for line in lines if line.startswith("hhtld ")]
    assert len(commands) >= 2
    for command in commands:
        program, *words = shlex.split(command)
        assert program == "hhtld"
        assert parser(name).parse_args(words).command == name


def test_the_help_of_convert_ends_with_how_to_run_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "convert")
    assert "from_pretrained(" in text
    assert ".generate(" in text


def test_help_names_a_command_as_the_command_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["help", "verify"])
    assert capsys.readouterr().out == shown(capsys, "verify")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("convert a b --profle gates", "hhtld convert: does not take --profle gates; did you mean '--profile'"),
        ("convert a b c", "hhtld convert: does not take c\nsee hhtld convert --help"),
        ("--profle", "hhtld: does not take --profle\nsee hhtld --help"),
        ("convert a b --min-ratio two", "argument --min-ratio: expected a number, got 'two'"),
        ("convert a b --jobs two", "argument --jobs: expected a whole number, got 'two'"),
        ("convert a b --jobs 0", "argument --jobs: must be at least 1, got 0"),
        ("inspect a --tensor t --rows 1:2:3:4", "argument --rows: expected A:B, got '1:2:3:4'"),
        ("inspect a --tensor t --rows 1:2:0", "argument --rows: a step cannot be 0"),
    ],
)
def test_what_a_command_does_not_take_is_said_by_the_command(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
