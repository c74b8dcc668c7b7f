"""`hhtld list`: the formats, and where they come from."""

from __future__ import annotations

import argparse
import json
from typing import Any

from hhtld.commands.arguments import add_json
from hhtld.commands.exit_codes import DONE
from hhtld.display.streams import emit

__all__ = ["DESCRIPTION", "EXAMPLES", "add_arguments", "run"]

DESCRIPTION = "Show the formats and where they come from."
EXAMPLES = """\
  hhtld list
  hhtld list --json
"""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    add_json(command)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from hhtld.display.tables import Table
    from hhtld.display.terminal import console
    from hhtld.formats import Format, registry

    records: list[dict[str, Any]] = []
    for plugin in registry:
        record: dict[str, Any] = {"name": plugin.name, "from": plugin.origin, "class": plugin.target}
        try:
            loaded = plugin.load()
            if not (isinstance(loaded, type) and issubclass(loaded, Format)):
                record["error"] = f"{loaded!r} is not a Format"
            else:
                record |= {
                    "suffixes": list(loaded.suffixes),
                    "reads": loaded.reads,
                    "writes": loaded.writes,
                    "description": loaded.description,
                }
        except Exception as error:
            record["error"] = f"{type(error).__name__}: {error}"
        records.append(record)
    if arguments.json:
        emit(json.dumps({"schema": "hhtld.list/1", "formats": records}, indent=2))
        return DONE
    rows = (
        (
            r["name"],
            " ".join(r.get("suffixes", ())),
            "" if "error" in r else " ".join(verb for verb in ("reads", "writes") if r[verb]),
            r["from"],
            r.get("description", r.get("error", "")),
        )
        for r in records
    )
    console().print(Table(("format", "suffixes", "", "from", "~what"), rows, spared=("from",)))
    return DONE
