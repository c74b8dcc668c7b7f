"""What the slots of one tensor hold, as numbers: usage, quantiles, histograms.

Slots are codes of at most 16 bits, so all of it is computed from how often each code occurs: exact, and in
memory that does not grow with the rows. Every number is finite, or None where there is none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hhtld.codecs.base import EncodedTensor
from hhtld.dtypes import DType, bf16_values, exact_values
from hhtld.gates import N_QUANTILES
from hhtld.slots.slot_d_v import HeelBasin, heel_basin, hip_family, polarity, residual
from hhtld.slots.slot_l import SLOT_L_LANES, SvdBasis
from hhtld.slots.slot_t import gain_values

__all__ = ["slot_statistics", "value_statistics", "weight_blocks"]

N_BINS = 64  # of a histogram: a terminal's width, halved on narrow ones
LANE_BIN = 8  # codes of Slot L to a bin, so 32 bins a lane
_BLOCK = 1 << 18  # codes or weights looked at together

Counts = NDArray[np.int64]
_ALL_U16 = np.arange(1 << 16, dtype=np.uint16)


def slot_statistics(tensor: EncodedTensor) -> dict[str, Any]:
    """Return what the slots of an encoded tensor hold, JSON-able.

    Returns
    -------
    dict
        "shapes" by kind of section, and where the tensor has them: "slot_t", "slot_v", "slot_v_2" and
        "column_scale" (quantiles and histogram), "row_class" (rate and rows of every class), "twigs" (usage) with
        "twig_counts", "basins", "hip_families" and "polarity" (rows), "slot_l" (scale and lanes), "singular_values"
        with "energy".
    """
    view = tensor.view()
    facts: dict[str, Any] = {"shapes": dict(view.shapes)}
    if view.row_class is not None:
        n_rows = _counts(view.row_class, len(view.trellises)).tolist()
        rates = [trellis.rate / 16 for trellis in view.trellises.values()]
        facts["row_class"] = [{"bits": bits, "n_rows": n} for bits, n in zip(rates, n_rows, strict=True)]
    for suffix, trellis in view.trellises.items() if view.row_class is None else ():
        codes = view.codes[f"slot_t{suffix}"]
        facts[f"slot_t{suffix}"] = {
            "bits": trellis.rate / 16,
            "row_nbytes": codes.shape[1],
            "states": len(trellis.levels),
        }
    for kind, gains in view.gains.items():
        facts[kind] = _distribution(gain_values(_ALL_U16), _counts(gains, 1 << 16))
    if view.column_scale is not None:
        facts["column_scale"] = _distribution(bf16_values(_ALL_U16), _counts(view.column_scale, 1 << 16))
    if view.slot_d is not None and view.magnitudes is not None:
        facts |= _address_statistics(view.slot_d, view.magnitudes)
    if view.twigs is not None and view.n_entries is not None:
        facts |= _usage(_counts(view.twigs, 256), view.n_entries)
    if view.slot_l is not None and view.slot_l_scale is not None and view.basis is not None:
        facts["slot_l"] = {"scale": view.slot_l_scale, "lanes": _lanes(view.slot_l, view.slot_l_scale)}
        facts |= _basis_statistics(view.basis)
    facts["shapes"] = {kind: list(map(int, shape)) for kind, shape in facts["shapes"].items()}
    return facts


def value_statistics(blocks: Iterable[NDArray[np.float64]]) -> dict[str, Any]:
    """Return count, zeros, values that are not finite, and min, max, mean and deviation of those that are.

    Blocks are merged as they come (Chan et al.), so that the mean of many values stays exact and none
    is held longer than its block.
    """
    n = n_zero = n_nonfinite = 0
    low, high, mean, spread = math.inf, -math.inf, 0.0, 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for block in blocks:
            finite_values = block[np.isfinite(block)]
            n_nonfinite += block.size - finite_values.size
            if not finite_values.size:
                continue
            block_mean = float(finite_values.mean())
            delta, total = block_mean - mean, n + finite_values.size
            spread += float(((finite_values - block_mean) ** 2).sum()) + delta * delta * n * finite_values.size / total
            mean += delta * finite_values.size / total
            n, n_zero = total, n_zero + finite_values.size - int(np.count_nonzero(finite_values))
            low, high = min(low, float(finite_values.min())), max(high, float(finite_values.max()))
    deviation = math.sqrt(spread / n) if n else math.nan
    numbers = {"min": low, "max": high, "mean": mean if n else math.nan, "std": deviation}
    return {"n": n, "n_zero": n_zero, "n_nonfinite": n_nonfinite} | {k: _finite(v) for k, v in numbers.items()}


def weight_blocks(raw: Iterable[NDArray[np.uint8]], dtype: DType) -> Iterator[NDArray[np.float64]]:
    """Yield the bytes of a weight type as float64, a block at a time; float64 weights lose nothing."""
    for part in raw:
        flat, step = part.reshape(-1), _BLOCK * dtype.nbits // 8
        for start in range(0, flat.size, step):
            yield exact_values(flat[start : start + step], dtype).astype(np.float64, copy=False)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _counts(codes: NDArray[Any], n_codes: int) -> Counts:
    """How often each code occurs."""
    counts = np.zeros(n_codes, np.int64)
    for start in range(0, len(codes), _BLOCK):
        counts += np.bincount(codes[start : start + _BLOCK], minlength=n_codes)
    return counts


def _address_statistics(slot_d: NDArray[np.uint16], magnitudes: NDArray[np.uint16]) -> dict[str, Any]:
    counted = _counts(slot_d, 1 << 16)

    def rows_by(field: NDArray[Any], n: int) -> Counts:
        return np.bincount(field, counted, n).astype(np.int64)

    signs = rows_by(polarity(_ALL_U16), 2)
    return {
        "slot_v": _distribution(residual(_ALL_U16), _counts(magnitudes, 1 << 16)),
        "basins": {basin.name: int(n) for basin, n in zip(HeelBasin, rows_by(heel_basin(_ALL_U16), 4), strict=True)},
        "hip_families": rows_by(hip_family(_ALL_U16), 16).tolist(),
        "polarity": {"positive": int(signs[1]), "negative": int(signs[0])},
    }


def _usage(counts: Counts, k: int) -> dict[str, Any]:
    """How the rows fall on k palette entries; the smallest is that of the entries in use."""
    row_counts = counts[:k]
    used = np.flatnonzero(row_counts)
    shares = row_counts[used] / max(1, row_counts.sum())

    def entry(which: int) -> dict[str, int]:
        return {"entry": which, "n_rows": int(row_counts[which])}

    facts = {
        "entries": k,
        "used": len(used),
        "unused": k - len(used),
        "largest": entry(int(row_counts.argmax())) if len(used) else None,
        "smallest": entry(int(used[row_counts[used].argmin()])) if len(used) else None,
        "entropy_bits": abs(float((shares * np.log2(shares)).sum())),
    }
    return {"twigs": facts, "twig_counts": row_counts.tolist()}


def _distribution(values: NDArray[np.float32], counts: Counts) -> dict[str, Any]:
    """Quantiles, each a value that occurs as in the recorded gates, and a histogram."""
    finite = np.isfinite(values)
    occurring = np.flatnonzero(finite & (counts > 0))
    occurring = occurring[values[occurring].argsort(kind="stable")]
    levels, weights = values[occurring].astype(np.float64) + 0.0, counts[occurring]  # + 0.0 leaves no -0.0
    n = int(weights.sum())
    quantiles: list[float] = []
    edges, bins = np.empty(0), np.empty(0, np.int64)
    if n:
        ranks = [(n - 1) * i // (N_QUANTILES - 1) for i in range(N_QUANTILES)]
        quantiles = levels[np.searchsorted(weights.cumsum(), ranks, side="right")].tolist()
        edges, bins = levels[[0, -1]], weights[:1]
    if len(levels) > 1:
        weighted, edges = np.histogram(levels, N_BINS, weights=weights)
        bins = weighted.astype(np.int64)
    named = {"min": 0, "p5": 1, "median": N_QUANTILES // 2, "max": -1}
    return {
        "n": n,
        "n_nonfinite": int(counts[~finite].sum()),
        **{name: quantiles[i] if n else None for name, i in named.items()},
        "quantiles": quantiles,
        "histogram": {"edges": edges.tolist(), "counts": bins.tolist()},
    }


def _lanes(slot_l: NDArray[np.int8], scale: float) -> list[dict[str, Any]]:
    """Range, root mean square (of the codes, and in weights) and histogram of every lane."""
    lanes = []
    codes = np.arange(-128, 128)
    for lane in range(SLOT_L_LANES):
        counts = np.roll(_counts(slot_l[:, lane].view(np.uint8), 256), 128)
        occurring, n = codes[counts > 0], int(counts.sum())
        rms = math.sqrt(float((counts * codes**2).sum()) / n) if n else None
        lanes.append(
            {
                "min": int(occurring[0]) if n else None,
                "max": int(occurring[-1]) if n else None,
                "rms": rms,
                "rms_scaled": None if rms is None else _finite(rms * scale),
                "histogram": counts.reshape(-1, LANE_BIN).sum(axis=1).tolist(),
            }
        )
    return lanes


def _basis_statistics(basis: SvdBasis) -> dict[str, Any]:
    values = basis.singular_values.astype(np.float64)
    total = float((values**2).sum())
    return {"singular_values": values.tolist(), "energy": [float(v * v / total) if total else 0.0 for v in values]}
