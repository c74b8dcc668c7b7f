"""A hook of mkdocs: pages that stand elsewhere in the repository, and links that work both there and in the site."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
# Where a page of the site stands in the repository, if not in docs/.
OUTSIDE = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "changes.md": "CHANGELOG.md",
    "format.md": "formats/hhtld/SPEC.md",
    "hdf5.md": "formats/hdf5/SPEC.md",
    "h5web.png": "formats/hdf5/h5web.png",
}
IN_SITE = {path: uri for uri, path in OUTSIDE.items()}
FENCED = re.compile(r"(^```.*?^```\n?)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#]*)(?P<anchor>#[^)\s]*)?\)")
INDEXED = re.compile(r"`[^`\n]*`|(?<=\w)\[(\w+)\]\[(\w+)\]")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that stand elsewhere; nothing is copied into docs/."""
    for uri, path in OUTSIDE.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at pages of the site; a link to a file that is no page becomes its text."""
    here = page.file.src_uri
    home = posixpath.dirname(OUTSIDE.get(here, f"docs/{here}"))

    def moved(link: re.Match[str]) -> str:
        target = link["target"]
        if not target or "://" in target or here.startswith("reference/"):
            return link[0]
        path = posixpath.normpath(posixpath.join(home, target))
        uri = IN_SITE.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(uri) is None:
            if not (ROOT / path).exists():
                raise ValueError(f"{home}: {target} does not exist")
            return link["text"]
        relative = posixpath.relpath(uri, posixpath.dirname(here) or ".")
        return f"{link['image']}[{link['text']}]({relative}{link['anchor'] or ''})"

    parts = FENCED.split(markdown)  # every second part is a block of code
    moved_parts = (part if number % 2 else escaped(LINK.sub(moved, part)) for number, part in enumerate(parts))
    return "".join(moved_parts)


def escaped(text: str) -> str:
    """Escape formulas such as code[a][b], which Markdown would take for a link."""
    return INDEXED.sub(lambda found: found[0] if found[0][0] == "`" else rf"\[{found[1]}]\[{found[2]}]", text)
