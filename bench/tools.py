"""Get the programs that the benchmark runs: install the tools, unpack the compared proxies.

The proxies come from a newer Debian than the machine's, so they are unpacked, not installed, and
run with the libraries they were built for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from bench.daemons import PATH, SUITE, UNPACKED, BenchError

# A command, and the Debian package it comes from.
_TOOLS = {
    "wrk": "wrk",
    "iperf3": "iperf3",
    "taskset": "util-linux",
    "strace": "strace",
    "mmdebstrap": "mmdebstrap",
}
_PROXIES = ("haproxy", "nginx")
_PACKAGES = "haproxy,nginx,libnginx-mod-stream"
_DEBIAN = Path(__file__).parents[1] / "images/debian.sh"

# The loader of the unpacked C library finds the unpacked libraries; the machine's may be too old.
_WRAPPER = """\
#!/bin/sh
exec '{loader}' --library-path '{libraries}' '{program}' "$@"
"""


def provide() -> None:
    """Install and unpack what is missing. Raises `BenchError` if that is not possible."""
    _install_missing()
    if not UNPACKED.exists():
        _unpack_proxies()


def _install_missing() -> None:
    packages = [package for tool, package in _TOOLS.items() if not shutil.which(tool, path=PATH)]
    if not packages:
        return
    if os.geteuid() != 0 or shutil.which("apt-get", path=PATH) is None:
        raise BenchError(f"install these Debian packages first: {' '.join(packages)}")
    print("installing", *packages, flush=True)
    env = {"PATH": PATH, "DEBIAN_FRONTEND": "noninteractive"}
    for argv in (
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-qq", "--no-install-recommends", *packages],
    ):
        subprocess.run(argv, env=env, stdout=subprocess.DEVNULL, check=True)


def _unpack_proxies() -> None:
    """Fill `UNPACKED`, which appears only when it is complete."""
    print(f"unpacking {' and '.join(_PROXIES)} of Debian {SUITE} into {UNPACKED}", flush=True)
    UNPACKED.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=UNPACKED.parent) as scratch:
        archive, tree = Path(scratch, "root.tar"), Path(scratch, "tree")
        tree.mkdir(mode=0o755)
        # By way of an archive, so that an ordinary user owns the files and can delete them.
        extract = ["tar", "--extract", "--no-same-owner", "--exclude=./dev/*"]
        for argv in (
            [str(_DEBIAN), SUITE, _PACKAGES, str(archive)],
            [*extract, f"--file={archive}", f"--directory={tree}"],
        ):
            if subprocess.run(argv, check=False).returncode:
                raise BenchError(f"can't unpack {_PACKAGES} of Debian {SUITE}: {argv[0]} failed")
        write_wrappers(tree, UNPACKED)
        tree.rename(UNPACKED)


def write_wrappers(tree: Path, destination: Path) -> None:
    """Write ``commands/PROXY`` below `tree`, for use once `tree` is moved to `destination`."""
    (library,) = tree.glob("usr/lib/*/libc.so.6")
    (loader,) = library.parent.glob("ld*.so.[0-9]")
    commands = tree / "commands"
    commands.mkdir()
    for name in _PROXIES:
        wrapper = commands / name
        wrapper.write_text(
            _WRAPPER.format(
                loader=destination / loader.relative_to(tree),
                libraries=destination / library.parent.relative_to(tree),
                program=destination / "usr/sbin" / name,
            )
        )
        wrapper.chmod(0o755)
