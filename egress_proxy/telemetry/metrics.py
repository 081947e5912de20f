"""The status (`telemetry.status`) as metrics in Prometheus' text format 0.0.4.

`METRICS` lists them all, and ``docs/metrics.md`` is made from it. Labels hold what the
administrator wrote, never anything of a client, so the number of series is bounded.

The official client library is left out: it takes 0.15 s and 4 MiB for a thousand destinations, and
it blocks all connections for that time (docs/decisions/045-metrics-without-a-library.md). The text
is made in parts, so that the event loop can turn between them. Source:
https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, TypeAlias

from egress_proxy.events import Reason
from egress_proxy.telemetry.counters import BOUNDS_S
from egress_proxy.telemetry.status import SERVING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from egress_proxy.telemetry.process import Sample
    from egress_proxy.telemetry.status import Destination, Status

    # What follows the metric's name, its labels in braces for example, and the value.
    Samples: TypeAlias = Iterable[tuple[str, float]]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "egress_proxy_"
_BOUNDS = (*map(str, BOUNDS_S), "+Inf")
# Lines per part of the text: about a millisecond's work.
_PART_LINES = 1000


@dataclass(frozen=True, slots=True)
class Definition:
    """One metric; `samples` are its values in a status."""

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    labels: tuple[str, ...]
    meaning: str
    samples: Callable[[Status], Samples]

    @property
    def full_name(self) -> str:
        """The name that Prometheus shows; a histogram's series have a suffix more."""
        return f"{PREFIX}{self.name}{'_total' if self.kind == 'counter' else ''}"


def _labels(**labels: object) -> str:
    pairs = (f'{name}="{_escape(str(value))}"' for name, value in labels.items())
    return f"{{{','.join(pairs)}}}"


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _once(value: float) -> Samples:
    return [("", value)]


def _of_destination(entry: Destination) -> str:
    return _listener_labels(entry.destination, entry.listener)


# Seven metrics have these labels, and every scrape needs them again.
@lru_cache(maxsize=8192)
def _listener_labels(destination: str, listener: int) -> str:
    return _labels(destination=destination, listener=listener)


# Alerts and success rates use these. A series that begins with its first event hides that from
# `rate` and `increase`; but all reasons of all destinations would be half of the text.
_FROM_THE_START = frozenset(
    map(
        str,
        (
            Reason.FINISHED,
            Reason.CONNECT_REFUSED,
            Reason.CONNECT_TIMEOUT,
            Reason.CONNECT_UNREACHABLE,
        ),
    )
)


def _connections(status: Status) -> Samples:
    for entry in status.destinations:
        # By far the longest metric. Reasons need no escaping, and so cost half of `_labels`.
        where = _of_destination(entry)[:-1]
        for reason, count in entry.ended.items():
            if count or reason in _FROM_THE_START:
                yield f'{where},reason="{reason}"}}', count


def _established(status: Status) -> Samples:
    return ((_of_destination(entry), entry.established) for entry in status.destinations)


def _active(status: Status) -> Samples:
    return ((_of_destination(entry), entry.active) for entry in status.destinations)


def _bytes(status: Status) -> Samples:
    for entry in status.destinations:
        where = _of_destination(entry)[:-1]
        yield f'{where},direction="to_upstream"}}', entry.bytes_to_upstream
        yield f'{where},direction="to_client"}}', entry.bytes_to_client


def _upstream_failures(status: Status) -> Samples:
    # Several ports may lead to one destination.
    failures = {entry.destination: entry.upstream_failures for entry in status.destinations}
    return ((_labels(destination=name), count) for name, count in failures.items())


def _failed_addresses(status: Status) -> Samples:
    failed: dict[str, set[str]] = {}
    for entry in status.destinations:
        addresses = failed.setdefault(entry.destination, set())
        addresses.update(upstream.address for upstream in entry.upstreams if not upstream.healthy)
    return ((_labels(destination=name), len(addresses)) for name, addresses in failed.items())


def _listener_up(status: Status) -> Samples:
    for entry in status.destinations:
        if entry.state != "removed":
            yield _labels(listener=entry.listener), entry.state in SERVING


def _connect_duration(status: Status) -> Samples:
    for entry in status.destinations:
        where, times = _of_destination(entry), entry.connect_times
        for bound, count in zip(_BOUNDS, (*times.within, times.count), strict=True):
            yield f'_bucket{where[:-1]},le="{bound}"}}', count
        yield f"_count{where}", times.count
        yield f"_sum{where}", times.sum_s


def _lookups(status: Status) -> Samples:
    for name in status.names:
        for result, count in name.lookups.items():
            yield _labels(name=name.name, result=result), count


def _last_success(status: Status) -> Samples:
    for name in status.names:
        if name.last_success is not None:
            yield _labels(name=name.name), name.last_success


METRICS = (
    Definition(
        "counter",
        "connections",
        ("listener", "destination", "reason"),
        "Connections that have ended, by the reason of their record. `finished` and `connect_…` "
        "are there from the start, each other reason once it has occurred. `ended` stands for what "
        "the kernel as data plane does not tell (docs/data-planes.md).",
        _connections,
    ),
    Definition(
        "counter",
        "connections_established",
        ("listener", "destination"),
        "Connections that reached the remote host, including open ones.",
        _established,
    ),
    Definition(
        "gauge",
        "connections_active",
        ("listener", "destination"),
        "Open connections of clients, including those whose upstream is not connected yet.",
        _active,
    ),
    Definition(
        "gauge",
        "connections_limit",
        (),
        "The maximum number of open connections; at this number all listeners pause.",
        lambda status: _once(status.maximum),
    ),
    Definition(
        "counter",
        "bytes",
        ("listener", "destination", "direction"),
        "Bytes relayed, to_upstream or to_client, including those of open connections.",
        _bytes,
    ),
    Definition(
        "histogram",
        "connect_duration_seconds",
        ("listener", "destination"),
        "From accepting a client to the remote host's answer; counted when the connection ends.",
        _connect_duration,
    ),
    Definition(
        "counter",
        "upstream_failures",
        ("destination",),
        "How often a healthy address of a destination failed.",
        _upstream_failures,
    ),
    Definition(
        "gauge",
        "upstream_addresses_failed",
        ("destination",),
        "Addresses of a destination that have failed and not answered a client since.",
        _failed_addresses,
    ),
    Definition(
        "counter",
        "dns_lookups",
        ("name", "result"),
        "Lookups of a name: resolved; stale (failed, earlier addresses stay in use); unresolved.",
        _lookups,
    ),
    Definition(
        "gauge",
        "dns_addresses",
        ("name",),
        "Addresses in use for a name.",
        lambda status: ((_labels(name=name.name), name.addresses) for name in status.names),
    ),
    Definition(
        "gauge",
        "dns_stale",
        ("name",),
        "1 while a name's addresses are those of an earlier answer because look-ups fail.",
        lambda status: ((_labels(name=name.name), name.stale) for name in status.names),
    ),
    Definition(
        "gauge",
        "dns_last_success_timestamp_seconds",
        ("name",),
        "When a look-up of a name last succeeded.",
        _last_success,
    ),
    Definition(
        "gauge",
        "listener_up",
        ("listener",),
        "1 while a port serves its clients, 0 while it refuses them or cannot listen.",
        _listener_up,
    ),
    Definition(
        "counter",
        "listeners_paused",
        (),
        "How often listeners paused: all of them (limit of connections, no resources), or one.",
        lambda status: _once(status.pauses),
    ),
    Definition(
        "gauge",
        "source_info",
        ("address",),
        "The source addresses that remote hosts see; always 1.",
        lambda status: ((_labels(address=source.address), 1) for source in status.sources),
    ),
    Definition(
        "gauge",
        "source_up",
        ("address",),
        "1 while the source address is on an interface that is up; with high availability, only on "
        "the pod that has it.",
        lambda status: (
            (_labels(address=source.address), not source.problem)
            for source in status.sources
            if not (status.role and source.problem)
        ),
    ),
    Definition(
        "counter",
        "config_reloads",
        ("result",),
        "Reloads of the destinations: reloaded, or rejected.",
        lambda status: [
            (_labels(result="reloaded"), status.reloads.reloaded),
            (_labels(result="rejected"), status.reloads.rejected),
        ],
    ),
    Definition(
        "gauge",
        "config_last_reload_successful",
        (),
        "0 when the last reload was rejected, else 1.",
        lambda status: _once(not status.reloads.problems),
    ),
    Definition(
        "gauge",
        "draining",
        (),
        "1 after the signal to stop.",
        lambda status: _once(status.draining),
    ),
    Definition(
        "counter",
        "log_records_dropped",
        (),
        "Log records dropped because the log's reader was too slow or gone.",
        lambda status: _once(status.log_dropped),
    ),
    Definition(
        "counter",
        "defects",
        (),
        "Exceptions that this program did not expect; each is a daemon.defect record in the log.",
        lambda status: _once(status.defects),
    ),
    Definition(
        "gauge",
        "build_info",
        ("version", "python"),
        "The version of egress-proxy and of Python; always 1.",
        lambda status: [(_labels(version=status.version, python=status.python), 1)],
    ),
)


def exposition(status: Status, process: Iterable[Sample] = ()) -> Iterator[bytes]:
    """The text format of `status` and of the metrics of the `process`.

    Each part is about a millisecond's work.
    """
    lines: list[str] = []
    for definition in METRICS:
        name = definition.full_name
        lines += _header(name, definition.kind, definition.meaning)
        for series, value in definition.samples(status):
            lines.append(f"{name}{series} {+value}\n")
            if len(lines) >= _PART_LINES:
                yield "".join(lines).encode()
                lines.clear()
    for sample in process:
        lines += _header(sample.name, sample.kind, sample.meaning)
        lines.append(f"{sample.name} {sample.value}\n")
    yield "".join(lines).encode()


def _header(name: str, kind: str, meaning: str) -> list[str]:
    return [f"# HELP {name} {meaning}\n", f"# TYPE {name} {kind}\n"]
