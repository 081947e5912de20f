"""The daemon's status as text for a terminal. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from egress_proxy.telemetry.status import Check, Destination, ListenerState, Status

# What needs attention comes first, as on the status page.
_ORDER: tuple[ListenerState, ...] = (
    "failed",
    "refusing",
    "failing",
    "paused",
    "listening",
    "removed",
)
_HEADINGS = ("PORT", "STATE", "ACTIVE", "TOTAL", "DESTINATION", "ADDRESSES", "WHAT IS WRONG")


def lines(ready: Iterable[Check], status: Status) -> Iterator[str]:
    """The status, one line per fact, then one line per destination."""
    checks = tuple(ready)
    problems = [problem for check in checks for problem in check.problems]
    warnings = [warning for check in checks for warning in check.warnings]
    state = "not ready" if problems else "ready"
    where = f"{status.pod} on {status.node}" if status.node else status.pod
    yield f"egress-proxy {status.version} in {where}, {state}, {_at(status.now)}"
    yield from (f"  problem: {problem}" for problem in problems)
    yield from (f"  warning: {warning}" for warning in warnings)
    yield f"started      {_at(status.started)}"
    if status.role:
        yield f"role         {status.role}"
    yield f"source       {_sources(status)}"
    yield f"connections  {status.active} of at most {status.maximum}"
    yield f"destinations {_counts(status.destinations)}"
    yield ""
    rows = [_HEADINGS, *map(_row, sorted(status.destinations, key=_order))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    for row in rows:
        yield "  ".join(map(str.ljust, row, widths)).rstrip()


def _order(destination: Destination) -> tuple[int, int]:
    return _ORDER.index(destination.state), destination.listener


def _row(destination: Destination) -> tuple[str, ...]:
    failure = destination.last_failure
    last = f"{failure.what} at {_at(failure.at)}" if failure else ""
    healthy = sum(upstream.healthy for upstream in destination.upstreams)
    return (
        str(destination.listener),
        destination.state,
        str(destination.active),
        str(destination.total),
        destination.destination,
        f"{healthy} of {len(destination.upstreams)} healthy" if destination.upstreams else "none",
        "; ".join(filter(None, (destination.error, last))),
    )


def _counts(destinations: Sequence[Destination]) -> str:
    states = [destination.state for destination in destinations]
    return ", ".join(f"{states.count(state)} {state}" for state in _ORDER if state in states)


def _sources(status: Status) -> str:
    if not status.sources:
        return "any: the kernel chooses, there is no reserved address"
    return ", ".join(
        f"{source.address} ({source.problem})" if source.problem else source.address
        for source in status.sources
    )


def _at(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
