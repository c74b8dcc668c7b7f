"""What the doors for arrays must take or refuse, where no other test says so."""

from __future__ import annotations

import ctypes
import ctypes.util
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import hhtld
from hhtld.commands.main import main
from hhtld.errors import FormatError, NonFiniteError
from tests.conftest import low_rank
from tests.formats.test_hhtld import drafted, wide

W = low_rank(600, 64)
PROFILES = ("lookup", "f32", "bits:2", "gates")


def held(pack: hhtld.HhtldPack) -> list[bytes]:
    """Every section's bytes."""
    return [pack.sections.whole(i).tobytes() for i in range(len(pack.sections.kinds()))]


@pytest.mark.parametrize(
    "dtype", ["M8[s]", "m8[s]", "longdouble", "clongdouble", "V4", "O", "S3", "U2", [("a", "<f4")]], ids=str
)
def test_types_that_no_file_holds_are_type_errors(dtype: Any) -> None:
    with pytest.raises(TypeError, match="cannot be stored"):
        hhtld.encode({"w": np.zeros((600, 4), dtype)})


@pytest.mark.parametrize("dtype", ["?", "i1", "u1", "i2", "u4", "i8", "u8", "c8"])
def test_what_is_no_weight_is_kept_bit_for_bit(dtype: str) -> None:
    array = (np.arange(600 * 64) % 2).reshape(600, 64).astype(dtype)
    pack = hhtld.encode({"up_proj": array}, "bits:2")
    assert pack.info("up_proj").codec == "keep"
    assert pack.get_tensor("up_proj").tobytes() == array.tobytes()


@pytest.mark.parametrize("profile", PROFILES)
def test_one_nan_anywhere_is_found(profile: str) -> None:
    """Rows beyond every sample are looked at too, and a payload comes back where it is kept on purpose."""
    rows = low_rank(5000, 40)
    bits = rows.view(np.uint32)
    bits[4999, 39] = 0x7F800001  # signalling, with a payload
    with pytest.raises(NonFiniteError, match="holds nan at row 4999, column 39"):
        hhtld.encode({"up_proj": rows}, profile)
    kept = hhtld.encode({"up_proj": rows}, profile, nonfinite="keep")
    assert kept.get_tensor("up_proj", "source").tobytes() == rows.tobytes()


@pytest.mark.parametrize("profile", PROFILES)
def test_memory_order_byte_order_and_alignment_do_not_reach_the_bytes(profile: str) -> None:
    plain = held(hhtld.encode({"up_proj": W}, profile))
    shifted = np.zeros(W.nbytes + 1, np.uint8)
    unaligned = shifted[1:].view(np.float32).reshape(W.shape)
    unaligned[:] = W
    spread = np.zeros((600, 128), np.float32)
    spread[:, ::2] = W
    readonly = W.copy()
    readonly.flags.writeable = False
    others = (np.asfortranarray(W), W.astype(">f4"), unaligned, spread[:, ::2], W[::-1].copy()[::-1], readonly)
    for other in others:
        assert held(hhtld.encode({"up_proj": other}, profile)) == plain


def test_rows_that_are_one_row_in_memory() -> None:
    row = np.broadcast_to(W[:1], W.shape)
    assert held(hhtld.encode({"up_proj": row}, "bits:2")) == held(hhtld.encode({"up_proj": row.copy()}, "bits:2"))


@pytest.mark.parametrize("shape", [(), (0,), (0, 64), (64, 0), (1, 1), (1, 64), (600, 1), (600, 16), (2, 3, 4, 5, 6)])
@pytest.mark.parametrize("profile", PROFILES)
def test_every_shape_comes_back(profile: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    array = np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    hhtld.save_file({"up_proj": array}, tmp_path / "a.hhtld", profile="f32" if profile == "gates" else profile)
    back = hhtld.load_file(tmp_path / "a.hhtld")["up_proj"]
    assert (back.shape, back.dtype) == (array.shape, array.dtype)
    assert np.isfinite(back).all()


def test_more_axes_than_a_file_holds_are_refused() -> None:
    try:
        array = np.zeros((1,) * 33)
    except ValueError:
        pytest.skip("this numpy has no such arrays")
    with pytest.raises(ValueError, match="33 axes, and files hold at most 32"):
        hhtld.encode({"w": array}, profile="gates")


@pytest.mark.parametrize("seed", ["-1", str(2**64), "1.5", "x"])
def test_seeds_out_of_range_are_usage_errors(seed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hhtld.save_file({"up_proj": W}, tmp_path / "in.hhtld", profile="bits:4")
    words = ["convert", str(tmp_path / "in.hhtld"), str(tmp_path / "out.hhtld"), "--profile", "bits:2"]
    try:
        code = main([*words, f"--seed={seed}"])
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 2
    assert "seed" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.hhtld"]


def test_an_array_that_changes_while_it_is_encoded_harms_nobody() -> None:
    """What is encoded is not said; that the process lives and the pack reads is."""
    rows, done = W.copy(), threading.Event()

    def spoil() -> None:
        while not done.is_set():
            rows[:] = np.float32(1) - rows

    thread = threading.Thread(target=spoil)
    thread.start()
    try:
        for profile in PROFILES:
            assert np.isfinite(hhtld.encode({"up_proj": rows}, profile).get_tensor("up_proj")).all()
    finally:
        done.set()
        thread.join()


def test_open_packs_are_opened_again_where_they_are_sent(tmp_path: Path) -> None:
    made = hhtld.encode({"up_proj": W}, "bits:2")
    assert held(pickle.loads(pickle.dumps(made))) == held(made)
    hhtld.save(made, tmp_path / "a.hhtld")
    for mmap in (True, False):
        with hhtld.open(tmp_path / "a.hhtld", mmap=mmap) as pack:
            for other in (pickle.loads(pickle.dumps(pack)), deepcopy(pack)):
                assert held(other) == held(made)
                other.close()
            with pytest.raises(TypeError, match=r"a\.hhtld: an open file cannot be copied or pickled"):
                pickle.dumps(pack.sections)
            assert len(pack.get_tensor("up_proj")) == 600
        pack.close()


# --- memory ---------------------------------------------------------------------------------------


def test_all_tensors_together_have_a_budget(tmp_path: Path) -> None:
    hhtld.save_file({"a.up_proj": W, "b.up_proj": W}, tmp_path / "a.hhtld", profile="bits:2")
    assert len(hhtld.load_file(tmp_path / "a.hhtld", budget=2 * W.nbytes)) == 2
    with pytest.raises(FormatError, match="307,200 bytes decoded, and the budget is 307,199"):
        hhtld.load_file(tmp_path / "a.hhtld", budget=2 * W.nbytes - 1)


def test_a_machine_too_small_says_so(tmp_path: Path) -> None:
    """A declared tensor within the budget but not within the memory: no traceback, nothing left."""
    resource = pytest.importorskip("resource")

    def narrower(draft: Any) -> None:
        wide(draft)
        for record in (*draft.table["groups"], *draft.table["tensors"]):
            record["shape"] = [1, 2**31]

    path = drafted(tmp_path / "wide.hhtld", narrower)
    code = f"from hhtld.commands.main import main; raise SystemExit(main(['convert', {str(path)!r}, 'o.safetensors']))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30)),
    )
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith("hhtld: Unable to allocate")
    assert [path.name for path in tmp_path.iterdir()] == ["wide.hhtld"]


# --- the arithmetic of the thread -----------------------------------------------------------------

UP, DOWN, TO_ZERO = 0x800, 0x400, 0xC00  # fenv.h of x86
FLUSH, DENORMALS_ARE_ZERO = 0x8000, 0x40


@pytest.fixture
def libm() -> Iterator[Any]:
    """The C library's control over rounding, put back afterwards."""
    name = ctypes.util.find_library("m")
    if name is None or sys.platform != "linux":
        pytest.skip("needs Linux's libm")
    import platform

    if platform.machine() != "x86_64":
        pytest.skip("the words are those of x86")
    library, before = ctypes.CDLL(name), (ctypes.c_uint32 * 8)()
    library.fegetenv(before)
    yield library
    library.fesetenv(before)


def set_flags(libm: Any, flags: int) -> None:
    environment = (ctypes.c_uint32 * 8)()
    libm.fegetenv(environment)
    environment[7] |= flags
    libm.fesetenv(environment)


@pytest.mark.parametrize("mode", [UP, DOWN, TO_ZERO])
def test_another_rounding_is_warned_of(libm: Any, mode: int) -> None:
    libm.fesetround(mode)
    with pytest.warns(UserWarning, match="does not round to nearest"):
        hhtld.encode({"up_proj": W[:20]}, "bits:2")


@pytest.mark.parametrize("flags", [FLUSH, DENORMALS_ARE_ZERO, FLUSH | DENORMALS_ARE_ZERO])
def test_flushed_denormals_are_warned_of(libm: Any, flags: int) -> None:
    set_flags(libm, flags)
    with pytest.warns(UserWarning, match="flushes denormals to zero"):
        hhtld.encode({"up_proj": W[:20]}, "bits:2")


def test_integer_decisions_of_normal_numbers_survive_flushing(libm: Any) -> None:
    plain: NDArray[Any] = hhtld.encode({"up_proj": W}, "bits:2").get_tensor("up_proj")
    pack = hhtld.encode({"up_proj": W}, "bits:2")
    set_flags(libm, FLUSH | DENORMALS_ARE_ZERO)
    assert pack.get_tensor("up_proj").tobytes() == plain.tobytes()
