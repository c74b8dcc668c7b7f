"""Standard streams as a command finds them: closed, full, or left by their reader.

None of that is the command's failure: what it did stands, and its exit code says how it ended.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Collection
from typing import TextIO, cast

__all__ = ["emit", "open_closed_streams", "silence_stdout"]


def open_closed_streams() -> None:
    """Give streams that the caller closed (``>&-``) the null device, and let names in any script be printed.

    Their numbers must not be left to the next file that is opened: what is printed would be written into it.
    """
    ours = set()
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
            os.set_inheritable(fd, True)
            ours.add(fd)
    # A library that was loaded before may have taken the number (libffi does, to read itself): that file is not ours.
    if sys.stdin is None:
        sys.stdin = _null(0, ours, "r")
    if sys.stdout is None:
        sys.stdout = _null(1, ours, "w")
    if sys.stderr is None:
        sys.stderr = _null(2, ours, "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _null(fd: int, ours: Collection[int], mode: str) -> TextIO:
    """Open the null device as it stands at a number, or elsewhere if the number is another file's."""
    return cast(TextIO, open(fd if fd in ours else os.devnull, mode, closefd=fd not in ours))


def silence_stdout() -> None:
    """Send standard output nowhere: a second failure while Python flushes at exit would only add noise."""
    with contextlib.suppress(OSError, ValueError):  # what stands in for it in a test has no number
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def emit(text: str, end: str = "\n") -> None:
    """Print a text now; a reader that went away wants no more."""
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        silence_stdout()
