"""Takes a snapshot of the daemon: the one place that knows where each figure is kept."""

from __future__ import annotations

import platform
import time
from typing import TYPE_CHECKING, Protocol

from egress_proxy import __version__
from egress_proxy.telemetry import status
from egress_proxy.telemetry.counters import Ended
from egress_proxy.telemetry.status import Failure, ListenerState, Status, Upstream

if TYPE_CHECKING:
    from collections.abc import Iterable

    from egress_proxy.config.settings import Settings
    from egress_proxy.forwarding.admission import Admission
    from egress_proxy.forwarding.connection import Origin
    from egress_proxy.forwarding.forwarder import Forwarder
    from egress_proxy.pod.address_monitor import AddressMonitor
    from egress_proxy.run.destination_table import DestinationTable
    from egress_proxy.telemetry.counters import Counters


class Log(Protocol):
    """What there is to know of the log."""

    @property
    def debug(self) -> bool: ...

    @property
    def dropped(self) -> int: ...


Key = tuple[int, str]


class _Live:
    """The connections to one destination that are not over."""

    def __init__(self) -> None:
        self.active = 0
        self.established = 0
        self.to_upstream = 0
        self.to_client = 0

    def add(self, other: _Live) -> None:
        self.active += other.active
        self.established += other.established
        self.to_upstream += other.to_upstream
        self.to_client += other.to_client


class Snapshot:
    """Looks when it is asked; nothing is counted here, and nothing is paid for a connection.

    A look costs a microsecond or less for each connection there is: its octets are read off it.
    """

    def __init__(
        self,
        settings: Settings,
        admission: Admission,
        address_monitor: AddressMonitor,
        table: DestinationTable,
        counters: Counters,
        log: Log,
    ) -> None:
        self._interface = settings.interface
        self._admission = admission
        self._address_monitor = address_monitor
        self._table = table
        self._counters = counters
        self._log = log
        self._started = time.time()
        self.draining = False

    def take(self) -> Status:
        return Status(
            version=__version__,
            python=platform.python_version(),
            now=time.time(),
            started=self._started,
            draining=self.draining,
            debug=self._log.debug,
            interface=self._interface,
            sources=self._address_monitor.sources,
            active=self._admission.active,
            maximum=self._admission.maximum,
            pauses=self._admission.pauses,
            destinations=self._destinations(),
            names=tuple(map(self._counters.name, self._table.refreshers)),
            reloads=self._counters.reloads,
            log_dropped=self._log.dropped,
            defects=self._counters.defects,
        )

    def forget(self, before: Iterable[Forwarder]) -> None:
        """Forget the counts of what was not even among the destinations `before` a reload."""
        kept = [_key(forwarder) for forwarder in (*before, *self._table.forwarders.values())]
        self._counters.retain_only([*kept, *self._live()], self._table.refreshers)

    def _live(self) -> dict[Key, _Live]:
        # There may be many thousands: as little as can be is done for each.
        by_origin: dict[Origin, _Live] = {}
        for connection in self._table.connections():
            origin = connection.origin
            live = by_origin.get(origin)
            if live is None:
                live = by_origin[origin] = _Live()
            to_upstream, to_client = connection.moved
            live.active += 1
            live.established += connection.established
            live.to_upstream += to_upstream
            live.to_client += to_client
        found: dict[Key, _Live] = {}
        for origin, live in by_origin.items():
            # Two may have one name: a destination that was changed, and changed back.
            found.setdefault(_key(origin), _Live()).add(live)
        return found

    def _destinations(self) -> tuple[status.Destination, ...]:
        current = {_key(forwarder): forwarder for forwarder in self._table.forwarders.values()}
        live, ended = self._live(), self._counters.ended
        # A port that leads elsewhere now, or is gone, is told of as long as its counts are kept.
        return tuple(
            self._destination(key, current.get(key), live.get(key), ended.get(key))
            for key in sorted(current.keys() | live.keys() | ended.keys())
        )

    def _destination(
        self, key: Key, forwarder: Forwarder | None, live: _Live | None, ended: Ended | None
    ) -> status.Destination:
        live, ended = live or _Live(), ended or Ended()
        host = forwarder.destination.host if forwarder else None
        return status.Destination(
            listener=key[0],
            destination=key[1],
            name=host if isinstance(host, str) else None,
            state=self._state(forwarder),
            error=forwarder.listener.error if forwarder else "",
            upstreams=_upstreams(forwarder),
            upstream_failures=self._counters.upstream_failures[key[1]],
            active=live.active,
            total=live.active + ended.total,
            established=live.established + sum(ended.connects),
            connect_times=ended.connect_times,
            ended=dict(ended.reasons),
            bytes_to_upstream=live.to_upstream + ended.bytes_to_upstream,
            bytes_to_client=live.to_client + ended.bytes_to_client,
            last_failure=Failure(what=ended.failure, at=ended.failed_at) if ended.failure else None,
        )

    def _state(self, forwarder: Forwarder | None) -> ListenerState:
        if forwarder is None:
            return "removed"
        listener = forwarder.listener
        if listener.state != "listening":
            return listener.state
        return "listening" if self._admission.takes_clients(listener) else "paused"


def _key(entry: Forwarder | Origin) -> Key:
    return entry.destination.port, entry.name


def _upstreams(forwarder: Forwarder | None) -> tuple[Upstream, ...]:
    if forwarder is None:
        return ()
    return tuple(
        Upstream(address=str(address), healthy=healthy)
        for address, healthy in forwarder.upstreams.health()
    )
