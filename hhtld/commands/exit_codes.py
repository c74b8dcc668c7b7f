"""How a command ends: its exit code, and what is printed of an error that the user can mend."""

from __future__ import annotations

import contextlib
import errno
import json
import sys

from hhtld.commands.option_names import as_options
from hhtld.display.streams import emit, silence_stdout
from hhtld.errors import (
    BudgetError,
    FormatError,
    HhtldError,
    MissingExtraError,
    NonFiniteError,
    OutputError,
    RangeError,
    UnknownFormatError,
)

__all__ = [
    "BAD_INPUT",
    "CANNOT_WRITE",
    "DONE",
    "FAILED",
    "INTERRUPTED",
    "MEANINGS",
    "TERMINATED",
    "USAGE",
    "exit_code",
    "tell",
]

DONE, FAILED, USAGE, BAD_INPUT, CANNOT_WRITE, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 4, 130, 143
MEANINGS = {
    DONE: "The command is done, and every gate and comparison passed.",
    FAILED: "A gate or a comparison failed. What was written is complete and stays.",
    USAGE: "The command line does not fit: an option, the name of a format, or a package that is not installed.",
    BAD_INPUT: "The input does not fit: it is damaged or absent, or it needs more than --memory or --budget allows.",
    CANNOT_WRITE: "The output cannot be written. What stood there before is untouched.",
    INTERRUPTED: "Ctrl-C ended the command.",
    TERMINATED: "SIGTERM ended the command.",
}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def exit_code(error: BaseException) -> int | None:
    """Return the exit code of an error that the user can mend, or None for an error of this program."""
    if isinstance(error, OutputError) or (isinstance(error, OSError) and error.errno in _FULL):
        return CANNOT_WRITE
    if isinstance(error, ImportError | UnknownFormatError):
        return USAGE
    if isinstance(error, FormatError | BudgetError | NonFiniteError | RangeError | OSError | MemoryError):
        return BAD_INPUT
    if isinstance(error, ValueError | TypeError):
        return USAGE
    return FAILED if isinstance(error, HhtldError) else None


def tell(error: Exception, as_json: bool) -> None:
    """Print an error that the user can mend: a line on stderr, and with --json an object on stdout."""
    message = _message(error)
    if as_json:
        record = {"schema": "hhtld.error/1", "error": {"type": type(error).__name__, "message": message}}
        try:
            emit(json.dumps(record))
        except OSError:  # standard output itself is what cannot be written
            silence_stdout()
    elif _stdout_is_full(error):
        silence_stdout()
    with contextlib.suppress(OSError):
        notes = map(as_options, getattr(error, "__notes__", ()))
        print(f"hhtld: {message}", *notes, sep="\n", file=sys.stderr, flush=True)


def _stdout_is_full(error: Exception) -> bool:
    """Whether an error came from printing: errors of files name a file."""
    return isinstance(error, OSError) and error.errno in _FULL and not isinstance(error, OutputError)


def _message(error: Exception) -> str:
    """Return what happened, in the words of the command line and without the system's number."""
    return as_options(_text(error))


def _text(error: Exception) -> str:
    if isinstance(error, ImportError) and not isinstance(error, MissingExtraError):
        return f"a part of hhtld cannot be loaded: {error}; install hhtld and the packages it needs again"
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error) or type(error).__name__
    if _stdout_is_full(error) and error.filename is None:
        return f"cannot write to standard output: {error.strerror}"
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
