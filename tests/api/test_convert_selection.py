"""Some tensors of a model: a table in a file of its own beside the rest, as if each had come alone."""

from __future__ import annotations

import json
import re
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import hhtld
from hhtld.commands.main import main
from hhtld.commands.verify import verify
from hhtld.formats import open_source
from hhtld.sources.contract import ArraySource
from hhtld.sources.selection import select_tensors

TABLE = "model.per_layer_token_embd.weight"
Model = dict[str, NDArray[Any]]


@pytest.fixture
def model() -> Model:
    draw = np.random.default_rng(0)
    shapes = {TABLE: (700, 160), "model.layers.0.mlp.up_proj.weight": (320, 64), "model.norm.weight": (64,)}
    return {
        name: draw.standard_normal(shape, dtype=np.float32).astype(ml_dtypes.bfloat16) for name, shape in shapes.items()
    }


@pytest.fixture
def snapshot(model: Model, tmp_path: Path) -> Path:
    """Return a folder of two shards, the table in one of its own."""
    folder = tmp_path / "model"
    folder.mkdir()
    shards = {name: f"model-0000{1 + (name == TABLE)}-of-00002.safetensors" for name in model}
    for shard in set(shards.values()):
        save_file({name: model[name] for name in model if shards[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    (folder / "config.json").write_text("{}")
    return folder


def test_a_table_and_the_rest_are_what_each_would_be_alone(model: Model, snapshot: Path, tmp_path: Path) -> None:
    table, rest, alone = (tmp_path / f"{name}.hhtld" for name in ("table", "rest", "alone"))
    taken = hhtld.convert(snapshot, table, only=["*token_embd*"], profile="bits:4", files=False)
    left = hhtld.convert(snapshot, rest, skip=["*token_embd*"], profile="bits:4")
    assert [outcome.info.name for outcome in taken.tensors] == [TABLE]
    assert {outcome.info.name for outcome in left.tensors} == set(model) - {TABLE}
    assert taken.source_nbytes == model[TABLE].nbytes
    save_file({TABLE: model[TABLE]}, tmp_path / "alone.safetensors")
    hhtld.convert(tmp_path / "alone.safetensors", alone, profile="bits:4")
    with hhtld.open(table) as pack, hhtld.open(alone) as same, hhtld.open(rest) as others:
        assert list(pack) == [TABLE]
        assert TABLE not in others
        np.testing.assert_array_equal(pack.get_tensor(TABLE), same.get_tensor(TABLE))
    for pack_path in (table, rest):
        with open_source(snapshot) as source, open_source(pack_path) as packed:
            for name in packed.infos():
                assert packed.infos()[name].shape == source.infos()[name].shape


def test_the_rest_goes_into_a_folder_that_loads(model: Model, snapshot: Path, tmp_path: Path) -> None:
    hhtld.convert(snapshot, tmp_path / "plain", skip=[TABLE])
    shards = sorted(path.name for path in (tmp_path / "plain").glob("*.safetensors"))
    assert shards == ["model-00001-of-00002.safetensors"]
    index = json.loads((tmp_path / "plain" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(model) - {TABLE}
    found = load_file(tmp_path / "plain" / shards[0])
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in model.items() if name != TABLE
    }


def test_a_pack_is_a_source_too(snapshot: Path, tmp_path: Path) -> None:
    hhtld.convert(snapshot, tmp_path / "all.hhtld", profile="bits:4")
    hhtld.convert(tmp_path / "all.hhtld", tmp_path / "table.safetensors", only=["*embd*", "*embd.weight"])
    with hhtld.open(tmp_path / "all.hhtld") as pack:
        rows = pack.get_tensor(TABLE, "source")
    assert {name: array.tobytes() for name, array in load_file(tmp_path / "table.safetensors").items()} == {
        TABLE: rows.tobytes()
    }


def test_other_processes_read_the_tensors_that_are_chosen(snapshot: Path, tmp_path: Path) -> None:
    hhtld.convert(snapshot, tmp_path / "here.hhtld", only=[TABLE], profile="bits:3", jobs=1)
    with ProcessPoolExecutor(1, get_context("spawn")) as elsewhere:
        hhtld.convert(snapshot, tmp_path / "there.hhtld", only=[TABLE], profile="bits:3", executor=elsewhere, jobs=1)
    assert (tmp_path / "here.hhtld").read_bytes() == (tmp_path / "there.hhtld").read_bytes()


def test_tensors_that_share_bytes_with_what_was_left_out_share_them_still() -> None:
    class Tied(ArraySource):
        def aliases(self) -> dict[str, str]:
            return {"b": "a", "c": "a", "d": "a"}

    source = Tied(dict.fromkeys("abcde", np.ones((2, 3))))
    assert select_tensors(source, [], ["a"]).aliases() == {"c": "b", "d": "b"}
    assert select_tensors(source, ["[acd]"], ["d"]).aliases() == {"c": "a"}
    assert select_tensors(source, [], []) is source


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"only": ["*ngram*"]}, "no tensor matches '*ngram*'"),
        ({"skip": ["*ngram*"]}, "no tensor matches '*ngram*'"),
        ({"only": [TABLE], "skip": ["*"]}, "only (--only) and skip (--skip) leave no tensor of the source"),
        ({"only": TABLE}, f"only is a sequence of globs, got '{TABLE}'"),
        ({"skip": [3]}, "skip is a sequence of globs, got [3]"),
        (
            {"only": [TABLE], "calibrate": "builtin"},
            "calibrate (--calibrate) runs the whole model, and only (--only) would leave tensors of it out",
        ),
        (
            {"skip": [TABLE], "dst": "seen.h5"},
            "format 'hdf5' takes no skip (--skip); tensors (--tensor) choose what it shows",
        ),
    ],
)
def test_what_chooses_nothing_or_too_little_is_refused(
    snapshot: Path, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    target = tmp_path / given.pop("dst", "out.hhtld")
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        hhtld.convert(snapshot, target, **given)
    assert not target.exists()


def test_the_command_line_chooses_too(snapshot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, rest = str(tmp_path / "table.hhtld"), str(tmp_path / "rest.hhtld")
    assert main(["convert", str(snapshot), table, "--only", "*embd*", "--profile", "bits:4"]) == 0
    assert main(["convert", str(snapshot), rest, "--skip", "*embd*", "--profile", "bits:4"]) == 0
    with hhtld.open(table) as pack, hhtld.open(rest) as others:
        assert list(pack) == [TABLE]
        assert len(others) == 2
    assert main(["verify", table, str(snapshot), "--only", "*embd*"]) == 0
    assert main(["verify", rest, str(snapshot), "--skip", "*embd*"]) == 0
    assert main(["verify", table, str(snapshot)]) != 0
    assert "tensor 'model.norm.weight' of the source is missing" in capsys.readouterr().out
    assert main(["verify", table, "--only", "*embd*"]) != 0
    assert "--only and --skip choose tensors of SRC; give SRC, too" in capsys.readouterr().err
    assert main(["convert", str(snapshot), rest, "--skip", "*embed*"]) != 0
    assert "no tensor matches '*embed*'" in capsys.readouterr().err


def test_a_part_says_that_it_is_one(snapshot: Path, tmp_path: Path) -> None:
    for target in ("table.hhtld", "table.safetensors", "table/"):
        report = hhtld.convert(snapshot, tmp_path / target, only=[TABLE])
        assert sum("2 of 3 tensors were left out" in note for note in report.notes) == 1
    whole = hhtld.convert(snapshot, tmp_path / "whole.hhtld", only=["*"], min_ratio=0)
    assert not any("left out" in note for note in whole.notes)


@pytest.mark.parametrize(("target", "to"), [("x.gguf", None), ("x.onnx", None), ("x/", "hf")])
def test_what_is_loaded_as_a_whole_model_is_not_written_in_part(
    target: str, to: str | None, snapshot: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="what it writes is loaded as a whole model"):
        hhtld.convert(snapshot, tmp_path / target, to=to, skip=[TABLE])


def test_a_part_leaves_the_graph_of_the_whole_behind() -> None:
    source = ArraySource(
        {"a": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float32)},
        {},
        {"onnx.graph": b"x", "config.json": b"{}"},
    )
    part = select_tensors(source, ["a"], [])
    assert set(part.files()) == {"config.json"}
    assert "the pack cannot become an .onnx again" in part.file_notes[0]


def test_what_verify_compares_needs_a_source(snapshot: Path, tmp_path: Path) -> None:
    hhtld.convert(snapshot, tmp_path / "table.hhtld", only=[TABLE])
    with pytest.raises(ValueError, match="choose tensors of SRC; give SRC, too"):
        verify(tmp_path / "table.hhtld", only=[TABLE])
