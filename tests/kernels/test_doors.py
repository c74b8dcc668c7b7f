"""What the doors refuse, what they accept, and that they let other threads run."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hhtld._kernels import _cast, _cholesky, _dot, _eigen, _fold, _l1, _l2, _leaf

Fence = Callable[[Any], NDArray[Any]]


def zeros(dtype: Any, *shape: int) -> NDArray[Any]:
    return np.zeros(shape, dtype)


F32, F64, I8, I16, I32, I64 = np.float32, np.float64, np.int8, np.int16, np.int32, np.int64
U8, U16, U32 = np.uint8, np.uint16, np.uint32


@dataclass(frozen=True)
class Door:
    """A kernel, a valid call of it and shapes it must refuse."""

    call: Callable[..., Any]
    arguments: dict[str, Any]
    outputs: tuple[str, ...]
    wrong_shapes: tuple[tuple[str, tuple[int, ...]], ...]
    may_be_none: tuple[str, ...] = ()

    @property
    def arrays(self) -> list[str]:
        return [name for name, value in self.arguments.items() if isinstance(value, np.ndarray)]


def flat(call: Callable[..., Any], values: Any, out: Any) -> Door:
    return Door(
        call,
        {"values": zeros(values, 5), "out": zeros(out, 5)},
        ("out",),
        (("out", (4,)), ("out", (6,)), ("values", (0,))),
    )


DOORS = [
    flat(_cast.widen_bf16, U16, F32),
    flat(_cast.widen_f16, U16, F32),
    flat(_cast.narrow_f32_bf16, F32, U16),
    flat(_cast.narrow_f32_f16, F32, U16),
    flat(_cast.truncate_f32_bf16, F32, U16),
    Door(
        _cast.widen_f8,
        {"values": zeros(U8, 5), "table": zeros(F32, 256), "out": zeros(F32, 5)},
        ("out",),
        (("out", (4,)), ("table", (255,)), ("table", (257,)), ("table", (0,))),
    ),
    Door(_cast.first_nonfinite_f32, {"values": zeros(F32, 5)}, (), ()),
    Door(_cast.first_nonfinite_bf16, {"values": zeros(U16, 5)}, (), ()),
    Door(
        _fold.base17_fold,
        {"rows": zeros(F32, 3, 20), "dims": zeros(I16, 3, 17)},
        ("dims",),
        (("dims", (2, 17)), ("dims", (3, 16)), ("dims", (3, 18)), ("dims", (0, 17)), ("rows", (4, 20))),
    ),
    Door(
        _fold.base17_unfold,
        {"dims": zeros(I16, 3, 17), "rows": zeros(F32, 3, 20)},
        ("rows",),
        (("dims", (2, 17)), ("dims", (3, 16)), ("dims", (3, 18)), ("rows", (4, 20))),
    ),
    Door(
        _l1.nearest_l1,
        {
            "rows": zeros(I16, 3, 17),
            "entries": zeros(I16, 4, 17),
            "nearest": zeros(U8, 3),
            "distances": zeros(U32, 3),
        },
        ("nearest", "distances"),
        (
            ("rows", (3, 16)),
            ("rows", (4, 17)),
            ("entries", (4, 18)),
            ("entries", (0, 17)),
            ("entries", (257, 17)),
            ("nearest", (2,)),
            ("distances", (4,)),
        ),
    ),
    Door(
        _l1.furthest_l1,
        {
            "columns": zeros(I16, 17, 5),
            "picks": zeros(I64, 2),
            "nearest_distance": zeros(U32, 5),
            "nearest": zeros(I32, 5),
        },
        ("picks", "nearest_distance", "nearest"),
        (
            ("columns", (16, 5)),
            ("columns", (5, 17)),
            ("columns", (17, 0)),
            ("columns", (17, 6)),
            ("picks", (0,)),
            ("picks", (6,)),
            ("nearest_distance", (4,)),
            ("nearest", (6,)),
        ),
    ),
    Door(
        _l2.nearest_l2,
        {"rows": zeros(F32, 3, 20), "centroids": zeros(F32, 4, 20), "nearest": zeros(I32, 3)},
        ("nearest",),
        (
            ("rows", (3, 19)),
            ("centroids", (0, 20)),
            ("centroids", (4, 21)),
            ("nearest", (2,)),
            ("nearest", (0,)),
        ),
    ),
    Door(
        _l2.furthest_l2,
        {
            "rows": zeros(F32, 5, 20),
            "picks": zeros(I64, 2),
            "nearest_distance": zeros(F64, 5),
            "nearest": zeros(I32, 5),
        },
        ("picks", "nearest_distance", "nearest"),
        (
            ("rows", (0, 20)),
            ("rows", (5, 0)),
            ("rows", (6, 20)),
            ("picks", (0,)),
            ("picks", (6,)),
            ("nearest_distance", (4,)),
            ("nearest", (6,)),
        ),
    ),
    Door(
        _leaf.project,
        {
            "rows": zeros(F32, 3, 20),
            "entries": zeros(F32, 4, 20),
            "twigs": zeros(U8, 3),
            "basis": zeros(F64, 20, 8),
            "coefficients": zeros(F32, 3, 8),
        },
        ("coefficients",),
        (
            ("rows", (3, 19)),
            ("rows", (4, 20)),
            ("entries", (4, 21)),
            ("entries", (0, 20)),
            ("twigs", (2,)),
            ("twigs", (0,)),
            ("basis", (19, 8)),
            ("basis", (20, 7)),
            ("coefficients", (3, 9)),
            ("coefficients", (2, 8)),
        ),
        ("twigs",),
    ),
    Door(
        _leaf.quantize_i8,
        {"coefficients": zeros(F32, 8), "scale": 1.0, "codes": zeros(I8, 8)},
        ("codes",),
        (("codes", (7,)), ("coefficients", (0,))),
    ),
    Door(
        _leaf.reconstruct,
        {
            "entries": zeros(F32, 4, 20),
            "twigs": zeros(U8, 3),
            "codes": zeros(I8, 3, 8),
            "scale": 1.0,
            "basis": zeros(F32, 8, 20),
            "out": zeros(F32, 3, 20),
        },
        ("out",),
        (
            ("entries", (4, 21)),
            ("entries", (0, 20)),
            ("twigs", (2,)),
            ("codes", (2, 8)),
            ("codes", (3, 7)),
            ("basis", (7, 20)),
            ("basis", (8, 19)),
            ("out", (4, 20)),
        ),
        ("twigs",),
    ),
    Door(
        _dot.gram,
        {"x": zeros(F32, 3, 20), "out": zeros(F64, 20, 20)},
        ("out",),
        (("out", (20, 19)), ("out", (19, 20)), ("out", (3, 3)), ("x", (20, 3))),
    ),
    Door(
        _dot.row_dots,
        {"x": zeros(F32, 3, 20), "y": zeros(F32, 3, 20), "out": zeros(F64, 3, 3)},
        ("out",),
        (("x", (3, 19)), ("y", (2, 20)), ("out", (3, 2)), ("out", (2, 3)), ("out", (0, 3))),
    ),
    Door(_cholesky.cholesky, {"matrix": np.eye(20)}, ("matrix",), (("matrix", (20, 19)), ("matrix", (3, 20)))),
    Door(
        _cholesky.divide_rows,
        {"factor": np.eye(20), "rows": zeros(F64, 3, 17)},
        ("rows",),
        (("factor", (20, 19)), ("factor", (16, 16)), ("rows", (3, 21))),
    ),
    Door(
        _eigen.largest_eigenpairs,
        {"matrix": zeros(F64, 20, 20), "values": zeros(F64, 3), "vectors": zeros(F64, 3, 20)},
        ("values", "vectors"),
        (("matrix", (20, 19)), ("matrix", (2, 2)), ("values", (2,)), ("values", (21,)), ("vectors", (3, 19))),
    ),
]


def array_cases() -> Iterator[Any]:
    for door in DOORS:
        for name in door.arrays:
            yield pytest.param(door, name, id=f"{door.call.__name__}-{name}")


def shape_cases() -> Iterator[Any]:
    for door in DOORS:
        for name, shape in door.wrong_shapes:
            yield pytest.param(door, name, shape, id=f"{door.call.__name__}-{name}-{'x'.join(map(str, shape))}")


every_array = pytest.mark.parametrize(("door", "name"), list(array_cases()))
every_door = pytest.mark.parametrize("door", DOORS, ids=[door.call.__name__ for door in DOORS])


def refused(door: Door, name: str, value: Any, *errors: type[Exception]) -> None:
    with pytest.raises(errors) as caught:
        door.call(**door.arguments | {name: value})
    assert type(caught.value) in errors, "a subclass such as BufferError says something else went wrong"
    assert len(str(caught.value)) > 10


@every_door
def test_the_valid_call_is_valid(door: Door, isa: str) -> None:
    door.call(**door.arguments, isa=isa)
    door.call(*door.arguments.values(), isa=isa)


@every_door
def test_outputs_are_written_within_their_ends(door: Door, isa: str, fenced: Fence) -> None:
    arrays = {name: fenced(door.arguments[name]) for name in door.arrays}
    door.call(**door.arguments | arrays, isa=isa)


@every_door
def test_read_only_inputs_are_accepted(door: Door, isa: str) -> None:
    arguments = dict(door.arguments)
    for name in set(door.arrays) - set(door.outputs):
        arguments[name] = arguments[name].copy()
        arguments[name].flags.writeable = False
    door.call(**arguments, isa=isa)


@every_array
def test_read_only_outputs_are_refused(door: Door, name: str) -> None:
    if name in door.outputs:
        array = door.arguments[name].copy()
        array.flags.writeable = False
        refused(door, name, array, ValueError)


@every_array
def test_none_is_refused(door: Door, name: str) -> None:
    if name not in door.may_be_none:
        refused(door, name, None, TypeError, ValueError)


@every_array
def test_what_is_no_array_is_refused(door: Door, name: str) -> None:
    refused(door, name, door.arguments[name].tolist(), TypeError)


@every_array
def test_wrong_dtypes_are_refused(door: Door, name: str) -> None:
    array = door.arguments[name]
    for dtype in (
        F32,
        F64,
        np.float16,
        I8,
        I16,
        I32,
        I64,
        U8,
        U16,
        U32,
        np.uint64,
        np.complex64,
        object,
    ):
        if np.dtype(dtype) != array.dtype:
            refused(door, name, array.astype(dtype), ValueError)
    if array.itemsize > 1:
        refused(door, name, array.astype(array.dtype.newbyteorder()), ValueError)


@every_array
def test_wrong_dimensions_are_refused(door: Door, name: str) -> None:
    array = door.arguments[name]
    for wrong in (array[None], array[..., None], np.array(0, array.dtype)):
        refused(door, name, wrong, ValueError)


@every_array
def test_strided_arrays_are_refused(door: Door, name: str) -> None:
    array = door.arguments[name]
    strided = zeros(array.dtype, *array.shape[:-1], array.shape[-1] * 2)[..., ::2]
    assert strided.shape == array.shape
    refused(door, name, strided, ValueError)
    refused(door, name, array[::-1], ValueError)
    if array.ndim == 2:
        refused(door, name, np.asfortranarray(array), ValueError)


@every_array
def test_unaligned_arrays_are_refused(door: Door, name: str) -> None:
    array = door.arguments[name]
    for offset in range(1, array.itemsize):
        raw = bytearray(array.nbytes + offset)
        unaligned = np.frombuffer(raw, array.dtype, array.size, offset).reshape(array.shape)
        refused(door, name, unaligned, ValueError)


@pytest.mark.parametrize(("door", "name", "shape"), list(shape_cases()))
def test_wrong_shapes_are_refused(door: Door, name: str, shape: tuple[int, ...]) -> None:
    refused(door, name, zeros(door.arguments[name].dtype, *shape), ValueError)


@every_door
def test_an_unknown_tier_is_refused(door: Door) -> None:
    with pytest.raises(ValueError, match="no instruction tier 'sse9' here; available: scalar"):
        door.call(**door.arguments, isa="sse9")


@every_door
def test_isa_goes_by_keyword(door: Door) -> None:
    with pytest.raises(TypeError, match="positional"):
        door.call(*door.arguments.values(), "scalar")


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), 1e-60])
def test_quantize_refuses_a_scale_that_is_not_positive(scale: float) -> None:
    with pytest.raises(ValueError, match="scale must be positive"):
        _leaf.quantize_i8(zeros(F32, 8), scale, zeros(I8, 8))


@pytest.mark.parametrize("first", [-1, 5, 2**40])
def test_furthest_l1_refuses_a_first_pick_out_of_range(first: int) -> None:
    picks = np.array([first, 0], np.int64)
    with pytest.raises(ValueError, match="first pick"):
        _l1.furthest_l1(zeros(I16, 17, 5), picks, zeros(U32, 5), zeros(I32, 5))


def test_leaf_refuses_twigs_out_of_range() -> None:
    twigs = np.array([0, 3, 4], np.uint8)
    entries = zeros(F32, 4, 20)
    with pytest.raises(ValueError, match="twig of row 2 is 4, but there are 4 entries"):
        _leaf.project(zeros(F32, 3, 20), entries, twigs, zeros(F64, 20, 8), zeros(F32, 3, 8))
    with pytest.raises(ValueError, match="twig of row 2 is 4, but there are 4 entries"):
        _leaf.reconstruct(entries, twigs, zeros(I8, 3, 8), 1.0, zeros(F32, 8, 20), zeros(F32, 3, 20))


def test_leaf_without_twigs_needs_an_entry_a_row() -> None:
    with pytest.raises(ValueError, match="4 entries for 3 rows"):
        _leaf.project(zeros(F32, 3, 20), zeros(F32, 4, 20), None, zeros(F64, 20, 8), zeros(F32, 3, 8))
    with pytest.raises(ValueError, match="4 entries for 3 rows"):
        _leaf.reconstruct(zeros(F32, 4, 20), None, None, 1.0, None, zeros(F32, 3, 20))


def test_reconstruct_takes_codes_and_basis_together() -> None:
    out, entries = zeros(F32, 3, 20), zeros(F32, 3, 20)
    with pytest.raises(ValueError, match="codes and basis come together"):
        _leaf.reconstruct(entries, None, zeros(I8, 3, 8), 1.0, None, out)
    with pytest.raises(ValueError, match="codes and basis come together"):
        _leaf.reconstruct(entries, None, None, 1.0, zeros(F32, 8, 20), out)


# ---- other threads run while a kernel does ----


@contextmanager
def heartbeat() -> Iterator[list[int]]:
    """Count the turns of a thread that sleeps most of the time; it needs the interpreter for each."""
    beats, stop = [0], threading.Event()

    def beat() -> None:
        while not stop.wait(0.0005):
            beats[0] += 1

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield beats
    finally:
        stop.set()
        thread.join()


def random_f32(n_rows: int, n_cols: int) -> NDArray[np.float32]:
    return np.random.default_rng(4).standard_normal((n_rows, n_cols), F32)


def random_base17(n_rows: int) -> NDArray[np.int16]:
    return np.random.default_rng(4).integers(-999, 999, (n_rows, 17), I16)


# Each takes a size and returns the arguments that make its door work about as many microseconds.
LONG_CALLS: dict[str, tuple[Callable[..., Any], Callable[[int], tuple[Any, ...]]]] = {
    "widen_bf16": (_cast.widen_bf16, lambda n: (zeros(U16, 999 * n), zeros(F32, 999 * n))),
    "widen_f8": (_cast.widen_f8, lambda n: (zeros(U8, 999 * n), zeros(F32, 256), zeros(F32, 999 * n))),
    "narrow_f32_f16": (_cast.narrow_f32_f16, lambda n: (zeros(F32, 999 * n), zeros(U16, 999 * n))),
    "truncate_f32_bf16": (_cast.truncate_f32_bf16, lambda n: (zeros(F32, 999 * n), zeros(U16, 999 * n))),
    "first_nonfinite_f32": (_cast.first_nonfinite_f32, lambda n: (zeros(F32, 3000 * n),)),
    "base17_fold": (_fold.base17_fold, lambda n: (zeros(F32, 2 * n, 400), zeros(I16, 2 * n, 17))),
    "base17_unfold": (_fold.base17_unfold, lambda n: (zeros(I16, 2 * n, 17), zeros(F32, 2 * n, 400))),
    "nearest_l1": (
        _l1.nearest_l1,
        lambda n: (random_base17(9 * n), random_base17(256), zeros(U8, 9 * n), zeros(U32, 9 * n)),
    ),
    "furthest_l1": (
        _l1.furthest_l1,
        lambda n: (zeros(I16, 17, 9 * n), zeros(I64, 256), zeros(U32, 9 * n), zeros(I32, 9 * n)),
    ),
    "nearest_l2": (_l2.nearest_l2, lambda n: (random_f32(n, 64), random_f32(999, 64), zeros(I32, n))),
    "furthest_l2": (
        _l2.furthest_l2,
        lambda n: (random_f32(n, 64), zeros(I64, min(n, 500)), zeros(F64, n), zeros(I32, n)),
    ),
    "project": (
        _leaf.project,
        lambda n: (zeros(F32, n, 400), zeros(F32, n, 400), None, zeros(F64, 400, 8), zeros(F32, n, 8)),
    ),
    "quantize_i8": (_leaf.quantize_i8, lambda n: (zeros(F32, 300 * n), 1.0, zeros(I8, 300 * n))),
    "reconstruct": (
        _leaf.reconstruct,
        lambda n: (zeros(F32, n, 400), None, zeros(I8, n, 8), 1.0, zeros(F32, 8, 400), zeros(F32, n, 400)),
    ),
    "gram": (_dot.gram, lambda n: (zeros(F32, n, 100), zeros(F64, 100, 100))),
    "cholesky": (_cholesky.cholesky, lambda n: (np.eye(min(n // 8, 2000)),)),
    "divide_rows": (
        _cholesky.divide_rows,
        lambda n: (np.eye(min(n // 8, 2000)), zeros(F64, 32, min(n // 8, 2000))),
    ),
    "largest_eigenpairs": (
        _eigen.largest_eigenpairs,
        lambda n: (np.eye(min(n // 8, 2000)), zeros(F64, 8), zeros(F64, 8, min(n // 8, 2000))),
    ),
    "row_dots": (_dot.row_dots, lambda n: (zeros(F32, n, 400), zeros(F32, n, 400), zeros(F64, n, 3))),
}


@pytest.mark.parametrize("name", LONG_CALLS)
def test_other_threads_run_while_a_kernel_does(name: str) -> None:
    call, arguments = LONG_CALLS[name]
    size = 4000
    while True:
        given = arguments(size)
        with heartbeat() as beats:
            before, start = beats[0], time.perf_counter()
            call(*given)
            counted, elapsed = beats[0] - before, time.perf_counter() - start
        if counted >= 5:
            return
        # A kernel that keeps the interpreter sees at most the beat before it and the one after.
        assert elapsed < 0.3, f"{counted} beats in {elapsed:.2f} s"
        size *= 3
