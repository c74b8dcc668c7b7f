"""Messages name a keyword and its option; the command line shows the option alone, and loads nothing without a word."""

from __future__ import annotations

import ast
import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import hhtld
import hhtld.formats
from hhtld.commands.main import main
from hhtld.commands.option_names import KEYWORD_AND_OPTION, as_options


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("min_ratio (--min-ratio) must be finite", "--min-ratio must be finite"),
        ("keep it with nonfinite='keep' (--nonfinite keep).", "keep it with --nonfinite keep."),
        ("memory=3145728 (--memory 3MiB) is enough", "--memory 3MiB is enough"),
        ("needs calibrate (--calibrate): a text", "needs --calibrate: a text"),
        ("what lies in model (2).hhtld (none)", "what lies in model (2).hhtld (none)"),
    ],
)
def test_the_option_is_shown_alone(message: str, shown: str) -> None:
    assert as_options(message) == shown


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """The literals of a module; a value stands as 0, which a keyword may have."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "0" for part in node.values)
            yield node.lineno, "".join(map(str, parts))


def test_every_option_stands_behind_its_keyword() -> None:
    packages = (Path(hhtld.__file__).parent, Path(hhtld.formats.__file__).parent)
    paths = [path for folder in packages for path in folder.rglob("*.py")]
    strays = [
        f"{path}:{line}: {text}"
        for path in paths
        if not {"commands", "display"} & set(path.parts)
        for line, text in texts(path)
        if "(--" in KEYWORD_AND_OPTION.sub("", text)
    ]
    assert not strays, "\n".join(strays)


def test_a_command_that_does_not_load_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load = importlib.import_module

    def broken(name: str, package: str | None = None) -> object:
        if name == "hhtld.commands.list":
            raise AttributeError("module 'rich' has no attribute 'table'")
        return load(name, package)

    monkeypatch.setattr(importlib, "import_module", broken)
    assert main(["list", "--json"]) == 2
    out, err = capsys.readouterr()
    assert err == (
        "hhtld: a part of hhtld cannot be loaded: hhtld.commands.list: AttributeError: module 'rich' has no attribute "
        "'table'; install hhtld and the packages it needs again\n"
    )
    assert json.loads(out)["error"]["type"] == "ImportError"


def test_input_beyond_a_limit_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = np.random.default_rng(0).standard_normal((600, 1 << 12)).astype(np.float32)
    model, pack = tmp_path / "m.hhtld", tmp_path / "n.hhtld"
    hhtld.save(hhtld.encode({"w": rows}, "bits:1"), model)
    assert main(["convert", str(model), str(pack), "--budget", "1MB"]) == 3
    assert "raise the budget with --budget\n" in capsys.readouterr().err
    assert main(["convert", str(model), str(pack), "--memory", "1MB"]) == 3
    assert "allow as much with --memory " in capsys.readouterr().err
