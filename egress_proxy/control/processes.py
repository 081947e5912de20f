"""Finds the running `egress-proxy run` of the container, and signals it.

The image has no shell and no ``kill``. The daemon is process 1, unless the pod shares its process
namespace; other containers' processes are not seen. Daemons of other pods, which a node sees, are
left alone.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from egress_proxy.errors import PlatformError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_PROC = Path("/proc")
# The first process of a container.
_FIRST = 1
_WHERE = "use the container that runs egress-proxy run: kubectl exec POD -c CONTAINER"

SIGNALS = {
    "reload": (signal.SIGHUP, "it reads the destinations again, see its log for config.reloaded"),
    "debug": (signal.SIGUSR1, "it switches the records of connections on or off"),
}


def is_daemon(arguments: Sequence[str]) -> bool:
    """Whether a process with this command line is `egress-proxy run`."""
    if not arguments or arguments[-1] != "run":
        return False
    names = {os.path.basename(argument) for argument in arguments[:-1]}  # noqa: PTH119 - text only
    return bool(names & {"egress-proxy", "egress_proxy"})


def choose(processes: Iterable[tuple[int, Sequence[str]]]) -> int:
    """The daemon's process id. Raises `PlatformError` when there is none, or no single one."""
    found = [number for number, arguments in processes if is_daemon(arguments)]
    if _FIRST in found:
        return _FIRST
    if not found:
        raise PlatformError(Problem(reason="no egress-proxy run in this container", cure=_WHERE))
    if len(found) > 1:
        numbers = ", ".join(map(str, sorted(found)))
        raise PlatformError(
            Problem(
                reason=f"several egress-proxy run here: processes {numbers}",
                cure="send SIGHUP (reload) or SIGUSR1 (debug) to one of them with kill",
            )
        )
    return found[0]


def read_processes(proc: Path = _PROC) -> list[tuple[int, list[str]]]:
    """All processes of this pod with their command lines. Raises `PlatformError`."""
    try:
        numbers = [int(entry.name) for entry in proc.iterdir() if entry.name.isdigit()]
    except OSError as error:
        raise _unreadable(error.strerror) from None
    if not numbers:
        raise _unreadable("it is empty")
    here = _network(proc / "self")
    # That of another user's process can't be read, nor can the process be signalled.
    return [
        (number, _arguments(proc / str(number) / "cmdline"))
        for number in numbers
        if _network(proc / str(number)) in ("", here)
    ]


def send(action: str) -> str:
    """Send the signal of `action` to the daemon; what was done. Raises `PlatformError`."""
    number, effect = SIGNALS[action]
    process = choose(read_processes())
    try:
        os.kill(process, number)
    except OSError as error:
        raise PlatformError(
            Problem(reason=f"can't signal process {process}: {error.strerror}", cure=_WHERE)
        ) from None
    return f"sent {number.name} to process {process}: {effect}"


def _network(process: Path) -> str:
    """The network namespace of a process, which the containers of a pod share; empty: unknown."""
    try:
        return os.readlink(process / "ns/net")  # noqa: PTH115 - no file has this name
    except OSError:
        return ""


def _arguments(path: Path) -> list[str]:
    try:
        return path.read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        # It has ended, or belongs to another user.
        return []


def _unreadable(reason: str | None) -> PlatformError:
    return PlatformError(
        Problem(reason=f"can't read /proc: {reason}", cure="mount /proc in the container")
    )
