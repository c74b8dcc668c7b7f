"""Roles, plans, gates and the encoder on small models."""

from __future__ import annotations

import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

import hhtld
from hhtld.api.encode import encode
from hhtld.cosines import judged_cosines, row_cosines, summarize
from hhtld.encoding.gate_measurement import measure
from hhtld.encoding.gate_report import GateReport, GroupCosines
from hhtld.encoding.options import Encoding
from hhtld.encoding.plan import make_plan
from hhtld.errors import NonFiniteError
from hhtld.gates import CosineSummary, Threshold
from hhtld.identity import (
    PaletteGroupKey,
    classify_component,
    classify_role,
    effective_shape,
    group_key,
    is_encodable,
    regime,
)
from hhtld.pack.source import PackSource
from hhtld.sources.contract import ArraySource


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("model.layers.3.self_attn.q_proj.weight", "qko"),
        ("model.layers.3.self_attn.O_PROJ.weight", "qko"),
        ("model.layers.3.self_attn.v_proj.weight", "v"),
        ("mlp.gate_proj.weight", "gate"),
        ("mlp.up_proj.weight", "up"),
        ("mlp.down_proj.weight", "down"),
        ("model.embed_tokens.weight", "embed"),
        ("embeddings.position_embeddings.weight", "embed"),
        ("lm_head.weight", "lm_head"),
        ("code_predictor.codec_head.3.weight", "projection"),
        ("visual.projection.weight", "projection"),
        ("encoder.layer.0.intermediate.dense.weight", "other"),
        ("encoder.layer.0.attention.output.dense.weight", "other"),
        ("token_embd.weight", "embed"),
        ("output.weight", "lm_head"),
        ("blk.0.attn_q.weight", "qko"),
        ("blk.0.attn_output.weight", "qko"),
        ("blk.0.attn_v.weight", "v"),
        ("blk.0.ffn_gate.weight", "gate"),
        ("blk.0.ffn_down.weight", "down"),
    ],
)
def test_role_of_a_name(name: str, role: str) -> None:
    assert classify_role(name) == role
    assert regime(role) == ("index" if role in ("embed", "lm_head") else "argmax")


def test_component_and_group_of_a_name() -> None:
    assert classify_component("talker.code_predictor.x") == "code_predictor"
    assert classify_component("talker.x") == "talker"
    assert classify_component("Speaker_Encoder.x") == "speaker_encoder"
    assert group_key("talker.q_proj", (600, 4, 5)) == PaletteGroupKey("talker", "qko", (600, 20))


@pytest.mark.parametrize(
    ("shape", "nbytes", "encodable"),
    [
        ((512, 100), 100_001, True),
        ((512, 100), 100_000, False),
        ((511, 1000), 10**6, False),
        ((512, 1000, 1), 10**6, True),
        ((512, 1000, 3), 10**7, False),
        ((10**6,), 10**7, False),
    ],
)
def test_what_is_encodable(shape: tuple[int, ...], nbytes: int, encodable: bool) -> None:
    assert is_encodable(shape, nbytes) is encodable


def test_effective_shape() -> None:
    assert effective_shape((7, 3, 3)) == (7, 9)
    assert effective_shape((7,)) == (7, 1)
    with pytest.raises(ValueError, match="scalar"):
        effective_shape(())


@pytest.fixture
def model(rng: np.random.Generator) -> dict[str, NDArray[np.generic]]:
    embed = rng.standard_normal((600, 64)).astype(np.float32)
    return {
        "model.embed_tokens.weight": embed,
        "lm_head.weight": embed.copy(),
        "layers.0.q_proj.weight": rng.standard_normal((520, 104)).astype(ml_dtypes.bfloat16),
        "layers.1.q_proj.weight": rng.standard_normal((520, 104)).astype(ml_dtypes.bfloat16),
        "layers.0.conv.weight": rng.standard_normal((540, 104, 1)).astype(np.float16),
        "layers.0.norm.weight": rng.standard_normal(64).astype(ml_dtypes.bfloat16),
        "position_ids": np.arange(64)[None],
        "steps": np.array(7),
        "none": np.zeros((0, 64), np.float32),
        "mask": rng.standard_normal((4, 5)) > 0,
    }


@pytest.mark.parametrize("profile", ["lookup", "f32"])
def test_a_model_goes_in_and_comes_back(model: dict[str, NDArray[np.generic]], profile: str) -> None:
    with encode(model, profile, metadata={"format": "pt"}) as pack:
        assert pack.keys() == sorted(model)
        assert pack.metadata() == {"format": "pt"}
        codec = {"lookup": "hhtl_d", "f32": "hhtl_f32"}[profile]
        encoded = {n for n in pack if pack.info(n).codec != "keep"}
        assert encoded == {
            "lm_head.weight",
            "model.embed_tokens.weight",
            "layers.0.conv.weight",
            "layers.0.q_proj.weight",
            "layers.1.q_proj.weight",
        }
        assert {pack.info(n).codec for n in encoded} == {codec}
        assert pack.table.tensors["model.embed_tokens.weight"].alias_of == "lm_head.weight"
        for name, array in model.items():
            back = pack.get_tensor(name, "source")
            assert back.dtype == array.dtype
            assert back.shape == array.shape
            if name not in encoded:
                assert back.tobytes() == array.tobytes()
        source = PackSource(pack)
        assert {n: i.shape for n, i in source.infos().items()} == {n: a.shape for n, a in model.items()}
        assert source.read_tensor("steps") == 7


def test_order_of_insertion_does_not_matter(model: dict[str, NDArray[np.generic]]) -> None:
    forward, backward = encode(model, profile="gates"), encode(dict(reversed(model.items())), profile="gates")
    assert forward.table.to_json() == backward.table.to_json()
    for index in range(len(forward.sections.kinds())):
        assert np.array_equal(forward.sections.whole(index), backward.sections.whole(index))


def test_tied_weights_are_stored_once(model: dict[str, NDArray[np.generic]]) -> None:
    plan = make_plan(ArraySource(model), Encoding("lookup"))
    assert plan.tensors["model.embed_tokens.weight"].alias_of == "lm_head.weight"
    nearly = dict(model)
    nearly["lm_head.weight"] = nearly["lm_head.weight"].copy()
    nearly["lm_head.weight"][300, 3] += 1
    assert make_plan(ArraySource(nearly), Encoding("lookup")).tensors["model.embed_tokens.weight"].alias_of is None


def test_weights_that_are_not_finite_are_refused_by_name_and_row(model: dict[str, NDArray[np.generic]]) -> None:
    broken = dict(model)
    broken["layers.1.q_proj.weight"] = broken["layers.1.q_proj.weight"].copy()
    broken["layers.1.q_proj.weight"][517, 9] = np.nan
    with pytest.raises(NonFiniteError, match=r"'layers.1.q_proj.weight' holds nan at row 517, column 9"):
        encode(broken, "lookup")
    pack = encode(broken, "lookup", nonfinite="keep")
    assert pack.info("layers.1.q_proj.weight").codec == "keep"
    assert pack.info("layers.0.q_proj.weight").codec == "hhtl_d"
    assert pack.get_tensor("layers.1.q_proj.weight", "source").tobytes() == broken["layers.1.q_proj.weight"].tobytes()
    with pytest.raises(ValueError, match="nonfinite must be"):
        encode(model, nonfinite="drop")
    with pytest.raises(ValueError, match="no profile 'zip'"):
        encode(model, "zip")


def test_float64_beyond_float32_is_kept_and_infinity_refused(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((600, 64))
    rows[3, 4] = 1e300
    assert encode({"q_proj": rows}, profile="gates").get_tensor("q_proj", "source").tobytes() == rows.tobytes()
    rows[3, 4] = np.inf
    with pytest.raises(NonFiniteError, match=r"holds inf at row 3, column 4; such weights .* they must be finite"):
        encode({"q_proj": rows}, profile="gates")


class _NoArray:
    """As a tensor of torch's bfloat16, which has no type in numpy."""

    __module__ = "torch"

    def __array__(self, dtype: object = None, copy: object = None) -> object:
        raise TypeError("Got unsupported ScalarType BFloat16")


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        ({"a": np.array(["x"])}, TypeError, "tensor 'a': arrays of dtype <U1 cannot be stored"),
        (
            {"a": [[1.0], [1.0, 2.0]]},
            TypeError,
            "'a', list: setting an array element .*; give an array, or lists of eq",
        ),
        (
            {"a": _NoArray()},
            TypeError,
            "'a', _NoArray: Got unsupported ScalarType BFloat16; .* safetensors.torch.save_file",
        ),
        ({"a": np.zeros(3, np.complex128)}, TypeError, "cannot be stored"),
        ({"a": np.array([None])}, TypeError, "cannot be stored"),
        ({3: np.zeros(3)}, TypeError, "names must be str"),
        ({"__metadata__": np.zeros(3)}, ValueError, "not a tensor name"),
        ({"\ud800": np.zeros(3)}, ValueError, "lone surrogate"),
        ({"x" * 70000: np.zeros(3)}, ValueError, "70000 bytes long"),
        ({"a": np.ma.masked_array([1.0], [True])}, TypeError, "masked"),
        ([("a", np.zeros(3))], TypeError, "expected a mapping"),
        (5, TypeError, "expected a mapping"),
    ],
)
def test_bad_arrays_are_refused(tensors: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        encode(tensors, profile="gates")  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize("metadata", [{"a": 1}, {1: "a"}, {"a": None}])
def test_metadata_is_text(metadata: dict[str, str]) -> None:
    with pytest.raises(TypeError, match="must map str to str"):
        encode({"a": np.zeros(3)}, metadata=metadata)


def test_inputs_are_not_changed(model: dict[str, NDArray[np.generic]]) -> None:
    before = {name: array.tobytes() for name, array in model.items()}
    for array in model.values():
        array.flags.writeable = False
    encode(model, profile="gates")
    assert {name: array.tobytes() for name, array in model.items()} == before


def test_row_cosines_at_the_edges() -> None:
    rows = np.array([[3, 4], [0, 0], [0, 0], [1, 0], [1, 1], [1e-30, 0], [3e38, 3e38]], np.float32)
    back = np.array([[6, 8], [0, 0], [1, 0], [0, 0], [-1, -1], [1e-30, 0], [3e38, 3e38]], np.float32)
    assert row_cosines(rows, back) == pytest.approx([1, 1, 0, 0, -1, 1, 1])
    back[0, 0] = np.inf
    back[4, 1] = np.nan
    assert row_cosines(rows, back)[[0, 4]].tolist() == [-1, -1]


def test_row_cosines_against_numpy(rng: np.random.Generator) -> None:
    a, b = (rng.standard_normal((50, 33)).astype(np.float32) for _ in range(2))
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    expected = (wide_a * wide_b).sum(1) / np.sqrt((wide_a**2).sum(1) * (wide_b**2).sum(1))
    assert row_cosines(a, b) == pytest.approx(expected, abs=1e-12)


def test_quantiles_are_real_rows_rounded_down() -> None:
    cosines = np.linspace(0, 1, 101)[::-1]
    found = summarize(cosines)
    assert found.n_rows == 101
    assert found.worst_row == 100
    assert found.quantiles == pytest.approx(np.linspace(0, 1, 21), abs=2e-6)
    assert all(q <= exact for q, exact in zip(found.quantiles, np.linspace(0, 1, 21), strict=True))
    assert type(found).from_json(found.to_json()) == found
    assert summarize(np.zeros(0)).passes(Threshold(1, 1))


def test_gates_pass_and_fail_by_median_and_p5() -> None:
    report = GateReport(enforced=True, min_ratio=2.0)
    report.ratio = 7.0
    report.add("a", "argmax", np.full(100, 0.951))
    report.add("b", "index", np.r_[np.full(96, 0.99), np.full(4, 0.1)])
    assert report
    assert report.to_json()["regimes"]["index"]["worst"] == {"tensor": "b", "row": 96}
    report.add("c", "index", np.full(10, 0.2))
    assert not report, "p5 of the regime fell"
    assert not report.reached
    lenient = GateReport(enforced=False)
    lenient.add("a", "argmax", np.zeros(3))
    assert lenient
    assert not lenient.reached
    short = GateReport(enforced=True)
    assert short, "nothing is encoded"
    short.add("a", "argmax", np.ones(3))
    short.ratio = 1.9
    assert not short, "gate 3"


def test_regime_quantiles_never_exceed_the_truth(rng: np.random.Generator) -> None:
    report = GateReport(enforced=False)
    cosines = 1 - rng.exponential(0.05, 5000).clip(0, 2)
    for part in np.array_split(cosines, 7):
        report.add(str(len(report.tensors)), "argmax", part)
    found = report.regimes["argmax"]
    for fraction, told in ((0.05, found.p5), (0.5, found.median)):
        exact = np.quantile(cosines, fraction, method="lower")
        assert exact - 1e-6 <= told <= exact


def test_a_regime_is_judged_on_the_numbers_that_tensors_record(rng: np.random.Generator) -> None:
    cosines = rng.uniform(0.9899, 0.9911, 400)
    recorded = summarize(cosines)
    report = GateReport(enforced=True, thresholds={"argmax": Threshold(recorded.median, recorded.p5)})
    report.add("w", "argmax", cosines)
    assert (report.regimes["argmax"].median, report.regimes["argmax"].p5) == (recorded.median, recorded.p5)
    assert report.regimes["argmax"].passes(report.thresholds["argmax"])
    just_above = Threshold(recorded.median + 1e-6, recorded.p5)
    assert not report.regimes["argmax"].passes(just_above)


def test_rows_of_zeros_are_counted_apart() -> None:
    rows = np.zeros((100, 4), np.float32)
    rows[::10] = [3, 4, 0, 0]
    back = rows.copy()
    back[::10] = [4, 3, 0, 0]  # cosine .96
    found = summarize(judged_cosines(rows, back))
    assert (found.n_rows, found.n_zero_rows, found.n_zero_rows_lost) == (100, 90, 0)
    assert set(found.quantiles) == {0.96}, "ninety perfect zeros buy nothing"
    assert CosineSummary.from_json(found.to_json()) == found
    assert not found.passes(Threshold(0.97, 0.97))
    report = GateReport(enforced=True)
    report.add("w", "index", judged_cosines(rows, back))
    facts = report.to_json()["regimes"]["index"]
    assert (facts["n_rows"], facts["n_zero_rows"], facts["median"]) == (100, 90, 0.96)
    assert not report.regimes["index"].passes(Threshold(0.97, 0.97))
    assert "n_zero_rows" not in summarize(np.full(3, 0.5)).to_json(), "old files stay what they were"


def test_a_row_of_zeros_that_comes_back_as_something_fails_and_is_named() -> None:
    rows, back = np.ones((50, 4), np.float32), np.ones((50, 4), np.float32)
    rows[[7, 31]] = 0
    back[7] = 0
    found = summarize(judged_cosines(rows, back))
    assert (found.n_zero_rows, found.n_zero_rows_lost, found.worst_row, found.minimum) == (2, 1, 31, 1.0)
    assert CosineSummary.from_json(found.to_json()) == found
    assert not found.passes(Threshold(-1, -1))
    report = GateReport(enforced=True)
    report.ratio = 3.0
    report.add("w", "argmax", judged_cosines(rows, back))
    assert not report
    assert "1 rows of zeros that do not come back as zeros, the first of them row 31 of w" in report.verdict()
    group = GroupCosines(Threshold(-1, -1))
    group.add("w", 50, 0, judged_cosines(rows, back))
    assert not group.passes()


def test_nothing_but_rows_of_zeros_passes_without_quantiles() -> None:
    zeros = np.zeros((5, 3), np.float32)
    found = summarize(judged_cosines(zeros, zeros))
    assert (found.n_rows, found.n_zero_rows, found.worst_row) == (5, 5, 0)
    report = GateReport(enforced=True)
    report.ratio = 3.0
    report.add("w", "argmax", judged_cosines(zeros, zeros))
    assert report
    assert report.to_json()["regimes"]["argmax"].keys() == {"n_rows", "n_zero_rows", "required"}
    group = GroupCosines(Threshold(1, 1))
    group.add("w", 5, 0, judged_cosines(zeros, zeros))
    assert group.passes()


def test_counts_take_memory_for_values_that_occur_only() -> None:
    import tracemalloc

    tracemalloc.start()
    report = GateReport(enforced=False)
    for number in range(800):
        report.add(str(number), "argmax", np.linspace(0.95, 0.96, 64), f"group {number}")
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(report.groups) == 800
    assert held < 8 << 20, "a group of 64 rows used to take 1.6 MB"
    assert report.regimes["argmax"].n_rows == 800 * 64


def test_thresholds_that_are_no_cosines_are_refused() -> None:
    for wrong in (float("nan"), float("inf"), 1.01, -2):
        with pytest.raises(ValueError, match="must be a cosine"):
            Threshold(wrong, 0.5)
        with pytest.raises(ValueError, match="must be a cosine"):
            Threshold(0.5, wrong)
    for wrong in ("0.5", None, True):
        with pytest.raises(TypeError, match="must be a number"):
            Threshold(wrong, 0.5)  # type: ignore[arg-type]  # what the test is about


def test_gates_of_unknown_regimes_are_refused() -> None:
    source = ArraySource({"w": np.ones((4, 4), np.float32)})
    with pytest.raises(ValueError, match="no regime 'Index'; gates are for 'argmax' and 'index'"):
        make_plan(source, Encoding("gates", gates={"Index": Threshold(0.9999, 0.9999)}))
    with pytest.raises(TypeError, match="must be a Threshold, got tuple"):
        make_plan(source, Encoding("gates", gates={"index": (0.99, 0.98)}))  # type: ignore[dict-item]  # what the test is about


def test_what_is_recorded_is_what_is_measured(model: dict[str, NDArray[np.generic]]) -> None:
    pack = encode(model, "lookup")
    report = GateReport(enforced=False)
    measure(pack, ArraySource(model), report)
    assert report.tensors
    for name, cosines in report.tensors.items():
        assert pack.info(name).gates == cosines


def test_a_missing_name_suggests_the_nearest() -> None:
    pack = hhtld.encode({"lm_head.weight": np.zeros((3, 4))})
    with pytest.raises(KeyError, match=r"did you mean 'lm_head\.weight'"):
        pack.get_tensor("lm_head.weights")


def test_column_scales_travel_with_the_pack(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((60, 128)).astype(np.float32)
    rows[:, :9] *= 6
    scale = np.where(np.arange(128) < 9, 1 / 6, 1).astype(np.float32)
    pack = encode({"x.up_proj": rows, "y.up_proj": rows + 1}, "bits:3", column_scales={"x.up_proj": scale})
    assert "column_scale" in pack.info("x.up_proj").sections
    assert "column_scale" not in pack.table.tensors["y.up_proj"].sections
    assert row_cosines(rows, pack.get_tensor("x.up_proj")).min() > 0.95
    for bad in ({"z": scale}, {"x.up_proj": scale[:-1]}, {"x.up_proj": scale * 0}):
        with pytest.raises(ValueError, match="column scale"):
            encode({"x.up_proj": rows}, "bits:3", column_scales=bad)


def test_a_reader_may_stop_after_the_first_level(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((50, 300)).astype(np.float32)  # too wide for a ring, which has one level only
    pack = encode({"x.v_proj": rows}, "bits:2+1")
    coarse, fine = pack.get_tensor("x.v_proj", levels=1), pack.get_tensor("x.v_proj")
    assert 0.955 < np.median(row_cosines(rows, coarse)) < 0.97 < 0.985 < np.median(row_cosines(rows, fine))
    assert np.array_equal(pack.get_rows("x.v_proj", [7, 3], levels=1), coarse[[7, 3]])
    alone = encode({"x.v_proj": rows}, "bits:2")
    assert np.array_equal(alone.get_tensor("x.v_proj"), coarse), "the first level is what it would be alone"
    with pytest.raises(ValueError, match="levels must be 1 or 2"):
        pack.get_tensor("x.v_proj", levels=3)


@pytest.mark.parametrize("profile", ["lookup", "f32", "bits:2", "bits:2+1"])
def test_slots_of_chosen_rows_are_those_of_all(profile: str) -> None:
    rng = np.random.default_rng(8)
    pack = encode({"embed.weight": rng.standard_normal((600, 96)).astype(np.float32)}, profile)
    whole = pack.get_tensor("embed.weight")
    for rows in ([], slice(0, 0), [599, 0, 599], slice(None, None, -100), slice(5, 9)):
        index = np.asarray(rows, np.intp) if isinstance(rows, list) else rows
        np.testing.assert_array_equal(pack.get_rows("embed.weight", rows), whole[index])
        part = pack.get_encoded("embed.weight", rows)
        assert part.original_shape == whole[index].shape
        np.testing.assert_array_equal(part.reconstruct_rows(), whole[index])


def test_a_file_is_encoded_as_its_arrays_are(tmp_path: Path, rng: np.random.Generator) -> None:
    arrays = {"embed.weight": rng.standard_normal((90, 64)).astype(np.float32), "ids": np.arange(7)}
    save_file(arrays, tmp_path / "m.safetensors")
    packs = []
    for given in (arrays, tmp_path / "m.safetensors", str(tmp_path / "m.safetensors")):
        with encode(given, "bits:3") as pack:
            packs.append({name: pack.get_tensor(name).tobytes() for name in pack})
    assert packs[0] == packs[1] == packs[2]
    with pytest.raises(ValueError, match="metadata is for arrays; a source brings its own"):
        encode(tmp_path / "m.safetensors", metadata={"a": "b"})
    with pytest.raises(FileNotFoundError):
        encode(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("value", [1e38, 1e-38, 0.0, -1.0, np.nan, np.inf])
def test_column_scales_outside_their_range_are_refused_with_it(value: float) -> None:
    scale = np.ones(64, np.float32)
    scale[7] = value
    said = re.escape(f"column scale 'w' must hold numbers between 1e-30 and 1e30, and holds {scale[7]} at column 7")
    with pytest.raises(ValueError, match=said):
        hhtld.encode({"w": np.eye(64, dtype=np.float32)}, "bits:4", column_scales={"w": scale})
