"""Takes a snapshot of the daemon: the one place that knows where each figure is kept."""

from __future__ import annotations

import asyncio
import platform
import time
from typing import TYPE_CHECKING, Protocol

from egress_proxy import __version__
from egress_proxy.events import Reason
from egress_proxy.forwarding.live import Live
from egress_proxy.run.sessions import list_sessions
from egress_proxy.telemetry import status
from egress_proxy.telemetry.counters import Ended
from egress_proxy.telemetry.status import (
    Check,
    Destination,
    ListenerState,
    Port,
    Status,
    Upstream,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from egress_proxy.config.settings import Settings
    from egress_proxy.forwarding.forwarder import Forwarder
    from egress_proxy.forwarding.plane import Plane
    from egress_proxy.pod.address_monitor import AddressMonitor
    from egress_proxy.run.destination_table import DestinationTable
    from egress_proxy.supervisor import Supervisor
    from egress_proxy.telemetry.counters import Counters
    from egress_proxy.telemetry.sessions import Query, SessionList

# How many are read per turn of the event loop: about half a millisecond's work for each kind.
_DESTINATIONS_PER_TURN = 100


class Log(Protocol):
    """What the status has of the log."""

    @property
    def debug(self) -> bool: ...

    @property
    def dropped(self) -> int: ...


Key = tuple[int, str]
_FINE = Port(0, "listening")
# Shared by the destinations that have had no client yet.
_NONE_ENDED = Ended()
_NO_CONNECTS = _NONE_ENDED.connect_times


class Snapshot:
    """Reads the figures on demand. Between scrapes they cost a connection nothing."""

    def __init__(  # noqa: PLR0913 - it reads from all of them
        self,
        settings: Settings,
        plane: Plane,
        address_monitor: AddressMonitor,
        table: DestinationTable,
        *,
        supervisor: Supervisor,
        counters: Counters,
        log: Log,
    ) -> None:
        self._interface = settings.interface
        self._pod, self._node = settings.pod, settings.node
        self._sessions_listed = settings.admin_sessions
        self._plane = plane
        self._admission = plane.shared.admission
        self._address_monitor = address_monitor
        self._table = table
        self._supervisor = supervisor
        self._counters = counters
        self._log = log
        self._started = time.time()
        # Forwarders that a reload has removed, as long as they have connections.
        self._removed: list[Forwarder] = []
        self._shared = settings.shared
        self.draining = False

    @property
    def _role(self) -> str:
        if not self._shared:
            return ""
        return "active" if self._address_monitor.usable else "standby"

    @property
    def down(self) -> tuple[str, ...]:
        """The tasks that have failed and wait for their restart."""
        return self._supervisor.down

    def readiness(self) -> tuple[Check, ...]:
        """Whether clients should be sent to this pod; independent of how many connections are."""
        return status.readiness(
            draining=self.draining,
            sources=self._address_monitor.sources,
            role=self._role,
            ports=self._troubled_ports(),
            reloads=self._counters.reloads,
        )

    async def sessions(self, query: Query) -> SessionList | None:
        """The open sessions of `query`; None if the administrator does not want them listed."""
        if not self._sessions_listed:
            return None
        return await list_sessions(await self._plane.sessions(), query, time.monotonic)

    async def take(self) -> Status:
        """The whole status. The event loop turns meanwhile: figures differ by milliseconds."""
        await self._plane.count()
        destinations = await self._destinations()
        return Status(
            pod=self._pod,
            node=self._node,
            sessions_listed=self._sessions_listed,
            version=__version__,
            python=platform.python_version(),
            now=time.time(),
            started=self._started,
            draining=self.draining,
            debug=self._log.debug,
            interface=self._interface,
            role=self._role,
            sources=self._address_monitor.sources,
            active=self._admission.active,
            maximum=self._admission.maximum,
            pauses=self._admission.pauses,
            destinations=destinations,
            names=tuple(map(self._counters.name, self._table.refreshers)),
            reloads=self._counters.reloads,
            log_dropped=self._log.dropped,
            defects=self._counters.defects,
        )

    def forget(self, before: Iterable[Forwarder]) -> None:
        """Drop the counters of destinations that were removed before the last reload.

        `before` are the forwarders from before the last reload.
        """
        current = self._table.forwarders.values()
        before = list(before)
        removed = {*self._removed, *before}.difference(current)
        self._removed = [forwarder for forwarder in removed if forwarder.origin.live.active]
        kept = map(_key, (*self._removed, *before, *current))
        self._counters.retain_only(set(kept), self._table.refreshers)

    async def _destinations(self) -> tuple[Destination, ...]:
        current = {_key(forwarder): forwarder for forwarder in self._table.forwarders.values()}
        live: dict[Key, Live] = {key: forwarder.origin.live for key, forwarder in current.items()}
        for forwarder in self._removed:
            # A destination that was removed and added again has two forwarders.
            key = _key(forwarder)
            live[key] = live.get(key, Live()) + forwarder.origin.live
        found = []
        for number, key in enumerate(sorted(live.keys() | self._counters.ended.keys()), 1):
            found.append(self._destination(key, current.get(key), live.get(key, Live())))
            if number % _DESTINATIONS_PER_TURN == 0:
                await asyncio.sleep(0)
        return tuple(found)

    def _destination(self, key: Key, forwarder: Forwarder | None, live: Live) -> Destination:
        ended = self._counters.ended.get(key, _NONE_ENDED)
        port = self._port(forwarder) if forwarder else Port(key[0], "removed")
        host = forwarder.destination.host if forwarder else None
        return Destination(
            listener=port.listener,
            state=port.state,
            error=port.error,
            destination=key[1],
            name=host if isinstance(host, str) else None,
            since=port.since,
            upstreams=tuple(self._upstreams(forwarder)) if forwarder else (),
            upstream_failures=self._counters.upstream_failures[key[1]],
            active=live.active,
            total=live.active + live.ended + ended.total,
            established=live.established + sum(ended.connects),
            connect_times=ended.connect_times if ended.total else _NO_CONNECTS,
            ended=ended.reasons | {str(Reason.ENDED): live.ended} if live.ended else ended.reasons,
            bytes_to_upstream=live.bytes_to_upstream + ended.bytes_to_upstream,
            bytes_to_client=live.bytes_to_client + ended.bytes_to_client,
            last_failure=ended.last_failure,
        )

    def _troubled_ports(self) -> list[Port]:
        """The ports with a problem, and one for all others: readiness is asked often."""
        forwarders = self._table.forwarders.values()
        troubled = [
            self._port(forwarder)
            for forwarder in forwarders
            if forwarder.listener.state != "listening" or forwarder.upstreams.all_failed
        ]
        return troubled if len(troubled) == len(forwarders) else [*troubled, _FINE]

    def _port(self, forwarder: Forwarder) -> Port:
        state = self._state(forwarder)
        number = forwarder.destination.port
        error = forwarder.listener.error
        since: float | None = self._counters.port_changed_at.get(number, self._started)
        if state == "refusing":
            error = self._why_refusing(forwarder)
        elif state == "paused":
            since = None
        elif state == "failing":
            error = f"no address of {forwarder.name} answers"
            # The destination has failed since its last address failed.
            since = max(
                (entry.failed_at for entry in self._upstreams(forwarder) if entry.failed_at),
                default=None,
            )
        return Port(number, state, error, since)

    def _state(self, forwarder: Forwarder) -> ListenerState:
        listener = forwarder.listener
        if listener.state == "listening" and not self._admission.takes_clients(listener):
            return "paused"
        if listener.state == "listening" and forwarder.upstreams.all_failed:
            return "failing"
        return listener.state

    def _upstreams(self, forwarder: Forwarder) -> Iterator[Upstream]:
        for address, healthy in forwarder.upstreams.health():
            failed_at = self._counters.upstream_failed_at.get((forwarder.name, address))
            yield Upstream(
                address=address, healthy=healthy, failed_at=None if healthy else failed_at
            )

    def _why_refusing(self, forwarder: Forwarder) -> str:
        host = forwarder.destination.host
        if isinstance(host, str):
            name = self._counters.name(host)
            if not name.addresses:
                failure = name.last_failure
                return f"{host}: {failure.what if failure else 'not resolved yet'}"
        if any(source.problem for source in self._address_monitor.sources):
            return "no source address to reach it from"
        # An address that is the pod's own when it starts is refused at the start.
        return "its address is now one of the pod's own"


def _key(forwarder: Forwarder) -> Key:
    return forwarder.destination.port, forwarder.name
