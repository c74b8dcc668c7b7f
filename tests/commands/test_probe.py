"""The probe: every number against numpy, what it lists and what it refuses."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

import hhtld
from hhtld.codecs.lookup import HhtlDTensor
from hhtld.codecs.palette import HhtlF32Tensor
from hhtld.commands.exit_codes import BAD_INPUT, DONE, USAGE
from hhtld.commands.main import main
from hhtld.commands.probe import probe
from hhtld.commands.probe.ground_truth import exact_rows, perturbed_rows
from hhtld.commands.probe.report import (
    CascadeProbe,
    NotEncodable,
    ProbeReport,
    SearchResult,
    TensorProbe,
    print_probe,
)
from hhtld.commands.probe.search_methods import best_rows
from hhtld.errors import FormatError, NonFiniteError
from hhtld.slots.palette import RouteAction
from tests.conftest import ranked

NAME, COUNT, BEST = "embed.weight", 40, 5
Model = dict[str, NDArray[Any]]
Ranking = Callable[[NDArray[np.float32]], NDArray[np.int64]]


def model() -> Model:
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((600, 12)) @ rng.standard_normal((12, 96)) + rng.standard_normal((600, 96))
    return {
        NAME: (0.05 * rows).astype(np.float32),
        "up_proj.weight": rng.standard_normal((520, 64)).astype(np.float32),
        "small_embed.weight": rng.standard_normal((200, 40)).astype(np.float32),
        "norm": rng.standard_normal(17).astype(np.float32),
    }


def written(folder: Path, tensors: Model, profile: str, **options: Any) -> tuple[Path, Path]:
    from safetensors.numpy import save_file

    source, pack = folder / "m.safetensors", folder / f"{profile.replace(':', '_')}.hhtld"
    save_file(tensors, source)
    hhtld.convert(source, pack, profile=profile, **options)
    return pack, source


@pytest.fixture(scope="module", params=["gates", "bits:2+1", "lookup", "f32"])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return written(tmp_path_factory.mktemp("probe"), model(), request.param)


@pytest.fixture(scope="module")
def slot_t(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return written(tmp_path_factory.mktemp("probe"), model(), "bits:2")


def by_dots(rows: NDArray[np.float32]) -> Ranking:
    return lambda query: ranked((rows.astype(np.float64) * query.astype(np.float64)).sum(axis=1), BEST)


def searched(files: tuple[Path, Path], **options: Any) -> TensorProbe:
    (found,) = probe(*files, tensors=[NAME], **{"count": COUNT, **options}).tensors
    return found


def named(tensor: TensorProbe) -> dict[str, SearchResult]:
    return {result.name: result for result in tensor.results if isinstance(result, SearchResult)}


def printed(report: ProbeReport, width: int = 200) -> str:
    out = io.StringIO()
    print_probe(report, Console(file=out, width=width))
    return out.getvalue()


def held_or_made(path: Path, source: NDArray[Any], profile: str) -> Any:
    with hhtld.open(path) as pack:
        if pack.info(NAME).codec == {"lookup": "hhtl_d", "f32": "hhtl_f32"}[profile]:
            return pack.get_encoded(NAME)
    return hhtld.encode({NAME: source}, profile).get_encoded(NAME)


def expected(path: Path, source: NDArray[np.float32]) -> dict[str, Ranking]:
    """How numpy ranks the rows in every way, one query at a time."""
    lookup, f32 = held_or_made(path, source, "lookup"), held_or_made(path, source, "f32")
    assert isinstance(lookup, HhtlDTensor)
    assert isinstance(f32, HhtlF32Tensor)
    palette, dims = f32.palette_f32.astype(np.float64), lookup.cache.palette.entries.dims.astype(np.int64)
    lengths = np.sqrt((palette**2).sum(axis=1))

    def entry(query: NDArray[np.float32]) -> int:
        return int(np.abs(dims - hhtld.Base17.fold(query[None]).dims[0]).sum(axis=1).argmin())

    def fisher_z(query: NDArray[np.float32]) -> NDArray[np.int64]:
        assert lookup.fisher_z is not None
        own = entry(query)
        return ranked(np.array([lookup.fisher_z.lookup(own, int(twig)) for twig in lookup.twigs]), BEST)

    def cosines(query: NDArray[np.float32]) -> NDArray[np.int64]:
        own = int((palette @ query / lengths).argmax())
        table = (palette @ palette[own] / lengths / lengths[own]).astype(np.float32)
        return ranked(table[f32.twigs].astype(np.float64), BEST)

    def cascade(query: NDArray[np.float32]) -> NDArray[np.int64]:
        own = entry(query)
        skipped = np.array([lookup.cache.route(own, int(twig)) == RouteAction.SKIP for twig in lookup.twigs])
        scores = (lookup.reconstruct_rows().astype(np.float64) * query).sum(axis=1)
        return ranked(np.where(skipped, -np.inf, scores), BEST)

    ways = {
        "dense float32, numpy": by_dots(source),
        "Base17 palette + Fisher z": fisher_z,
        "lookup, Slots D and L": by_dots(lookup.reconstruct_rows()),
        "f32 palette + cosine table": cosines,
        "f32, twig and L": by_dots(f32.reconstruct_rows()),
        "lookup after cascade": cascade,
    }
    with hhtld.open(path) as pack:
        held = pack.get_encoded(NAME)
        if isinstance(held, HhtlDTensor | HhtlF32Tensor):
            return ways
        if held.shared.second is None:
            return ways | {"Slot T": by_dots(held.reconstruct_rows())}
        levels = {"Slot T, level 1": 1, "Slot T, both levels": 2}
        return ways | {name: by_dots(held.reconstruct_rows(levels=n)) for name, n in levels.items()}


def test_numbers_are_those_of_numpy(files: tuple[Path, Path]) -> None:
    source = model()[NAME]
    tensor = searched(files)
    queries = perturbed_rows(source, COUNT, 0)
    exact = [by_dots(source)(query) for query in queries]
    results, ways = named(tensor), expected(files[0], source)
    for name, way in ways.items():
        found = [way(query) for query in queries]
        assert results[name].top1 == np.mean([a[0] == b[0] for a, b in zip(found, exact, strict=True)]), name
        shares = [len(set(a) & set(b)) / 5 for a, b in zip(found, exact, strict=True)]
        assert results[name].top5 == pytest.approx(np.mean(shares)), name
        assert results[name].rows_rescored == 0
    rescored = {name for name in results if name.endswith("rescored")}
    assert set(results) == set(ways) | rescored
    assert len(rescored) == (2 if "Slot T, level 1" in results else 1)
    assert all(result.milliseconds > 0 for result in results.values())
    assert tensor.n_queries == COUNT
    assert tensor.results[0] is tensor.dense
    held = {name for name, result in results.items() if result.held}
    assert held > rescored
    assert len(held) == {"gates": 2, "bits_2+1": 4, "lookup": 4, "f32": 3}[files[0].stem]


def test_rescored_rows_are_those_the_scorer_reads(files: tuple[Path, Path]) -> None:
    source = model()[NAME]
    results = named(searched(files))
    queries = perturbed_rows(source, COUNT, 0)
    with hhtld.open(files[0]) as pack:
        for name in (name for name in results if name.endswith("rescored")):
            scorer = pack.scorer(NAME, 1 if "level 1" in name else 2)
            read = [int(scorer.topk(query, 5, rescore=source).n_rescored) for query in queries]
            assert results[name].rows_rescored == np.mean(read)
            plain = results[name.removesuffix(", rescored")]
            assert results[name].nbytes == plain.nbytes + round(np.mean(read) * 96 * 4)
            if name.startswith("Slot T"):
                assert results[name].top1 == results[name].top5 == 1


def test_bytes_are_those_of_the_sections(files: tuple[Path, Path]) -> None:
    results = named(searched(files))
    basis = 8 + 8 * (4 + 2 * 96)
    tensor = {
        "Base17 palette + Fisher z": 600 * 4 + 256 * 34 + 8 + 256,
        "lookup, Slots D and L": 600 * 12 + 256 * 34 + basis,
        "f32 palette + cosine table": 600 + 256 * 96 * 2 + 4 * 256,
        "f32, twig and L": 600 * 9 + 256 * 96 * 2 + basis,
        "dense float32, numpy": 600 * 96 * 4,
    }
    assert {name: results[name].nbytes for name in tensor} == tensor
    with hhtld.open(files[0]) as pack:
        record = pack.info(NAME)
        assert record.group is not None
        shared = pack.table.groups[record.group].sections
        whole = pack.nbytes(NAME) + sum(pack.sections.nbytes(index) for index in shared.values())
        if "Slot T" in results:
            assert results["Slot T"].nbytes == whole
        if "Slot T, both levels" in results:
            second = pack.sections.nbytes(record.sections["slot_t_2"]) + 2 * 600
            assert results["Slot T, both levels"].nbytes == whole
            codebook = pack.sections.nbytes(shared["codebook_2"])
            assert results["Slot T, level 1"].nbytes == whole - second - codebook


def test_routes(files: tuple[Path, Path]) -> None:
    source = model()[NAME]
    tensor = searched(files)
    lookup = held_or_made(files[0], source, "lookup")
    queries = perturbed_rows(source, COUNT, 0)
    entries = lookup.cache.nearest(hhtld.Base17.fold(queries))[0]
    routes = lookup.cache.routes[entries][:, lookup.twigs]
    cascade = tensor.cascade
    assert cascade is not None
    assert cascade.routes == {action.name: (routes == action).mean() for action in RouteAction}
    best = [by_dots(source)(query)[0] for query in queries]
    hidden = [routes[number, row] == RouteAction.SKIP for number, row in enumerate(best)]
    assert cascade.hidden == np.mean(hidden)
    skipped = (routes == RouteAction.SKIP).sum(axis=1).mean()
    assert cascade.alone.nbytes - cascade.after.nbytes == round(skipped * 12)
    assert cascade.saved == pytest.approx(skipped / 600 * cascade.alone.milliseconds)
    assert cascade.routing > 0
    assert ("does not help" in cascade.verdict) == (not cascade.helps)


@pytest.mark.parametrize(
    ("after", "routing", "skip", "top1", "helps"),
    [
        (0.5, 0.1, 0.6, 0.9, True),
        (0.5, 0.1, 0.6, 0.8, False),  # it loses best rows
        (1.1, 0.1, 0.6, 0.9, False),  # it takes longer
        (0.9, 0.1, 0.0, 0.9, False),  # it skips nothing: the clock wavered
    ],
)
def test_a_cascade_helps_only_where_it_saves_and_loses_nothing(
    after: float, routing: float, skip: float, top1: float, helps: bool
) -> None:
    alone = SearchResult("alone", False, 0.9, 0.9, 0.0, 1.0, 1)
    routes = {"SKIP": skip, "ATTEND": 1 - skip, "COMPOSE": 0.0, "ESCALATE": 0.0}
    cascade = CascadeProbe(routes, 0.0, routing, SearchResult("after", False, top1, 0.9, 0.0, after, 1), alone)
    assert cascade.helps == helps
    assert cascade.verdict.startswith("The cascade helps" if helps else "The cascade does not help")


@pytest.mark.parametrize(
    ("top1", "verdict"), [(1.0, "viable"), (0.9, "viable"), (0.89, "partial"), (0.7, "partial"), (0, "not competitive")]
)
def test_verdicts(top1: float, verdict: str) -> None:
    assert SearchResult("w", False, top1, 1.0, 0.0, 1.0, 1).verdict == verdict


def test_json_and_text_say_the_same(files: tuple[Path, Path]) -> None:
    report = probe(*files, count=COUNT)
    facts, text = json.loads(json.dumps(report.to_json(), allow_nan=False)), printed(report)
    assert facts["schema"] == "hhtld.probe/1"
    assert (facts["path"], facts["source"], facts["seed"]) == (str(files[0]), str(files[1]), 0)
    lines = text.splitlines()
    for tensor in facts["tensors"]:
        start = next(n for n, line in enumerate(lines) if line.startswith(tensor["name"]))
        assert f"{tensor['n_queries']} queries: {facts['queries']}" in lines[start]
        for line, scorer in zip(lines[start + 2 :], tensor["scorers"], strict=False):
            assert line.startswith(scorer["name"])
            if scorer["verdict"] == "not encodable":
                assert line.split()[-2:] == ["not", "encodable"]
                assert scorer["reason"] in text
                continue
            rest = line.removeprefix(scorer["name"]).removeprefix(" *")
            shown = [float(share) for share in re.findall(r"([\d.]+) %", rest)]
            assert shown == [math.floor(scorer[key] * 1000 + 1e-9) / 10 for key in ("top1", "top5")]
            assert scorer["verdict"] in rest or scorer["name"].startswith("dense")
            assert (" *" in line) == scorer["held"]
            if scorer["rows_rescored"]:
                assert f" {scorer['rows_rescored']:,.1f} " in rest
        flowing = " ".join(text.split())
        assert tensor["summary"] in flowing
        if tensor["cascade"] is not None:
            assert tensor["cascade"]["verdict"] in flowing
    assert len(facts["tensors"]) == text.count("dense float32, numpy") == len(report.tensors)


def test_default_tensors_are_those_looked_up_by_index(slot_t: tuple[Path, Path]) -> None:
    seen: list[tuple[str, str, int]] = []
    report = probe(*slot_t, count=3, progress=lambda *call: seen.append(call))
    assert [tensor.name for tensor in report.tensors] == [NAME, "small_embed.weight"]
    assert seen == [("probe", NAME, 600 * 96 * 4), ("probe", "small_embed.weight", 32_000)]


def test_a_tensor_without_slot_l_and_one_too_small(slot_t: tuple[Path, Path]) -> None:
    big, small = probe(*slot_t, tensors=["up_*", "small*"], count=30).tensors[::-1]
    assert {"lookup, Slot D", "f32, twig", "Slot T"} <= set(named(big))
    assert big.cascade is not None
    unknown = [result for result in small.results if isinstance(result, NotEncodable)]
    assert [result.name for result in unknown] == [
        "Base17 palette + Fisher z",
        "lookup",
        "f32 palette + cosine table",
        "f32",
        "lookup after cascade",
    ]
    assert all("at least 512 rows" in result.reason for result in unknown)
    assert (small.n_queries, small.cascade) == (30, None)
    assert set(named(small)) == {"dense float32, numpy", "Slot T", "Slot T, rescored"}
    assert "Not encodable: the lookup grades take" in printed(ProbeReport("a", "b", "c", 0, [small]))


def test_tied_tensors_are_searched_once(tmp_path: Path) -> None:
    tensors = model()
    tensors["lm_head.weight"] = tensors[NAME]
    report = probe(*written(tmp_path, tensors, "bits:2"), tensors=[NAME, "lm_head*"], count=3)
    assert [tensor.name for tensor in report.tensors] == [NAME]


def test_bfloat16_rows_count_two_bytes(tmp_path: Path) -> None:
    tensors: Model = {NAME: model()[NAME].astype(ml_dtypes.bfloat16)}
    found = named(searched(written(tmp_path, tensors, "bits:2")))
    read = found["Slot T, rescored"]
    assert read.nbytes == found["Slot T"].nbytes + round(read.rows_rescored * 96 * 2)
    assert found["dense float32, numpy"].nbytes == 600 * 96 * 4


def test_the_same_call_finds_the_same(slot_t: tuple[Path, Path]) -> None:
    def numbers(**options: Any) -> list[tuple[Any, ...]]:
        return [
            (r.name, r.top1, r.top5, r.rows_rescored, r.nbytes) for r in named(searched(slot_t, **options)).values()
        ]

    assert numbers() == numbers()
    assert numbers(seed=1) != numbers()


def test_queries_of_a_file_or_an_array(slot_t: tuple[Path, Path], tmp_path: Path) -> None:
    queries = np.random.default_rng(3).standard_normal((50, 96))
    np.save(tmp_path / "q.npy", queries)
    from_file = probe(*slot_t, tensors=[NAME], queries=tmp_path / "q.npy", count=8)
    assert from_file.queries == str(tmp_path / "q.npy")
    picked = queries[np.linspace(0, 49, 8).round().astype(int)]
    from_array = probe(*slot_t, tensors=[NAME], queries=picked)
    assert [(r.name, r.top1, r.top5) for r in named(from_file.tensors[0]).values()] == [
        (r.name, r.top1, r.top5) for r in named(from_array.tensors[0]).values()
    ]
    assert from_file.tensors[0].n_queries == 8
    assert probe(*slot_t, tensors=[NAME], queries=picked[:1]).tensors[0].n_queries == 1


def test_exact_search_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hhtld.sources.rows.BLOCK_NBYTES", 4096)  # so that there is more than one block
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((300, 33)).astype(np.float32)
    rows[[7, 150, 299]] = 3 * rows[20]  # equal rows: the lowest wins, wherever a product puts them
    rows[40:60] = 0
    queries = np.concatenate([rng.standard_normal((9, 33)).astype(np.float32), rows[20:21], np.zeros((1, 33), "f4")])
    for k in (1, 5, 300):
        found = exact_rows(rows, queries, k)
        for query, own in zip(queries, found, strict=True):
            assert own.tolist() == ranked((rows.astype(np.float64) * query).sum(axis=1), k).tolist()
    assert exact_rows(rows, queries, 3)[9].tolist() == [7, 150, 299]
    assert exact_rows(rows, queries, 3)[10].tolist() == [0, 1, 2]


@pytest.mark.parametrize("k", [1, 4, 10])
def test_best_rows(k: int) -> None:
    scores = np.array([1, 5, 5, 2, 5, 0, 1, 9, 0, 5], np.float32)
    assert best_rows(scores, k).tolist() == ranked(scores.astype(np.float64), k).tolist()


def test_perturbed_rows_are_a_twentieth_away() -> None:
    rows = model()[NAME]
    queries = perturbed_rows(rows, 10, 0)
    own = rows[np.linspace(0, 599, 10).round().astype(int)]
    away = np.linalg.norm(queries - own, axis=1) / np.linalg.norm(own, axis=1)
    np.testing.assert_allclose(away, 0.05, rtol=1e-4)
    assert perturbed_rows(rows[:3], 256, 0).shape == (3, 96)


# ---- what is refused ----


def test_globs_that_name_nothing_to_search(slot_t: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no tensor matches 'embd.weight'; did you mean 'embed.weight'"):
        probe(*slot_t, tensors=["embd.weight"])
    with pytest.raises(ValueError, match="'norm' is kept as it came"):
        probe(*slot_t, tensors=["norm"], count=3)
    with pytest.raises(ValueError, match="count must be at least 1"):
        probe(*slot_t, count=0)
    files = written(tmp_path, {"up_proj.weight": model()["up_proj.weight"]}, "bits:2")
    with pytest.raises(ValueError, match="no encoded embedding or head"):
        probe(*files)


def test_queries_that_do_not_fit(slot_t: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "q.npy"

    def refused(kind: type[Exception], match: str, **options: Any) -> None:
        with pytest.raises(kind, match=match):
            probe(*slot_t, **{"tensors": [NAME], "queries": path, **options})

    np.save(path, np.zeros((4, 95)))
    refused(FormatError, r"q.npy: queries have 95 columns, tensor 'embed.weight' has 96")
    np.save(path, np.zeros((4, 96)))
    refused(FormatError, r"queries have 96 columns, tensor 'small_embed.weight' has 40", tensors=[])
    for bad in (np.zeros(96), np.zeros((4, 96), int), np.zeros((0, 96)), np.zeros((2, 2, 96)), np.zeros((2, 0))):
        np.save(path, bad)
        refused(FormatError, "must be floats of shape")
        with pytest.raises(ValueError, match="must be floats of shape"):
            probe(*slot_t, tensors=[NAME], queries=bad)
    np.save(path, np.array([[0.0] * 96, [0.0] * 95 + [np.nan]]))
    refused(NonFiniteError, "query 1 holds nan at column 95")
    np.save(path, np.full((1, 96), 1e300))
    refused(NonFiniteError, r"query 0 holds 1e\+300")
    np.save(path, np.array([{}], object), allow_pickle=True)
    refused(FormatError, "not an .npy file")
    path.write_bytes(b"")
    refused(FormatError, "not an .npy file")
    path.write_bytes(b"\x00junk")
    refused(FormatError, "not an .npy file")
    np.savez(tmp_path / "q.npz", a=np.zeros((4, 96)))
    refused(FormatError, "an archive of arrays", queries=tmp_path / "q.npz")
    refused(FileNotFoundError, "none.npy", queries=tmp_path / "none.npy")


def test_a_source_that_the_file_was_not_made_from(slot_t: tuple[Path, Path], tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    def against(tensors: Model, match: str) -> None:
        save_file(tensors, tmp_path / "other.safetensors")
        with pytest.raises(FormatError, match=match):
            probe(slot_t[0], tmp_path / "other.safetensors")

    good = model()
    against({name: good[name] for name in good if name != NAME}, "tensor 'embed.weight' is not in the source")
    against({**good, NAME: good[NAME][:599]}, r"is F32 \(600, 96\), the source F32 \(599, 96\)")
    against({**good, NAME: good[NAME].astype(np.float16)}, r"the source F16 \(600, 96\)")
    against({**good, NAME: good[NAME][::-1].copy()}, r"row \d+ of tensor 'embed.weight' has cosine")
    bad = good[NAME].copy()
    bad[3, 4] = np.inf
    save_file({**good, NAME: bad}, tmp_path / "other.safetensors")
    with pytest.raises(NonFiniteError, match="row 3, column 4"):
        probe(slot_t[0], tmp_path / "other.safetensors")


def test_the_command(
    slot_t: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    pack, source = map(str, slot_t)
    np.save(tmp_path / "q.npy", np.ones((4, 96)))
    assert main(["probe", pack, source, "--tensor", NAME, "--queries", str(tmp_path / "q.npy"), "--json"]) == DONE
    facts = json.loads(capsys.readouterr().out)
    assert [(tensor["name"], tensor["n_queries"]) for tensor in facts["tensors"]] == [(NAME, 4)]
    assert main(["probe", pack, source, "--count", "3"]) == DONE
    text = capsys.readouterr().out
    assert "embed.weight, 600 x 96; 3 queries: rows of SRC + 0.05 noise" in text
    assert "Slot T, rescored *" in text
    assert main(["probe", pack, source, "--tensor", "nope"]) == USAGE
    assert "no tensor matches 'nope'" in capsys.readouterr().err
    assert main(["probe", pack, source, "--tensor", "small*", "--queries", str(tmp_path / "q.npy")]) == BAD_INPUT
    assert "queries have 96 columns, tensor 'small_embed.weight' has 40" in capsys.readouterr().err
    assert main(["probe", source, source]) == BAD_INPUT
    assert main(["probe", pack, str(tmp_path / "none")]) == BAD_INPUT


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_narrow_terminal_leaves_columns_out(slot_t: tuple[Path, Path], width: int) -> None:
    report = probe(*slot_t, tensors=[NAME], count=3)
    lines = printed(report, width).splitlines()
    assert max(map(len, lines)) <= width
    assert any("top-1" in line for line in lines)
