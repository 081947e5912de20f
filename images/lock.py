"""Write the hash-pinned requirements of both images, from `pyproject.toml`.

The egress-router image holds the other image's packages and its own on top, so each image has a
file of what it adds, and the build tools, which no image keeps, have one too.
"""

# ruff: noqa: INP001 - a script, no package

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Only init speaks netlink; pyroute2 costs 25 MB resident, so the daemon must not even have it.
ROUTER_ONLY = frozenset({"pyroute2"})
BUILD_ONLY = ("pip",)

HEADER = "# Made by `make lock` from pyproject.toml; do not edit.\n"


def name_of(requirement: str) -> str:
    """The package's name in PEP 503's normal form."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    return re.sub(r"[-_.]+", "-", name[0]).lower() if name else ""


def requirements_of(pyproject: str) -> dict[Path, list[str]]:
    """What to pin in each file, given the text of `pyproject.toml`."""
    data = tomllib.loads(pyproject)
    runtime: list[str] = data["project"]["dependencies"]
    build: list[str] = data["build-system"]["requires"]
    images = ROOT / "images"
    return {
        images / "egress-dns-proxy" / "requirements.txt": [
            line for line in runtime if name_of(line) not in ROUTER_ONLY
        ],
        images / "egress-router" / "requirements.txt": [
            line for line in runtime if name_of(line) in ROUTER_ONLY
        ],
        images / "requirements-build.txt": [*build, *BUILD_ONLY],
    }


def pin(requirements: list[str], into: Path, *, upgrade: bool) -> None:
    """Pin `requirements` and all they need, with hashes; keep earlier pins unless `upgrade`."""
    with tempfile.NamedTemporaryFile("w", suffix=".in") as source:
        source.write("\n".join(requirements))
        source.flush()
        command = [sys.executable, "-m", "piptools", "compile", "--quiet", "--generate-hashes"]
        command += ["--allow-unsafe", "--strip-extras", "--no-header", "--no-annotate"]
        command += ["--no-emit-index-url", "--no-emit-find-links", "--no-emit-trusted-host"]
        command += ["--upgrade"] if upgrade else []
        subprocess.run([*command, "--output-file", str(into), source.name], check=True)  # noqa: S603 - all ours
    into.write_text(HEADER + into.read_text().removeprefix(HEADER))


if __name__ == "__main__":
    for path, lines in requirements_of((ROOT / "pyproject.toml").read_text()).items():
        pin(lines, path, upgrade="--upgrade" in sys.argv[1:])
