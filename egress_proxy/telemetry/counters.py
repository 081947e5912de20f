"""The observer that counts events.

It is called for each connection, so it only adds plain integers: no lock, no label object, no text.
Counters of a removed destination are dropped at the first reload after its last connection ended,
so that nothing grows with the number of reloads.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from itertools import accumulate
from typing import TYPE_CHECKING

from egress_proxy.events import (
    FAILURES,
    ConfigRejected,
    ConfigReloaded,
    ConnectionClosed,
    DaemonDefect,
    DestinationChanged,
    DestinationResolved,
    DestinationStale,
    DestinationUnresolved,
    Event,
    ListenerClosed,
    ListenerFailed,
    ListenerOpened,
    Reason,
    UpstreamFailed,
    UpstreamRecovered,
)
from egress_proxy.telemetry.status import ConnectTimes, Failure, Name, Reloads

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

# Seconds: the next attempt starts after 0.25 s, TCP repeats a SYN after 1 s and 3 s (RFC 6298), and
# 10 s is the default connect timeout. Few, because each destination has all of them.
BOUNDS_S = (0.001, 0.005, 0.025, 0.1, 0.25, 1.0, 3.0, 10.0)

LOOKUP_RESULTS = ("resolved", "stale", "unresolved")


class Ended:
    """The connections of one destination that have ended.

    `connects` counts, for each of `BOUNDS_S` and for longer times, those that were established
    within that time.
    """

    __slots__ = (
        "bytes_to_client",
        "bytes_to_upstream",
        "connects",
        "connects_s",
        "last_failure",
        "reasons",
        "total",
    )

    def __init__(self) -> None:
        self.reasons = dict.fromkeys(map(str, Reason), 0)
        self.total = 0
        self.connects = [0] * (len(BOUNDS_S) + 1)
        self.connects_s = 0.0
        self.bytes_to_upstream = 0
        self.bytes_to_client = 0
        self.last_failure: Failure | None = None

    @property
    def connect_times(self) -> ConnectTimes:
        *within, count = accumulate(self.connects)
        return ConnectTimes(within=tuple(within), count=count, sum_s=self.connects_s)


class Counters:
    """Counts events; keys of `ended` are listening port and destination, of `names` the names."""

    def __init__(self) -> None:
        self.ended: dict[tuple[int, str], Ended] = {}
        self.upstream_failures: Counter[str] = Counter()
        # Since when an address of a destination fails, and a port is in its state; Unix times.
        self.upstream_failed_at: dict[tuple[str, str], float] = {}
        self.port_changed_at: dict[int, float] = {}
        self.names: dict[str, Name] = {}
        self.reloads = Reloads()
        self.defects = 0
        self._handlers: dict[type[Event], Callable[..., None]] = {
            ConnectionClosed: self._connection_closed,
            DestinationResolved: self._resolved,
            DestinationChanged: self._changed,
            DestinationStale: self._stale,
            DestinationUnresolved: self._unresolved,
            ListenerClosed: self._port_changed,
            ListenerFailed: self._port_changed,
            ListenerOpened: self._port_changed,
            UpstreamFailed: self._upstream_failed,
            UpstreamRecovered: self._upstream_recovered,
            ConfigReloaded: self._reloaded,
            ConfigRejected: self._rejected,
            DaemonDefect: self._defect,
        }

    def observe(self, event: Event) -> None:
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    def _connection_closed(self, event: ConnectionClosed) -> None:
        key = (event.listener, event.destination)
        ended = self.ended.get(key)
        if ended is None:
            ended = self.ended[key] = Ended()
        ended.reasons[event.reason] += 1
        ended.total += 1
        ended.bytes_to_upstream += event.bytes_to_upstream or 0
        ended.bytes_to_client += event.bytes_to_client or 0
        if event.connect_s is not None:
            ended.connects[bisect_left(BOUNDS_S, event.connect_s)] += 1
            ended.connects_s += event.connect_s
        if event.reason in FAILURES:
            ended.last_failure = Failure(what=event.reason, at=time.time())

    def name(self, name: str) -> Name:
        """What is known of `name`, also before the first answer."""
        known = self.names.get(name)
        if known is None:
            known = self.names[name] = Name(name=name, lookups=dict.fromkeys(LOOKUP_RESULTS, 0))
        return known

    def _resolved(self, event: DestinationResolved) -> None:
        name = self.name(event.destination)
        name.lookups["resolved"] += 1
        name.stale = False
        name.last_success = time.time()
        name.fresh_until = name.last_success + event.ttl_s

    def _changed(self, event: DestinationChanged) -> None:
        self.name(event.destination).addresses = len(event.addresses)

    def _stale(self, event: DestinationStale) -> None:
        self._lookup_failed("stale", event)

    def _unresolved(self, event: DestinationUnresolved) -> None:
        self._lookup_failed("unresolved", event)

    def _lookup_failed(self, result: str, event: DestinationStale | DestinationUnresolved) -> None:
        name = self.name(event.destination)
        name.lookups[result] += 1
        name.stale = result == "stale"
        name.last_failure = Failure(what=event.error, at=time.time())

    def _upstream_failed(self, event: UpstreamFailed) -> None:
        self.upstream_failures[event.destination] += 1
        self.upstream_failed_at[event.destination, event.address] = time.time()

    def _upstream_recovered(self, event: UpstreamRecovered) -> None:
        self.upstream_failed_at.pop((event.destination, event.address), None)

    def _port_changed(self, event: ListenerClosed | ListenerFailed | ListenerOpened) -> None:
        self.port_changed_at[event.listener] = time.time()

    def _reloaded(self, _event: ConfigReloaded) -> None:
        self.reloads.reloaded += 1
        self.reloads.last = time.time()
        self.reloads.problems = ()

    def _rejected(self, event: ConfigRejected) -> None:
        self.reloads.rejected += 1
        self.reloads.last = time.time()
        self.reloads.problems = event.problems

    def _defect(self, _event: DaemonDefect) -> None:
        self.defects += 1

    def retain_only(
        self, destinations: Collection[tuple[int, str]], names: Collection[str]
    ) -> None:
        """Drop the counters of everything except `destinations` and `names`."""
        for key in self.ended.keys() - set(destinations):
            del self.ended[key]
        kept = {destination for _, destination in destinations}
        for destination in self.upstream_failures.keys() - kept:
            del self.upstream_failures[destination]
        for destination, address in list(self.upstream_failed_at):
            if destination not in kept:
                del self.upstream_failed_at[destination, address]
        for port in self.port_changed_at.keys() - {port for port, _ in destinations}:
            del self.port_changed_at[port]
        for name in self.names.keys() - set(names):
            del self.names[name]
