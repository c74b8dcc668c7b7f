"""Slot T tensors: any width, any rows, access by row, what the group shares, rate control."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from hhtld.codecs import rate_control
from hhtld.codecs.rate_control import decide_group, decide_shared, predict, sample_rows, smallest_rate
from hhtld.codecs.trellis import HhtlTTensor
from hhtld.cosines import row_cosines
from hhtld.errors import RangeError
from hhtld.gates import THRESHOLDS, Threshold
from hhtld.slots.rotation import Rotation, splitmix64
from hhtld.slots.shared_parts import TrellisShared
from hhtld.slots.slot_l import SvdBasis
from hhtld.slots.slot_t import Trellis
from hhtld.sources.rows import ArrayRows, LiveRows

CODE = Trellis.trained(32)
encoded = partial(HhtlTTensor.encode, "")


def encode(rows: NDArray[np.float32], code: Trellis = CODE, **parts: object) -> HhtlTTensor:
    shared = TrellisShared(code, Rotation(rows.shape[1]))
    return HhtlTTensor.encode("v", ArrayRows(rows), replace(shared, **parts))


def bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    return values.astype(ml_dtypes.bfloat16).view(np.uint16)


def with_base(rows: NDArray[np.float32]) -> TrellisShared:
    """A group with centroids and a basis."""
    plain = TrellisShared(CODE, Rotation(rows.shape[1]), bf16(rows[:5]))
    return replace(plain, basis=SvdBasis.build(rows - plain.centroids[plain.assign(rows)]))


@pytest.mark.parametrize("n_cols", [*range(1, 201), 384, 576, 896, 1024, 1536, 2048, 4097])
def test_any_width_round_trips(n_cols: int) -> None:
    rows = np.random.default_rng(n_cols).standard_normal((3, n_cols)).astype(np.float32)
    tensor = encode(rows)
    decoded = tensor.reconstruct_rows()
    assert decoded.shape == rows.shape
    assert tensor.slot_t.nbytes == 3 * (((n_cols - 1) * 2 + 12 + 7) // 8)
    if n_cols >= 64:
        assert row_cosines(rows, decoded).min() > 0.94
    assert np.array_equal(tensor.reconstruct_row(-1), decoded[2])


@pytest.mark.parametrize("kind", ["zeros", "constant", "denormal", "1e30", "one spike"])
def test_rows_that_break_scales(kind: str, rng: np.random.Generator) -> None:
    rows = rng.standard_normal((5, 300)).astype(np.float32)
    if kind == "zeros":
        rows[:] = 0
    elif kind == "constant":
        rows[:] = 0.25
    elif kind == "denormal":
        rows *= np.float32(1e-40)
    elif kind == "1e30":
        rows *= np.float32(1e30)
    else:
        rows[:] = 0
        rows[:, 7] = 5
    cosines = row_cosines(rows, encode(rows).reconstruct_rows())
    assert (cosines > 0.94).all()
    if kind == "zeros":
        assert not encode(rows).reconstruct_rows().any()


@pytest.mark.parametrize("parts", ["plain", "base", "scaled"])
def test_any_rows_are_rows_of_the_whole(parts: str, rng: np.random.Generator) -> None:
    rows = (rng.standard_normal((70, 90)) + rng.standard_normal((1, 90))).astype(np.float32)
    shared = with_base(rows) if parts == "base" else TrellisShared(CODE, Rotation(90, 7))
    scale = bf16((0.5 + rng.random(90)).astype(np.float32)) if parts == "scaled" else None
    tensor = HhtlTTensor.encode("v", ArrayRows(rows), shared, scale)
    whole = tensor.reconstruct_rows()
    picks = rng.integers(0, 70, 9)
    assert np.array_equal(tensor.reconstruct_rows(picks), whole[picks])
    assert np.array_equal(tensor.reconstruct_rows(slice(3, 60, 7)), whole[3:60:7])
    assert np.median(row_cosines(rows, whole)) > 0.94
    assert tensor.total_byte_size() == shared.tensor_nbytes(70) + (0 if scale is None else scale.nbytes)
    assert (
        set(tensor.parts())
        == {"slot_v", "slot_t"}
        | {
            "plain": set(),
            "base": {"twigs", "slot_l"},
            "scaled": {"column_scale"},
        }[parts]
    )
    with ThreadPoolExecutor(7) as threads, pytest.MonkeyPatch.context() as patch:
        patch.setattr("hhtld.sources.rows.BLOCK_NBYTES", 4096)
        again = HhtlTTensor.encode("v", ArrayRows(rows), shared, scale, threads)
    for kind, array in tensor.parts().items():
        assert np.array_equal(again.parts()[kind], array)


def test_rows_at_the_end_of_the_range_are_refused() -> None:
    rows = np.zeros((2, 300), np.float32)
    rows[1, 3] = 3e38
    with pytest.raises(RangeError, match="row 1 passes float32's range"):
        encode(rows)


def test_what_a_file_may_say_beyond_the_range_is_infinite(rng: np.random.Generator) -> None:
    # Found by fuzzing: such numbers, which no encoder writes, were a RuntimeWarning.
    rows = (rng.standard_normal((30, 40)) + 1).astype(np.float32)
    least = np.full(40, 1, np.uint16)  # bfloat16's smallest number
    good = HhtlTTensor.encode("v", ArrayRows(rows), with_base(rows))
    assert np.isinf(replace(good, column_scale=least).reconstruct_rows()).any()
    largest = replace(good, slot_v=np.full(30, 0x7F7F, np.uint16), column_scale=least)
    assert not np.isfinite(largest.reconstruct_rows()).any()


def test_column_scales_undo_themselves(rng: np.random.Generator) -> None:
    # Powers of two commute with every rounding, so scaled rows of equal scale code alike.
    rows = rng.standard_normal((20, 64)).astype(np.float32)
    scale = bf16(np.full(64, 4, np.float32))
    plain, scaled = encode(rows), HhtlTTensor.encode("v", ArrayRows(rows), TrellisShared(CODE, Rotation(64)), scale)
    assert np.array_equal(plain.slot_t, scaled.slot_t)
    assert np.array_equal(plain.reconstruct_rows(), scaled.reconstruct_rows())


def test_constructor_checks(rng: np.random.Generator) -> None:
    rows = (rng.standard_normal((30, 40)) + 1).astype(np.float32)
    good = HhtlTTensor.encode("v", ArrayRows(rows), with_base(rows))
    bad_gain = good.slot_v.copy()
    bad_gain[3] = 0x7F80
    for changed, message in (
        ({"slot_t": good.slot_t[:, :-1]}, "slot_t must be"),
        ({"slot_v": bad_gain}, "gain must be finite"),
        ({"twigs": None}, "twigs and centroids"),
        ({"twigs": np.full(30, 9, np.uint8)}, "numbers below 5"),
        ({"slot_l": None}, "come together"),
        ({"column_scale": np.zeros(40, np.uint16)}, "positive finite"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(good, **changed)
    with pytest.raises(ValueError, match="seed must be"):
        Rotation(3, -1)
    with pytest.raises(ValueError, match=r"rate must be 16\.\.96"):
        Trellis.trained(97)
    with pytest.raises(ValueError, match="a codebook has 72 bytes, or 256, 1024 or 4096 levels, got 73 bytes"):
        Trellis.of_codebook(32, bytes(73))
    with pytest.raises(ValueError, match=r"levels must sum up to -127\.\.127"):
        Trellis.of_codebook(32, bytes(24) + np.full(48, 43, np.int8).tobytes())


def test_splitmix64_is_the_published_generator() -> None:
    # The first outputs for seed 1234567, as the reference implementation's documentation lists them.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert splitmix64(1234567, np.arange(4, dtype=np.uint64)).tolist() == expected


def test_trained_codes_reach_what_they_promise() -> None:
    rows = np.random.default_rng(0).standard_normal((256, 1024)).astype(np.float32)
    for rate, cosine in ((16, 0.85), (32, 0.963), (48, 0.9903), (64, 0.9974), (80, 0.9992), (96, 0.9997)):
        found = predict(rows, TrellisShared(Trellis.trained(rate), Rotation(1024)), encoded)
        assert found.median >= cosine
        assert found.p5 > cosine - 0.004


@pytest.mark.parametrize("kind", ["log-normal column scales", "8 outlier columns"])
def test_rotation_makes_any_columns_gaussian(kind: str) -> None:
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((256, 1024)).astype(np.float32)
    shared = TrellisShared(CODE, Rotation(1024))
    plain = predict(rows, shared, encoded).median
    if kind == "8 outlier columns":
        rows[:, rng.choice(1024, 8, replace=False)] *= 10
    else:
        rows *= np.exp(rng.standard_normal(1024)).astype(np.float32)
    assert predict(rows, shared, encoded).median > plain - 0.004


def test_structure_is_kept_only_where_it_pays(rng: np.random.Generator) -> None:
    noise = rng.standard_normal((4000, 64)).astype(np.float32)
    plain = decide_shared([ArrayRows(noise)], CODE, 0)
    assert plain.centroid_bits is None
    assert plain.basis is None
    clustered = (rng.standard_normal((20, 64)) * 5)[rng.integers(0, 20, 4000)] + noise
    assert decide_shared([ArrayRows(clustered)], CODE, 0).centroid_bits is not None
    directions = (rng.standard_normal((4000, 4)) * 9) @ rng.standard_normal((4, 64)) + noise
    assert decide_shared([ArrayRows(directions)], CODE, 0).basis is not None


def with_zero_rows(live: NDArray[np.float32], n_zero: int, rng: np.random.Generator) -> NDArray[np.float32]:
    rows = np.zeros((len(live) + n_zero, live.shape[1]), np.float32)
    rows[np.sort(rng.permutation(len(rows))[: len(live)])] = live
    return rows


def structured(kind: str, rng: np.random.Generator) -> NDArray[np.float32]:
    """Rows for which structure pays: centroids (in two kinds as many as a twig can name, or with Slot L), or Slot L."""
    noise, n_rows = rng.standard_normal((6000, 64)), 6000
    if kind == "low rank":
        return (noise + 9 * rng.standard_normal((n_rows, 4)) @ rng.standard_normal((4, 64))).astype(np.float32)
    if kind == "one direction":
        return (noise + 9 * rng.standard_normal(64)).astype(np.float32)
    own = rng.integers(0, 256, n_rows)
    for share, size in ((1, 4), (4, 8), (16, 16)) if kind == "256 clusters" else ((16, 9),):
        noise += size * rng.standard_normal((256 // share, 64))[own // share]
    return noise.astype(np.float32)


@pytest.mark.parametrize("n_zero", [1, 300, 20_000])
@pytest.mark.parametrize("kind", ["16 clusters", "one direction", "low rank", "256 clusters"])
def test_zero_rows_come_back_zero_and_cost_the_others_nothing(kind: str, n_zero: int, rng: np.random.Generator) -> None:
    live = structured(kind, rng)
    rows = with_zero_rows(live, n_zero, rng)
    alone, expected = decide_group([ArrayRows(live)], None, THRESHOLDS["argmax"], 0, encoded)
    shared, found = decide_group(
        [ArrayRows(rows[:1000]), ArrayRows(rows[1000:])], None, THRESHOLDS["argmax"], 0, encoded
    )
    assert found is not None
    assert expected is not None
    assert found.rate == expected.rate
    assert (shared.basis is None) == (alone.basis is None)
    assert (shared.centroid_bits is None) == (alone.centroid_bits is None)
    few = np.concatenate([live[:200], rows[~rows.any(axis=1)][:50]])  # to encode all would only take longer
    assert not HhtlTTensor.encode("", ArrayRows(few), shared).reconstruct_rows(slice(200, None)).any()
    if shared.centroid_bits is not None and alone.centroid_bits is not None:
        assert len(shared.centroid_bits) == min(256, len(alone.centroid_bits) + 1)
        assert not shared.centroids[-1].any()
        if n_zero > 1 and len(alone.centroid_bits) < 256:  # one row is met by no sample, and shifts what it takes
            assert np.array_equal(shared.centroid_bits[:-1], alone.centroid_bits)


def test_a_row_of_zeros_that_no_sample_meets_comes_back_zero(rng: np.random.Generator) -> None:
    rows = (rng.standard_normal((30_000, 32)) + 9 * rng.standard_normal(32)).astype(np.float32)
    rows[20_001] = 0
    shared, _ = decide_group([ArrayRows(rows)], 32, None, 0, encoded)
    assert shared.centroid_bits is not None
    near = ArrayRows(rows[20_000:20_009])
    assert not HhtlTTensor.encode("", near, shared).reconstruct_row(1).any()


def test_groups_of_zeros_alone_have_no_structure() -> None:
    shared, found = decide_group([ArrayRows(np.zeros((2000, 64)))], None, THRESHOLDS["index"], 0, encoded)
    assert shared.centroid_bits is None
    assert shared.basis is None
    assert found is not None
    assert found.rate == 16


def test_live_rows_read_as_the_array_without_zeros(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((500, 7)).astype(np.float32)
    rows[rng.random(500) < 0.6] = 0
    rows[3] = -0.0
    expected = rows[rows.any(axis=1)]
    live = LiveRows(ArrayRows(rows))
    assert (live.n_rows, live.n_cols) == expected.shape
    for start, stop in [(0, len(expected)), (0, 0), (5, 6), (17, 120)]:
        assert np.array_equal(live.read(start, stop), expected[start:stop])


def test_the_smallest_rate_passes_and_the_next_below_does_not(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((400, 256)).astype(np.float32)
    shared, found = decide_group([ArrayRows(rows[:150]), ArrayRows(rows[150:])], None, THRESHOLDS["argmax"], 0, encoded)
    assert found is not None
    assert found.passes(THRESHOLDS["argmax"])
    below = predict(rows, replace(shared, trellis=Trellis.trained(found.rate - 1)), encoded)
    assert not below.passes(THRESHOLDS["argmax"])
    assert smallest_rate(rows, shared, Threshold(0.99999, 0.99999), encoded) is None


@pytest.mark.parametrize("median", [0.5, 0.9, 0.97, 0.999, 0.99985])
def test_few_attempts_find_the_rate_that_all_would(median: float, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(6).standard_normal((96, 40)).astype(np.float32)
    rows[::3, :5] *= 9
    shared = TrellisShared(Trellis.trained(32), Rotation(40, 1))
    every = [predict(rows, replace(shared, trellis=Trellis.trained(rate)), encoded) for rate in range(16, 97)]
    for p5 in (median - 0.3, median, (1 + median) / 2):
        threshold, tried = Threshold(median, p5), []
        monkeypatch.setattr(rate_control, "predict", lambda *a, tried=tried: tried.append(a) or predict(*a))
        passing = [each.rate for each in every if each.passes(threshold)]
        found = smallest_rate(rows, shared, threshold, encoded)
        assert (None if found is None else found.rate) == min(passing, default=None)
        assert len(tried) <= 7
    fixed = decide_group([ArrayRows(rows)], 40, None, 0, encoded)[1]
    assert fixed is not None
    assert fixed.rate == 40


def test_samples_are_spread_and_never_repeat(rng: np.random.Generator) -> None:
    tensors = [np.arange(n, dtype=np.float32)[:, None] + 1000 * i for i, n in enumerate((5, 300, 40))]
    found = sample_rows([ArrayRows(t) for t in tensors], 60)
    assert len(np.unique(found)) == len(found) == 60
    assert {int(v) // 1000 for v in found[:, 0]} == {0, 1, 2}
    assert len(sample_rows([ArrayRows(tensors[0])], 60)) == 5
