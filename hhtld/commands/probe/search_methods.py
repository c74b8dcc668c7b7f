"""The ways of searching one tensor that `hhtld probe` measures: what each finds, costs and reads.

Ways whose encoding the file does not hold are measured on one made of the source's tensor alone, in memory, as
`encode` makes it. Bytes are those of the sections that a query goes through, as a file holds them, and of the
source's rows that it reads.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from hhtld.codecs.tensors import HhtlDTensor, HhtlF32Tensor
from hhtld.codecs.trellis_tensor import HhtlTTensor
from hhtld.commands.probe.report import CascadeProbe, NotEncodable, SearchResult
from hhtld.encoding.encoder import encode
from hhtld.encoding.plan import Profile
from hhtld.pack.pack import HhtldPack
from hhtld.roles import MIN_NBYTES, MIN_ROWS
from hhtld.search.scorer import Scorer
from hhtld.slots.base17 import BASE17_NBYTES, Base17
from hhtld.slots.entries import ENTRY_DTYPE, SLOT_L_LANES
from hhtld.slots.palette import RouteAction
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
    times, found = [], []
    for query in case.queries:
        started = time.perf_counter()
        found.append(method.find(query))
        times.append((time.perf_counter() - started) * 1e3)
    return _result(case, method.name, found, times, method.nbytes, method.held)


def _result(
    case: SearchCase, name: str, found: Sequence[_Found], times: Sequence[float], nbytes: int, held: bool
) -> SearchResult:
    first = [len(own.rows) > 0 and own.rows[0] == best[0] for own, best in zip(found, case.exact, strict=True)]
    shared = [np.isin(best, own.rows).mean() for own, best in zip(found, case.exact, strict=True)]
    rescored = float(np.mean([own.n_rescored for own in found]))
    total = nbytes + round(rescored * case.source.infos()[case.name].row_nbytes)
    return SearchResult(name, held, float(np.mean(first)), float(np.mean(shared)), rescored, median(times), total)


# ---- the methods ----


def _dense(case: SearchCase) -> _Method:
    return _Method("dense float32, numpy", lambda query: _Found(best_rows(case.rows @ query, case.k)), case.rows.nbytes)


def _encoded(case: SearchCase, profile: str) -> HhtldPack | NotEncodable:
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
        found = scorer.topk(query, case.k, rescore=case.source)
        return _Found(found.rows, int(found.n_rescored))

    return _Method(f"{name}, rescored", find, _by_scorer(case, case.pack, name, levels).nbytes, held=True)


def _slots_name(tensor: HhtlDTensor | HhtlF32Tensor) -> str:
    if isinstance(tensor, HhtlDTensor):
        return "lookup, Slot D" if tensor.slot_l is None else "lookup, Slots D and L"
    return "f32, twig" if tensor.slot_l is None else "f32, twig and L"


def _grade_methods(case: SearchCase, profile: str, pack: HhtldPack | NotEncodable) -> Iterator[_Method | NotEncodable]:
    """A lookup grade's palette and table alone, then its slots."""
    if isinstance(pack, NotEncodable):
        yield from (NotEncodable(name, pack.reason) for name in (_TABLES[profile], profile))
        return
    tensor = pack.get_encoded(case.name)
    assert not isinstance(tensor, HhtlTTensor)
    held = pack is case.pack
    yield _by_fisher_z(case, tensor, held) if isinstance(tensor, HhtlDTensor) else _by_cosine_table(case, tensor, held)
    yield _by_scorer(case, pack, _slots_name(tensor))


def _entry(tensor: HhtlDTensor, query: Array32) -> int:
    """The palette entry nearest to a query, as the design finds it."""
    return int(tensor.cache.nearest(Base17.fold(query[None]))[0][0])


def _by_fisher_z(case: SearchCase, tensor: HhtlDTensor, held: bool) -> _Method:
    """The query's nearest entry, and what the table says of that entry and every row's."""
    assert tensor.fisher_z is not None
    cosines, k = tensor.fisher_z.cosines(tensor.fisher_z.codes), tensor.cache.k
    find = _by_entry(case, cosines, tensor.twigs, lambda query: _entry(tensor, query))
    return _Method(_TABLES["lookup"], find, tensor.entries.nbytes + BASE17_NBYTES * k + 8 + k, held)


def _by_cosine_table(case: SearchCase, tensor: HhtlF32Tensor, held: bool) -> _Method:
    """The query's nearest entry by cosine, and that entry's cosine with every row's."""
    entries = tensor.palette_f32.astype(np.float64)
    lengths = np.linalg.norm(entries, axis=1, keepdims=True)
    unit = np.divide(entries, lengths, out=np.zeros_like(entries), where=lengths > 0)
    cosines, plain, twigs = (unit @ unit.T).astype(np.float32), unit.astype(np.float32), tensor.twigs
    find = _by_entry(case, cosines, twigs, lambda query: int((plain @ query).argmax()))
    return _Method(_TABLES["f32"], find, twigs.nbytes + tensor.palette_bits.nbytes + cosines[0].nbytes, held)


def _by_entry(
    case: SearchCase, cosines: Array32, twigs: NDArray[np.uint8], nearest: Callable[[Array32], int]
) -> Callable[[Array32], _Found]:
    """Ranking rows by what a table says of a query's nearest entry and theirs."""
    counts = np.bincount(twigs, minlength=len(cosines))
    return lambda query: _Found(_best_by_entry(cosines[nearest(query)], twigs, counts, case.k))


def _held_methods(case: SearchCase) -> Iterator[_Method]:
    """The tensor as the file holds it; lookup grades are measured without rescoring before."""
    tensor = case.pack.get_encoded(case.name)
    if not isinstance(tensor, HhtlTTensor):
        yield _rescored(case, _slots_name(tensor))
        return
    two = tensor.shared.second is not None
    for levels, name in ((1, "Slot T, level 1"), (2, "Slot T, both levels")) if two else ((2, "Slot T"),):
        yield _by_scorer(case, case.pack, name, levels)
        yield _rescored(case, name, levels)


# ---- the cascade ----


def _cascade(case: SearchCase, pack: HhtldPack, results: Sequence[SearchResult | NotEncodable]) -> CascadeProbe:
    scorer = pack.scorer(case.name)
    tensor = scorer.tensor
    assert isinstance(tensor, HhtlDTensor)
    cascades = [scorer.cascade(query) for query in case.queries]
    route = _Method("routing", lambda query: _Found(np.array([_entry(tensor, query)])), 0)
    routing = _measured(case, route).milliseconds
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
        _result(case, "lookup after cascade", found, times, nbytes, held),
        next(r for r in results if isinstance(r, SearchResult) and r.name.startswith("lookup, Slot")),
    )


def _after_cascade(case: SearchCase, tensor: HhtlDTensor, entries: Sequence[int]) -> tuple[list[_Found], list[float]]:
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
