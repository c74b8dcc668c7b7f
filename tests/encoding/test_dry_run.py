"""What a dry run predicts of groups that it has no time to sample."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import hhtld


@pytest.mark.parametrize("seconds", [math.inf, -1.0], ids=["sampled", "as the most alike"])
def test_groups_without_time_are_predicted_as_the_most_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    rng = np.random.default_rng(0)
    shapes = {
        "layers.0.q_proj.weight": (700, 256),
        "layers.0.up_proj.weight": (600, 160),
        "layers.0.o.weight": (500, 96),
    }
    save_file(
        {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()},
        tmp_path / "m.safetensors",
    )
    made = hhtld.convert(tmp_path / "m.safetensors", tmp_path / "m.hhtld", profile="gates")
    monkeypatch.setattr("hhtld.encoding.dry_run._SECONDS", seconds)
    predicted = hhtld.convert(tmp_path / "m.safetensors", tmp_path / "x.hhtld", profile="gates", dry_run=True)
    assert predicted.target_nbytes == pytest.approx(made.target_nbytes, rel=0.05)
    medians = [tensor.predicted_median for tensor in predicted.tensors]
    assert medians.count(None) == (0 if seconds > 0 else 2), "only what was sampled has a cosine to tell"
