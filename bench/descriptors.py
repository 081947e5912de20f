"""Raise the limit of open files for all processes of the benchmark."""

from __future__ import annotations

import resource

# Enough for 10,000 idle connections and 64 others. Proxies allocate memory in proportion to this
# limit, so it is the same on every machine that allows it.
_ENOUGH = 24_000
# For libraries, listeners, logs, and pipes for splice(2).
_HEADROOM = 1000


def raise_descriptor_limit() -> None:
    """Set the limit of this process and its children, to the hard limit at most."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


def capacity() -> int:
    """How many connections a proxy can have at the same time: each takes two descriptors."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (soft - _HEADROOM) // 2
