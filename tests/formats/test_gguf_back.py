"""GGUF in, pack, GGUF out: every key-value, order and type comes back, and what cannot go back says why."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import hhtld
from hhtld.commands.main import main
from hhtld.errors import FormatError, HeaderError, OutputError
from hhtld.formats import get_format, open_source
from hhtld.sources.contract import ArraySource

gguf = pytest.importorskip("gguf", reason="needs the package of the extra 'gguf'")

Type = gguf.GGMLQuantizationType
PLAIN = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
SAME_AGAIN = ("Q4_0", "Q5_0", "Q8_0", "TQ1_0", "TQ2_0")  # whose scales are found again in what they stand for


def writer(path: Path, architecture: str = "llama") -> Any:
    made = gguf.GGUFWriter(path, architecture)
    made.add_uint32("llama.block_count", 2)
    made.add_float32("llama.eps", 1e-5)
    made.add_bool("llama.causal", True)
    made.add_string("general.name", "tiny ä")
    made.add_array("tokenizer.ggml.tokens", ["a", "ü", "\U0001f600"])
    made.add_array("tokenizer.ggml.scores", [0.5, -1.0, 3.25])
    return made


def finished(made: Any) -> None:
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()


def add(made: Any, name: str, values: NDArray[np.float32], kind: str) -> None:
    made.add_tensor(name, gguf.quants.quantize(values, Type[kind]), raw_dtype=Type[kind])


@pytest.fixture
def mixed(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Matrices of several types, a norm and a router in F32, a kernel of a convolution; not in the order of names."""
    path = tmp_path / "mixed.gguf"
    made = writer(path)
    made.add_uint32("general.file_type", 2)
    for name, kind in (("z.weight", "Q4_0"), ("b.weight", "F16"), ("a.weight", "BF16"), ("m.weight", "Q8_0")):
        add(made, name, rng.standard_normal((96, 64), np.float32), kind)
    made.add_tensor("ffn_gate_inp.weight", rng.standard_normal((4, 64), np.float32))
    made.add_tensor("x_norm.weight", rng.standard_normal(64, np.float32))
    made.add_tensor("conv.weight", rng.standard_normal((8, 3, 5)).astype(np.float16))
    finished(made)
    return path


def tensors(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def packed(src: Path, **options: Any) -> Path:
    path = src.with_suffix(".hhtld")
    hhtld.convert(src, path, **({"profile": "bits:4", "min_ratio": 0, "jobs": 1} | options))
    return path


def kept(src: Path) -> Path:
    return packed(src, rules=[("*", "keep")])


# --- what comes back ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (2, 3, 5), (2, 1, 3, 7), (1, 1, 33)], ids=str)
@pytest.mark.parametrize("kind", [*PLAIN, "BF16"])
def test_plain_types_of_every_rank_come_back_byte_for_byte(kind: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    path, values = tmp_path / "m.gguf", np.arange(1, 1 + np.prod(shape, dtype=int)).reshape(shape)
    made = writer(path)
    data = values.astype(PLAIN[kind]) if kind in PLAIN else gguf.quants.quantize(values.astype("<f4"), Type.BF16)
    made.add_tensor("t", data if kind in PLAIN else data.reshape(*values.shape[:-1], -1), raw_dtype=Type[kind])
    finished(made)
    hhtld.convert(kept(path), tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("kind", SAME_AGAIN)
def test_what_is_quantized_again_finds_the_same_scales(kind: str, tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "m.gguf"
    made = writer(path)
    add(made, "a.weight", rng.standard_normal((33, 512), np.float32), kind)
    finished(made)
    report = hhtld.convert(kept(path), tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == path.read_bytes()
    assert any(f"1 tensors are quantized once more for the file (1 {kind})" in note for note in report.notes)


def test_a_large_tensor_is_quantized_in_pieces_to_the_same_bytes(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "m.gguf"
    made = writer(path)
    add(made, "a.weight", rng.standard_normal((1500, 1024), np.float32), "Q8_0")
    finished(made)
    hhtld.convert(path, tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == path.read_bytes()


def test_metadata_order_and_types_come_back_from_a_coded_pack(mixed: Path, tmp_path: Path) -> None:
    back = tmp_path / "back.gguf"
    pack = packed(mixed)
    hhtld.convert(pack, back)
    before, after = gguf.GGUFReader(mixed), gguf.GGUFReader(back)
    assert [(t.name, t.tensor_type) for t in after.tensors] == [(t.name, t.tensor_type) for t in before.tensors]
    assert list(after.fields) == list(before.fields)
    for key, field in before.fields.items():
        if not key.startswith("GGUF."):
            assert after.fields[key].contents() == field.contents(), key
    decoded = hhtld.load_file(pack)
    for name, tensor in tensors(back).items():
        want = decoded[name].astype(np.float32)
        got = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(want.shape)
        step = (
            np.abs(want).max() / (7 if tensor.tensor_type == Type.Q4_0 else 127)
            if "Q" in tensor.tensor_type.name
            else 0
        )
        assert np.abs(got - want).max() <= step, name


@pytest.mark.parametrize(
    ("type", "expected", "file_type"),
    [
        ("F16", {"z.weight": "F16", "b.weight": "F16", "a.weight": "F16", "m.weight": "F16"}, 1),
        ("BF16", {"z.weight": "BF16", "b.weight": "BF16", "a.weight": "BF16", "m.weight": "BF16"}, 32),
        ("Q8_0", {"z.weight": "Q8_0", "b.weight": "Q8_0", "a.weight": "Q8_0", "m.weight": "Q8_0"}, 7),
        ("F32", {"z.weight": "F32", "b.weight": "F32", "a.weight": "F32", "m.weight": "F32"}, 0),
    ],
)
def test_a_type_is_that_of_the_matrices(
    mixed: Path, tmp_path: Path, type: str, expected: dict[str, str], file_type: int
) -> None:
    back = tmp_path / "back.gguf"
    hhtld.convert(packed(mixed), back, type=type)
    rest = {"ffn_gate_inp.weight": "F32", "x_norm.weight": "F32", "conv.weight": "F16"}
    assert {name: tensor.tensor_type.name for name, tensor in tensors(back).items()} == expected | rest
    assert gguf.GGUFReader(back).fields["general.file_type"].contents() == file_type


def test_of_a_source_in_float32_matrices_change_and_what_llama_cpp_keeps_stays(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path, back = tmp_path / "m.gguf", tmp_path / "back.gguf"
    made = writer(path)
    for name in ("a.weight", "ffn_gate_inp.weight", "ssm_conv1d.weight", "output_norm.weight", "table"):
        made.add_tensor(name, rng.standard_normal((64, 32), np.float32))
    made.add_tensor("a.bias", rng.standard_normal(64, np.float32))
    made.add_tensor("odd.weight", rng.standard_normal((5, 7), np.float32))
    made.add_tensor("exps.weight", rng.standard_normal((2, 3, 32), np.float32))
    made.add_tensor("ids", np.arange(64, dtype=np.int32).reshape(2, 32))
    finished(made)
    hhtld.convert(packed(path), back, type="Q8_0")
    changed = {name for name, tensor in tensors(back).items() if tensor.tensor_type == Type.Q8_0}
    assert changed == {"a.weight", "exps.weight"}


def test_a_pack_that_knows_no_order_is_written_in_that_of_names(mixed: Path, tmp_path: Path) -> None:
    with open_source(kept(mixed)) as source:
        facts = source.description["gguf"]
        del facts["order"]
        assert "key_order" in facts
        get_format("gguf").write_source(Told(source, facts), tmp_path / "back.gguf")
    assert list(tensors(tmp_path / "back.gguf")) == sorted(tensors(mixed))


def test_values_beyond_float16_are_told(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    made = writer(path)
    add(made, "a.weight", np.full((2, 32), 1e6, np.float32), "BF16")
    add(made, "b.weight", np.full((2, 32), 3, np.float32), "BF16")
    finished(made)
    report = hhtld.convert(path, tmp_path / "back.gguf", type="F16")
    assert any("1 tensors hold values beyond F16" in note and "'a.weight'" in note for note in report.notes)
    assert tensors(tmp_path / "back.gguf")["a.weight"].data.max() == 65504


@pytest.mark.parametrize(
    ("kind", "size", "others"), [("F16", 1e-9, "BF16 or F32"), ("Q8_0", 1e-5, "BF16 or F32"), ("BF16", 1e-40, "F32")]
)
def test_rows_that_a_type_is_too_coarse_for_are_told(tmp_path: Path, kind: str, size: float, others: str) -> None:
    path = tmp_path / "m.gguf"
    made = writer(path)
    rows = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    rows[1] = 0
    add(made, "b.weight", rows, "F32")
    one_small = rows.copy()
    one_small[2] = (rows[2].astype(np.float64) * size).astype(np.float32)
    add(made, "a.weight", one_small, "F32")
    finished(made)
    (note,) = (n for n in hhtld.convert(path, tmp_path / "back.gguf", type=kind).notes if "loses digits" in n)
    assert note.startswith("1 tensors hold rows of which no value reaches ")
    assert f"where {kind} loses digits and at last gives zeros: 'a.weight'; --type {others} holds them" in note
    for other in others.split(" or "):
        notes = hhtld.convert(path, tmp_path / "other.gguf", type=other).notes
        assert not any("loses digits" in note for note in notes)
        back = gguf.quants.dequantize(tensors(tmp_path / "other.gguf")["a.weight"].data, Type[other])
        np.testing.assert_allclose(back[2], one_small[2], rtol=2**-8)


def test_the_command_takes_a_type(mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(packed(mixed)), str(tmp_path / "b.gguf"), "--type", "Q8_0", "--json"]) == 0
    assert any("quantized once more" in note for note in json.loads(capsys.readouterr().out)["notes"])
    assert main(["convert", str(mixed), str(tmp_path / "b.hhtld"), "--type", "F16"]) == 2
    assert "format 'hhtld' takes no --type; only a .gguf file does" in capsys.readouterr().err


# --- what cannot go back -----------------------------------------------------------------------


@pytest.mark.parametrize("dry_run", [False, True])
def test_what_came_from_elsewhere_says_what_is_missing(tmp_path: Path, dry_run: bool) -> None:
    hhtld.save_file({"w": np.ones((64, 32), np.float32)}, tmp_path / "m.hhtld", profile="bits:4")
    with pytest.raises(HeaderError, match=r"general\.architecture.*tokenizer.*convert_hf_to_gguf"):
        hhtld.convert(tmp_path / "m.hhtld", tmp_path / "m.gguf", dry_run=dry_run)
    assert [p.name for p in tmp_path.iterdir()] == ["m.hhtld"]


@pytest.mark.parametrize("dry_run", [False, True])
def test_types_that_nobody_writes_are_refused_before_anything_is_written(tmp_path: Path, dry_run: bool) -> None:
    path = tmp_path / "m.gguf"
    made = writer(path)
    made.add_tensor("a.weight", np.zeros((2, 144), np.uint8), raw_dtype=Type.Q4_K)
    add(made, "b.weight", np.ones((2, 32), np.float32), "Q8_0")
    finished(made)
    pack = packed(path)
    with pytest.raises(ValueError, match=r"1 of 2 tensors .*does not write \(1 Q4_K\).*--type Q8_0"):
        hhtld.convert(pack, tmp_path / "back.gguf", dry_run=dry_run)
    assert not (tmp_path / "back.gguf").exists()
    hhtld.convert(pack, tmp_path / "back.gguf", type="Q8_0")
    assert {t.tensor_type for t in tensors(tmp_path / "back.gguf").values()} == {Type.Q8_0}


def test_an_unknown_type_is_refused(mixed: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be one of source, F32, .*, got 'Q9'"):
        hhtld.convert(mixed, tmp_path / "back.gguf", type="Q9")


@pytest.mark.parametrize("value", [1e6, np.nan, -np.inf])
def test_what_has_no_scale_is_refused_and_the_old_file_stays(tmp_path: Path, value: float) -> None:
    path, back = tmp_path / "m.gguf", tmp_path / "back.gguf"
    made = writer(path)
    add(made, "a.weight", np.full((2, 32), value, np.float32), "BF16")
    finished(made)
    back.write_bytes(b"old")
    with pytest.raises(ValueError, match=r"'a\.weight': .*Q8_0 has no scales for"):
        hhtld.convert(path, back, type="Q8_0")
    assert back.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back.gguf", "m.gguf"]


def test_a_folder_in_its_place_stays(mixed: Path, tmp_path: Path) -> None:
    (tmp_path / "back.gguf").mkdir()
    with pytest.raises(OutputError, match="not a regular file"):
        hhtld.convert(mixed, tmp_path / "back.gguf", to="gguf")


class Told(ArraySource):
    """A source that says of its GGUF file what it is given."""

    def __init__(self, source: Any, facts: Any) -> None:
        super().__init__({name: source.read_rows(name, 0, info.n_rows) for name, info in source.infos().items()})
        self._of, self._facts = source, facts

    def infos(self) -> Any:
        return self._of.infos()

    def read_rows(self, name: str, start: int, stop: int) -> Any:
        return self._of.read_rows(name, start, stop)

    @property
    def description(self) -> dict[str, Any]:
        return {"gguf": self._facts}


def field(type: str, value: Any, **more: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda facts: facts["fields"].update({"k": {"type": type, "value": value, **more}})


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "fields are none": (lambda facts: facts.update(fields=[]), "no keys and values"),
    "no fields": (lambda facts: facts.pop("fields"), "no keys and values"),
    "version": (lambda facts: facts.update(version=9), "version '9'"),
    "version true": (lambda facts: facts.update(version=True), "version 'True'"),
    "version list": (lambda facts: facts.update(version=[3]), "version"),
    "order of one": (lambda facts: facts.update(order=["z.weight"]), "tensors .* does not name each of them once"),
    "order of numbers": (lambda facts: facts.update(order=[1]), "not a list of names"),
    "order of no keys": (lambda facts: facts.update(key_order=[]), "order of keys .* does not name each of them once"),
    "order twice": (lambda facts: facts["order"].__setitem__(0, facts["order"][1]), "does not name each of them once"),
    "quantised list": (lambda facts: facts.update(quantised=[]), "not a JSON object"),
    "quantised number": (lambda facts: facts["quantised"].update({"z.weight": 2}), "is not text"),
    "quantised unknown": (lambda facts: facts["quantised"].update({"z.weight": "Q77"}), "unknown type 'Q77'"),
    "quantised plain": (lambda facts: facts["quantised"].update({"z.weight": "F16"}), "stands for F16"),
    "quantised of halves": (lambda facts: facts["quantised"].update({"b.weight": "Q8_0"}), "stands for F32"),
    "blocks": (lambda facts: facts["quantised"].update({"ffn_gate_inp.weight": "TQ1_0"}), "blocks of 256"),
    "empty key": (lambda facts: facts["fields"].update({"": {"type": "UINT8", "value": 1}}), "1 to 65535 bytes"),
    "long key": (lambda facts: facts["fields"].update({"k" * 65536: {"type": "UINT8", "value": 1}}), "1 to 65535"),
    "surrogate key": (lambda facts: facts["fields"].update({"\ud800": {"type": "UINT8", "value": 1}}), "not text"),
    "no value": (lambda facts: facts["fields"].update({"k": {"type": "UINT8"}}), "the type or the value is missing"),
    "no object": (lambda facts: facts["fields"].update({"k": 3}), "the type or the value is missing"),
    "unknown": (field("UINT128", 1), "type of the value, 'UINT128'"),
    "unhashable": (field([], 1), "type of the value"),
    "array of arrays": (field("ARRAY", [[1]], of="ARRAY"), "type of the value, 'ARRAY'"),
    "array of none": (field("ARRAY", [1]), "type of the value"),
    "array no list": (field("ARRAY", "abc", of="UINT8"), "is not a list"),
    "too large": (field("UINT8", 256), "the type UINT8"),
    "negative": (field("UINT64", -1), "the type UINT64"),
    "huge": (field("INT64", 10**400), "the type INT64"),
    "float for an integer": (field("UINT32", 1.0), "the type UINT32"),
    "true for an integer": (field("UINT32", True), "the type UINT32"),
    "text for a float": (field("FLOAT32", "x"), "not a number"),
    "huge for a float": (field("FLOAT64", 10**400), "not a number"),
    "true for a float": (field("FLOAT32", True), "not a number"),
    "number for a bool": (field("BOOL", 1), "true or false"),
    "number for a text": (field("STRING", 1), "not text"),
    "hex": (field("STRING", {"hex": "zz"}), "not text"),
    "hex number": (field("STRING", {"hex": 1}), "not text"),
    "other object": (field("STRING", {"a": 1}), "not text"),
    "alignment": (
        lambda facts: facts["fields"].update({"general.alignment": {"type": "UINT32", "value": 3}}),
        "no alignment of GGUF",
    ),
    "alignment true": (
        lambda facts: facts["fields"].update({"general.alignment": {"type": "UINT32", "value": True}}),
        "no alignment of GGUF",
    ),
    "alignment text": (
        lambda facts: facts["fields"].update({"general.alignment": {"type": "STRING", "value": "8"}}),
        "no alignment of GGUF",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_a_table_may_say_is_checked(case: str, mixed: Path, tmp_path: Path) -> None:
    change, message = HOSTILE[case]
    with open_source(mixed) as source:
        facts = json.loads(json.dumps(source.description["gguf"]))
        if "key" not in message:
            del facts["key_order"]
        change(facts)
        with pytest.raises(FormatError, match=message):
            get_format("gguf").write_source(Told(source, facts), tmp_path / "back.gguf")
    assert not (tmp_path / "back.gguf").exists()


def test_what_is_no_object_is_refused(mixed: Path, tmp_path: Path) -> None:
    with open_source(mixed) as source, pytest.raises(FormatError, match="not a JSON object"):
        get_format("gguf").write_source(Told(source, 7), tmp_path / "back.gguf")


def test_odd_values_come_back(tmp_path: Path) -> None:
    """A text that is no UTF-8, numbers that are not finite, every type, empty arrays, another alignment."""
    parts = []

    def pair(key: str, number: int, value: bytes) -> None:
        parts.append(struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", number) + value)

    numbers = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 7: "?", 10: "Q", 11: "q"}
    for number, code in numbers.items():
        pair(f"n{number}", number, struct.pack(f"<{code}", 1))
        pair(f"a{number}", 9, struct.pack(f"<IQ3{code}", number, 3, 0, 1, 1))
    for number, code in {6: "f", 12: "d"}.items():
        pair(f"n{number}", number, struct.pack(f"<{code}", -0.0))
        pair(f"a{number}", 9, struct.pack(f"<IQ4{code}", number, 4, float("inf"), -float("inf"), 0.1, 1e-40))
    pair("bytes", 8, struct.pack("<Q", 2) + b"\xff\x00")
    pair("texts", 9, struct.pack("<IQ", 8, 2) + struct.pack("<Q", 1) + b"\x80" + struct.pack("<Q", 0))
    pair("none", 9, struct.pack("<IQ", 8, 0))
    pair("general.alignment", 4, struct.pack("<I", 8))
    head = b"GGUF" + struct.pack("<IQQ", 2, 1, len(parts)) + b"".join(parts)
    head += struct.pack("<Q", 1) + b"t" + struct.pack("<I", 1) + struct.pack("<Q", 1) + struct.pack("<IQ", 0, 0)
    path = tmp_path / "odd.gguf"
    path.write_bytes(head.ljust(-(-len(head) // 8) * 8, b"\0") + struct.pack("<f", 2.5).ljust(8, b"\0"))
    hhtld.convert(kept(path), tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == path.read_bytes()
