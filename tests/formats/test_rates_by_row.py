"""Rates by row in the container: what a file of classes gives back, on every way in, and every malformation by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import hhtld
from hhtld.codecs.trellis import HhtlTTensor
from hhtld.errors import FormatError, HeaderError, UnsupportedVersionError
from hhtld.search.linear_layers import RowProducts
from hhtld.slots import Rotation, RowPlaces, Trellis, class_order
from hhtld.slots.class_layout import ByClass
from hhtld.slots.row_rates import class_rates, classes_of_rows, row_rates
from hhtld.slots.shared_parts import TrellisShared
from hhtld.sources.rows import ArrayRows
from tests.formats.test_golden import spec_reader
from tests.formats.test_hhtld import (
    ABSENT,
    Change,
    Draft,
    bf16,
    both,
    drafted,
    group,
    header,
    read_all,
    section,
    tensor,
)

N_ROWS, N_COLS = 300, 61
NAMES = ("layers.0.q_proj.weight", "layers.1.q_proj.weight")


@pytest.fixture(scope="module")
def source() -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(3)
    return {name: rng.standard_normal((N_ROWS, N_COLS)).astype(np.float32) for name in NAMES}


@pytest.fixture(scope="module")
def rates() -> dict[str, NDArray[np.float64]]:
    rng = np.random.default_rng(4)
    return {name: np.clip(3 + rng.standard_normal(N_ROWS), 1, 6) for name in NAMES}


@pytest.fixture(scope="module")
def path(source: Any, rates: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.hhtld"
    hhtld.save(hhtld.encode(source, "parity", rates=rates), path)
    return path


@pytest.fixture(params=[True, False], ids=["mapped", "read"])
def pack(path: Path, request: pytest.FixtureRequest) -> Iterator[hhtld.HhtldPack]:
    with hhtld.open(path, mmap=request.param) as pack:
        yield pack


# ---- what is given back ----


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_those_of_the_whole(pack: hhtld.HhtldPack, name: str) -> None:
    whole = pack.get_tensor(name)
    rng = np.random.default_rng(5)
    for rows in (
        [0],
        [N_ROWS - 1],
        [-1],
        [5, 5, 299, 0, 5],
        [],
        rng.integers(0, N_ROWS, 1000),
        slice(10, 250),
        slice(None, None, -3),
        slice(7, 7),
    ):
        index = np.asarray(rows, np.intp) if isinstance(rows, list) else rows
        assert np.array_equal(pack.get_rows(name, rows), whole[index])
    assert np.array_equal(pack.get_encoded(name, [3, 200, 4]).reconstruct_rows([2, 0]), whole[[4, 3]])
    assert np.array_equal(pack.get_slice(name)[20:30], whole[20:30])


def test_a_second_reader_agrees(path: Path) -> None:
    second = spec_reader.read(path)
    with hhtld.open(path) as pack:
        assert all(np.array_equal(second[name], pack.get_tensor(name)) for name in NAMES)


def test_rows_of_a_higher_rate_lose_less(pack: hhtld.HhtldPack, source: Any) -> None:
    record = pack.info(NAMES[0])
    assert record.group is not None
    rates = pack.table.groups[record.group].numbers["rates"]
    assert len(rates) == 16
    row_class = pack.get_encoded(NAMES[0]).parts()["row_class"]
    assert np.bincount(row_class).tolist() == list(record.class_rows or ())
    error = ((pack.get_tensor(NAMES[0]) - source[NAMES[0]]) ** 2).mean(axis=1)
    low, high = error[row_class < 4].mean(), error[row_class > 11].mean()
    assert high < low / 20


def test_scores_are_those_of_the_decoded_rows(pack: hhtld.HhtldPack) -> None:
    queries = np.random.default_rng(6).standard_normal((7, N_COLS)).astype(np.float32)
    for name in NAMES:
        scores = queries @ pack.get_tensor(name).T
        scorer = pack.scorer(name)
        np.testing.assert_allclose(scorer.scores(queries), scores, atol=3e-3)
        assert scorer.argmax(queries).tolist() == scores.argmax(axis=1).tolist()
        assert np.array_equal(scorer.topk(queries, 5).rows, np.argsort(-scores, axis=1)[:, :5])


def test_products_are_those_of_the_decoded_rows(pack: hhtld.HhtldPack) -> None:
    inputs = np.random.default_rng(7).standard_normal((2, N_COLS)).astype(np.float32)
    products = RowProducts.of(pack.get_encoded(NAMES[0]))
    assert products is not None
    out = np.empty((2, N_ROWS), np.float32)
    assert products.write(inputs, out, 2)
    np.testing.assert_allclose(out, inputs @ pack.get_tensor(NAMES[0]).T, atol=3e-3)


def test_blocks_of_rotated_rows_multiply_as_the_decoded_rows(
    pack: hhtld.HhtldPack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hhtld.search.linear_layers._BLOCK_NBYTES", 4 * N_COLS * 11)
    inputs = np.random.default_rng(8).standard_normal((3, N_COLS)).astype(np.float32)
    products = RowProducts.of(pack.get_encoded(NAMES[0]))
    assert products is not None
    rotated = products.rotated(inputs)
    assert rotated is not None
    out = np.full((3, N_ROWS), np.nan, np.float32)
    for rows, block in products.rotated_blocks():
        assert len(block) <= 11
        out[:, rows] = rotated @ block.T
    expected = inputs.astype(np.float64) @ pack.get_tensor(NAMES[0]).T.astype(np.float64)
    np.testing.assert_allclose(out, expected, atol=1e-5 * np.abs(expected).max())
    inputs[1, 2] = np.inf
    assert products.rotated(inputs) is None


def test_a_layer_multiplies_rows_of_many_rates(pack: hhtld.HhtldPack) -> None:
    torch = pytest.importorskip("torch")
    from hhtld.integrations.torch import HhtlLinear

    x = torch.from_numpy(np.random.default_rng(9).standard_normal((5, N_COLS)).astype(np.float32))
    expected = x @ torch.from_numpy(pack.get_tensor(NAMES[0])).T
    torch.testing.assert_close(HhtlLinear(pack, NAMES[0], scored_rows=0)(x), expected, rtol=0, atol=2e-4)


def test_one_row_is_one_read_of_codes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hhtld.open(path, mmap=False) as pack:
        pack.get_rows(NAMES[0], [0])  # the rows are counted once
        sections: Any = pack.sections
        reads: list[int] = []
        fill = sections._fill
        monkeypatch.setattr(sections, "_fill", lambda out, offset: (reads.append(out.nbytes), fill(out, offset)))
        pack.get_rows(NAMES[0], [123])
    assert len(reads) == 2
    assert sum(reads) < 64


def test_the_table_counts_and_the_header_tells(path: Path) -> None:
    with hhtld.open(path) as pack:
        assert pack.table.to_json()["tensors"][0]["class_rows"] == list(pack.info(NAMES[0]).class_rows or ())
    assert int.from_bytes(path.read_bytes()[16:24], "little") == 3


# ---- any classes, any rows ----


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_any_classes_decode_as_each_alone(data: st.DataObject) -> None:
    n_rows, n_cols = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 40))
    rates = data.draw(st.lists(st.integers(16, 96), min_size=2, max_size=16))
    row_class = np.array(data.draw(st.lists(st.integers(0, len(rates) - 1), min_size=n_rows, max_size=n_rows)), "u1")
    rows = np.random.default_rng(n_rows).standard_normal((n_rows, n_cols)).astype(np.float32)
    classes = tuple(Trellis.trained(rate) for rate in rates)
    shared = TrellisShared(classes[0], Rotation(n_cols), classes=classes)
    coded = HhtlTTensor.encode("", ArrayRows(rows), shared, row_class=row_class)
    whole = coded.reconstruct_rows()
    for number, trellis in enumerate(classes):
        own = row_class == number
        alone = HhtlTTensor.encode("", ArrayRows(rows[own]), TrellisShared(trellis, Rotation(n_cols)))
        assert np.array_equal(whole[own], alone.reconstruct_rows())
        assert np.array_equal(coded.slot_v[own], alone.slot_v)
    picked = data.draw(st.lists(st.integers(0, n_rows - 1), max_size=20))
    assert np.array_equal(coded.reconstruct_rows(picked), whole[np.array(picked, int)])
    order = data.draw(st.permutations(range(n_rows)))
    moved = HhtlTTensor.encode("", ArrayRows(rows[order]), shared, row_class=row_class[order])
    assert np.array_equal(moved.reconstruct_rows(), whole[order])
    cut = data.draw(st.integers(0, n_rows))
    parts = [
        HhtlTTensor.encode_block("", rows[some], shared, row_class=row_class[some])
        for some in (slice(0, cut), slice(cut, n_rows))
    ]
    assert np.array_equal(HhtlTTensor.joined(parts).slot_t, coded.slot_t)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 70_000), st.integers(1, 16), st.integers(0, 99))
def test_places_are_counted(n_rows: int, n_classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    row_class = rng.integers(0, n_classes, n_rows).astype(np.uint8)
    places = RowPlaces(row_class, np.bincount(row_class, minlength=n_classes).tolist())
    ranks = np.empty(n_rows, np.int64)
    for rows in class_order(row_class, n_classes):
        ranks[rows] = np.arange(len(rows))
    picked = rng.integers(0, n_rows, 300) if n_rows else np.zeros(0, np.intp)
    classes, found = places.of(picked)
    assert np.array_equal(classes, row_class[picked])
    assert np.array_equal(found, ranks[picked])
    row = int(rng.integers(0, n_rows + 1))
    assert np.array_equal(places.before(row), np.bincount(row_class[:row], minlength=n_classes))


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(1, 6), min_size=1, max_size=200), min_size=1, max_size=3))
def test_classes_keep_the_mean(tensors: list[list[float]]) -> None:
    asked = [row_rates(bits, len(bits)) for bits in tensors]
    classes = class_rates(asked)
    assert 1 <= len(classes) <= 16
    assert classes == sorted(set(classes))
    for rates in asked:
        chosen = np.array(classes)[classes_of_rows(rates, classes)]
        assert int(chosen.sum()) << 16 <= int(rates.sum(dtype=np.int64))


def test_classes_spend_what_was_given() -> None:
    bits = np.clip(np.random.default_rng(8).normal(3.3, 0.8, 5000), 1, 6)
    asked = row_rates(bits, len(bits))
    classes = class_rates([asked])
    chosen = np.array(classes)[classes_of_rows(asked, classes)] / 16
    assert 0 <= bits.sum() - chosen.sum() < 0.5  # of 5000 rows
    assert np.sqrt(((chosen - bits) ** 2).mean()) < 0.09


def test_few_whole_sixteenths_stay_what_they_are() -> None:
    bits = 2 + np.arange(500) % 16 / 16
    asked = row_rates(bits, 500)
    classes = class_rates([asked])
    assert np.array_equal(np.array(classes)[classes_of_rows(asked, classes)] / 16, bits)


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        (0.5, "rates must lie in 1..6 bits"),
        (56, "row 0 has 56"),
        (np.nan, "row 0 has nan"),
        ([3.0, 4.0], "or 300 numbers"),
    ],
)
def test_what_is_no_rate_is_refused(source: Any, bits: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hhtld.encode(source, "parity", rates={NAMES[0]: bits})


def test_a_rate_for_no_tensor_is_refused(source: Any) -> None:
    with pytest.raises(ValueError, match=r"rates name .other."):
        hhtld.encode(source, "parity", rates={"other": 3})
    with pytest.raises(ValueError, match="rates are for profile 'parity'"):
        hhtld.encode(source, "bits:3", rates={NAMES[0]: 3})


def test_one_rate_for_all_rows_needs_no_classes(source: Any, tmp_path: Path) -> None:
    alike = {NAMES[0]: np.full(N_ROWS, 2.5)}
    pack = hhtld.encode({NAMES[0]: source[NAMES[0]]}, "parity", rates=alike)
    assert "row_class" not in pack.info(NAMES[0]).sections
    assert pack.table.groups[0].numbers["rate"] == 40
    one = hhtld.encode({NAMES[0]: source[NAMES[0]]}, "parity", rates={NAMES[0]: 2.5})
    hhtld.save(pack, tmp_path / "a.hhtld")
    hhtld.save(one, tmp_path / "b.hhtld")
    assert (tmp_path / "a.hhtld").read_bytes() == (tmp_path / "b.hhtld").read_bytes()


def test_sections_that_lie_by_class_are_joined_in_order() -> None:
    row_class = np.array([1, 0, 1, 1, 0], np.uint8)
    section = ByClass(row_class, [1, 2])
    assert section.nbytes == 8
    assert section.spans(0, 5) == [(0, 2), (2, 6)]
    assert section.spans(2, 4) == [(4, 4)]
    first, second = np.array([10, 1, 2], np.uint8), np.array([11, 3, 4, 5, 6], np.uint8)
    assert section.joined([(0, 2, first), (2, 5, second)]).tolist() == [10, 11, 1, 2, 3, 4, 5, 6]


# ---- malformations ----

OWN = {"slot_v": 1, "slot_t": 2, "row_class": 3}


def classed(draft: Draft) -> None:
    """A pack with one tensor of three rows of 9 columns in two classes, of 1 and 2 bits."""
    draft.header = {"required": 3}
    draft.sections = [
        ("codebook", bytes(range(256)) * 2),
        ("slot_v", bf16(1, 2, 3)),
        ("slot_t", bytes(range(2 * 2 + 3))),
        ("row_class", b"\1\0\0"),
    ]
    shared = {"component": "other", "role": "up", "shape": [3, 9], "sections": {"codebook": 0}}
    draft.table["groups"] = [shared | {"rates": [16, 32], "seed": 7}]
    own = {"name": "t", "dtype": "F32", "shape": [3, 9], "codec": "hhtl_t", "group": 0, "class_rows": [2, 1]}
    draft.table["tensors"] = [own | {"sections": dict(OWN)}]


def sections(**changes: Any) -> Change:
    return tensor("t", sections={kind: n for kind, n in (OWN | changes).items() if n is not ABSENT})


MALFORMED: dict[str, tuple[Change, type[FormatError], str]] = {
    "feature bit 1 not set": (header(required=1), HeaderError, "row_class.* needs feature bit 1"),
    "feature bit 2 set": (header(required=7), UnsupportedVersionError, "feature bit 2"),
    **{
        f"rates {value!r}": (group(0, rates=value), HeaderError, "rates must be")
        for value in ([16], [], 16, "16", None, [16] * 17, [15, 32], [16, 97], [16, 32.0], [16, True], {"0": 16})
    },
    "rates and a rate": (group(0, rate=16), HeaderError, "neither one rate nor a second level"),
    "rates and a second level": (
        both(
            lambda d: d.sections.append(("codebook_2", bytes(256))),
            group(0, sections={"codebook": 0, "codebook_2": 4}, rate_2=16),
        ),
        HeaderError,
        "neither one rate nor a second level",
    ),
    "another number of rates": (group(0, rates=[16, 32, 48]), HeaderError, "3 codebooks of"),
    **{
        f"codebooks of {size} bytes": (section(0, bytes(size)), HeaderError, "2 codebooks of 72 bytes")
        for size in (0, 256, 511, 513, 1024, 4096)
    },
    **{
        f"class_rows {value!r}": (tensor("t", class_rows=value), HeaderError, "class_rows")
        for value in ([3], [2, 1, 0], [1, 1], [4, -1], [2.0, 1], [True, 2], "21", 3, None, ABSENT, [2**70, 1])
    },
    "class_rows of other counts": (tensor("t", class_rows=[1, 2]), HeaderError, "slot_t is 7 bytes long, expected 8"),
    "row_class of other counts": (section(3, b"\1\1\0"), HeaderError, "row_class has .1, 2. rows of the classes"),
    "a class that is not there": (section(3, b"\1\0\2"), HeaderError, "row 2 is of class 2"),
    "row_class too short": (section(3, b"\1\0"), HeaderError, "row_class is 2 bytes long, expected 3"),
    "row_class too long": (section(3, b"\1\0\0\0"), HeaderError, "row_class is 4 bytes long, expected 3"),
    "slot_t too short": (section(2, lambda b: b[:-1]), HeaderError, "slot_t is 6 bytes long, expected 7"),
    "slot_v too short": (section(1, bf16(1, 2)), HeaderError, "slot_v is 4 bytes long, expected 6"),
    "no row_class": (
        both(sections(row_class=ABSENT), section(3, b"x", "moss")),
        HeaderError,
        "row_class, class_rows and the group's rates come together",
    ),
    "row_class without rates": (
        both(group(0, rates=ABSENT, rate=16), section(0, bytes(256))),
        HeaderError,
        "row_class, class_rows and the group's rates come together",
    ),
    "neither rate nor rates": (group(0, rates=ABSENT), HeaderError, "rate must be"),
}


@pytest.mark.filterwarnings("ignore:.*unknown kind 'moss'")
@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("case", MALFORMED)
def test_malformed(case: str, mmap: bool, tmp_path: Path) -> None:
    change, error, message = MALFORMED[case]
    path = drafted(tmp_path / "bad.hhtld", both(classed, change))
    with pytest.raises(error, match=message):
        read_all(path, mmap=mmap)


def test_what_was_drafted_is_read(tmp_path: Path) -> None:
    path = drafted(tmp_path / "good.hhtld", classed)
    with hhtld.open(path) as pack:
        whole = pack.get_tensor("t")
        assert np.array_equal(pack.get_rows("t", [2, 0]), whole[[2, 0]])
    assert np.array_equal(spec_reader.read(path)["t"], whole)


def test_the_table_is_json(path: Path) -> None:
    with hhtld.open(path) as pack:
        assert json.loads(json.dumps(pack.table.to_json()))["groups"][0]["rates"][0] >= 16


def test_an_export_shows_the_rate_and_the_code_of_every_row(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    name, scale = "layers.0.q_proj.weight", np.linspace(0.5, 2, 61)
    rows, rates = rng.standard_normal((300, 61)).astype(np.float32), np.clip(3 + rng.standard_normal(300), 1, 6)
    pack = hhtld.encode({name: rows}, "parity", rates={name: rates}, column_scales={name: scale})
    hhtld.save(pack, tmp_path / "m.hhtld")
    hhtld.convert(tmp_path / "m.hhtld", tmp_path / "m.h5", codes=True)
    with h5py.File(tmp_path / "m.h5") as file:
        shown = file[f"entry/tensors/{name}"]
        entries, codes, told = shown["entries"][:], shown["rows/slot_t"][:], shown["column_scale/scale"][:]
    assert np.allclose(told, scale, rtol=2**-8)
    assert np.abs(entries["bits"] - rates).max() < 0.5, "a class of rows is near what its rows ask for"
    assert abs(entries["bits"].mean() - rates.mean()) < 1 / 16
    view = pack.get_encoded(name).view()
    widths = [trellis.row_nbytes(61) for trellis in view.trellises.values()]
    assert codes.shape == (300, max(widths))
    parts = [(widths[c], codes[of]) for c, of in enumerate(class_order(entries["row_class"], len(widths)))]
    assert b"".join(part[:, :width].tobytes() for width, part in parts) == view.codes["slot_t"].tobytes()
    assert not any(part[:, width:].any() for width, part in parts)
