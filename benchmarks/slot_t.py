"""Quality and speed of Slot T, beside llama.cpp's quantizers and a dense float32 product.

    pip install -e '.[bench]' && python benchmarks/slot_t.py [quality | rings | speed | search]

One thread. Each figure is the median of rounds in which the parts that are compared run in turn, so that a
machine whose speed drifts slows both; ratios are medians of the rounds' own ratios.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from statistics import median

import numpy as np
from ggml import Ggml
from lookup_grade import in_turn, processor, ratio
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from hhtld._kernels import _isa, _rotate, _score, _trellis
from hhtld.slots.rotation import Rotation
from hhtld.slots.slot_t import Trellis, gain_bits, gain_values

Rows = NDArray[np.float32]

N_COLS = 1024
QUALITY_ROWS = 512
QUALITY_RATES = (16, 24, 32, 40, 48, 64, 80, 96)
RING_COLS, RING_RATES, RING_ROWS = (32, 64, 160, 256, 512), (16, 32, 48, 64, 96), 2048
TWO_LEVELS = ((32, 16), (32, 32))
SPEED_RATES = (32, 48, 50, 64)
DOT_RATES = (32, 48, 50, 64, 80, 88)
ENCODE_ROWS = 512
DECODE_ROWS = 4096
DOT_ROWS = 16384
SEARCH_COLS = 576
SEARCH_ROWS = 720_000
SEARCH_QUERIES = (1, 8, 64)

GGML_TYPES = ("Q2_K", "IQ2_XS", "IQ2_S", "Q3_K", "Q4_K")
DOT_TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q6_K")


# ---- quality ----


def cosines(rows: Rows, coded: Rows) -> NDArray[np.float64]:
    a, b = rows.astype(np.float64), coded.astype(np.float64)
    found: NDArray[np.float64] = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return found


def coded_once(rows: Rows, rate: int) -> Rows:
    """Rotated rows through the trellis, gains as Slot V holds them."""
    code = Trellis.trained(rate)
    codes, gains = code.encode(rows)
    return code.decode(codes, gain_values(gain_bits(gains)), rows.shape[1])


def coded_twice(rows: Rows, rates: tuple[int, int]) -> Rows:
    """The second trellis codes what the first leaves over, with a gain of its own."""
    first = coded_once(rows, rates[0])
    return first + coded_once(rows - first, rates[1])


def quality_line(name: str, bits: float, cosine: NDArray[np.float64]) -> None:
    middle = float(np.median(cosine))
    gap = bits + np.log2(1 - middle * middle) / 2
    print(f"  {name:22} {bits:5.2f} b   cosine {middle:.6f}, p5 {np.percentile(cosine, 5):.6f}   gap {gap:.3f} b")


def with_outliers(rows: Rows, kind: str) -> Rows:
    rng = np.random.default_rng(5)
    scales = np.ones(rows.shape[1])
    if kind == "log-normal scales":
        scales = rng.lognormal(0, 1, rows.shape[1])
    elif kind == "8 columns x 10":
        scales[rng.permutation(rows.shape[1])[:8]] = 10
    return (rows * scales).astype(np.float32)


def quality() -> None:
    rows = np.random.default_rng(3).standard_normal((QUALITY_ROWS, N_COLS)).astype(np.float32)
    print(f"\nGaussian rows of {N_COLS}; the gap is to -log2(1 - cosine^2) / 2")
    for rate in QUALITY_RATES:
        quality_line("one level", rate / 16, cosines(rows, coded_once(rows, rate)))
    for rates in TWO_LEVELS:
        cosine = cosines(rows, coded_twice(rows, rates))
        quality_line(f"two levels, {rates[0] / 16:g}+{rates[1] / 16:g}", sum(rates) / 16, cosine)
    rotation = Rotation(N_COLS, 1)
    for kind in ("Gaussian", "log-normal scales", "8 columns x 10"):
        uneven = with_outliers(rows, kind)
        rotated = uneven.copy()
        rotation.rotate(rotated)
        print(f"\n{kind}, rotated")
        for rate in SPEED_RATES:
            coded = coded_once(rotated, rate)
            rotation.unrotate(coded)
            quality_line("", rate / 16, cosines(uneven, coded))


# ---- rings ----


def rings() -> None:
    """What closing rows to rings saves and costs: bits that a row gets shorter, and bits that as good a code would."""
    print("\nrings: bytes of a row's codes, cosines, bits saved a row and bits that the loss is worth, encoding time")
    for n_cols in RING_COLS:
        rows = np.random.default_rng(n_cols).standard_normal((RING_ROWS, n_cols)).astype(np.float32)
        for rate in RING_RATES:
            found = []
            for is_ring in (False, True):
                code = Trellis.trained(rate, is_ring)
                started = time.process_time()
                codes, gains = code.encode(rows)
                seconds = time.process_time() - started
                cosine = float(np.median(cosines(rows, code.decode(codes, gain_values(gain_bits(gains)), n_cols))))
                found.append((code.row_nbytes(n_cols), cosine, seconds))
            (nbytes, open_cosine, before), (ring_nbytes, cosine, after) = found
            lost = n_cols * np.log2((1 - cosine**2) / (1 - open_cosine**2)) / 2
            saved = (n_cols - 1) * rate // 16 + 12 - n_cols * rate // 16
            print(
                f"  {n_cols:4} columns, {rate / 16:g} b: {nbytes} to {ring_nbytes} bytes, {open_cosine:.5f} to "
                f"{cosine:.5f}, {saved} saved, {lost:.1f} lost, {after / before:.2f} x the time"
            )


# ---- speed ----


def vector_tiers() -> list[str]:
    """The tiers whose bodies differ here."""
    return [tier for tier in _isa.available_tiers() if tier not in ("scalar", "avx512")]


def speed_lines(
    times: Mapping[str, list[float]], n_weights: int, unit: float, name: str, beside: Mapping[str, str]
) -> None:
    for part in times:
        each, fastest = (n_weights / took(times[part]) / 1e3 / unit for took in (median, min))
        against = "".join(f"   {ratio(times, other, part):.2f} x {title}" for other, title in beside.items())
        print(f"  {part:34} {each:8.2f} {name}, at best {fastest:.2f}{against if part not in beside else ''}")


def encode_speed(ggml: Ggml, rows: Rows) -> None:
    rotation = Rotation(N_COLS, 1)
    scratch = np.empty_like(rows)

    def ours(code: Trellis, tier: str) -> Callable[[], None]:
        codes, gains = np.empty((len(rows), code.row_nbytes(N_COLS)), np.uint8), np.empty(len(rows), np.float32)

        def encode() -> None:
            np.copyto(scratch, rows)
            _rotate.rotate(scratch, rotation.signs, isa=tier)
            _trellis.encode(scratch, code.levels, code.step, code.rate, codes, gains, isa=tier)

        return encode

    parts: dict[str, Callable[[], object]] = {name: lambda name=name: ggml.encode(name, rows) for name in GGML_TYPES}
    for rate in SPEED_RATES:
        for tier in vector_tiers():
            parts[f"{rate / 16:g} b, {tier}"] = ours(Trellis.trained(rate), tier)
    print(f"\nencode {len(rows)} x {N_COLS}, rotation included")
    times = in_turn(parts, 3)
    speed_lines(times, rows.size, 1, "Mweights/s", {"Q2_K": "Q2_K", "IQ2_XS": "IQ2_XS"})
    tier_ratios(times)
    print("\ntheir cosines on the same rows")
    for name in GGML_TYPES:
        out = np.empty_like(rows)
        ggml.decode(name, ggml.encode(name, rows), out)
        quality_line(name, 8 * ggml.row_nbytes(name, N_COLS) / N_COLS, cosines(rows, out))


def tier_ratios(times: Mapping[str, list[float]]) -> None:
    found = [
        f"{part.removesuffix(', avx2')} {ratio(times, part, part.removesuffix('avx2') + 'avx512vnni'):.2f}"
        for part in times
        if part.endswith("avx2") and part.removesuffix("avx2") + "avx512vnni" in times
    ]
    if found:
        print(f"  AVX2's time over AVX-512's: {'; '.join(found)}")


def decode_speed(ggml: Ggml) -> None:
    rows = np.random.default_rng(4).standard_normal((DECODE_ROWS, N_COLS)).astype(np.float32)
    rotation, out = Rotation(N_COLS, 1), np.empty_like(rows)
    rng = np.random.default_rng(6)
    parts: dict[str, Callable[[], object]] = {}
    for name in GGML_TYPES:
        # The time does not depend on the values; repeating some rows spares minutes of IQ2's search.
        blocks = np.ascontiguousarray(
            np.resize(ggml.encode(name, rows[:64]), (DECODE_ROWS, ggml.row_nbytes(name, N_COLS)))
        )
        parts[name] = lambda name=name, blocks=blocks: ggml.decode(name, blocks, out)

    # A tensor's decoder takes rows by the block, so that the rotation finds them in the cache.
    block = 32

    def ours(code: Trellis, tier: str, back: bool) -> Callable[[], None]:
        codes = rng.integers(0, 256, (DECODE_ROWS, code.row_nbytes(N_COLS)), np.uint8)
        gains = np.ones(DECODE_ROWS, np.float32)

        def decode() -> None:
            for first in range(0, DECODE_ROWS, block):
                part = slice(first, first + block)
                _trellis.decode(
                    codes[part], code.levels, code.rate, gains[part], out[part], crossed=code.crossed, isa=tier
                )
                if back:
                    _rotate.unrotate(out[part], rotation.signs, isa=tier)

        return decode

    for rate in SPEED_RATES:
        for tier in vector_tiers():
            parts[f"{rate / 16:g} b, {tier}"] = ours(Trellis.trained(rate), tier, True)
            parts[f"{rate / 16:g} b, not rotated, {tier}"] = ours(Trellis.trained(rate), tier, False)
    parts["rotation back alone"] = lambda: [
        _rotate.unrotate(out[i : i + block], rotation.signs) for i in range(0, DECODE_ROWS, block)
    ]
    print(f"\ndecode to float32 {DECODE_ROWS} x {N_COLS}, rotation back included (asked: 2 x Q2_K)")
    times = in_turn(parts)
    speed_lines(times, rows.size, 1e3, "Gweights/s", {"Q2_K": "Q2_K"})
    tier_ratios(times)


def dot_speed(ggml: Ggml) -> None:
    rng = np.random.default_rng(7)
    rows = rng.standard_normal((DOT_ROWS, N_COLS)).astype(np.float32)
    vector, query = rows[0].copy(), rng.integers(-127, 128, (1, N_COLS), np.int8)
    parts: dict[str, Callable[[], object]] = {"dense float32": lambda: rows @ vector}
    for name in DOT_TYPES:
        blocks = np.ascontiguousarray(
            np.resize(ggml.encode(name, rows[:64]), (DOT_ROWS, ggml.row_nbytes(name, N_COLS)))
        )
        parts[name] = ggml.products(name, blocks, vector)
    scores = np.empty((1, DOT_ROWS), np.int32)
    for rate in DOT_RATES:
        code = Trellis.trained(rate)
        codes = rng.integers(0, 256, (DOT_ROWS, code.row_nbytes(N_COLS)), np.uint8)
        for tier in vector_tiers():
            parts[f"{rate / 16:g} b, {tier}"] = lambda code=code, codes=codes, tier=tier: _score.trellis_dots(
                codes, code.levels, code.rate, query, scores, crossed=code.crossed, isa=tier
            )
    print(f"\nint8 decode-and-dot {DOT_ROWS} x {N_COLS}")
    times = in_turn(parts)
    speed_lines(times, rows.size, 1e3, "Gweights/s", {"dense float32": "dense", "Q4_K": "Q4_K"})
    tier_ratios(times)


def search_speed() -> None:
    """Queries against rows that no cache holds, coded or dense."""
    rng = np.random.default_rng(8)
    rows = rng.random((SEARCH_ROWS, SEARCH_COLS), np.float32) - np.float32(0.5)
    code = Trellis.trained(32)
    codes = rng.integers(0, 256, (SEARCH_ROWS, code.row_nbytes(SEARCH_COLS)), np.uint8)
    energies = np.empty(SEARCH_ROWS, np.int32)

    def parts(queries: NDArray[np.int8]) -> dict[str, Callable[[], object]]:
        columns = np.ascontiguousarray(queries.T, np.float32)
        products = np.empty((SEARCH_ROWS, len(queries)), np.float32)
        scores = np.empty((len(queries), SEARCH_ROWS), np.int32)
        found: dict[str, Callable[[], object]] = {"dense float32": lambda: np.matmul(rows, columns, products)}
        for tier in vector_tiers():
            found[tier] = lambda tier=tier: _score.trellis_dots(
                codes, code.levels, code.rate, queries, scores, crossed=code.crossed, isa=tier
            )
        if len(queries) == 1:
            found["energies"] = lambda: _score.trellis_energies(
                codes, code.levels, code.rate, SEARCH_COLS, energies, crossed=code.crossed
            )
        return found

    print(f"\nqueries against {SEARCH_ROWS} x {SEARCH_COLS} at 2 b, beside {rows.nbytes / 1e9:.2f} GB of float32")
    for n_queries in SEARCH_QUERIES:
        print(f"{n_queries} at a time")
        times = in_turn(parts(rng.integers(-127, 128, (n_queries, SEARCH_COLS), np.int8)), 5)
        speed_lines(times, rows.size * n_queries, 1e3, "Gmultiply-adds/s", {"dense float32": "dense"})
        tier_ratios(times)


def speed() -> None:
    ggml = Ggml()
    print(f"\nbeside the routines of llama.cpp in xllamacpp {version('xllamacpp')}")
    encode_speed(ggml, np.random.default_rng(2).standard_normal((ENCODE_ROWS, N_COLS)).astype(np.float32))
    decode_speed(ggml)
    dot_speed(ggml)


def main(arguments: list[str]) -> None:
    """Run the parts named, or all, and print."""
    print(f"{processor()}, numpy {np.__version__}, tier {_isa.tier()}, one thread")
    parts = {"quality": quality, "rings": rings, "speed": speed, "search": search_speed}
    with threadpool_limits(1):
        for name in arguments or parts:
            parts[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
