"""Install the project and its pinned requirements into `PREFIX`; runs in the build stage.

It needs nothing but a Python: pip comes as a wheel, and a wheel of pip runs as it is. So the base
needs no pip, no shell and no package manager, and the build needs no network.
"""

# ruff: noqa: INP001 - a script, no package

from __future__ import annotations

import compileall
import os
import py_compile
import subprocess
import sys
import venv
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent
IMAGES = SOURCE / "images"
WHEELS = SOURCE / "build" / "wheels"
PREFIX = Path("/opt/egress-proxy")
BUILD_TOOLS = Path("/build-tools")
MINIMUM_PYTHON = (3, 11)

PIP_OPTIONS = {
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_FIND_LINKS": str(WHEELS),
    "PIP_NO_CACHE_DIR": "1",
    "PIP_NO_INDEX": "1",
    "PIP_ROOT_USER_ACTION": "ignore",
}


def pip(*arguments: str | Path, python: str | Path = sys.executable, path: str = "") -> None:
    """Run the pip that came as a wheel under `python`, with `path` as its PYTHONPATH."""
    (wheel,) = WHEELS.glob("pip-*.whl")
    environment = {**os.environ, **PIP_OPTIONS, "PYTHONPATH": path}
    subprocess.run([python, wheel / "pip", *arguments], env=environment, check=True)  # noqa: S603 - ours


def install(requirements: str, *options: str, python: str | Path = sys.executable) -> None:
    """Install exactly what the file `requirements` under images/ pins, by its hashes."""
    pip(
        "install",
        "--no-compile",
        "--no-warn-script-location",
        "--require-hashes",
        f"--requirement={IMAGES / requirements}",
        *options,
        python=python,
    )


def build_project(into: Path) -> Path:
    """Build the project's wheel with the pinned build tools; gives its path."""
    install("requirements-build.txt", f"--target={BUILD_TOOLS}")
    pip(
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        f"--wheel-dir={into}",
        SOURCE,
        path=str(BUILD_TOOLS),
    )
    (wheel,) = into.glob("egress_proxy-*.whl")
    return wheel


def drop_commands(directory: Path, keep: set[str]) -> None:
    """Remove what the packages bring for developers, a DHCP client among it."""
    for command in directory.iterdir():
        if command.name not in keep:
            command.unlink()


def compile_tree(tree: Path) -> None:
    """Compile all modules now, because the root is read-only at run time.

    Unchecked hashes, for the default would write the sources' time stamps into the files.
    """
    compiled = compileall.compile_dir(
        tree,
        maxlevels=64,
        force=True,
        quiet=1,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    if not compiled:
        sys.exit(f"{tree}: some files do not compile")


def main() -> None:
    if sys.version_info < MINIMUM_PYTHON:
        sys.exit(f"the base has Python {sys.version.split()[0]}; 3.11 is the oldest that will do")
    if not WHEELS.is_dir():
        sys.exit("build/wheels is missing: run `make images`, which fetches the wheels first")
    project = build_project(Path("/build"))

    venv.create(PREFIX, with_pip=False, symlinks=True)
    python = PREFIX / "bin" / "python3"
    install("requirements.txt", python=python)
    pip("install", "--no-compile", "--no-deps", project, python=python)
    drop_commands(PREFIX / "bin", keep={"egress-proxy", "python", "python3", python.resolve().name})
    compile_tree(PREFIX / "lib")


if __name__ == "__main__":
    main()
