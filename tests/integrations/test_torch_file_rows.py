"""Embeddings that stay in their file: rows, types and errors are those of `nn.Embedding`, in other processes, too."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402 - after the skip
from torch.utils.data import DataLoader, Dataset  # noqa: E402 - after the skip

import hhtld  # noqa: E402 - after the skip
from hhtld.errors import ClosedError, HeaderError  # noqa: E402 - after the skip
from hhtld.integrations.torch import (  # noqa: E402 - after the skip
    FileRows,
    HhtlEmbedding,
    PackedWeight,
    dequantize,
    load_state_dict,
    packed_counts,
    replace_modules,
)

N_ROWS, N_COLS = 700, 48
MODES: list[dict[str, Any]] = [{}, {"io": "pread"}, {"io": "direct"}, {"row_cache": 1 << 20}]
NAMES = ["emb.weight", "kept.weight"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table that is encoded, and one that is kept."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("tables")
    draw = torch.Generator().manual_seed(0)
    tensors = {
        "emb.weight": torch.randn(N_ROWS, N_COLS, generator=draw).to(torch.bfloat16),
        "kept.weight": torch.randn(60, N_COLS, generator=draw).to(torch.bfloat16),
        "counts": torch.arange(6).reshape(2, 3),
    }
    save_file(tensors, folder / "m.safetensors")
    hhtld.convert(folder / "m.safetensors", folder / "m.hhtld", profile="bits:3", rules=[("kept*", "keep")], jobs=1)
    return folder / "m.hhtld"


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("dtype", [None, "float32", "float16"])
@pytest.mark.parametrize("name", NAMES)
def test_rows_are_those_of_an_embedding(path: Path, name: str, mode: dict[str, Any], dtype: str | None) -> None:
    dense = nn.Embedding.from_pretrained(load_state_dict(path, dtype=dtype)[name])
    with hhtld.open(path, **mode) as pack:
        module = HhtlEmbedding(pack, name, dtype=dtype)
        assert isinstance(module.weight, FileRows)
        assert module.weight.nbytes == 0
        for shape in ((), (1,), (0,), (7,), (2, 0, 3), (2, 3, 400)):
            for kind in (torch.int64, torch.int32):
                ids = torch.randint(0, len(dense.weight), shape).to(kind)
                assert torch.equal(module(ids), dense(ids))
                module.prefetch(ids)
                assert torch.equal(module(ids), dense(ids))
        assert torch.equal(module.weight.decoded(), dense.weight)
        x = torch.randn(3, N_COLS, dtype=torch.float32)
        torch.testing.assert_close(
            nn.functional.linear(x, module.weight).float(),
            nn.functional.linear(x, dense.weight.float()).to(module.weight.dtype).float(),
        )
        assert torch.equal(nn.functional.embedding(torch.tensor([3, 1]), module.weight), dense(torch.tensor([3, 1])))
        assert torch.equal(dequantize(module)(torch.tensor([3, 1])), dense(torch.tensor([3, 1])))


def test_errors_are_those_of_an_embedding(path: Path) -> None:
    pack = hhtld.open(path)
    module = HhtlEmbedding(pack, "emb.weight", padding_idx=-1)
    assert module.padding_idx == N_ROWS - 1
    for bad in ([0, N_ROWS], [-1, 5]):
        with pytest.raises(IndexError, match=r"0\.\.699"):
            module(torch.tensor(bad))
    for call in (module, module.prefetch):
        with pytest.raises(TypeError, match="int64 or int32"):
            call(torch.zeros(2))
    with pytest.raises(ValueError, match=r"'counts', I64 \[2, 3\], is not a matrix of weights"):
        HhtlEmbedding(pack, "counts")
    with pytest.raises(KeyError):
        HhtlEmbedding(pack, "nothing")
    with pytest.raises(ValueError, match="packed, and a state dict would be without it"):
        module.state_dict()
    assert "m.hhtld" in repr(module)
    pack.close()
    with pytest.raises(ClosedError):
        module(torch.tensor([1]))


def test_no_derivative_is_lost(path: Path) -> None:
    forward_ad = torch.autograd.forward_ad
    with hhtld.open(path) as pack:
        weight = HhtlEmbedding(pack, "emb.weight", resident=False, dtype="float32").weight
        x = torch.ones(2, weight.shape[1])
        with forward_ad.dual_level(), pytest.raises(RuntimeError, match=r"in a file pass no tangents on: make"):
            weight.product(forward_ad.make_dual(x, x))
        with pytest.raises(RuntimeError, match=r"pass no gradients on"):
            weight.product(x.clone().requires_grad_())
        bias = torch.ones(weight.shape[0], requires_grad=True)
        with pytest.raises(RuntimeError, match=r"pass no gradients on"):
            weight.product(x, bias)
        with torch.no_grad():
            assert torch.equal(weight.product(x, bias), weight.product(x) + 1)


def test_batches_of_vmap_are_refused_by_name(path: Path) -> None:
    with hhtld.open(path) as pack:
        module = HhtlEmbedding(pack, "emb.weight", resident=False)
        ids, x = torch.tensor([[1, 2], [3, 4]]), torch.ones(2, 3, N_COLS)
        with pytest.raises(RuntimeError, match=r"in a file take no batches of torch\.vmap: hold them in memory"):
            torch.vmap(module)(ids)
        with pytest.raises(RuntimeError, match=r"take no batches of torch\.vmap"):
            torch.vmap(module.weight.product)(x)
        one = torch.vmap(lambda y: y + module(ids[0]))(torch.zeros(3, 2, N_COLS))
        assert torch.equal(one[0], module(ids[0]).float())


def test_a_path_stays_open_and_resident_is_a_choice(path: Path) -> None:
    module = HhtlEmbedding.from_pack(path, "emb.weight")
    assert isinstance(module.weight, FileRows)
    held = HhtlEmbedding.from_pack(path, "emb.weight", resident=True)
    assert type(held.weight) is PackedWeight
    assert held.weight.nbytes > 0
    held.prefetch(torch.tensor([1]))
    assert torch.equal(module(torch.tensor([4, 4])), held(torch.tensor([4, 4])))
    memory = hhtld.encode({"w": np.ones((40, 16), np.float32)}, "bits:2")
    assert type(HhtlEmbedding(memory, "w").weight) is nn.Parameter  # it is in memory anyway


def test_models_leave_embeddings_in_the_file(path: Path) -> None:
    class Model(nn.Module):
        def __init__(self, *, tied: bool) -> None:
            super().__init__()
            self.emb = nn.Embedding(N_ROWS, N_COLS)
            if tied:
                self.head = nn.Linear(N_COLS, N_ROWS, bias=False)
                self.head.weight = self.emb.weight

    ids, dense = torch.tensor([5, 1, 5]), load_state_dict(path)["emb.weight"]
    for source in (path, hhtld.open(path, io="pread")):
        model = Model(tied=False).to(torch.bfloat16)
        replace_modules(model, source, strict=False, resident=False)
        assert isinstance(model.emb.weight, FileRows)
        assert torch.equal(model.emb(ids), dense[ids])
        counts = packed_counts(model)
        assert (counts.n_embeddings, counts.n_weights, counts.nbytes) == (1, 1, 0)
    model = Model(tied=True).to(torch.bfloat16)
    replace_modules(model, path, strict=False, resident=False)
    assert type(model.emb.weight) is PackedWeight  # the head computes with all of it
    assert model.head.weight is model.emb.weight


def test_a_module_is_sent_as_the_place_of_its_file(path: Path, tmp_path: Path) -> None:
    table = tmp_path / "copy.hhtld"
    table.write_bytes(path.read_bytes())
    module = HhtlEmbedding.from_pack(table, "emb.weight")
    sent = pickle.dumps(module)
    assert len(sent) < 8192 < table.stat().st_size
    for other in (pickle.loads(sent), copy.deepcopy(module)):
        assert torch.equal(other(torch.tensor([3, 2])), module(torch.tensor([3, 2])))
    os.utime(table, ns=(0, 0))
    with pytest.raises(HeaderError, match="is another file"):
        pickle.loads(sent)


class Looked(Dataset):  # type: ignore[type-arg]  # not generic when it runs
    """Rows by number."""

    def __init__(self, module: HhtlEmbedding) -> None:
        self.module = module

    def __len__(self) -> int:
        return 40

    def __getitem__(self, item: int) -> Any:
        return self.module(torch.tensor([item, 2 * item, 3]))


@pytest.mark.parametrize("context", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_of_a_loader_share_the_file(path: Path, context: str) -> None:
    if context == "fork" and not hasattr(os, "fork"):
        pytest.skip("no fork here")
    module = HhtlEmbedding.from_pack(path, "emb.weight")
    module(torch.arange(600))
    found = list(DataLoader(Looked(module), batch_size=10, num_workers=2, multiprocessing_context=context))
    assert torch.equal(torch.cat(found), torch.stack([module(torch.tensor([i, 2 * i, 3])) for i in range(40)]))


def test_compiled_models_look_up_too(path: Path) -> None:
    module = HhtlEmbedding.from_pack(path, "emb.weight")

    @torch.compile(backend="eager")
    def doubled(ids: Any) -> Any:
        return module(ids) * 2

    ids = torch.tensor([3, 1])
    assert torch.equal(doubled(ids), module(ids) * 2)
