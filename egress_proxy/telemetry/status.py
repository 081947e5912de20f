"""The state of the daemon as an operator sees it.

The status page shows it, `/status.json` is it, `/metrics` is another form of it, and readiness is
computed from the same values, so these never contradict each other. Times are Unix seconds,
durations seconds, sizes bytes. Nothing in it comes from a client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# A failing port accepts clients, but no address of its destination has answered lately.
ListenerState = Literal["listening", "paused", "failing", "refusing", "failed", "removed"]
# The states in which a port accepts clients; those of a paused one wait in the backlog.
SERVING = frozenset({"listening", "paused", "failing"})
TROUBLE = {
    "failed": "cannot listen",
    "refusing": "refuses its clients",
    "failing": "reaches no remote host",
}
# Readiness lists this many ports with a problem, and only the number of the others.
_LISTED_PORTS = 20
ANY_SOURCE = "EGRESS_DNS_PROXY_SOURCE=any: remote hosts do not see a reserved address"


# gc=False: of these a snapshot has thousands. They are in no reference cycle, and counting them
# would make the garbage collector look at all connections.


class Failure(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The last thing that went wrong, and when."""

    what: str
    at: float


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A source address; `problem` is empty while it can be used."""

    address: str
    problem: str


class Upstream(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An address of a destination; after a failure it is unhealthy until it answers a client.

    `failed_at` is when it became unhealthy.
    """

    address: str
    healthy: bool
    failed_at: float | None = None


class Name(msgspec.Struct, kw_only=True):
    """The look-ups of a name so far, counted by result.

    `addresses` is the number of addresses in use, `stale` whether they are those of an earlier
    answer because look-ups fail. The last answer is valid until `fresh_until`.
    """

    name: str
    lookups: dict[str, int]
    addresses: int = 0
    stale: bool = False
    fresh_until: float = 0.0
    last_success: float | None = None
    last_failure: Failure | None = None


class ConnectTimes(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How long connecting took, of connections that have ended.

    `within` counts for each of `counters.BOUNDS_S` how many were as fast, `count` all.
    """

    within: tuple[int, ...]
    count: int
    sum_s: float


class Port(msgspec.Struct, frozen=True, gc=False):
    """A listening port; `error` says why it does not serve its clients, empty if it does.

    `since` is when it came into this state, None if that is not known.
    """

    listener: int
    state: ListenerState
    error: str = ""
    since: float | None = None


class Destination(Port, frozen=True, kw_only=True, gc=False):
    """One listening port and its connections; `ended` counts by reason those that have ended.

    `established` counts those that have reached an upstream, ended or not. `upstream_failures` is
    how often one of the destination's addresses failed that was healthy before; ports with the
    same destination share the number.
    """

    destination: str
    name: str | None
    upstreams: tuple[Upstream, ...]
    upstream_failures: int
    active: int
    total: int
    established: int
    connect_times: ConnectTimes
    ended: dict[str, int]
    bytes_to_upstream: int
    bytes_to_client: int
    last_failure: Failure | None


class Reloads(msgspec.Struct, kw_only=True):
    """Reloads of the destinations; `problems` are those of the last one, if it was rejected."""

    reloaded: int = 0
    rejected: int = 0
    last: float | None = None
    problems: tuple[str, ...] = ()


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The whole state. `pod` and `node` are names; `node` is empty if it is not known."""

    pod: str
    node: str
    # Whether `/sessions.json` lists sessions.
    sessions_listed: bool
    version: str
    python: str
    now: float
    started: float
    draining: bool
    debug: bool
    interface: str
    # With high availability: "active" or "standby"; else empty.
    role: str = ""
    sources: tuple[Source, ...]
    active: int
    maximum: int
    pauses: int
    destinations: tuple[Destination, ...]
    names: tuple[Name, ...]
    reloads: Reloads
    log_dropped: int
    defects: int


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One condition of readiness; `problems` is empty if it holds.

    `warnings` do not make the pod unready, but need attention.
    """

    name: str
    problems: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def readiness(
    *,
    draining: bool,
    sources: Iterable[Source],
    ports: Iterable[Port],
    reloads: Reloads,
    role: str = "",
) -> tuple[Check, ...]:
    """Whether clients should be sent to this pod, one check per condition.

    As long as one port accepts clients, ports that do not are warnings: the pod is the only one
    that can serve the others. A remote host that does not answer is a warning, too, and a rejected
    reload. With high availability (`role`) a pod without the source address is ready to take it.
    """
    current = [port for port in ports if port.state != "removed"]
    troubled = _listed([port for port in current if port.state in TROUBLE])
    serving = any(port.state in SERVING for port in current)
    sources = tuple(sources)
    return (
        Check(name="drain", problems=("the pod is draining",) if draining else ()),
        Check(
            name="source",
            problems=tuple(
                f"source address {source.address}: {source.problem}"
                for source in sources
                if source.problem and not role
            ),
            warnings=() if sources else (ANY_SOURCE,),
        ),
        Check(
            name="destinations",
            problems=() if serving else troubled or ("there is no destination",),
            warnings=troubled if serving else (),
        ),
        Check(name="reload", problems=(), warnings=reloads.problems),
    )


def _listed(ports: Sequence[Port]) -> tuple[str, ...]:
    lines = [
        f"port {port.listener} {TROUBLE[port.state]}: {port.error}"
        for port in ports[:_LISTED_PORTS]
    ]
    if more := len(ports) - len(lines):
        lines.append(f"and {more} more")
    return tuple(lines)
