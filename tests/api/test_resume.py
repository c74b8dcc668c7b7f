"""Conversions that were killed, interrupted or refused by the disk, and go on."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import hhtld
import hhtld.codecs.base
import hhtld.formats.hhtld
from hhtld.api.advice import GATES_NOTE
from hhtld.commands.main import main
from hhtld.gates import Threshold
from hhtld.storage import descriptors
from hhtld.storage.journal import Journal, journal_path, partial_path

SPAN = 40_000  # bytes of float32 rows a task, so that a small model takes many


@pytest.fixture(autouse=True)
def _small_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hhtld.codecs.base, "SPAN_NBYTES", SPAN)
    monkeypatch.setattr(hhtld.codecs.base, "BLOCK_NBYTES", SPAN)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of Slots D, V, L and T, whose heavy tails make a rate go up, and of tensors that are kept."""
    rng = np.random.default_rng(11)
    near = rng.standard_normal((16, 64))[rng.integers(0, 16, 1400)] * 6 + rng.standard_normal((1400, 64))
    tensors = {
        "embed.weight": near.astype(np.float16),
        "norm.weight": rng.standard_normal(300).astype(np.float32),
    }
    for layer in range(6):
        tensors[f"layers.{layer}.up_proj.weight"] = rng.standard_t(3, (1000, 80)).astype(np.float32)
    path = tmp_path_factory.mktemp("source") / "model.safetensors"
    save_file(tensors, path, {"format": "pt"})
    return path


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    """The bytes of an undisturbed conversion, by profile."""
    folder, made = tmp_path_factory.mktemp("expected"), {}

    def of(profile: str) -> bytes:
        if profile not in made:
            hhtld.convert(source, folder / "m.hhtld", profile=profile, jobs=1)
            made[profile] = (folder / "m.hhtld").read_bytes()
        return made[profile]

    return of


class Stop(BaseException):
    """What stands for a process that ends."""


class Events:
    """Progress: bytes by stage, and an end after some of them."""

    def __init__(self, stop_after: int | None = None, error: BaseException | None = None) -> None:
        self.nbytes: Counter[str] = Counter()
        self.stop_after, self.error = stop_after, error or Stop()

    def __call__(self, stage: str, name: str, nbytes: int) -> None:
        self.nbytes[stage] += nbytes
        if self.stop_after is not None and sum(self.nbytes.values()) >= self.stop_after:
            raise self.error


def stopped(source: Path, target: Path, nbytes: int, profile: str = "gates", jobs: int = 1) -> Counter[str]:
    """Convert until about `nbytes` are done, and leave what a process that ends would leave."""
    events = Events(nbytes)
    with pytest.raises(Stop):
        hhtld.convert(source, target, profile=profile, jobs=jobs, progress=events)
    return events.nbytes


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


CHILD = """
import sys, hhtld, hhtld.codecs.base
hhtld.codecs.base.SPAN_NBYTES = hhtld.codecs.base.BLOCK_NBYTES = {span}
def tell(stage, name, nbytes): print(stage, nbytes, flush=True)
hhtld.convert({source!r}, {target!r}, profile={profile!r}, resume={resume}, jobs=2, progress=tell)
"""


def told(lines: Iterator[str]) -> Counter[str]:
    found: Counter[str] = Counter()
    for line in lines:
        stage, nbytes = line.split()
        found[stage] += int(nbytes)
    return found


@pytest.mark.parametrize("profile", ["gates", "lookup", "f32"])
def test_killed_at_any_moment_it_goes_on(
    profile: str, source: Path, tmp_path: Path, expected: Callable[[str], bytes]
) -> None:
    rng = np.random.default_rng(len(profile))
    target = tmp_path / "m.hhtld"
    target.write_bytes(b"old")
    done: Counter[str] = Counter()
    for turn in range(2):
        code = CHILD.format(span=SPAN, source=str(source), target=str(target), profile=profile, resume=turn > 0)
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(int(rng.integers(3, 9)) * (turn + 1))]
        child.kill()
        lines += child.stdout.readlines()
        child.stdout.close()
        assert child.wait() == -signal.SIGKILL
        assert target.read_bytes() == b"old"
        before, done = done, told(line for line in lines if line.endswith("\n"))
        assert turn == 0 or done["resume"] >= min(before["encode"], sum(done.values())), "nothing is done twice"
    events = Events()
    report = hhtld.convert(source, target, profile=profile, resume=True, progress=events)
    assert report.notes == [GATES_NOTE] * (profile == "gates")
    assert events.nbytes["resume"] >= done["resume"] + done["encode"] - done["again"]
    assert target.read_bytes() == expected(profile)
    assert names(tmp_path) == ["m.hhtld"]


def test_finished_work_is_not_repeated(source: Path, tmp_path: Path, expected: Callable[[str], bytes]) -> None:
    target = tmp_path / "m.hhtld"
    total = sum(t.info.nbytes for t in hhtld.convert(source, tmp_path / "x.hhtld", profile="bits:2").tensors)
    (tmp_path / "x.hhtld").unlink()
    done = stopped(source, target, int(0.9 * total), "bits:2")
    decided: list[int] = []
    plain = hhtld.codecs.rate_control.decide_group
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hhtld.codecs.rate_control, "decide_group", lambda *args: decided.append(1) or plain(*args))
        events = Events()
        hhtld.convert(source, target, profile="bits:2", resume=True, progress=events)
    assert events.nbytes["resume"] == done["encode"]
    assert events.nbytes["encode"] == total - done["encode"]
    assert decided == [], "what a group shares is not decided again"
    assert target.read_bytes() == expected("bits:2")


@pytest.mark.parametrize("jobs", [1, 2])
def test_stopped_again_and_again(source: Path, tmp_path: Path, jobs: int, expected: Callable[[str], bytes]) -> None:
    target, coded, turns = tmp_path / "m.hhtld", 0, 0
    while True:
        events = Events()
        events.stop_after = None if turns == 12 else 300_000 + 90_000 * turns
        try:
            hhtld.convert(source, target, resume=turns > 0, jobs=jobs, progress=events, profile="gates")
            break
        except Stop:
            coded += events.nbytes["encode"]
            turns += 1
    undisturbed = Events()
    coded += events.nbytes["encode"]
    assert turns > 3
    assert target.read_bytes() == expected("gates")
    hhtld.convert(source, tmp_path / "x.hhtld", progress=undisturbed, profile="gates")
    in_flight = turns * 2 * jobs * SPAN
    assert coded <= undisturbed.nbytes["encode"] + in_flight


# ---- what does not fit ----


def test_other_settings_are_refused_and_named(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.hhtld"
    stopped(source, target, 200_000)
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for options, what in (
        ({"profile": "bits:3"}, r"another settings profile \(was \"gates\", is \"bits:3\"\)"),
        ({"seed": 7}, r"another settings seed \(was 0, is 7\)"),
        ({"rules": [("embed*", "keep")]}, "another settings tensors"),
        ({"gates": {"argmax": Threshold(0.9, 0.8)}}, "another settings thresholds argmax"),
    ):
        with pytest.raises(ValueError, match=f"cannot resume .*{what}.*without resume"):
            hhtld.convert(source, target, resume=True, **{"profile": "gates"} | options)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == left
    for same in ({"jobs": 1}, {"memory": 900 << 20}):
        with pytest.raises(Stop):
            hhtld.convert(source, target, profile="gates", resume=True, progress=Events(1), **same)


def test_another_source_is_refused_and_named(source: Path, tmp_path: Path) -> None:
    target, own = tmp_path / "m.hhtld", tmp_path / "model.safetensors"
    own.write_bytes(source.read_bytes())
    stopped(own, target, 200_000)
    tensors = hhtld.load_file(source) | {"more": np.zeros(3)}
    save_file(tensors, own)
    with pytest.raises(ValueError, match="another source content"):
        hhtld.convert(own, target, resume=True, profile="gates")


@pytest.mark.parametrize("profile", ["gates", "bits:2", "lookup", "f32"])
@pytest.mark.parametrize("moved", [False, True], ids=["touched", "moved"])
def test_a_source_that_was_touched_or_moved_is_compared_by_its_content(
    source: Path, tmp_path: Path, expected: Callable[[str], bytes], profile: str, moved: bool
) -> None:
    target, own = tmp_path / "m.hhtld", tmp_path / "model.safetensors"
    own.write_bytes(source.read_bytes())
    stopped(own, target, 900_000, profile)
    if moved:
        own = own.rename(tmp_path / "renamed.safetensors")
    else:
        os.utime(own, ns=(1, 1))
    for stop_after in (200_000, None):  # what was not yet compared is doubted a second time
        again = Events(stop_after)
        with pytest.raises(Stop) if stop_after else contextlib.nullcontext():
            report = hhtld.convert(own, target, resume=True, profile=profile, jobs=1, progress=again)
    assert "the source was touched or moved since; what was done was compared with it" in report.notes
    assert again.nbytes["resume"] > 0
    assert target.read_bytes() == expected(profile)


@pytest.mark.parametrize("profile", ["gates", "bits:2", "lookup", "f32"])
@pytest.mark.parametrize("name", ["layers.3.up_proj.weight", "norm.weight"])
def test_rows_that_changed_meanwhile_are_done_again(source: Path, tmp_path: Path, profile: str, name: str) -> None:
    target, own = tmp_path / "m.hhtld", tmp_path / "model.safetensors"
    own.write_bytes(source.read_bytes())
    before = own.stat()
    n_bytes = sum(array.nbytes for array in hhtld.load_file(own).values())
    stopped(own, target, n_bytes, profile)
    tensors = hhtld.load_file(own)
    tensors[name].reshape(-1)[-1] += 1
    save_file(tensors, tmp_path / "changed.safetensors", {"format": "pt"})
    with own.open("r+b") as file:  # in place, and with the old time
        file.write((tmp_path / "changed.safetensors").read_bytes())
    os.utime(own, ns=(before.st_atime_ns, before.st_mtime_ns))
    hhtld.convert(own, target, resume=True, profile=profile, jobs=1)
    hhtld.convert(tmp_path / "changed.safetensors", tmp_path / "fresh.hhtld", profile=profile, jobs=1)
    assert target.read_bytes() == (tmp_path / "fresh.hhtld").read_bytes()


def test_a_changed_shard_is_compared_and_what_else_lies_there_does_not_matter(source: Path, tmp_path: Path) -> None:
    folder, weight_map = tmp_path / "model", {}
    folder.mkdir()
    for number, (name, array) in enumerate(hhtld.load_file(source).items()):
        shard = f"model-{number % 2 + 1:05d}-of-00002.safetensors"
        weight_map[name] = shard
        held = hhtld.load_file(folder / shard) if (folder / shard).exists() else {}
        save_file(held | {name: array}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    target = folder / "m.hhtld"
    for path in (folder, folder / "model.safetensors.index.json"):
        stopped(path, target, 200_000)
        (folder / "README.md").write_text("what does not matter may change")
        again = Events(300_000)
        with pytest.raises(Stop):
            hhtld.convert(path, target, resume=True, progress=again, profile="gates")
        os.utime(folder / "model-00002-of-00002.safetensors", ns=(1, len(str(path))))
        report = hhtld.convert(path, target, resume=True, profile="gates")
        assert any("was touched or moved" in note for note in report.notes)
        target.unlink()


def test_a_damaged_journal_costs_its_lines_only(source: Path, tmp_path: Path, expected: Callable[[str], bytes]) -> None:
    target = tmp_path / "m.hhtld"
    done = stopped(source, target, 900_000)
    journal = journal_path(target)
    lines = journal.read_bytes().splitlines(keepends=True)
    rows = [i for i, line in enumerate(lines) if b'"key":["rows"' in line]
    lines[rows[1]] = lines[rows[1]].replace(b'"stop":', b'"stop":1')
    lines[rows[2]] = b"\xff\x00 not JSON\n"
    lines[rows[-1]] = lines[rows[-1]][:-20]  # cut short, and no line after it
    journal.write_bytes(b"".join(lines[: rows[-1] + 1]))
    events = Events()
    report = hhtld.convert(source, target, resume=True, progress=events, profile="gates")
    assert report.notes[:-1] == ["3 damaged lines of m.hhtld.journal were ignored"]
    assert done["encode"] - 4 * SPAN <= events.nbytes["resume"] < done["encode"]
    assert target.read_bytes() == expected("gates")


@pytest.mark.parametrize("kind", ["group", "begin"])
def test_a_journal_without_a_decision_is_not_believed(
    kind: str, source: Path, tmp_path: Path, expected: Callable[[str], bytes]
) -> None:
    target = tmp_path / "m.hhtld"
    stopped(source, target, 900_000)
    lines = journal_path(target).read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if f'"key":["{kind}"'.encode() not in line]
    assert len(kept) < len(lines)
    journal_path(target).write_bytes(b"".join(kept))
    report = hhtld.convert(source, target, resume=True, profile="gates")
    assert (kind == "begin") == any("did not say what was begun" in note for note in report.notes)
    assert target.read_bytes() == expected("gates")


def test_damaged_bytes_are_written_again(source: Path, tmp_path: Path, expected: Callable[[str], bytes]) -> None:
    target = tmp_path / "m.hhtld"
    done = stopped(source, target, 900_000)
    partial = partial_path(target)
    with partial.open("r+b") as file:
        for offset in (70, 30_000, partial.stat().st_size - 30):  # a shared section and rows
            file.seek(offset)
            byte = file.read(1)
            file.seek(offset)
            file.write(bytes([byte[0] ^ 0x40]))
    events = Events()
    hhtld.convert(source, target, resume=True, progress=events, profile="gates")
    assert events.nbytes["resume"] < done["encode"]
    assert target.read_bytes() == expected("gates")


def test_a_missing_partial_file_starts_over(source: Path, tmp_path: Path, expected: Callable[[str], bytes]) -> None:
    target = tmp_path / "m.hhtld"
    stopped(source, target, 900_000)
    partial_path(target).unlink()
    events = Events()
    report = hhtld.convert(source, target, resume=True, progress=events, profile="gates")
    assert report.notes[:-1] == ["the partial file of m.hhtld was gone; everything was done again"]
    assert events.nbytes["resume"] == 0
    assert target.read_bytes() == expected("gates")


def test_without_resume_what_is_left_is_replaced(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], expected: Callable[[str], bytes]
) -> None:
    target = tmp_path / "m.hhtld"
    stopped(source, target, 900_000)
    assert main(["convert", str(source), str(target), "--profile", "gates"]) == 0
    assert "an unfinished conversion to m.hhtld was discarded" in capsys.readouterr().out
    assert target.read_bytes() == expected("gates")
    assert names(tmp_path) == ["m.hhtld"]
    assert main(["convert", str(source), str(target), "--profile", "gates", "--resume"]) == 0
    assert "nothing was left of an earlier conversion" in capsys.readouterr().out


def test_two_writers_do_not_share_a_file(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.hhtld"
    refused: list[str] = []

    def second(stage: str, name: str, nbytes: int) -> None:
        if not refused:
            for resume in (False, True):
                with pytest.raises(
                    hhtld.OutputError,
                    match="another conversion is writing it",
                ) as caught:
                    hhtld.convert(source, target, resume=resume, profile="gates")
                refused.append(str(caught.value))

    hhtld.convert(source, target, jobs=1, progress=second, profile="gates")
    assert len(refused) == 2
    assert names(tmp_path) == ["m.hhtld"]


def test_somebody_elses_file_is_not_a_journal(source: Path, tmp_path: Path) -> None:
    (tmp_path / "m.hhtld.journal").write_text("Dear diary")
    for resume in (False, True):
        with pytest.raises(hhtld.OutputError, match="is not a journal of hhtld"):
            hhtld.convert(source, tmp_path / "m.hhtld", resume=resume, profile="gates")
    assert (tmp_path / "m.hhtld.journal").read_text() == "Dear diary"
    assert names(tmp_path) == ["m.hhtld.journal"]


# ---- how conversions end ----


def test_somebody_elses_file_is_not_a_partial_one(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.hhtld"
    partial_path(target).write_text("my only copy")
    for resume in (False, True):
        with pytest.raises(
            hhtld.OutputError, match=r"\.m\.hhtld\.partial beside it is not an unfinished file of hhtld"
        ):
            hhtld.convert(source, target, resume=resume)
    assert partial_path(target).read_text() == "my only copy"


def test_somebody_elses_file_is_not_written_over_by_resuming(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.hhtld"
    stopped(source, target, 200_000)
    partial_path(target).write_text("my only copy")
    with pytest.raises(hhtld.OutputError, match="is not an unfinished file of hhtld"):
        hhtld.convert(source, target, resume=True)
    assert partial_path(target).read_text() == "my only copy"


@pytest.mark.parametrize("place", [partial_path, journal_path])
def test_a_source_that_bears_the_partial_files_name_stays(
    source: Path, tmp_path: Path, place: Callable[[Path], Path]
) -> None:
    target = tmp_path / "m.hhtld"
    place(target).write_bytes(source.read_bytes())
    with pytest.raises(ValueError, match=r"m\.hhtld is kept until it is whole, is the source itself"):
        hhtld.convert(place(target), target)
    assert place(target).read_bytes() == source.read_bytes()


def test_what_is_verified_is_what_was_written(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another sound pack that is put in the partial file's place does not take the name."""
    target, others = tmp_path / "m.hhtld", [tmp_path / "a.hhtld", tmp_path / "b.hhtld"]
    for other in others:
        hhtld.save_file({"other": np.ones(3)}, other)
    verified = hhtld.formats.hhtld._verified

    def swapped(path: Path) -> None:
        others.pop().replace(path)
        verified(path)

    pack = hhtld.encode({"own": np.ones(3)})
    monkeypatch.setattr(hhtld.formats.hhtld, "_verified", swapped)
    with pytest.raises(hhtld.OutputError, match=r"another process moved or replaced \.m\.hhtld\.partial"):
        hhtld.convert(source, target)
    with pytest.raises(hhtld.OutputError, match="another process moved or replaced"):
        hhtld.save(pack, target)
    assert not target.exists()


def test_a_folder_removed_meanwhile_is_an_error_of_writing(source: Path, tmp_path: Path) -> None:

    target = tmp_path / "folder" / "m.hhtld"
    target.parent.mkdir()
    removed = iter([shutil.rmtree])

    def progress(stage: str, name: str, nbytes: int) -> None:
        next(removed, lambda _: None)(target.parent)

    with pytest.raises(hhtld.OutputError, match=f"cannot write {target}") as caught:
        hhtld.convert(source, target, progress=progress)
    assert not getattr(caught.value, "__notes__", [])


def test_bad_input_leaves_nothing(source: Path, tmp_path: Path) -> None:
    tensors = hhtld.load_file(source)
    tensors["layers.5.up_proj.weight"][999, 79] = np.inf
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(hhtld.NonFiniteError):
        hhtld.convert(tmp_path / "bad.safetensors", tmp_path / "m.hhtld", profile="bits:2")
    assert names(tmp_path) == ["bad.safetensors"]


def test_a_full_disk_keeps_what_is_finished(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], expected: Callable[[str], bytes]
) -> None:
    target = tmp_path / "m.hhtld"
    target.write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        assert main(["convert", str(source), str(target), "--profile", "gates", "--jobs", "2"]) == 4
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    errors = capsys.readouterr().err
    assert "cannot write" in errors
    assert "--resume continues" in errors
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == [".m.hhtld.partial", "m.hhtld", "m.hhtld.journal"]
    events = Events()
    hhtld.convert(source, target, resume=True, progress=events, profile="gates")
    assert events.nbytes["resume"] > 0
    assert target.read_bytes() == expected("gates")


def test_bytes_that_the_disk_did_not_keep_are_written_again(
    source: Path, tmp_path: Path, expected: Callable[[str], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, write_at = tmp_path / "m.hhtld", descriptors.write_at

    def spoiled(fd: int, data: memoryview, offset: int) -> int:
        return write_at(fd, bytes([data[0] ^ 1]) + bytes(data[1:]) if offset == 64 else data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(descriptors, "write_at", spoiled)
        with pytest.raises(hhtld.OutputError, match=r"does not hold what was written to it: .*section 0") as caught:
            hhtld.convert(source, target, profile="gates")
    assert "resume=True (--resume) continues" in caught.value.__notes__[0]
    hhtld.convert(source, target, resume=True, profile="gates")
    assert target.read_bytes() == expected("gates")


def test_long_names_have_room_for_what_is_left(source: Path, tmp_path: Path) -> None:
    for stem in ("n" * 249, "\u00e9" * 124):
        target = tmp_path / f"{stem}.hhtld"
        stopped(source, target, 200_000, "lookup")
        assert hhtld.convert(source, target, profile="lookup", resume=True).notes == []
        assert names(tmp_path) == [target.name]
        target.unlink()
    alike = {journal_path(tmp_path / f"{'n' * 248}{c}.hhtld") for c in "ab"}
    assert len(alike) == 2


def test_a_journal_keeps_the_last_of_a_key(tmp_path: Path) -> None:
    path = tmp_path / "j"
    for turn, resume in ((1, False), (2, True), (3, True)):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        journal = Journal(fd, path)
        if resume:
            journal.read()
            assert journal.get("a", 1, "\u00e9") == {"turn": turn - 1, "x": [1.5, None]}
            assert journal.get("a", 2, "\u00e9") is None
        value: Any = {"turn": turn, "x": [1.5, None]}
        journal.put("a", 1, "\u00e9", value=value)
        os.close(fd)
    assert [json.loads(line)["value"]["turn"] for line in path.read_text().splitlines()] == [1, 2, 3]
    Journal().put("nowhere", value=1)
    assert Journal().get("nowhere") is None
