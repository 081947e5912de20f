"""CPU time that each process, and the machine, used between two moments.

The kernel counts a process's time in nanoseconds. It includes the work of the network stack on
behalf of that process: on a veth, the sender's core delivers a segment into the receiver's socket.
The machine's time is the time its cores were not idle, so it includes work that is charged to no
process.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_STAT = Path("/proc/stat")


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Seconds since an arbitrary origin, or between two moments."""

    wall: float
    proxy: float
    # Servers and load generators.
    load: float
    # Kernel threads that process packets when a core is busy.
    network: float
    idle: float
    steal: float

    def __sub__(self, earlier: Times) -> Times:
        return Times(
            wall=self.wall - earlier.wall,
            proxy=self.proxy - earlier.proxy,
            load=self.load - earlier.load,
            network=self.network - earlier.network,
            idle=self.idle - earlier.idle,
            steal=self.steal - earlier.steal,
        )

    def busy(self, cores: int) -> float:
        """CPU seconds that the whole machine used."""
        return max(cores * self.wall - self.idle - self.steal, 0.0)

    def foreign(self, cores: int) -> float:
        """CPU seconds of `busy` that no part of the benchmark used."""
        return max(self.busy(cores) - self.proxy - self.load - self.network, 0.0)


class Clocks:
    """Reads `Times` of the proxies and servers with these process identifiers.

    The load includes this process and its ended children, which are the load generators.
    """

    def __init__(self, proxies: Sequence[int], servers: Sequence[int]) -> None:
        self._proxies = proxies
        self._servers = servers
        self._network = _kernel_threads("ksoftirqd/")

    def read(self) -> Times:
        idle, steal = parse_stat(_STAT.read_text())
        return Times(
            wall=time.monotonic(),
            proxy=sum(map(process_seconds, self._proxies)),
            load=sum(map(process_seconds, self._servers)) + _own_seconds(),
            network=sum(map(process_seconds, self._network)),
            idle=idle,
            steal=steal,
        )


def process_seconds(pid: int) -> float:
    """CPU seconds of all threads of `pid`, with a resolution of a nanosecond."""
    # MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED) in linux/posix-timers.h, as clock_getcpuclockid(3).
    return time.clock_gettime((~pid << 3) | 2)


def resident_octets(pid: int) -> int:
    """VmRSS of `pid`."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def parse_stat(text: str) -> tuple[float, float]:
    """Idle seconds (with iowait) and stolen seconds of all cores in /proc/stat (proc(5))."""
    fields = [int(field) for field in text.split("\n", 1)[0].split()[1:]]
    return (fields[3] + fields[4]) / _TICKS_PER_S, fields[7] / _TICKS_PER_S


def _own_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _kernel_threads(prefix: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        # Another process may end between the two calls.
        with contextlib.suppress(OSError):
            if path.read_text().startswith(prefix):
                found.append(int(path.parent.name))
    return found
