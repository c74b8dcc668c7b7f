"""What a release says of itself: one version in all files, and a tested release of everything that is declared."""

from __future__ import annotations

import re
import subprocess
import sys
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
        ).groups()  # type: ignore[union-attr]  # the pattern is there, or the test fails
        if name == "hhtld":
            continue
        tested = numbers(pinned[re.sub(r"[-_.]+", "-", name).lower()])
        assert numbers(lowest) <= tested, requirement
        assert bound is None or tested < numbers(bound), requirement


SITE = """<h2 id="here"></h2> <a href="#here"></a> <a href="other.html#there"></a> <a href="https://example.org/page"></a>
{} <img src="picture.png">"""


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("", ""),
        ('<a href="#gone"></a>', "index.html: #gone leads to no anchor"),
        ('<a href="other.html#gone"></a>', "index.html: other.html#gone leads to no anchor"),
        ('<a href="gone.html"></a>', "index.html: gone.html leads to no file"),
        ('<a href="/other.html"></a>', "index.html: /other.html begins at the root, where the site need not stand"),
        ('<a href="http://example.org"></a>', "http://example.org is not https"),
        ('<a href="https://example.org/page."></a>', "https://example.org/page. is no address of a page"),
    ],
)
def test_links_of_the_site_that_lead_nowhere_are_found(broken: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(SITE.format(broken), encoding="utf-8")
    (tmp_path / "other.html").write_text('<p id="there"></p>', encoding="utf-8")
    (tmp_path / "picture.png").touch()
    check = [sys.executable, ROOT / ".ci" / "links.py", tmp_path]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == bool(told), done.stderr
    assert done.stdout.splitlines()[1:] == ([told] if told else [])


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
