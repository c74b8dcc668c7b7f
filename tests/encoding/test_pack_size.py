"""The size of a pack that is told before a row is coded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hhtld.encoding.gate_report import GateReport
from hhtld.encoding.options import Encoding
from hhtld.encoding.pack_size import most_nbytes
from hhtld.encoding.plan import make_plan
from hhtld.encoding.resources import Work
from hhtld.formats.hhtld import write_pack
from hhtld.sources.contract import ArraySource

RNG = np.random.default_rng(0)
SOURCE = ArraySource(
    {
        "model.embed_tokens.weight": RNG.standard_normal((16, 64))[RNG.integers(0, 16, 1200)]
        + 0.3 * RNG.standard_normal((1200, 64)),
        "größe.weight": RNG.standard_normal((600, 96)),
        "layers.0.q_proj.weight": RNG.standard_normal((33, 64)).astype(np.float32),
        "tiny.weight": RNG.standard_normal((2, 3)),
        "norm.weight": np.ones(64, np.float16),
        "steps": np.arange(5),
    },
    {"made by": "a test"},
)


@pytest.mark.parametrize(
    "options",
    [
        {"profile": "bits:3"},
        {"profile": "bits:2+2"},
        {"profile": "lookup"},
        {"profile": "f32"},
        {"profile": "parity", "rates": {"größe.weight": np.linspace(2, 6, 600), "layers.0.q_proj.weight": 4.5}},
        {"profile": "bits:5", "column_scales": {"größe.weight": np.ones(96, np.float32)}},
        {"profile": "bits:4", "rules": (("*embed*", "keep"), ("größe*", "lookup"))},
    ],
)
def test_no_pack_is_larger_than_was_told_and_none_much_smaller(options: dict[str, Any], tmp_path: Path) -> None:
    plan = make_plan(SOURCE, Encoding(**options))
    told = most_nbytes(SOURCE, plan)
    write_pack(SOURCE, plan, tmp_path / "m.hhtld", GateReport(enforced=False), Work())
    nbytes = (tmp_path / "m.hhtld").stat().st_size
    assert nbytes <= told <= nbytes + 500 * len(SOURCE.infos())
