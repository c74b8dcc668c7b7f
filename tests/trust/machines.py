"""Other processors, emulated: `python -m tests.trust.machines` says what this one does with the golden packs.

Under qemu the same lines must come out for every processor but for the first, which names the tier:

    OPENBLAS_CORETYPE=Nehalem qemu-x86_64 -cpu Nehalem python -m tests.trust.machines       no AVX
    qemu-x86_64 -cpu SandyBridge python -m tests.trust.machines                             AVX, neither AVX2 nor FMA
    qemu-x86_64 -cpu Haswell python -m tests.trust.machines
    tests/trust/aarch64.sh                                              builds for aarch64 and runs on two processors

OpenBLAS, which NumPy brings, chooses instructions that qemu's Nehalem lacks; told its name, it does not.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

PROCESSORS = {"Nehalem": "scalar", "SandyBridge": "scalar", "Haswell": "avx2"}  # of qemu, and the tier each must choose


def lines() -> Iterator[str]:
    """Yield the tier, then the hash of everything each golden pack decodes to and is encoded to."""
    import hhtld
    from hhtld._kernels import _isa
    from tests.golden import make

    yield f"tier {_isa.tier()}"
    with tempfile.TemporaryDirectory() as folder:
        for name, golden in sorted(make.goldens().items()):
            digest = hashlib.sha256()
            with hhtld.open(make.FOLDER / name) as pack:
                for tensor in pack:
                    digest.update(pack.get_tensor(tensor).tobytes())
            hhtld.save(golden.encode(), Path(folder) / name)
            yield f"{name} decoded {digest.hexdigest()[:16]} encoded {contents_digest(Path(folder) / name)}"


def expected() -> Iterator[str]:
    """Yield what the golden files make of the lines after the first."""
    from tests.golden import make

    for name, golden in sorted(make.goldens().items()):
        if golden.is_written:
            yield f"{name} encoded {contents_digest(make.FOLDER / name)}"


def contents_digest(path: Path) -> str:
    """Return a hash of a pack's sections and table.

    Cosines of tensors in types of fewer than 32 bits are left out: the golden files recorded those of float32.
    """
    import hhtld
    from hhtld.dtypes import DTYPES

    digest = hashlib.sha256()
    with hhtld.open(path) as pack:
        for index in range(len(pack.sections.kinds())):
            digest.update(pack.sections.whole(index).tobytes())
        table = pack.table.to_json()
    for tensor in table["tensors"]:
        if DTYPES[tensor["dtype"]].nbits < 32:
            tensor.pop("gates", None)
    digest.update(json.dumps(table, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def emulated(processor: str, *arguments: str) -> list[str]:
    """Return the lines that Python prints on a processor that qemu plays; without arguments, those above."""
    arguments = arguments or ("-m", "tests.trust.machines")
    done = subprocess.run(
        ["qemu-x86_64", "-cpu", processor, sys.executable, *arguments],
        cwd=Path(__file__).parent.parent.parent,
        env=os.environ | {"OPENBLAS_CORETYPE": "Nehalem"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def can_emulate() -> bool:
    """Whether qemu's user emulation of x86-64 is installed."""
    return shutil.which("qemu-x86_64") is not None


if __name__ == "__main__":
    for line in lines():
        print(line, flush=True)
