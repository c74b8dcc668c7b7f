"""Standard streams as a command finds them: closed, full, or left by their reader.

None of that is the command's failure: what it did stands, and its exit code says how it ended.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys

__all__ = ["emit", "open_closed_streams", "silence_stdout"]


def open_closed_streams() -> None:
    """Give streams that the caller closed (``>&-``) the null device, and let names in any script be printed.

    Their numbers must not be left to the next file that is opened: what is printed would be written into it.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
            os.set_inheritable(fd, True)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - open as long as the program runs
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - as above
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - as above
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


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
