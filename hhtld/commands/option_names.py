"""How messages of the library read on the command line: where both doors have a name for an option, the option's.

The library writes a keyword, and the option in brackets after it: ``min_ratio (--min-ratio)``, or with a value
``quantized='keep' (--quantized keep)``.
"""

from __future__ import annotations

import re

__all__ = ["KEYWORD_AND_OPTION", "as_options"]

KEYWORD_AND_OPTION = re.compile(r"""\b[a-z][a-z0-9_]*(?:=(?:[A-Za-z0-9]+|'[^' ]*'|"[^" ]*")?)? \((--[a-z][^()]*)\)""")


def as_options(message: str) -> str:
    """Return a message in which every keyword followed by its option is the option alone."""
    return KEYWORD_AND_OPTION.sub(r"\1", message)
