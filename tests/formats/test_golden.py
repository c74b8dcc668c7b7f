"""Golden packs: their bytes, what they decode to, and that the encoder still writes them.

Nothing here writes; `tests/golden/make.py` makes files that are missing and touches no others.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import hhtld
import hhtld.codecs.base
import hhtld.sources.rows
from hhtld.commands.verify import verify
from hhtld.dtypes import DTYPES
from hhtld.pack.container import ContainerReader

TESTS = Path(__file__).parent.parent


@cache
def loaded(path: Path) -> ModuleType:
    """A module by path: the tests are no package."""
    spec = importlib.util.spec_from_file_location(f"golden_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


make = loaded(TESTS / "golden" / "make.py")
spec_reader = loaded(TESTS / "spec_reader.py")
GOLDENS: dict[str, Any] = make.goldens()
NAMES = sorted(GOLDENS)
WRITTEN = [name for name in NAMES if GOLDENS[name].is_written]


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((make.FOLDER / "MANIFEST.json").read_text())
    return found


def test_manifest_lists_every_file(manifest: dict[str, Any]) -> None:
    assert sorted(manifest) == NAMES
    assert sorted(path.name for path in make.FOLDER.iterdir()) == sorted([*NAMES, "MANIFEST.json"])


@pytest.mark.parametrize("name", NAMES)
def test_file_is_unchanged(name: str, manifest: dict[str, Any]) -> None:
    assert hashlib.sha256((make.FOLDER / name).read_bytes()).hexdigest() == manifest[name]["sha256"]


@pytest.mark.parametrize("name", NAMES)
def test_version_is_the_lowest(name: str) -> None:
    with hhtld.open(make.FOLDER / name) as pack:
        assert isinstance(pack.sections, ContainerReader)
        assert (pack.sections.major, pack.sections.minor) == (int(name[1]), 0)


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_decodes_to_the_manifest(name: str, mmap: bool, manifest: dict[str, Any]) -> None:
    with hhtld.open(make.FOLDER / name, mmap=mmap) as pack:
        assert pack.metadata() == GOLDENS[name].metadata
        assert pack.keys() == sorted(manifest[name]["tensors"])
        for tensor, expected in manifest[name]["tensors"].items():
            decoded = pack.get_tensor(tensor)
            assert (str(decoded.dtype), list(decoded.shape)) == (expected["dtype"], expected["shape"])
            assert hashlib.sha256(decoded.tobytes()).hexdigest() == expected["sha256"], tensor


@pytest.mark.parametrize("name", NAMES)
def test_a_reader_of_the_specification_agrees(name: str) -> None:
    second = spec_reader.read(make.FOLDER / name)
    with hhtld.open(make.FOLDER / name) as pack:
        assert sorted(second) == pack.keys()
        for tensor in pack:
            kept = pack.info(tensor).codec == "keep"
            ours = pack.get_tensor(tensor, "source" if kept else "float32")
            assert second[tensor].tobytes() == ours.tobytes(), tensor
            if second[tensor].dtype == ours.dtype:
                assert second[tensor].shape == ours.shape


@pytest.mark.parametrize("name", NAMES)
def test_side_files_come_back(name: str, manifest: dict[str, Any]) -> None:
    with hhtld.open(make.FOLDER / name) as pack:
        found = {file: pack.read_file(file) for file in pack.files()}
    assert found == GOLDENS[name].files == spec_reader.read_files(make.FOLDER / name)
    hashes = {file: hashlib.sha256(data).hexdigest() for file, data in found.items()}
    assert hashes == manifest[name].get("files", {})


@pytest.mark.parametrize("name", NAMES)
def test_kept_tensors_come_back_as_they_were(name: str) -> None:
    with hhtld.open(make.FOLDER / name) as pack:
        for tensor, array in GOLDENS[name].tensors.items():
            back = pack.get_tensor(tensor, "source")
            assert (back.dtype, back.shape) == (array.dtype, array.shape)
            if pack.info(tensor).codec == "keep":
                assert back.tobytes() == array.tobytes()


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("name", WRITTEN)
def test_encoding_again_gives_the_same_bytes(
    name: str, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if threads > 1:  # these tensors are smaller than one block
        monkeypatch.setattr(hhtld.sources.rows, "BLOCK_NBYTES", 9_000)
        monkeypatch.setattr(hhtld.codecs.base, "BLOCK_NBYTES", 9_000)
        monkeypatch.setattr(hhtld.codecs.base, "SPAN_NBYTES", 20_000)
    again = tmp_path / name
    with ThreadPoolExecutor(threads) as executor:
        hhtld.save(GOLDENS[name].encode(executor if threads > 1 else None), again)
    if any(array.dtype.itemsize < 4 for array in GOLDENS[name].tensors.values() if array.ndim > 1):
        # These files recorded cosines of float32, and now they are of what is given back in the source's type.
        made, golden = (_contents(path) for path in (again, make.FOLDER / name))
        assert made == golden
    else:
        assert again.read_bytes() == (make.FOLDER / name).read_bytes()


def _contents(path: Path) -> tuple[list[bytes], dict[str, Any]]:
    """Every section, and the table without the cosines of tensors in types of fewer than 32 bits."""
    with hhtld.open(path) as pack:
        sections = [pack.sections.whole(index).tobytes() for index in range(len(pack.sections.kinds()))]
        table = pack.table.to_json()
    for tensor in table["tensors"]:
        if DTYPES[tensor["dtype"]].nbits < 32:
            tensor.pop("gates", None)
    return sections, table


@pytest.mark.parametrize("name", NAMES)
def test_files_of_before_are_still_verified(name: str, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    arrays = {name: np.ascontiguousarray(array) for name, array in GOLDENS[name].tensors.items()}
    if any(array.dtype.kind == "V" and array.dtype.itemsize == 1 for array in arrays.values()):
        pytest.skip("numpy's safetensors writes no 8-bit floats")
    save_file(arrays, tmp_path / "source.safetensors")
    report = verify(make.FOLDER / name, tmp_path / "source.safetensors")
    assert not [sentence for sentence in report.differences if "cosines" in sentence]


def test_make_writes_nothing_over() -> None:
    before = {path: path.stat().st_mtime_ns for path in make.FOLDER.iterdir()}
    assert list(make.make()) == []
    assert {path: path.stat().st_mtime_ns for path in make.FOLDER.iterdir()} == before
