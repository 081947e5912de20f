"""The limit of open files (RLIMIT_NOFILE), and how its descriptors are shared out."""

from __future__ import annotations

import contextlib
import ctypes
import resource
from bisect import bisect_left
from dataclasses import dataclass

from egress_proxy.errors import PlatformError, Problem
from egress_proxy.relay.pipes import PIPES

# For the event loop, DNS, logs, the admin port and what a library may open. An idle daemon has
# about 20 open, and the admin port serves up to 16 clients.
_HEADROOM = 64
_HEADROOM_AT_LEAST = 40
# Sockets that races may hold beyond one each, all together.
_EXTRA_ATTEMPTS = 256
# A client's socket and its upstream's.
_PER_CONNECTION = 2
# Linux's own ceiling by default (fs.nr_open), for a hard limit of infinity.
_NR_OPEN = 1 << 20


@dataclass(frozen=True, slots=True)
class DescriptorBudget:
    """How many pipes (two descriptors each), extra attempts and client connections there may be."""

    pipes: int
    extra_attempts: int
    connections: int


def raise_descriptor_limit() -> int:
    """Raise the soft RLIMIT_NOFILE to the hard one, and return it (getrlimit(2))."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = hard if hard != resource.RLIM_INFINITY else _NR_OPEN
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit


def load_libgcc() -> None:
    """Load the library that ends threads while there is a descriptor to open it with.

    A daemon thread that wakes while the interpreter ends leaves by pthread_exit(3). For that, glibc
    opens libgcc_s.so.1, and aborts the process when it can't. Other C libraries need none.
    """
    with contextlib.suppress(OSError):
        ctypes.CDLL("libgcc_s.so.1")


def share_descriptors(limit: int, listeners: int, wanted: int | None) -> DescriptorBudget:
    """Share out `limit` descriptors; `wanted` is the connections that the administrator asks for.

    Under a small limit, headroom, pipes and extra attempts shrink before connections do. Raises
    `PlatformError` when there is no room for one connection, or for those that are wanted.
    """
    budget = _share(limit, listeners)
    if budget.connections < (wanted or 1):
        needed = bisect_left(
            range(_NR_OPEN * _PER_CONNECTION * 2),
            wanted or 1,
            key=lambda candidate: _share(candidate, listeners).connections,
        )
        raise PlatformError(
            Problem(
                variable="EGRESS_DNS_PROXY_MAX_CONNECTIONS" if wanted else "",
                value=str(wanted) if wanted else None,
                reason=f"the limit of open files is {limit}, {needed} are needed",
                cure="raise the container's nofile limit (RLIMIT_NOFILE)",
            )
        )
    return DescriptorBudget(
        pipes=budget.pipes,
        extra_attempts=budget.extra_attempts,
        connections=wanted or budget.connections,
    )


def _share(limit: int, listeners: int) -> DescriptorBudget:
    headroom = max(min(_HEADROOM, limit * 2 // 5), _HEADROOM_AT_LEAST)
    pipes = min(PIPES, limit // 16)
    extra_attempts = min(_EXTRA_ATTEMPTS, limit // 16)
    room = limit - headroom - listeners - 2 * pipes - extra_attempts
    return DescriptorBudget(pipes, extra_attempts, max(room // _PER_CONNECTION, 0))
