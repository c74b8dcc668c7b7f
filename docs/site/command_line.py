"""A hook of mkdocs: the page of the commands, from the parser that reads their arguments."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from hhtld.commands.exit_codes import MEANINGS
from hhtld.commands.main import parser

INTRODUCTION = """\
# Commands

This page is generated from the program's own parser. `hhtld COMMAND --help` prints the same, and
`python -m hhtld.formats` is the same program.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated page."""
    files.append(File.generated(config, "reference/commands.md", content="\n".join(lines(parser()))))
    return files


def lines(program: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the page line by line."""
    yield INTRODUCTION
    for commands in program._actions:
        if isinstance(commands, argparse._SubParsersAction):
            summaries = {choice.dest: choice.help or "" for choice in commands._choices_actions}
            for name, command in commands.choices.items():
                yield from described(name, command, summaries.get(name, ""))
    yield f"## Examples\n\n```text\n{(program.epilog or '').rstrip()}\n```\n"
    yield "## Exit codes\n\n| code | meaning |\n|---|---|"
    yield from (f"| {code} | {meaning} |" for code, meaning in MEANINGS.items())


def described(name: str, command: argparse.ArgumentParser, summary: str) -> Iterator[str]:
    """Yield the section of one command: what it does, how it is called, what it takes."""
    description = (command.description or sentence(summary)).replace("\n", " ")
    yield f"## {name}\n\n{as_text(description)}\n"
    usage = command.format_usage().removeprefix("usage: ").rstrip()
    yield f"```text\n{usage}\n```\n"
    for group in command._action_groups:
        actions = [action for action in group._group_actions if action.dest != "help"]
        if actions:
            yield f"**{(group.title or '').capitalize()}**\n\n| argument | meaning |\n|---|---|"
            yield from (f"| {argument(action)} | {cell(action, command)} |" for action in actions)
            yield ""
    if command.epilog:
        yield f"```text\n{command.epilog.rstrip()}\n```\n"


def argument(action: argparse.Action) -> str:
    """Return how an argument is written."""
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
    takes = "" if action.nargs == 0 or not action.option_strings else f" {value}"
    spellings = action.option_strings or [str(value)]
    return ", ".join(f"`{spelling}{takes}`".replace("|", "\\|") for spelling in spellings)


def cell(action: argparse.Action, command: argparse.ArgumentParser) -> str:
    """Return what an argument means, with what stands in %(braces)s put in."""
    formatter = command._get_formatter()
    return as_text(formatter._expand_help(action) if action.help else "")


def sentence(text: str) -> str:
    """Return a summary as a sentence."""
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def as_text(text: str) -> str:
    """Return text in which nothing is taken for Markdown."""
    for sign in "\\*_<>[]|":
        text = text.replace(sign, f"\\{sign}" if sign not in "<>" else {"<": "&lt;", ">": "&gt;"}[sign])
    return text
