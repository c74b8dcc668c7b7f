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
from hhtld.commands.main import main
from hhtld.formats import format_for_output, open_source
from hhtld.formats.hf import NAMES_FILE
from hhtld.pack.opening import is_packed_folder
from hhtld.pack.source import PackSource
from hhtld.pack.table_checks import read_table
from hhtld.storage import descriptors
from hhtld.storage.file_names import checked_file_name
from hhtld.storage.side_files import SIDE_FILE_LIMIT
from tests.conftest import low_rank

CONFIG = {"model_type": "tiny", "architectures": ["TinyForCausalLM"], "scale": float("inf")}
SIDE = {
    "config.json": (json.dumps(CONFIG, indent=2) + "\n").encode(),
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer.model": bytes(range(256)),
    "merges.txt": "\u0120t he\n".encode(),
    "LICENSE": b"free",
    "1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}',
    "2_Dense/config.json": b"{}",
    "2_Dense/model.safetensors": b"weights, carried as they are",
    "modules.json": b"",
    "vocab.txt": b"",
}
SIDE["modules.json"] = json.dumps(
    [
        {"idx": i, "path": path, "type": f"sentence_transformers.models.{path[2:] or 'Transformer'}"}
        for i, path in enumerate(("", "1_Pooling", "2_Dense"))
    ]
).encode()
SIDE = dict(sorted(SIDE.items()))
SHARDS = {
    "model-00001-of-00002.safetensors": {"embed.weight": low_rank(80, 32, 1), "norm.weight": np.ones(32, np.float32)},
    "model-00002-of-00002.safetensors": {"head.weight": low_rank(80, 32, 1), "up.weight": low_rank(60, 32, 2)},
}


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A sharded model whose head was saved twice, with a tokenizer that is a link as in a hub's cache."""
    hub = tmp_path / "models--a--tiny"
    folder, blobs = hub / "snapshots" / "0a1b", hub / "blobs"
    for inside in ("1_Pooling", "2_Dense", "runs"):
        (folder / inside).mkdir(parents=True)
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
    (folder / "tokenizer.json").symlink_to("../../blobs/3f2a")
    for name in (".gitattributes", "pytorch_model.bin", "old.hhtld", "holiday.jpg", "notes.txt", "runs/events.json"):
        (folder / name).write_bytes(b"not a side file")
    (folder / "README.md").symlink_to("nowhere")
    with (folder / "vocab_huge.txt").open("wb") as huge:
        huge.truncate(SIDE_FILE_LIMIT + 1)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if not path.is_dir()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


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
    assert f"Side files: {len(SIDE)}" in capsys.readouterr().out
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
    assert f"{len(SIDE)} side files" in capsys.readouterr().out
    damaged = bytearray(target.read_bytes())
    damaged[damaged.index(b"free")] ^= 1
    target.write_bytes(damaged)
    assert main(["verify", str(target)]) == 3
    assert "(file)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            ".",
            "..",
            ".hidden",
            "../x",
            "a/../b",
            "a//b",
            "a/",
            "/a",
            "./a",
            "a/.b/c",
            "a/b/c/d/e",
            "a\\b",
            "/etc/passwd",
            "C:x",
            "C:\\x",
            "x:stream",
            "a\0b",
            "a\nb",
        ),
        *("x ", "x.", "a?b", 5, None, "n" * 256, "\u00e9" * 128, "model.safetensors", "MODEL.HHTLD", "a.bin", "w.pt"),
        *("a.safetensors/b", "CON/x", "a /b", "n" * 256 + "/x", "a/w.bin", "a/model.safetensors.index.json"),
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
        read_table(table, pack.sections)


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
    assert set(read_table(pack.table.to_json() | {"files": files}, pack.sections).files) == {"a.txt", "b.txt"}
    with pytest.raises(hhtld.FormatError, match=message):
        read_table(pack.table.to_json() | {"files": change(files)}, pack.sections)


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
    with pytest.raises(hhtld.UnknownFormatError, match="ends in /"):
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
        with pytest.raises(ValueError, match=r"\(--no-files\) is for .hhtld files and folders"):
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
    real, left = descriptors.write_at, [nbytes]

    def full(fd: int, data: Any, offset: int) -> int:
        left[0] -= len(data)
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr(descriptors, "write_at", full)
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
    (snapshot / "vocab_big.txt").write_bytes(bytes(20 << 20))
    with pytest.raises(hhtld.BudgetError, match=r"side file 'vocab_big\.txt' needs 47,185,920 bytes .*whole"):
        hhtld.convert(snapshot, tmp_path / "m.hhtld", profile="bits:3", memory=30 << 20)
    hhtld.convert(snapshot, tmp_path / "m.hhtld", profile="bits:3", memory=30 << 20, files=False)


@pytest.mark.parametrize("shard", ["../evil.safetensors", "/tmp/evil.safetensors", "a\\b.safetensors", "config.json"])
def test_a_pack_cannot_name_shards_elsewhere(shard: str, tmp_path: Path) -> None:
    pack = hhtld.encode({"w": low_rank(8, 16)}, "bits:3")
    table = pack.table.to_json()
    table["tensors"][0]["shard"] = shard
    hostile = hhtld.HhtldPack(read_table(table, pack.sections), pack.sections)
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
        (b'{"quantization_config": {"quant_method": "gptq"}}', "quantized already"),
    ],
)
def test_a_packed_folder_needs_a_config(config: bytes | None, message: str, snapshot: Path, tmp_path: Path) -> None:
    (snapshot / "config.json").unlink()
    if config is not None:
        (snapshot / "config.json").write_bytes(config)
    with pytest.raises(hhtld.FormatError, match=message):
        hhtld.convert(snapshot, tmp_path / "out", to="hf", profile="gates")
    assert not (tmp_path / "out").exists()


# ---- what comes along, and what does not ----


def plain_model(folder: Path, weights: str = "model.safetensors", **files: bytes) -> Path:
    """A folder of one small file of weights and a config."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"up.weight": low_rank(60, 32)}, folder / weights, {"format": "pt"})
    (folder / "config.json").write_text('{"model_type": "tiny"}')
    for name, data in files.items():
        (folder / name.replace("__", ".")).write_bytes(data)
    return folder


def carried(folder: Path, tmp_path: Path) -> tuple[set[str], str]:
    """The side files of a folder's pack, and what the conversion told."""
    report = hhtld.convert(folder, tmp_path / "carried.hhtld", profile="bits:3")
    with hhtld.open(tmp_path / "carried.hhtld") as pack:
        return set(pack.files()), "\n".join(report.notes)


def test_a_link_out_of_the_folder_carries_nothing_along(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "id_rsa").write_bytes(b"secret")
    folder = plain_model(tmp_path / "model")
    (folder / "LICENSE").symlink_to(tmp_path / "home" / "id_rsa")
    (folder / "vocab.txt").symlink_to("../home/id_rsa")
    (folder / "modules.json").write_text('[{"path": "1_Pooling", "type": "x"}, {"path": "../home"}, {"path": "/etc"}]')
    (folder / "1_Pooling").symlink_to("../home")
    (tmp_path / "home" / "config.json").write_bytes(b"secret")
    (folder / "README.md").write_bytes(b"inside")
    (folder / "NOTICE").symlink_to("README.md")
    for to, target in ((None, "m.hhtld"), (None, "plain/"), ("hf", "packed")):
        report = hhtld.convert(folder, f"{tmp_path}/{target}", to=to, profile="bits:3" if target != "plain/" else None)
        written = list((tmp_path / target).rglob("*")) if (tmp_path / target).is_dir() else [tmp_path / target]
        assert all(b"secret" not in path.read_bytes() for path in written if path.is_file())
        told = "\n".join(report.notes)
        assert "'NOTICE', 'README.md', 'config.json', 'modules.json'" in told
        for name in ("LICENSE", "vocab.txt"):
            assert f"'{name}'" in told.partition("left behind")[2]
        assert f"a link out of the folder, to '{tmp_path}/home/id_rsa'" in told
        assert f"'1_Pooling/' (a link out of the folder, to '{tmp_path}/home')" in told


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "model.safetensors.index.json"])
def test_weights_configs_and_indexes_behind_links_out_of_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    elsewhere = plain_model(tmp_path / "elsewhere")
    index = {"weight_map": {"up.weight": "model.safetensors"}}
    (elsewhere / "model.safetensors.index.json").write_text(json.dumps(index))
    folder = plain_model(tmp_path / "model")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / name).unlink()
    (folder / name).symlink_to(elsewhere / name)
    with pytest.raises(hhtld.FormatError, match=f"{name}: a link out of the model's folder, to '.*elsewhere.{name}'"):
        open_source(folder)
    if name == "model.safetensors":  # one that is named is meant
        with open_source(folder / name) as source:
            assert list(source.infos()) == ["up.weight"]


def test_a_packed_folders_pack_behind_a_link_out_of_it_is_refused(packed: Path, tmp_path: Path) -> None:
    (packed / "model.hhtld").rename(tmp_path / "private.hhtld")
    (packed / "model.hhtld").symlink_to("../private.hhtld")
    with pytest.raises(hhtld.FormatError, match=r"model\.hhtld: a link out of the model's folder, to '.*private"):
        open_source(packed)


def test_links_to_a_folder_and_inside_it_are_followed(tmp_path: Path) -> None:
    folder = plain_model(tmp_path / "model", LICENSE=b"free")
    (folder / "model.safetensors").rename(folder / "weights.dat")
    (folder / "model.safetensors").symlink_to("weights.dat")
    (tmp_path / "short").symlink_to("model")
    assert carried(tmp_path / "short", tmp_path)[0] == {"LICENSE", "config.json"}


def test_the_blobs_of_a_hubs_cache_are_its_own_and_no_other_models(tmp_path: Path) -> None:
    blobs, shared = tmp_path / "models--a--b" / "blobs", tmp_path / "blobs" / "ab"
    folder = plain_model(tmp_path / "models--a--b" / "snapshots" / "0a1b")
    other = tmp_path / "models--a--private" / "blobs"
    for place in (blobs, shared, other):
        place.mkdir(parents=True)
    (blobs / "1").write_bytes(b"own")
    (other / "2").write_bytes(b"secret")
    (shared / ("ab" * 32)).write_bytes(b"shared by several models")
    (blobs / "3").symlink_to(f"../../blobs/ab/{'ab' * 32}")
    (blobs / "4").symlink_to("/etc/hostname")
    for name, target in (("LICENSE", blobs / "1"), ("NOTICE", other / "2"), ("vocab.txt", blobs / "3")):
        (folder / name).symlink_to(target)
    (folder / "README.md").symlink_to(blobs / "4")
    files, told = carried(tmp_path / "models--a--b" / "snapshots" / "0a1b", tmp_path)
    assert files == {"LICENSE", "config.json", "vocab.txt"}
    assert "models--a--private" in told


def test_a_model_among_other_files_takes_only_what_belongs_to_models(tmp_path: Path) -> None:
    strangers = ["passwords.txt", "holiday.jpg", "cloud_config.json", "taxes.json", "script.py", "thesis.tex", "a.csv"]
    folder = plain_model(
        tmp_path / "Downloads", "mine.safetensors", tokenizer__json=b"{}", special_tokens_map__json=b"{}"
    )
    for name in strangers:
        (folder / name).write_bytes(b"private")
    (folder / "photos").mkdir()
    (folder / "photos" / "config.json").write_bytes(b"private")
    files, told = carried(folder, tmp_path)
    assert files == {"config.json", "tokenizer.json", "special_tokens_map.json"}
    assert "3 side files come along: 'config.json', 'special_tokens_map.json', 'tokenizer.json'" in told
    assert "'a.csv', 'cloud_config.json', 'holiday.jpg' and 4 more (no names that files of models have)" in told
    assert "'photos/' (folders that the model's files do not name)" in told


def test_code_comes_along_where_a_config_names_it(tmp_path: Path) -> None:
    folder = plain_model(tmp_path / "model", modeling_tiny__py=b"class Tiny: ...", layers__py=b"")
    assert carried(folder, tmp_path)[0] == {"config.json"}
    (folder / "config.json").write_text('{"model_type": "tiny", "auto_map": {"AutoModel": "modeling_tiny.Tiny"}}')
    assert carried(folder, tmp_path)[0] == {"config.json", "layers.py", "modeling_tiny.py"}


def test_a_side_file_that_becomes_a_link_is_refused(tmp_path: Path) -> None:
    folder = plain_model(tmp_path / "model", LICENSE=b"free")
    with open_source(folder) as source:
        (folder / "LICENSE").unlink()
        (folder / "LICENSE").symlink_to("/etc/hostname")
        with pytest.raises(hhtld.FormatError, match="LICENSE: a link out of the model's folder, to '/etc/hostname'"):
            source.read_file("LICENSE")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["Config.json", "config.json"], "are one file on some systems"),
        (["vocab\u00e9.txt", "vocabe\u0301.txt"], "are one file on some systems"),
        (["a/LICENSE", "A/license"], "are one file on some systems"),
        (["a", "a/b"], "is a file, and it is also the folder of"),
    ],
)
def test_names_that_collide_on_some_systems_are_refused(names: list[str], message: str, tmp_path: Path) -> None:
    pack = hhtld.encode({"w": low_rank(8, 16)}, "bits:3")
    numbers = [pack.sections.add("file", 1, [b"x"]) for _ in names]  # type: ignore[attr-defined]  # as above
    files = [{"name": name, "section": index} for name, index in zip(sorted(names), numbers, strict=True)]
    with pytest.raises(hhtld.FormatError, match=message):
        read_table(pack.table.to_json() | {"files": files}, pack.sections)


def test_of_names_that_collide_on_some_systems_one_comes_along(tmp_path: Path) -> None:
    folder = plain_model(tmp_path / "model", README__md=b"1", readme__md=b"2")
    (folder / "readme").mkdir(exist_ok=True)
    (folder / "README").write_bytes(b"3")
    if len(list(folder.iterdir())) < 6:
        pytest.skip("this file system does not tell case apart")
    (folder / "readme" / "config.json").write_text("{}")
    (folder / "modules.json").write_text('[{"path": "readme", "type": "sentence_transformers.models.Pooling"}]')
    files, told = carried(folder, tmp_path)
    assert files == {"README", "README.md", "config.json", "modules.json"}
    assert "'readme/config.json', 'readme.md' (a name that another file has but for the case of letters)" in told


def test_links_in_circles_are_left(tmp_path: Path) -> None:
    folder = plain_model(tmp_path / "model")
    (folder / "modules.json").write_text('[{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]')
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "1_Pooling" / "again").symlink_to(".")
    files, told = carried(folder, tmp_path)
    assert files == {"1_Pooling/config.json", "config.json", "modules.json"}
    assert "'1_Pooling/again/' (links to folders, which may go round in circles)" in told


def test_weights_of_a_module_that_cannot_come_along_are_named(tmp_path: Path) -> None:
    folder = plain_model(tmp_path / "model")
    (folder / "modules.json").write_text('[{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]')
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "2_Dense" / "config.json").write_text("{}")
    files, told = carried(folder, tmp_path)
    assert files == {"2_Dense/config.json", "config.json", "modules.json"}
    assert "left behind: '2_Dense/pytorch_model.bin' (weights of a module that are no .safetensors)" in told


# ---- folders of other libraries ----


FOLDERS = {
    "diffusers": ("diffusion_pytorch_model.safetensors", {"config.json": '{"_class_name": "UNet2DConditionModel"}'}),
    "peft": ("adapter_model.safetensors", {"adapter_config.json": '{"peft_type": "LORA"}'}),
    "variant": ("model.fp16.safetensors", {"config.json": '{"model_type": "tiny"}'}),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_of_another_library_comes_back_under_its_own_names(kind: str, tmp_path: Path) -> None:
    weights, files = FOLDERS[kind]
    folder = tmp_path / kind
    folder.mkdir()
    save_file({"up.weight": low_rank(60, 32)}, folder / weights, {"format": "pt"})
    for name, text in files.items():
        (folder / name).write_text(text)
    hhtld.convert(folder, tmp_path / "m.hhtld", profile="bits:3", rules=[("*", "keep")], min_ratio=0)
    report = hhtld.convert(tmp_path / "m.hhtld", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(folder)
    assert report.notes == []


def test_a_sharded_folder_of_diffusers_comes_back_under_its_own_names(tmp_path: Path) -> None:
    folder, stem = tmp_path / "transformer", "diffusion_pytorch_model"
    folder.mkdir()
    weight_map = {}
    for i, (name, array) in enumerate((("a.weight", low_rank(60, 32)), ("b.weight", low_rank(60, 32, 2)))):
        weight_map[name] = f"{stem}-0000{i + 1}-of-00002.safetensors"
        save_file({name: array}, folder / weight_map[name], {"format": "pt"})
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text('{"_class_name": "FluxTransformer2DModel"}')
    for name in (f"{stem}.fp16.safetensors", f"{stem}.bin"):
        (folder / name).write_bytes(b"another form of the same weights")
    report = hhtld.convert(folder, tmp_path / "m.hhtld", profile="bits:3")
    assert f"left behind: '{stem}.bin', '{stem}.fp16.safetensors' (other weights, or archives)" in report.notes
    hhtld.convert(tmp_path / "m.hhtld", tmp_path / "out")
    assert set(contents(tmp_path / "out")) == set(contents(folder)) - {f"{stem}.fp16.safetensors", f"{stem}.bin"}
    index = json.loads((tmp_path / "out" / f"{stem}.safetensors.index.json").read_text())
    assert index["weight_map"] == weight_map


@pytest.mark.parametrize("name", ["../x.safetensors", "a/b.safetensors", "x.bin", "../x.safetensors.index.json", 5])
def test_a_pack_cannot_name_an_entrance_elsewhere(name: Any, tmp_path: Path) -> None:
    pack = hhtld.encode({"w": low_rank(8, 16)}, "bits:3")
    table = pack.table.to_json() | {"source": {"entrance": name}}
    hostile = hhtld.HhtldPack(read_table(table, pack.sections), pack.sections)
    with pytest.raises(hhtld.FormatError, match="the source: shard"):
        format_for_output("x/").write_source(PackSource(hostile), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_pipelines_root_names_the_folders_that_hold_models(tmp_path: Path) -> None:
    plain_model(tmp_path / "pipe" / "unet", "diffusion_pytorch_model.safetensors")
    plain_model(tmp_path / "pipe" / "text_encoder")
    (tmp_path / "pipe" / "scheduler").mkdir()
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    with pytest.raises(hhtld.FormatError, match=r"folders in it do: 'text_encoder', 'unet'; .*pipe.text_encoder"):
        open_source(tmp_path / "pipe")


def test_a_packed_folder_that_transformers_cannot_load_does_not_say_that_it_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = plain_model(tmp_path / "unet", "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    told = "\n".join(hhtld.convert(folder, tmp_path / "packed", to="hf", profile="bits:3").notes)
    assert "loads with transformers" not in told
    assert "transformers cannot load" in told
    assert "from_pretrained" not in (tmp_path / "packed" / "HHTLD.md").read_text()
    assert "its config.json names no model_type (it is of diffusers, 'UNet2DConditionModel')" in told
    hhtld.convert(tmp_path / "packed", tmp_path / "back/")
    assert set(contents(tmp_path / "back")) == set(contents(folder))
    assert main(["convert", str(folder), str(tmp_path / "again"), "--to", "hf", "--profile", "bits:3"]) == 0
    following = capsys.readouterr().out.splitlines()[-1]
    assert following.startswith("next: hhtld convert "), following
    assert following.endswith(" plain/ makes a folder that loads as the source did")


def test_a_source_with_an_hhtld_md_of_its_own_keeps_it(tmp_path: Path) -> None:
    folder = plain_model(tmp_path / "model", HHTLD__md=b"my own words")
    report = hhtld.convert(folder, tmp_path / "packed", to="hf", profile="bits:3")
    assert (tmp_path / "packed" / "HHTLD.md").read_bytes() == b"my own words"
    assert "its HHTLD.md is the source's own" in "\n".join(report.notes)
    hhtld.convert(tmp_path / "packed", tmp_path / "back/")
    assert contents(tmp_path / "back").keys() == contents(folder).keys()
    assert (tmp_path / "back" / "HHTLD.md").read_bytes() == b"my own words"
