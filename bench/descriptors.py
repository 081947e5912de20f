"""The limit of open files, raised for all processes of the benchmark."""

from __future__ import annotations

import resource

# For 10,000 idle connections and 64 others. Proxies prepare for as many as there may be, so this
# is no more on a machine that allows more.
_ENOUGH = 24_000
# Libraries, listeners, logs, and pipes to splice through.
_HEADROOM = 1000


def raise_descriptor_limit() -> None:
    """Let this process, and all that it starts, have as many as they need, or as they may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


def capacity() -> int:
    """The connections that a proxy can have at once: each takes two descriptors."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (soft - _HEADROOM) // 2
