"""ONNX in, pack, ONNX out: the graph travels without its weights, and onnxruntime runs what comes back."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import hhtld
from hhtld.commands.main import main
from hhtld.errors import FormatError, HeaderError, OutputError
from hhtld.formats import get_format, open_source
from hhtld.sources.contract import TensorSource

onnx = pytest.importorskip("onnx", reason="needs the package of the extra 'onnx'")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402 - once it is known to be there

from hhtld.formats.onnx import OnnxFile, writing  # noqa: E402 - after the skip
from hhtld.formats.onnx.reading import GRAPH_FILE, SETTINGS_FILE  # noqa: E402 - after the skip

TOKENS, WIDTH, HIDDEN = 96, 64, 128


def weights() -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(3)
    shapes = {"table": (TOKENS, WIDTH), "up": (WIDTH, HIDDEN), "kernel": (HIDDEN, HIDDEN, 3), "then_w": (HIDDEN, 32)}
    found = {name: rng.standard_normal(shape, np.float32) / 8 for name, shape in shapes.items()}
    return found | {"bias": rng.standard_normal(HIDDEN, np.float32)}


def network(**replaced: NDArray[np.float32]) -> Any:
    """A lookup, a product, a convolution and a branch whose body has a weight of its own: all that graphs do."""
    held = weights() | replaced
    branches = []
    for name, values in (("then_w", held["then_w"]), ("else_w", held.get("else_w", -held["then_w"]))):
        inner = helper.make_graph(
            [helper.make_node("MatMul", ["turned", name], [f"{name}_out"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(values, name)],
        )
        branches.append(inner)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("MatMul", ["rows", "up"], ["wide"]),
        helper.make_node("Constant", [], ["bias"], value=numpy_helper.from_array(held["bias"], "unnamed")),
        helper.make_node("Add", ["wide", "bias"], ["moved"]),
        helper.make_node("Transpose", ["moved"], ["channels"], perm=[0, 2, 1]),
        helper.make_node("Conv", ["channels", "kernel"], ["seen"], pads=[1, 1]),
        helper.make_node("Transpose", ["seen"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("If", ["which"], ["out"], name="branch", then_branch=branches[0], else_branch=branches[1]),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, [1, "n"]),
            helper.make_tensor_value_info("which", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, "n", 32])],
        [numpy_helper.from_array(held[name], name) for name in ("table", "up", "kernel")],
        doc_string="what it is for",
    )
    made = helper.make_model(graph, producer_name="tests", opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(made, {"author": "ä"})
    return made


def outputs(path: Path) -> list[NDArray[np.float32]]:
    runtime = pytest.importorskip("onnxruntime", reason="needs the package of the extra 'speech'")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    ids = np.arange(0, TOKENS, 5, dtype=np.int64)[None]
    return [session.run(None, {"ids": ids, "which": np.array(which)})[0] for which in (True, False)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "net.onnx"
    onnx.save(network(), found)
    return found


def outside(path: Path) -> Path:
    """The same network with its weights in a file beside it."""
    found = path.with_name("outside.onnx")
    onnx.save(
        network(), found, save_as_external_data=True, location="weights.bin", size_threshold=0, convert_attribute=True
    )
    return found


def pack_of(src: Path, **options: Any) -> Path:
    target = src.with_suffix(".hhtld")
    hhtld.convert(src, target, **({"profile": "bits:4", "min_ratio": 0, "jobs": 1} | options))
    return target


def kept(src: Path) -> Path:
    return pack_of(src, rules=[("*", "keep")])


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# --- what comes back ---------------------------------------------------------------------------


def test_what_was_kept_comes_back_byte_for_byte(path: Path, tmp_path: Path) -> None:
    hhtld.convert(kept(path), tmp_path / "back.onnx")
    assert (tmp_path / "back.onnx").read_bytes() == path.read_bytes()


def test_onnxruntime_gives_the_outputs_of_the_decoded_weights(path: Path, tmp_path: Path) -> None:
    pack = pack_of(path)
    report = hhtld.convert(pack, tmp_path / "back.onnx")
    assert report.notes == []
    decoded = hhtld.load_file(pack)
    inner = {name.rpartition("/")[2]: values for name, values in decoded.items()}
    onnx.save(network(**inner), tmp_path / "decoded.onnx")
    for got, want, source in zip(
        outputs(tmp_path / "back.onnx"), outputs(tmp_path / "decoded.onnx"), outputs(path), strict=True
    ):
        assert np.array_equal(got, want)
        assert not np.array_equal(got, source)
        assert np.corrcoef(got.ravel(), source.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("direct", [False, True])
def test_weights_in_a_file_beside_the_model_go_to_one_again(path: Path, tmp_path: Path, direct: bool) -> None:
    source = outside(path)
    back = tmp_path / "back.onnx"
    report = hhtld.convert(source if direct else kept(source), back)
    assert report.notes == ["back.onnx.data beside back.onnx belong to it"]
    assert back.stat().st_size < 6000
    assert (tmp_path / "back.onnx.data").stat().st_size > 200_000
    onnx.checker.check_model(str(back))
    with OnnxFile(back) as found, OnnxFile(path) as wanted:
        for name, info in wanted.infos().items():
            assert np.array_equal(found.read_rows(name, 0, info.n_rows), wanted.read_rows(name, 0, info.n_rows))
    for got, want in zip(outputs(back), outputs(path), strict=True):
        assert np.array_equal(got, want)
    for tensor in onnx.load(back, load_external_data=False).graph.initializer:
        facts = {entry.key: entry.value for entry in tensor.external_data}
        assert facts["location"] == "back.onnx.data"
        assert int(facts["offset"]) % (4096 if int(facts["length"]) >= 4096 else 64) == 0


def test_weights_in_several_files_and_in_one_place_twice_come_back(path: Path, tmp_path: Path) -> None:
    model = onnx.load(path)
    table, up, _ = model.graph.initializer
    (tmp_path / "sub").mkdir()
    (tmp_path / "first.bin").write_bytes(b"\0" * 64 + table.raw_data)
    (tmp_path / "sub" / "second.bin").write_bytes(up.raw_data)  # without a length: to its end
    for tensor, facts in ((table, {"location": "first.bin", "offset": "64"}), (up, {"location": "sub/second.bin"})):
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in facts.items():
            tensor.external_data.add(key=key, value=value)
    again = model.graph.initializer.add()
    again.CopyFrom(table)
    again.name = "table_again"
    (tmp_path / "outside.onnx").write_bytes(model.SerializeToString())
    hhtld.convert(kept(tmp_path / "outside.onnx"), tmp_path / "back.onnx")
    for got, want in zip(outputs(tmp_path / "back.onnx"), outputs(path), strict=True):
        assert np.array_equal(got, want)
    with OnnxFile(tmp_path / "back.onnx") as found:
        rows = [found.read_rows(name, 0, TOKENS) for name in ("table", "table_again")]
    assert np.array_equal(*rows)


def test_a_model_that_protobuf_cannot_hold_gets_a_file_beside_it(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = kept(path)
    monkeypatch.setattr(writing, "SIZE_LIMIT", writing._ROOM + 150_000)
    hhtld.convert(pack, tmp_path / "back.onnx")
    assert (tmp_path / "back.onnx.data").exists()
    tensors = {
        tensor.name: tensor for tensor in onnx.load(tmp_path / "back.onnx", load_external_data=False).graph.initializer
    }
    assert all(tensor.data_location == TensorProto.EXTERNAL for tensor in tensors.values())
    for got, want in zip(outputs(tmp_path / "back.onnx"), outputs(path), strict=True):
        assert np.array_equal(got, want)


DTYPES = [
    *(TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT8, TensorProto.UINT16, TensorProto.INT16, TensorProto.INT32),
    *(TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.UINT32),
    *(TensorProto.UINT64, TensorProto.COMPLEX64, TensorProto.COMPLEX128, TensorProto.BFLOAT16),
    *(TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2, TensorProto.UINT4, TensorProto.INT4),
]


@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (3, 0, 5), (3, 5), (2, 3, 4), (1, 2, 3, 1, 5)], ids=str)
@pytest.mark.parametrize("raw", [True, False])
def test_every_type_of_every_rank_comes_back(tmp_path: Path, shape: tuple[int, ...], raw: bool) -> None:
    count, tensors = int(np.prod(shape)), []
    for dtype in DTYPES:
        tensor = TensorProto(name=f"t{dtype}", data_type=dtype, dims=shape)
        kind = TensorProto.DataType.Name(dtype)  # onnx 1.17 calls bfloat16 and 8-bit floats float32
        nbits = {"COMPLEX128": 128, "UINT4": 4, "INT4": 4, "BFLOAT16": 16}.get(kind, 8 if "FLOAT8" in kind else None)
        nbytes = -(-count * (nbits or 8 * helper.tensor_dtype_to_np_dtype(dtype).itemsize) // 8)
        if raw:
            tensor.raw_data = bytes(n % 2 for n in range(nbytes))
        else:
            field = helper.tensor_dtype_to_field(dtype)
            parts = {TensorProto.COMPLEX64: 2, TensorProto.COMPLEX128: 2}.get(dtype, 1)
            getattr(tensor, field).extend([1] * (nbytes if nbits == 4 else count * parts))
        tensors.append(tensor)
    graph = helper.make_graph([], "g", [], [], tensors)
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    hhtld.convert(kept(path), tmp_path / "back.onnx")
    if raw:
        assert (tmp_path / "back.onnx").read_bytes() == path.read_bytes()
    with OnnxFile(path) as before, OnnxFile(tmp_path / "back.onnx") as after:
        assert dict(after.infos()) == dict(before.infos())
        for name, info in before.infos().items():
            assert np.array_equal(after.read_rows(name, 0, info.n_rows), before.read_rows(name, 0, info.n_rows))


def test_strings_arguments_sparse_tensors_functions_and_unknown_fields_stay(tmp_path: Path) -> None:
    rare = helper.make_sparse_tensor(
        numpy_helper.from_array(np.ones(2, np.float32), "rare"), numpy_helper.from_array(np.array([1, 5]), "at"), [2, 4]
    )
    axes = numpy_helper.from_array(np.array([1]), "axes")
    inside = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones((4, 4), np.float32), ""))
    made = network()
    made.graph.initializer.append(helper.make_tensor("labels", TensorProto.STRING, [2], [b"a", b"\xff"]))
    made.graph.sparse_initializer.append(rare)
    made.graph.node.insert(0, helper.make_node("Constant", [], ["axes"], value=axes))
    made.functions.append(helper.make_function("mine", "f", [], ["c"], [inside], [helper.make_opsetid("", 17)]))
    path = tmp_path / "m.onnx"
    path.write_bytes(made.SerializeToString() + b"\xfa\x3e\x03abc")  # a field 1007 that no schema knows
    hhtld.convert(kept(path), tmp_path / "back.onnx")
    assert (tmp_path / "back.onnx").read_bytes() == path.read_bytes()


def test_names_that_two_bodies_share_with_others_come_back(path: Path, tmp_path: Path) -> None:
    """A body's prefix and a name in it may together be the name of another tensor; readers of ONNX see no clash."""
    made = network()
    rare = helper.make_sparse_tensor(
        numpy_helper.from_array(np.ones(2, np.float32), "table"),
        numpy_helper.from_array(np.array([1, 5]), "at"),
        [2, 4],
    )
    (then,) = [attribute.g for attribute in made.graph.node[-1].attribute if attribute.name == "then_branch"]
    then.sparse_initializer.append(rare)
    for name in ("branch/then_branch/then_w", "branch/then_branch/table/indices"):
        made.graph.initializer.append(numpy_helper.from_array(np.zeros((4, 4), np.float32), name))
    onnx.save(made, path)
    with OnnxFile(path) as source:
        assert source.infos()["branch/then_branch/then_w"].shape == (4, 4)
        assert source.infos()["branch/then_branch/then_w~2"].shape == (HIDDEN, 32)
        assert source.infos()["branch/then_branch/table~2/values"].shape == (2,)
    hhtld.convert(kept(path), tmp_path / "back.onnx")
    assert (tmp_path / "back.onnx").read_bytes() == path.read_bytes()


def test_external_weights_need_no_length(path: Path, tmp_path: Path) -> None:
    """The specification calls it optional, and other tensors may follow in the file."""
    made = network()
    (tmp_path / "w.bin").write_bytes(b"".join(tensor.raw_data for tensor in made.graph.initializer))
    offset = 0
    for tensor in made.graph.initializer:
        tensor.external_data.add(key="location", value="w.bin")
        tensor.external_data.add(key="offset", value=str(offset))
        offset += len(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
    path.write_bytes(made.SerializeToString())
    hhtld.convert(kept(path), tmp_path / "back.onnx")
    held = weights()
    with OnnxFile(tmp_path / "back.onnx") as source:
        for name in ("table", "up", "kernel"):
            assert source.read_rows(name, 0, len(held[name])).tobytes() == held[name].tobytes()


@pytest.mark.parametrize("place", ["argument", "text", "state of training"])
def test_a_graph_that_names_a_file_of_its_own_says_that_it_stays_behind(path: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(64))
    other = TensorProto(name="elsewhere", data_type=TensorProto.FLOAT, dims=[4, 4], data_location=TensorProto.EXTERNAL)
    other.external_data.add(key="location", value="w.bin")
    made = network()
    if place == "argument":
        made.graph.node.append(helper.make_node("Odd", ["table"], ["odd"], domain="mine", table=other))
    elif place == "text":
        other.data_type = TensorProto.STRING
        made.graph.initializer.append(other)
    else:
        made.training_info.add().algorithm.initializer.append(other)
    path.write_bytes(made.SerializeToString())
    report = hhtld.convert(path, tmp_path / "m.hhtld", profile="bits:4", min_ratio=0, jobs=1)
    (note,) = [note for note in report.notes if note.startswith("the graph")]
    assert "stays behind: its tensor 'elsewhere' lies in a file" in note
    assert "cannot become an .onnx again" in note
    with pytest.raises(HeaderError, match="named files of its own; nothing is written"):
        hhtld.convert(tmp_path / "m.hhtld", tmp_path / "back.onnx")


def test_settings_of_a_voice_lie_beside_it_again(path: Path, tmp_path: Path) -> None:
    settings = b'{"audio": {"sample_rate": 22050}}'
    path.with_name("net.onnx.json").write_bytes(settings)
    pack = kept(path)
    report = hhtld.convert(pack, tmp_path / "back.onnx")
    assert report.notes == ["back.onnx.json beside back.onnx belong to it"]
    assert (tmp_path / "back.onnx.json").read_bytes() == settings
    hhtld.convert(pack, tmp_path / "back.onnx")  # the same again
    (tmp_path / "other.onnx.json").write_text("{}")
    with pytest.raises(OutputError, match=r"other\.onnx\.json: it exists and holds other settings"):
        hhtld.convert(pack, tmp_path / "other.onnx")
    assert not (tmp_path / "other.onnx").exists()
    assert (tmp_path / "other.onnx.json").read_text() == "{}"


def test_settings_behind_a_link_out_of_the_folder_stay_behind(path: Path, tmp_path: Path) -> None:
    secret = tmp_path / "elsewhere" / "secret"
    secret.parent.mkdir()
    secret.write_text("mine")
    inner = tmp_path / "model"
    inner.mkdir()
    path.rename(inner / "net.onnx")
    (inner / "net.onnx.json").symlink_to(secret)
    with OnnxFile(inner / "net.onnx") as source:
        assert SETTINGS_FILE not in source.files()
        with pytest.raises(KeyError):
            source.read_file(SETTINGS_FILE)


def test_the_command_says_that_the_graph_comes_along(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "m.hhtld"
    assert main(["convert", str(path), str(target), "--profile", "bits:4", "--json"]) == 0
    assert any("graph comes along" in note for note in json.loads(capsys.readouterr().out)["notes"])
    assert main(["verify", str(target), str(path)]) == 0
    assert main(["convert", str(target), str(tmp_path / "back.onnx")]) == 0


def test_a_graph_too_large_for_a_side_file_stays_behind_and_says_so(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hhtld.formats.onnx import reading

    monkeypatch.setattr(reading, "SIDE_FILE_LIMIT", 100)
    report = hhtld.convert(path, tmp_path / "m.hhtld", rules=[("*", "keep")])
    assert any("stays behind: the pack cannot become an .onnx again" in note for note in report.notes)
    with pytest.raises(HeaderError, match="lacks its graph"):
        hhtld.convert(tmp_path / "m.hhtld", tmp_path / "back.onnx")


def test_external_arguments_travel_as_weights(tmp_path: Path) -> None:
    """A Constant in a file beside the model cannot stay in a graph that travels alone."""
    axes = TensorProto(name="axes", data_type=TensorProto.INT64, dims=[1], data_location=TensorProto.EXTERNAL)
    axes.external_data.add(key="location", value="axes.bin")
    (tmp_path / "axes.bin").write_bytes(np.array([3]).tobytes())
    graph = helper.make_graph([helper.make_node("Constant", [], ["axes"], value=axes)], "g", [], [])
    onnx.save(helper.make_model(graph, ir_version=9), tmp_path / "m.onnx")
    hhtld.convert(kept(tmp_path / "m.onnx"), tmp_path / "back.onnx")
    back = onnx.load(tmp_path / "back.onnx")
    assert numpy_helper.to_array(back.graph.node[0].attribute[0].t).tolist() == [3]


# --- what cannot go back -----------------------------------------------------------------------


@pytest.mark.parametrize("dry_run", [False, True])
def test_what_came_from_elsewhere_says_what_is_missing(tmp_path: Path, dry_run: bool) -> None:
    hhtld.save_file({"w": np.ones((64, 32), np.float32)}, tmp_path / "m.hhtld", profile="bits:4")
    with pytest.raises(HeaderError, match=r"holds a graph.*did not come from an ONNX model, has none"):
        hhtld.convert(tmp_path / "m.hhtld", tmp_path / "m.onnx", dry_run=dry_run)
    assert names(tmp_path) == ["m.hhtld"]


def test_a_pack_without_its_graph_says_why(path: Path, tmp_path: Path) -> None:
    with pytest.raises(HeaderError, match=r"lacks its graph, the side file 'onnx\.graph'.*--no-files.*anew"):
        hhtld.convert(pack_of(path, files=False), tmp_path / "back.onnx")
    assert names(tmp_path) == ["net.hhtld", "net.onnx"]


def test_nothing_is_left_if_writing_fails(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = kept(outside(path))
    back = tmp_path / "back.onnx"
    back.write_bytes(b"old")
    (tmp_path / "back.onnx.data").write_bytes(b"old data")
    before, read = names(tmp_path), hhtld.HhtldPack.get_tensor

    def failing(self: Any, name: str, *rest: Any, **more: Any) -> Any:
        if name == "bias":
            raise OSError(5, "the disk is gone")
        return read(self, name, *rest, **more)

    monkeypatch.setattr(hhtld.HhtldPack, "get_tensor", failing)
    with pytest.raises(OSError, match="the disk is gone"):
        hhtld.convert(pack, back)
    assert names(tmp_path) == before
    assert back.read_bytes() == b"old"
    assert (tmp_path / "back.onnx.data").read_bytes() == b"old data"


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if "back" in file.name}


STEPS = [".back.onnx.before.tmp", ".back.onnx.data.before.tmp", "back.onnx.data", "back.onnx"]  # in this order


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("earlier", "step"), [*((True, step) for step in STEPS), *((False, step) for step in STEPS[2:])]
)
def test_what_stood_there_comes_back_if_a_file_cannot_take_its_name(
    earlier: bool, step: str, when: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier run left a pair of the same layout; the next one ends between the names of its two files."""
    source, back = outside(path), tmp_path / "back.onnx"
    if earlier:
        hhtld.convert(kept(source), back)
    other = tmp_path / "other.hhtld"
    hhtld.convert(source, other, profile="bits:2", min_ratio=0)
    old, replace = contents(tmp_path), Path.replace

    def failing(self: Path, target: Any) -> Any:
        fails = Path(target).name == step and ".before." not in self.name  # what comes back may take its name
        if fails and when == "before":
            raise PermissionError(13, "in use")
        done = replace(self, target)
        if fails:
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(OutputError if when == "before" else KeyboardInterrupt):
        hhtld.convert(other, back)
    assert contents(tmp_path) == old
    monkeypatch.setattr(Path, "replace", replace)
    hhtld.convert(other, back)
    assert sorted(contents(tmp_path)) == ["back.onnx", "back.onnx.data"]


def test_it_is_told_where_a_model_is_that_cannot_come_back(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack, back = kept(outside(path)), tmp_path / "back.onnx"
    hhtld.convert(pack, back)
    old, replace = contents(tmp_path), Path.replace

    def failing(self: Path, target: Any) -> Any:
        if Path(target).name in ("back.onnx.data", "back.onnx"):
            raise PermissionError(13, "in use")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(OutputError, match=r"what stood there is now .*\.back\.onnx\.data\.before\.tmp: in use"):
        hhtld.convert(pack, back)
    assert contents(tmp_path) == {f".{name}.before.tmp": held for name, held in old.items()}


@pytest.mark.parametrize(("earlier", "step"), [(True, STEPS[0]), (True, STEPS[2]), (False, STEPS[2])])
def test_a_run_after_one_that_was_killed_goes_on(earlier: bool, step: str, path: Path, tmp_path: Path) -> None:
    pack, back = kept(outside(path)), tmp_path / "back.onnx"
    if earlier:
        hhtld.convert(pack, back)
    killed = (
        "import os, sys; from pathlib import Path; import hhtld; replace = Path.replace\n"
        "def kill(self, target):\n"
        "    replace(self, target)\n"
        f"    if Path(target).name == {step!r}: os._exit(9)\n"
        "Path.replace = kill; hhtld.convert(*sys.argv[1:])"
    )
    done = subprocess.run([sys.executable, "-c", killed, str(pack), str(back)], check=False)
    assert done.returncode == 9
    assert not back.exists()
    hhtld.convert(pack, back)
    for got, want in zip(outputs(back), outputs(path), strict=True):
        assert np.array_equal(got, want)
    back.unlink()
    with pytest.raises(OutputError, match=r"it exists, and back\.onnx does not"):
        hhtld.convert(pack, back)  # nothing says any more that the weights are a killed run's


def test_files_of_an_earlier_model_are_told(path: Path, tmp_path: Path) -> None:
    hhtld.convert(kept(outside(path)), tmp_path / "back.onnx")
    (tmp_path / "back.onnx.json").write_text("{}")
    report = hhtld.convert(kept(path), tmp_path / "back.onnx")
    assert report.notes == [
        "back.onnx.data beside back.onnx was there before and does not belong to it",
        "back.onnx.json beside back.onnx was there before and does not belong to it",
    ]
    (tmp_path / "back.onnx.data").unlink()
    for got, want in zip(outputs(tmp_path / "back.onnx"), outputs(path), strict=True):
        assert np.array_equal(got, want)


def test_a_file_of_weights_that_is_somebody_elses_stays(path: Path, tmp_path: Path) -> None:
    source = outside(path)
    (tmp_path / "back.onnx.data").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"back\.onnx\.data: it exists, and back\.onnx does not"):
        hhtld.convert(source, tmp_path / "back.onnx")
    assert (tmp_path / "back.onnx.data").read_bytes() == b"mine"


def test_the_sources_own_weights_are_never_replaced(path: Path, tmp_path: Path) -> None:
    source = outside(path)
    os.link(tmp_path / "weights.bin", tmp_path / "back.onnx.data")
    (tmp_path / "back.onnx").write_bytes(b"old")
    with pytest.raises(OutputError, match="the source's weights are in it"):
        hhtld.convert(source, tmp_path / "back.onnx")


class Told(TensorSource):
    """A source with another graph."""

    def __init__(self, source: TensorSource, graph: bytes) -> None:
        self._of, self._graph = source, graph

    @property
    def description(self) -> dict[str, Any]:
        return self._of.description

    def infos(self) -> Any:
        return self._of.infos()

    def read_rows(self, name: str, start: int, stop: int) -> Any:
        return self._of.read_rows(name, start, stop)

    def files(self) -> Any:
        return {GRAPH_FILE: len(self._graph)}

    def read_file(self, name: str) -> bytes:
        return self._graph


def _foreign(model: Any) -> None:
    """A tensor that no reader takes for a weight, in a file of this machine."""
    attribute = model.graph.node[0].attribute.add(name="secret", type=onnx.AttributeProto.TENSORS)
    tensor = attribute.tensors.add(name="s", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../etc/passwd")


def _own_file(model: Any) -> None:
    model.graph.initializer[0].external_data.add(key="location", value="../../etc/passwd")


HOSTILE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "one tensor less": (lambda m: m.graph.initializer.pop(), "tensor 'kernel' is not in the graph"),
    "one more": (lambda m: m.graph.initializer.add(name="x", data_type=1), "'x' is not among the source's tensors"),
    "twice": (lambda m: m.graph.initializer.add().CopyFrom(m.graph.initializer[0]), "'table' is given twice"),
    "another shape": (lambda m: m.graph.initializer[0].dims.append(1), r"'table' is F32 \[96, 64, 1\], the source has"),
    "another type": (lambda m: setattr(m.graph.initializer[0], "data_type", 10), r"is F16 .* the source has F32"),
    "an unknown type": (lambda m: setattr(m.graph.initializer[0], "data_type", 99), "unknown type 99"),
    "a negative size": (lambda m: m.graph.initializer[0].dims.__setitem__(0, -1), "'table'"),
    "data": (lambda m: setattr(m.graph.initializer[0], "raw_data", b"x"), "holds data"),
    "typed data": (lambda m: m.graph.initializer[0].float_data.append(1), "holds data"),
    "a file": (_own_file, "holds data"),
    "a file elsewhere": (_foreign, "a tensor that is none of the source's names a file"),
    "no name": (lambda m: m.graph.initializer[0].ClearField("name"), "has no name"),
    "no graph": (lambda m: m.ClearField("graph"), "has no graph"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_graph_is_checked_before_anything_is_written(case: str, path: Path, tmp_path: Path) -> None:
    change, message = HOSTILE[case]
    with open_source(kept(path)) as source:
        model = onnx.ModelProto.FromString(source.read_file(GRAPH_FILE))
        change(model)
        with pytest.raises(FormatError, match=message):
            get_format("onnx").write_source(Told(source, model.SerializeToString()), tmp_path / "back.onnx")
    assert not (tmp_path / "back.onnx").exists()


@pytest.mark.parametrize("graph", [b"", b"\xff" * 40, b"PK\x03\x04", b"\x3a\x05abc"])
def test_bytes_that_are_no_graph_are_refused(graph: bytes, path: Path, tmp_path: Path) -> None:
    with open_source(kept(path)) as source, pytest.raises(FormatError, match=r"^onnx\.graph: not "):
        get_format("onnx").write_source(Told(source, graph), tmp_path / "back.onnx")


def test_a_graph_cut_anywhere_is_an_error_by_name(path: Path, tmp_path: Path) -> None:
    with open_source(kept(path)) as source:
        graph = source.read_file(GRAPH_FILE)
        for end in range(0, len(graph), 7):
            with contextlib.suppress(FormatError):  # what follows the graph may be missing
                get_format("onnx").write_source(Told(source, graph[:end]), tmp_path / "back.onnx")
                assert onnx.load(tmp_path / "back.onnx").graph.initializer
