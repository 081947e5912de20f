"""One client, from accept to record.

A `Connection` is the owner of everything that a client costs: it connects, relays, keeps time and
records, once, whatever happens to it.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from egress_proxy.events import ConnectionClosed, Observer, Reason
from egress_proxy.forwarding.admission import Gate
from egress_proxy.forwarding.race import ATTEMPT_DELAY_S, EXHAUSTED, NO_PORT, Race
from egress_proxy.relay.reactor import ERROR, reset_on_close
from egress_proxy.relay.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from egress_proxy.config.destinations import Destination
    from egress_proxy.forwarding.admission import Admission
    from egress_proxy.forwarding.race import Connector
    from egress_proxy.forwarding.upstreams import Endpoint, Upstreams
    from egress_proxy.ip import Address, Network
    from egress_proxy.relay.relay import Engine
    from egress_proxy.relay.timer_wheel import TimerWheel

# A silent peer that is gone is found out after 60 s and four probes of 15 s (tcp(7)).
# TCP_USER_TIMEOUT is left alone: it would also end a live peer that reads slowly
# (docs/decisions/002-no-user-timeout.md).
_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
)
# How often a connection that nothing limits is looked at.
_SELDOM_S = 3600.0


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """What holds for the clients of every destination. Durations are in seconds, 0 is never."""

    allow_clients: tuple[Network, ...]
    connect_timeout_s: float
    idle_timeout_s: float
    half_close_timeout_s: float
    # Whether records carry the source port, which costs a system call a connection.
    record_source_port: bool


@dataclass(frozen=True, slots=True)
class Plant:
    """What all forwarders share."""

    engine: Engine
    wheel: TimerWheel
    admission: Admission
    connector: Connector
    observer: Observer


class Listening(Gate, Protocol):
    """Where a client came in, and what holds for it there."""

    plant: Plant
    rules: SessionLimits
    destination: Destination
    name: str
    upstreams: Upstreams
    on_all_failed: Callable[[], None]

    def allows(self, client_address: Sequence[object]) -> bool: ...


class Connection:
    """One client, from accept to record."""

    __slots__ = (
        "_accepted_at",
        "_address",
        "_client",
        "_client_address",
        "_client_events",
        "_closed",
        "_connected_at",
        "_forwarder",
        "_needs_keepalive",
        "_race",
        "_relay",
        "_source",
        "deadline_tick",
    )

    deadline_tick: int

    def __init__(
        self, forwarder: Listening, client: socket.SocketType, client_address: Sequence[object]
    ) -> None:
        self._forwarder = forwarder
        self._client = client
        self._client_address = client_address
        self._client_events = 0
        self._accepted_at = forwarder.plant.engine.reactor.now
        self._connected_at = 0.0
        self._address: Sequence[object] | None = None
        self._source: Sequence[object] | None = None
        # An upstream without keepalive: it is set on those that live to see the wheel turn.
        self._needs_keepalive: socket.SocketType | None = None
        self._relay: Relay | None = None
        self._race: Race | None = None
        self._closed = False

    @property
    def forwarder(self) -> Listening:
        return self._forwarder

    @property
    def moved(self) -> tuple[int, int]:
        """Octets to the upstream and to the client so far."""
        relay = self._relay
        return (relay.up.count, relay.down.count) if relay else (0, 0)

    @property
    def established(self) -> bool:
        """Whether the upstream was reached."""
        return self._relay is not None

    @property
    def host(self) -> Address | str:
        """What the admin wrote: whose addresses this connection may go to."""
        return self._forwarder.destination.host

    @property
    def address(self) -> Sequence[object] | None:
        """The upstream's socket address; None before there is one."""
        return self._address

    def begin(self) -> None:
        """Wait for the client's first event, which comes at once: it can be written to.

        A client that is gone by then, as one that scans ports, reaches no upstream.
        """
        plant = self._forwarder.plant
        plant.admission.enter()
        plant.wheel.schedule(self, ATTEMPT_DELAY_S)
        try:
            plant.engine.reactor.watch(self._client, self)
        except OSError as error:
            self.unconnected(Reason.ERROR, error.errno or errno.EIO)
            return
        if not self._forwarder.allows(self._client_address):
            self._refuse(Reason.DENIED_CLIENT)

    def ready(self, events: int) -> None:
        """The client has done something while it has no upstream yet."""
        self._client_events |= events
        if events & ERROR:
            self._refuse(Reason.CLIENT_GONE)
        elif self._race is None:
            self._connect()

    def _connect(self) -> None:
        """Connect to the destination; the client's octets wait in the kernel meanwhile."""
        plant = self._forwarder.plant
        endpoints = self._forwarder.upstreams.in_order(plant.engine.reactor.now)
        self._race = Race(plant.connector, endpoints, self)
        self._race.start_next()

    def fail(self) -> None:
        self.abort(Reason.ERROR)

    def connected(self, sock: socket.SocketType, endpoint: Endpoint, events: int) -> None:
        """The upstream is there: relay."""
        plant = self._forwarder.plant
        self._needs_keepalive = sock
        self._address = endpoint.sockaddr
        self._connected_at = plant.engine.reactor.now
        if self._forwarder.rules.record_source_port:
            with contextlib.suppress(OSError):
                self._source = sock.getsockname()
        self._relay = Relay(plant.engine, self._client, sock, self)
        self._relay.start(self._client_events, events)

    def unconnected(self, reason: Reason, error_number: int) -> None:
        """No upstream is to be had: the client is reset at once."""
        self._refuse(reason)
        forwarder = self._forwarder
        if error_number in EXHAUSTED:
            forwarder.plant.admission.exhausted(error_number)
        elif error_number == NO_PORT:
            forwarder.plant.admission.pause_one(forwarder, error_number)
        else:
            forwarder.on_all_failed()

    def on_timer(self) -> None:
        """Time has passed: end what has taken too long, or look again later."""
        if self._relay is None:
            self._next_attempt_or_time_out()
        else:
            if self._needs_keepalive is not None:
                keep_alive(self._needs_keepalive)
                self._needs_keepalive = None
            self._check_idle(self._relay)

    def _next_attempt_or_time_out(self) -> None:
        wheel, race = self._forwarder.plant.wheel, self._race
        if race is None:
            # The event loop was held up: the client's first event is still to come.
            wheel.schedule(self, ATTEMPT_DELAY_S)
            return
        left_s = self._accepted_at + self._forwarder.rules.connect_timeout_s - monotonic()
        if left_s > 0:
            wheel.schedule(self, min(ATTEMPT_DELAY_S, left_s))
            race.start_next()
        else:
            race.time_out()

    def _check_idle(self, relay: Relay) -> None:
        rules = self._forwarder.rules
        limits = [(rules.idle_timeout_s, Reason.IDLE_TIMEOUT)]
        if relay.half_closed:
            limits.append((rules.half_close_timeout_s, Reason.HALF_CLOSE_TIMEOUT))
        left_s = _SELDOM_S
        for timeout_s, reason in sorted(limit for limit in limits if limit[0])[:1]:
            left_s = relay.touched + timeout_s - monotonic()
            if left_s <= 0:
                relay.abort(reason)
                return
        # A half-close from now on is noticed in time.
        self._forwarder.plant.wheel.schedule(
            self, min(left_s, rules.half_close_timeout_s or _SELDOM_S)
        )

    def abort(self, reason: Reason) -> None:
        """End the connection with a RST to whoever is there."""
        if self._relay is not None:
            self._relay.abort(reason)
        else:
            self._refuse(reason)

    def _refuse(self, reason: Reason) -> None:
        """Reset a client that has no upstream."""
        if self._closed:
            return
        if self._race is not None:
            self._race.cancel()
        reset_on_close(self._client)
        self._forwarder.plant.engine.reactor.close(self._client)
        self._close(reason)

    def relay_ended(self, reason: Reason) -> None:
        self._close(reason)

    def _close(self, reason: Reason) -> None:
        """Whatever happened, it ends here, once."""
        self._closed = True
        forwarder, plant = self._forwarder, self._forwarder.plant
        plant.wheel.cancel(self)
        # The reactor's time is old when a timer or a signal ends the connection.
        now = monotonic()
        relay, race = self._relay, self._race
        self._relay = self._race = None
        plant.admission.leave()
        plant.observer.observe(
            ConnectionClosed(
                listener=forwarder.destination.port,
                destination=forwarder.name,
                client=self._client_address,
                address=self._address,
                source=self._source,
                bytes_to_upstream=relay.up.count if relay else 0,
                bytes_to_client=relay.down.count if relay else 0,
                duration_s=now - self._accepted_at,
                connect_s=self._connected_at - self._accepted_at if relay else None,
                attempts=race.attempts if race else 0,
                reason=reason,
            )
        )


def keep_alive(sock: socket.SocketType) -> None:
    for option in _KEEPALIVE:
        sock.setsockopt(*option)
