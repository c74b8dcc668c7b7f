"""Searching rows without decoding them: exact over the decoded matrix, probable over the source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

import hhtld
from hhtld import slots
from hhtld._kernels import _dot, _isa
from hhtld.codecs.palette import HhtlF32Tensor
from hhtld.codecs.trellis import HhtlTTensor
from hhtld.cosines import summarize
from hhtld.dtypes import bf16_bits
from hhtld.errors import NonFiniteError
from hhtld.formats import open_source
from hhtld.pack.pack import HhtldPack
from hhtld.search.bounds import probable_bounds
from hhtld.search.queries import Queries
from hhtld.search.scorer import Scorer
from hhtld.slots.palette import RouteAction
from hhtld.slots.slot_l import SvdBasis
from hhtld.sources.contract import ArraySource
from hhtld.sources.rows import ArrayRows
from tests.conftest import low_rank, ranked

NAME = "model.embed_tokens.weight"
PROFILES = ("lookup", "f32", "gates", "bits:1", "bits:2", "bits:3.5", "bits:2+1")


def made(rows: NDArray[np.float32], profile: str, **options: Any) -> HhtldPack:
    return hhtld.encode({NAME: rows}, profile, **options)


def perturbed(rows: NDArray[np.float32], count: int, noise: float = 0.05, seed: int = 0) -> NDArray[np.float32]:
    """Rows moved by `noise` times their length."""
    rng = np.random.default_rng(seed)
    picked = rows[rng.integers(0, len(rows), count)]
    away = rng.standard_normal(picked.shape).astype(np.float32)
    away *= np.linalg.norm(picked, axis=1, keepdims=True) / np.linalg.norm(away, axis=1, keepdims=True)
    return picked + np.float32(noise) * away


def exact(decoded: NDArray[np.float32], queries: NDArray[np.float32]) -> NDArray[np.float64]:
    """Scores as the scorer defines them: products exact, summed over 16 lanes in float64."""
    scores = np.empty((len(queries), len(decoded)))
    dots = np.empty((len(decoded), 3))
    for q, query in enumerate(queries):
        _dot.row_dots(decoded, np.tile(query, (len(decoded), 1)), dots)
        scores[q] = dots[:, 0]
    return scores


def check_best(pack: HhtldPack, queries: NDArray[np.float32], k: int) -> None:
    """The best rows are those of the decoded matrix."""
    scores = exact(pack.get_tensor(NAME), queries)
    np.testing.assert_array_equal(pack.scorer(NAME).topk(queries, k).rows, ranked(scores, k))


def test_a_basis_may_have_fewer_vectors_than_lanes() -> None:
    # Found by fuzzing: five columns give a basis of five.
    rows = low_rank(700, 5)
    tensor = HhtlF32Tensor.encode_with_leaf("q", rows, 256, SvdBasis.build(rows))
    scores = exact(tensor.reconstruct_rows(), rows[:20])
    np.testing.assert_array_equal(Scorer(tensor).topk(rows[:20], 3).rows, ranked(scores, 3))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("shape", [(1500, 96), (700, 17), (4300, 48)], ids=["1500x96", "700x17", "4300x48"])
def test_the_best_are_those_of_the_decoded_matrix(profile: str, shape: tuple[int, int]) -> None:
    rows = low_rank(*shape)
    pack = made(rows, profile)
    for levels in (1, 2):
        scorer = pack.scorer(NAME, levels)
        decoded = pack.get_tensor(NAME, levels=levels)
        random = np.random.default_rng(1).standard_normal((9, shape[1])).astype(np.float32)
        queries = np.concatenate([perturbed(rows, 60), random, np.zeros((1, shape[1]), np.float32), -rows[:3]])
        scores = exact(decoded, queries)
        np.testing.assert_array_equal(scorer.argmax(queries), scores.argmax(axis=1))
        for k in (1, 5, 40):
            found = scorer.topk(queries, k)
            np.testing.assert_array_equal(found.rows, ranked(scores, k))
            np.testing.assert_array_equal(found.scores, np.take_along_axis(scores, found.rows, axis=1))
            assert (found.n_rescored >= k).all()
        one = scorer.topk(queries[7], 5)
        np.testing.assert_array_equal(one.rows, ranked(scores, 5)[7])
        assert one.rows.shape == one.scores.shape == (5,)
        assert scorer.argmax(queries[7]) == scores[7].argmax()
        close = np.linalg.norm(decoded.astype(np.float64), axis=1) * np.linalg.norm(queries, axis=1)[:, None] / 1000
        assert (np.abs(scorer.scores(queries) - scores) <= close + 1e-30).all()
        assert scorer.scores(queries[0]).shape == (shape[0],)


@pytest.mark.parametrize("isa", _isa.available_tiers())
def test_every_tier_finds_the_same(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = low_rank(2000, 100)
    for profile in ("bits:2", "lookup"):
        pack = made(rows, profile)
        expected = pack.scorer(NAME).topk(perturbed(rows, 20), 10)
        with monkeypatch.context() as patch:
            _isa_only(patch, isa)
            found = pack.scorer(NAME).topk(perturbed(rows, 20), 10)
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_array_equal(one, other)


def _isa_only(patch: pytest.MonkeyPatch, isa: str) -> None:
    """Run the search's kernels on one tier."""
    import functools

    from hhtld._kernels import _score, _screen
    from hhtld.search import candidates, estimates

    class Score:
        MAX_COLS = _score.MAX_COLS
        trellis_scores = staticmethod(functools.partial(_score.trellis_scores, isa=isa))
        trellis_energies = staticmethod(functools.partial(_score.trellis_energies, isa=isa))

    class Screen:
        estimate = staticmethod(functools.partial(_screen.estimate, isa=isa))
        collect = staticmethod(functools.partial(_screen.collect, isa=isa))

    patch.setattr(estimates, "_score", Score)
    patch.setattr(estimates, "_screen", Screen)
    patch.setattr(candidates, "_screen", Screen)


def test_among_equals_the_lowest_row_wins() -> None:
    distinct = low_rank(40, 64)
    rows = np.tile(distinct, (30, 1))  # every row thirty times
    for profile in PROFILES:
        scorer = made(rows, profile).scorer(NAME)
        found = scorer.topk(distinct * 3, 4)
        np.testing.assert_array_equal(np.diff(found.rows[:, :4]) % 40, 0)
        assert (found.rows[:, 0] < 40).all()
        assert (np.diff(found.rows) > 0).all()


@given(
    st.integers(1, 60), st.integers(1, 40), st.integers(1, 90), st.integers(0, 2**32 - 1), st.sampled_from([16, 29, 48])
)
def test_any_rows_queries_and_k(n_rows: int, k: int, n_cols: int, seed: int, rate: int) -> None:
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.integers(-30, 30)
    rows = (scale * rng.standard_normal((n_rows, n_cols)) * 10.0 ** rng.integers(-6, 6, (n_rows, 1))).astype(np.float32)
    queries = (10.0 ** rng.integers(-30, 6) * rng.standard_normal((3, n_cols))).astype(np.float32)
    pack = made(rows, f"bits:{rate / 16}")
    if pack.info(NAME).codec == "keep":
        return
    check_best(pack, queries, min(k, n_rows))


@pytest.mark.parametrize("size", [1e-45, 1e-43, 1e-40])
def test_gains_that_lost_digits_as_in_older_files_are_searched_exactly(size: float) -> None:
    tensor = made(low_rank(600, 64), "bits:3").get_encoded(NAME)
    assert isinstance(tensor, HhtlTTensor)
    gains = slots.gain_values(tensor.slot_v).astype(np.float64) * size
    tensor = replace(tensor, slot_v=bf16_bits((64 * gains).astype(np.float32)))
    queries = perturbed(low_rank(600, 64), 5)
    expected = ranked(exact(tensor.reconstruct_rows(), queries), 3)
    assert np.array_equal(Scorer(tensor).topk(queries, 3).rows, expected)


@pytest.mark.parametrize("size", [1e-36, 1e-20, 1e18])
def test_rows_and_queries_of_any_size(size: float) -> None:
    rows = (low_rank(600, 64).astype(np.float64) * size).astype(np.float32)
    pack = made(rows, "bits:3")
    assert pack.info(NAME).codec == "hhtl_t"
    for scale in (1e-30, 1.0, 1e18):
        queries = (perturbed(low_rank(600, 64), 5) * np.float32(scale)).astype(np.float32)
        check_best(pack, queries, 3)


@pytest.mark.parametrize("size", [1e-37, 3e-39, 1e-40, 1e-42, 1e-45])
def test_kept_rows_below_the_smallest_normal_number_are_searched_exactly(size: float) -> None:
    rows = (np.random.default_rng(5).standard_normal((40, 3)) * size).astype(np.float32)
    pack = hhtld.encode({NAME: rows}, "lookup")
    assert pack.info(NAME).codec == "keep"
    queries = np.random.default_rng(6).standard_normal((20, 3)).astype(np.float32)
    check_best(pack, queries, 3)
    expected = exact(rows, queries)
    np.testing.assert_allclose(pack.scorer(NAME).scores(queries), expected, rtol=1e-5, atol=1e-45)


def huge_gains(tensor: HhtlTTensor) -> HhtlTTensor:
    gains = tensor.slot_v.copy()
    gains[5] = gains[9] = 0x7F7F
    return replace(tensor, slot_v=gains)


def tiny_scale(tensor: HhtlTTensor) -> HhtlTTensor:
    scale = np.full(tensor.original_shape[1], 0x3F80, np.uint16)
    scale[3] = 1
    return replace(tensor, column_scale=scale)


@pytest.mark.parametrize(
    "made_to",
    [
        lambda rows: huge_gains(made(rows, "bits:2").get_encoded(NAME)),
        lambda rows: tiny_scale(made(rows, "bits:2").get_encoded(NAME)),
        lambda rows: replace(made(rows, "lookup").get_encoded(NAME), slot_l_scale=3e38),
    ],
    ids=["gains", "column scale", "Slot L"],
)
def test_rows_that_do_not_decode_to_finite_numbers_are_refused_by_name(made_to: Callable[[Any], Any]) -> None:
    tensor = made_to(low_rank(600, 64))
    finite = np.isfinite(tensor.reconstruct_rows()).all(axis=1)
    with pytest.raises(NonFiniteError, match=f"row {int((~finite).argmax())} of tensor 'head' holds a value"):
        Scorer(tensor, name="head")


def test_large_rows_that_stay_finite_are_searched() -> None:
    rows = (low_rank(600, 64).astype(np.float64) * 1e36).astype(np.float32)
    pack = made(rows, "bits:3")
    assert pack.info(NAME).codec == "hhtl_t"
    check_best(pack, perturbed(low_rank(600, 64), 5), 3)


def test_column_scales_and_queries_that_hit_one_column() -> None:
    rows = low_rank(900, 128)
    scales = np.exp(np.random.default_rng(2).standard_normal(128)).astype(np.float32)
    pack = made(rows, "bits:2", column_scales={NAME: scales})
    queries = np.concatenate([perturbed(rows, 30), np.eye(128, dtype=np.float32)[:30] * 100])
    check_best(pack, queries, 7)


def test_a_batch_gives_what_its_queries_give() -> None:
    rows = low_rank(3000, 96)
    scorer = made(rows, "bits:2").scorer(NAME)
    queries = perturbed(rows, 150)  # more than are searched at once
    together = scorer.topk(queries, 3)
    for q in (0, 63, 64, 149):
        alone = scorer.topk(queries[q], 3)
        np.testing.assert_array_equal(together.rows[q], alone.rows)
        np.testing.assert_array_equal(together.scores[q], alone.scores)
    empty = scorer.topk(queries[:0], 3)
    assert empty.rows.shape == (0, 3)
    assert scorer.scores(queries[:0]).shape == (0, 3000)


@pytest.mark.parametrize("profile", ["bits:1.5", "bits:2", "gates", "bits:2+1"])
def test_rescoring_finds_the_sources_best(profile: str) -> None:
    rng = np.random.default_rng(4)
    rows = rng.standard_normal((4000, 192)).astype(np.float32) * np.exp(0.3 * rng.standard_normal((4000, 1))).astype(
        "f4"
    )
    pack = made(rows, profile)
    queries = (perturbed(rows, 150, 1.5) + 0.1).astype(np.float32)
    scores = exact(rows, queries)
    for levels in (1, 2):
        found = pack.scorer(NAME, levels).topk(queries, 3, rescore=rows)
        assert (found.rows == ranked(scores, 3)).mean() > 0.995
        np.testing.assert_array_equal(found.scores, np.take_along_axis(scores, found.rows, axis=1))
        assert found.n_rescored.mean() < 300
        assert (found.n_rescored >= 3).all()
    every = pack.scorer(NAME).topk(queries[:3], 1, rescore=rows, epsilon=1e6)
    assert (every.n_rescored == len(rows)).all()
    few = pack.scorer(NAME).topk(queries, 1, rescore=rows, epsilon=0.0)
    assert few.n_rescored.mean() < found.n_rescored.mean()


@pytest.mark.parametrize("profile", ["lookup", "f32"])
def test_rescoring_the_lookup_grades_reads_what_it_must(profile: str) -> None:
    rows = low_rank(900, 64)
    found = made(rows, profile).scorer(NAME).topk(perturbed(rows, 20), 1, rescore=rows)
    np.testing.assert_array_equal(found.rows[:, 0], exact(rows, perturbed(rows, 20)).argmax(axis=1))


@pytest.mark.parametrize("profile", ["lookup", "bits:1"])
def test_rescoring_returns_k_rows_though_every_bound_is_too_tight(profile: str) -> None:
    rows = low_rank(4300, 48)  # so many that a sample sets the first floors
    found = made(rows, profile).scorer(NAME).topk(perturbed(rows, 60), 5, rescore=rows, epsilon=0.0)
    assert all(len(set(best)) == 5 for best in found.rows.tolist())
    assert (found.n_rescored >= 5).all()


def test_rescoring_takes_any_source_of_rows(tmp_path: Path) -> None:
    rows = low_rank(800, 64)
    path = tmp_path / "m.safetensors"
    save_file({NAME: rows}, path)
    queries = perturbed(rows, 10)
    scorer = made(rows, "bits:2").scorer(NAME)
    expected = scorer.topk(queries, 2, rescore=rows)
    with open_source(path) as source, safe_open(path, "numpy") as file:
        np.save(tmp_path / "m.npy", rows)
        mapped = np.load(tmp_path / "m.npy", mmap_mode="r")
        for given_rows in (source, file.get_slice(NAME), mapped, ArrayRows(rows), rows.astype(np.float64)):
            found = scorer.topk(queries, 2, rescore=given_rows)
            for one, other in zip(expected, found, strict=True):
                np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match=r"must be \(800, 64\), got \(799, 64\)"):
        scorer.topk(queries, 2, rescore=rows[1:])
    with pytest.raises(ValueError, match="must have two axes"):
        scorer.topk(queries, 2, rescore=rows[0])
    with pytest.raises(ValueError, match=r"has no tensor 'model\.embed_tokens\.weight'"):
        scorer.topk(queries, 2, rescore=ArraySource({"a": rows}))
    broken = rows.copy()
    broken[:, 3] = np.nan
    with pytest.raises(NonFiniteError, match="not finite"):
        scorer.topk(queries, 2, rescore=broken)
    with pytest.raises(ValueError, match="epsilon must be a finite number"):
        scorer.topk(queries, 2, rescore=rows, epsilon=float("nan"))
    with pytest.raises(ValueError, match="no cosines are recorded"):
        Scorer(made(rows, "bits:2").get_encoded(NAME)).topk(queries, 2, rescore=rows)


def test_the_cosines_tell_the_error_that_rescoring_allows_for() -> None:
    rng = np.random.default_rng(6)
    rows = rng.standard_normal((3000, 256)).astype(np.float32)
    pack = made(rows, "bits:2")
    scorer = pack.scorer(NAME)
    queries = rng.standard_normal((40, 256)).astype(np.float32)
    prepared = Queries.prepare(queries, scorer._rows, 1)
    bounds = probable_bounds(prepared, scorer._rows, scorer._tangents, 1.0)
    to_scores = (prepared.powers / scorer._rows.unit)[:, None]
    estimates = scorer._rows.estimates(prepared, slice(0, 3000), bounds.trellis_factor) * to_scores
    errors = estimates - exact(rows, queries)
    deviation = (bounds.factors[:, None] * bounds.spreads + bounds.slacks[:, None]) * to_scores
    ratio = errors / deviation
    assert abs(ratio.mean()) < 0.02  # no bias
    assert 0.6 < ratio.std() < 1.05  # the deviation is that of a row worse than most, and what int8 may lose


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_kept_tensor_is_searched_too(dtype: Any) -> None:
    rows = low_rank(500, 40).astype(dtype)
    pack = made(rows, "lookup")  # too small for it
    assert pack.info(NAME).codec == "keep"
    queries = perturbed(low_rank(500, 40), 70)
    scores = exact(rows.astype(np.float32), queries)
    scorer = pack.scorer(NAME)
    np.testing.assert_array_equal(scorer.topk(queries, 5).rows, ranked(scores, 5))
    np.testing.assert_allclose(scorer.scores(queries), scores, rtol=0, atol=1e-6 * np.abs(scores).max())
    rows[3, 4] = np.nan
    with pytest.raises(ValueError, match="row 3 of tensor"):
        made(rows, "lookup", nonfinite="keep").scorer(NAME)


def test_rows_too_wide_for_integers_are_searched_as_they_decode() -> None:
    rows = low_rank(3, 66_000)
    pack = made(rows, "bits:1")
    assert pack.info(NAME).codec == "hhtl_t"
    check_best(pack, perturbed(rows, 4), 2)


def test_the_cascade_counts_every_row_once() -> None:
    rows = low_rank(2000, 96)
    pack = made(rows, "lookup")
    scorer, tensor = pack.scorer(NAME), pack.get_encoded(NAME)
    cascade = scorer.cascade(rows[17])
    assert sum(cascade.counts.values()) == 2000
    assert cascade.counts[RouteAction.SKIP] == cascade.skipped.sum()
    assert cascade.entry == tensor.twigs[17]
    assert not cascade.skipped[17]  # its own entry is always attended
    with pytest.raises(TypeError, match="only the lookup codec has routes"):
        made(rows, "bits:2").scorer(NAME).cascade(rows[0])


def test_bad_queries_are_named() -> None:
    rows = low_rank(600, 64)
    pack = hhtld.encode({NAME: rows, "norm": np.ones(64, np.float32)}, "bits:2")
    scorer = pack.scorer(NAME)
    for bad in (rows[0, 1:], rows[None], "query", rows[0] > 0, rows[0].astype(np.complex64), np.float32(1)):
        with pytest.raises(ValueError, match="a query must be 64 real numbers"):
            scorer.topk(bad, 1)
    broken = rows[:3].copy()
    broken[2, 5] = np.inf
    with pytest.raises(ValueError, match="query 2 holds inf at column 5"):
        scorer.argmax(broken)
    with pytest.raises(ValueError, match="query 0 has a largest value of 1e"):
        scorer.argmax(np.full(64, 1e300))
    for k in (0, 601, -1, True, 2.0, 2.5, "2", None):
        with pytest.raises(ValueError, match=r"k must be an integer of 1\.\.600"):
            scorer.topk(rows[0], k)
    assert np.array_equal(scorer.topk(rows[0], np.int8(2)).rows, scorer.topk(rows[0], 2).rows)
    for odd in (rows * 1j, rows > 0, rows.astype(str)):
        with pytest.raises(TypeError, match="rows to rescore with must be real numbers, got dtype"):
            scorer.topk(rows[0], 2, rescore=odd)
    with pytest.raises(ValueError, match="levels must be 1 or 2"):
        pack.scorer(NAME, 3)
    with pytest.raises(ValueError, match=r"tensor 'norm', F32 \[64\], has no rows of weights to search"):
        pack.scorer("norm")
    with pytest.raises(KeyError):
        pack.scorer("nope")


def test_a_scorer_of_a_file_reads_the_file(tmp_path: Path) -> None:
    rows = low_rank(700, 96)
    path = tmp_path / "m.hhtld"
    hhtld.save(made(rows, "bits:2"), path)
    queries = perturbed(rows, 5)
    for mapped in (True, False):
        with hhtld.open(path, mmap=mapped) as pack:
            scorer = pack.scorer(NAME)
            np.testing.assert_array_equal(scorer.argmax(queries), exact(pack.get_tensor(NAME), queries).argmax(axis=1))
    assert summarize(np.ones(1)).median == 1.0


def test_many_threads_search_one_scorer() -> None:
    from concurrent.futures import ThreadPoolExecutor

    rows = low_rank(3000, 96)
    scorer = made(rows, "bits:2").scorer(NAME)
    queries = perturbed(rows, 64)
    expected = scorer.topk(queries, 3, rescore=rows).rows
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda q: scorer.topk(q, 3, rescore=rows).rows, queries))
    np.testing.assert_array_equal(np.stack(found), expected)


def test_a_batch_searches_rows_of_classes() -> None:
    rng = np.random.default_rng(0)
    rows, queries = rng.standard_normal((2000, 96)).astype(np.float32), rng.standard_normal((70, 96)).astype(np.float32)
    classes = (slots.Trellis.trained(32), slots.Trellis.trained(48))
    shared = slots.TrellisShared(classes[0], slots.Rotation(96, 3), classes=classes)
    tensor = HhtlTTensor.encode("x", ArrayRows(rows), shared, row_class=rng.integers(0, 2, 2000).astype(np.uint8))
    scores = queries.astype(np.float64) @ tensor.reconstruct_rows().T.astype(np.float64)
    found = Scorer(tensor).topk(queries, 3)
    np.testing.assert_array_equal(found.rows, np.argsort(-scores, axis=1, kind="stable")[:, :3])
    np.testing.assert_allclose(Scorer(tensor).scores(queries), scores, atol=0.01)
