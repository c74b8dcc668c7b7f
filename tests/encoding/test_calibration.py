"""What a calibration says of rates and levels, and what a plan makes of it."""

from __future__ import annotations

import numpy as np
import pytest

import hhtld
from hhtld.codecs.trellis import PARITY_THRESHOLD
from hhtld.cosines import row_cosines
from hhtld.encoding.calibration import Calibration, Measurement, Sensitivity, column_scale
from hhtld.encoding.options import Encoding
from hhtld.encoding.plan import make_plan
from hhtld.errors import FormatError
from hhtld.sources.contract import ArraySource

SETS = (
    Sensitivity(("a", "b"), 2000, 0.02),
    Sensitivity(("c",), 1000, 0.16),
    Sensitivity(("d",), 1000, 0.0),
)


def measured(*points: tuple[float, float]) -> tuple[Measurement, ...]:
    return tuple(Measurement(level, level, top1, 0.1, 1000) for level, top1 in points)


def test_four_times_the_cost_is_one_bit() -> None:
    rates = Calibration({}, SETS[:2]).rates(4)
    assert rates["a"] == rates["b"]
    assert rates["c"] - rates["a"] == 32  # 16 times the cost a weight
    assert sum(rates[name] * n for name, n in (("a", 1000), ("b", 1000), ("c", 1000))) / 3000 == pytest.approx(
        64, abs=1
    )


def test_what_measured_nothing_still_gets_a_rate() -> None:
    rates = Calibration({}, SETS).rates(4)
    assert 16 <= rates["d"] < rates["a"]
    assert Calibration({}, (Sensitivity(("a",), 10, 0.0),)).rates(3.5) == {"a": 56}


def test_rates_stay_in_range() -> None:
    sets = (Sensitivity(("a",), 1000, 1e-6), Sensitivity(("b",), 1000, 1e3))
    assert Calibration({}, sets).rates(1)["a"] == 16
    assert Calibration({}, sets).rates(5)["b"] == 96


def test_the_level_lies_on_the_line_and_is_rounded_up() -> None:
    found = Calibration({}, SETS, measured((4, 0.8), (5, 0.9)))
    assert found.level_for(0.8) == 4
    assert found.level_for(0.9) == 5
    assert found.level_for(0.85) == 4.421875  # 4 + log2(4 / 3), to the next 64th
    assert found.expected_top1(6) == pytest.approx(0.95)


def test_what_other_text_may_fall_short_is_added() -> None:
    plain = measured((4, 0.8), (5, 0.9))
    found = Calibration({}, SETS, tuple(Measurement(m.level, m.bits, m.top1, m.kl, 1000, 0.01) for m in plain))
    assert found.margin == pytest.approx(0.016449)
    assert found.level_for(0.85) == 4.59375  # .8664: 4 + log2(.2 / .1336), to the next 64th


def test_levels_that_no_rate_reaches_are_refused_with_what_to_do() -> None:
    found = Calibration({}, SETS, measured((4, 0.5), (5, 0.6)))
    with pytest.raises(FormatError, match=r"needs more than 6 bits a weight, where 0\.680 is expected; ask for less"):
        found.level_for(0.95)
    with pytest.raises(ValueError, match="between 0 and 1"):
        found.level_for(1)


def test_measurements_that_say_nothing_are_refused() -> None:
    with pytest.raises(FormatError, match="fewer than two"):
        Calibration({}, SETS, measured((4, 0.8))).level_for(0.9)
    with pytest.raises(FormatError, match="more bits did not bring more agreement"):
        Calibration({}, SETS, measured((4, 0.8), (5, 0.7))).level_for(0.9)


def test_a_model_that_never_differs_has_a_level() -> None:
    assert Calibration({}, SETS, measured((4, 0.99), (5, 1.0))).level_for(0.9) < 4


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


def test_moments_make_products_lose_less_and_the_file_no_larger(source: ArraySource) -> None:
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
    assert sizes[0] == sizes[1]


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
