"""Count the system calls that each proxy makes for one short connection."""

from __future__ import annotations

import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.daemons import PATH, BenchError
from bench.figures import parse_strace
from bench.peers import FORWARDING, LOGGING, PEERS
from bench.servers import get

if TYPE_CHECKING:
    from bench.peers import Peer
    from bench.topology import Topology

_CONNECTIONS = 200
_ATTACH_S = 5.0


@dataclass(frozen=True, slots=True)
class SyscallCount:
    """Calls per connection, by name. It includes the few calls that a proxy makes while idle."""

    peer: str
    calls: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.calls.values())


def count(topology: Topology, core: int, directory: Path, peer: Peer) -> SyscallCount:
    """Trace `peer` with strace(1) while it serves short connections one after the other."""
    daemon = peer.start(topology, core, directory)
    if daemon is None:
        raise BenchError(f"{peer.name} makes no system calls")
    table = directory / "strace.txt"
    with daemon:
        daemon.wait_for_ports(own for own, _ in peer.listeners())
        strace = subprocess.Popen(
            ["strace", "-f", "-c", "-o", str(table), "-p", str(daemon.pid)],
            env={"PATH": PATH},
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait_until_traced(daemon.pid, strace)
            for _ in range(_CONNECTIONS):
                get(topology.client, peer.endpoint("new"), "/")
        finally:
            # On this signal strace detaches from the process and writes its table.
            strace.send_signal(signal.SIGINT)
            strace.wait()
    calls = parse_strace(table.read_text())
    return SyscallCount(
        peer.name,
        {name: round(number / _CONNECTIONS, 2) for name, number in calls.items()},
    )


def count_all(
    topology: Topology, core: int, directory: Path, wanted: frozenset[str]
) -> list[SyscallCount]:
    """`count` for every wanted proxy."""
    return [
        count(topology, core, directory, peer)
        for peer in PEERS.values()
        if peer.name in wanted and peer not in {FORWARDING, LOGGING}
    ]


def _wait_until_traced(pid: int, strace: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _ATTACH_S
    status = Path(f"/proc/{pid}/status")
    while "TracerPid:\t0\n" in status.read_text():
        if strace.poll() is not None or time.monotonic() > deadline:
            raise BenchError(f"strace can't attach to process {pid}")
        time.sleep(0.02)
