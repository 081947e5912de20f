"""A snapshot (`status`) as Prometheus metrics, in the official library's text format.

`METRICS` says what there is, and ``docs/metrics.md`` is made from it; every value is computed when
it is asked for. Labels hold what the admin wrote and nothing of a client, so that their number is
bounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from egress_proxy.telemetry.counters import BOUNDS_S
from egress_proxy.telemetry.status import SERVING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from egress_proxy.telemetry.status import Status

    Samples: TypeAlias = Iterable[tuple[tuple[str, ...], float]]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "egress_proxy_"


@dataclass(frozen=True, slots=True)
class Definition:
    """One metric; `samples` are its values in a snapshot, each with the values of its `labels`."""

    kind: Literal["counter", "gauge"]
    name: str
    labels: tuple[str, ...]
    meaning: str
    samples: Callable[[Status], Samples]


def _once(value: float) -> Samples:
    return [((), value)]


def _connections(status: Status) -> Samples:
    for entry in status.destinations:
        for reason, count in entry.ended.items():
            yield (str(entry.listener), entry.destination, reason), count


def _established(status: Status) -> Samples:
    for entry in status.destinations:
        yield (str(entry.listener), entry.destination), entry.established


def _active(status: Status) -> Samples:
    for entry in status.destinations:
        yield (str(entry.listener), entry.destination), entry.active


def _bytes(status: Status) -> Samples:
    for entry in status.destinations:
        where = str(entry.listener), entry.destination
        yield (*where, "to_upstream"), entry.bytes_to_upstream
        yield (*where, "to_client"), entry.bytes_to_client


def _upstream_failures(status: Status) -> Samples:
    # Several ports may lead to one destination.
    return {(entry.destination,): entry.upstream_failures for entry in status.destinations}.items()


def _failed_addresses(status: Status) -> Samples:
    failed: dict[tuple[str, ...], set[str]] = {}
    for entry in status.destinations:
        addresses = failed.setdefault((entry.destination,), set())
        addresses.update(upstream.address for upstream in entry.upstreams if not upstream.healthy)
    return ((labels, len(addresses)) for labels, addresses in failed.items())


def _listener_up(status: Status) -> Samples:
    for entry in status.destinations:
        if entry.state != "removed":
            yield (str(entry.listener),), entry.state in SERVING


def _lookups(status: Status) -> Samples:
    for name in status.names:
        for result, count in name.lookups.items():
            yield (name.name, result), count


def _last_success(status: Status) -> Samples:
    for name in status.names:
        if name.last_success is not None:
            yield (name.name,), name.last_success


METRICS = (
    Definition(
        "counter",
        "connections",
        ("listener", "destination", "reason"),
        "Connections that have ended, by the reason of their record.",
        _connections,
    ),
    Definition(
        "counter",
        "connections_established",
        ("listener", "destination"),
        "Connections that reached the remote host, those that still run included.",
        _established,
    ),
    Definition(
        "gauge",
        "connections_active",
        ("listener", "destination"),
        "Connections of clients now, those that are still being connected included.",
        _active,
    ),
    Definition(
        "gauge",
        "connections_limit",
        (),
        "The most connections there can be at once; at this number listeners pause.",
        lambda status: _once(status.maximum),
    ),
    Definition(
        "counter",
        "bytes",
        ("listener", "destination", "direction"),
        "Bytes relayed, to_upstream or to_client, those of connections that still run included.",
        _bytes,
    ),
    Definition(
        "counter",
        "upstream_failures",
        ("destination",),
        "How often an address of a destination failed that had been good before.",
        _upstream_failures,
    ),
    Definition(
        "gauge",
        "upstream_addresses_failed",
        ("destination",),
        "Addresses of a destination that have failed and not answered since.",
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
        lambda status: (((name.name,), name.addresses) for name in status.names),
    ),
    Definition(
        "gauge",
        "dns_stale",
        ("name",),
        "1 while a name's addresses are those of an earlier answer because look-ups fail.",
        lambda status: (((name.name,), name.stale) for name in status.names),
    ),
    Definition(
        "gauge",
        "dns_last_success_timestamp_seconds",
        ("name",),
        "When a name was last answered.",
        _last_success,
    ),
    Definition(
        "gauge",
        "listener_up",
        ("listener",),
        "1 while a port takes clients, 0 while it refuses them.",
        _listener_up,
    ),
    Definition(
        "counter",
        "listeners_paused",
        (),
        "How often listeners paused: all at the limit of connections or out of resources, or one.",
        lambda status: _once(status.pauses),
    ),
    Definition(
        "gauge",
        "source_info",
        ("address",),
        "The source addresses that remote hosts see; always 1.",
        lambda status: (((source.address,), 1) for source in status.sources),
    ),
    Definition(
        "gauge",
        "source_up",
        ("address",),
        "1 while the source address is on an interface that is up.",
        lambda status: (((source.address,), not source.problem) for source in status.sources),
    ),
    Definition(
        "counter",
        "config_reloads",
        ("result",),
        "Reloads of the destinations: reloaded, or rejected.",
        lambda status: [
            (("reloaded",), status.reloads.reloaded),
            (("rejected",), status.reloads.rejected),
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
        "1 once the daemon was told to stop.",
        lambda status: _once(status.draining),
    ),
    Definition(
        "counter",
        "log_records_dropped",
        (),
        "Log records that nobody read in time.",
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
        lambda status: [((status.version, status.python), 1)],
    ),
)
# The one histogram: its name, labels and meaning.
CONNECT_DURATION = (
    "connect_duration_seconds",
    ("listener", "destination"),
    "From accepting a client to the remote host's answer; counted when the connection ends.",
)


class _Snapshot(Collector):
    """Hands one snapshot to the library."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        for definition in METRICS:
            yield _family(definition, self._status)
        yield _connect_durations(self._status)


def _connect_durations(status: Status) -> Metric:
    name, labels, meaning = CONNECT_DURATION
    family = HistogramMetricFamily(PREFIX + name, meaning, labels=labels)
    for entry in status.destinations:
        times = entry.connect_times
        buckets = [
            (str(bound), float(count)) for bound, count in zip(BOUNDS_S, times.within, strict=True)
        ]
        family.add_metric(
            (str(entry.listener), entry.destination),
            [*buckets, ("+Inf", float(times.count))],
            times.sum_s,
        )
    return family


def _family(definition: Definition, status: Status) -> Metric:
    make = CounterMetricFamily if definition.kind == "counter" else GaugeMetricFamily
    family = make(PREFIX + definition.name, definition.meaning, labels=definition.labels)
    for labels, value in definition.samples(status):
        family.add_metric(labels, value)
    return family


def exposition(status: Status) -> bytes:
    """`status`, and the library's own metrics of this process, in the text format 0.0.4."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(status))
    ProcessCollector(registry=registry)
    return generate_latest(registry)
