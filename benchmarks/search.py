"""Searching encoded rows, beside a dense float32 product and faiss.

    python benchmarks/search.py [quality] [speed] [peers] [lookup] [--model FOLDER --queries STATES.npy]

Without a model the rows are MiniLM's word embeddings (the demo model's package), and the queries are rows moved by 0.05
of their length. `--model` takes a snapshot whose tensor model.embed_tokens.weight is its tied head, `--queries` its
final hidden states (benchmarks/hidden_states.py writes some). One thread; every ratio is of the same run. `peers`
needs faiss-cpu.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from lookup_grade import in_turn, processor, ratio
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

import hhtld
from hhtld._kernels import _isa
from hhtld.codecs.trellis import HhtlTTensor
from hhtld.dtypes import widen
from hhtld.formats import open_source
from hhtld.search.scorer import Scorer
from hhtld.storage.locations import demo_model

F32 = NDArray[np.float32]
HEAD, WORDS = "model.embed_tokens.weight", "embeddings.word_embeddings.weight"
DENSE_NBYTES = 1_600_000_000  # more than any last-level cache holds


def rows_of(folder: Path, name: str) -> F32:
    with open_source(folder) as source:
        info = source.infos()[name]
        return widen(source.read_rows(name, 0, info.n_rows).reshape(-1), info.dtype).reshape(info.n_rows, info.n_cols)


def perturbed(rows: F32, count: int) -> F32:
    rng = np.random.default_rng(0)
    picked = rows[rng.integers(0, len(rows), count)]
    away = rng.standard_normal(picked.shape).astype(np.float32)
    away *= np.linalg.norm(picked, axis=1, keepdims=True) / np.linalg.norm(away, axis=1, keepdims=True)
    return picked + np.float32(0.05) * away


def best(rows: F32, queries: F32) -> NDArray[np.int64]:
    """Exact arg-max of every query over rows, in float64, block by block."""
    top, score = np.zeros(len(queries), np.int64), np.full(len(queries), -np.inf)
    for start in range(0, len(rows), 8192):
        block = queries.astype(np.float64) @ rows[start : start + 8192].astype(np.float64).T
        found = block.argmax(axis=1)
        value = block[np.arange(len(queries)), found]
        better = value > score
        top[better], score[better] = start + found[better], value[better]
    return top


def quality(rows: F32, queries: F32, name: str) -> None:
    print(f"\n{name}: {len(rows)} x {rows.shape[1]}, {len(queries)} queries")
    true = best(rows, queries)
    print("bits     bits/w  median cosine  survivors  exact over decoded  top-1 decoded  top-1 rescored  rows rescored")
    for profile in ("bits:1.5", "bits:2", "bits:2.5", "gates"):
        pack = hhtld.encode({name: rows}, profile)
        scorer, cosines = pack.scorer(name), pack.info(name).gates
        found = scorer.topk(queries, 1)
        decoded = best(pack.get_tensor(name), queries)
        again = scorer.topk(queries, 1, rescore=rows)
        print(
            f"{profile:8} {8 * pack.nbytes(name) / rows.size:6.3f}  {cosines.median:13.4f}  "
            f"{found.n_rescored.mean():9.1f}  {'yes' if (found.rows[:, 0] == decoded).all() else 'NO':>18}  "
            f"{(decoded == true).mean():13.4f}  {(again.rows[:, 0] == true).mean():14.4f}  "
            f"{again.n_rescored.mean():8.1f} (median {np.median(again.n_rescored):.0f}, most {again.n_rescored.max()})"
        )


def repeated(tensor: HhtlTTensor, times: int) -> HhtlTTensor:
    """The same rows many times over, as one tensor."""
    n_rows, n_cols = tensor.original_shape
    own = {name: None if array is None else np.tile(array, (times,) + (1,) * (array.ndim - 1)) for name, array in (
        ("slot_v", tensor.slot_v), ("slot_t", tensor.slot_t), ("twigs", tensor.twigs), ("slot_l", tensor.slot_l)
    )}  # fmt: skip
    return HhtlTTensor(
        tensor.role, tensor.shared, own["slot_v"], own["slot_t"], (times * n_rows, n_cols), own["twigs"], own["slot_l"],
        tensor.slot_l_scale, tensor.column_scale,
    )  # fmt: skip


def speed(rows: F32, queries: F32, name: str) -> None:
    times = -(-DENSE_NBYTES // rows.nbytes)
    pack = hhtld.encode({name: rows}, "bits:2")
    scorer = Scorer(repeated(pack.get_encoded(name), times), pack.info(name).gates, name)
    held = sum(part.nbytes for part in scorer.tensor.parts().values()) + scorer.nbytes
    dense = np.tile(rows, (times, 1))
    print(f"\n{name} {times} times: dense {dense.nbytes / 1e9:.2f} GB, scorer {held / 1e9:.3f} GB", end="")
    print(f", 1/{dense.nbytes / held:.1f} of it")
    print("queries  dense product  and arg-max  arg-max here  product / here  rescored here")
    for count in (1, 8, 64):
        batch = np.ascontiguousarray(queries[:count])
        one = batch[0] if count == 1 else batch.T
        times_of = in_turn(
            {
                "product": lambda one=one: dense @ one,
                "argmax": lambda one=one: (dense @ one).argmax(axis=0),
                "here": lambda batch=batch: scorer.argmax(batch),
                "rescored": lambda batch=batch: scorer.topk(batch, 1, rescore=dense),
            },
            5,
        )
        shown = {key: median(own) for key, own in times_of.items()}
        print(f"{count:7}  {shown['product']:10.1f} ms  {shown['argmax']:8.1f} ms  {shown['here']:9.1f} ms", end="")
        print(f"  {ratio(times_of, 'product', 'here'):12.2f} x  {shown['rescored']:10.1f} ms")


def peers(rows: F32, queries: F32, name: str) -> None:
    import faiss

    faiss.omp_set_num_threads(1)
    true, n_cols = best(rows, queries), rows.shape[1]
    pack = hhtld.encode({name: rows}, "bits:2")
    scorer = pack.scorer(name)
    flat = faiss.IndexFlatIP(n_cols)
    flat.add(rows)
    fast = faiss.IndexPQFastScan(n_cols, n_cols // 2, 4, faiss.METRIC_INNER_PRODUCT)
    rabitq = faiss.IndexRaBitQ(n_cols, faiss.METRIC_INNER_PRODUCT, 2)
    built = []
    for index in (fast, rabitq):
        start = time.perf_counter()
        index.train(rows)
        index.add(rows)
        built.append(time.perf_counter() - start)
    start = time.perf_counter()
    hhtld.encode({name: rows}, "bits:2")
    built.append(time.perf_counter() - start)
    refined = [faiss.IndexRefine(index, flat) for index in (fast, rabitq)]
    deep = faiss.IndexRefineSearchParameters(k_factor=128)
    own_nbytes = pack.nbytes(name) / len(rows)
    searches: list[tuple[str, float, float, Callable[[F32], Any]]] = [
        ("faiss IndexFlatIP", 4 * n_cols, 0.0, lambda q: flat.search(q, 1)[1][:, 0]),
        ("faiss IndexPQFastScan", fast.code_size, built[0], lambda q: fast.search(q, 1)[1][:, 0]),
        ("faiss IndexRaBitQ, 2 bits", rabitq.code_size, built[1], lambda q: rabitq.search(q, 1)[1][:, 0]),
        ("hhtld bits:2", own_nbytes, built[2], scorer.argmax),
        ("PQFastScan, 128 refined", fast.code_size, built[0], lambda q: refined[0].search(q, 1, params=deep)[1][:, 0]),
        ("RaBitQ, 128 refined", rabitq.code_size, built[1], lambda q: refined[1].search(q, 1, params=deep)[1][:, 0]),
        ("hhtld, rescored", own_nbytes, built[2], lambda q: scorer.topk(q, 1, rescore=rows).rows[:, 0]),
    ]
    print(f"\n{name}: {len(rows)} x {n_cols}, {len(queries)} queries, faiss {faiss.__version__}")
    single = in_turn({label: lambda run=run: run(queries[:1]) for label, _, _, run in searches}, 21)
    batched = in_turn({label: lambda run=run: run(queries[:64]) for label, _, _, run in searches}, 5)
    print("                           bytes/row  build s  recall@1  1 query ms  64 queries ms")
    for label, nbytes, seconds, run in searches:
        recall = (np.concatenate([run(queries[i : i + 64]) for i in range(0, len(queries), 64)]) == true).mean()
        print(f"{label:26} {nbytes:9.1f}  {seconds:7.2f}  {recall:8.4f}", end="")
        print(f"  {median(single[label]):10.2f}  {median(batched[label]):13.1f}")


def lookup(rows: F32, name: str, folder: Path) -> None:
    path = folder / "search_benchmark.hhtld"
    hhtld.save(hhtld.encode({name: rows}, "bits:2"), path)
    picked = np.random.default_rng(1).integers(0, len(rows), 20_000).tolist()
    with hhtld.open(path) as pack:
        times = []
        for row in picked:
            start = time.process_time_ns()
            pack.get_rows(name, [row])
            times.append(time.process_time_ns() - start)
    path.unlink()
    times = np.array(times[1000:]) / 1e3
    print(f"\nget_rows of one row of {name} ({rows.shape[1]} columns) from an open file, processor time: ", end="")
    print(f"median {np.median(times):.1f} us, p99 {np.percentile(times, 99):.1f} us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help="quality, speed, peers, lookup; all by default")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--queries", type=Path)
    parser.add_argument("--count", type=int, default=1024)
    args = parser.parse_args()
    name = WORDS if args.model is None else HEAD
    rows = rows_of(args.model or demo_model(), name)
    given = perturbed(rows, args.count) if args.queries is None else np.load(args.queries)[: args.count]
    queries = np.ascontiguousarray(given, np.float32)
    print(f"{processor()}, tier {_isa.tier()}, one thread, hhtld {hhtld.__version__}")
    wanted = set(args.parts) or {"quality", "speed", "peers", "lookup"}
    with threadpool_limits(1):
        if "quality" in wanted:
            quality(rows, queries, name)
        if "speed" in wanted:
            speed(rows, queries, name)
        if "peers" in wanted:
            peers(rows, queries, name)
        if "lookup" in wanted:
            lookup(rows, name, Path.cwd())


if __name__ == "__main__":
    main()
