"""What a user's Python finds: the package, its version, its types; and what it says of sources without kernels."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hhtld

PACKAGE = Path(hhtld.__file__).parent


def test_sources_without_kernels_say_what_to_do(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "hhtld", ignore=ignored)
    program = "import hhtld; hhtld.Base17"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: the kernels in {tmp_path / 'hhtld' / '_kernels'} are not compiled.")
    assert "pip install -e ." in last
    assert "start Python in another folder" in last


def test_every_promised_name_is_there() -> None:
    for name in hhtld.__all__:
        assert getattr(hhtld, name) is not None


def test_the_command_looks_after_ctrl_c_before_it_loads_much() -> None:
    program = (
        "import sys\n"
        f"sys.path.insert(0, {str(PACKAGE.parent)!r})\n"
        "import hhtld.__main__ as entry\n"
        "print([name for name in ('typing', 're', 'numpy') if name in sys.modules])\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'hhtld.commands.main': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "sys.exit(entry.main())\n"
    )
    command = [sys.executable, "-I", "-S", "-c", program]  # without what site-packages load
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "[]\n", "interrupted; nothing was begun\n")


def test_promised_modules_need_no_import_of_their_own() -> None:
    program = "import hhtld; print(hhtld.slots.SLOT_L_LANES, hhtld.formats.open_source.__name__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "8 open_source\n"


def test_a_misspelt_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'hhtld' has no attribute 'opne'"):
        hhtld.opne  # type: ignore[attr-defined] # noqa: B018 # the mistake is what is tested
