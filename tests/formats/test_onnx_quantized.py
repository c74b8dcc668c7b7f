"""Quantized weights in ONNX graphs are kept byte for byte, and odd tensors do not stop a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import hhtld
from hhtld.commands.main import main
from tests.conftest import low_rank

onnx = pytest.importorskip("onnx", reason="needs the package of the extra 'onnx'")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402 - after the skip

from hhtld.formats.onnx import OnnxFile  # noqa: E402 - after the skip

W = low_rank(128, 64)
SCALES = np.abs(low_rank(64, 64, seed=1)) + np.float32(0.01)
BYTES = np.random.default_rng(5).integers(-128, 128, (64, 64)).astype(np.int8)


def saved(path: Path, nodes: list[Any], functions: tuple[Any, ...] = (), **tensors: NDArray[Any] | Any) -> Path:
    held = [t if isinstance(t, TensorProto) else numpy_helper.from_array(t, n) for n, t in tensors.items()]
    graph = helper.make_graph(nodes, "g", [], [], held)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=functions)
    path.write_bytes(made.SerializeToString())
    return path


def node(operator: str, *inputs: str, domain: str = "", out: str = "y", **attributes: Any) -> Any:
    return helper.make_node(operator, list(inputs), [out], domain=domain, **attributes)


MS = "com.microsoft"
USES: dict[str, list[Any]] = {
    "DequantizeLinear": [node("DequantizeLinear", "q", "s", "z")],
    "QuantizeLinear": [node("QuantizeLinear", "w", "s", "z", out="a"), node("DequantizeLinear", "a", "s", "z")],
    "QLinearMatMul": [node("QLinearMatMul", "x", "xs", "xz", "q", "s", "z", "ys", "yz")],
    "QLinearConv": [node("QLinearConv", "x", "xs", "xz", "q", "s", "z", "ys", "yz", "b")],
    "MatMulInteger": [
        node("MatMulInteger", "x", "q", "xz", "z"),
        node("MatMulIntegerToFloat", "x", "q", "s", domain=MS),
    ],
    "MatMulNBits": [node("MatMulNBits", "x", "q", "s", "z", domain=MS, K=64, N=64, bits=4, block_size=16)],
    "GatherBlockQuantized": [node("GatherBlockQuantized", "q", "x", "s", "z", domain=MS)],
    "QGemm": [node("QGemm", "x", "xs", "xz", "q", "s", "z", domain=MS)],
    "QMoE": [node("QMoE", "x", "r", "q", "s", domain=MS), node("DequantizeLinear", "q", "s", "z")],
    "through other operators": [
        node("Reshape", "s", "shape", out="s1"),
        node("Identity", "s1", out="s2"),
        node("Transpose", "q", out="q1"),
        node("Cast", "z", out="z1", to=TensorProto.INT8),
        node("DequantizeLinear", "q1", "s2", "z1"),
    ],
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("shape", [(64, 64), (1, 4096), (4096, 1), (64, 8, 8)], ids=str)
def test_scales_and_zero_points_of_every_operator_are_kept(use: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    points = SCALES.reshape(shape)[::-1].copy()  # zero points may be floats as well
    held = {"q": BYTES, "s": SCALES.reshape(shape), "z": points, "shape": np.array([64, 64])}
    path = saved(tmp_path / "m.onnx", [*USES[use], node("MatMul", "x", "w")], w=W, **held)
    report = hhtld.convert(path, tmp_path / "m.hhtld", profile="bits:4")
    with hhtld.open(tmp_path / "m.hhtld") as pack:
        assert pack.info("w").codec == "hhtl_t"  # a plain weight is coded, also where it is quantized when run
        assert {name: pack.info(name).codec for name in held} == dict.fromkeys(held, "keep")
    back = hhtld.load_file(tmp_path / "m.hhtld")
    assert all(back[name].tobytes() == values.tobytes() for name, values in held.items())
    assert any(" tensors of quantized weights (" in note for note in report.notes)
    hhtld.convert(
        tmp_path / "m.hhtld", tmp_path / "again.hhtld", profile="bits:4"
    )  # the graph is gone, and still known
    assert hhtld.load_file(tmp_path / "again.hhtld")["s"].tobytes() == held["s"].tobytes()


def test_a_plain_graph_has_no_quantized_weights(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x", "w"), node("Mul", "y", "scale"), node("DequantizeLinear", "q", "s", domain="mine")]
    path = saved(tmp_path / "m.onnx", nodes, w=W, scale=SCALES, q=BYTES, s=SCALES)
    with OnnxFile(path) as source:
        assert source.quantized() == {}
        assert "quantized" not in source.description
    assert hhtld.convert(path, tmp_path / "m.hhtld", profile="bits:4").notes == [
        "the graph comes along without its weights, so that the pack can become an .onnx again"
    ]


def test_names_tell_where_the_graph_does_not(tmp_path: Path) -> None:
    held = {
        "/layers.0/B": BYTES,
        "/layers.0/B_scales": SCALES,
        "/layers.1/w_quantized": BYTES,
        "/layers.1/w_scale": SCALES,
    }
    path = saved(tmp_path / "m.onnx", [], **held, **{"/layers.0/w": W})
    with OnnxFile(path) as source:
        assert source.quantized() == dict.fromkeys(held, "integers with scales")


def test_operators_in_bodies_use_tensors_of_their_own_and_from_outside(tmp_path: Path) -> None:
    def body(*nodes: Any, **tensors: Any) -> Any:
        return helper.make_graph(list(nodes), "b", [], [], [numpy_helper.from_array(t, n) for n, t in tensors.items()])

    own = body(node("DequantizeLinear", "q", "s"), q=BYTES, s=SCALES)
    outer = body(
        helper.make_node("Constant", [], ["s"], value=numpy_helper.from_array(SCALES, "")),
        node("DequantizeLinear", "outside", "s"),
    )
    choice = helper.make_node("If", ["c"], ["y"], name="if", then_branch=own, else_branch=outer)
    path = saved(tmp_path / "m.onnx", [choice], outside=BYTES, s=SCALES, w=W)
    with OnnxFile(path) as source:
        inside = ("if/then_branch/q", "if/then_branch/s", "if/else_branch/s", "outside")
        assert source.quantized() == dict.fromkeys(inside, "DequantizeLinear")
        assert "s" in source.infos()  # of the graph itself, which nothing there uses so


def test_bodies_of_one_name_are_told_apart(tmp_path: Path) -> None:
    def choice(seed: int) -> Any:
        bodies = (
            helper.make_graph([], "b", [], [], [numpy_helper.from_array(low_rank(64, 64, seed=seed + side), "w")])
            for side in range(2)
        )
        return helper.make_node(
            "If", ["c"], [f"y{seed}"], name="If_0", then_branch=next(bodies), else_branch=next(bodies)
        )

    function = [
        helper.make_function(
            d,
            "f",
            [],
            ["c"],
            [helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(W, ""))],
            [helper.make_opsetid("", 21)],
        )
        for d in "ab"
    ]
    path = saved(tmp_path / "m.onnx", [choice(10), choice(20), choice(30)], tuple(function))
    with OnnxFile(path) as source:
        for number, node_name in enumerate(("If_0", "If_0~2", "If_0~3"), 1):
            for side, branch in enumerate(("then_branch", "else_branch")):
                expected = low_rank(64, 64, seed=10 * number + side)
                np.testing.assert_array_equal(source.read_tensor(f"{node_name}/{branch}/w"), expected)
        assert {"f/c", "f~2/c"} < set(source.infos())


def sparse(name: str) -> Any:
    values = numpy_helper.from_array(np.array([1.5, 2], np.float32), name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([3, 5]), ""), [3, 4])


def test_tensors_that_no_array_can_hold_do_not_stop_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = {
        "i4": (TensorProto.INT4, [3], [1, -2, 7], b"\xe1\x07"),
        "u4": (TensorProto.UINT4, [2, 2], [1, 2, 15, 4], b"\x21\x4f"),
    }
    held = {name: helper.make_tensor(name, kind, dims, values) for name, (kind, dims, values, _) in odd.items()}
    raw = {f"{n}_raw": helper.make_tensor(f"{n}_raw", k, d, data, raw=True) for n, (k, d, _, data) in odd.items()}
    # FLOAT4E2M1, which onnx 1.17 can read and has no name for.
    held["f4"] = TensorProto(name="f4", data_type=23, dims=[3], int32_data=[0x21, 0x07])
    raw["f4_raw"] = TensorProto(name="f4_raw", data_type=23, dims=[3], raw_data=b"\x21\x07")
    double = helper.make_tensor("z", TensorProto.COMPLEX128, [2], [1 + 2j, 3j])
    path = saved(
        tmp_path / "m.onnx",
        [],
        w=W,
        labels=helper.make_tensor("labels", TensorProto.STRING, [2], [b"a", b"b"]),
        z=double,
        **held,
        **raw,
    )
    model = onnx.load(path)
    model.graph.sparse_initializer.add().CopyFrom(sparse("rare"))
    model.graph.node.append(helper.make_node("Constant", [], ["const"], sparse_value=sparse("ignored")))
    path.write_bytes(model.SerializeToString())
    assert main(["convert", str(path), str(tmp_path / "m.hhtld"), "--profile", "bits:4"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "1 tensors are no numbers and stay in the graph: 'labels' (STRING [2])" in told
    assert "7 tensors are of types that no array has, and kept as packed bytes: " in told
    assert "'i4' (INT4 [3])" in told
    back = hhtld.load_file(tmp_path / "m.hhtld")
    packed = {name: data for name, (*_, data) in odd.items()} | {"f4": b"\x21\x07"}
    for name, data in packed.items():
        assert back[name].tobytes() == back[f"{name}_raw"].tobytes() == data
    assert back["z"].tobytes() == np.array([1 + 2j, 3j], np.complex128).tobytes()
    for name in ("rare", "const"):
        assert back[f"{name}/values"].tolist() == [1.5, 2]
        assert back[f"{name}/indices"].tolist() == [3, 5]
    with hhtld.open(tmp_path / "m.hhtld") as pack:
        facts = pack.table.source["onnx"]
        assert facts["sparse"] == {"rare": [3, 4], "const": [3, 4]}
        assert facts["left_out"] == {"labels": "STRING [2]"}
        assert facts["packed"]["u4_raw"] == "UINT4 [2, 2]"
        assert pack.info("w").codec == "hhtl_t"


def test_packed_weights_of_a_graph_are_kept_as_well(tmp_path: Path) -> None:
    packed = helper.make_tensor("q", TensorProto.INT4, [64, 64], BYTES.tobytes()[:2048], raw=True)
    path = saved(tmp_path / "m.onnx", [node("DequantizeLinear", "q", "s")], q=packed, s=SCALES, w=W)
    hhtld.convert(path, tmp_path / "m.hhtld", profile="bits:4")
    back = hhtld.load_file(tmp_path / "m.hhtld")
    assert back["q"].tobytes() == BYTES.tobytes()[:2048]
    assert back["s"].tobytes() == SCALES.tobytes()
