"""JSON of files that come from elsewhere: one object, every key once, and nothing that two readers take differently."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from hhtld.errors import HeaderError, shown

__all__ = ["json_object"]

MAX_DIGITS = 64  # far above any size, far below where conversion gets slow


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"key {shown(key)} is given twice")
            seen.add(key)
    return members


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no value of JSON")


def _integer(text: str) -> int | float:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number has {len(text)} digits, more than any value of float64")
    # The official library takes -0 for the float it is; every field that matters refuses floats.
    return -0.0 if text == "-0" else int(text)


def _number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"number {shown(text, 40)} is out of range")
    return value


def json_object(data: bytes | bytearray, where: str, *, constants: bool = False) -> dict[str, Any]:
    """Return the one JSON object that `data` holds, or raise `HeaderError` starting with `where`.

    Parameters
    ----------
    constants : bool
        Whether NaN and Infinity pass, as Python and so config.json files write them.
    """
    refuse = None if constants else _no_constant
    try:
        text = data.decode("utf-8")
        parsed = json.loads(
            text, object_pairs_hook=_unique, parse_constant=refuse, parse_int=_integer, parse_float=_number
        )
        if "\\u" in text:  # the only way in for a lone surrogate, which no container could hold
            json.dumps(parsed, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise HeaderError(f"{where} holds text that is not valid Unicode (a lone surrogate)") from None
    except UnicodeDecodeError as error:
        raise HeaderError(f"{where} is not UTF-8: {error.reason} at byte {error.start}") from None
    except RecursionError:
        raise HeaderError(f"{where} is nested too deeply") from None
    except MemoryError:
        raise HeaderError(f"{where} needs more memory than there is") from None
    except ValueError as error:
        raise HeaderError(f"{where} cannot be read as JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise HeaderError(f"{where} must be a JSON object, got {type(parsed).__name__}")
    return parsed
