"""Write the hash-pinned requirements of the images, from `pyproject.toml`.

Both images have the same packages. The build tools, which no image keeps, have a file of their own.
"""

# ruff: noqa: INP001 - a script, no package

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD_ONLY = ("pip",)

HEADER = "# Made by `make lock` from pyproject.toml; do not edit.\n"


def requirements_of(pyproject: str) -> dict[Path, list[str]]:
    """What to pin in each file, given the text of `pyproject.toml`."""
    data = tomllib.loads(pyproject)
    images = ROOT / "images"
    return {
        images / "requirements.txt": data["project"]["dependencies"],
        images / "requirements-build.txt": [*data["build-system"]["requires"], *BUILD_ONLY],
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
