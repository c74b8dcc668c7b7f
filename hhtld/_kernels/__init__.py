"""Compiled kernels: pointers and shapes; no names, files, policy, allocation or threads."""

import importlib.util
from pathlib import Path

if importlib.util.find_spec("hhtld._kernels._isa") is None:  # a folder of sources that shadows an installed hhtld
    raise ImportError(
        f"the kernels in {Path(__file__).parent} are not compiled. If this is a clone of hhtld, run `pip install -e .` "
        "in it; if hhtld is installed elsewhere, start Python in another folder, because this one is found first"
    )
