"""What an operator is told of the daemon, as one frozen value: a snapshot.

The status page shows it, `/status.json` is it, `/metrics` is another form of it, and readiness is
read off it, so that they never contradict each other. Times are Unix seconds, durations seconds,
sizes octets. Nothing in it comes from a client.
"""

from __future__ import annotations

from typing import Literal

import msgspec

ListenerState = Literal["listening", "paused", "refusing", "failed", "removed"]
# The states in which a port serves its clients, paused ones a little later.
SERVING = frozenset({"listening", "paused"})


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """The last thing that went wrong, and when."""

    what: str
    at: float


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A source address; `problem` is empty while it can be sent from."""

    address: str
    problem: str


class Upstream(msgspec.Struct, frozen=True, kw_only=True):
    """An address of a destination; not healthy from a failure until it answers a client again."""

    address: str
    healthy: bool


class Name(msgspec.Struct, frozen=True, kw_only=True):
    """What DNS says of a name; `lookups` counts them by result."""

    name: str
    lookups: dict[str, int]
    addresses: int
    stale: bool
    ttl_left_s: float
    last_success: float | None
    last_failure: Failure | None


class ConnectTimes(msgspec.Struct, frozen=True, kw_only=True):
    """How many connections were established within each of `counters.BOUNDS_S`, and in all."""

    within: tuple[int, ...]
    count: int
    sum_s: float


class Destination(msgspec.Struct, frozen=True, kw_only=True):
    """One listening port; `ended` counts its connections by reason.

    `established` counts those that reached the remote host; `connect_times` are of those that have
    ended since.
    `error` says why the port cannot listen; it is empty unless `state` is failed.
    `upstream_failures` is how often one of the destination's addresses failed that was healthy
    before; ports with the same destination share the number.
    """

    listener: int
    destination: str
    name: str | None
    state: ListenerState
    error: str
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


class Reloads(msgspec.Struct, frozen=True, kw_only=True):
    """Reloads of the destinations; `problems` are those of the last one, if it was rejected."""

    reloaded: int
    rejected: int
    last: float | None
    problems: tuple[str, ...]


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """All of it."""

    version: str
    python: str
    now: float
    started: float
    draining: bool
    debug: bool
    interface: str
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


def readiness(status: Status) -> tuple[Check, ...]:
    """Whether clients should be sent to this pod, one check per condition.

    As long as one port serves its clients, ports that refuse theirs are warnings: the pod is the
    only one that can serve the others. The same holds for a rejected reload.
    """
    unserved = _unserved(status)
    serving = any(destination.state in SERVING for destination in status.destinations)
    return (
        Check(name="drain", problems=("the pod is draining",) if status.draining else ()),
        Check(
            name="source",
            problems=tuple(
                f"source address {source.address}: {source.problem}"
                for source in status.sources
                if source.problem
            ),
        ),
        Check(
            name="destinations",
            problems=() if serving else tuple(unserved) or ("there is no destination",),
            warnings=tuple(unserved) if serving else (),
        ),
        Check(name="reload", problems=(), warnings=status.reloads.problems),
    )


def _unserved(status: Status) -> list[str]:
    """Why each port that does not serve its clients does not."""
    names = {name.name: name for name in status.names}
    # An address that is the pod's own at the start is refused then.
    other = (
        "no source address to reach it from"
        if any(source.problem for source in status.sources)
        else "its address is the pod's own by now"
    )
    reasons = []
    for destination in status.destinations:
        if destination.state == "failed":
            reasons.append(f"port {destination.listener} cannot listen: {destination.error}")
        if destination.state != "refusing":
            continue
        name = names.get(destination.name or "")
        reason = other
        if name is not None and not name.addresses:
            failure = name.last_failure
            reason = f"{name.name}: {failure.what if failure else 'not resolved yet'}"
        reasons.append(f"port {destination.listener} refuses its clients: {reason}")
    return reasons
