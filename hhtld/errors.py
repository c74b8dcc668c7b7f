"""Every error hhtld raises on purpose.

A bad file raises `FormatError` and nothing else; a bad argument raises `ValueError` or `TypeError`.
Messages say what is wrong, where (path, tensor, section, offset), what was expected and what was
found; names from files are printed with `repr`, shortened.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = [
    "BadMagicError",
    "BudgetError",
    "ChecksumError",
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


class HhtldError(Exception):
    """Base of every error below."""


class FormatError(HhtldError, ValueError):
    """A file is not what it claims to be, or claims what cannot be."""


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
    """A tensor holds an infinity or NaN where finite weights are needed."""


class RangeError(HhtldError, ValueError):
    """Weights so large, near 1e38, that encoding passes float32's range."""


class UnknownFormatError(HhtldError, LookupError):
    """No format of that name, suffix or content."""


class OutputError(HhtldError, OSError):
    """The output could not be written; whatever stood there before is untouched."""


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
    """Return the end of a message, "; did you mean 'a'?" with the nearest names, or nothing where none is near."""
    import difflib

    close = difflib.get_close_matches(str(name), names, 3, 0.4)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def no_such_tensor(name: str, names: Iterable[str]) -> str:
    """Return the message that no tensor has this name, with the nearest names."""
    return f"no tensor {name!r}{did_you_mean(name, names)}"
