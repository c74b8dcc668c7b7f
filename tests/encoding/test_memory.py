"""Conversions stay below the memory they are given, or say before they begin what they need."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import hhtld
import hhtld.codecs.base
from hhtld.commands.main import main
from hhtld.encoding.memory import check_memory, expected_nbytes
from hhtld.encoding.options import Encoding
from hhtld.encoding.plan import make_plan
from hhtld.encoding.resources import Work
from hhtld.formats import open_source
from hhtld.sources.contract import ArraySource
from hhtld.sources.crew import Crew

CHILD = """
import sys, hhtld, hhtld.api.convert
def resident(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
before = resident("VmRSS")
hhtld.convert(sys.argv[1], sys.argv[2], profile=sys.argv[3], memory=int(sys.argv[4]), jobs=3)
print(resident("VmHWM") - before)
"""


def sparse(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], int]]) -> Path:
    """Write a safetensors file of zeros that takes no room: dtype, shape and bytes by name."""
    header, end = {}, 0
    for name, (dtype, shape, nbytes) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + nbytes]}
        end += nbytes
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("profile", ["bits:1", "lookup"])
def test_peak_memory_is_below_what_is_given(profile: str, tmp_path: Path) -> None:
    n_rows = 100_000
    kept = {"kept": ("I32", (40_000, 1000), 160_000_000)}
    coded = {"q_proj.weight": ("F16", (n_rows, 128), n_rows * 256)}
    source = sparse(tmp_path / "m.safetensors", kept | coded)
    target, memory = tmp_path / "m.hhtld", 96 << 20
    command = [sys.executable, "-c", CHILD, str(source), str(target), profile, str(memory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert target.stat().st_size > 160_000_000
    assert int(done.stdout) < memory, "the source alone is 185 MB"


@pytest.mark.parametrize(
    ("profile", "shape", "what"),
    [
        ("f32", (300_000, 1024), "group other/qko 300000 x 1024"),  # all rows at once
        pytest.param(  # one row of 80 MB
            "bits:2", (64, 20_000_000), "group other/qko 64 x 20000000", marks=pytest.mark.exhaustive
        ),
        ("lookup", (50_000_000, 4), "group other/qko 50000000 x 4"),
    ],
)
def test_what_cannot_be_done_is_refused_before_it_begins(
    profile: str, shape: tuple[int, int], what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = sparse(tmp_path / "m.safetensors", {"a.q_proj.weight": ("BF16", shape, 2 * shape[0] * shape[1])})
    with open_source(source) as tensors:
        plan = make_plan(tensors, Encoding(profile))
        with pytest.raises(hhtld.BudgetError) as caught:
            check_memory(tensors, plan, Work())
        for part in ("'a.q_proj.weight' needs ", what, "1,073,741,824 are allowed", "--memory "):
            assert part in str(caught.value)
        enough = int(str(caught.value).rpartition("--memory ")[2].rstrip("MiB)"))
        check_memory(tensors, plan, Work(memory=enough << 20))
        with pytest.raises(hhtld.BudgetError):
            check_memory(tensors, plan, Work(memory=(enough - 2) << 20))
    assert main(["convert", str(source), str(tmp_path / "m.hhtld"), "--profile", profile]) == 3
    assert "needs" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_row_that_is_kept_must_fit(tmp_path: Path) -> None:
    source = sparse(tmp_path / "m.safetensors", {"a": ("U8", (1 << 31,), 1 << 31)})
    with pytest.raises(hhtld.BudgetError, match=r"tensor 'a' needs 4,831,838,208 bytes of memory \(one row\)"):
        hhtld.convert(source, tmp_path / "m.hhtld", profile="gates")


def test_many_tensors_are_counted(tmp_path: Path) -> None:
    """What is known of each takes some 10 kB: 20,000 small ones took 190 MiB where 64 were given."""
    shapes: dict[str, tuple[str, tuple[int, ...], int]] = {f"w{i}": ("BF16", (8, 16), 256) for i in range(20_000)}
    with open_source(sparse(tmp_path / "m.safetensors", shapes)) as tensors:
        plan = make_plan(tensors, Encoding("bits:2"))
        with pytest.raises(hhtld.BudgetError, match="beside what is known of 20,000 tensors"):
            check_memory(tensors, plan, Work(memory=64 << 20))
        assert check_memory(tensors, plan, Work(memory=256 << 20)) > 180 << 20


def test_too_little_memory_keeps_what_an_earlier_run_finished(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    save_file({"q_proj": rng.standard_normal((900, 64)).astype(np.float32)}, tmp_path / "m.safetensors")

    def stop(stage: str, name: str, nbytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hhtld.convert(tmp_path / "m.safetensors", tmp_path / "m.hhtld", progress=stop, profile="gates")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(hhtld.BudgetError):
        hhtld.convert(tmp_path / "m.safetensors", tmp_path / "m.hhtld", memory=1000, resume=True, profile="gates")
    assert sorted(tmp_path.iterdir()) == before
    hhtld.convert(tmp_path / "m.safetensors", tmp_path / "m.hhtld", resume=True, profile="gates")


def test_more_threads_are_given_no_more_than_fits() -> None:
    source = ArraySource({"q_proj": np.zeros((30_000, 512), np.float16)})
    plan = make_plan(source, Encoding("bits:3"))
    found = [expected_nbytes(source, plan, Work(Crew(jobs=jobs), 1 << 30)) for jobs in (1, 2, 64)]
    assert found[0] < found[1] < found[2] < 1 << 30
    assert expected_nbytes(source, plan, Work(Crew(jobs=64), 200 << 20)) == 200 << 20


def test_a_dry_run_says_what_it_would_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(1)
    save_file({"q_proj": rng.standard_normal((900, 64)).astype(np.float32)}, tmp_path / "m.safetensors")
    source, target = str(tmp_path / "m.safetensors"), tmp_path / "m.hhtld"
    report = hhtld.convert(source, target, dry_run=True, jobs=2, memory=500 << 20, profile="gates")
    expected = report.to_json()["expected"]
    assert set(expected) == {"seconds", "jobs", "memory_nbytes", "sampled_share"}
    assert (expected["jobs"], expected["memory_nbytes"] < 500 << 20) == (2, True)
    assert main(["convert", source, str(target), "--profile", "gates", "--dry-run", "--jobs", "1"]) == 0
    assert "with one thread as fast as coding a sample was just now, and at most" in capsys.readouterr().out
    assert hhtld.convert(source, target, dry_run=True, profile="lookup").expected is None
    assert "expected" not in hhtld.convert(source, target, profile="gates").to_json()


@pytest.mark.parametrize(
    "profile", ["parity", *(pytest.param(profile, marks=pytest.mark.exhaustive) for profile in ("gates", "bits:5"))]
)
def test_a_prediction_of_the_widest_matrix_is_bounded(tmp_path: Path, profile: str) -> None:
    """It coded every row of a sample of 32 MiB at eight rates, and read all rows where some are zeros."""
    source = sparse(tmp_path / "m.safetensors", {"up.weight": ("F32", (8192, 28672), 4 * 8192 * 28672)})
    code = (
        "import resource, sys, time; import hhtld, hhtld.api.convert; from hhtld.slots.slot_t import Trellis\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before, started = peak(), time.process_time()\n"
        "report = hhtld.convert(sys.argv[1], sys.argv[2], profile=sys.argv[3], dry_run=True)\n"
        "print(time.process_time() - started, (peak() - before) >> 10, report.expected['sampled_share'])"
    )
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "m.hhtld"), profile]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    seconds, mebibytes, share = map(float, done.stdout.split())
    assert seconds < 10
    assert mebibytes < 256
    assert share == 1


def test_a_prediction_takes_what_it_had_no_time_for_to_be_like_what_it_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(2)
    tensors = {f"{i}.up_proj": rng.standard_normal((200, 64 + 8 * i)).astype(np.float32) for i in range(12)}
    save_file(tensors | {"embed": rng.standard_normal((90, 64)).astype(np.float32)}, tmp_path / "m.safetensors")
    words = ["convert", str(tmp_path / "m.safetensors"), str(tmp_path / "m.hhtld"), "--profile", "gates", "--dry-run"]
    whole = hhtld.convert(*words[1:3], profile="gates", dry_run=True, min_ratio=0)
    assert main(words) == 0
    assert "sizes come from samples of every group of tensors, and may be 3 % off" in capsys.readouterr().out
    monkeypatch.setattr("hhtld.encoding.dry_run._SECONDS", 0.0)
    some = hhtld.convert(*words[1:3], profile="gates", dry_run=True, min_ratio=0)
    assert [t.predicted_median is not None for t in some.tensors].count(True) == 1, "one group is sampled in any case"
    assert some.expected["sampled_share"] == pytest.approx(152 / (12 * 108 + 28.8), abs=0.0001)
    assert whole.expected["sampled_share"] == 1
    assert some.target_nbytes == pytest.approx(whole.target_nbytes, rel=0.05)
    assert main(words) == 0
    assert "with 11 % of the weights, and may be 3 % off there; the others are taken" in capsys.readouterr().out
