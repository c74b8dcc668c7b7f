"""Compiled kernels: pointers and shapes; no names, no policy, no threads of their own; of files an open descriptor."""

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

if importlib.util.find_spec("hhtld._kernels._isa") is None:  # a folder of sources that shadows an installed hhtld
    raise ImportError(
        f"the kernels in {Path(__file__).parent} are not compiled. If this is a clone of hhtld, run `pip install -e .` "
        "in it; if hhtld is installed elsewhere, start Python in another folder, because this one is found first"
    )

if TYPE_CHECKING:
    from hhtld._kernels import _cast as _cast
    from hhtld._kernels import _cholesky as _cholesky
    from hhtld._kernels import _dot as _dot
    from hhtld._kernels import _eigen as _eigen
    from hhtld._kernels import _fold as _fold
    from hhtld._kernels import _isa as _isa
    from hhtld._kernels import _l1 as _l1
    from hhtld._kernels import _l2 as _l2
    from hhtld._kernels import _leaf as _leaf
    from hhtld._kernels import _pread as _pread
    from hhtld._kernels import _rotate as _rotate
    from hhtld._kernels import _score as _score
    from hhtld._kernels import _screen as _screen
    from hhtld._kernels import _team as _team
    from hhtld._kernels import _trellis as _trellis


def __getattr__(name: str) -> Any:
    """Load a kernel when it is first named. Importing it makes it an attribute: the next use does not come here."""
    if name not in _KERNELS:
        raise AttributeError(f"module 'hhtld._kernels' has no attribute {name!r}")
    return importlib.import_module(f"hhtld._kernels.{name}")


_KERNELS = {
    "_cast",
    "_cholesky",
    "_dot",
    "_eigen",
    "_fold",
    "_isa",
    "_leaf",
    "_pread",
    "_rotate",
    "_score",
    "_screen",
    "_l1",
    "_l2",
    "_team",
    "_trellis",
}
