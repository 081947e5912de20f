"""One client, from accept to record.

A `Connection` owns all resources of a client: it connects, relays, keeps time, and emits exactly
one record, whatever happens.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING

from egress_proxy.events import ConnectionClosed, Reason
from egress_proxy.forwarding.keepalive import keep_alive
from egress_proxy.forwarding.live import Live
from egress_proxy.forwarding.race import ATTEMPT_DELAY_S, EXHAUSTED, NO_PORT, Race
from egress_proxy.relay.reactor import ERROR, reset_on_close
from egress_proxy.relay.relay import Relay

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from egress_proxy.config.destinations import Destination
    from egress_proxy.forwarding.admission import Gate
    from egress_proxy.forwarding.data_plane import DataPlane
    from egress_proxy.forwarding.upstreams import Endpoint, Upstreams
    from egress_proxy.ip import Address, Network

# How often the timer of a connection without a time limit runs.
_SELDOM_S = 3600.0


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """The limits for clients of every destination. Durations are in seconds; 0: no limit."""

    allow_clients: tuple[Network, ...]
    connect_timeout_s: float
    idle_timeout_s: float
    half_close_timeout_s: float
    # Whether records carry the source port, which costs a system call per connection.
    record_source_port: bool


def _do_nothing() -> None:
    """Literal addresses have no name to look up again."""


@dataclass(slots=True, eq=False, kw_only=True)
class Origin:
    """What the connections of one destination share.

    It remains in use when a reload removes the destination: its connections keep their settings.
    `live` counts them; `on_all_failed` is called when no address answered a client.
    """

    data_plane: DataPlane
    destination: Destination
    name: str
    limits: SessionLimits
    upstreams: Upstreams
    gate: Gate
    on_all_failed: Callable[[], None] = _do_nothing
    live: Live = field(default_factory=Live)

    def allows(self, client_address: Sequence[object]) -> bool:
        networks = self.limits.allow_clients
        if not networks:
            return True
        address = ipaddress.ip_address(str(client_address[0]))
        return any(address in network for network in networks)


class Connection:
    """One client, from accept to record."""

    __slots__ = (
        "_address",
        "_client",
        "_client_events",
        "_connected_at",
        "_counted_to_client",
        "_counted_to_upstream",
        "_error_number",
        "_needs_keepalive",
        "_race",
        "_relay",
        "_source",
        "accepted_at",
        "client_address",
        "closed",
        "deadline_tick",
        "origin",
    )

    deadline_tick: int

    def __init__(
        self, origin: Origin, client: socket.SocketType, client_address: Sequence[object]
    ) -> None:
        self.origin = origin
        self._client = client
        self.client_address = client_address
        self._client_events = 0
        self.accepted_at = origin.data_plane.reactor.now
        self._connected_at = 0.0
        self._address: Sequence[object] | None = None
        self._source: Sequence[object] | None = None
        self._error_number = 0
        # The upstream until the first timer tick sets keepalive: short connections never pay for
        # it.
        self._needs_keepalive: socket.SocketType | None = None
        self._relay: Relay | None = None
        self._race: Race | None = None
        self.closed = False
        # The bytes of this connection that are already counted in `origin.live`.
        self._counted_to_upstream = 0
        self._counted_to_client = 0

    def count_bytes(self) -> None:
        """Add what was relayed since the last call to `origin.live`."""
        relay = self._relay
        if relay is not None:
            self._count_bytes(relay.up.count, relay.down.count)

    def _count_bytes(self, to_upstream: int, to_client: int) -> None:
        live = self.origin.live
        live.bytes_to_upstream += to_upstream - self._counted_to_upstream
        live.bytes_to_client += to_client - self._counted_to_client
        self._counted_to_upstream, self._counted_to_client = to_upstream, to_client

    @property
    def relayed(self) -> tuple[int, int]:
        """Bytes to the upstream and to the client so far."""
        relay = self._relay
        return (relay.up.count, relay.down.count) if relay else (0, 0)

    @property
    def touched(self) -> float:
        """When bytes were relayed last, by the reactor's clock; at first, when it began."""
        return self._relay.touched if self._relay else self.accepted_at

    @property
    def host(self) -> Address | str:
        """What the administrator wrote: whose addresses this connection may go to."""
        return self.origin.destination.host

    @property
    def address(self) -> Sequence[object] | None:
        """The upstream's socket address; None before there is one."""
        return self._address

    def begin(self) -> None:
        """Wait for the client's first event, which comes at once: a new socket is writable.

        A client that is gone by then, such as a port scanner, causes no upstream connection.
        """
        origin = self.origin
        plane = origin.data_plane
        origin.live.active += 1
        plane.admission.enter()
        plane.wheel.schedule(self, min(ATTEMPT_DELAY_S, origin.limits.connect_timeout_s))
        try:
            plane.reactor.watch(self._client, self)
        except OSError as error:
            self.unconnected(Reason.ERROR, error.errno or errno.EIO, None)
            return
        if not origin.allows(self.client_address):
            self._refuse(Reason.DENIED_CLIENT)

    def ready(self, events: int) -> None:
        """An event of the client's, while it has no upstream yet."""
        self._client_events |= events
        if events & ERROR:
            self._refuse(Reason.CLIENT_GONE)
        elif self._race is None:
            self._connect()

    def _connect(self) -> None:
        """Connect to the destination; the client's octets wait in the kernel meanwhile."""
        plane = self.origin.data_plane
        if not plane.source_gate.is_open:
            plane.source_gate.wait(self)
            return
        endpoints = self.origin.upstreams.in_order(plane.reactor.now)
        self._race = Race(plane.connector, endpoints, self)
        self._race.start_next()

    def source_is_there(self) -> None:
        """There is a source address again; for a client that waited for one."""
        self._connect()

    def lose_source(self) -> None:
        """The source address goes away: end a session; a client without an upstream waits."""
        if self._relay is not None:
            self._relay.abort(Reason.SOURCE_LOST)
        elif self._race is not None:
            self._race.cancel()
            self._race = None
            self._connect()

    def fail(self) -> None:
        self.abort(Reason.ERROR)

    def connected(self, sock: socket.SocketType, endpoint: Endpoint, events: int) -> None:
        """The upstream is connected: relay."""
        plane = self.origin.data_plane
        self._needs_keepalive = sock
        self._address = endpoint.sockaddr
        self._connected_at = plane.reactor.now
        if self.origin.limits.record_source_port:
            with contextlib.suppress(OSError):
                self._source = sock.getsockname()
        self._relay = Relay(plane.reactor, plane.pipes, self._client, sock, self)
        self.origin.live.established += 1
        self._relay.start(self._client_events, events)

    def unconnected(self, reason: Reason, error_number: int, endpoint: Endpoint | None) -> None:
        """All connection attempts failed, the last one at `endpoint`: reset the client."""
        self._address = endpoint.sockaddr if endpoint else None
        self._error_number = error_number
        self._refuse(reason)
        origin = self.origin
        if error_number in EXHAUSTED:
            origin.data_plane.admission.exhausted(error_number)
        elif error_number == NO_PORT:
            origin.data_plane.admission.pause_one(origin.gate, error_number)
        else:
            origin.on_all_failed()

    def on_timer(self) -> None:
        """End what has taken too long; otherwise look again later."""
        if self._relay is None:
            self._next_attempt_or_time_out()
        else:
            if self._needs_keepalive is not None:
                # A session without it is better than none.
                with contextlib.suppress(OSError):
                    keep_alive(self._needs_keepalive)
                self._needs_keepalive = None
            self._check_idle(self._relay)

    def _next_attempt_or_time_out(self) -> None:
        wheel, race = self.origin.data_plane.wheel, self._race
        left_s = self.accepted_at + self.origin.limits.connect_timeout_s - monotonic()
        if race is None:
            if left_s <= 0 and not self.origin.data_plane.source_gate.is_open:
                self._refuse(Reason.NO_SOURCE)
            else:
                # It waits for a source; or the event loop was held up, and the client's first event
                # is still to come.
                wheel.schedule(self, ATTEMPT_DELAY_S)
        elif left_s > 0:
            wheel.schedule(self, min(ATTEMPT_DELAY_S, left_s))
            race.start_next()
        else:
            race.time_out()

    def _check_idle(self, relay: Relay) -> None:
        limits = self.origin.limits
        timeouts = [(limits.idle_timeout_s, Reason.IDLE_TIMEOUT)]
        if relay.half_closed:
            timeouts.append((limits.half_close_timeout_s, Reason.HALF_CLOSE_TIMEOUT))
        left_s = _SELDOM_S
        for timeout_s, reason in sorted(entry for entry in timeouts if entry[0])[:1]:
            left_s = relay.touched + timeout_s - monotonic()
            if left_s <= 0:
                relay.abort(reason)
                return
        # Not later than the half-close timeout, which applies once one side has finished.
        self.origin.data_plane.wheel.schedule(
            self, min(left_s, limits.half_close_timeout_s or _SELDOM_S)
        )

    def abort(self, reason: Reason) -> None:
        """Reset whichever sides are there."""
        if self._relay is not None:
            self._relay.abort(reason)
        else:
            self._refuse(reason)

    def _refuse(self, reason: Reason) -> None:
        """Reset a client that has no upstream."""
        if self.closed:
            return
        if self._race is not None:
            self._race.cancel()
        self.origin.data_plane.source_gate.leave(self)
        reset_on_close(self._client)
        self.origin.data_plane.reactor.close(self._client)
        self._close(reason)

    def relay_ended(self, reason: Reason) -> None:
        self._close(reason)

    def _close(self, reason: Reason) -> None:
        """Every connection ends here, once."""
        self.closed = True
        origin, plane = self.origin, self.origin.data_plane
        plane.wheel.cancel(self)
        # Not the reactor's time, which is old when a timer or a signal ends the connection.
        now = monotonic()
        relay, race = self._relay, self._race
        self._relay = self._race = None
        origin.live.active -= 1
        if relay is not None:
            origin.live.established -= 1
            # All bytes are in the event below.
            self._count_bytes(0, 0)
        plane.observer.observe(
            ConnectionClosed(
                listener=origin.destination.port,
                destination=origin.name,
                client=self.client_address,
                address=self._address,
                source=self._source,
                bytes_to_upstream=relay.up.count if relay else 0,
                bytes_to_client=relay.down.count if relay else 0,
                duration_s=now - self.accepted_at,
                connect_s=self._connected_at - self.accepted_at if relay else None,
                attempts=race.attempts if race else 0,
                reason=reason,
                error=self._error_number,
            )
        )
        # Last, because it may resume listeners.
        plane.admission.leave()
