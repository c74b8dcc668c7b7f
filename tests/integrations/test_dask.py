"""Conversions on dask's workers, in a process of their own: distributed leaves threads and warnings behind."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import hhtld
from hhtld.errors import MissingExtraError

SCRIPT = """
import os, signal, sys
import distributed
import hhtld, hhtld.codecs.base, hhtld.integrations.dask
from hhtld.errors import HhtldError

source, folder = sys.argv[1:]
hhtld.codecs.base.SPAN_NBYTES = hhtld.codecs.base.BLOCK_NBYTES = 20_000

def main():
    hhtld.convert(source, f"{folder}/local.hhtld", profile="gates", executor="dask:local", jobs=1)
    with distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster:
        where, seen = f"dask:{cluster.scheduler_address}", []
        for profile in ("lookup", "f32"):
            hhtld.convert(source, f"{folder}/{profile}.hhtld", executor=where, profile=profile)

        def kill(stage, name, nbytes):
            seen.append(stage)
            if len(seen) in (4, 30):
                os.kill(cluster.workers[len(seen) // 30].pid, signal.SIGKILL)

        hhtld.convert(source, f"{folder}/killed.hhtld", profile="gates", executor=where, progress=kill)

        def interrupt(stage, name, nbytes):
            raise KeyboardInterrupt

        try:
            hhtld.convert(source, f"{folder}/resumed.hhtld", profile="gates", executor=where, progress=interrupt)
        except KeyboardInterrupt:
            hhtld.convert(source, f"{folder}/resumed.hhtld", profile="gates", executor=where, resume=True)
        print(len(seen))
    hhtld.integrations.dask._TIMEOUT = "1s"
    try:
        hhtld.convert(source, f"{folder}/nowhere.hhtld", profile="gates", executor="dask:tcp://127.0.0.1:1")
    except HhtldError as error:
        print(error)

if __name__ == "__main__":
    main()
"""


@pytest.mark.skipif(find_spec("distributed") is None, reason="the extra 'dask' is not installed")
def test_any_workers_give_the_same_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    tensors = {f"layers.{i}.up_proj.weight": rng.standard_t(3, (700, 96)).astype(np.float32) for i in range(4)}
    near = rng.standard_normal((16, 64))[rng.integers(0, 16, 1400)] * 6 + rng.standard_normal((1400, 64))
    save_file(tensors | {"embed.weight": near.astype(np.float16)}, tmp_path / "m.safetensors")
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "m.safetensors"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    tasks, refusal = done.stdout.splitlines()
    assert int(tasks) > 40, "both workers were killed"
    assert refusal.startswith("no dask scheduler answers at tcp://127.0.0.1:1")
    for profile, names in (("gates", ("local", "killed", "resumed")), ("lookup", ("lookup",)), ("f32", ("f32",))):
        hhtld.convert(tmp_path / "m.safetensors", tmp_path / "here.hhtld", profile=profile)
        for name in names:
            assert (tmp_path / f"{name}.hhtld").read_bytes() == (tmp_path / "here.hhtld").read_bytes(), name


@pytest.mark.skipif(find_spec("distributed") is None, reason="the extra 'dask' is not installed")
@pytest.mark.parametrize("address", ["nope", "smoke://host:1"])
def test_what_is_no_address_is_refused_and_the_process_ends(address: str, tmp_path: Path) -> None:
    save_file({"w": np.ones((600, 64), np.float32)}, tmp_path / "m.safetensors")
    words = ["convert", str(tmp_path / "m.safetensors"), str(tmp_path / "x.hhtld"), "--executor", f"dask:{address}"]
    done = subprocess.run(
        [sys.executable, "-m", "hhtld.formats", *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "an executor of dask is dask:local or dask:ADDRESS, as dask:tcp://HOST:8786; got" in done.stderr
    assert not (tmp_path / "x.hhtld").exists()


def test_without_dask_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "hhtld.integrations.dask", raising=False)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hhtld\[dask\]'"):
        importlib.import_module("hhtld.integrations.dask")
    save_file({"a": np.zeros((3, 4), np.float32)}, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="no executor 'ray'; available: threads, dask:local, dask:ADDRESS"):
        hhtld.convert(tmp_path / "m.safetensors", tmp_path / "m.hhtld", executor="ray")
    with pytest.raises(ValueError, match="takes no executor"):
        hhtld.convert(tmp_path / "m.safetensors", tmp_path / "b.safetensors", executor="threads")
