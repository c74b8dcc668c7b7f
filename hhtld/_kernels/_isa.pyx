"""The one place that knows the processor: tiers, detection and the HHTLD_ISA override."""

import os

cdef extern from "isa.h" nogil:
    int hh_detect_tier()

_NAMES = ("scalar", "neon", "neondotprod", "avx2", "avx512", "avx512vnni")
cdef int _detected = hh_detect_tier()
cdef int _chosen = _detected


def available_tiers():
    """Return the tiers this machine can run, lowest first."""
    cdef bint arm = _NAMES[_detected].startswith("neon")
    return tuple(n for i, n in enumerate(_NAMES) if i == 0 or (i <= _detected and n.startswith("neon") == arm))


def tier():
    """Return the tier every kernel uses unless told otherwise."""
    return _NAMES[_chosen]


cpdef int resolve(object isa) except -1:
    """Return the number of tier `isa`, or of the chosen one for None."""
    if isa is None:
        return _chosen
    if isa not in available_tiers():
        raise ValueError(f"no instruction tier {isa!r} here; available: {', '.join(available_tiers())}")
    return _NAMES.index(isa)


def _choose():
    global _chosen
    wanted = os.environ.get("HHTLD_ISA")
    if wanted:
        try:
            _chosen = resolve(wanted)
        except ValueError as error:
            raise ImportError(f"HHTLD_ISA={wanted}: {error}") from None


_choose()
