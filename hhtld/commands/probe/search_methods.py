"""The ways of searching one tensor that `hhtld probe` measures: what each finds, costs and reads.

Ways whose encoding the file does not hold are measured on one made of the source's tensor alone, in memory, as
`encode` makes it. Bytes are those of the sections that a query goes through, as a file holds them, and of the
source's rows that it reads.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from hhtld.api.encode import encode
from hhtld.codecs import parse_profile
from hhtld.codecs.tensor_view import TensorView
from hhtld.commands.probe.report import CascadeProbe, NotEncodable, SearchResult
from hhtld.identity import BASE17_NBYTES, ENTRY_NBYTES, MIN_NBYTES, MIN_ROWS, SLOT_L_LANES
from hhtld.pack.pack import HhtldPack
from hhtld.search.scorer import Scorer
from hhtld.slots.base17 import Base17
from hhtld.slots.palette import HhtlCache, RouteAction
from hhtld.sources.contract import TensorSource

__all__ = ["SearchCase", "best_rows", "measured_methods"]

Array32 = NDArray[np.float32]
RowNumbers = NDArray[np.int64]

_TABLES = {"lookup": "Base17 palette + Fisher z", "f32": "f32 palette + cosine table"}
_TOO_SMALL = f"the lookup grades take matrices of at least {MIN_ROWS} rows and more than {MIN_NBYTES:,} bytes"


class _Found(NamedTuple):
    rows: RowNumbers
    n_rescored: int = 0


@dataclass(frozen=True)
class _Method:
    """A way of searching: what finds the best rows of one query, and the bytes it goes through."""

    name: str
    find: Callable[[Array32], _Found]
    nbytes: int
    held: bool = False


@dataclass(frozen=True)
class SearchCase:
    """One tensor with its queries and what exact search finds for them.

    Attributes
    ----------
    pack, source : HhtldPack and TensorSource
        The file, and what it was made from.
    name : str
    rows : ndarray of float32, shape (n_rows, n_cols)
        The source's.
    queries : ndarray of float32, shape (n_queries, n_cols)
    exact : ndarray of int64, shape (n_queries, k)
        The best rows of every query, the best first.
    """

    pack: HhtldPack
    source: TensorSource
    name: str
    rows: Array32
    queries: Array32
    exact: RowNumbers

    @property
    def k(self) -> int:
        """Rows to find for a query."""
        return len(self.exact[0])


def measured_methods(case: SearchCase) -> tuple[list[SearchResult | NotEncodable], CascadeProbe | None]:
    """Return what every way finds and costs on one thread, dense float32 first, and what the cascade does."""
    with threadpool_limits(1):
        results: list[SearchResult | NotEncodable] = [_measured(case, _dense(case))]
        grades = {profile: _encoded(case, profile) for profile in _TABLES}
        made = [method for profile, pack in grades.items() for method in _grade_methods(case, profile, pack)]
        results += [one if isinstance(one, NotEncodable) else _measured(case, one) for one in made]
        lookup = grades["lookup"]
        cascade = None if isinstance(lookup, NotEncodable) else _cascade(case, lookup, results)
        results += [NotEncodable("lookup after cascade", _TOO_SMALL)] if cascade is None else [cascade.after]
        results += [_measured(case, method) for method in _held_methods(case)]
    return results, cascade


def _measured(case: SearchCase, method: _Method) -> SearchResult:
    """Make every query alone, after one that is not counted."""
    method.find(case.queries[0])
    times, answers = [], []
    for query in case.queries:
        started = time.perf_counter()
        answers.append(method.find(query))
        times.append((time.perf_counter() - started) * 1e3)
    return _result(case, method.name, answers, times, method.nbytes, method.held)


def _result(
    case: SearchCase, name: str, answers: Sequence[_Found], times: Sequence[float], nbytes: int, held: bool
) -> SearchResult:
    first = [
        len(answer.rows) > 0 and answer.rows[0] == best[0] for answer, best in zip(answers, case.exact, strict=True)
    ]
    shared = [np.isin(best, answer.rows).mean() for answer, best in zip(answers, case.exact, strict=True)]
    rescored = float(np.mean([answer.n_rescored for answer in answers]))
    total = nbytes + round(rescored * case.source.infos()[case.name].row_nbytes)
    return SearchResult(name, held, float(np.mean(first)), float(np.mean(shared)), rescored, median(times), total)


# ---- the methods ----


def _dense(case: SearchCase) -> _Method:
    return _Method("dense float32, numpy", lambda query: _Found(best_rows(case.rows @ query, case.k)), case.rows.nbytes)


def _encoded(case: SearchCase, profile: str) -> HhtldPack | NotEncodable:
    """The file itself if it holds the tensor so, else an encoding of this tensor alone."""
    if case.pack.info(case.name).codec == parse_profile(profile).codec.id:
        return case.pack
    made = encode({case.name: case.source.read_tensor(case.name)}, profile)
    return made if made.info(case.name).is_encoded else NotEncodable(profile, _TOO_SMALL)


def _section_nbytes(pack: HhtldPack, name: str, without: Sequence[str] = ()) -> int:
    """Bytes of a tensor's sections and its group's, except of some kinds."""
    record = pack.info(name)
    assert record.group is not None
    sections = [*record.sections.items(), *pack.table.groups[record.group].sections.items()]
    return sum(pack.sections.nbytes(index) for kind, index in sections if kind not in without)


def _by_scorer(case: SearchCase, pack: HhtldPack, name: str, levels: int = 2) -> _Method:
    scorer = pack.scorer(case.name, levels)
    without = ["fisher_z"] + (["slot_t_2", "slot_v_2", "codebook_2"] if levels == 1 else [])
    return _Method(
        name,
        lambda query: _Found(scorer.topk(query, case.k).rows),
        _section_nbytes(pack, case.name, without),
        pack is case.pack,
    )


def _rescored(case: SearchCase, name: str, levels: int = 2) -> _Method:
    scorer = case.pack.scorer(case.name, levels)

    def find(query: Array32) -> _Found:
        answer = scorer.topk(query, case.k, rescore=case.source)
        return _Found(answer.rows, int(answer.n_rescored))

    return _Method(f"{name}, rescored", find, _by_scorer(case, case.pack, name, levels).nbytes, held=True)


def _slots_name(view: TensorView) -> str:
    if view.slot_d is not None:
        return "lookup, Slot D" if view.slot_l is None else "lookup, Slots D and L"
    if view.palette is not None:
        return "f32, twig" if view.slot_l is None else "f32, twig and L"
    return "rows"


def _grade_methods(case: SearchCase, profile: str, pack: HhtldPack | NotEncodable) -> Iterator[_Method | NotEncodable]:
    """A lookup grade's palette and table alone, then its slots."""
    if isinstance(pack, NotEncodable):
        yield from (NotEncodable(name, pack.reason) for name in (_TABLES[profile], profile))
        return
    view, held = pack.get_encoded(case.name).view(), pack is case.pack
    yield _by_cosine_table(case, view, held) if view.cache is None else _by_fisher_z(case, view, view.cache, held)
    yield _by_scorer(case, pack, _slots_name(view))


def _entry(cache: HhtlCache, query: Array32) -> int:
    """The palette entry nearest to a query, as the design finds it."""
    return int(cache.nearest(Base17.fold(query[None]))[0][0])


def _by_fisher_z(case: SearchCase, view: TensorView, cache: HhtlCache, held: bool) -> _Method:
    """The query's nearest entry, and what the table says of that entry and every row's."""
    assert view.fisher_z is not None
    assert view.twigs is not None
    cosines, k = view.fisher_z.cosines(view.fisher_z.codes), cache.k
    find = _by_entry(case, cosines, view.twigs, lambda query: _entry(cache, query))
    entries_nbytes = len(view.twigs) * ENTRY_NBYTES
    return _Method(_TABLES["lookup"], find, entries_nbytes + BASE17_NBYTES * k + 8 + k, held)


def _by_cosine_table(case: SearchCase, view: TensorView, held: bool) -> _Method:
    """The query's nearest entry by cosine, and that entry's cosine with every row's."""
    assert view.palette is not None
    assert view.twigs is not None
    entries = view.palette.astype(np.float64)
    lengths = np.linalg.norm(entries, axis=1, keepdims=True)
    unit = np.divide(entries, lengths, out=np.zeros_like(entries), where=lengths > 0)
    cosines, plain, twigs = (unit @ unit.T).astype(np.float32), unit.astype(np.float32), view.twigs
    find = _by_entry(case, cosines, twigs, lambda query: int((plain @ query).argmax()))
    return _Method(_TABLES["f32"], find, twigs.nbytes + view.palette.nbytes // 2 + cosines[0].nbytes, held)


def _by_entry(
    case: SearchCase, cosines: Array32, twigs: NDArray[np.uint8], nearest: Callable[[Array32], int]
) -> Callable[[Array32], _Found]:
    """Ranking rows by what a table says of a query's nearest entry and theirs."""
    counts = np.bincount(twigs, minlength=len(cosines))
    return lambda query: _Found(_best_by_entry(cosines[nearest(query)], twigs, counts, case.k))


def _held_methods(case: SearchCase) -> Iterator[_Method]:
    """The tensor as the file holds it; lookup grades are measured without rescoring before."""
    view = case.pack.get_encoded(case.name).view()
    if not view.trellises:
        yield _rescored(case, _slots_name(view))
        return
    two = len(view.trellises) == 2
    for levels, name in ((1, "Slot T, level 1"), (2, "Slot T, both levels")) if two else ((2, "Slot T"),):
        yield _by_scorer(case, case.pack, name, levels)
        yield _rescored(case, name, levels)


# ---- the cascade ----


def _cascade(case: SearchCase, pack: HhtldPack, results: Sequence[SearchResult | NotEncodable]) -> CascadeProbe:
    scorer = pack.scorer(case.name)
    view = scorer.tensor.view()
    assert view.cache is not None
    cache = view.cache
    cascades = [scorer.cascade(query) for query in case.queries]
    route = _Method("routing", lambda query: _Found(np.array([_entry(cache, query)])), 0)
    routing = _measured(case, route).milliseconds
    shared: Counter[RouteAction] = Counter()
    for one in cascades:
        shared.update(one.counts)
    routed = scorer.n_rows * len(cascades)
    answers, times = _after_cascade(case, pack, cache, [one.entry for one in cascades])
    row_nbytes = ENTRY_NBYTES + (0 if view.slot_l is None else SLOT_L_LANES)
    saved = round(shared[RouteAction.SKIP] / len(cascades) * row_nbytes)
    nbytes, held = _section_nbytes(pack, case.name, ["fisher_z"]) - saved, pack is case.pack
    return CascadeProbe(
        {action.name: shared[action] / routed for action in RouteAction},
        float(np.mean([one.skipped[best[0]] for one, best in zip(cascades, case.exact, strict=True)])),
        routing,
        _result(case, "lookup after cascade", answers, times, nbytes, held),
        next(r for r in results if isinstance(r, SearchResult) and r.name.startswith("lookup, Slot")),
    )


def _after_cascade(
    case: SearchCase, pack: HhtldPack, cache: HhtlCache, entries: Sequence[int]
) -> tuple[list[_Found], list[float]]:
    """Search what an entry's routes leave; only routing and searching are timed, not laying those rows out."""
    twigs = pack.get_encoded(case.name).view().twigs
    assert twigs is not None
    answers, times = [_Found(np.empty(0, np.int64))] * len(entries), [0.0] * len(entries)
    for entry in dict.fromkeys(entries):
        left = np.flatnonzero(cache.routes[entry][twigs] != RouteAction.SKIP)
        scorer = Scorer(pack.get_encoded(case.name, left)) if len(left) else None
        query_numbers = [number for number, other in enumerate(entries) if other == entry]
        for number in (query_numbers[0], *query_numbers):  # the first of an entry is made twice, and counted once
            started = time.perf_counter()
            _entry(cache, case.queries[number])
            if scorer is not None:
                best = scorer.topk(case.queries[number], min(case.k, len(left))).rows
                answers[number] = _Found(left[best])
            times[number] = (time.perf_counter() - started) * 1e3
    return answers, times


# ---- ranking ----


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
