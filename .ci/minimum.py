"""Print the oldest release of everything that hhtld and the named extras declare, as requirements for pip."""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
wanted = [*project["dependencies"], *(one for extra in sys.argv[1:] for one in project["optional-dependencies"][extra])]
for requirement in wanted:
    found = re.fullmatch(r"([\w-]+(?:\[\w+\])?)>=([\d.]+)(,<[\d.]+)?", requirement)
    if not found:
        raise SystemExit(f"{requirement!r} declares no minimum")
    print(f"{found[1]}=={found[2]}")
