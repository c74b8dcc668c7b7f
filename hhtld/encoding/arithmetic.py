"""Whether this thread's floating-point arithmetic is the one that bytes are promised for.

Libraries linked with -ffast-math make the thread that loads them flush denormals to zero, and threads it starts
inherit that; others change the rounding. Encoding then gives other bytes, and numpy other sums.
"""

from __future__ import annotations

import warnings

__all__ = ["warn_if_unusual"]


def _unusual(denormal: float = 5e-324, half: float = 2.0**-53) -> str | None:
    """Return what is unusual; the arguments keep the arithmetic from being done at compile time."""
    if denormal * 1.0 == 0.0 or 2.0**-1022 * (0.25 + half) == 0.0:
        return "flushes denormals to zero"
    if 1.0 + half != 1.0 or -1.0 - half != -1.0 or 1.0 + 1.5 * half == 1.0 or -1.0 - 1.5 * half == -1.0:
        return "does not round to nearest"
    return None


def warn_if_unusual() -> None:
    """Warn where denormals are flushed or rounding is not to nearest."""
    what = _unusual()
    if what is not None:
        warnings.warn(
            f"this thread's arithmetic {what}: a library (often one built with -ffast-math) changed it; what is "
            f"encoded now may differ from what other machines give. Encode in a process that does not load it",
            stacklevel=3,
        )
