"""Every error hhtld raises on purpose.

A bad file raises `FormatError` and nothing else; a bad argument raises `ValueError` or `TypeError`; what was closed
raises `ClosedError`, whatever is read of it.
Messages say what is wrong, where (path, tensor, section, offset), what was expected and what was
found; names from files are printed with `repr`, shortened.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from itertools import islice
from typing import Any

__all__ = [
    "BadMagicError",
    "BudgetError",
    "ChecksumError",
    "ClosedError",
    "FormatError",
    "GateError",
    "HeaderError",
    "HhtldError",
    "MissingExtraError",
    "NonFiniteError",
    "OutputError",
    "QuantizedError",
    "RangeError",
    "TruncatedError",
    "UnknownFormatError",
    "UnsupportedVersionError",
    "did_you_mean",
    "no_such_tensor",
    "shown",
]

_COMPARED = 100


class HhtldError(Exception):
    """Base of every error below."""


class FormatError(HhtldError, ValueError):
    """A file is not what it claims to be, or declares what no file can hold."""


class BadMagicError(FormatError):
    """The first bytes belong to another format."""


class UnsupportedVersionError(FormatError):
    """A newer major version or an unknown required feature."""


class TruncatedError(FormatError):
    """The file ends before what it declares."""


class ChecksumError(FormatError):
    """Stored bytes do not match their checksum."""


class HeaderError(FormatError):
    """A header, table or index breaks a rule of its format."""


class QuantizedError(FormatError):
    """The weights are quantized already; the message names the scheme and the ways on."""


class NonFiniteError(HhtldError, ValueError):
    """A tensor holds an infinity or NaN where finite weights are needed.

    Attributes
    ----------
    found : str
        What was found and where, without the advice that may follow it in the message.
    """

    def __init__(self, found: str, advice: str = "") -> None:
        super().__init__(found, advice)
        self.found = found

    def __str__(self) -> str:
        return "; ".join(filter(None, self.args))


class ClosedError(HhtldError, ValueError):
    """A pack or source is read that was closed: no fault of the file."""


class RangeError(HhtldError, ValueError):
    """Weights so large or so small that float32, which codecs compute in, does not hold them."""


class UnknownFormatError(HhtldError, LookupError):
    """No format of that name, suffix or content."""


class OutputError(HhtldError, OSError):
    """The output could not be written; whatever stood there before is untouched."""

    def __str__(self) -> str:  # OSError's own begins with the system's number, "[Errno None]" if it was not asked
        return self.strerror or (str(self.args[-1]) if self.args else "")


class MissingExtraError(HhtldError, ImportError):
    """An optional dependency is not installed; the message names the extra."""


class BudgetError(HhtldError, ValueError):
    """The memory that may be used does not suffice; the message says what would."""


class GateError(HhtldError):
    """A quality gate failed.

    Attributes
    ----------
    report : object
        The report that holds every measured number.
    """

    def __init__(self, message: str, report: Any = None) -> None:
        super().__init__(message)
        self.report = report


def shown(name: str, limit: int = 120) -> str:
    """Return `name` quoted and escaped for a message, shortened to about `limit` characters."""
    return repr(name) if len(name) <= limit else repr(name[:limit]) + "..."


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return the end of a message, "; did you mean 'a'?" with the nearest names, or nothing if none is near."""
    import difflib

    close = difflib.get_close_matches(str(name), _candidates(str(name), sorted(names)), 3, 0.4)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def _candidates(name: str, names: list[str]) -> list[str]:
    """The names that are worth comparing letter by letter, which takes 0.2 ms each; a few of many.

    Those that begin most like the one that is wanted, and some that end like it: a name may lack its beginning.
    """
    if len(names) <= _COMPARED:
        return names
    at = bisect.bisect(names, name)
    chosen = dict.fromkeys(names[max(0, at - _COMPARED // 3) : at + _COMPARED // 3])
    parts = name.split(".")
    for n_parts in (len(parts), 3, 2):
        end = "." + ".".join(parts[-n_parts:])
        chosen |= dict.fromkeys(islice((other for other in names if other.endswith(end)), _COMPARED // 9))
    return list(chosen)


def no_such_tensor(name: str, names: Iterable[str]) -> str:
    """Return the message that no tensor has this name, with the nearest names."""
    return f"no tensor {name!r}{did_you_mean(name, names)}"
