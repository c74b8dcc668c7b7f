"""What a release says of itself: one version in all files, and a tested release of everything that is declared."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="an installed copy has no source tree")


def test_the_version_is_the_same_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    cited = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.*)$", cited, re.MULTILINE) == [version]
    assert f"\n## {version} " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## Checklist of {version}\n" in (ROOT / "docs" / "release.md").read_text(encoding="utf-8")


def test_everything_that_is_declared_has_a_release_that_was_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: extra for name, extra in project["optional-dependencies"].items() if name != "bench"}
    declared = [*project["dependencies"], *(one for extra in extras.values() for one in extra)]
    pinned = dict(
        re.findall(r"^([\w-]+)==([\w.]+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    )
    for requirement in declared:
        name, lowest, bound = re.fullmatch(
            r"([\w-]+)(?:\[[\w,]+\])?(?:>=([\d.]+))?(?:,<([\d.]+))?", requirement
        ).groups()  # type: ignore[union-attr]
        if name == "hhtld":
            continue
        tested = numbers(pinned[re.sub(r"[-_.]+", "-", name).lower()])
        assert numbers(lowest) <= tested, requirement
        assert bound is None or tested < numbers(bound), requirement


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
