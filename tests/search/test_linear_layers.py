"""Products of few inputs are the same whatever shares the work: threads, blocks of rings, classes of rates."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import hhtld
from hhtld.search import linear_layers, teams
from hhtld.search.linear_layers import RowProducts


def encoded(n_rows: int, n_cols: int, bits: str) -> Any:
    rng = np.random.default_rng((n_rows, n_cols))
    weights: dict[str, NDArray[np.float32]] = {"w": rng.standard_normal((n_rows, n_cols), np.float32)}
    return hhtld.encode(weights, profile=bits).get_encoded("w")


@pytest.mark.parametrize("n_planes", [1, 2])
@pytest.mark.parametrize("bits", ["bits:4", "bits:2"])
@pytest.mark.parametrize("n_inputs", [1, 2, 5])
def test_threads_share_rows_and_change_nothing(
    n_inputs: int, bits: str, n_planes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor = encoded(101, 192, bits)
    inputs = np.random.default_rng(1).standard_normal((n_inputs, 192)).astype(np.float32)
    monkeypatch.setattr(linear_layers, "_THREAD_WEIGHTS", 1)
    monkeypatch.setattr(teams, "n_processors", lambda: 64)
    monkeypatch.setattr(teams, "_teams", {})
    found = RowProducts.of(tensor)
    assert found is not None
    alone, together = np.empty((2, n_inputs, 101), np.float32)
    assert found.write(inputs, alone, n_planes)
    monkeypatch.setattr(linear_layers, "_BLOCK_NBYTES", 4 * 192 * 7)
    for n_threads in (2, 3, 200):
        together[:] = np.nan
        assert found.write(inputs, together, n_planes, n_threads)
        np.testing.assert_array_equal(together, alone)
    exact = inputs.astype(np.float64) @ tensor.reconstruct_rows(slice(0, 101)).astype(np.float64).T
    assert np.linalg.norm(alone - exact) < (2e-2 if n_planes == 1 else 1e-4) * np.linalg.norm(exact)
    inputs[0, 3] = np.inf
    assert not found.write(inputs, together, n_planes, 3)


def test_centroids_come_with_the_rows() -> None:
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((7, 96), np.float32)[rng.integers(0, 7, 2000)] * 3
    rows += rng.standard_normal((2000, 96), np.float32)
    tensor = hhtld.encode({"w": rows}, profile="bits:2").get_encoded("w")
    products = RowProducts.of(tensor)
    assert products is not None
    assert products.has_centroids
    inputs = rng.standard_normal((2, 96)).astype(np.float32)
    decoded = tensor.reconstruct_rows(slice(0, 2000)).astype(np.float64)
    expected, out = inputs.astype(np.float64) @ decoded.T, np.empty((2, 2000), np.float32)
    assert products.write(inputs, out, 2)
    assert np.linalg.norm(out - expected) < 1e-4 * np.linalg.norm(expected)
    rotated, found = products.rotated(inputs), np.empty((2, 2000), np.float32)
    assert rotated is not None
    for places, block in products.rotated_blocks():
        found[:, places] = rotated @ block.T
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)


def test_a_child_of_fork_has_threads_of_its_own() -> None:
    code = """
import os, numpy as np, hhtld
from hhtld.search import teams
from hhtld.search.linear_layers import RowProducts
rows = np.random.default_rng(0).standard_normal((6000, 192)).astype(np.float32)
products = RowProducts.of(hhtld.encode({"w": rows}, "bits:4").get_encoded("w"))
inputs, alone, shared = rows[:1].copy(), np.empty((1, 6000), np.float32), np.empty((1, 6000), np.float32)
assert products.write(inputs, alone, 1, 1) and products.write(inputs, shared, 1, 3)
before = dict(teams._teams)
pid = os.fork()
assert bool(teams._teams) == bool(pid)
for _ in range(100):
    shared[:] = np.nan
    assert products.write(inputs, shared, 1, 3) and np.array_equal(alone, shared)
if not pid:
    os._exit(teams._teams[2] is before[2])
assert os.waitpid(pid, 0)[1] == 0
assert teams._teams == before
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_threads_that_cannot_be_begun_are_missed_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused:
        def __init__(self, **given: Any) -> None: ...

        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(teams, "_teams", {})
    monkeypatch.setattr(teams.threading, "Thread", Refused)
    found = RowProducts.of(encoded(6000, 192, "bits:4"))
    assert found is not None
    inputs, (alone, together) = np.ones((1, 192), np.float32), np.zeros((2, 1, 6000), np.float32)
    assert found.write(inputs, alone, 1)
    assert found.write(inputs, together, 1, 5)
    assert list(teams._teams) == [2], "so few weights are for two threads"
    np.testing.assert_array_equal(together, alone)


def test_no_team_is_begun_when_the_process_ends() -> None:
    code = """
import numpy as np, hhtld
from hhtld.search.linear_layers import RowProducts
rows = np.random.default_rng(0).standard_normal((6000, 192)).astype(np.float32)
products = RowProducts.of(hhtld.encode({"w": rows}, "bits:4").get_encoded("w"))
class Late:
    def __del__(self, products=products, inputs=rows[:1].copy(), out=np.empty((1, 6000), np.float32)):
        print(products.write(inputs, out, 1, 2))
late = Late()
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True)
    assert done.stdout == "True\n"
