"""What objects look like at a prompt and in a notebook, and packs that are sent to other processes."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import hhtld
from hhtld.commands.diff import diff
from hhtld.commands.verify import verify
from hhtld.errors import ClosedError
from hhtld.pack.notebook import card

ROWS = np.random.default_rng(4).standard_normal((600, 64)).astype(np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "m.hhtld"
    hhtld.save_file({"<b>.up_proj": ROWS, "norm": ROWS[0].copy()}, path, profile="bits:2")
    return path


def test_a_pack_says_in_a_line_what_it_is_and_whether_it_is_closed(path: Path) -> None:
    with hhtld.open(path) as pack:
        assert repr(pack) == f"<HhtldPack {path}: 2 tensors, profile bits:2>"
        assert repr(pack.get_encoded("<b>.up_proj")) == "<HhtlTTensor [600, 64], 2 bits>"
        assert repr(pack.scorer("<b>.up_proj")) == "<Scorer of '<b>.up_proj', 600 rows of 64>"
        assert repr(pack.get_slice("<b>.up_proj")) == "<PackSlice '<b>.up_proj', F32 [600, 64]>"
        shown, told = pack._repr_html_(), pack.info("<b>.up_proj")._repr_html_()
    assert repr(pack) == f"<HhtldPack {path}: 2 tensors, profile bits:2, closed>"
    assert repr(hhtld.encode({"a": ROWS[0]}, "bits:2")) == "<HhtldPack 1 tensor, profile bits:2>"
    for text in (shown, told):
        assert "&lt;b&gt;.up_proj" in text
        assert "<b>.up_proj" not in text
        assert "[600, 64]" in text
    for profile in ("lookup", "f32"):
        encoded = hhtld.encode({"lm_head": np.tile(ROWS, (2, 1))}, profile).get_encoded("lm_head")
        assert repr(encoded) == f"<{type(encoded).__name__} [1200, 64], Slot L>"


def test_a_report_is_one_line(path: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"a.up_proj": ROWS}, tmp_path / "m.safetensors")
    report = hhtld.convert(tmp_path / "m.safetensors", tmp_path / "out.hhtld", profile="bits:2")
    target, nbytes = tmp_path / "out.hhtld", (tmp_path / "out.hhtld").stat().st_size
    expected = f"<ConversionReport {target}: {nbytes:,} bytes, {report.ratio:.2f} times smaller than as bfloat16"
    assert repr(report) == f"{expected}, profile bits:2, passed>"
    assert "a.up_proj" in report._repr_html_()
    compared, checked = diff(target, target), verify(target, tmp_path / "m.safetensors")
    assert repr(compared) == f"<DiffReport {target} and {target}: 1 of 1 tensor in both the same>"
    assert repr(checked) == f"<VerifyReport {target} beside {tmp_path / 'm.safetensors'}: sound>"
    missed = hhtld.convert(tmp_path / "m.safetensors", tmp_path / "out.hhtld", profile="gates", dry_run=True)
    assert repr(missed).endswith("profile gates, predicted>")


def test_long_tables_say_how_much_they_leave_out() -> None:
    text = card("many", {"n": 1}, ("number",), ((i,) for i in range(1045)))
    assert "<td>39</td>" in text
    assert "<td>40</td>" not in text
    assert "and 1,005 more" in text


def _row(pack: hhtld.HhtldPack, number: int) -> bytes:
    with pack:
        return pack.get_rows("<b>.up_proj", [number]).tobytes()


@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_a_pack_from_a_file_can_be_sent_to_a_process(path: Path, start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    with (
        hhtld.open(path.name, budget=10**6) as pack,
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(start)) as workers,
    ):
        assert workers.submit(_row, pack, 7).result() == pack.get_rows("<b>.up_proj", [7]).tobytes()
        monkeypatch.chdir("/")
        for other in (pickle.loads(pickle.dumps(pack)), copy.deepcopy(pack)):
            assert other.budget == 10**6
            with other:
                assert np.array_equal(other.get_tensor("norm"), ROWS[0])
        assert np.array_equal(pack.get_tensor("norm"), ROWS[0]), "each has a file of its own"


def test_what_is_sent_must_still_be_the_same_file(path: Path) -> None:
    with hhtld.open(path) as pack:
        sent = pickle.dumps(pack)
    with pytest.raises(ClosedError):
        pickle.dumps(pack)
    hhtld.save_file({"<b>.up_proj": ROWS + 1, "norm": ROWS[0]}, path, profile="bits:2")
    with pytest.raises(hhtld.FormatError, match="another file than the one whose pack was sent"):
        pickle.loads(sent)
