"""Products of few inputs are the same whatever shares the work: threads, blocks of rings, classes of rates."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import hhtld
from hhtld.search import linear_layers
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


def test_a_share_that_is_still_running_keeps_the_arrays_of_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    class Held: ...

    monkeypatch.setattr(linear_layers, "_THREAD_WEIGHTS", 1)
    found, held, shares = RowProducts.of(encoded(101, 192, "bits:4")), Held(), list[Any]()
    assert found is not None

    class Interrupted:
        def each(self, work: Any, numbers: Any) -> Any:
            shares.append(work)  # as a thread does whose caller is interrupted
            raise KeyboardInterrupt

    monkeypatch.setattr(linear_layers, "_threads", lambda n: Interrupted())
    inputs, out, alive = np.zeros((1, 192), np.float32), np.empty((1, 101), np.float32), weakref.ref(held)
    with pytest.raises(KeyboardInterrupt):
        found.write_at(inputs.ctypes.data, "F32", 1, out.ctypes.data, "F32", 1, 2, held)
    del held
    gc.collect()
    assert alive() is not None
    shares.clear()
    gc.collect()
    assert alive() is None
