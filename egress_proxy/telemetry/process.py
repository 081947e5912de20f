"""The metrics of this process, with the names that Prometheus' client libraries use, from proc(5).

Source of the names: https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics
"""

from __future__ import annotations

import contextlib
import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Sample:
    """One metric and its value; `name` is its full name."""

    kind: Literal["counter", "gauge"]
    name: str
    meaning: str
    value: float


def read_process(proc: Path = _PROC) -> tuple[Sample, ...]:
    """The metrics of this process; those that cannot be read are left out.

    Counting descriptors takes milliseconds if there are many: call this in a thread.
    """
    samples = []
    # /proc may be hidden or not mounted.
    with contextlib.suppress(OSError):
        samples += _read_stat(proc)
    with contextlib.suppress(OSError):
        samples.append(_gauge("open_fds", "Number of open file descriptors.", _open_fds(proc)))
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    samples.append(_gauge("max_fds", "Maximum number of open file descriptors.", limit))
    return tuple(samples)


def _read_stat(proc: Path) -> list[Sample]:
    # The name of the command, in parentheses, may hold blanks: the third field comes after it.
    fields = (proc / "self/stat").read_text().rpartition(")")[2].split()
    boot_time = next(
        int(line.split()[1])
        for line in (proc / "stat").read_text().splitlines()
        if line.startswith("btime ")
    )
    ticks = os.sysconf("SC_CLK_TCK")
    user, system, start, virtual, resident = (int(fields[i]) for i in (11, 12, 19, 20, 21))
    return [
        _gauge("virtual_memory_bytes", "Virtual memory size in bytes.", virtual),
        _gauge(
            "resident_memory_bytes",
            "Resident memory size in bytes.",
            resident * os.sysconf("SC_PAGE_SIZE"),
        ),
        _gauge(
            "start_time_seconds",
            "Start time of the process since unix epoch in seconds.",
            boot_time + start / ticks,
        ),
        Sample(
            "counter",
            "process_cpu_seconds_total",
            "Total user and system CPU time spent in seconds.",
            (user + system) / ticks,
        ),
    ]


def _open_fds(proc: Path) -> int:
    folder = proc / "self/fd"
    # Since Linux 6.2 the size of the folder is the number of its entries, and 0 before.
    return folder.stat().st_size or sum(1 for _ in folder.iterdir())


def _gauge(name: str, meaning: str, value: float) -> Sample:
    return Sample("gauge", f"process_{name}", meaning, value)
