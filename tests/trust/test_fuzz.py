"""Properties of every model and every input: what hypothesis draws, and a short fixed run of the fuzzers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

import hhtld
import hhtld.sources.rows
from tests.trust import fuzz

pytestmark = pytest.mark.exhaustive

Model = dict[str, NDArray[Any]]
PROFILES = ("lookup", "f32", "gates", "bits:1", "bits:2.0625", "bits:2+1", "bits:6")

names = st.lists(
    st.text(st.characters(codec="utf-8"), max_size=8).filter(lambda name: name != "__metadata__"),
    min_size=1,
    max_size=3,
    unique=True,
)
finite = st.floats(-1e3, 1e3, width=32)
roles = st.sampled_from(["", ".up_proj.weight", ".embed.weight", ".q_proj.weight"])
dtypes = st.sampled_from([np.float32, np.float16, np.float64, ml_dtypes.bfloat16, np.int16, np.bool_, np.complex64])


@st.composite
def models(draw: st.DrawFn) -> Model:
    """Tensors of any type and shape; some large enough for every profile to encode them."""
    model: Model = {}
    for name in draw(names):
        shape = draw(st.one_of(st.just((520, 18)), arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)))
        seed = draw(st.integers(0, 5))
        values = np.random.default_rng(seed).standard_normal(shape) * draw(st.sampled_from([0, 1e-30, 1, 1e3]))
        if values.size:
            values.reshape(-1)[draw(st.integers(0, values.size - 1))] = draw(finite)
        model[name + draw(roles)] = np.asarray(values).astype(draw(dtypes))
    return model


def held(pack: hhtld.HhtldPack) -> list[bytes]:
    return [pack.sections.whole(i).tobytes() for i in range(len(pack.sections.kinds()))]


drawn = settings(derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


@drawn
@given(model=models(), profile=st.sampled_from(PROFILES), metadata=st.dictionaries(st.text(max_size=5), st.just("v")))
def test_any_model_comes_back(model: Model, profile: str, metadata: dict[str, str], tmp_path: Path) -> None:
    """Names, types, shapes, metadata; kept tensors bit for bit; in memory as in the file; finite as it went in."""
    metadata = {key: text for key, text in metadata.items() if key.isprintable()}
    made = hhtld.encode(model, profile, metadata=metadata)
    hhtld.save(made, tmp_path / "a.hhtld")
    with hhtld.open(tmp_path / "a.hhtld") as pack:
        assert pack.keys() == sorted(model)
        assert pack.metadata() == metadata
        for name, array in model.items():
            back = pack.get_tensor(name, "source")
            assert (back.dtype, back.shape) == (array.dtype, array.shape)
            assert back.tobytes() == made.get_tensor(name, "source").tobytes()
            if pack.info(name).codec == "keep":
                assert back.tobytes() == array.tobytes()
            else:
                assert np.isfinite(pack.get_tensor(name)).all()
    hhtld.convert(tmp_path / "a.hhtld", tmp_path / "a.safetensors", jobs=1)
    plain = hhtld.load_file(tmp_path / "a.safetensors")
    assert {n: a.tobytes() for n, a in plain.items()} == {n: made.get_tensor(n, "source").tobytes() for n in model}


@drawn
@given(model=models(), profile=st.sampled_from(PROFILES), data=st.data())
def test_any_rows_are_rows_of_the_whole(model: Model, profile: str, data: st.DataObject, tmp_path: Path) -> None:
    hhtld.save(hhtld.encode(model, profile), tmp_path / "a.hhtld")
    with hhtld.open(tmp_path / "a.hhtld", mmap=data.draw(st.booleans())) as pack:
        for name in pack:
            info, whole = pack.info(name).info, pack.get_tensor(name)
            part = data.draw(arrays.basic_indices(whole.shape, allow_newaxis=True, max_dims=6))
            found, expected = pack.get_slice(name)[part], whole[part]
            assert found.shape == expected.shape
            assert found.tobytes() == expected.tobytes()
            if info.has_rows and info.n_rows:
                rows = data.draw(st.lists(st.integers(-info.n_rows, info.n_rows - 1), max_size=6))
                expected = whole.reshape(info.n_rows, -1)[np.array(rows, np.intp)]
                assert pack.get_rows(name, rows).tobytes() == expected.tobytes()


@drawn
@given(model=models(), profile=st.sampled_from(PROFILES), threads=st.integers(1, 5), block=st.integers(100, 5000))
def test_threads_and_order_do_not_reach_the_bytes(
    model: Model, profile: str, threads: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = held(hhtld.encode(model, profile))
    shuffled = dict(reversed(model.items()))
    with ThreadPoolExecutor(threads) as executor:
        assert held(hhtld.encode(shuffled, profile, executor=executor)) == plain
        with monkeypatch.context() as patch:
            patch.setattr(hhtld.sources.rows, "BLOCK_NBYTES", block)
            again = hhtld.encode(model, profile, executor=executor)
            assert {n: again.get_tensor(n).shape for n in again} == {n: a.shape for n, a in model.items()}


@drawn
@given(model=models(), profile=st.sampled_from(PROFILES[:-1]))
def test_a_pack_saved_again_is_the_same_file(model: Model, profile: str, tmp_path: Path) -> None:
    hhtld.save(hhtld.encode(model, profile), tmp_path / "a.hhtld")
    with hhtld.open(tmp_path / "a.hhtld") as pack:
        hhtld.save(pack, tmp_path / "b.hhtld")
    assert (tmp_path / "a.hhtld").read_bytes() == (tmp_path / "b.hhtld").read_bytes()


# --- the fuzzers' own mutations, a fixed few of them ----------------------------------------------


@pytest.mark.parametrize("reader", fuzz.READERS)
def test_nearly_sound_files_are_read_or_refused(reader: str) -> None:
    if reader in ("gguf", "onnx"):
        pytest.importorskip(reader)
    run = fuzz.unguided(reader, executions=1500, seed=1)
    assert run.findings == []
    assert run.executions == 1500


def test_a_reader_that_stumbles_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search itself is looked at: an error of another kind is a finding, with the input kept."""
    from hhtld.pack import container

    def stumbling(*_: Any) -> Any:
        raise KeyError("x")

    monkeypatch.setattr(container, "_section_records", stumbling)
    monkeypatch.setattr(fuzz, "_kept", lambda reader, data: f"{reader} of {len(data)} bytes")
    run = fuzz.unguided("hhtld", executions=20, seed=1)
    assert run.findings
    assert "KeyError: 'x'" in run.findings[0]
