"""Links of the documentation lead somewhere: those inside the built site to a file and an anchor, others to an answer.

usage: .ci/links.py SITE          every link inside the site, and the form of those that lead out of it
       .ci/links.py SITE --ask    also asks for each page outside, and tells those that do not answer
"""

import sys
import urllib.error
import urllib.request
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Links(HTMLParser):
    """What a page links to, and the anchors that it has."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors = {"", "__search"}  # the top, and what the theme's script makes
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a link, a picture, a script or an anchor."""
        for name, value in attrs:
            if name in {"href", "src"} and value is not None:
                self.targets.append(value)
            elif value and (name == "id" or (name == "name" and tag == "a")):
                self.anchors.add(value)


def problem_inside(page: Path, target: str, pages: dict[Path, Links]) -> str:
    """Return what is wrong with a link to this site, or nothing."""
    parts = urlsplit(target)
    if parts.path.startswith("/"):
        return "begins at the root, where the site need not stand"
    path = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    path = path / "index.html" if path.is_dir() else path
    if not path.exists():
        return "leads to no file"
    if path in pages and unquote(parts.fragment) not in pages[path].anchors:
        return "leads to no anchor"
    return ""


def problem_outside(target: str) -> str:
    """Return what is wrong with the form of a link to another site, or nothing."""
    parts = urlsplit(target)
    if parts.scheme != "https":
        return "is not https"
    if "." not in (parts.hostname or "") or parts.username or target[-1] in ".,;:'\"" or " " in target:
        return "is no address of a page"
    return ""


def problem_of_answer(target: str) -> str:
    """Return what a page outside answers, if it is not that it is there."""
    request = urllib.request.Request(target, headers={"User-Agent": "Mozilla/5.0 (link check)"})
    try:
        with urllib.request.urlopen(request, timeout=20):
            return ""
    except urllib.error.HTTPError as error:
        return f"answers {error.code}" if error.code in {404, 410} else ""
    except OSError as error:
        return f"does not answer: {error}"


def main(site: Path, ask: bool) -> int:
    """Print what is wrong with each link, and how many were looked at."""
    pages = {page.resolve(): Links(page) for page in sorted(site.rglob("*.html"))}
    if not pages:
        raise SystemExit(f"{site} holds no page: `python -m mkdocs build --strict` makes it")
    wrong, outside, n_inside = [], set(), 0
    for page, links in pages.items():
        if page.name == "404.html":
            continue  # it is shown at any address, so its links begin at the root
        for target in links.targets:
            if urlsplit(target).scheme in {"http", "https"}:
                outside.add(target)
            elif not target.startswith(("data:", "mailto:")):
                n_inside += 1
                if problem := problem_inside(page, target, pages):
                    wrong.append(f"{page.relative_to(site.resolve())}: {target} {problem}")
    found = [
        (target, problem_outside(target) or (problem_of_answer(target) if ask else "")) for target in sorted(outside)
    ]
    wrong.extend(f"{target} {problem}" for target, problem in found if problem)
    print(f"{len(pages)} pages, {n_inside} links inside, {len(outside)} pages outside{' asked' if ask else ''}")
    print(*wrong, sep="\n", end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    arguments = [word for word in sys.argv[1:] if word != "--ask"]
    if len(arguments) != 1:
        raise SystemExit(__doc__)
    sys.exit(main(Path(arguments[0]), "--ask" in sys.argv))
