"""Side files in packs, and the two kinds of folders: decoded ones, which load anywhere, and packed ones."""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save_file

import hhtld
from hhtld.formats import format_for_output, open_source
from hhtld.formats.__main__ import main
from hhtld.formats.hf import NAMES_FILE
from hhtld.formats.hhtld import is_packed_folder
from hhtld.pack import PackSource
from hhtld.side_files import SIDE_FILE_LIMIT, checked_file_name
from hhtld.table import PackTable
from tests.conftest import low_rank

CONFIG = {"model_type": "tiny", "architectures": ["TinyForCausalLM"], "scale": float("inf")}
SIDE = {
    "config.json": (json.dumps(CONFIG, indent=2) + "\n").encode(),
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer.model": bytes(range(256)),
    "merges.txt": "\u0120t he\n".encode(),
    "LICENSE": b"free",
    "empty.txt": b"",
}
SHARDS = {
    "model-00001-of-00002.safetensors": {"embed.weight": low_rank(80, 32, 1), "norm.weight": np.ones(32, np.float32)},
    "model-00002-of-00002.safetensors": {"head.weight": low_rank(80, 32, 1), "up.weight": low_rank(60, 32, 2)},
}


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A sharded model whose head was saved twice, with a tokenizer that is a link as in a hub's cache."""
    folder, blobs = tmp_path / "snapshot", tmp_path / "blobs"
    (folder / "1_Pooling").mkdir(parents=True)
    blobs.mkdir()
    for shard, tensors in SHARDS.items():
        save_file(tensors, folder / shard, {"format": "pt"})
    weight_map = {name: shard for shard, tensors in SHARDS.items() for name in tensors}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name, data in SIDE.items():
        (folder / name).write_bytes(data)
    (blobs / "3f2a").write_bytes(SIDE["tokenizer.json"])
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("../blobs/3f2a")
    for name in (".gitattributes", "pytorch_model.bin", "old.hhtld", "1_Pooling/config.json"):
        (folder / name).write_bytes(b"not a side file")
    (folder / "gone.json").symlink_to("nowhere")
    with (folder / "huge.txt").open("wb") as huge:
        huge.truncate(SIDE_FILE_LIMIT + 1)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- in packs ----


def test_side_files_travel_in_a_pack(snapshot: Path, tmp_path: Path) -> None:
    report = hhtld.convert(snapshot, tmp_path / "m.hhtld", profile="bits:3")
    with hhtld.open(tmp_path / "m.hhtld") as pack:
        assert pack.files() == {name: len(data) for name, data in sorted(SIDE.items())}
        assert {name: pack.read_file(name) for name in pack.files()} == SIDE
        with pytest.raises(KeyError, match=r"did you mean 'config\.json'"):
            pack.read_file("confg.json")
    side = sum(map(len, SIDE.values()))
    dry = hhtld.convert(snapshot, tmp_path / "m.hhtld", profile="bits:3", dry_run=True)
    bare = hhtld.convert(snapshot, tmp_path / "bare.hhtld", profile="bits:3", files=False)
    assert report.files_nbytes == dry.files_nbytes == side
    assert report.bf16_nbytes == dry.bf16_nbytes == bare.bf16_nbytes + side
    assert report.target_nbytes == (tmp_path / "m.hhtld").stat().st_size > bare.target_nbytes
    with hhtld.open(tmp_path / "bare.hhtld") as pack:
        assert pack.files() == {}
        assert "files" not in pack.table.to_json()
        assert "file" not in pack.sections.kinds()


def test_a_saved_pack_keeps_its_files(snapshot: Path, tmp_path: Path) -> None:
    hhtld.convert(snapshot, tmp_path / "a.hhtld", profile="bits:3")
    with open_source(snapshot) as source:
        pack = hhtld.encode(source, "bits:3")
    assert pack.read_file("LICENSE") == b"free"
    hhtld.save(pack, tmp_path / "b.hhtld")
    assert (tmp_path / "a.hhtld").read_bytes() == (tmp_path / "b.hhtld").read_bytes()


def test_commands_know_side_files(snapshot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "m.hhtld"
    assert main(["convert", str(snapshot), str(target), "--profile", "bits:3"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(target)]) == 0
    assert "Side files: 6" in capsys.readouterr().out
    assert main(["inspect", str(target), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {file["name"]: file["nbytes"] for file in listed["files"]} == {n: len(d) for n, d in SIDE.items()}
    assert main(["verify", str(target), str(snapshot)]) == 0
    (snapshot / "LICENSE").write_bytes(b"sold")
    (snapshot / "merges.txt").unlink()
    assert main(["verify", str(target), str(snapshot)]) == 1
    printed = capsys.readouterr().out
    assert "file 'LICENSE' differs" in printed
    assert "file 'merges.txt' is not in the source" in printed
    assert main(["convert", str(target), str(tmp_path / "b.safetensors")]) == 0
    assert "6 side files" in capsys.readouterr().out
    damaged = bytearray(target.read_bytes())
    damaged[damaged.index(b"free")] ^= 1
    target.write_bytes(damaged)
    assert main(["verify", str(target)]) == 3
    assert "(file)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", ".hidden", "../x", "a/b", "a\\b", "/etc/passwd", "C:x", "C:\\x", "x:stream", "a\0b", "a\nb"),
        *("x ", "x.", "a?b", 5, None, "n" * 256, "\u00e9" * 128, "model.safetensors", "MODEL.HHTLD", "a.bin", "w.pt"),
        *("model.safetensors.index.json", "x.zip", "\ud800", "CON", "aux.json", "com¹ .txt"),
    ],
)
def test_names_that_lead_elsewhere_are_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="file"):
        checked_file_name(name)
    pack = hhtld.encode({"w": low_rank(8, 16)}, "bits:3")
    index = pack.sections.add("file", 1, [b"x"])  # type: ignore[attr-defined]  # a reader that also writes
    table = pack.table.to_json() | {"files": [{"name": name, "section": index}]}
    with pytest.raises(hhtld.FormatError, match="file"):
        PackTable.from_json(table, pack.sections)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: files + files, "out of order or listed twice"),
        (lambda files: files[::-1], "out of order"),
        (lambda files: [*files[:1], files[1] | {"section": files[0]["section"]}], "already belongs"),
        (lambda files: [files[0] | {"section": 0}, files[1]], "not file"),
        (lambda files: [files[0] | {"section": 99}, files[1]], "does not exist"),
        (lambda files: [files[0] | {"section": True}, files[1]], "does not exist"),
        (lambda files: [{"name": "a.txt"}, files[1]], "section"),
        (lambda files: files[:1], "belongs to no tensor, group or file"),
        (lambda files: {"a.txt": 1}, "must be a list"),
        (lambda files: ["a.txt"], "expected an object"),
    ],
)
def test_bad_lists_of_files_are_refused(change: Callable[[Any], Any], message: str) -> None:
    pack = hhtld.encode({"w": low_rank(8, 16)}, "bits:3")
    numbers = [pack.sections.add("file", 1, [b"x"]) for _ in range(2)]  # type: ignore[attr-defined]  # as above
    files = [{"name": name, "section": index} for name, index in zip(("a.txt", "b.txt"), numbers, strict=True)]
    assert set(PackTable.from_json(pack.table.to_json() | {"files": files}, pack.sections).files) == {"a.txt", "b.txt"}
    with pytest.raises(hhtld.FormatError, match=message):
        PackTable.from_json(pack.table.to_json() | {"files": change(files)}, pack.sections)


# ---- decoded folders ----


@pytest.mark.parametrize(
    ("dst", "to", "name"),
    [
        ("out", None, "folder"),
        ("out.hhtld/", None, "folder"),
        ("Qwen2.5-7B/", None, "folder"),
        ("out.hhtld", None, "hhtld"),
        ("out", "hf", "hf"),
    ],
)
def test_a_name_says_whether_a_folder_is_written(dst: str, to: str | None, name: str) -> None:
    assert format_for_output(dst, to).name == name


def test_an_existing_folder_of_an_odd_name(tmp_path: Path) -> None:
    with pytest.raises(hhtld.UnknownFormatError, match="end in /"):
        format_for_output(tmp_path / "Qwen2.5-7B")
    (tmp_path / "Qwen2.5-7B").mkdir()
    assert format_for_output(tmp_path / "Qwen2.5-7B").name == "folder"


def test_a_folder_comes_back_as_it_was(snapshot: Path, tmp_path: Path) -> None:
    hhtld.convert(snapshot, tmp_path / "m.hhtld", profile="bits:3", rules=[("*", "keep")])
    report = hhtld.convert(tmp_path / "m.hhtld", tmp_path / "out")
    found = contents(tmp_path / "out")
    assert report.notes == []
    assert report.target_nbytes == sum(map(len, found.values()))
    assert set(found) == {*SIDE, *SHARDS, "model.safetensors.index.json"}
    assert {name: found[name] for name in SIDE} == SIDE
    for shard in SHARDS:  # both names of a tied tensor, where they were; metadata too
        assert found[shard] == (snapshot / shard).read_bytes()
    text = found["model.safetensors.index.json"].decode()
    index = json.loads(text)
    assert text == json.dumps(index, indent=2, sort_keys=True) + "\n"
    assert index["weight_map"] == {name: shard for shard, tensors in SHARDS.items() for name in tensors}
    total = sum(array.nbytes for tensors in SHARDS.values() for array in tensors.values())
    assert index["metadata"] == {"total_parameters": total // 4, "total_size": total}
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]
    assert (tmp_path / "out" / "config.json").stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_lone_file_gives_weights_and_a_note(tmp_path: Path) -> None:
    save_file({"up.weight": low_rank(40, 32)}, tmp_path / "lone.safetensors")
    report = hhtld.convert(tmp_path / "lone.safetensors", tmp_path / "out")
    assert ["config.json" in note for note in report.notes] == [True]
    assert set(contents(tmp_path / "out")) == {"model.safetensors"}
    with safetensors.safe_open(tmp_path / "out" / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}, "transformers before 5 asks for it"


def test_no_files_leaves_them_behind(snapshot: Path, tmp_path: Path) -> None:
    hhtld.convert(snapshot, tmp_path / "out", files=False)
    assert set(contents(tmp_path / "out")) == {*SHARDS, "model.safetensors.index.json"}
    for name, to in (("x.safetensors", None), ("x", "hf")):
        with pytest.raises(ValueError, match="no choice of side files"):
            hhtld.convert(snapshot, tmp_path / name, to=to, files=False)


@pytest.mark.parametrize("to", [None, "hf"])
def test_what_stands_there_is_never_replaced(
    to: str | None, snapshot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    more = [] if to is None else ["--to", to, "--profile", "bits:3"]
    for place, code, message in (
        (tmp_path / "full", 4, "not empty"),
        (tmp_path / "file", 4, "not a folder"),
        (tmp_path / "link", 4, "not a folder"),
        (tmp_path / "no" / "such" / "place", 4, "cannot write"),
        (snapshot, 2, "is the source itself"),
        (snapshot / "sub", 2, "inside the source"),
        (tmp_path / "empty", 0, ""),
        (tmp_path / "empty", 4, "not empty"),
    ):
        before = {path for path in tmp_path.rglob("*") if tmp_path / "empty" not in path.parents}
        assert main(["convert", str(snapshot), f"{place}/", *more]) == code
        assert message in capsys.readouterr().err
        assert {path for path in tmp_path.rglob("*") if tmp_path / "empty" not in path.parents} == before
    assert (tmp_path / "full" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(("to", "nbytes"), [(None, 4_000), ("hf", 400), ("hf", 4_000)])
def test_a_disk_that_fills_leaves_no_folder(
    to: str | None, nbytes: int, snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(tmp_path.rglob("*"))
    real, left = os.pwrite, [nbytes]

    def full(fd: int, data: Any, offset: int) -> int:
        left[0] -= len(data)
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(hhtld.OutputError, match="No space left"):
        hhtld.convert(snapshot, tmp_path / "out", to=to, profile="bits:3" if to else None)
    monkeypatch.undo()
    if nbytes < 4_000 or to is None:
        assert sorted(tmp_path.rglob("*")) == before
        return
    assert {path.name for path in set(tmp_path.rglob("*")) - set(before)} == {".out.partial", "out.journal"}
    seen = Counter[str]()
    hhtld.convert(
        snapshot,
        tmp_path / "out",
        to=to,
        profile="bits:3",
        resume=True,
        progress=lambda stage, name, n: seen.update({stage: n}),
    )
    hhtld.convert(snapshot, tmp_path / "new", to=to, profile="bits:3")
    assert seen["resume"] > 0
    assert contents(tmp_path / "out") == contents(tmp_path / "new")
    assert not list(tmp_path.glob("*out.*"))


def test_an_unfinished_pack_beside_a_model_is_none_of_its_files(snapshot: Path, tmp_path: Path) -> None:
    def stop(stage: str, name: str, nbytes: int) -> None:
        raise KeyboardInterrupt

    hhtld.convert(snapshot, tmp_path / "new.hhtld", profile="bits:3")
    with pytest.raises(KeyboardInterrupt):
        hhtld.convert(snapshot, snapshot / "m.hhtld", profile="bits:3", progress=stop)
    assert (snapshot / "m.hhtld.journal").exists()
    hhtld.convert(snapshot, snapshot / "m.hhtld", profile="bits:3", resume=True)
    assert (snapshot / "m.hhtld").read_bytes() == (tmp_path / "new.hhtld").read_bytes()


def test_a_side_file_counts_in_memory(snapshot: Path, tmp_path: Path) -> None:
    (snapshot / "big.txt").write_bytes(bytes(20 << 20))
    with pytest.raises(hhtld.BudgetError, match=r"side file 'big\.txt' needs 47,185,920 bytes .*whole"):
        hhtld.convert(snapshot, tmp_path / "m.hhtld", profile="bits:3", memory=30 << 20)
    hhtld.convert(snapshot, tmp_path / "m.hhtld", profile="bits:3", memory=30 << 20, files=False)


@pytest.mark.parametrize("shard", ["../evil.safetensors", "/tmp/evil.safetensors", "a\\b.safetensors", "config.json"])
def test_a_pack_cannot_name_shards_elsewhere(shard: str, tmp_path: Path) -> None:
    pack = hhtld.encode({"w": low_rank(8, 16)}, "bits:3")
    table = pack.table.to_json()
    table["tensors"][0]["shard"] = shard
    hostile = hhtld.HhtldPack(PackTable.from_json(table, pack.sections), pack.sections)
    with pytest.raises(hhtld.FormatError, match="shard"):
        format_for_output("x/").write_source(PackSource(hostile), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# ---- packed folders ----


@pytest.fixture
def packed(snapshot: Path, tmp_path: Path) -> Path:
    report = hhtld.convert(snapshot, tmp_path / "packed", to="hf", profile="bits:3", jobs=1)
    assert "hhtld.integrations.transformers" in report.notes[0]
    assert report.target_nbytes == sum(map(len, contents(tmp_path / "packed").values()))
    return tmp_path / "packed"


def test_a_packed_folder(packed: Path, snapshot: Path, tmp_path: Path) -> None:
    assert set(contents(packed)) == {*SIDE, "model.hhtld", NAMES_FILE, "HHTLD.md"}
    config = json.loads((packed / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "hhtld", "profile": "bits:3", "dtype": "F32"}
    assert config["transformers_weights"] == "model.hhtld"
    hhtld.convert(snapshot, tmp_path / "bare.hhtld", profile="bits:3", files=False, jobs=2)
    assert (packed / "model.hhtld").read_bytes() == (tmp_path / "bare.hhtld").read_bytes()
    names = {name: bytes(array).decode() for name, array in load_file(packed / NAMES_FILE).items()}
    assert names == {"embed.weight": "embed.weight", "head.weight": "embed.weight"} | {
        name: name for name in ("norm.weight", "up.weight")
    }
    assert {array.shape[:5] for array in load_file(packed / NAMES_FILE).values()} == {(1,) * 5}
    with safetensors.safe_open(packed / NAMES_FILE, "np") as file:
        assert "hhtld.integrations.transformers" in file.metadata()["hhtld.names"]
    with pytest.raises(hhtld.FormatError, match="give its folder"):
        open_source(packed / NAMES_FILE)


def test_a_packed_folder_is_a_source(packed: Path, snapshot: Path, tmp_path: Path) -> None:
    with open_source(packed) as source:
        assert dict(source.files()) == {name: len(data) for name, data in SIDE.items()}
        assert {name: source.read_file(name) for name in source.files()} == SIDE
        assert source.infos()["up.weight"].shard == "model-00002-of-00002.safetensors"
    hhtld.convert(packed, tmp_path / "a/")
    hhtld.convert(snapshot, tmp_path / "m.hhtld", profile="bits:3")
    hhtld.convert(tmp_path / "m.hhtld", tmp_path / "b/")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    with hhtld.open(packed) as pack:
        assert len(pack) == 4
    for words in (
        ["inspect", str(packed)],
        ["verify", str(packed), str(snapshot)],
        ["diff", str(packed), str(tmp_path / "m.hhtld")],
    ):
        assert main(words) == 0


def test_a_pack_beside_its_model_is_not_a_packed_folder(snapshot: Path) -> None:
    hhtld.convert(snapshot, snapshot / "model.hhtld", profile="bits:3")
    assert not is_packed_folder(snapshot)
    with open_source(snapshot) as source:
        assert not isinstance(source, PackSource)


def test_a_damaged_pack_in_a_folder_is_named(packed: Path) -> None:
    data = bytearray((packed / "model.hhtld").read_bytes())
    data[70] ^= 1
    (packed / "model.hhtld").write_bytes(data)
    with pytest.raises(hhtld.FormatError, match=r"model\.hhtld: section 0"):
        hhtld.convert(packed, packed.parent / "out")
    (packed / "model.hhtld").write_bytes(data[:100])
    with pytest.raises(hhtld.FormatError, match=r"model\.hhtld"):
        open_source(packed)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "has none"),
        (b"[1, 2]", "config.json"),
        (b"{", "config.json"),
        (b'{"quantization_config": {"quant_method": "gptq"}}', "already quantized"),
    ],
)
def test_a_packed_folder_needs_a_config(config: bytes | None, message: str, snapshot: Path, tmp_path: Path) -> None:
    (snapshot / "config.json").unlink()
    if config is not None:
        (snapshot / "config.json").write_bytes(config)
    with pytest.raises(hhtld.FormatError, match=message):
        hhtld.convert(snapshot, tmp_path / "out", to="hf", profile="gates")
    assert not (tmp_path / "out").exists()
