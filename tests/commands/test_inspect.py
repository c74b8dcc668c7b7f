"""`hhtld inspect`: its numbers against numpy on the decoded slots, its text on terminals of every sort."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from rich.cells import cell_len
from rich.console import Console

import hhtld
from hhtld.codecs.lookup import HhtlDTensor
from hhtld.codecs.palette import HhtlF32Tensor
from hhtld.codecs.trellis import HhtlTTensor
from hhtld.commands.inspect import describe, print_description
from hhtld.commands.inspect.statistics import slot_statistics, value_statistics, weight_blocks
from hhtld.commands.main import main
from hhtld.display.charts import column_chart, merged, sparkline
from hhtld.display.numbers import reached, shortened
from hhtld.display.terminal import safe
from hhtld.dtypes import bf16_values, dtype_named
from hhtld.formats import open_source
from hhtld.slots.slot_d_v import residual
from hhtld.slots.slot_t import gain_values

PROFILES = ("gates", "lookup", "f32", "bits:2+1")
EMBED, TIED, UP = "embed.weight", "lm_head.weight", "layers.0.up_proj.weight"

Model = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def model() -> Model:
    rng = np.random.default_rng(11)
    centres = 4 * rng.standard_normal((6, 64))
    embed = (centres[rng.integers(0, 6, 700)] + rng.standard_normal((700, 64))).astype(np.float32)
    embed[5] = 0
    norm = rng.standard_normal(64).astype(np.float32)
    norm[[2, 3, 4]] = [np.inf, np.nan, 0]
    return {
        EMBED: embed,
        UP: rng.standard_normal((600, 56)).astype(np.float32),
        TIED: embed.copy(),
        "norm.weight": norm,
        "half.weight": rng.standard_normal(30).astype(ml_dtypes.bfloat16),
        "ids": np.arange(5),
        "scalar": np.array(2.5, np.float32),
        "empty.weight": np.zeros((0, 8), np.float32),
    }


@pytest.fixture(scope="module")
def files(model: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("packs")
    paths = {profile: folder / f"{number}.hhtld" for number, profile in enumerate(PROFILES)}
    for profile, path in paths.items():
        hhtld.save_file(model, path, {"format": "pt", "note": "x" * 3000}, profile)
    return paths


def described(path: Path, name: str | None = None) -> dict[str, Any]:
    with open_source(path) as source:
        return describe(source, path, name)


def text_of(path: Path, name: str | None = None, width: int = 160) -> str:
    out = Console(file=io.StringIO(), width=width)
    print_description(described(path, name), out)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


def run(*arguments: object, **env: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "hhtld.formats", "inspect", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, env={**os.environ, **env}, check=False)


def facts_of(*arguments: object) -> dict[str, Any]:
    """Return what `hhtld inspect --json` prints, in this process."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["inspect", *map(str, arguments), "--json"]) == 0
    facts: dict[str, Any] = json.loads(printed.getvalue())
    return facts


# ---- numbers ----


def same_distribution(found: dict[str, Any], values: NDArray[np.float32]) -> None:
    ranked = np.sort(values.astype(np.float64))
    picks = [ranked[(len(ranked) - 1) * i // 20] for i in range(21)]
    assert found["n"] == len(ranked)
    assert found["n_nonfinite"] == 0
    assert found["quantiles"] == picks
    assert (found["min"], found["p5"], found["median"], found["max"]) == (picks[0], picks[1], picks[10], picks[20])
    counts, edges = np.histogram(ranked, 64)
    assert found["histogram"] == {"edges": edges.tolist(), "counts": counts.tolist()}


def same_usage(facts: dict[str, Any], twigs: NDArray[np.uint8], k: int) -> None:
    counts = np.bincount(twigs, minlength=k)
    assert facts["twig_counts"] == counts.tolist()
    used = counts[counts > 0]
    shares = used / used.sum()
    usage = facts["twigs"]
    assert (usage["entries"], usage["used"], usage["unused"]) == (k, len(used), k - len(used))
    assert usage["entropy_bits"] == pytest.approx(-(shares * np.log2(shares)).sum())
    assert usage["largest"] == {"entry": int(counts.argmax()), "n_rows": int(counts.max())}
    assert usage["smallest"]["n_rows"] == used.min()
    assert counts[usage["smallest"]["entry"]] == used.min()


def same_lanes(facts: dict[str, Any], slot_l: NDArray[np.int8], scale: float) -> None:
    assert facts["slot_l"]["scale"] == scale
    for found, codes in zip(facts["slot_l"]["lanes"], slot_l.T.astype(np.float64), strict=True):
        assert (found["min"], found["max"]) == (codes.min(), codes.max())
        assert found["rms"] == pytest.approx(math.sqrt((codes**2).mean()))
        assert found["rms_scaled"] == pytest.approx(math.sqrt((codes**2).mean()) * scale)
        assert found["histogram"] == np.histogram(codes, 32, (-128, 128))[0].tolist()


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", [EMBED, UP])
def test_slots_hold_what_numpy_counts(files: dict[str, Path], profile: str, name: str) -> None:
    facts = described(files[profile], name)
    slots = facts["tensors"][0]["slots"]
    with hhtld.open(files[profile]) as pack:
        tensor = pack.get_encoded(name)
        basis = tensor.shared.basis if isinstance(tensor, HhtlTTensor) else tensor.svd_basis
        if isinstance(tensor, HhtlTTensor):
            same_distribution(slots["slot_v"], gain_values(tensor.slot_v))
            assert ("slot_v_2" in slots) == (profile == "bits:2+1")
            if tensor.slot_v_2 is not None:
                same_distribution(slots["slot_v_2"], gain_values(tensor.slot_v_2))
            assert slots["slot_t"]["row_nbytes"] == tensor.slot_t.shape[1]
            assert slots["slot_t"]["bits"] == tensor.shared.trellis.rate / 16
            twigs, k = tensor.twigs, len(tensor.shared.centroids)
        elif isinstance(tensor, HhtlDTensor):
            same_distribution(slots["slot_v"], residual(tensor.entries["slot_v"]))
            entries = [tensor.entry(row) for row in range(len(tensor.entries))]
            assert slots["basins"] == {"QK": 0, "V": 0, "GATE": 0, "FFN": len(entries)}
            families = np.bincount([entry.hip_family for entry in entries], minlength=16)
            assert slots["hip_families"] == families.tolist()
            positive = sum(entry.polarity for entry in entries)
            assert slots["polarity"] == {"positive": positive, "negative": len(entries) - positive}
            twigs, k = tensor.twigs, tensor.cache.k
        else:
            assert isinstance(tensor, HhtlF32Tensor)
            twigs, k = tensor.twigs, len(tensor.palette_bits)
        assert ("twigs" in slots) == (twigs is not None)
        if twigs is not None:
            same_usage(slots, twigs, k)
        assert ("slot_l" in slots) == (tensor.slot_l is not None)
        if tensor.slot_l is not None and tensor.slot_l_scale is not None and basis is not None:
            same_lanes(slots, tensor.slot_l, tensor.slot_l_scale)
            assert slots["singular_values"] == basis.singular_values.tolist()
            assert sum(slots["energy"][:3]) == pytest.approx(basis.energy_fraction(3))
        for stored in facts["tensors"][0]["stored"]:
            shape = slots["shapes"][stored["kind"]]
            assert stored["nbytes"] % max(1, math.prod(shape)) == 0 or stored["kind"] in ("basis", "fisher_z")


def test_column_scales_are_shown(model: Model, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({UP: model[UP]}, tmp_path / "m.safetensors")
    scale = np.linspace(0.5, 2, 56).astype(np.float32)
    hhtld.convert(tmp_path / "m.safetensors", tmp_path / "m.hhtld", column_scales={UP: scale}, profile="gates")
    slots = described(tmp_path / "m.hhtld", UP)["tensors"][0]["slots"]
    with hhtld.open(tmp_path / "m.hhtld") as pack:
        tensor = pack.get_encoded(UP)
        assert isinstance(tensor, HhtlTTensor)
        assert tensor.column_scale is not None
        same_distribution(slots["column_scale"], bf16_values(tensor.column_scale))
    assert "Column scale" in text_of(tmp_path / "m.hhtld", UP)


def test_magnitudes_that_are_not_finite_are_counted(files: dict[str, Path]) -> None:
    with hhtld.open(files["lookup"]) as pack:
        tensor = pack.get_encoded(UP)
    assert isinstance(tensor, HhtlDTensor)
    tensor.entries = tensor.entries.copy()
    tensor.entries["slot_v"][:3] = [0x7F80, 0xFF80, 0x7FC1]
    found = slot_statistics(tensor)["slot_v"]
    assert (found["n"], found["n_nonfinite"]) == (597, 3)
    json.dumps(found, allow_nan=False)


def test_slots_without_rows_and_all_alike(files: dict[str, Path]) -> None:
    with hhtld.open(files["lookup"]) as pack:
        tensor = pack.get_encoded(EMBED)
    assert isinstance(tensor, HhtlDTensor)
    assert tensor.slot_l is not None
    for n_rows in (0, 4):
        few = HhtlDTensor(
            tensor.role,
            tensor.cache,
            tensor.entries[[7] * n_rows],
            (n_rows, 64),
            slot_l=tensor.slot_l[[7] * n_rows],
            slot_l_scale=tensor.slot_l_scale,
            svd_basis=tensor.svd_basis,
        )
        found = slot_statistics(few)
        json.dumps(found, allow_nan=False)
        assert found["slot_v"]["n"] == found["twigs"]["used"] * n_rows == n_rows
        assert found["slot_v"]["histogram"]["counts"] == [n_rows] * (n_rows > 0)
        assert found["twigs"]["entropy_bits"] == 0
        assert (found["twigs"]["largest"] is None) == (n_rows == 0)
        assert (found["slot_l"]["lanes"][0]["rms"] is None) == (n_rows == 0)


def test_values_are_merged_block_by_block(rng: np.random.Generator) -> None:
    values = rng.standard_normal(700_001) + 1e6
    values[[5, 600_000]] = 0
    raw = [values[:600_000].view(np.uint8), values[600_000:].view(np.uint8)]
    found = value_statistics(weight_blocks(raw, dtype_named("F64", "here")))
    assert (found["n"], found["n_zero"], found["n_nonfinite"]) == (700_001, 2, 0)
    assert (found["min"], found["max"]) == (0, values.max())
    assert found["mean"] == pytest.approx(values.mean(), rel=1e-12)
    assert found["std"] == pytest.approx(values.std(), rel=1e-9)
    huge = np.array([1e300, -1e300, np.inf, np.nan]).view(np.uint8)
    found = value_statistics(weight_blocks([huge], dtype_named("F64", "here")))
    assert (found["n"], found["n_nonfinite"], found["std"]) == (2, 2, None)


def test_kept_tied_empty_and_scalar_tensors(model: Model, files: dict[str, Path]) -> None:
    path = files["lookup"]
    for name in ("norm.weight", "half.weight", "scalar"):
        found = described(path, name)["tensors"][0]["values"]
        values = model[name].astype(np.float64).reshape(-1)
        held = values[np.isfinite(values)]
        assert (found["n"], found["n_nonfinite"]) == (held.size, values.size - held.size)
        assert (found["min"], found["max"]) == (held.min(), held.max())
        assert (found["mean"], found["std"]) == (pytest.approx(held.mean()), pytest.approx(held.std()))
    empty = described(path, "empty.weight")["tensors"][0]
    assert empty["values"] == {
        "n": 0, "n_zero": 0, "n_nonfinite": 0, "min": None, "max": None, "mean": None, "std": None
    }  # fmt: skip
    assert "none" in text_of(path, "empty.weight")
    assert "values" not in described(path, "ids")["tensors"][0]
    assert "shape  scalar, F32" in text_of(path, "scalar")
    found = described(path, TIED)["tensors"][0]
    assert (found["alias_of"], found["nbytes"]) == (EMBED, 0)
    assert found["target"] == described(path, EMBED)["tensors"][0]
    shown = text_of(path, TIED)
    assert f"tied: shares every byte of {EMBED}" in shown
    assert "Twigs" in shown


# ---- the whole file ----


@pytest.mark.parametrize("profile", PROFILES)
def test_totals_and_regimes(model: Model, files: dict[str, Path], profile: str) -> None:
    path = files[profile]
    facts = described(path)
    totals = facts["totals"]
    with hhtld.open(path) as pack:
        own = [pack.info(n) for n in pack if pack.table.tensors[n].alias_of is None]
    encoded = [record for record in own if record.codec != "keep"]
    assert (totals["encoded"], totals["kept"], totals["tied"]) == (len(encoded), len(own) - len(encoded), 1)
    elements = sum(model[record.name].size for record in own)
    assert totals["bits_per_weight"] == pytest.approx(8 * path.stat().st_size / elements, abs=1e-4)
    sections = sum(section["nbytes"] for section in facts["sections"])
    assert totals["nbytes"] == path.stat().st_size == totals["table_nbytes"] + sections
    assert sections == totals["encoded_nbytes"] + totals["shared_nbytes"] + totals["kept_nbytes"]
    assert sum(kind["nbytes"] for kind in facts["section_kinds"].values()) == sections
    assert {group["n_tensors"] for group in facts["groups"]} == {1}
    for regime in ("argmax", "index"):
        members = [t for t in facts["tensors"] if t.get("regime") == regime and "alias_of" not in t]
        found = facts["regimes"][regime]
        assert found["n_rows"] == sum(t["gates"]["n_rows"] for t in members)
        worst = min(members, key=lambda t: t["gates"]["quantiles"][0])
        assert found["worst"] == {"tensor": worst["name"], "row": worst["gates"]["worst_row"]}
        assert found["median"]["min"] == min(t["gates"]["quantiles"][10] for t in members)
        assert found["p5"]["max"] == max(t["gates"]["quantiles"][1] for t in members)


@pytest.mark.parametrize("profile", PROFILES)
def test_json_holds_what_the_text_prints(files: dict[str, Path], profile: str) -> None:
    path = files[profile]
    whole = facts_of(path)
    assert whole["schema"] == "hhtld.inspect/1"
    assert whole == json.loads(json.dumps(described(path), allow_nan=False))
    text = text_of(path)
    for words in (
        f"profile {profile}",
        f"{reached(whole['totals']['ratio'], 2)} times the file",
        f"{whole['totals']['bits_per_weight']:.3f} for the whole file",
        "note: xxx",
        "(3,000 characters)",
        "Tied: 1",
        *(reached(regime["min"]) for regime in whole["regimes"].values()),
        *(f"{group['bits_per_weight']:.3f}" for group in whole["groups"]),
    ):
        assert words in text
    lines = text.splitlines()
    names = [tensor["name"] for tensor in whole["tensors"]]
    first = {name: next(i for i, line in enumerate(lines) if line.startswith(name)) for name in names}
    encoded = [t["name"] for t in whole["tensors"] if t.get("codec", "keep") != "keep"]
    kept = [t["name"] for t in whole["tensors"] if t.get("codec") == "keep"]
    assert max(first[name] for name in encoded) < min(first[name] for name in kept)
    for tensor in whole["tensors"]:
        if "gates" in tensor:
            assert reached(tensor["gates"]["quantiles"][10]) in lines[first[tensor["name"]]]


@pytest.mark.parametrize("profile", PROFILES)
def test_the_card_prints_what_json_holds(files: dict[str, Path], profile: str) -> None:
    for name in (EMBED, UP):
        card = facts_of(files[profile], "--tensor", name)
        assert card["tensor"] == name
        tensor, text = card["tensors"][0], text_of(files[profile], name)
        quantiles, slots = tensor["gates"]["quantiles"], tensor["slots"]
        line = f"{reached(quantiles[0])} {sparkline(quantiles)} {reached(quantiles[20])}"
        assert line in text
        assert f"(row {tensor['gates']['worst_row']})" in text
        for section in tensor["stored"]:
            assert f"{section['offset']:,}" in text
            assert section["crc32"] in text
        if "twigs" in slots:
            assert f"{slots['twigs']['used']} used, {slots['twigs']['unused']} unused" in text
            assert f"entropy {slots['twigs']['entropy_bits']:.2f} bits" in text
        if "slot_v" in slots:
            assert f"median {slots['slot_v']['median']:.4g}" in text
        if "slot_l" in slots:
            assert f"scale {slots['slot_l']['scale']:.4g}" in text
            assert all(f"{value:.4g}" in text for value in slots["singular_values"])
        if "hip_families" in slots:
            assert f"{slots['polarity']['positive']:,} rows positive" in text


def test_plain_sources(model: Model, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "m.safetensors"
    save_file(model, path, {"format": "pt"})
    facts = facts_of(path)
    assert facts["metadata"] == {"format": "pt"}
    assert facts["totals"]["nbytes"] == sum(array.nbytes for array in model.values())
    assert facts["dtypes"]["BF16"] == {"count": 1, "nbytes": 60}
    assert {t["name"]: t["shape"] for t in facts["tensors"]} == {n: list(a.shape) for n, a in model.items()}
    text = text_of(path)
    assert "F32 6 tensors" in text
    assert "format: pt" in text
    found = described(path, UP)["tensors"][0]["values"]
    assert found["std"] == pytest.approx(model[UP].astype(np.float64).std())
    assert "Values" in text_of(path, UP)
    assert "Values" not in text_of(path, "ids")


# ---- terminals ----


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("width", [1, 60, 80, 160])
def test_every_line_fits_its_terminal(files: dict[str, Path], profile: str, width: int) -> None:
    whole = text_of(files[profile], width=width)
    cards = [text_of(files[profile], name, width) for name in (EMBED, UP, "norm.weight")]
    if width == 1:
        return  # nothing can be read there, but nothing fails
    assert all(cell_len(line) <= width for text in (whole, *cards) for line in text.splitlines())
    if width >= 80:
        assert all(tensor["name"] in whole for tensor in described(files[profile])["tensors"])
    assert ("not shown at this width" in whole) == (width < 160)


def test_a_narrow_terminal_keeps_the_quality_and_says_what_is_missing(files: dict[str, Path]) -> None:
    done = run(files["gates"], COLUMNS="60")
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode()
    assert all(cell_len(line) <= 60 for line in text.splitlines())
    median = next(t["gates"]["quantiles"][10] for t in described(files["gates"])["tensors"] if t["name"] == UP)
    assert reached(median) in next(line for line in text.splitlines() if line.startswith(UP))
    assert "not shown at this width" in text


ASCII = [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]


@pytest.mark.parametrize("env", ASCII, ids=["encoding", "locale"])
def test_terminals_that_do_not_speak_unicode(tmp_path: Path, model: Model, env: dict[str, str]) -> None:
    name = "mod\u00e8le.embed.\u91cd.weight"
    hhtld.save_file({name: model[EMBED], "w": model[EMBED]}, tmp_path / "m.hhtld", {"\u00e9": "\u2581"}, "lookup")
    card = ""
    for arguments in ((), ("--tensor", "w", "--json"), ("--tensor", "w")):
        done = run(tmp_path / "m.hhtld", *arguments, **env)
        assert done.returncode == 0, done.stderr
        assert done.stdout.isascii()
        assert b"\\xe8le.embed.\\u91cd" in done.stdout or "--json" in arguments
        card = done.stdout.decode()
    assert re.search(r"^  \d\.\d{4} [ .:=+*#@-]{21} \d\.\d{4}$", card, re.MULTILINE)


def test_no_colour_where_none_is_wanted(files: dict[str, Path]) -> None:
    for env in ({}, {"NO_COLOR": "1", "FORCE_COLOR": "1", "TERM": "xterm-256color"}):
        assert b"\x1b[3" not in run(files["lookup"], **env).stdout


def test_names_and_metadata_cannot_steer_the_terminal(tmp_path: Path, model: Model) -> None:
    name = "\x1b[2J\n[red]embed"
    many = {f"key{i}": "v" for i in range(40)}
    hhtld.save_file({name: model[EMBED]}, tmp_path / "m.hhtld", {"\x1b[1m": "\x07[bold]", **many}, "lookup")
    for text in (text_of(tmp_path / "m.hhtld"), text_of(tmp_path / "m.hhtld", name)):
        assert r"\x1b[2J\n[red]embed" in text
        assert not set(text) & set("\x1b\x07")
    assert r"\x1b[1m: \x07[bold]" in text_of(tmp_path / "m.hhtld")
    assert "and 29 more" in text_of(tmp_path / "m.hhtld")


def test_unknown_tensors_and_damage(files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(files["gates"]), "--tensor", "norm.weights"]) == 2
    assert "did you mean 'norm.weight'" in capsys.readouterr().err
    with open_source(files["gates"]) as source, pytest.raises(KeyError, match=r"norm\.weight"):
        describe(source, files["gates"], "norm.weights")
    stored = described(files["gates"], UP)["tensors"][0]["stored"]
    data = bytearray(files["gates"].read_bytes())
    data[stored[0]["offset"]] ^= 1
    (tmp_path / "bad.hhtld").write_bytes(data)
    assert main(["inspect", str(tmp_path / "bad.hhtld")]) == 0, "the listing reads no section"
    assert main(["inspect", str(tmp_path / "bad.hhtld"), "--tensor", UP]) == 3
    assert "checksum" in capsys.readouterr().err


def test_rows_in_json_are_finite_numbers_or_null(files: dict[str, Path], model: Model, tmp_path: Path) -> None:
    rows = np.array([[1, np.inf], [np.nan, -2]], np.float32)
    hhtld.save_file(
        {"w": rows, "c": (rows + 1j).astype(np.complex64), "i": rows > 0}, tmp_path / "m.hhtld", profile="lookup"
    )

    def found(name: str) -> Any:
        done = run(tmp_path / "m.hhtld", "--tensor", name, "--rows", "0:2", "--json")
        facts = json.loads(done.stdout, parse_constant=pytest.fail)
        assert facts["schema"] == "hhtld.rows/1"
        return facts["rows"]

    assert found("w") == {"0": [1, None], "1": [None, -2]}
    assert found("c")["0"] == [[1, 1], [None, 1]]
    assert found("i") == {"0": [True, True], "1": [False, False]}


# ---- drawing ----


def test_sparklines() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], ascii_only=True) == ".:-=+*#@"
    assert sparkline([-3.5] * 3) == "▄▄▄"
    assert sparkline([]) == ""


def test_column_charts() -> None:
    assert column_chart([0, 1, 4, 8], height=2) == ["   █", " ▂██"]
    assert column_chart([0, 1, 100_000], height=1) == [" ▁█"], "what is there can be seen"
    assert column_chart([0, 0], height=1) == ["  "]
    assert column_chart([2, 1], 1, ascii_only=True) == ["@="]
    assert column_chart([], 2) == ["", ""]


def test_pieces_of_text() -> None:
    assert merged(list(range(10)), 4) == ([3, 12, 21, 9], 3)
    assert merged([1, 2], 80) == ([1, 2], 1)
    assert reached(0.95999999) == "0.9599"
    assert [reached(x) for x in (1.0, 0.0018, -0.00001)] == ["1.0000", "0.0018", "-0.0001"]
    assert shortened("a" * 30, 10) == "a" * 10 + "... (30 characters)"
    assert safe("é\x1b", ascii_only=True).plain == r"\xe9\x1b"
