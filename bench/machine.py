"""The facts of a run: the machine, the kernel, and the version of every program."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from bench.daemons import PATH, SUITE

_OS_RELEASE = Path("/etc/os-release")


def describe(proxy_core: int, load_core: int) -> dict[str, str]:
    """Facts by name, in the order in which the report lists them."""
    unpacked = f", from Debian {SUITE}"
    return {
        "CPU": f"{_cpu_model()}, {os.cpu_count()} cores: proxy on {proxy_core},"
        f" generators and servers on {load_core}",
        "kernel": f"{platform.system()} {platform.release()}",
        "distribution": _distribution(),
        "Python": f"{platform.python_version()}, {_python_build()}",
        "egress-proxy": f"{version('egress-proxy')}, commit {_commit()},"
        f" uvloop {version('uvloop')}",
        "HAProxy": _first(r"version (\S+)", "haproxy", "-v") + unpacked,
        "nginx": _first(r"nginx/(\S+)", "nginx", "-v") + unpacked,
        "wrk": _first(r"wrk (\S+)", "wrk", "-v"),
        "iperf3": _first(r"iperf (\S+)", "iperf3", "--version"),
    }


def _cpu_model() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    model = found[1] if found else platform.machine()
    hypervisor = " (virtual)" if "hypervisor" in Path("/proc/cpuinfo").read_text() else ""
    return model + hypervisor


def _distribution() -> str:
    if not _OS_RELEASE.exists():
        return "unknown"
    found = re.search(r'^PRETTY_NAME="?([^"\n]+)', _OS_RELEASE.read_text(), re.MULTILINE)
    return found[1] if found else "unknown"


def _python_build() -> str:
    """Who built this Python: a distribution's profile-guided build is faster than most others."""
    binary = str(Path(sys.executable).resolve())
    owner = _output("dpkg", "--search", binary).partition(":")[0]
    if owner:
        return (
            f"package {owner} {_output('dpkg-query', '--show', '--showformat=${Version}', owner)}"
        )
    return f"no package, {platform.python_compiler()}"


def _commit() -> str:
    commit = _output("git", "rev-parse", "--short", "HEAD").strip() or "unknown"
    changed = _output("git", "status", "--porcelain", "--", "egress_proxy").strip()
    return f"{commit} with local changes" if changed else commit


def _first(pattern: str, *argv: str) -> str:
    found = re.search(pattern, _output(*argv))
    return found[1] if found else "unknown"


def _output(*argv: str) -> str:
    """The output of a command, empty if it does not exist. ``wrk -v`` exits with 1 always."""
    try:
        done = subprocess.run(argv, env={"PATH": PATH}, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    if argv[0] in {"dpkg", "dpkg-query", "git"}:
        return done.stdout
    return done.stdout + done.stderr
