"""The limit of open files, raised for all processes of the benchmark."""

from __future__ import annotations

import resource

# Where nothing limits them: more than any load here needs.
_ENOUGH = 65_536
# Libraries, listeners, logs, and pipes to splice through.
_HEADROOM = 1000


def raise_descriptor_limit() -> None:
    """Let this process, and all that it starts, have as many as the machine allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = _ENOUGH if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def capacity() -> int:
    """The connections that a proxy can have at once: each takes two descriptors."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (soft - _HEADROOM) // 2
