"""Rows that close to rings: which do, what they take, and that every way to them gives the same rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hhtld
from hhtld.codecs.trellis import HhtlTTensor
from hhtld.commands.main import main
from hhtld.cosines import row_cosines
from hhtld.errors import HeaderError
from hhtld.slots.slot_t import Trellis, is_ring
from hhtld.sources.contract import ArraySource
from tests import spec_reader
from tests.formats.test_hhtld import Draft

NAME = "engram.embed.weight"


def table(n_rows: int, n_cols: int) -> np.ndarray:
    rows = np.random.default_rng([n_rows, n_cols]).standard_normal((n_rows, n_cols)).astype(np.float32)
    rows[3::50] = 0
    return rows


def packed(rows: np.ndarray, profile: str, path: Path, **options: Any) -> Path:
    hhtld.save(hhtld.encode(ArraySource({NAME: rows}), profile, **options), path)
    return path


def has_rings(path: Path) -> bool:
    with hhtld.open(path) as pack:
        group = pack.info(NAME).group
        return group is not None and "ring" in pack.table.groups[group].numbers


@pytest.mark.parametrize(
    ("n_cols", "bits", "nbytes"),
    [(160, 4, 82), (160, 3, 62), (160, 2, 42), (256, 4, 130), (64, 1, 10), (65, 4, 35), (72, 3.5, 34), (256, 6, 194)],
)
def test_a_ring_takes_its_rate_and_a_gain(n_cols: int, bits: float, nbytes: int, tmp_path: Path) -> None:
    rows = table(150, n_cols)
    path = packed(rows, f"bits:{bits:g}", tmp_path / "t.hhtld")
    assert has_rings(path)
    ids = [149, 0, 7, 7, 3, -1]
    with hhtld.open(path) as pack:
        assert pack.nbytes(NAME) == 150 * nbytes
        whole = pack.get_tensor(NAME)
        for io in ("mmap", "pread", "direct"):
            with hhtld.open(path, io=io, row_cache=1 << 12) as again:
                np.testing.assert_array_equal(again.get_rows(NAME, ids), whole[ids])
                np.testing.assert_array_equal(again.get_rows(NAME, [5]), whole[[5]])
        np.testing.assert_array_equal(spec_reader.read(path)[NAME], whole)
        assert not whole[3::50].any()
        live = np.delete(np.arange(150), np.s_[3::50])
        assert np.median(row_cosines(rows[live], whole[live])) > 1 - 1.3 * 4.0**-bits
        queries = table(5, n_cols)[[0, 1, 2, 4]]
        scores = pack.scorer(NAME).scores(queries)
        np.testing.assert_allclose(scores, queries @ whole.T, atol=2e-2 * np.abs(scores).max())
        found = pack.scorer(NAME).topk(queries, 3)[0]
        np.testing.assert_array_equal(found[:, 0], (queries @ whole.T).argmax(axis=1))


@pytest.mark.parametrize(
    ("n_cols", "profile", "options"),
    [
        (63, "bits:4", {}),
        (257, "bits:4", {}),
        (161, "bits:3.5", {}),  # 563 bits and a half
        (160, "bits:2+1", {}),
        (160, "gates", {}),
        (64, "bits:4", {"moments": {NAME: np.eye(64, dtype=np.float32)}}),
        (64, "parity", {"rates": {NAME: np.where(np.arange(150) % 2, 3.0, 4.0)}}),
    ],
)
def test_other_rows_stay_open(n_cols: int, profile: str, options: Any, tmp_path: Path) -> None:
    assert not has_rings(packed(table(150, n_cols), profile, tmp_path / "t.hhtld", **options))


def test_rings_are_shorter_and_of_whole_bits() -> None:
    for n_cols in range(1, 300):
        for rate in range(16, 97):
            ring = Trellis.trained(rate, is_ring(n_cols, rate))
            assert ring.is_ring <= (64 <= n_cols <= 256 and n_cols * rate % 16 == 0)
            assert ring.row_nbytes(n_cols) <= Trellis.trained(rate).row_nbytes(n_cols) - ring.is_ring


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate": 63}, "slot_t is 12000 bytes long, expected 11850"),
        ({"shape": [150, 161], "rate": 61}, "rings take whole bits, 16 at least, and 161 weights of 61 sixteenths do"),
        ({"shape": [150, 3]}, "rings take whole bits, 16 at least, and 3 weights of 64 sixteenths do not"),
        ({"ring": False}, "ring must be true, of a group of one rate and one level"),
        ({"rates": [64, 64]}, "rates"),
    ],
)
def test_rows_that_rings_cannot_be_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with hhtld.open(packed(table(150, 160), "bits:4", tmp_path / "t.hhtld")) as pack:
        sections = [(kind, pack.sections.whole(number).tobytes()) for number, kind in enumerate(pack.sections.kinds())]
        draft = Draft(sections, pack.table.to_json())
    (tmp_path / "same.hhtld").write_bytes(draft.build())
    hhtld.open(tmp_path / "same.hhtld").close()
    draft.table["groups"][0].update(change)
    (tmp_path / "bad.hhtld").write_bytes(draft.build())
    with pytest.raises(HeaderError, match=message):
        hhtld.open(tmp_path / "bad.hhtld")


def test_inspect_and_the_export_say_that_rows_are_rings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    h5py = pytest.importorskip("h5py")
    path = packed(table(150, 160), "bits:4", tmp_path / "t.hhtld")
    assert main(["inspect", str(path), "--tensor", NAME]) == 0
    assert "4 bits, 4096 states, rotation seed 0, rows closed to rings" in capsys.readouterr().out
    hhtld.convert(path, tmp_path / "t.h5")
    with h5py.File(tmp_path / "t.h5") as file:
        (group,) = file["entry/groups"].values()
        assert group["codebook"].parent.attrs["ring"]


def test_a_scorer_holds_no_copy_of_the_codes(tmp_path: Path) -> None:
    with hhtld.open(packed(table(150, 64), "bits:4", tmp_path / "t.hhtld")) as pack:
        tensor = pack.get_encoded(NAME)
        assert isinstance(tensor, HhtlTTensor)
        terms = tensor.search_terms()
        assert terms is not None
        assert np.shares_memory(terms.levels[0].matrices[0].slot_t, tensor.slot_t), "blocks are opened, not the table"
