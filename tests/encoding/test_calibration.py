"""What a calibration says of rates and levels, and what a plan makes of it."""

from __future__ import annotations

import math

import numpy as np
import pytest

import hhtld
from hhtld.cosines import row_cosines
from hhtld.encoding.calibrated_rates import Calibration, Costs, Measurement, column_scale
from hhtld.encoding.options import Encoding
from hhtld.encoding.plan import make_plan
from hhtld.errors import FormatError
from hhtld.gates import PARITY_THRESHOLD
from hhtld.sources.contract import ArraySource


def costs(**means: tuple[float, int]) -> dict[str, Costs]:
    """Return costs that are alike in 10 rows, by name, as (mean, columns)."""
    return {name: Costs(np.full(10, mean, np.float32), n_cols) for name, (mean, n_cols) in means.items()}


THREE = costs(a=(0.02, 100), b=(0.02, 100), c=(0.32, 100))


def measured(*points: tuple[float, float], error: float = 0.0, n_texts: int = 30) -> tuple[Measurement, ...]:
    return tuple(Measurement(level, top1, 0.1, 1000, n_texts, error) for level, top1 in points)


def test_four_times_the_cost_is_one_bit() -> None:
    rates = Calibration({}, THREE).rates(4)
    assert abs(rates["a"] - rates["b"]) <= 2  # what a step leaves of the budget
    assert rates["c"] - rates["a"] == pytest.approx(32, abs=2)  # 16 times the cost
    assert sum(rates.values()) <= 3 * 64
    assert sum(rates.values()) / 3 == pytest.approx(64, abs=1)


def test_the_mean_of_rates_is_the_level_to_a_step_of_the_smallest_tensor() -> None:
    rng = np.random.default_rng(0)
    many = costs(**{f"t{i}": (float(np.exp(2 * rng.standard_normal())), int(rng.integers(8, 500))) for i in range(40)})
    total = sum(cost.n_weights for cost in many.values())
    for level in (2.5, 4.1, 4.875):
        rates = Calibration({}, many).rates(level)
        bits = sum(rates[name] * many[name].n_weights for name in many) / 16
        assert level * total - 2 / 16 * 2 * 5000 <= bits <= level * total
    wants = {name: math.log2(cost.mean) / 2 for name, cost in many.items()}
    offsets = [rates[name] / 16 - wants[name] for name in many if 16 < rates[name] < 96]
    assert max(offsets) - min(offsets) <= 0.26  # rates follow costs


def test_what_no_text_met_still_gets_a_rate() -> None:
    rates = Calibration({}, THREE | costs(d=(0.0, 100))).rates(4)
    assert 16 <= rates["d"] < rates["a"]
    assert Calibration({}, costs(a=(0.0, 10))).rates(3.5) == {"a": 56}


def test_rates_stay_in_range() -> None:
    apart = costs(a=(1e-6, 100), b=(1e3, 100))
    assert Calibration({}, apart).rates(1)["a"] == 16
    assert Calibration({}, apart).rates(5)["b"] == 96


def spread(n_rows: int, n_cols: int, octaves: float = 2.0, seed: int = 0) -> Costs:
    """Return costs of rows that differ by a few octaves."""
    rows = 0.1 * np.exp2(octaves * np.random.default_rng(seed).standard_normal(n_rows))
    return Costs(rows.astype(np.float32), n_cols)


def test_rows_get_bits_by_their_costs_at_most_one_around_their_tensors_rate() -> None:
    found = Calibration({}, {"a": spread(900, 200), "b": spread(400, 300, seed=1)})
    for level in (2.5, 3.75, 4.9):
        rates, bits = found.rates(level), found.bits(level)
        for name, costs in found.costs.items():
            rows = bits[name]
            assert isinstance(rows, np.ndarray)
            assert rows.shape == costs.rows.shape
            assert rates[name] / 16 - 1 / 256 <= rows.mean() <= rates[name] / 16
            assert np.abs(rows - rates[name] / 16).max() <= 1
            assert (np.diff(rows[np.argsort(costs.rows)]) >= 0).all(), "what costs more gets no fewer bits"
            between = np.abs(rows - rates[name] / 16) < 1
            offsets = rows[between] - np.log2(costs.rows[between]) / 2
            assert np.ptp(offsets) < 0.02, "four times the cost is one bit"


def test_a_tensor_whose_rows_differ_gets_fewer_bits_than_one_as_dear_whose_rows_do_not() -> None:
    differ = spread(900, 200)
    alike = Costs(np.full(900, differ.mean, np.float32), 200)
    rates = Calibration({}, {"differ": differ, "alike": alike}).rates(4)
    rows = Calibration({}, {"a": differ}).bits(4)["a"]
    left = (differ.rows * 4.0 ** (4 - np.asarray(rows))).mean()
    assert (rates["alike"] - rates["differ"]) / 16 == pytest.approx(math.log2(differ.mean / left) / 2, abs=0.08)
    assert rates["alike"] - rates["differ"] >= 4


def test_rows_stay_within_the_rates_there_are_and_keep_their_mean() -> None:
    found = Calibration({}, {"a": spread(900, 200)})
    for level in (1.25, 5.5):
        rows = found.bits(level)["a"]
        assert isinstance(rows, np.ndarray)
        assert 1 <= rows.min() < rows.max() <= 6
        assert level - 1 / 256 <= rows.mean() <= level
    assert found.bits(6)["a"] == 6
    assert found.bits(1)["a"] == 1


def test_rows_share_a_rate_if_their_classes_take_more_than_they_save() -> None:
    assert Calibration({}, {"a": spread(900, 200, octaves=0.1)}).bits(4)["a"] == 4
    assert Calibration({}, {"a": spread(900, 8)}).bits(4)["a"] == 4  # a class takes a bit a weight here
    assert Calibration({}, costs(a=(0.0, 100))).bits(4)["a"] == 4


def test_rows_that_cost_nothing_get_a_rate() -> None:
    rows = spread(900, 200).rows.copy()
    rows[:100] = 0
    found = Calibration({}, {"a": Costs(rows, 200)}).bits(4)["a"]
    assert isinstance(found, np.ndarray)
    assert (found[:100] == 3).all()


def test_the_level_lies_on_the_line_and_is_rounded_up() -> None:
    found = Calibration({}, THREE, measured((4, 0.8), (5, 0.9)))
    assert found.level_for(0.8) == 4
    assert found.level_for(0.9) == 5
    assert found.level_for(0.85) == 4.421875  # 4 + log2(4 / 3), to the next 64th
    assert found.expected_top1(6) == pytest.approx(0.95)


def test_lines_bend_at_measured_levels() -> None:
    found = Calibration({}, THREE, measured((3, 0.6), (4, 0.8), (5, 0.92)))
    assert found.level_for(0.8) == 4
    assert found.level_for(0.92) == 5
    assert found.expected_top1(3.5) == pytest.approx(1 - 0.08**0.5)
    assert found.expected_top1(6) == pytest.approx(1 - 0.2 * 0.4**2)
    assert found.level_for(0.6) == 3
    assert found.level_for(0.61) == 3.046875


def test_no_level_lies_below_those_that_were_measured() -> None:
    """A model that hardly differs at 3 bits may say nothing at 1."""
    found = Calibration({}, THREE, measured((3, 0.98), (4, 0.99), (5, 0.995)))
    assert found.level_for(0.7) == 3
    assert found.level_for(0.99) == 4


def test_other_text_falls_short_by_more_if_fewer_texts_were_judged() -> None:
    points = (4, 0.8), (5, 0.9)
    many, few = (Calibration({}, THREE, measured(*points, error=0.01, n_texts=n)) for n in (30, 4))
    # By the normal distribution 0.0164 at a share of about 0.86; Student's t with 3 degrees of freedom is 2.353.
    assert 0.013 < many.margin(0.85) < 0.022
    assert few.margin(0.85) / many.margin(0.85) == pytest.approx(2.353 / 1.700, rel=0.01)
    assert many.level_for(0.85) > Calibration({}, THREE, measured(*points)).level_for(0.85)
    assert few.level_for(0.85) > many.level_for(0.85)
    assert "too few to rely on" in few.promise(4.5)
    assert "too few" not in many.promise(4.5)


def test_nothing_is_promised_below_what_was_measured() -> None:
    found = Calibration({}, THREE, measured((4, 0.8), (5, 0.9), error=0.01, n_texts=30))
    assert found.promise(3.99).startswith("no agreement is expected, because nothing was measured below 4.00 bits")
    assert found.promise(4).startswith("an agreement of 0.800 is expected")


def test_a_text_that_is_too_short_for_a_target_is_refused() -> None:
    found = Calibration({}, THREE, measured((4, 0.8), (5, 0.9), error=0.03, n_texts=3))
    with pytest.raises(FormatError, match=r"too short for a top-1 agreement of 0\.9: judged on 3 texts"):
        found.level_for(0.9)


def test_levels_that_no_rate_reaches_are_refused_with_the_most_that_one_does() -> None:
    found = Calibration({}, THREE, measured((4, 0.5), (5, 0.6)))
    with pytest.raises(FormatError, match=r"0\.95 needs more than 6 bits a weight, .* 0\.68 is the most that can be"):
        found.level_for(0.95)
    assert found.level_for(0.68) == 6
    with pytest.raises(FormatError, match=r"0\.681 needs more"):
        found.level_for(0.681)
    with pytest.raises(ValueError, match="between 0 and 1"):
        found.level_for(1)


def test_the_most_that_can_be_had_leaves_room_for_its_margin() -> None:
    found = Calibration({}, THREE, measured((4, 0.8), (5, 0.9), error=0.01))
    most = found.most_top1()
    assert most < found.expected_top1(6) - 0.01
    assert found.level_for(most) <= 6
    with pytest.raises(FormatError, match=f"{most:g} is the most"):
        found.level_for(most + 0.001)


def test_measurements_that_say_nothing_are_refused() -> None:
    with pytest.raises(FormatError, match="fewer than two"):
        Calibration({}, THREE, measured((4, 0.8))).level_for(0.9)
    with pytest.raises(FormatError, match="more bits did not bring more agreement"):
        Calibration({}, THREE, measured((4, 0.8), (5, 0.7))).level_for(0.9)


def test_a_model_that_never_differs_has_a_level() -> None:
    assert Calibration({}, THREE, measured((4, 0.99), (5, 1.0))).level_for(0.9) == 4


def test_bytes_of_what_rates_decide_are_reached_and_not_passed() -> None:
    large = {name: Costs(np.full(2000, mean, np.float32), 512) for name, mean in (("a", 0.1), ("b", 0.4), ("c", 0.02))}
    found = Calibration({"a": np.ones(512, np.float32)}, large)
    for bits in (3.5, 4.25, 5.0):
        budget = int(bits / 8 * 3 * 2000 * 512)
        assert 0.985 * budget < found.nbytes(found.level_for_nbytes(budget)) <= budget
    assert found.level_for_nbytes(0) == 1


def test_column_scales() -> None:
    scale = column_scale(np.array([1.0, 16, 1, 0]), np.array([1.0, 1, 16, 1]))
    assert scale[1] / scale[0] == pytest.approx(2)
    assert scale[2] / scale[0] == pytest.approx(0.5)
    assert 0 < scale[3] < scale[2]
    assert np.log2(scale).mean() == pytest.approx(0, abs=1e-6)
    assert (column_scale(np.zeros(3), np.ones(3)) == 1).all()
    assert np.isfinite(column_scale(np.array([1e-300, 1e300]), np.array([1e300, 1e-300]))).all()


@pytest.fixture(scope="module")
def source() -> ArraySource:
    rng = np.random.default_rng(0)
    return ArraySource(
        {
            "lm_head.weight": rng.standard_normal((300, 64)).astype(np.float32),
            "layers.0.q_proj.weight": rng.standard_normal((96, 64)).astype(np.float32),
            "norm.weight": np.ones(64, np.float32),
        }
    )


def test_rates_become_the_groups(source: ArraySource) -> None:
    pack = hhtld.encode(source, "parity", rates={"lm_head.weight": 81 / 16})
    groups = [
        pack.table.groups[pack.info(name).group or 0].numbers["rate"]
        for name in ("lm_head.weight", "layers.0.q_proj.weight")
    ]
    assert groups[0] == 81
    assert pack.info("layers.0.q_proj.weight").gates is not None
    assert pack.table.profile == "parity"
    found = row_cosines(
        np.asarray(source.read_tensor("layers.0.q_proj.weight")), pack.get_tensor("layers.0.q_proj.weight")
    )
    assert np.median(found) >= PARITY_THRESHOLD.median  # no rate was given: by its error alone


def test_rules_come_before_rates(source: ArraySource) -> None:
    plan = make_plan(source, Encoding("parity", rules=[("lm_head*", "keep")], rates={"lm_head.weight": 81 / 16}))
    assert plan.tensors["lm_head.weight"].codec.id == "keep"


def test_rates_are_for_parity(source: ArraySource) -> None:
    with pytest.raises(ValueError, match="rates are for profile 'parity'"):
        make_plan(source, Encoding("gates", rates={"lm_head.weight": 81 / 16}))


def test_moments_make_products_lose_less(source: ArraySource) -> None:
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((500, 8)) @ rng.standard_normal((8, 64)) + 0.2 * rng.standard_normal((500, 64))
    moments = (inputs.T @ inputs / 500).astype(np.float32)
    moments = (moments + moments.T) / 2
    weights = np.asarray(source.read_tensor("lm_head.weight"), np.float64)
    lost, sizes = [], []
    for told in ({}, {"lm_head.weight": moments}):
        pack = hhtld.encode(source, "parity", rates={"lm_head.weight": 4}, moments=told)
        lost.append(np.square((pack.get_tensor("lm_head.weight") - weights) @ inputs.T).sum())
        sizes.append(pack.nbytes("lm_head.weight"))
    assert lost[1] < 0.8 * lost[0]
    assert sizes[1] - sizes[0] == len(weights)  # a byte a row: narrow rows with feedback do not close to rings


@pytest.mark.parametrize(
    ("moments", "message"),
    [
        (np.eye(63), "fit no tensor"),
        (np.full((64, 64), np.nan), "finite and symmetric"),
        (np.triu(np.ones((64, 64))), "finite and symmetric"),
        (-np.eye(64), "no negative mean square"),
    ],
)
def test_moments_are_checked(source: ArraySource, moments: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan(source, Encoding("parity", moments={"lm_head.weight": moments}))


def test_bits_of_rows_are_found_once_for_rates_with_the_same_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = Costs(np.exp(np.random.default_rng(2).standard_normal(500)).astype(np.float32), 64)
    looked: list[tuple[int, int]] = []
    found = Costs._around
    monkeypatch.setattr(Costs, "_around", lambda *given: looked.append(given[1:]) or found(*given))
    for rate in (16, 24, 32, 48, 64, 80, 96):
        costs.around(rate)
        costs.around(rate)
    assert len(looked) == len(set(looked)) == 4
