"""Fuzzing the readers: `python -m tests.trust.fuzz hhtld --seconds 60`.

With the package atheris the search is guided by coverage (libFuzzer), and its mutations are joined by those of
`mutation`, which repair checksums; without it these alone are tried. Either way an input is good when it is read to
the end or refused with a `FormatError`. What is found otherwise is written to a file and becomes a test with a name.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

READERS = ("safetensors", "hhtld", "gguf", "onnx")
BUDGET = 1 << 26  # bytes that decoding one tensor may take here
MAX_NBYTES = 1 << 16  # of an input


def seeds(reader: str) -> list[bytes]:
    """Return sound files and nearly sound ones to begin with: the golden packs and what the tests know by name."""
    from tests.trust.bad_files import bad_files
    from tests.trust.damage import GOLDEN

    found = [bad.data for bad in bad_files() if bad.format == reader]
    if reader == "hhtld":
        from tests.formats import test_hhtld, test_hhtld_slot_t

        draft = test_hhtld.Draft()
        test_hhtld_slot_t.slot_t(draft)
        found += [test_hhtld.Draft().build(), draft.build()] + [path.read_bytes() for path in GOLDEN]
    elif reader == "safetensors":
        from tests.formats import test_safetensors

        found += [test_safetensors.packed(test_safetensors.valid()), *test_safetensors.UNUSUAL.values()]
    elif reader == "gguf":
        from tests.formats import test_gguf

        found += [test_gguf.built(), *test_gguf.UNUSUAL.values()]
    else:
        from tests.formats import test_onnx

        found += [test_onnx.SOUND, test_onnx.varied().SerializeToString()]
    return [data for data in found if len(data) <= MAX_NBYTES]


class Target:
    """One reader, fed with bytes through a file in memory.

    Attributes
    ----------
    tried, read : int
        Inputs, and how many of them were read to the end.
    """

    def __init__(self, reader: str, folder: Path) -> None:
        self.reader = reader
        self.path = folder / f"input.{reader}"
        self.tried = self.read = 0

    def __call__(self, data: bytes) -> None:
        """Read an input; whatever is no FormatError passes through."""
        from hhtld.errors import FormatError

        self.tried += 1
        self.path.write_bytes(data)
        with contextlib.suppress(FormatError), warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", message=".*unknown kind")
            if self.reader == "hhtld":
                self._pack()
            else:
                self._source()
            self.read += 1

    def _pack(self) -> None:
        from hhtld.errors import NonFiniteError
        from hhtld.pack.container import ContainerReader
        from hhtld.pack.opening import open_pack

        with open_pack(self.path, mmap=self.tried % 2 == 0, budget=BUDGET) as pack:
            for name in pack:  # rows first: their checksums are not verified
                if pack.info(name).info.has_rows and pack.info(name).info.n_rows:
                    pack.get_rows(name, [-1, 0])
            assert isinstance(pack.sections, ContainerReader)
            pack.sections.verify()
            for name in pack:
                info = pack.info(name).info
                array = pack.get_tensor(name, "source")
                assert array.nbytes == info.nbytes, f"{name}: {array.nbytes} bytes, expected {info.nbytes}"
                if pack.info(name).codec != "keep" and info.n_rows:
                    try:
                        rows = pack.scorer(name).topk(np.ones((2, info.n_cols)), 1).rows
                    except NonFiniteError:  # gains of a file may pass float32's range; a search says so
                        continue
                    assert ((rows >= 0) & (rows < info.n_rows)).all(), f"{name}: row {rows} of {info.n_rows}"

    def _source(self) -> None:
        from hhtld.formats import get_format

        with get_format(self.reader).open_source(self.path) as source:
            for name, info in source.infos().items():
                if info.nbytes <= BUDGET:
                    array = source.read_tensor(name)
                    assert array.nbytes == info.nbytes, f"{name}: {array.nbytes} bytes, expected {info.nbytes}"


@dataclass(frozen=True)
class Run:
    """What a search did.

    Attributes
    ----------
    reader : str
    executions : int
    guided : bool
        Whether coverage led it.
    findings : list of str
        Tracebacks.
    """

    reader: str
    executions: int
    guided: bool
    findings: list[str]


def unguided(reader: str, *, executions: int = 0, seconds: float = 0.0, seed: int = 0) -> Run:
    """Try mutations of the seeds, and of those of them that could be read; `executions`, or as many as time allows."""
    from tests.trust.mutation import mutated

    rng, corpus, findings = random.Random(seed), seeds(reader), []
    sound, until = list(corpus), time.monotonic() + seconds
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        target = Target(reader, Path(folder))
        while target.tried < executions or time.monotonic() < until:
            data = mutated(reader, rng.choice(sound if rng.random() < 0.7 else corpus), rng, corpus)[:MAX_NBYTES]
            before = target.read
            try:
                target(data)
            except Exception:
                findings.append(f"{_kept(reader, data)}\n{traceback.format_exc()}")
            if target.read > before and len(sound) < 2000:
                sound.append(data)
        return Run(reader, target.tried, False, findings)


def guided(reader: str, seconds: int, seed: int = 0) -> Run:
    """Search with atheris for a while, in a process of its own."""
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for data in seeds(reader):
            (corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
        flags = [f"-max_total_time={seconds}", f"-seed={seed + 1}", f"-max_len={MAX_NBYTES}", "-print_final_stats=1"]
        flags += [f"-artifact_prefix={folder}/", "-rss_limit_mb=2048", "-timeout=10"]
        done = subprocess.run(
            [sys.executable, "-m", "tests.trust.fuzz", reader, "--atheris", *flags, str(corpus)],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        stats = re.search(r"number_of_executed_units:\s*(\d+)", done.stderr)
        findings = [  # crash-, timeout-, oom-
            f"{_kept(reader, path.read_bytes())}: {path.name}\n{done.stdout[-3000:]}"
            for path in sorted(Path(folder).glob("*-*"))
        ]
        if done.returncode != 0 and not findings:
            findings.append(f"exit code {done.returncode}: {done.stdout[-2000:]} {done.stderr[-2000:]}")
        return Run(reader, int(stats[1]) if stats else 0, True, findings)


def has_atheris() -> bool:
    """Whether the search can be guided."""
    import importlib.util

    return importlib.util.find_spec("atheris") is not None


def _memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _kept(reader: str, data: bytes) -> Path:
    """Write an input that was not taken well where a developer finds it."""
    path = Path(tempfile.gettempdir()) / f"hhtld-finding-{hashlib.sha256(data).hexdigest()[:12]}.{reader}"
    path.write_bytes(data)
    return path


def _atheris(reader: str, flags: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=["hhtld"], enable_loader_override=False):
        import hhtld.formats.gguf
        import hhtld.formats.hhtld
        import hhtld.formats.onnx
        import hhtld.formats.safetensors  # noqa: F401 - instrumented here
    from tests.trust.mutation import mutated

    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        target = Target(reader, Path(folder))

        def mutate(data: bytes, max_size: int, seed: int) -> bytes:
            rng = random.Random(seed)
            if rng.random() < 0.3:
                return bytes(atheris.Mutate(data, max_size))
            return mutated(reader, data, rng, [])[:max_size]

        atheris.Setup([sys.argv[0], *flags], target, custom_mutator=mutate)
        atheris.Fuzz()


def main() -> int:
    """Fuzz one reader and print what was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.trust.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    if "--atheris" in sys.argv:  # the process that `guided` starts; what follows is libFuzzer's
        _atheris(sys.argv[1], sys.argv[3:])
        return 0
    args = parser.parse_args()
    run = guided(args.reader, args.seconds, args.seed) if has_atheris() else None
    run = run or unguided(args.reader, seconds=args.seconds, seed=args.seed)
    print(
        f"{run.reader}: {run.executions} executions{'' if run.guided else ', not guided'}, {len(run.findings)} findings"
    )
    for finding in run.findings:
        print(finding)
    return 1 if run.findings else 0


if __name__ == "__main__":
    sys.exit(main())
