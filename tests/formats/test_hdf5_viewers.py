"""Viewers open what the HDF5 export writes: silx, h5wasm, h5web in a browser, and HDF5's own tools.

tests/viewers/README.md tells what to install. Without it tests skip; HHTLD_REQUIRE_VIEWERS=1 makes them fail.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import h5py
import numpy as np
import pytest

import hhtld

pytestmark = pytest.mark.exhaustive

VIEWERS = Path(__file__).parents[1] / "viewers"
TIMEOUT = 400  # seconds of one program: a browser draws slowly where two lanes of work share two cores
SMALL: dict[str, dict[str, Any]] = {
    "lookup": {"profile": "lookup"},
    "f32": {"profile": "f32"},
    "bits": {"profile": "bits:2+1"},
    "mixed": {"profile": "bits:2", "rules": [("*.embed*", "lookup"), ("lm_head*", "f32")]},
}


def missing(what: str) -> NoReturn:
    """Skip, or fail where viewers are required."""
    if os.environ.get("HHTLD_REQUIRE_VIEWERS") == "1":
        pytest.fail(what)
    pytest.skip(what)


def program(*names: str) -> str:
    """Return the first of some programs that is on PATH."""
    found = next(filter(None, map(shutil.which, names)), None)
    return found or missing(f"no {names[0]} on PATH; see tests/viewers/README.md")


def script(name: str, *arguments: str | Path) -> tuple[int, Any]:
    """Run one of the scripts in tests/viewers and return its exit code and what it prints."""
    node = program("node", "nodejs")
    if not (VIEWERS / "node_modules").is_dir():
        missing("tests/viewers has no packages: npm install --prefix tests/viewers")
    environment = dict(os.environ)
    if name == "show.mjs" and "CHROMIUM" not in environment:
        environment["CHROMIUM"] = program("chromium", "chromium-browser", "google-chrome")
    code, out, err = run(node, VIEWERS / name, *arguments, env=environment)
    assert out.startswith(("[", "{")), err
    return code, json.loads(out)


def run(*command: str | Path, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Run a program and return its exit code, output and error output."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, encoding="utf-8", env=env)
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        process.terminate()  # not kill: show.mjs still has to end its browser
        out, err = process.communicate(timeout=TIMEOUT)
        pytest.fail(f"{command[0]} did not finish within {TIMEOUT} s: {err}\n{out}")
    return process.returncode, out, err


def plots(path: Path) -> list[str]:
    """Return the paths of all NXdata groups of a file."""
    found: list[str] = []

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if item.attrs.get("NX_class") == "NXdata":
            found.append(f"/{name}")

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


def small_model(path: Path) -> None:
    """Write a model with one tensor of every kind that a viewer may stumble over."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(11)
    basis = rng.standard_normal((8, 128))

    def matrix(n_rows: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return (0.05 * (rng.standard_normal((n_rows, 8)) @ basis + rng.standard_normal((n_rows, 128)))).astype("<f4")

    tensors = {
        "model.embed_tokens.weight": matrix(700),
        "lm_head.weight": matrix(600),
        "model.layers.0.self_attn.q_proj.weight": matrix(512),
        "odd/names %.are: \u03c0 weight": matrix(512),
        "model.norm.weight": rng.standard_normal(128).astype("<f2"),
        "steps": np.array(7, "<i8"),
        "mask": np.array([True, False, True]),
        "nothing": np.zeros((0, 4), "<f4"),
    }
    save_file(tensors, path)


@pytest.fixture(scope="session")
def export_of(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Make exports by name, each once."""
    folder = tmp_path_factory.mktemp("exports")

    @cache
    def make(kind: str) -> Path:
        source = request.getfixturevalue("minilm_to_encode") if kind == "minilm" else folder / "small.safetensors"
        if not source.exists():
            small_model(source)
        pack, path = folder / f"{kind}.hhtld", folder / f"{kind}.h5"
        hhtld.convert(source, pack, **{"profile": "gates"} | SMALL.get(kind, {}))
        # What the pack was made from and its codes add plots; half of the exports do without.
        more: dict[str, Any] = {"original": source, "codes": True} if kind in ("mixed", "minilm") else {}
        hhtld.convert(pack, path, **more)
        return path

    return make


@pytest.fixture(scope="session", params=[*SMALL, "minilm"])
def export(request: pytest.FixtureRequest, export_of: Callable[[str], Path]) -> Path:
    """An HDF5 export."""
    return export_of(request.param)


def test_silx_finds_nothing_to_mend(export: Path) -> None:
    try:
        from silx.io.nxdata import NXdata, get_default
    except ImportError:
        missing("silx is not installed: pip install silx")
    found = plots(export)
    assert found
    with h5py.File(export) as file:
        read = {path: NXdata(file[path]) for path in found}
        assert {path: data.issues for path, data in read.items() if data.issues or not data.is_valid} == {}
        default = get_default(file)
        assert default is not None
        assert default.group.name in found


def test_h5wasm_reads_everything(export: Path) -> None:
    code, read = script("read_all.mjs", export)
    assert (code, read["failures"]) == (0, [])
    assert read["nxdata"] == plots(export)
    with h5py.File(export) as file:
        items: list[h5py.Group | h5py.Dataset] = []
        file.visititems(lambda _, item: items.append(item))
        # visititems shows what has several names once.
        assert read["datasets"] >= sum(isinstance(item, h5py.Dataset) for item in items)
        assert read["groups"] == 1 + sum(isinstance(item, h5py.Group) for item in items)


def test_hdf5_tools_read_it(export: Path) -> None:
    for command in ([program("h5dump"), "-H"], [program("h5ls"), "-r"]):
        code, out, err = run(*command, export)
        assert (code, err) == (0, "")
        assert "entry" in out


def colourful(page: dict[str, Any]) -> int:
    """Return how many pixels of a page's plot have a colour; its paper and grid are grey."""
    from matplotlib.image import imread

    (canvas,) = page["canvases"]
    left, top, right, bottom = (round(canvas[side]) for side in ("left", "top", "right", "bottom"))
    pixels = imread(page["picture"])[top:bottom, left:right, :3]
    return int((np.ptp(pixels, axis=-1) > 0.25).sum())


def shown(path: Path, folder: Path, *inside: str) -> list[dict[str, Any]]:
    """Return what h5web shows of a file at some paths; nothing may have gone wrong."""
    pages: list[dict[str, Any]]
    code, pages = script("show.mjs", path, folder, *inside)
    assert [page["path"] for page in pages] == list(inside)
    wrong = {page["path"]: page["errors"] + page["console"] for page in pages if page["errors"] or page["console"]}
    assert (code, wrong) == (0, {})
    return pages


def test_h5web_opens_with_a_plot_and_shows_a_table(export_of: Callable[[str], Path], tmp_path: Path) -> None:
    path = export_of("minilm")
    table = "/entry/tensors/embeddings.word_embeddings.weight/entries"
    first, second = shown(path, tmp_path, "/", table)
    with h5py.File(path) as file:
        title = file["entry"][file["entry"].attrs["default"]]["title"].asstr()[()]
        columns = file[table].dtype.names
    assert first["vis"] == "NX Line"
    assert title in first["text"]
    assert colourful(first) > 300
    assert second["vis"] == "Compound"
    assert second["headings"] == list(columns)
    assert len(second["text"]) > 20 * len(columns)


def test_h5web_draws_every_kind_of_plot(export_of: Callable[[str], Path], tmp_path: Path) -> None:
    path = export_of("mixed")
    kinds: dict[str, str] = {}
    with h5py.File(path) as file:
        for name in plots(path):
            if file[name][file[name].attrs["signal"]].size > 1:  # h5web draws no line through one point
                kinds.setdefault(name.rsplit("/", 1)[1], name)
        titles = {name: file[name]["title"].asstr()[()] for name in kinds.values()}
    for page in shown(path, tmp_path, *kinds.values()):
        assert page["vis"] in ("NX Line", "NX Heatmap")
        assert titles[page["path"]] in page["text"]
        assert colourful(page) > 100, page["path"]


def test_what_viewers_cannot_show_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "bad.h5"
    with h5py.File(path, "w") as file:
        for name, n_edges in (("good", 8), ("edges", 9), ("listed", 8)):
            group = file.create_group(name)
            group.attrs.update({"NX_class": "NXdata", "signal": "y", "axes": ["x"]})
            group["y"], group["x"] = np.arange(8, dtype="<f4"), np.arange(n_edges, dtype="<f4")
        file["listed"].attrs["signal"] = ["y"]
        image = file.create_group("image")
        image.attrs.update({"NX_class": "NXdata", "signal": "y"})
        image["y"] = np.zeros((9000, 8), "<f4")
        file["half"] = np.zeros(3, "<f2")
        file["nested"] = np.zeros(3, [("a", "<f4", 2)])
        file["gone"] = h5py.SoftLink("/nowhere")
        file.attrs["default"] = "half"
    code, read = script("read_all.mjs", path)
    bad = {"/", "/edges", "/gone", "/half", "/image", "/listed", "/nested"}
    assert (code, {failure["path"] for failure in read["failures"]}) == (1, bad)
    code, pages = script("show.mjs", path, tmp_path, "/listed", "/half", "/gone", "/good")
    assert (code, [bool(page["errors"]) for page in pages]) == (1, [True, True, True, False])
