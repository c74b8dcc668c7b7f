"""A source that others write to while it is converted, or between a conversion and its resumption."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

import hhtld
from hhtld.errors import FormatError, HeaderError
from hhtld.storage.file_reading import open_regular


def model(seed: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    shapes = {"a.weight": (300, 64), "b.weight": (301, 64), "kept": (999,)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    save_file(model(1), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def new(tmp_path: Path) -> bytes:
    save_file(model(2), tmp_path / "new.safetensors")
    return (tmp_path / "new.safetensors").read_bytes()


def write_over(path: Path, data: bytes) -> None:
    with path.open("r+b") as file:
        file.write(data)


def once(change: Callable[[], object]) -> Callable[[str, str, int], None]:
    """Progress that changes something when the first rows are coded."""
    changes = iter([change])

    def progress(stage: str, name: str, nbytes: int) -> None:
        if stage == "encode":
            next(changes, lambda: None)()

    return progress


def test_a_source_written_over_in_place_is_no_mixture(old: Path, new: bytes, tmp_path: Path) -> None:
    with pytest.raises(HeaderError, match="was written to while it was open"):
        hhtld.convert(old, tmp_path / "out.hhtld", profile="gates", jobs=1, progress=once(lambda: write_over(old, new)))
    assert not (tmp_path / "out.hhtld").exists()


def test_writing_is_noticed_though_size_and_time_are_set_back(old: Path, new: bytes, tmp_path: Path) -> None:
    before = old.stat()

    def change() -> None:
        write_over(old, new)
        os.utime(old, ns=(before.st_atime_ns, before.st_mtime_ns))

    with pytest.raises(HeaderError, match="was written to while it was open"):
        hhtld.convert(old, tmp_path / "out.hhtld", profile="gates", jobs=1, progress=once(change))


def test_a_source_replaced_by_rename_is_read_to_its_end(old: Path, new: bytes, tmp_path: Path) -> None:
    hhtld.convert(old, tmp_path / "expected.hhtld", profile="gates")
    (tmp_path / "other").write_bytes(new)
    hhtld.convert(
        old, tmp_path / "out.hhtld", profile="gates", jobs=1, progress=once(lambda: (tmp_path / "other").replace(old))
    )
    assert (tmp_path / "out.hhtld").read_bytes() == (tmp_path / "expected.hhtld").read_bytes()


def test_a_pack_written_over_while_it_is_unpacked_is_no_mixture(old: Path, tmp_path: Path) -> None:
    hhtld.convert(old, tmp_path / "in.hhtld", profile="gates")
    data = (tmp_path / "in.hhtld").read_bytes()
    with hhtld.formats.open_source(tmp_path / "in.hhtld") as source:
        source.read_tensor("a.weight")
        write_over(tmp_path / "in.hhtld", data)
        with pytest.raises(FormatError, match="was written to while it was open"):
            source.read_tensor("b.weight")


@pytest.mark.parametrize("io", ["mmap", "pread", "direct"])
@pytest.mark.parametrize(
    "read",
    [
        lambda pack: pack.get_rows("a.weight", [1]),
        lambda pack: pack.get_encoded("a.weight"),
        lambda pack: pack.scorer("a.weight"),
        lambda pack: pack.check_groups(),
    ],
    ids=["rows", "encoded", "scorer", "groups"],
)
def test_an_error_of_a_pack_written_over_names_it_once(
    read: Callable[[hhtld.HhtldPack], object], io: Literal["mmap", "pread", "direct"], old: Path, tmp_path: Path
) -> None:
    path = tmp_path / "in.hhtld"
    hhtld.convert(old, path, profile="gates")
    with hhtld.open(path, io=io) as pack:
        write_over(path, path.read_bytes())
        with pytest.raises(HeaderError, match="was written to while it was open") as raised:
            read(pack)
    assert str(raised.value).startswith(f"{path}: ")
    assert str(raised.value).count(str(path)) == 1


def test_a_shard_replaced_before_it_is_read_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "snapshot"
    folder.mkdir()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name, tensor in zip(names, ("a.weight", "b.weight"), strict=True):
        save_file({tensor: model(1)[tensor]}, folder / name)
    weight_map = dict(zip(("a.weight", "b.weight"), names, strict=True))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with hhtld.formats.open_source(folder) as source:
        source.read_tensor("a.weight")
        save_file({"b.weight": model(2)["b.weight"]}, tmp_path / "other")
        (tmp_path / "other").replace(folder / names[1])
        with pytest.raises(HeaderError, match="was replaced after the snapshot was opened"):
            source.read_tensor("b.weight")


def test_external_data_replaced_after_the_model_was_opened_is_noticed(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    rows = model(1)["a.weight"]
    tensor = onnx.numpy_helper.from_array(rows, "a.weight")
    graph = onnx.helper.make_graph([], "g", [], [], [tensor])
    onnx.save_model(
        onnx.helper.make_model(graph),
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="m.data",
        size_threshold=0,
    )
    with hhtld.formats.open_source(tmp_path / "m.onnx") as source:
        assert source.read_tensor("a.weight").tobytes() == rows.tobytes()
        (tmp_path / "other").write_bytes(model(2)["a.weight"].tobytes())
        (tmp_path / "other").replace(tmp_path / "m.data")
        with pytest.raises(HeaderError, match="was replaced after the model was opened"):
            source.read_tensor("a.weight")


@pytest.mark.parametrize("replaced", [False, True], ids=["written over", "replaced by rename"])
def test_a_source_that_changes_under_workers_is_noticed(old: Path, new: bytes, tmp_path: Path, replaced: bool) -> None:
    def change() -> None:
        if replaced:
            (tmp_path / "other").write_bytes(new)
            (tmp_path / "other").replace(old)
        else:
            write_over(old, new)

    with ProcessPoolExecutor(1) as pool, pytest.raises(hhtld.HhtldError, match=r"was written to|finds another model"):
        hhtld.convert(old, tmp_path / "out.hhtld", profile="gates", executor=pool, progress=once(change))
    assert not (tmp_path / "out.hhtld").exists()


class Stop(BaseException):
    """What stands for a process that ends."""


def stop(stage: str, name: str, nbytes: int) -> None:
    raise Stop


def test_resume_refuses_other_content_of_the_same_size_and_time(old: Path, new: bytes, tmp_path: Path) -> None:
    before = old.stat()
    with pytest.raises(Stop):
        hhtld.convert(old, tmp_path / "out.hhtld", profile="gates", jobs=1, progress=stop)
    write_over(old, new)
    os.utime(old, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ValueError, match=r"cannot resume .* another source content"):
        hhtld.convert(old, tmp_path / "out.hhtld", profile="gates", jobs=1, resume=True)


def test_a_name_more_or_less_is_no_change(old: Path, tmp_path: Path) -> None:
    with open_regular(old) as file:
        first = file.read(0, 64)
        os.link(old, tmp_path / "second")
        assert file.read(0, 64) == first
    with open_regular(old) as file:
        old.unlink()
        assert file.read(0, 64) == first


@pytest.mark.parametrize("seconds", [10_413_792_000, -62_135_596_800])
@pytest.mark.parametrize("mmap", [True, False])
def test_files_of_any_date_are_read(old: Path, tmp_path: Path, seconds: int, mmap: bool) -> None:
    path = tmp_path / "far.hhtld"
    hhtld.convert(old, path, profile="bits:4", jobs=1)
    try:  # the years 2300 and 1, whose times in ns take more than 64 bits; an archive may bring such dates
        os.utime(path, ns=(seconds * 10**9, seconds * 10**9))
    except (OSError, OverflowError):
        pytest.skip("this file system or system has no such date")
    with hhtld.open(path, mmap=mmap) as pack:
        assert pack.get_rows("a.weight", [3]).shape == (1, 64)
