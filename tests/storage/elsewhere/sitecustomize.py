"""Makes a Python on Linux behave like one on a system that lacks what HHTLD_HIDDEN names; its children, too.

Python imports this file when it begins if the folder is on PYTHONPATH. A name is one of `os`, a module, or one of two
habits of Windows: `open files`, which are neither renamed, replaced nor removed, and `open folders`, which there are
none of.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import Any


def _is_open(path: Any) -> bool:
    found = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(os.fsdecode(path)))  # noqa: PTH118, PTH119, PTH120 - pathlib calls what is replaced here
    held = {os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")}  # noqa: PTH208 - the same
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:  # noqa: PTH123 - the same
        held.update(line[line.index("/") :].rstrip("\n") for line in maps if "/" in line)
    return any(one == found or one.startswith(found + "/") for one in held)


def _refusing(call: Callable[..., Any], n_paths: int) -> Callable[..., Any]:
    def refused(*paths: Any, **options: Any) -> Any:
        for path in paths[:n_paths]:
            if _is_open(path):
                raise PermissionError(errno.EACCES, "The process cannot access the file because it is in use", path)
        return call(*paths, **options)

    return refused


def _opens_no_folder(call: Callable[..., int]) -> Callable[..., int]:
    def refused(path: Any, *options: Any, **named: Any) -> int:
        # What removes trees asks for a folder by O_DIRECTORY, which Windows does not have either.
        if not (options and options[0] & os.O_DIRECTORY) and not isinstance(path, int) and os.path.isdir(path):  # noqa: PTH112 - the same
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return call(path, *options, **named)

    return refused


for name in filter(None, os.environ.get("HHTLD_HIDDEN", "").split(",")):
    if name == "open files":
        for function, paths in (("unlink", 1), ("remove", 1), ("rename", 2), ("replace", 2)):
            setattr(os, function, _refusing(getattr(os, function), paths))
    elif name == "open folders":
        os.open = _opens_no_folder(os.open)
    elif hasattr(os, name):
        delattr(os, name)
    else:
        sys.modules[name] = None  # type: ignore[assignment]  # so that an import fails
