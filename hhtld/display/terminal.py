"""Standard output as a command finds it, and names from files made safe to print."""

from __future__ import annotations

import os
import sys

from rich.console import Console
from rich.text import Text

from hhtld.display.streams import silence_stdout

__all__ = ["EXPLAINED", "console", "safe"]

EXPLAINED = (
    "regime: index for embeddings and heads, argmax for other weights; median, p5: cosines that half of the rows, "
    "and 19 of 20, reach"
)
_PIPE_WIDTH = 160  # of charts


class _Screen(Console):
    """Standard output."""

    def on_broken_pipe(self) -> None:
        """The reader went away, as `head` does: the command goes on and says by its exit code how it ended."""
        self.quiet = True
        silence_stdout()


def console() -> Console:
    """Return standard output. If it is no terminal and COLUMNS is not set, a line is as long as what it says."""
    columns = os.environ.get("COLUMNS", "")
    if sys.stdout.isatty():
        return _Screen()
    if columns.isdecimal() and int(columns):
        return _Screen(width=int(columns))
    return _Screen(width=_PIPE_WIDTH, soft_wrap=True)


def safe(name: str, ascii_only: bool = False) -> Text:
    """Return a name from a file without control characters or markup, and with `ascii_only` other letters escaped."""
    text = name if name.isprintable() else repr(name)[1:-1]
    return Text(text.encode("ascii", "backslashreplace").decode() if ascii_only else text)
