"""Searching a file's rows in every way there is, against exact search in the source: what each finds, costs and reads.

Exact is the dot product with the source's rows in float64, the lowest row among equals. Ways whose encoding the file
does not hold are measured on one made of the source's tensor alone, in memory, as `encode` makes it. Bytes are those
of the sections that a query goes through, as a file holds them, and of the source's rows that it reads.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.console import Console
from rich.text import Text
from threadpoolctl import threadpool_limits

from hhtld._kernels import _dot
from hhtld.base17 import BASE17_NBYTES, Base17
from hhtld.encoder import encode
from hhtld.errors import FormatError, NonFiniteError, shown
from hhtld.formats import open_source
from hhtld.formats.convert import resolve_source
from hhtld.formats.hhtld import open_pack
from hhtld.formats.terminal import fitting_table, human_nbytes, print_titled, safe, shape_text
from hhtld.gates import row_cosines
from hhtld.pack import HhtldPack
from hhtld.palette import RouteAction
from hhtld.plan import Profile
from hhtld.progress import Progress, silent
from hhtld.roles import MIN_NBYTES, MIN_ROWS, regime
from hhtld.rows import row_ranges
from hhtld.scorer import Scorer
from hhtld.slots import ENTRY_DTYPE, SLOT_L_LANES
from hhtld.source import SourceRows, TensorSource
from hhtld.tensor import HhtlDTensor, HhtlF32Tensor
from hhtld.trellis_tensor import HhtlTTensor

__all__ = [
    "CascadeProbe",
    "NotEncodable",
    "ProbeReport",
    "SearchResult",
    "TensorProbe",
    "best_rows",
    "chosen_tensors",
    "exact_rows",
    "perturbed_rows",
    "print_probe",
    "probe",
]

NOISE = 0.05  # of a query's own row, so that no query is a row itself
BEST = 5
_VIABLE, _PARTIAL = 0.90, 0.70

Array32 = NDArray[np.float32]
Array64 = NDArray[np.float64]
RowNumbers = NDArray[np.int64]


@dataclass(frozen=True)
class SearchResult:
    """What one way of searching found and cost.

    Attributes
    ----------
    name : str
    held : bool
        Whether the file itself is searched, not an encoding made for the comparison.
    top1 : float
        Share of the queries whose best row is the exact best.
    top5 : float
        Share of the exact best rows, up to 5 a query, that are among as many found.
    rows_rescored : float
        Rows read from the source, a query's average.
    milliseconds : float
        Median of queries made one at a time on one thread.
    nbytes : int
        Read for a query, on average.
    """

    name: str
    held: bool
    top1: float
    top5: float
    rows_rescored: float
    milliseconds: float
    nbytes: int

    @property
    def verdict(self) -> str:
        """What `top1` comes to."""
        if self.top1 >= _VIABLE:
            return "viable"
        return "partial" if self.top1 >= _PARTIAL else "not competitive"

    def to_json(self) -> dict[str, Any]:
        """Return every number."""
        return {
            "name": self.name,
            "held": self.held,
            "top1": self.top1,
            "top5": self.top5,
            "rows_rescored": self.rows_rescored,
            "milliseconds": self.milliseconds,
            "nbytes": self.nbytes,
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class NotEncodable:
    """A way of searching that the tensor does not allow, and why."""

    name: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return both."""
        return {"name": self.name, "verdict": "not encodable", "reason": self.reason}


@dataclass(frozen=True)
class CascadeProbe:
    """What the lookup grade's routes say, and what leaving out the rows they skip does to a search.

    Attributes
    ----------
    routes : dict of str to float
        Share of the rows by `RouteAction`, a query's average.
    hidden : float
        Share of the queries whose exact best row is on a skipped entry.
    routing : float
        Milliseconds of finding a query's entry, median.
    after, alone : SearchResult
        The lookup grade on the rows that are left, and on all. What is left for an entry was laid out
        before the clock ran, which a file does not hold: the cascade cannot be faster.
    """

    routes: dict[str, float]
    hidden: float
    routing: float
    after: SearchResult
    alone: SearchResult

    @property
    def helps(self) -> bool:
        """Whether it takes less time, there is less to score to explain that, and it finds as much as without it."""
        faster = self.after.milliseconds < self.alone.milliseconds and self.routing < self.saved
        return faster and self.after.top1 >= self.alone.top1

    @property
    def saved(self) -> float:
        """Milliseconds that scoring the skipped rows takes: their share of the whole search."""
        return self.routes[RouteAction.SKIP.name] * self.alone.milliseconds

    @property
    def verdict(self) -> str:
        """One sentence of judgement."""
        return (
            f"The cascade {'helps' if self.helps else 'does not help'}: it skips {_percent(self.routes['SKIP'])} "
            f"of the rows and takes {_ms(self.after.milliseconds)} ms where the lookup grade without it takes "
            f"{_ms(self.alone.milliseconds)} ms, and hides the exact best row of {_percent(self.hidden)} of the "
            f"queries; it saves time only if routing, {_ms(self.routing)} ms, takes less than scoring what is skipped, "
            f"about {_ms(self.saved)} ms."
        )

    def to_json(self) -> dict[str, Any]:
        """Return every number; the two searches stand among the scorers."""
        return {
            "routes": self.routes,
            "hidden": self.hidden,
            "routing_milliseconds": self.routing,
            "saved_milliseconds": self.saved,
            "after": self.after.name,
            "alone": self.alone.name,
            "helps": self.helps,
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class TensorProbe:
    """One tensor, searched in every way.

    Attributes
    ----------
    name : str
    shape : tuple of int
    codec : str
    n_queries : int
    results : list of SearchResult or NotEncodable
        The yardstick, dense float32 numpy, is the first.
    cascade : CascadeProbe or None
        None where the lookup grade does not encode the tensor.
    """

    name: str
    shape: tuple[int, ...]
    codec: str
    n_queries: int
    results: list[SearchResult | NotEncodable]
    cascade: CascadeProbe | None = None

    @property
    def dense(self) -> SearchResult:
        """The yardstick."""
        first = self.results[0]
        assert isinstance(first, SearchResult)
        return first

    @property
    def summary(self) -> str:
        """The file's own ways of searching, in one line."""
        held = [result for result in self.results if isinstance(result, SearchResult) and result.held]
        found = "; ".join(f"{result.name} {_percent(result.top1)}, {_cost(result)}" for result in held)
        return f"Exact best row found: {found}; dense float32 takes {_cost(self.dense)} a query."

    def to_json(self) -> dict[str, Any]:
        """Return every number."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "codec": self.codec,
            "n_queries": self.n_queries,
            "scorers": [result.to_json() for result in self.results],
            "cascade": None if self.cascade is None else self.cascade.to_json(),
            "summary": self.summary,
        }


@dataclass
class ProbeReport:
    """Every tensor that was searched.

    Attributes
    ----------
    path, source : str
    queries : str
        Where they come from: "rows of SRC + .05 noise", or a file.
    seed : int
        Of the noise.
    tensors : list of TensorProbe
    """

    path: str
    source: str
    queries: str
    seed: int
    tensors: list[TensorProbe] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return every number, for scripts."""
        return {
            "schema": "hhtld.probe/1",
            "path": self.path,
            "source": self.source,
            "queries": self.queries,
            "seed": self.seed,
            "tensors": [tensor.to_json() for tensor in self.tensors],
        }


def probe(
    path: str | os.PathLike[str],
    src: str | os.PathLike[str],
    *,
    tensors: Sequence[str] = (),
    queries: str | os.PathLike[str] | ArrayLike | None = None,
    count: int = 256,
    seed: int = 0,
    progress: Progress | None = None,
) -> ProbeReport:
    """Search a file's encoded tensors in every way there is, and exactly in what the file was made from.

    Parameters
    ----------
    path : path
        A `.hhtld` file.
    src : path
        What it was made from; or "demo:".
    tensors : sequence of glob
        Encoded tensors to search; those of the index regime, embeddings and heads, where there is none.
    queries : path of an .npy file, or array, (n, n_cols), optional
        Searched as float32. By default rows of `src`, each with noise of .05 of its length added.
    count : int
        Queries to make at most, evenly spaced over the rows or over `queries`.
    seed : int
        Of the noise.
    progress : callable, optional
        Called with "probe", a tensor's name and its bytes in `src` when that tensor is done.

    Raises
    ------
    FormatError
        When a file is damaged, `src` is not what `path` was made from, or a file of queries does not fit.
    ValueError
        When a glob matches nothing that is encoded, or an array of queries does not fit.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    given = None if queries is None else _given_queries(queries, count)
    origin = f"rows of SRC + {NOISE:g} noise" if given is None else given.origin
    report = ProbeReport(os.fspath(path), os.fspath(src), origin, seed)
    with open_pack(Path(path)) as pack, open_source(resolve_source(src)) as source:
        names = chosen_tensors(pack, tensors)
        for name in names:
            _check_source(pack, source, name)
            if given is not None:
                given.check(name, pack.info(name).info.n_cols)
        for name in names:
            report.tensors.append(_probed(pack, source, name, given, count, seed))
            (progress or silent)("probe", name, source.infos()[name].nbytes)
    return report


# ---- what is searched ----


def chosen_tensors(pack: HhtldPack, globs: Sequence[str] = ()) -> list[str]:
    """Return the encoded tensors that globs name, or those of the index regime; of tied ones the one with bytes.

    Raises
    ------
    ValueError
        When there is none.
    """
    wanted = list(dict.fromkeys(pack.info(name).name for name in _matching(pack, globs)))
    encoded = [name for name in wanted if pack.info(name).codec != "keep" and pack.info(name).info.n_rows]
    if globs and not encoded:
        raise ValueError(f"tensor {shown(wanted[0])} is kept as it came; only encoded tensors are searched")
    chosen = encoded if globs else [name for name in encoded if _regime(pack, name) == "index"]
    if not chosen:
        raise ValueError("the file has no encoded embedding or head; name a tensor to search with --tensor GLOB")
    return chosen


def _matching(pack: HhtldPack, globs: Sequence[str]) -> list[str]:
    names = list(pack)
    for glob in globs:
        if glob not in names and not any(fnmatch.fnmatchcase(name, glob) for name in names):
            close = difflib.get_close_matches(glob, names, 3, 0.4)
            hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
            raise ValueError(f"no tensor matches {shown(glob)}{hint}")
    return [name for name in names if not globs or any(name == g or fnmatch.fnmatchcase(name, g) for g in globs)]


def _regime(pack: HhtldPack, name: str) -> str:
    group = pack.info(name).group
    assert group is not None
    return regime(pack.table.groups[group].key.role)


def _check_source(pack: HhtldPack, source: TensorSource, name: str) -> None:
    """Refuse a source that the file was not made from: its scores would mean nothing."""
    held, infos = pack.info(name).info, source.infos()
    if name not in infos:
        raise FormatError(f"SRC is not what the file was made from: it has no tensor {shown(name)}")
    info = infos[name]
    if (held.shape, held.dtype) != (info.shape, info.dtype):
        raise FormatError(
            f"SRC is not what the file was made from: tensor {shown(name)} is {info.dtype.name} "
            f"{shape_text(info.shape)} there, {held.dtype.name} {shape_text(held.shape)} in the file"
        )


def _check_rows(pack: HhtldPack, name: str, rows: Array32) -> None:
    """Refuse other weights of the same shape: no row may be further from its decoded self than was recorded."""
    gates = pack.info(name).gates
    if gates is None:
        return
    picks = _spaced(len(rows), 256)
    found = row_cosines(rows[picks], pack.get_rows(name, picks))
    if found.min() < gates.minimum - 1e-4:
        row = int(picks[found.argmin()])
        raise FormatError(
            f"SRC is not what the file was made from: row {row} of tensor {shown(name)} has cosine {found.min():.4f} "
            f"with its decoded self, {gates.minimum:.4f} is recorded for the worst row"
        )


# ---- queries ----


def _spaced(n_rows: int, count: int) -> RowNumbers:
    """Return at most `count` evenly spaced row numbers."""
    return np.linspace(0, n_rows - 1, min(n_rows, count)).round().astype(np.int64)


def perturbed_rows(rows: NDArray[np.float32], count: int, seed: int) -> NDArray[np.float32]:
    """Return at most `count` evenly spaced rows, each plus .05 of its length in a random direction, float32."""
    own = rows[_spaced(len(rows), count)].astype(np.float64)
    noise = np.random.default_rng(seed).standard_normal(own.shape)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    own += NOISE * np.linalg.norm(own, axis=1, keepdims=True) * noise
    return own.astype(np.float32)


@dataclass(frozen=True)
class _Given:
    """Queries that came with the call; `error` is what is raised when they do not fit."""

    origin: str
    values: Array32
    error: type[ValueError]

    def check(self, name: str, n_cols: int) -> None:
        if self.values.shape[1] != n_cols:
            raise self.error(
                f"{self.origin}: queries have {self.values.shape[1]} columns, tensor {shown(name)} has {n_cols}"
            )


def _given_queries(queries: str | os.PathLike[str] | ArrayLike, count: int) -> _Given:
    from_file = isinstance(queries, str | os.PathLike)
    origin = os.fspath(queries) if isinstance(queries, str | os.PathLike) else "queries"
    error = FormatError if from_file else ValueError
    array = _loaded(Path(origin)) if from_file else np.asarray(queries)
    if array.ndim != 2 or array.dtype.kind != "f" or not array.size:
        raise error(f"{origin}: queries must be floats of shape (n, n_cols), got {array.dtype} of shape {array.shape}")
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(array[_spaced(len(array), count)], np.float32)
    if not np.isfinite(values).all():
        at, column = np.argwhere(~np.isfinite(values))[0]
        row = _spaced(len(array), count)[at]
        raise NonFiniteError(
            f"{origin}: query {row} holds {array[row, column]} at column {column}, finite float32 only"
        )
    return _Given(origin, values, error)


def _loaded(path: Path) -> NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise FormatError(f"{path}: not an .npy file of numbers ({error})") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise FormatError(f"{path}: an archive of arrays; give one array, saved with numpy.save")
    return array


# ---- exact search ----


def exact_rows(rows: NDArray[np.float32], queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return the k rows of the largest float64 dot products with every query, int64 (n_queries, k).

    The best first, the lowest row among equals; k <= n_rows. Rows are widened a block at a time.
    """
    wide = queries.astype(np.float64)
    # A matrix product's sums differ in their last bits with a row's place: it chooses, `row_dots` decides.
    longest = float(np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64).max(initial=0.0)))
    slack = 4.0 * rows.shape[1] * 2.0**-53 * longest * np.linalg.norm(wide, axis=1)
    sure, parts = np.full((len(wide), k), -np.inf), []
    for start, stop in row_ranges(len(rows), 4 * rows.shape[1]):
        scores = wide @ rows[start:stop].astype(np.float64).T
        both = np.concatenate([sure, scores], axis=1)
        sure = np.partition(both, both.shape[1] - k, axis=1)[:, both.shape[1] - k :]
        which, at = np.nonzero(scores >= (sure.min(axis=1) - slack)[:, None])
        parts.append((which, at + start, scores[which, at]))
    which, found, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
    near = scores >= (sure.min(axis=1) - slack)[which]
    which, found = which[near], found[near]
    decided = _pair_dots(rows, found, queries, which)
    order = np.lexsort((found, -decided, which))
    starts = np.searchsorted(which[order], np.arange(len(wide)))
    best: RowNumbers = found[order[starts[:, None] + np.arange(k)]].astype(np.int64)
    return best


def _pair_dots(rows: Array32, found: NDArray[np.intp], queries: Array32, which: NDArray[np.intp]) -> Array64:
    dots = np.empty((len(found), 3))
    for start, stop in row_ranges(len(found), 4 * rows.shape[1]):
        _dot.row_dots(rows[found[start:stop]], queries[which[start:stop]], dots[start:stop])
    return dots[:, 0]


def best_rows(scores: NDArray[np.floating[Any]], k: int) -> NDArray[np.int64]:
    """Return the rows of the k largest scores, the best first, the lowest row among equals."""
    kth = np.partition(scores, len(scores) - k)[len(scores) - k]
    above = np.flatnonzero(scores > kth)
    above = above[np.argsort(-scores[above], kind="stable")]
    return np.concatenate([above, np.flatnonzero(scores == kth)[: k - len(above)]])


def _best_by_entry(values: Array32, twigs: NDArray[np.uint8], counts: RowNumbers, k: int) -> RowNumbers:
    """`best_rows(values[twigs], k)`, looking at the rows of the best entries alone; `counts` are rows by entry."""
    ranked = np.argsort(-values, kind="stable")
    last = ranked[np.searchsorted(np.cumsum(counts[ranked]), k)]
    near = np.flatnonzero((values >= values[last])[twigs])
    return near[best_rows(values[twigs[near]], k)]


# ---- ways of searching ----


class _Found(NamedTuple):
    rows: RowNumbers
    n_rescored: int = 0


@dataclass(frozen=True)
class _Way:
    """A way of searching: what finds the best rows of one query, and the bytes it goes through."""

    name: str
    find: Callable[[Array32], _Found]
    nbytes: int
    held: bool = False


@dataclass(frozen=True)
class _Case:
    """One tensor with its queries and what exact search finds for them."""

    pack: HhtldPack
    source: TensorSource
    name: str
    rows: Array32
    queries: Array32
    exact: RowNumbers

    @property
    def k(self) -> int:
        return len(self.exact[0])

    def measured(self, way: _Way) -> SearchResult:
        """Make every query alone, after one that is not counted."""
        way.find(self.queries[0])
        times, found = [], []
        for query in self.queries:
            started = time.perf_counter()
            found.append(way.find(query))
            times.append((time.perf_counter() - started) * 1e3)
        return self.result(way.name, found, times, way.nbytes, way.held)

    def result(
        self, name: str, found: Sequence[_Found], times: Sequence[float], nbytes: int, held: bool
    ) -> SearchResult:
        first = [len(own.rows) > 0 and own.rows[0] == best[0] for own, best in zip(found, self.exact, strict=True)]
        shared = [np.isin(best, own.rows).mean() for own, best in zip(found, self.exact, strict=True)]
        rescored = float(np.mean([own.n_rescored for own in found]))
        total = nbytes + round(rescored * self.source.infos()[self.name].row_nbytes)
        return SearchResult(name, held, float(np.mean(first)), float(np.mean(shared)), rescored, median(times), total)


def _probed(
    pack: HhtldPack, source: TensorSource, name: str, given: _Given | None, count: int, seed: int
) -> TensorProbe:
    own = SourceRows(source, name)
    rows = own.read(0, own.n_rows)
    _check_rows(pack, name, rows)
    queries = perturbed_rows(rows, count, seed) if given is None else given.values
    case = _Case(pack, source, name, rows, queries, exact_rows(rows, queries, min(BEST, len(rows))))
    with threadpool_limits(1):
        results: list[SearchResult | NotEncodable] = [case.measured(_dense(case))]
        lookup = _encoded(case, "lookup")
        f32 = _encoded(case, "f32")
        results += [
            way if isinstance(way, NotEncodable) else case.measured(way)
            for way in (*_lookup_ways(case, lookup), *_f32_ways(case, f32))
        ]
        cascade = None if isinstance(lookup, NotEncodable) else _cascade(case, lookup, results)
        results += [NotEncodable("lookup after cascade", _TOO_SMALL)] if cascade is None else [cascade.after]
        results += [case.measured(way) for way in _held_ways(case)]
    info = pack.info(name)
    return TensorProbe(name, info.info.shape, info.codec, len(queries), results, cascade)


def _dense(case: _Case) -> _Way:
    return _Way("dense float32, numpy", lambda query: _Found(best_rows(case.rows @ query, case.k)), case.rows.nbytes)


_TOO_SMALL = f"the lookup grades take matrices of at least {MIN_ROWS} rows and more than {MIN_NBYTES:,} bytes"


def _encoded(case: _Case, profile: str) -> HhtldPack | NotEncodable:
    """The file itself where it holds the tensor so, else an encoding of this tensor alone."""
    if case.pack.info(case.name).codec == Profile.parse(profile).codec:
        return case.pack
    made = encode({case.name: case.source.read_tensor(case.name)}, profile)
    return NotEncodable(profile, _TOO_SMALL) if made.info(case.name).codec == "keep" else made


def _section_nbytes(pack: HhtldPack, name: str, without: Sequence[str] = ()) -> int:
    """Bytes of a tensor's sections and its group's, except of some kinds."""
    record = pack.info(name)
    assert record.group is not None
    held = [*record.sections.items(), *pack.table.groups[record.group].sections.items()]
    return sum(pack.sections.nbytes(index) for kind, index in held if kind not in without)


def _by_scorer(case: _Case, pack: HhtldPack, name: str, levels: int = 2) -> _Way:
    scorer = pack.scorer(case.name, levels)
    without = ["fisher_z"] + (["slot_t_2", "slot_v_2", "codebook_2"] if levels == 1 else [])
    return _Way(
        name,
        lambda query: _Found(scorer.topk(query, case.k).rows),
        _section_nbytes(pack, case.name, without),
        pack is case.pack,
    )


def _rescored(case: _Case, name: str, levels: int = 2) -> _Way:
    scorer = case.pack.scorer(case.name, levels)

    def find(query: Array32) -> _Found:
        found = scorer.topk(query, case.k, rescore=case.source)
        return _Found(found.rows, int(found.n_rescored))

    return _Way(f"{name}, rescored", find, _by_scorer(case, case.pack, name, levels).nbytes, held=True)


def _lookup_name(tensor: HhtlDTensor) -> str:
    return "lookup, Slot D" if tensor.slot_l is None else "lookup, Slots D and L"


def _f32_name(tensor: HhtlF32Tensor) -> str:
    return "f32, twig" if tensor.slot_l is None else "f32, twig and L"


def _lookup_ways(case: _Case, pack: HhtldPack | NotEncodable) -> Iterator[_Way | NotEncodable]:
    table = "Base17 palette + Fisher z"
    if isinstance(pack, NotEncodable):
        yield NotEncodable(table, pack.reason)
        yield NotEncodable("lookup", pack.reason)
        return
    tensor = pack.get_encoded(case.name)
    assert isinstance(tensor, HhtlDTensor)
    yield _by_fisher_z(case, tensor, table, pack is case.pack)
    yield _by_scorer(case, pack, _lookup_name(tensor))


def _entry(tensor: HhtlDTensor, query: Array32) -> int:
    """The palette entry nearest to a query, as the design finds it."""
    return int(tensor.cache.nearest(Base17.fold(query[None]))[0][0])


def _by_fisher_z(case: _Case, tensor: HhtlDTensor, name: str, held: bool) -> _Way:
    """The query's nearest entry, and what the table says of that entry and every row's."""
    assert tensor.fisher_z is not None
    cosines = tensor.fisher_z.cosines(tensor.fisher_z.codes)
    k, twigs = tensor.cache.k, tensor.twigs
    counts = np.bincount(twigs, minlength=k)

    def find(query: Array32) -> _Found:
        return _Found(_best_by_entry(cosines[_entry(tensor, query)], twigs, counts, case.k))

    return _Way(name, find, tensor.entries.nbytes + BASE17_NBYTES * k + 8 + k, held)


def _f32_ways(case: _Case, pack: HhtldPack | NotEncodable) -> Iterator[_Way | NotEncodable]:
    table = "f32 palette + cosine table"
    if isinstance(pack, NotEncodable):
        yield NotEncodable(table, pack.reason)
        yield NotEncodable("f32", pack.reason)
        return
    tensor = pack.get_encoded(case.name)
    assert isinstance(tensor, HhtlF32Tensor)
    yield _by_cosine_table(case, tensor, table, pack is case.pack)
    yield _by_scorer(case, pack, _f32_name(tensor))


def _by_cosine_table(case: _Case, tensor: HhtlF32Tensor, name: str, held: bool) -> _Way:
    """The query's nearest entry by cosine, and that entry's cosine with every row's."""
    entries = tensor.palette_f32.astype(np.float64)
    lengths = np.linalg.norm(entries, axis=1, keepdims=True)
    unit = np.divide(entries, lengths, out=np.zeros_like(entries), where=lengths > 0)
    cosines, plain, twigs = (unit @ unit.T).astype(np.float32), unit.astype(np.float32), tensor.twigs
    counts = np.bincount(twigs, minlength=len(unit))

    def find(query: Array32) -> _Found:
        return _Found(_best_by_entry(cosines[int((plain @ query).argmax())], twigs, counts, case.k))

    return _Way(name, find, twigs.nbytes + tensor.palette_bits.nbytes + cosines[0].nbytes, held)


def _held_ways(case: _Case) -> Iterator[_Way]:
    """The tensor as the file holds it; lookup grades are measured without rescoring before."""
    tensor = case.pack.get_encoded(case.name)
    if not isinstance(tensor, HhtlTTensor):
        yield _rescored(case, _lookup_name(tensor) if isinstance(tensor, HhtlDTensor) else _f32_name(tensor))
        return
    two = tensor.shared.second is not None
    for levels, name in ((1, "Slot T, level 1"), (2, "Slot T, both levels")) if two else ((2, "Slot T"),):
        yield _by_scorer(case, case.pack, name, levels)
        yield _rescored(case, name, levels)


# ---- the cascade ----


def _cascade(case: _Case, pack: HhtldPack, results: Sequence[SearchResult | NotEncodable]) -> CascadeProbe:
    scorer = pack.scorer(case.name)
    tensor = scorer.tensor
    assert isinstance(tensor, HhtlDTensor)
    cascades = [scorer.cascade(query) for query in case.queries]
    routing = case.measured(_Way("routing", lambda query: _Found(np.array([_entry(tensor, query)])), 0)).milliseconds
    shared: Counter[RouteAction] = Counter()
    for one in cascades:
        shared.update(one.counts)
    routed = scorer.n_rows * len(cascades)
    found, times = _after_cascade(case, tensor, [one.entry for one in cascades])
    row_nbytes = ENTRY_DTYPE.itemsize + (0 if tensor.slot_l is None else SLOT_L_LANES)
    saved = round(shared[RouteAction.SKIP] / len(cascades) * row_nbytes)
    nbytes, held = _section_nbytes(pack, case.name, ["fisher_z"]) - saved, pack is case.pack
    return CascadeProbe(
        {action.name: shared[action] / routed for action in RouteAction},
        float(np.mean([one.skipped[best[0]] for one, best in zip(cascades, case.exact, strict=True)])),
        routing,
        case.result("lookup after cascade", found, times, nbytes, held),
        next(r for r in results if isinstance(r, SearchResult) and r.name.startswith("lookup, Slot")),
    )


def _after_cascade(case: _Case, tensor: HhtlDTensor, entries: Sequence[int]) -> tuple[list[_Found], list[float]]:
    """Search what an entry's routes leave; only routing and searching are timed, not laying those rows out."""
    found, times = [_Found(np.empty(0, np.int64))] * len(entries), [0.0] * len(entries)
    for entry in dict.fromkeys(entries):
        left = np.flatnonzero(tensor.cache.routes[entry][tensor.twigs] != RouteAction.SKIP)
        scorer = Scorer(_rows_of(tensor, left)) if len(left) else None
        own = [number for number, other in enumerate(entries) if other == entry]
        for number in (own[0], *own):  # the first of an entry is made twice, and counted once
            started = time.perf_counter()
            _entry(tensor, case.queries[number])
            if scorer is not None:
                best = scorer.topk(case.queries[number], min(case.k, len(left))).rows
                found[number] = _Found(left[best])
            times[number] = (time.perf_counter() - started) * 1e3
    return found, times


def _rows_of(tensor: HhtlDTensor, rows: NDArray[np.intp]) -> HhtlDTensor:
    shape = (len(rows), tensor.original_shape[1])
    slot_l = None if tensor.slot_l is None else tensor.slot_l[rows]
    return replace(tensor, entries=tensor.entries[rows], original_shape=shape, slot_l=slot_l)


# ---- printing ----


def _percent(share: float) -> str:
    """A share, rounded down: 100 % is all."""
    return f"{math.floor(share * 1000 + 1e-9) / 10:.1f} %"


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.3f}" if milliseconds < 1 else f"{milliseconds:.2f}"


def _cost(result: SearchResult) -> str:
    return f"{_ms(result.milliseconds)} ms and {human_nbytes(result.nbytes)}"


def print_probe(report: ProbeReport, out: Console) -> None:
    """Print a table, what the routes do and a summary for every tensor."""
    for tensor in report.tensors:
        name = safe(tensor.name).plain
        title = f"{name}, {shape_text(tensor.shape)}; {tensor.n_queries} queries: {safe(report.queries).plain}"
        print_titled(title, _result_table(tensor, out.width), out)
        if tensor.cascade is not None:
            routes = ", ".join(f"{name} {_percent(share)}" for name, share in tensor.cascade.routes.items())
            out.print(Text(f"Rows by route: {routes}. {tensor.cascade.verdict}"))
        for reason in dict.fromkeys(r.reason for r in tensor.results if isinstance(r, NotEncodable)):
            out.print(Text(f"Not encodable: {reason}."))
        out.print(Text(tensor.summary))


def _result_table(tensor: TensorProbe, width: int) -> Any:
    headings = ("search", ">top-1", ">top-5", ">rows rescored", ">ms a query", ">bytes a query", "verdict")
    table = fitting_table(
        headings, [_cells(result) for result in tensor.results], ("rows rescored", "bytes a query"), width
    )
    note = Text("* what the file holds; the rest is encoded from SRC for the comparison")
    table.caption = note if table.caption is None else Text(f"{note}\n{table.caption}")
    table.caption_justify = "left"
    return table


def _cells(result: SearchResult | NotEncodable) -> tuple[str, ...]:
    if isinstance(result, NotEncodable):
        return (result.name, "", "", "", "", "", "not encodable")
    return (
        result.name + (" *" if result.held else ""),
        _percent(result.top1),
        _percent(result.top5),
        f"{result.rows_rescored:,.1f}" if result.rows_rescored else "",
        _ms(result.milliseconds),
        human_nbytes(result.nbytes),
        "yardstick" if result.name.startswith("dense") else result.verdict,
    )
