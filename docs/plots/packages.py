"""Draw which package imports which, and write the tables of packages: `python docs/plots/packages.py`.

The order of the packages is that of tests/test_layering.py, the imports are those of the source, and the sentences are
the first ones of the packages' docstrings. The tables stand in docs/architecture.md and CONTRIBUTING.md, after a line
"<!-- packages -->".
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ARCHITECTURE, CONTRIBUTING = ROOT / "docs" / "architecture.md", ROOT / "CONTRIBUTING.md"
TABLE = re.compile(r"(?<=<!-- packages -->\n).*?(?=\n\n)", re.DOTALL)
MODULES = re.compile(r"(?<=<!-- modules -->\n).*?(?=\n\n<!-- end of modules -->)", re.DOTALL)
LAYERING = ROOT / "tests" / "test_layering.py"
CELL, LEFT, TOP = 26, 100, 92


def order() -> tuple[list[str], set[str]]:
    """Return the packages from the lowest to the highest, and the single modules that count as leaves."""
    values = {}
    for node in ast.parse(LAYERING.read_text(encoding="utf-8")).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(target, ast.Name) and target.id in ("PACKAGES", "LEAVES"):
            values[target.id] = ast.literal_eval(node.value)
    return list(values["PACKAGES"]), set(values["LEAVES"])


def sources() -> Iterator[tuple[str, Path]]:
    """Yield every module below `hhtld` by its first part, with its file."""
    for path in sorted((ROOT / "hhtld").rglob("*.py")):
        parts = path.relative_to(ROOT / "hhtld").with_suffix("").parts
        if parts[0] not in ("formats", "__init__"):
            yield parts[0], path
    for path in sorted((ROOT / "formats").rglob("*.py")):
        yield "formats", path


def imports() -> set[tuple[str, str]]:
    """Return the pairs (package that imports, package that is imported), each once."""
    packages, leaves = order()
    found = set()
    for first, path in sources():
        importer = "leaves" if first in leaves else first
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                parts = name.split(".")
                if parts[0] == "hhtld" and len(parts) > 1:
                    imported = "leaves" if parts[1] in leaves else parts[1]
                    if imported != importer and {imported, importer} <= set(packages):
                        found.add((importer, imported))
    return found


def draw(path: Path) -> None:
    """Write the picture: a line for each package, a mark in the column of each package that it imports."""
    packages = order()[0]
    found = imports()
    width = LEFT + len(packages) * CELL + 12
    height = TOP + len(packages) * CELL + 34
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for row, importer in enumerate(packages):
        middle = TOP + row * CELL + CELL / 2
        lines.append(f'<text x="{LEFT - 8}" y="{middle + 4.5:g}" text-anchor="end">{importer}</text>')
        x = LEFT + row * CELL + CELL / 2 + 4.5
        lines.append(f'<text transform="translate({x:g} {TOP - 8}) rotate(-60)">{importer}</text>')
        for column, imported in enumerate(packages):
            marked = (importer, imported) in found
            down = column < row
            color = ("#4575b4" if down else "#b2182b") if marked else "#ddd" if row == column else "#f4f6fa"
            place = f'x="{LEFT + column * CELL + 1}" y="{TOP + row * CELL + 1}"'
            lines.append(f'<rect {place} width="{CELL - 2}" height="{CELL - 2}" rx="3" fill="{color}"/>')
    words = "blue: the package of the line imports that of the column; red: an import that goes up"
    lines.append(f'<text x="12" y="{height - 12}" font-size="12" fill="#555">{words}</text>')
    path.write_text("\n".join([*lines, "</svg>"]) + "\n", encoding="utf-8")


def folder(name: str) -> Path:
    """Return the folder of a package."""
    return ROOT / "formats" if name == "formats" else ROOT / "hhtld" / name


def sentence(name: str) -> str:
    """Return the first sentence of a package's docstring."""
    return first_sentence(folder(name) / "__init__.py")


def first_sentence(path: Path) -> str:
    """Return the first sentence of a module's docstring."""
    text = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
    found = re.match(r".*?[.?](?=\s|$)", text, re.DOTALL)
    return " ".join((found[0] if found else text).split())


def module_tables() -> str:
    """Return a table for each package: its modules, and what each holds."""
    packages, leaves = order()
    parts = []
    for name in packages:
        if name in ("_kernels", "__main__"):
            continue
        if name == "leaves":
            where, paths = "`hhtld/`, single modules", [ROOT / "hhtld" / f"{leaf}.py" for leaf in sorted(leaves)]
        else:
            where, paths = f"`{folder(name).relative_to(ROOT).as_posix()}/`", sorted(folder(name).rglob("*.py"))
        rows = [(path.relative_to(ROOT).as_posix(), first_sentence(path)) for path in paths if path.stem != "__main__"]
        lines = [f"| `{path}` | {text} |".replace("\\", "\\\\") for path, text in rows if text]
        parts.append("\n".join([f"### {where}", "", "| module | what it holds |", "|---|---|", *lines]))
    return "\n\n".join(parts)


def modules(name: str) -> list[str]:
    """Return the modules and packages that a package holds, by name."""
    suffixes = {".py", ".pyx", ".h"} if name == "_kernels" else {".py"}
    files = {path.stem for path in folder(name).iterdir() if path.suffix in suffixes}
    folders = {path.name for path in folder(name).iterdir() if (path / "__init__.py").exists()}
    return sorted((files | folders) - {"__init__", "__main__"})


def table(with_modules: bool) -> str:
    """Return the table of the packages, the lowest first."""
    packages, leaves = order()
    lines = ["| package | its idea |" + " what it holds |" * with_modules, "|---|---|" + "---|" * with_modules]
    for name in packages:
        if name == "__main__":
            continue
        idea = "Single modules: words and numbers that everyone uses." if name == "leaves" else sentence(name)
        held = sorted(leaves) if name == "leaves" else modules(name)
        shown = name if name == "leaves" else f"`{folder(name).relative_to(ROOT).as_posix()}/`"
        lines.append(f"| {shown} | {idea} |" + f" {', '.join(f'`{one}`' for one in held)} |" * with_modules)
    return "\n".join(lines)


def filled(page: Path) -> str:
    """Return a page with the table as it is now."""
    text = TABLE.sub(lambda _: table(page == ARCHITECTURE), page.read_text(encoding="utf-8"))
    return MODULES.sub(lambda _: module_tables(), text)


if __name__ == "__main__":
    for page in (ARCHITECTURE, CONTRIBUTING):
        page.write_text(filled(page), encoding="utf-8")
    draw(HERE / "packages.svg")
