"""Arguments that cannot be meant are refused at the door, with a sentence; a closed pack is no bad file."""

from __future__ import annotations

import copy
import json
import re
import time
from pathlib import Path
from typing import Any, cast

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import hhtld
from hhtld.errors import ClosedError, FormatError, OutputError, did_you_mean
from hhtld.formats import get_format, open_source
from hhtld.sources.contract import ArraySource
from hhtld.sources.rows import ArrayRows

untyped: Any = hhtld  # to a type checker: these calls are those that it would refuse, and the door must, too


@pytest.fixture
def model(tmp_path: Path) -> Path:
    rows = np.random.default_rng(0).standard_normal((600, 64)).astype(np.float32)
    save_file({"w": rows, "kept": np.ones(3)}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": 1.5}, "seed (--seed) must be an integer from 0 to 2^64 - 1, got 1.5"),
        ({"seed": True}, "seed (--seed) must be an integer from 0 to 2^64 - 1, got True"),
        ({"seed": -1}, "seed (--seed) must be an integer from 0 to 2^64 - 1, got -1"),
        ({"seed": 2**64}, "seed (--seed) must be an integer from 0 to 2^64 - 1"),
        ({"profile": 2}, "a profile is text such as 'gates' or 'bits:2', got int"),
        ({"rules": [("w", None)]}, "a profile is text such as 'gates' or 'bits:2', got NoneType"),
        ({"rules": "w=keep"}, "rules are pairs of a glob and a profile, got 'w=keep'"),
        ({"rules": ["w=keep"]}, "rules are pairs of a glob and a profile, got ['w=keep']"),
        ({"gates": ("index", 0.9)}, "gates must map regimes to thresholds, got tuple"),
        ({"memory": "1GiB"}, "memory (--memory) must be a whole number of bytes, got '1GiB'"),
        ({"memory": 1e9}, "memory (--memory) must be a whole number of bytes, got 1000000000.0"),
        ({"budget": "64GiB"}, "budget (--budget) must be a whole number of bytes, got '64GiB'"),
        ({"jobs": "2"}, "jobs (--jobs) must be a whole number of threads, got '2'"),
        ({"executor": 5}, "an executor is a name or has submit(), got int"),
        ({"min_ratio": "2"}, "min_ratio (--min-ratio) must be a number, got '2'"),
        ({"min_ratio": True}, "min_ratio (--min-ratio) must be a number, got True"),
        ({"target_top1": "0.9", "calibrate": "builtin"}, "target_top1 (--target-top1) must be a number, got '0.9'"),
        ({"target_bits": [4], "calibrate": "builtin"}, "target_bits (--target-bits) must be a number, got [4]"),
        ({"calibrate": 1.5}, "calibrate (--calibrate) must be 'builtin', a path or a Calibration, got 1.5"),
        ({"rates": 4.0}, "rates must be a mapping from names of tensors, got 4.0"),
        ({"column_scales": [1.0]}, "column_scales must be a mapping from names of tensors, got [1.0]"),
        ({"allow_keep": "no"}, "allow_keep (--allow-keep) must be True or False, got 'no'"),
        ({"resume": "no"}, "resume (--resume) must be True or False, got 'no'"),
        ({"files": 0}, "files (--no-files) must be True or False, got 0"),
        ({"dry_run": "no"}, "dry_run (--dry-run) must be True or False, got 'no'"),
        ({"progress": "bar"}, "progress must be a function of a stage, a name and bytes, got 'bar'"),
        ({"executor": "ray"}, "no executor 'ray'; available: threads, dask:local, dask:ADDRESS"),
        ({"calibration": "a", "calibrate": "b"}, "calibration and calibrate say the same: give one"),
        ({"profile": "gates", "target_top1": 0.9}, "target_bits (--target-bits) are for profile 'parity' only"),
        ({"target_top1": 0.9}, "target_top1 (--target-top1) needs calibrate (--calibrate): 'builtin', a text"),
        (
            {"calibrate": "t", "target_top1": 0.9, "target_bits": 4},
            "give one of target_top1 (--target-top1) and target_b",
        ),
        ({"calibrate": "t", "column_scales": {}}, "a calibration brings its own column_scales; give one of the two"),
        ({"calibrate": "t", "rates": {}}, "a calibration brings its own rates; give one of the two"),
        (
            {"calibrate": "t", "calibrate_tokens": 0},
            "calibrate_tokens (--calibrate-tokens) must be a positive integer, got 0",
        ),
        (
            {"calibrate": "t.safetensors", "calibrate_tokens": 9},
            "calibrate_tokens (--calibrate-tokens) says how much of a text",
        ),
        # What is gone through twice must not be empty the second time.
        ({"rules": iter([("w", "keep")])}, "rules (--rule) must be a sequence of pairs, got <list_iterator"),
        ({"roles": 5}, "roles (--role) must be a sequence of pairs, got 5"),
        ({"only": iter(["w"])}, "only is a sequence of globs, got <list_iterator"),
        ({"skip": 5}, "skip is a sequence of globs, got 5"),
    ],
)
def test_conversions_refuse_what_cannot_be_meant(model: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        hhtld.convert(model, model.with_suffix(".hhtld"), **given)
    assert sorted(path.name for path in model.parent.iterdir()) == ["model.safetensors"]


def test_a_seed_of_numpy_is_a_seed(model: Path) -> None:
    untyped.convert(model, model.with_suffix(".hhtld"), profile="gates", seed=np.uint64(7))
    with hhtld.open(model.with_suffix(".hhtld")) as pack:
        assert pack.table.groups[0].numbers["seed"] == 7


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: untyped.encode({"w": np.ones((2, 2))}, 4), "a profile is text"),
        (lambda: untyped.encode({"w": np.ones((2, 2))}, metadata=["a"]), "metadata must map str to str, got list"),
        (lambda: untyped.open("no file", budget="1GiB"), "budget must be a whole number of bytes, got '1GiB'"),
        (lambda: untyped.load_file("no file", budget=1e9), "budget must be a whole number of bytes, got 1000000000.0"),
        (lambda: hhtld.encode({"w": np.ones((2, 2))}, metadata={"a": "\ud800"}), "holds a lone surrogate"),
        (lambda: get_format("pipeline").write_source(ArraySource({}), Path("x")), "'pipeline' does not write tensors"),
        (lambda: get_format("pipeline").write_plan(*[cast("Any", None)] * 5), "format 'pipeline' does not encode"),
        (lambda: untyped.save({"w": np.ones((2, 2))}, "x.hhtld"), "save writes a pack, got dict; save_file"),
    ],
)
def test_functions_refuse_what_cannot_be_meant(call: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_what_a_tensor_does_not_have_is_said() -> None:
    pack = hhtld.encode({"scalar": np.float32(3), "kept": np.ones((2, 3), np.int64)})
    with pytest.raises(ValueError, match="tensor 'scalar' has no rows; use get_tensor"):
        pack.prefetch("scalar", [0])
    with pytest.raises(ValueError, match="tensor 'kept' is kept as it came; use get_tensor"):
        pack.get_encoded("kept")


def test_an_open_file_is_not_copied(model: Path) -> None:
    hhtld.convert(model, model.with_suffix(".hhtld"), profile="bits:2")
    said = r"model\.hhtld: an open file cannot be copied or pickled; open it again"
    with hhtld.open(model.with_suffix(".hhtld")) as pack, pytest.raises(TypeError, match=said):
        copy.copy(pack.sections)


def test_misspelt_names_of_packages_are_no_attributes() -> None:
    assert "convert" in dir(hhtld)
    with pytest.raises(AttributeError, match=r"module 'hhtld\._kernels' has no attribute '_trelis'"):
        _ = untyped._kernels._trelis
    with pytest.raises(AttributeError, match=r"module 'hhtld\.pack' has no attribute 'rows'"):
        _ = untyped.pack.rows


def test_no_budget_is_below_nothing() -> None:
    with pytest.raises(ValueError, match="budget must be a number of bytes, 0 or more, got -1"):
        hhtld.open("no file", budget=-1)


@pytest.mark.parametrize("mmap", [True, False])
def test_a_closed_pack_is_no_bad_file(model: Path, mmap: bool) -> None:
    target = model.with_suffix(".hhtld")
    hhtld.convert(model, target, profile="gates", files=False)
    pack = hhtld.open(target, mmap=mmap)
    pack.get_rows("w", [1])
    pack.close()
    doors: list[Any] = [
        lambda: pack.get_tensor("w"),
        lambda: pack.get_tensor("kept"),
        lambda: pack.get_rows("w", [0]),
        lambda: pack.get_slice("kept")[:1],
        lambda: pack.get_encoded("w"),
        lambda: pack.scorer("w"),
    ]
    for door in doors:
        with pytest.raises(ClosedError, match="closed") as caught:
            door()
        assert not isinstance(caught.value, FormatError)


def test_a_pack_closed_before_anything_was_read_is_no_bad_file(model: Path) -> None:
    hhtld.convert(model, model.with_suffix(".hhtld"), profile="lookup")
    pack = hhtld.open(model.with_suffix(".hhtld"))
    pack.close()
    with pytest.raises(ClosedError):
        pack.get_tensor("w")


def test_a_closed_source_says_so(model: Path) -> None:
    source = open_source(model)
    source.close()
    with pytest.raises(ClosedError, match="is closed"):
        source.read_rows("w", 0, 1)


def test_an_output_error_without_a_number_shows_none(tmp_path: Path) -> None:
    (tmp_path / "taken.hhtld").mkdir()
    pack = hhtld.encode({"w": np.ones(3)})
    with pytest.raises(OutputError) as caught:
        hhtld.save(pack, tmp_path / "taken.hhtld")
    assert str(caught.value).startswith("cannot write")
    with pytest.raises(OutputError, match=r"^cannot write '': give a name$"):
        hhtld.save(pack, "")


def test_a_wrong_name_among_many_costs_milliseconds() -> None:
    names = [
        f"model.layers.{layer}.mlp.experts.{expert}.up_proj.weight" for layer in range(80) for expert in range(256)
    ]
    names += ["model.embed_tokens.weight"]
    started = time.process_time()
    found = did_you_mean("model.layers.7.mlp.experts.19.upproj.weight", names)
    assert time.process_time() - started < 1
    assert "'model.layers.7.mlp.experts.19.up_proj.weight'" in found
    assert "'model.embed_tokens.weight'" in did_you_mean("embed_tokens.weight", names)
    assert "'model.layers.3.mlp.experts.4.up_proj.weight'" in did_you_mean(
        "layers.3.mlp.experts.4.up_proj.weight", names
    )
    assert did_you_mean("zzz", ["a", "b"]) == ""


def test_masked_and_structured_queries_are_refused() -> None:
    pack = hhtld.encode({"w": np.random.default_rng(0).standard_normal((600, 64)).astype(np.float32)}, "bits:2")
    scorer = pack.scorer("w")
    with pytest.raises(TypeError, match="queries are a masked array; fill it first"):
        scorer.scores(np.ma.masked_array(np.ones(64, np.float32), np.arange(64) < 3))
    with pytest.raises(ValueError, match="a query must be 64 real numbers"):
        scorer.scores(np.zeros((3, 64), [("a", "f4"), ("b", "f4")]))
    with pytest.raises(TypeError, match="rows to rescore with are a masked array"):
        scorer.topk(np.ones(64, np.float32), 3, rescore=np.ma.masked_array(np.ones((600, 64), np.float32)))
    scorer.scores(np.ones(64, ml_dtypes.bfloat16))


def test_masked_and_structured_rows_are_refused() -> None:
    with pytest.raises(TypeError, match="rows are a masked array; fill it first"):
        ArrayRows(np.ma.masked_array(np.ones((2, 2))))
    with pytest.raises(ValueError, match="rows must be real numbers"):
        ArrayRows(np.zeros((2, 2), [("a", "f4")]))


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("name", ["w", "kept"])
@pytest.mark.parametrize("dtype", ["float32", "source"])
def test_rows_are_the_callers_to_change(tmp_path: Path, mmap: bool, name: str, dtype: str) -> None:
    rows = np.random.default_rng(0).standard_normal((600, 64)).astype(np.float32)
    save_file({"w": rows, "kept": np.ones((5, 3))}, tmp_path / "m.safetensors")
    hhtld.convert(tmp_path / "m.safetensors", tmp_path / "m.hhtld", profile="bits:2", rules=[("kept", "keep")])
    with hhtld.open(tmp_path / "m.hhtld", mmap=mmap) as pack:
        for index in ([1], [1, 3], slice(1, 3), slice(0, 4, 2)):
            pack.get_rows(name, index, dtype=dtype)[:] = 7
        assert not (pack.get_rows(name, [1], dtype=dtype) == 7).any()


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        (("A.safetensors", "a.safetensors"), "are one file on some systems"),
        (
            ("caf\u00e9.safetensors", "cafe\u0301.safetensors"),
            "are one file on some systems",
        ),
        (("NUL.safetensors", "b.safetensors"), "has the name of a device of Windows"),
    ],
)
def test_shards_must_stand_side_by_side_on_every_system(tmp_path: Path, shards: tuple[str, str], message: str) -> None:
    for number, shard in enumerate(shards):
        save_file({f"w{number}": np.ones((2, 2))}, tmp_path / shard)
    weight_map = {f"w{number}": shard for number, shard in enumerate(shards)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(FormatError, match=message):
        open_source(tmp_path)
