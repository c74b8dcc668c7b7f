"""Sources behind URLs and in a hub's cache: read by ranges, the same as local ones, every trouble by name."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import io
import json
import pickle
import re
import shutil
import sys
import threading
import time
import types
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray

import hhtld
import hhtld.storage.urls
from hhtld.commands.main import main
from hhtld.errors import FormatError, HeaderError, MissingExtraError, OutputError, TruncatedError
from hhtld.formats import open_source
from hhtld.formats.safetensors import SafetensorsFile
from hhtld.storage.file_reading import is_url
from hhtld.storage.locations import locate
from hhtld.storage.urls import Url

fsspec = pytest.importorskip("fsspec")


class Counted:
    """A memory file system whose ranges are counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = fsspec.filesystem("memory")
        self.ranges: list[tuple[str, int, int]] = []
        given = type(self.store).cat_file

        def cat_file(store: Any, path: str, start: int | None = None, end: int | None = None) -> bytes:
            assert start is not None
            assert end is not None
            self.ranges.append((path, start, end))
            return bytes(given(store, path, start, end))

        monkeypatch.setattr(type(self.store), "cat_file", cat_file)

    def put(self, name: str, data: bytes) -> None:
        self.store.pipe(name, data)

    def put_folder(self, folder: Path, name: str) -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                self.put(f"{name}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    @property
    def nbytes(self) -> int:
        return sum(end - start for _, start, end in self.ranges)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    counted = Counted(monkeypatch)
    yield counted
    counted.store.store.clear()
    counted.store.pseudo_dirs[:] = [""]


def model() -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(5)
    return {
        "model.embed_tokens.weight": rng.standard_normal((2048, 64)).astype(np.float32),
        "model.layers.0.mlp.up_proj.weight": rng.standard_normal((640, 64)).astype(np.float32),
        "model.norm.weight": np.ones(64, np.float32),
    }


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards, their index and a config."""
    folder = tmp_path_factory.mktemp("snapshot")
    weights, weight_map = model(), {}
    for number, names in enumerate((list(weights)[:1], list(weights)[1:]), 1):
        shard = f"model-{number:05}-of-00002.safetensors"
        safetensors.numpy.save_file({name: weights[name] for name in names}, folder / shard)
        weight_map |= dict.fromkeys(names, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("single") / "model.safetensors"
    safetensors.numpy.save_file(model(), path)
    return path


@pytest.fixture(scope="module")
def packed(single: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "model.hhtld"
    hhtld.convert(single, path, profile="lookup")
    return path


# --- what is a URL ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket/x.safetensors", True),
        ("hf://org/name@main/model.safetensors", True),
        ("memory://x", True),
        ("HTTPS://host/x", True),
        ("zip://x.safetensors::s3://bucket/x.zip", True),
        ("simplecache::s3://bucket/x", True),
        ("demo:", False),
        ("C:/models/x.safetensors", False),
        ("C:\\models\\x.safetensors", False),
        ("c://models/x.safetensors", False),
        ("a:b.safetensors", False),
        ("./s3://bucket/x", False),
        ("/s3://bucket/x", False),
        ("s3:/bucket/x", False),
        ("s3:bucket", False),
        ("://x", False),
        ("", False),
    ],
)
def test_what_is_a_url(text: str, expected: bool) -> None:
    assert is_url(text) is expected


@pytest.mark.parametrize("name", ["a:b.safetensors", "demo:x.safetensors", "C:x.safetensors", "s3:x.safetensors"])
def test_names_with_colons_are_paths(name: str, single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(single.read_bytes())
    with open_source(name) as source:
        assert len(source) == 3


def test_a_folder_called_like_a_protocol(single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("memory:").mkdir()
    (Path("memory:") / "x.safetensors").write_bytes(single.read_bytes())
    for text in ("./memory://x.safetensors", "memory:/x.safetensors"):
        with open_source(text) as source:
            assert len(source) == 3


def test_a_path_that_was_a_url_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="give a URL as str"):
        open_source(Path("s3://bucket/x.safetensors"))


def test_file_urls_are_paths(single: Path, tmp_path: Path) -> None:
    spaced = tmp_path / "a b.safetensors"
    spaced.write_bytes(single.read_bytes())
    assert locate(spaced.as_uri()) == spaced
    with open_source(spaced.as_uri()) as source:
        assert len(source) == 3
    with pytest.raises(ValueError, match="names the host 'elsewhere'"):
        locate("file://elsewhere/x")


def test_parts_of_a_url() -> None:
    url = Url("memory://folder/model.safetensors")
    assert (url.name, url.suffix, str(url.parent)) == ("model.safetensors", ".safetensors", "memory://folder")
    assert str(url.parent / "x") == "memory://folder/x"
    assert str(Url("memory://x").parent / "y") == "memory:///y"


def test_what_opens_doors_is_not_shown() -> None:
    pytest.importorskip("aiohttp")
    url = Url("https://me:secret@host/model.safetensors?X-Amz-Signature=secret")
    assert str(url) == "https://me:***@host/model.safetensors?..."
    assert "secret" not in repr(url)
    assert (url.name, url.suffix) == ("model.safetensors", ".safetensors")
    assert url.parent._path.endswith("@host?X-Amz-Signature=secret")  # siblings are let in by the same key


# --- reading ----------------------------------------------------------------------------------


def same(a: str | Path, b: str | Path) -> None:
    with open_source(a) as first, open_source(b) as second:
        assert dict(first.infos()) == dict(second.infos())
        assert (first.metadata, first.description) == (second.metadata, second.description)
        for name in first.infos():
            np.testing.assert_array_equal(first.read_tensor(name), second.read_tensor(name))


def test_every_kind_of_source_reads_as_the_local_one(
    memory: Counted, snapshot: Path, single: Path, packed: Path
) -> None:
    memory.put_folder(snapshot, "model")
    memory.put("single/model.safetensors", single.read_bytes())
    memory.put("packs/model.hhtld", packed.read_bytes())
    same("memory://model", snapshot)
    same("memory://model/", snapshot)
    same("memory://model/model.safetensors.index.json", snapshot)
    same("memory://single", single.parent)
    same("memory://single/model.safetensors", single)
    same("memory://packs/model.hhtld", packed)
    loaded = hhtld.load_file("memory://single/model.safetensors")
    np.testing.assert_array_equal(loaded["model.norm.weight"], np.ones(64, np.float32))


def test_side_files_and_packed_folders_behind_a_url(memory: Counted, snapshot: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(snapshot, source)
    (source / "config.json").write_bytes(b'{"model_type": "tiny"}\n')
    (source / "tokenizer.json").write_bytes(b"{}")
    (source / "modules.json").write_text('[{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]')
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_bytes(b"{}")
    memory.put_folder(source, "model")
    with open_source("memory://model") as there, open_source(source) as here:
        assert there.files() == here.files()
        assert set(here.files()) == {"1_Pooling/config.json", "config.json", "modules.json", "tokenizer.json"}
        assert all(there.read_file(name) == here.read_file(name) for name in here.files())
    hhtld.convert("memory://model", tmp_path / "packed", to="hf", profile="bits:3")
    memory.put_folder(tmp_path / "packed", "packed")
    same("memory://packed", tmp_path / "packed")
    with open_source("memory://packed") as there, open_source(tmp_path / "packed") as here:
        assert there.files() == here.files() != {}
        assert all(there.read_file(name) == here.read_file(name) for name in here.files())
    with hhtld.open("memory://packed") as pack:
        assert set(pack.keys()) == set(model())


def test_a_conversion_of_a_url_goes_on_while_it_is_the_same(memory: Counted, single: Path, tmp_path: Path) -> None:
    def stop(stage: str, name: str, nbytes: int) -> None:
        raise KeyboardInterrupt

    memory.put("model.safetensors", single.read_bytes())
    url, target = "memory://model.safetensors", tmp_path / "m.hhtld"
    hhtld.convert(single, tmp_path / "new.hhtld", profile="bits:2")
    for changed in (False, True):
        with pytest.raises(KeyboardInterrupt):
            hhtld.convert(url, target, profile="bits:2", progress=stop)
        if changed:
            memory.put("model.safetensors", single.read_bytes())  # another time of creation
        report = hhtld.convert(url, target, profile="bits:2", resume=True)
        assert any("was touched or moved" in note for note in report.notes) == changed
        assert target.read_bytes() == (tmp_path / "new.hhtld").read_bytes()
        target.unlink()


def test_chains_of_stores(memory: Counted, single: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.write(single, "m/model.safetensors")
    memory.put("model.safetensors", single.read_bytes())
    url = f"zip://m/model.safetensors::{(tmp_path / 'm.zip').as_uri()}"
    assert str(Url(url).parent / "x") == url.replace("model.safetensors", "x")
    same(url, single)
    same(url.replace("/model.safetensors", "", 1), single.parent)
    same("simplecache::memory://model.safetensors", single)


def test_only_what_is_asked_for_is_fetched(memory: Counted, single: Path, packed: Path) -> None:
    memory.put("model.safetensors", single.read_bytes())
    with open_source("memory://model.safetensors") as source:
        assert memory.nbytes < 1000
        memory.ranges.clear()
        source.read_rows("model.embed_tokens.weight", 100, 110)
        assert [end - start for _, start, end in memory.ranges] == [10 * 64 * 4]
    memory.put("model.hhtld", packed.read_bytes())
    memory.ranges.clear()
    with hhtld.open("memory://model.hhtld") as pack:
        pack.info("model.embed_tokens.weight")
        assert memory.nbytes < 8000
        assert memory.nbytes < packed.stat().st_size / 5


def test_rows_near_each_other_come_in_one_range(memory: Counted, single: Path, tmp_path: Path) -> None:
    path = tmp_path / "kept.hhtld"
    hhtld.convert(single, path, profile="lookup", rules=[("*", "keep")])
    memory.put("kept.hhtld", path.read_bytes())
    rows = [2000, 3, 5, 5, 9, 1, 40, 39]
    with hhtld.open(path, mmap=False) as local, hhtld.open("memory://kept.hhtld") as pack:
        expected = local.get_rows("model.embed_tokens.weight", rows)
        memory.ranges.clear()
        np.testing.assert_array_equal(pack.get_rows("model.embed_tokens.weight", rows), expected)
        np.testing.assert_array_equal(expected, model()["model.embed_tokens.weight"][rows])
    assert len(memory.ranges) < len(set(rows))


def test_large_reads_come_in_pieces(memory: Counted, single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hhtld.storage.urls.REQUEST_NBYTES", 1000)
    memory.put("model.safetensors", single.read_bytes())
    same("memory://model.safetensors", single)
    assert max(end - start for _, start, end in memory.ranges) == 1000


def test_several_threads_read_at_once(memory: Counted, single: Path) -> None:
    memory.put("model.safetensors", single.read_bytes())
    name = "model.embed_tokens.weight"
    expected = model()[name]
    with open_source("memory://model.safetensors") as source, ThreadPoolExecutor(8) as executor:
        blocks = list(executor.map(lambda start: source.read_rows(name, start, start + 16), range(0, 2048, 16)))
    np.testing.assert_array_equal(np.concatenate(blocks).view("<f4"), expected)


# --- trouble ----------------------------------------------------------------------------------


def test_nothing_there(memory: Counted) -> None:
    for url in ("memory://nothing", "memory://nothing/model.safetensors.index.json", "memory://x.hhtld"):
        with pytest.raises(FileNotFoundError, match=re.escape(url.rpartition("/")[0])):
            open_source(url)
    with pytest.raises(FileNotFoundError, match=r"memory://x\.hhtld"):
        hhtld.open("memory://x.hhtld")


def test_a_missing_shard_is_named(memory: Counted, snapshot: Path) -> None:
    memory.put_folder(snapshot, "model")
    memory.store.rm("model/model-00002-of-00002.safetensors")
    with pytest.raises(HeaderError, match=r"shard 'model-00002-of-00002\.safetensors' is missing"):
        open_source("memory://model")


def test_a_folder_without_a_model(memory: Counted) -> None:
    memory.put("folder/readme.txt", b"x")
    with pytest.raises(FormatError, match="not recognised"):
        open_source("memory://folder")
    with pytest.raises(FormatError, match="not a file"):
        hhtld.open("memory://folder")


def test_malformed_files_are_refused_as_local_ones(memory: Counted, single: Path, packed: Path) -> None:
    for name, data in (("model.safetensors", single.read_bytes()), ("model.hhtld", packed.read_bytes())):
        for nbytes in (0, 1, 7, 63, 100, len(data) - 1):
            memory.put(name, data[:nbytes])
            with pytest.raises(FormatError, match=f"memory://{name}"):
                open_source(f"memory://{name}")


@pytest.mark.parametrize("change", ["longer", "same size", "shorter", "removed"])
def test_a_file_replaced_while_it_is_read(memory: Counted, single: Path, change: str) -> None:
    data = single.read_bytes()
    memory.put("model.safetensors", data)
    with open_source("memory://model.safetensors") as source:
        if change == "removed":
            memory.store.rm("model.safetensors")
        else:
            new = {"longer": data + b"x", "same size": data[:-1] + b"x", "shorter": data[:-1]}[change]
            memory.put("model.safetensors", new)
        what = "was removed" if change == "removed" else "was replaced"
        with pytest.raises(FormatError, match=rf"memory://model\.safetensors: the file {what} while it was open"):
            source.read_tensor("model.embed_tokens.weight")


def test_a_pack_replaced_while_it_is_read(memory: Counted, packed: Path) -> None:
    memory.put("model.hhtld", packed.read_bytes())
    with hhtld.open("memory://model.hhtld") as pack:
        memory.put("model.hhtld", packed.read_bytes())
        with pytest.raises(FormatError, match="was replaced"):
            pack.get_tensor("model.norm.weight")


def test_a_shard_replaced_after_opening(memory: Counted, snapshot: Path) -> None:
    memory.put_folder(snapshot, "model")
    with open_source("memory://model") as source:
        memory.put("model/model-00001-of-00002.safetensors", b"\2\0\0\0\0\0\0\0{}")
        with pytest.raises(HeaderError, match="was replaced after"):
            source.read_tensor("model.embed_tokens.weight")


def test_short_reads_are_refused(memory: Counted, single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.put("model.safetensors", single.read_bytes())
    with SafetensorsFile("memory://model.safetensors") as source:
        monkeypatch.setattr(Url, "part", lambda self, start, stop: bytes(stop - start - 1))
        with pytest.raises(TruncatedError, match=r"gave 255 bytes from byte .*, expected 256"):
            source.read_tensor("model.norm.weight")


class Broken:
    """A store that fails as libraries do: with exceptions of their own."""

    async_impl = True

    def __init__(self, error: Exception) -> None:
        self.error = error

    def invalidate_cache(self, path: str) -> None:
        pass

    def info(self, path: str) -> dict[str, Any]:
        raise self.error


class ClientError(Exception):
    """As botocore's, no OSError."""


@pytest.mark.parametrize("error", [ClientError("403 Forbidden"), TimeoutError("slow"), PermissionError("no key")])
def test_network_errors_name_the_url(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url: (Broken(error), url))
    with pytest.raises(OSError, match=rf"memory://x\.safetensors cannot be read: {type(error).__name__}: {error}"):
        open_source("memory://x.safetensors")
    for argv in (["inspect"], ["verify"], ["convert", "--dry-run"]):
        assert main([*argv, "memory://x.safetensors", *(["x.hhtld"] if "convert" in argv else [])]) == 3
        assert capsys.readouterr().err.startswith("hhtld: memory://x.safetensors cannot be read: ")


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for module in ("s3fs", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, module, None)
    for url, package in (("s3://bucket/x.hhtld", "s3fs"), ("hf://org/name", "huggingface_hub")):
        with pytest.raises(MissingExtraError, match=rf"{url}.*{package}.*hhtld\[fsspec\]"):
            open_source(url)
    assert main(["inspect", "s3://bucket/x"]) == 2
    assert "s3fs" in capsys.readouterr().err
    with pytest.raises(ValueError, match="nope://x: Protocol not known: nope"):
        open_source("nope://x")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(
        MissingExtraError, match=r"memory://x: reading URLs needs the package fsspec: pip install 'hhtld\[fsspec\]'"
    ):
        open_source("memory://x")


def test_formats_that_need_a_local_file_say_so(memory: Counted) -> None:
    for name in ("x.gguf", "x.onnx", "x.h5"):
        memory.put(name, b"GGUF" + bytes(60))
        with pytest.raises(ValueError, match=f"memory://{name}: .* is read from local files only; download the file"):
            open_source(f"memory://{name}")


def test_nothing_is_written_to_urls(
    memory: Counted, single: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OutputError, match=r"s3://b/x\.hhtld: only local files are written"):
        hhtld.convert(single, "s3://b/x.hhtld")
    with pytest.raises(OutputError, match="only local files are written"):
        hhtld.save(hhtld.encode(model(), profile="lookup"), "memory://x.hhtld")
    assert main(["convert", str(single), "memory://x.hhtld"]) == 4
    assert "only local files are written" in capsys.readouterr().err
    assert memory.store.find("") == []
    hhtld.convert(single, (tmp_path / "x.hhtld").as_uri(), profile="lookup")
    assert (tmp_path / "x.hhtld").is_file()


# --- commands ---------------------------------------------------------------------------------


def test_commands_take_urls(
    memory: Counted,
    snapshot: Path,
    packed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    memory.put_folder(snapshot, "model")
    assert main(["convert", "memory://model", "m.hhtld", "--profile", "lookup", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["source"] == "memory://model"
    hhtld.convert(snapshot, "local.hhtld", profile="lookup")
    assert Path("m.hhtld").read_bytes() == Path("local.hhtld").read_bytes()
    memory.put("packs/m.hhtld", Path("m.hhtld").read_bytes())
    url = "memory://packs/m.hhtld"
    capsys.readouterr()
    assert main(["inspect", url, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["path"], facts["nbytes"]) == (url, Path("m.hhtld").stat().st_size)
    assert main(["inspect", url, "--tensor", "model.embed_tokens.weight", "--rows", "0:1"]) == 0
    assert main(["verify", url, "memory://model", "--json"]) == 0
    assert main(["diff", "memory://model", str(snapshot), "--json"]) == 0
    assert main(["report", url, "memory://model"]) == 0
    assert Path("m.html").is_file()
    assert main(["probe", url, "memory://model", "--count", "2", "--json"]) == 0
    assert main(["convert", url, "back.safetensors"]) == 0
    assert main(["convert", url, "m.h5", "--original", "memory://model"]) == 0
    with open_source("back.safetensors") as back, open_source("m.hhtld") as pack:
        np.testing.assert_array_equal(
            back.read_tensor("model.embed_tokens.weight"), pack.read_tensor("model.embed_tokens.weight")
        )


def test_models_that_other_libraries_load_must_be_local(memory: Counted) -> None:
    from hhtld.storage.locations import local_source

    with pytest.raises(ValueError, match="MODEL must be local, got memory://model: download it first"):
        local_source("memory://model", "MODEL")


# --- the web ----------------------------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    """A file server that gives ranges, or with `whole` only whole files."""

    files: dict[str, bytes]
    whole = False
    sent: list[int]

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        data = self.files.get(self.path.partition("?")[0])
        if data is None:
            self.send_error(404)
            return
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        part = data[int(found[1]) : int(found[2]) + 1] if found and not self.whole else data
        self.send_response(206 if found and not self.whole else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", f'"{hash(data)}"')
        self.end_headers()
        if body:
            self.wfile.write(part)
            self.sent.append(len(part))

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[tuple[str, type[Handler]]]:
    pytest.importorskip("aiohttp")
    handler = type("Served", (Handler,), {"files": {}, "sent": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", handler
        server.shutdown()
        thread.join()


def test_the_web(web: tuple[str, type[Handler]], snapshot: Path, single: Path, packed: Path) -> None:
    address, handler = web
    handler.files |= {f"/m/{path.name}": path.read_bytes() for path in snapshot.iterdir()}
    handler.files |= {"/x.safetensors": single.read_bytes(), "/x.hhtld": packed.read_bytes()}
    with open_source(f"{address}/x.safetensors?download=true") as source:
        source.read_rows("model.embed_tokens.weight", 5, 6)
        assert sum(handler.sent) < 2000
    same(f"{address}/x.safetensors", single)
    same(f"{address}/x.hhtld", packed)
    same(f"{address}/m/model.safetensors.index.json", snapshot)
    with pytest.raises(FileNotFoundError, match=re.escape(f"{address}/nothing.safetensors")):
        open_source(f"{address}/nothing.safetensors")
    with open_source(f"{address}/x.safetensors") as source, ThreadPoolExecutor(4) as executor:
        name = "model.embed_tokens.weight"
        blocks = list(executor.map(lambda start: source.read_rows(name, start, start + 256), range(0, 2048, 256)))
        np.testing.assert_array_equal(np.concatenate(blocks).view("<f4"), model()[name])
        handler.files["/x.safetensors"] = handler.files["/x.safetensors"][:-1] + b"\1"
        with pytest.raises(FormatError, match="was replaced"):
            source.read_rows(name, 0, 1)


def test_a_server_that_gives_only_whole_files(web: tuple[str, type[Handler]], single: Path) -> None:
    address, handler = web
    handler.files["/x.safetensors"] = single.read_bytes()
    handler.whole = True
    with pytest.raises(FormatError, match="does not give ranges of it; download it first"):
        open_source(f"{address}/x.safetensors")


class Hostile(Handler):
    """A server that answers ranges by other rules; `way` names one."""

    way: str

    def answer(self, *, body: bool) -> None:
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not body or found is None:
            Handler.answer(self, body=body)
            return
        data = self.files[self.path]
        part = data[int(found[1]) : int(found[2]) + 1]
        self.sent.append(0)
        self.send_response(206)
        if self.way == "encoded":
            part = gzip.compress(bytes(50 << 20))
            self.send_header("Content-Encoding", "gzip")
        if self.way == "endless":
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        with contextlib.suppress(OSError):
            if self.way == "endless":
                for _ in range(1000):
                    self.wfile.write(bytes(1 << 20))
                    self.sent[-1] += 1 << 20
            elif self.way == "slow":
                for byte in part:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    time.sleep(0.1)
            else:
                self.wfile.write(part)


@pytest.mark.parametrize(
    ("way", "kind", "message"),
    [
        ("endless", FormatError, "gave .* bytes or more from byte 0"),
        ("encoded", OSError, "the server sends the file encoded .'gzip'., which the request did not ask for"),
        ("slow", OSError, "the server sent .* bytes in the time it had"),
    ],
)
def test_a_web_server_does_not_decide_what_a_read_takes(
    web: tuple[str, type[Handler]],
    packed: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    kind: type[Exception],
    message: str,
) -> None:
    address, handler = web
    handler.files["/x.hhtld"] = packed.read_bytes()
    monkeypatch.setattr(handler, "answer", Hostile.answer)
    monkeypatch.setattr(handler, "way", way, raising=False)
    monkeypatch.setattr(hhtld.storage.urls, "_ANSWER_SECONDS", 1)
    monkeypatch.setattr(hhtld.storage.urls, "_SLOWEST", 1 << 30)
    started = time.perf_counter()
    with pytest.raises(kind, match=message):
        hhtld.open(f"{address}/x.hhtld")
    assert time.perf_counter() - started < 10
    assert sum(handler.sent) < 100 << 20


def test_a_redirect_is_followed(web: tuple[str, type[Handler]], single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address, handler = web
    handler.files["/x.safetensors"] = single.read_bytes()
    plain = handler.answer

    def answer(self: Handler, *, body: bool) -> None:
        if self.path == "/other.safetensors":
            self.send_response(302)
            self.send_header("Location", f"{address}/x.safetensors")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            plain(self, body=body)

    monkeypatch.setattr(handler, "answer", answer)
    same(f"{address}/other.safetensors", single)


def test_no_connection_is_not_a_missing_file(web: tuple[str, type[Handler]]) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        port = server.server_port
    with pytest.raises(OSError, match="cannot be read: ClientConnectorError") as caught:
        open_source(f"http://127.0.0.1:{port}/x.safetensors")
    assert not isinstance(caught.value, FileNotFoundError)


# --- a hub's cache ----------------------------------------------------------------------------

COMMIT, OTHER = "a1" * 20, "b2" * 20


@pytest.fixture
def cache(snapshot: Path, tmp_path: Path) -> Path:
    """A model as huggingface_hub keeps it: names that link to blobs without suffixes."""
    folder = tmp_path / "hub" / "models--org--name"
    for part in ("blobs", "refs", f"snapshots/{COMMIT}"):
        (folder / part).mkdir(parents=True)
    for number, path in enumerate(sorted(snapshot.iterdir())):
        (folder / "blobs" / f"{number:064x}").write_bytes(path.read_bytes())
        (folder / "snapshots" / COMMIT / path.name).symlink_to(f"../../blobs/{number:064x}")
    (folder / "refs" / "main").write_text(COMMIT)
    return folder


def test_a_cached_model(cache: Path, snapshot: Path, tmp_path: Path) -> None:
    commit = cache / "snapshots" / COMMIT
    assert locate(cache) == commit
    for given in (cache, str(cache), commit, commit / "model.safetensors.index.json"):
        same(given, snapshot)
    with open_source(commit / "model-00001-of-00002.safetensors") as source:
        assert list(source.infos()) == ["model.embed_tokens.weight"]
    hhtld.convert(cache, tmp_path / "m.hhtld", profile="lookup")
    assert main(["verify", str(tmp_path / "m.hhtld"), str(cache)]) == 0


def test_a_cached_model_given_by_a_relative_path(cache: Path, snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cache)
    same(".", snapshot)


def only_another(cache: Path) -> None:
    (cache / "refs" / "main").unlink()


def points_elsewhere(cache: Path) -> None:
    (cache / "refs" / "main").write_text(OTHER)


def points_out(cache: Path) -> None:
    (cache / "refs" / "main").write_text("../blobs")


def holds_nothing(cache: Path) -> None:
    for path in (cache / "snapshots" / COMMIT).iterdir():
        path.unlink()
    (cache / "snapshots" / COMMIT).rmdir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (only_another, f"has no refs/main; give a snapshot: .*{COMMIT}"),
        (points_elsewhere, f"refs/main names '{OTHER}', which is not in snapshots/; give a snapshot: .*{COMMIT}"),
        (points_out, "refs/main names '../blobs', which is not in snapshots/"),
        (holds_nothing, "fetch the model again"),
    ],
)
def test_a_cache_without_main(cache: Path, change: Callable[[Path], None], message: str) -> None:
    change(cache)
    with pytest.raises(HeaderError, match=message):
        open_source(cache)


def test_a_cached_model_whose_blob_is_gone(cache: Path) -> None:
    names = sorted(path.name for path in (cache / "snapshots" / COMMIT).iterdir())
    (cache / "blobs" / f"{names.index('model-00002-of-00002.safetensors'):064x}").unlink()
    with pytest.raises(HeaderError, match=r"model-00002-of-00002\.safetensors: this link leads nowhere"):
        open_source(cache)


def test_a_cached_model_read_through_fsspec(memory: Counted, cache: Path, snapshot: Path) -> None:
    memory.put_folder(cache / "snapshots" / COMMIT, "hub/snapshot")
    same("memory://hub/snapshot", snapshot)


# --- a hub ------------------------------------------------------------------------------------


class Hub(fsspec.AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A hub as huggingface_hub shows it to fsspec: revisions, commits, files without ranges of their own."""

    protocol = "hf"
    endpoint = token = None
    cachable = False
    commits: ClassVar[dict[str, dict[str, bytes]]] = {}
    main: ClassVar[str] = COMMIT
    asked: ClassVar[list[str]] = []

    def resolve_path(self, path: str) -> Any:
        repo, _, name = re.sub(r"\A(org/name)(@[^/]*)?", r"\1\2", path).partition("/name")
        revision, _, name = name.removeprefix("@").partition("/")
        return types.SimpleNamespace(repo_id=f"{repo}/name", repo_type="model", revision=revision, path_in_repo=name)

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        self.asked.append(path)
        found = self.resolve_path(path)
        files = self.commits[found.revision or self.main]
        if not found.path_in_repo:
            return {"name": path, "size": 0, "type": "directory"}
        if found.path_in_repo not in files:
            raise FileNotFoundError(path)
        return {"name": path, "size": len(files[found.path_in_repo]), "type": "file"}

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        files = self.commits[self.resolve_path(path).revision or self.main]
        return [self.info(f"{path}/{name}") for name in files]

    def _open(self, path: str, mode: str = "rb", cache_type: str = "readahead", **options: Any) -> Any:
        assert cache_type == "none"
        found = self.resolve_path(path)
        return io.BytesIO(self.commits[found.revision or self.main][found.path_in_repo])


def test_a_hub_is_read_at_one_commit(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class HfApi:
        def __init__(self, endpoint: object, token: object) -> None:
            pass

        def repo_info(self, repo_id: str, repo_type: str, revision: str | None) -> Any:
            assert (repo_id, repo_type) == ("org/name", "model")
            return types.SimpleNamespace(sha=revision or Hub.main)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(HfApi=HfApi))
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url: (Hub(), url.removeprefix("hf://")))
    files = {path.name: path.read_bytes() for path in snapshot.iterdir()}
    monkeypatch.setattr(Hub, "commits", {COMMIT: files})
    assert str(locate("hf://org/name")) == f"hf://org/name@{COMMIT}"
    assert str(locate("hf://org/name/config.json")) == f"hf://org/name@{COMMIT}/config.json"
    same("hf://org/name", snapshot)
    same(f"hf://org/name@{COMMIT}/model.safetensors.index.json", snapshot)
    with open_source("hf://org/name") as source:
        Hub.commits[OTHER] = {}
        monkeypatch.setattr(Hub, "main", OTHER)  # a push meanwhile changes nothing of what is read
        expected = model()["model.embed_tokens.weight"]
        source.read_rows("model.embed_tokens.weight", 0, 1)
        Hub.asked.clear()
        np.testing.assert_array_equal(source.read_tensor("model.embed_tokens.weight"), expected)
        assert Hub.asked == []  # and the hub, which counts questions, is not asked what cannot have changed


def test_another_process_gets_the_same_url() -> None:
    url = Url("memory://folder/m.hhtld")
    again = pickle.loads(pickle.dumps(url))
    assert again == url
    assert hash(again) == hash(url)
    assert again != Url("memory://folder/n.hhtld")
    assert str(again) == "memory://folder/m.hhtld"
    with pytest.raises(ValueError, match="'folder' is not a URL"):
        Url("folder")
