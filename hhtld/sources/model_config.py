"""config.json, which tells what model a folder holds: read, and written again when some of it no longer holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hhtld.storage.strict_json import json_object

__all__ = ["CONFIG", "config_bytes", "config_object"]

CONFIG = "config.json"


def config_object(data: bytes | bytearray, where: str) -> dict[str, Any]:
    """Return what a config.json holds, or raise `HeaderError` starting with `where`."""
    return json_object(data, where, constants=True)  # it is Python's JSON: some hold Infinity


def config_bytes(config: Mapping[str, Any]) -> bytes:
    """Return a config as transformers writes it."""
    return (json.dumps(config, indent=2) + "\n").encode()
