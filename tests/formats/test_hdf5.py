"""The HDF5 debug export: what it says, against the pack, and that it keeps the conventions its SPEC promises."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

import hhtld
from hhtld.codecs.lookup import HhtlDTensor
from hhtld.codecs.palette import HhtlF32Tensor
from hhtld.codecs.trellis import HhtlTTensor
from hhtld.commands.main import main
from hhtld.cosines import summarize
from hhtld.encoding.gate_measurement import compared_rows
from hhtld.errors import FormatError
from hhtld.formats.hdf5 import selection
from hhtld.formats.hdf5.export import export_pack
from hhtld.formats.hdf5.nexus import CHUNK_NBYTES, escaped
from hhtld.formats.hdf5.selection import select
from hhtld.pack.container import ContainerReader
from hhtld.pack.pack import HhtldPack
from hhtld.slots.palette import build_hip_families
from hhtld.slots.slot_d_v import residual
from hhtld.slots.slot_t import gain_values
from hhtld.sources.contract import ArraySource
from hhtld.sources.rows import ArrayRows
from tests.conftest import low_rank

PROFILES = ("lookup", "f32", "bits:2", "bits:2+1", "gates")


def arrays() -> dict[str, NDArray[Any]]:
    """Tensors of every kind of treatment."""
    return {
        "model.embed_tokens.weight": low_rank(700, 128),
        "model.layers.0.mlp.up_proj.weight": low_rank(600, 128, 1),
        "model.layers.1.mlp.up_proj.weight": low_rank(600, 128, 2),
        "model.layers.0.self_attn.v_proj.weight": low_rank(513, 96, 3),
        "model.norm.weight": np.linspace(0, 1, 128, dtype=np.float16),
        "scalar": np.float32(3),
        "empty": np.zeros((0, 4), np.float32),
        "flags": np.array([True, False]),
        "ids": np.arange(2**40, 2**40 + 70_000),
        "phase": np.ones(3, np.complex64),
    }


@pytest.fixture(scope="module", params=PROFILES)
def pack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HhtldPack]:
    path = tmp_path_factory.mktemp("hdf5") / "m.hhtld"
    hhtld.save(hhtld.encode(arrays(), profile=request.param, metadata={"made by": "a test"}), path)
    with hhtld.open(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def export(pack: HhtldPack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[h5py.File]:
    path = tmp_path_factory.mktemp("export") / "m.h5"
    export_pack(pack, path, original=ArraySource(arrays()), codes=True)
    with h5py.File(path) as file:
        yield file


def objects(file: h5py.File) -> Iterator[tuple[str, Any]]:
    """Every object under every path, links not resolved twice."""
    found: list[tuple[str, Any]] = []
    file.visititems(lambda name, obj: found.append((name, obj)))
    yield from found


def plot_behind(group: h5py.Group) -> h5py.Group:
    """Follow `default` to where it ends."""
    while "default" in group.attrs:
        group = group[group.attrs["default"]]
    return group


def encoded(pack: HhtldPack) -> list[str]:
    return [name for name in pack if pack.info(name).codec != "keep"]


def test_it_opens_with_a_plot(export: h5py.File) -> None:
    plot = plot_behind(export)
    assert plot.attrs["NX_class"] == "NXdata"
    assert plot[plot.attrs["signal"]].size > 0


def test_every_object_keeps_the_conventions(export: h5py.File) -> None:
    plots = 0
    for name, obj in objects(export):
        assert obj.attrs["description"], name
        assert "\n" not in obj.attrs["description"], name
        if isinstance(obj, h5py.Group):
            assert obj.attrs["NX_class"], name
            if "default" in obj.attrs:
                assert plot_behind(obj).attrs["NX_class"] == "NXdata", name
            if obj.attrs["NX_class"] == "NXdata":
                check_plot(name, obj)
                plots += 1
            continue
        kinds = [obj.dtype[field] for field in obj.dtype.names] if obj.dtype.names else [obj.dtype]
        for kind in kinds:
            assert kind.kind in "iubO" or kind == np.float32, (name, kind)
            assert kind.shape == (), name
        if obj.ndim and obj.size and h5py.check_string_dtype(obj.dtype) is None:
            assert obj.compression == "gzip", name
            assert obj.shuffle, name
            assert np.prod(obj.chunks) * obj.dtype.itemsize <= CHUNK_NBYTES, name
            assert obj.attrs["units"], name
            assert obj.attrs["long_name"], name
    assert plots > 20


def check_plot(name: str, plot: h5py.Group) -> None:
    assert isinstance(plot.attrs["signal"], str), name
    signal = plot[plot.attrs["signal"]]
    assert len(plot.attrs["axes"]) == signal.ndim, name
    for axis, length in zip(plot.attrs["axes"], signal.shape, strict=True):
        if axis != ".":
            assert len(plot[axis]) == length, name
            assert plot[axis].dtype.kind in "if", name
            assert len(plot[axis]) != 2, name
    for other in plot.attrs.get("auxiliary_signals", ()):
        assert plot[other].shape == signal.shape, name
    assert plot["title"].asstr()[()], name


def test_the_file_is_described(export: h5py.File, pack: HhtldPack) -> None:
    entry = export["entry"]
    assert entry.attrs["profile"] == pack.table.profile
    assert list(entry["tensor_names"].asstr()) == list(pack)
    container = entry["container"]
    assert isinstance(pack.sections, ContainerReader)
    assert container.attrs["nbytes"] == pack.sections.path.stat().st_size
    expected = [(r.kind.encode(), r.offset, r.nbytes, r.crc32) for r in pack.sections.records]
    assert [tuple(line) for line in container["sections"]] == expected
    source = json.loads(container["source/data"].asstr()[()])
    assert source["metadata"] == {"made by": "a test"}
    for line in entry["summary"][:]:
        name = line["name"].decode()
        info = pack.info(name)
        assert (line["n_rows"], line["nbytes"]) == (info.info.n_rows, pack.nbytes(name))
        if info.gates is not None:
            assert line["median"] == np.float32(info.gates.median)
            assert line["worst_row"] == info.gates.worst_row


def test_slots_are_those_of_the_pack(export: h5py.File, pack: HhtldPack) -> None:
    for name in encoded(pack):
        group, tensor = export["entry/tensors"][escaped(name)], pack.get_encoded(name)
        assert group.attrs["tensor_name"] == name
        entries = group["entries"][:]
        np.testing.assert_array_equal(entries["row"], np.arange(len(entries)))
        if isinstance(tensor, HhtlDTensor):
            np.testing.assert_array_equal(entries["slot_d"], tensor.entries["slot_d"])
            np.testing.assert_array_equal(entries["slot_v"], tensor.entries["slot_v"])
            packed = entries["basin"].astype(np.uint16) << 14 | entries["family"].astype(np.uint16) << 10
            packed |= entries["twig"].astype(np.uint16) << 2 | entries["polarity"].astype(np.uint16) << 1
            np.testing.assert_array_equal(packed, tensor.entries["slot_d"])
            expected = residual(np.ascontiguousarray(tensor.entries["slot_v"]))
            np.testing.assert_array_equal(entries["residual"], expected)
            assert h5py.check_enum_dtype(group["entries"].dtype["basin"]) == {"QK": 0, "V": 1, "GATE": 2, "FFN": 3}
        elif isinstance(tensor, HhtlF32Tensor):
            np.testing.assert_array_equal(entries["twig"], tensor.twigs)
            np.testing.assert_array_equal(group["palette/palette"], tensor.palette_f32)
        else:
            np.testing.assert_array_equal(entries["slot_v"], tensor.slot_v)
            np.testing.assert_array_equal(group["gains/gain"], gain_values(tensor.slot_v))
            np.testing.assert_array_equal(group["rows/slot_t"], tensor.slot_t)
            assert group.attrs["rate_bits"] == tensor.shared.trellis.rate / 16
            if tensor.slot_v_2 is not None:
                np.testing.assert_array_equal(group["gains/gain_2"], gain_values(tensor.slot_v_2))
                np.testing.assert_array_equal(group["rows/slot_t_2"], tensor.slot_t_2)
        if tensor.slot_l is not None:
            np.testing.assert_array_equal(group["rows/slot_l"], tensor.slot_l)
            assert group["slot_l"].attrs["scale"] == np.float32(pack.info(name).slot_l_scale)
        if "twig_usage" in group:
            assert tensor.twigs is not None
            counts = group["twig_usage/count"][:]
            np.testing.assert_array_equal(counts, np.bincount(tensor.twigs, minlength=len(counts)))


def test_quality_is_that_of_every_row(export: h5py.File, pack: HhtldPack) -> None:
    for name in encoded(pack):
        group, original = export["entry/tensors"][escaped(name)], arrays()[name]
        cosines = compared_rows(ArrayRows(original), lambda rows, name=name: pack.get_rows(name, rows), None)
        np.testing.assert_array_equal(group["row_cosine/cosine"], cosines.astype(np.float32))
        assert group["cosine_histogram/count"][:].sum() == len(original)
        assert group.attrs["cosine_median"] == summarize(cosines).median
        sample = group["sample"]
        rows = sample["row"][:]
        assert len(rows) == 8
        assert group.attrs["cosine_worst_row"] in rows
        np.testing.assert_array_equal(sample["decoded"], pack.get_rows(name, rows))
        np.testing.assert_array_equal(sample["original"], original[rows])
        np.testing.assert_array_equal(sample["error"], sample["decoded"][:] - original[rows])
    gates = export["entry/gates"].attrs
    assert gates["measured"] == "anew, of all rows"
    assert gates["index_median_asked"] == 0.98
    assert gates["argmax_n_rows"] + gates["index_n_rows"] == sum(pack.info(n).info.n_rows for n in encoded(pack))


def test_shared_tables_are_those_of_the_codec(export: h5py.File, pack: HhtldPack) -> None:
    for name in encoded(pack):
        group, tensor = export[export["entry/tensors"][escaped(name)].attrs["group"]], pack.get_encoded(name)
        assert name in list(group["tensor_names"].asstr())
        if isinstance(tensor, HhtlDTensor):
            cache, table = tensor.cache, tensor.fisher_z
            assert table is not None
            np.testing.assert_array_equal(group["palette/dims"], cache.palette.entries.dims)
            np.testing.assert_array_equal(group["distance/distance"], cache.distances)
            np.testing.assert_array_equal(group["route/route"], cache.routes)
            np.testing.assert_array_equal(group["compose/compose"], cache.composition)
            np.testing.assert_array_equal(group["fisher_z/fisher_z"], table.cosines(table.codes))
            np.testing.assert_array_equal(group["fisher_z/codes"], table.codes)
            np.testing.assert_array_equal(group["hip_family/family"], build_hip_families(cache.palette))
            assert group["counts/count"][:].sum() == sum(
                pack.info(n).info.n_rows for n in group["tensor_names"].asstr()
            )
            radii = group["radii/radius"][:]
            slot_v, size = tensor.entries["slot_v"], np.abs(cache.palette.entries.dims.astype(int)).sum(axis=1)
            assert (
                residual(np.ascontiguousarray(slot_v)) * np.maximum(size, 1)[tensor.twigs] <= radii[tensor.twigs]
            ).all()
        if isinstance(tensor, HhtlTTensor):
            np.testing.assert_array_equal(group["codebook/level"], tensor.shared.trellis.levels)
            if tensor.shared.centroid_bits is not None:
                np.testing.assert_array_equal(group["centroids/centroids"], tensor.shared.centroids)
            basis = tensor.shared.basis
        else:
            basis = tensor.svd_basis
        if basis is not None:
            np.testing.assert_array_equal(group["basis/vectors"], basis.vectors)
            np.testing.assert_array_equal(group["singular_values/singular_value"], basis.singular_values)
            assert json.loads(group["singular_values"].attrs["SILX_style"]) == {"signal_scale_type": "log"}


def test_kept_tensors_show_their_values(export: h5py.File) -> None:
    tensors = export["entry/tensors"]
    np.testing.assert_array_equal(tensors["model.norm.weight/values/value"], arrays()["model.norm.weight"])
    assert tensors["model.norm.weight/values/value"].dtype == np.float32
    assert tensors["scalar/values/value"][:].tolist() == [3]
    assert tensors["flags/values/value"][:].tolist() == [1, 0]
    np.testing.assert_array_equal(tensors["ids/values/value"], arrays()["ids"][::2])  # 70,000 are too many to draw
    np.testing.assert_array_equal(tensors["ids/values/index"], np.arange(0, 70_000, 2))
    assert "not shown" in tensors["phase"].attrs["values"]
    assert "not shown" in tensors["empty"].attrs["values"]


def test_rows_and_tensors_can_be_chosen(pack: HhtldPack, tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    notes = export_pack(pack, path, tensors=["*up_proj*", "scalar"], rows=slice(-5, None))
    assert notes == [f"3 of {len(pack)} tensors are exported; tensors (--tensor) chose them"]
    with h5py.File(path) as file:
        tensors = file["entry/tensors"]
        assert len(tensors) == 3
        assert tensors["model.layers.0.mlp.up_proj.weight/rows/row"][:].tolist() == [595, 596, 597, 598, 599]
        assert file["entry/gates"].attrs["measured"] == "when the file was made"
        for group in tensors.values():
            assert "cosine_histogram" not in group
            assert "slot_t" not in group
    export_pack(pack, path, tensors=["*up_proj*"], rows=slice(None, None, -200))
    with h5py.File(path) as file:
        assert file["entry/tensors/model.layers.0.mlp.up_proj.weight/rows/row"][:].tolist() == [599, 399, 199]
        if pack.table.profile.startswith("bits"):
            tensor = pack.get_encoded("model.layers.0.mlp.up_proj.weight", [599, 399, 199])
            assert isinstance(tensor, HhtlTTensor)
            shown = file["entry/tensors/model.layers.0.mlp.up_proj.weight/gains/gain"]
            np.testing.assert_array_equal(shown, gain_values(tensor.slot_v))


def test_a_small_budget_takes_rows_evenly_and_says_so(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    pack = hhtld.encode({"a.embed": rng.standard_normal((20_000, 64)).astype(np.float32)}, profile="bits:4")
    limit = 500_000
    notes = export_pack(pack, tmp_path / "m.h5", max_nbytes=limit, codes=True)
    assert (tmp_path / "m.h5").stat().st_size <= limit
    with h5py.File(tmp_path / "m.h5") as file:
        stride = int(file["entry"].attrs["row_stride"])
        assert notes == [
            f"one row in {stride} is exported, so that the file stays below max_nbytes (--max-size), 500,000 bytes"
        ]
        assert file["entry"].attrs["sampling"] == notes[0]
        rows = file["entry/tensors/a.embed/rows/row"][:]
        np.testing.assert_array_equal(rows, np.arange(0, 20_000, stride))
        assert (tmp_path / "m.h5").stat().st_size > limit // 3  # the room is used
    assert select(pack, max_nbytes=limit, codes=True).stride == stride
    with pytest.raises(
        ValueError, match=r"takes [0-9,]+ bytes with one row of each, and 9 are allowed; raise max_nbytes"
    ):
        export_pack(pack, tmp_path / "m.h5", max_nbytes=9)


def test_pictures_of_many_rows_show_some_of_them(tmp_path: Path) -> None:
    pack = hhtld.encode({"a.embed": low_rank(3000, 96)}, profile="lookup")
    export_pack(pack, tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5") as file:
        assert file["entry"].attrs["default"] == "tensors/a.embed"  # one point is no curve
        group = file["entry/tensors/a.embed"]
        np.testing.assert_array_equal(group["slot_l/slot_l"], group["rows/slot_l"][::24])
        np.testing.assert_array_equal(group["slot_l/row"], np.arange(0, 3000, 24))
    wide = hhtld.encode({"a.embed": low_rank(20, 9000)}, profile="bits:2")
    export_pack(wide, tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5") as file:
        for _, obj in objects(file):
            if isinstance(obj, h5py.Dataset) and obj.attrs.get("interpretation") == "image":
                assert max(obj.shape) <= 8192


def test_what_was_reckoned_too_small_is_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = hhtld.encode({"a.embed": np.random.default_rng(1).standard_normal((9000, 64), np.float32)}, profile="bits:4")
    monkeypatch.setattr(selection, "_row_nbytes", lambda *_: 1)
    notes = export_pack(pack, tmp_path / "m.h5", max_nbytes=200_000, codes=True)
    assert (tmp_path / "m.h5").stat().st_size <= 200_000
    assert "one row in" in notes[0]


def test_large_metadata_is_left_out_and_says_so(tmp_path: Path) -> None:
    pack = hhtld.encode({"a": np.ones(3, np.float32)}, metadata={"tokens": "x" * 300_000})
    export_pack(pack, tmp_path / "m.h5", max_nbytes=100_000)
    with h5py.File(tmp_path / "m.h5") as file:
        assert "300,0" in file["entry/container/source/data"].asstr()[()]


def test_names_of_every_kind_have_a_path(tmp_path: Path) -> None:
    names = ["", ".", "..", "a/b", "a%2Fb", "%", "%2E", "\x00\x1b", "\u202eüñ", " ", "x" * 60_000]
    pack = hhtld.encode({name: np.full(3, i, np.float32) for i, name in enumerate(names)})
    export_pack(pack, tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5") as file:
        tensors = file["entry/tensors"]
        assert len(tensors) == len(names)
        for i, name in enumerate(names):
            group = tensors[escaped(name)]
            assert group["values/value"][:].tolist() == [i] * 3
            assert group.attrs["tensor_name"] == name.replace("\0", "\u2400")


def test_an_alias_points_to_what_it_shares(tmp_path: Path) -> None:
    shared = low_rank(600, 64)
    source = ArraySource({"lm_head.weight": shared, "model.embed_tokens.weight": shared})
    pack = hhtld.encode(source, profile="bits:2")
    tied = [name for name in pack if pack.table.tensors[name].alias_of is not None]
    export_pack(pack, tmp_path / "m.h5", original=source)
    with h5py.File(tmp_path / "m.h5") as file:
        assert len(file["entry/overview/median"]) == 1 if "overview" in file["entry"] else True
        for name in tied:
            group = file["entry/tensors"][name]
            assert group.attrs["codec"] == "hhtl_t"
            assert plot_behind(group).attrs["NX_class"] == "NXdata"
            assert group["same_as"] == file["entry/tensors"][group.attrs["alias_of"]]
        assert len(tied) == 1
    export_pack(pack, tmp_path / "m.h5", tensors=tied)
    with h5py.File(tmp_path / "m.h5") as file:
        assert len(file["entry/tensors"]) == 2  # what it shares comes with it


def test_the_same_pack_gives_the_same_bytes(pack: HhtldPack, tmp_path: Path) -> None:
    for name in ("a.h5", "b.h5"):
        export_pack(pack, tmp_path / name, original=ArraySource(arrays()))
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_an_empty_pack_and_one_of_kept_tensors_open(tmp_path: Path) -> None:
    for tensors in ({}, {"a": np.ones(3, np.float32), "b": np.ones((2, 2), np.int64)}):
        export_pack(hhtld.encode(tensors, profile="gates"), tmp_path / "m.h5")
        with h5py.File(tmp_path / "m.h5") as file:
            assert len(file["entry/tensors"]) == len(tensors)
            assert ("default" in file["entry"].attrs) == bool(tensors)


def test_bad_input_is_named(pack: HhtldPack, tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    with pytest.raises(ValueError, match=r"no tensor matches 'model\.nrm'; did you mean 'model\.norm\.weight'"):
        export_pack(pack, path, tensors=["model.nrm"])
    others = arrays() | {"scalar": np.zeros(2, np.float32)}
    with pytest.raises(ValueError, match=r"was made from: tensor 'scalar' is F32 \(\), the source F32 \(2,\)"):
        export_pack(pack, path, original=ArraySource(others))
    with pytest.raises(TypeError, match="tensors must be a sequence of globs"):
        export_pack(pack, path, tensors="scalar")
    assert not path.exists()
    assert isinstance(pack.sections, ContainerReader)
    file = pack.sections.path
    with pytest.raises(ValueError, match=r"format 'safetensors' takes no codes \(--codes\) and rows \(--rows\)"):
        hhtld.convert(file, tmp_path / "x.safetensors", codes=True, rows=slice(3))
    for options in ({"profile": "lookup"}, {"rules": [("*", "keep")]}, {"seed": 0}, {"min_ratio": 2.0}):
        with pytest.raises(ValueError, match=f"format 'hdf5' takes no {next(iter(options))}.*; only"):
            hhtld.convert(file, path, **options)
    with pytest.raises(ValueError, match="predicts what is encoded"):
        hhtld.convert(file, path, dry_run=True)
    hhtld.convert(file, path)
    with pytest.raises(FormatError, match="HDF5 files are not read: hhtld writes them for people"):
        hhtld.convert(path, tmp_path / "back.hhtld")
    hhtld.save_file({"a": np.ones(3, np.float32)}, tmp_path / "plain.hhtld")
    hhtld.convert(tmp_path / "plain.hhtld", tmp_path / "plain.safetensors")
    with pytest.raises(TypeError, match=r"convert the source to \.hhtld first"):
        hhtld.convert(tmp_path / "plain.safetensors", path)
    before = (tmp_path / "plain.safetensors").read_bytes()
    for original in (tmp_path / "plain.safetensors", tmp_path):  # the file itself, and the folder it is in
        with pytest.raises(ValueError, match="the source itself"):
            hhtld.convert(tmp_path / "plain.hhtld", tmp_path / "plain.safetensors", to="hdf5", original=original)
    assert (tmp_path / "plain.safetensors").read_bytes() == before
    for _ in range(2):  # beside the source is fine, again and again
        hhtld.convert(tmp_path / "plain.hhtld", tmp_path / "beside.h5", original=tmp_path / "plain.safetensors")


@pytest.mark.parametrize("kind", ["slot_t", "slot_v", "entries", "raw"])
def test_a_damaged_section_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "m.hhtld"
    hhtld.save(hhtld.encode(arrays(), profile="lookup" if kind == "entries" else "bits:2"), path)
    with hhtld.open(path) as pack:
        assert isinstance(pack.sections, ContainerReader)
        offset = next(r.offset for r in pack.sections.records if r.kind == kind and r.nbytes)
    data = bytearray(path.read_bytes())
    data[offset] ^= 2
    path.write_bytes(data)
    with pytest.raises(FormatError, match="the file is damaged"):
        hhtld.convert(path, tmp_path / "m.h5")
    assert not (tmp_path / "m.h5").exists()


@pytest.fixture(scope="module")
def pack_of_many_rows() -> HhtldPack:
    rows = np.random.default_rng(0).standard_normal((20_000, 64)).astype(np.float32)
    return hhtld.encode({"a.embed": rows}, profile="bits:1")


@pytest.mark.parametrize(
    "delay", [0.0, 0.05, 0.2, *(pytest.param(one, marks=pytest.mark.exhaustive) for one in (0.01, 0.1))]
)
def test_an_interrupt_stops_an_export(delay: float, pack_of_many_rows: HhtldPack, tmp_path: Path) -> None:
    hhtld.save(pack_of_many_rows, tmp_path / "m.hhtld")
    code = (
        "import hhtld, os, signal, threading\n"
        "hhtld.convert('m.hhtld', 'm.h5')\n"
        "try:\n"
        f"    threading.Timer({delay}, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "    while True:\n        hhtld.convert('m.hhtld', 'm.h5', codes=True)\n"
        "except KeyboardInterrupt:\n    print('interrupted')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("interrupted\n", "")
    assert {path.name for path in tmp_path.iterdir()} <= {"m.hhtld", "m.h5"}


def limited(nbytes: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, nbytes))


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    source, target = tmp_path / "m.hhtld", tmp_path / "m.h5"
    hhtld.save(hhtld.encode(arrays(), profile="bits:2"), source)
    target.write_bytes(b"old")
    command = [sys.executable, "-m", "hhtld.formats", "convert", str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=lambda: limited(100_000))
    assert done.returncode == 4, done.stderr
    assert done.stderr == f"hhtld: cannot write {target}: File too large\n"
    assert target.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.h5", "m.hhtld"]


def test_the_command_line_and_the_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.numpy import save_file

    save_file({name: np.asarray(array) for name, array in arrays().items()}, tmp_path / "m.safetensors")
    hhtld.save(hhtld.encode(arrays(), profile="bits:2"), tmp_path / "m.hhtld")
    monkeypatch.chdir(tmp_path)
    command = ["convert", "m.hhtld", "m.h5", "--original", "m.safetensors"]
    assert main([*command, "--max-size", "64MB"]) == 0
    assert capsys.readouterr().out.startswith("m.h5 is written: ")
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == []
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--max-size", "64 lots"])
    assert stopped.value.code == 2
    assert "expected a size such as 64MB or 1GiB, got '64 lots'" in capsys.readouterr().err
    assert main([*command, "--report", "m.html"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "m.h5 only shows them" in captured.err
    example = [sys.executable, "-m", "hhtld.formats.hdf5.example", "m.h5", "m.png"]
    subprocess.run(example, cwd=tmp_path, capture_output=True, check=True)
    assert (tmp_path / "m.png").read_bytes()[:4] == b"\x89PNG"
    assert main([*command[:-2], "--tensor", "*v_proj*"]) == 0  # one tensor, and without the original
    subprocess.run(example, cwd=tmp_path, capture_output=True, check=True)
    assert main([*command[:-2], "--tensor", "scalar"]) == 0
    nothing = subprocess.run(example, cwd=tmp_path, capture_output=True, text=True)
    assert nothing.stderr == "m.h5 shows no encoded tensor\n"


def test_of_many_tensors_the_largest_have_plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10,000 tensors took three minutes: a tensor's plots take milliseconds, its numbers a tenth of them."""
    monkeypatch.setattr("hhtld.formats.hdf5.selection.MOST_DRAWN", 2)
    rows = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)
    pack = hhtld.encode({f"{i}.up_proj": rows[: 10 * i] for i in range(1, 5)} | {"norm": rows[0].copy()}, "bits:2")
    notes = export_pack(pack, tmp_path / "m.h5")
    assert notes == [
        "the smallest 3 tensors have only their numbers, without rows and plots; tensors (--tensor) exports fewer"
    ]
    with h5py.File(tmp_path / "m.h5") as file:
        tensors = file["entry/tensors"]
        assert {name for name in tensors if len(tensors[name])} == {"3.up_proj", "4.up_proj"}
        assert tensors["1.up_proj"].attrs["n_rows"] == 10
        assert len(file["entry/summary"]) == 5
    assert export_pack(pack, tmp_path / "n.h5", tensors=["1.*"]) == [
        "1 of 5 tensors are exported; tensors (--tensor) chose them"
    ]
    with h5py.File(tmp_path / "n.h5") as file:
        assert len(file["entry/tensors/1.up_proj"])
