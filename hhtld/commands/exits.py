"""How a command ends: its exit code, and what is said of an error that is the user's to mend."""

from __future__ import annotations

import contextlib
import errno
import json
import sys

from hhtld.display.streams import emit, silence_stdout
from hhtld.errors import (
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
    "TERMINATED",
    "USAGE",
    "exit_code",
    "tell",
]

DONE, FAILED, USAGE, BAD_INPUT, CANNOT_WRITE, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 4, 130, 143
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def exit_code(error: BaseException) -> int | None:
    """The exit code of an error that is the user's to mend; None for one that is ours."""
    if isinstance(error, OutputError) or (isinstance(error, OSError) and error.errno in _FULL):
        return CANNOT_WRITE
    if isinstance(error, MissingExtraError | UnknownFormatError):
        return USAGE
    if isinstance(error, FormatError | NonFiniteError | RangeError | OSError | MemoryError):
        return BAD_INPUT
    if isinstance(error, ValueError | TypeError):
        return USAGE
    return FAILED if isinstance(error, HhtldError) else None


def tell(error: Exception, as_json: bool) -> None:
    """Print an error that is the user's to mend: a line on stderr, and with --json an object on stdout."""
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
        print(f"hhtld: {message}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr, flush=True)


def _stdout_is_full(error: Exception) -> bool:
    """Whether an error is of printing: those of files name one."""
    return isinstance(error, OSError) and error.errno in _FULL and not isinstance(error, OutputError)


def _message(error: Exception) -> str:
    """What happened, without the system's number."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error) or type(error).__name__
    if _stdout_is_full(error) and error.filename is None:
        return f"cannot write to standard output: {error.strerror}"
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
