"""The programs that the benchmark needs beside this project: found, or installed with apt."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bench.daemons import PATH, BenchError

if TYPE_CHECKING:
    from collections.abc import Iterator

# A command or a file, and the Debian package it comes from.
_NEEDED = {
    "haproxy": "haproxy",
    "nginx": "nginx",
    "/usr/lib/nginx/modules/ngx_stream_module.so": "libnginx-mod-stream",
    "wrk": "wrk",
    "iperf3": "iperf3",
    "taskset": "util-linux",
    "strace": "strace",
}
# Says no to every start of a service while packages are installed (Debian policy, 9.3.3.1).
_POLICY = Path("/usr/sbin/policy-rc.d")


def install_missing() -> None:
    """Install what is missing. Raises `BenchError` where that needs somebody else."""
    packages = [package for what, package in _NEEDED.items() if not _is_there(what)]
    if not packages:
        return
    if os.geteuid() != 0 or shutil.which("apt-get", path=PATH) is None:
        raise BenchError(f"install these Debian packages first: {' '.join(packages)}")
    print("installing", *packages, flush=True)
    env = {"PATH": PATH, "DEBIAN_FRONTEND": "noninteractive"}
    with _no_services():
        for argv in (
            ["apt-get", "update", "-qq"],
            ["apt-get", "install", "-qq", "--no-install-recommends", *packages],
        ):
            subprocess.run(argv, env=env, stdout=subprocess.DEVNULL, check=True)


def _is_there(what: str) -> bool:
    return Path(what).exists() if what.startswith("/") else bool(shutil.which(what, path=PATH))


@contextmanager
def _no_services() -> Iterator[None]:
    """Keep apt from starting haproxy and nginx on this machine."""
    if _POLICY.exists():
        yield
        return
    _POLICY.write_text("#!/bin/sh\nexit 101\n")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink()
