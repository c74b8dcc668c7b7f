"""The reader in C: the same bits as `get_rows`, in C and in C++, and an error for every damaged file."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import hhtld
from tests.far_rows import NAME as FAR_NAME
from tests.far_rows import write_far_table

HERE = Path(__file__).parent
READER = HERE.parents[1] / "reader"
GOLDENS = sorted((HERE.parent / "golden" / "packs").glob("*.hhtld"))
STRICT = ["-Wall", "-Wextra", "-pedantic", "-Werror"]
IO, NOT_A_PACK, NEWER, DAMAGED, NAME, UNSUPPORTED, RANGE = 1, 3, 4, 5, 6, 7, 8  # as in hhtld_rows.h

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="hhtld_pack_open is there where POSIX is"),
    pytest.mark.skipif(not READER.exists(), reason="the reader does not lie beside the tests"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler"),
]

Compiled = Callable[..., Path]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Return what compiles a program of this folder, once for every set of options."""
    folder = tmp_path_factory.mktemp("compiled")
    made: dict[tuple[str, ...], Path] = {}

    def compile_(source: Path, *options: str, compiler: str = "cc") -> Path:
        key = (compiler, str(source), *options)
        if key not in made:
            program = folder / f"program{len(made)}"
            command = [compiler, *options, *STRICT, f"-I{READER}", str(source), "-o", str(program), "-lm"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            made[key] = program
        return made[key]

    return compile_


@pytest.fixture(scope="module")
def rows_program(compiled: Compiled) -> Path:
    return compiled(HERE / "rows.c", "-std=c99", "-O2")


def run(program: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [str(program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False, env=os.environ | environment)


def read(program: Path, pack: Path, name: str, n_cols: int, *ids: int, **environment: str) -> NDArray[np.float32]:
    done = run(program, pack, name, *ids, **environment)
    assert done.returncode == 0, done.stderr
    return np.frombuffer(done.stdout, "<f4").reshape(-1, n_cols)


def same_bits(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


def encoded_by_slot_t(path: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    with hhtld.open(path) as pack:
        for name in pack:
            if pack.info(name).codec == "hhtl_t":
                yield name, pack.get_rows(name, slice(None))


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_goldens_decode_to_the_same_bits(path: Path, compiled: Compiled, rows_program: Path) -> None:
    fastest = compiled(HERE / "rows.c", "-std=gnu11", "-O3", "-march=native")  # a compiler may fuse additions here
    for name, rows in encoded_by_slot_t(path):
        assert same_bits(read(rows_program, path, name, rows.shape[1]), rows)
        assert same_bits(read(fastest, path, name, rows.shape[1]), rows)
        assert same_bits(read(rows_program, path, name, rows.shape[1], HHTLD_FROM_MEMORY="1"), rows)


@pytest.mark.parametrize("standard", ["c++11", "c++20"])
def test_the_header_is_cpp_too(standard: str, compiled: Compiled) -> None:
    program = compiled(HERE / "rows.c", "-x", "c++", f"-std={standard}", "-O1", compiler="c++")
    path = next(path for path in GOLDENS if path.stem == "v2_slot_t_leaf")
    for name, rows in encoded_by_slot_t(path):
        assert same_bits(read(program, path, name, rows.shape[1]), rows)


def test_declarations_alone_need_nothing(compiled: Compiled, tmp_path: Path) -> None:
    source = tmp_path / "declared.c"
    source.write_text('#include "hhtld_rows.h"\n#include "hhtld_rows.h"\nint main(void) { return HHTLD_OK; }\n')
    assert run(compiled(source, "-std=c99")).returncode == 0


@pytest.mark.parametrize("profile", ["bits:1", "bits:2.3125", "bits:4", "bits:6", "bits:3+1.5"])
def test_rows_of_any_width(profile: str, tmp_path: Path, rows_program: Path) -> None:
    widths = [2, 3, 7, 8, 9, 16, 31, 64, 65, 160, 255, 257, 1030]
    values = np.random.default_rng(3)
    arrays = {f"w{n}.q_proj": values.standard_normal((400 if n < 10 else 60, n), np.float32) for n in widths}
    arrays["experts.q_proj"] = values.standard_normal((4, 20, 40), np.float32)
    arrays["zeros.q_proj"] = np.zeros((60, 33), np.float32)
    path = tmp_path / "widths.hhtld"
    hhtld.save(hhtld.encode(arrays, profile), path)
    seen = []
    for name, rows in encoded_by_slot_t(path):
        assert same_bits(read(rows_program, path, name, rows.shape[1]), rows), name
        ids = [len(rows) - 1, 0, 0, 2]
        assert same_bits(read(rows_program, path, name, rows.shape[1], *ids), rows[ids]), name
        seen.append(name)
    assert set(seen) >= arrays.keys() - {"w2.q_proj", "w3.q_proj"}  # two levels of so few columns save nothing


def test_a_tied_tensor_is_read_by_both_names(tmp_path: Path, rows_program: Path) -> None:
    table = np.random.default_rng(4).standard_normal((50, 48), np.float32)
    path = tmp_path / "tied.hhtld"
    hhtld.save(hhtld.encode({"embed.weight": table, "lm_head.weight": table}, "bits:4"), path)
    with hhtld.open(path) as pack:
        aliases = [name for name in pack if pack.table.tensors[name].alias_of]
        rows = pack.get_rows("embed.weight", None)
    assert len(aliases) == 1
    for name in ("embed.weight", "lm_head.weight"):
        assert same_bits(read(rows_program, path, name, 48), rows)


def test_rows_beyond_4_gib_are_found(tmp_path: Path, rows_program: Path) -> None:
    path = tmp_path / "far.hhtld"
    far = write_far_table(path)
    assert same_bits(read(rows_program, path, FAR_NAME, far.rows.shape[1], *far.ids.tolist()), far.rows)


def test_names_are_as_json_writes_them(tmp_path: Path, rows_program: Path) -> None:
    table = np.random.default_rng(5).standard_normal((60, 24), np.float32)
    path = tmp_path / "names.hhtld"
    hhtld.save(hhtld.encode({'caf\u00e9 "x".embed': table}, "bits:4"), path)
    assert len(read(rows_program, path, 'caf\\u00e9 \\"x\\".embed', 24)) == 60
    assert run(rows_program, path, 'caf\u00e9 "x".embed').returncode == NAME


def test_what_cannot_be_read_is_an_error_with_a_code(tmp_path: Path, rows_program: Path) -> None:
    golden = {path.stem: path for path in GOLDENS}
    path = golden["v1_slot_t"]
    assert run(rows_program, path, "a.q_proj", 40).returncode == RANGE
    assert run(rows_program, path, "a.q_proj", -1).returncode == RANGE
    assert run(rows_program, path, "a.q").returncode == NAME
    assert run(rows_program, path, "kept.f32").returncode == UNSUPPORTED
    assert run(rows_program, golden["v1_f32"], "layers.0.mlp.down_proj.weight").returncode == UNSUPPORTED
    missing = run(rows_program, tmp_path / "missing.hhtld", "x")
    assert missing.returncode == IO
    assert b"No such file" in missing.stderr
    assert run(rows_program, tmp_path, "x").returncode == IO
    other = tmp_path / "other.hhtld"
    other.write_bytes(b"{}" * 100)
    assert run(rows_program, other, "x").returncode == NOT_A_PACK


@pytest.mark.parametrize(("offset", "value", "words"), [(8, 3, b"version 3"), (16, 4, b"feature bit 2")])
def test_a_newer_file_is_refused_by_what_it_needs(
    offset: int, value: int, words: bytes, tmp_path: Path, rows_program: Path
) -> None:
    import zlib

    data = bytearray(next(path for path in GOLDENS if path.stem == "v1_slot_t").read_bytes())
    data[offset] = value
    data[60:64] = zlib.crc32(bytes(data[:60])).to_bytes(4, "little")
    path = tmp_path / "newer.hhtld"
    path.write_bytes(data)
    done = run(rows_program, path, "a.q_proj")
    assert done.returncode == NEWER
    assert words in done.stderr


@pytest.mark.parametrize(
    ("golden", "name", "step"),
    [
        ("v1_files", "f.o_proj", 7),
        pytest.param("v1_files", "f.o_proj", 1, marks=pytest.mark.exhaustive),
        pytest.param("v1_slot_t_levels", "z.v_proj", 1, marks=pytest.mark.exhaustive),
        pytest.param("v1_slot_t_scaled", "s.up_proj", 1, marks=pytest.mark.exhaustive),
        pytest.param("v2_slot_t_leaf", "y.embed", 61, marks=pytest.mark.exhaustive),
        pytest.param("v1_rows", "layers.0.k_proj", 7, marks=pytest.mark.exhaustive),
    ],
)
def test_damage_is_an_error_and_never_a_crash(golden: str, name: str, step: int, compiled: Compiled) -> None:
    options = ("-std=c99", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    program = compiled(HERE / "damage.c", *options)
    path = next(path for path in GOLDENS if path.stem == golden)
    done = run(program, path, name, step)
    assert done.returncode == 0, done.stderr.decode()
    cuts, lengths, flipped, sealed, changes = (int(word) for word in done.stdout.split() if word.isdigit())
    assert cuts == lengths
    assert changes > flipped >= sealed > 0  # what is left are codes of rows, and what rows do not use


def test_the_example_prints_rows(compiled: Compiled) -> None:
    program = compiled(READER / "example.c", "-std=c99", "-O2")
    path = next(path for path in GOLDENS if path.stem == "v1_slot_t")
    done = run(program, path, "a.q_proj", 3, 0)
    with hhtld.open(path) as pack:
        rows = pack.get_rows("a.q_proj", [3, 0])
    lines = done.stdout.decode().splitlines()
    assert lines[0] == "a.q_proj: 40 rows of 300 columns"
    for line, row, values in zip(lines[1:], (3, 0), rows, strict=True):
        assert line == f"{row}: " + " ".join(f"{value:9.6f}" for value in values[:4]) + " ..."
    assert done.returncode == 0
    assert run(program, path, "a.q_proj", 40).returncode == 1


def test_the_page_of_tables_compiles_and_prints_what_it_shows(
    compiled: Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (HERE.parents[1] / "docs" / "tables.md").read_text(encoding="utf-8")
    listings = re.findall(r"^```c\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert len(listings) == 2
    for number, listing in enumerate(listings):
        source = tmp_path / f"listing{number}.c"
        source.write_text(f"{listing}\nint main(void) {{ return HHTLD_OK; }}\n")
        compiled(source, "-std=c99")

    monkeypatch.chdir(tmp_path)
    made = next(block for block in re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE))
    exec(made, {})
    convert = next(line for line in page.splitlines() if line.startswith("hhtld convert model model.hhtld"))
    words = shlex.split(convert)[1:]
    subprocess.run([sys.executable, "-m", "hhtld.formats", *words], check=True, capture_output=True)
    (command, shown) = re.findall(r"^\./example (.*)\n```\n\n```text\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)[0]
    done = run(compiled(READER / "example.c", "-std=c99", "-O2"), *command.split())
    assert done.stdout.decode() == shown


def test_the_header_is_short() -> None:
    text = (READER / "hhtld_rows.h").read_text()
    assert text.count("\n") < 700
    assert max(map(len, text.splitlines())) <= 120
