"""A snapshot: each figure of the daemon, from the part that keeps it."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, cast

import pytest

from egress_proxy.config.destinations import Destination
from egress_proxy.config.settings import read_settings
from egress_proxy.events import ConfigRejected, ConnectionClosed, DestinationUnresolved, Reason
from egress_proxy.forwarding.connection import Connection, SessionLimits
from egress_proxy.forwarding.forwarder import Forwarder
from egress_proxy.forwarding.listener import Listener
from egress_proxy.pod.address_monitor import AddressMonitor
from egress_proxy.relay.reactor import OUT
from egress_proxy.run.snapshot import Snapshot
from egress_proxy.telemetry.counters import Counters
from egress_proxy.telemetry.status import Source, Upstream
from tests.support.sockets import FakePoint, FakeSocket, Plane

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

    from egress_proxy.telemetry import status

LIMITS = SessionLimits(
    allow_clients=(),
    connect_timeout_s=10.0,
    idle_timeout_s=60.0,
    half_close_timeout_s=60.0,
    record_source_port=False,
)
SOURCE = "192.0.2.99"
REMOTE = ip_address("203.0.113.1")
CLIENT = ("198.51.100.1", 40000)


@dataclass
class Log:
    debug: bool = True
    dropped: int = 7


@dataclass
class Table:
    """The forwarders and names that there are, and the connections of the wheel."""

    plane: Plane
    forwarders: dict[int, Forwarder] = field(default_factory=dict)
    refreshers: dict[str, None] = field(default_factory=dict)

    def connections(self) -> Iterator[Connection]:
        return (member for member in self.plane.wheel if isinstance(member, Connection))


class Daemon:
    """The parts that a snapshot is taken of, without a daemon."""

    def __init__(self) -> None:
        self.plane = Plane(maximum=10)
        self.counters = Counters()
        self.table = Table(self.plane)
        self.interfaces: dict[str, tuple[Any, ...]] = {"macvlan0": (ip_address(SOURCE),)}
        self.monitor = AddressMonitor(
            cast("asyncio.AbstractEventLoop", self.plane.loop),
            {socket.AF_INET: SOURCE},
            self.plane,
            lambda: (self.interfaces, frozenset()),
        )
        self.snapshot = Snapshot(
            read_settings({"EGRESS_DNS_PROXY_DESTINATION": "80 192.0.2.1"}),
            self.plane.admission,
            self.monitor,
            cast("Any", self.table),
            self.counters,
            Log(),
        )

    def forward(self, port: int, host: str = "") -> Forwarder:
        listener = Listener(self.plane.plane, port, "", lambda *_: None)
        listener.bind(FakePoint(ip_address("192.0.2.10")).real)
        destination = Destination(port, host or REMOTE, port, 1)
        forwarder = Forwarder(self.plane.plane, LIMITS, destination, listener)
        self.table.forwarders[port] = forwarder
        return forwarder

    def client(self, port: int, *, connected: bool = True) -> None:
        client = FakeSocket()
        self.table.forwarders[port].listener.on_client(client.real, CLIENT)
        self.plane.reactor.watchers[client].ready(OUT)
        if connected:
            _, upstream = self.plane.connector.attempts[-1]
            self.plane.reactor.watchers[upstream].ready(OUT)

    def end_all(self) -> None:
        for connection in list(self.table.connections()):
            connection.abort(Reason.DRAINED)
        for record in self.plane.take_records():
            self.counters.observe(record)

    def destinations(self) -> list[status.Destination]:
        return list(self.snapshot.take().destinations)


@pytest.fixture
def daemon() -> Daemon:
    return Daemon()


def test_what_holds_for_the_process(daemon: Daemon) -> None:
    taken = daemon.snapshot.take()
    assert (taken.debug, taken.log_dropped, taken.draining) == (True, 7, False)
    assert (taken.active, taken.maximum, taken.pauses) == (0, 10, 0)
    assert taken.sources == (Source(address=SOURCE, problem=""),)
    assert taken.started <= taken.now
    daemon.snapshot.draining = True
    assert daemon.snapshot.take().draining


def test_a_source_that_is_lost_says_why(daemon: Daemon) -> None:
    daemon.interfaces.clear()
    daemon.monitor.refresh()
    assert daemon.snapshot.take().sources == (
        Source(address=SOURCE, problem="no interface has it"),
    )


def test_the_states_of_ports(daemon: Daemon) -> None:
    listening, refusing, paused, failed = map(daemon.forward, (1, 2, 3, 4))
    failed.listener.sockets[0].failing["listen"] = errno.EADDRINUSE  # type: ignore[attr-defined]
    for forwarder in (listening, paused, failed):
        forwarder.set_addresses([REMOTE])
    daemon.plane.admission.pause_one(paused.listener, errno.EADDRNOTAVAIL)
    assert [(one.listener, one.state, one.error) for one in daemon.destinations()] == [
        (1, "listening", ""),
        (refusing.port, "refusing", ""),
        (3, "paused", ""),
        (4, "failed", "as if listen failed"),
    ]
    daemon.plane.admission.exhausted(errno.EMFILE)
    assert [one.state for one in daemon.destinations()] == [
        "paused",
        "refusing",
        "paused",
        "failed",
    ]


def test_the_addresses_of_a_destination_and_which_of_them_failed(daemon: Daemon) -> None:
    forwarder = daemon.forward(80, "a.example.com")
    other = ip_address("203.0.113.2")
    forwarder.set_addresses([REMOTE, other])
    forwarder.upstreams.endpoints[1].mark_failed(1.0, "Connection refused")
    [told] = daemon.destinations()
    assert (told.destination, told.name) == ("a.example.com:80", "a.example.com")
    assert told.upstreams == (
        Upstream(address=str(REMOTE), healthy=True),
        Upstream(address=str(other), healthy=False),
    )


def test_connections_that_run_and_those_that_ended(daemon: Daemon) -> None:
    for port in (80, 443):
        daemon.forward(port).set_addresses([REMOTE])
    daemon.client(80)
    daemon.client(80)
    daemon.end_all()
    daemon.client(80)
    daemon.client(80, connected=False)
    first, second = sorted(daemon.destinations(), key=lambda one: one.listener)
    assert (first.active, first.total, first.established) == (2, 4, 3)
    assert {reason: count for reason, count in first.ended.items() if count} == {"drained": 2}
    assert (second.active, second.total, second.established) == (0, 0, 0)
    assert daemon.snapshot.take().active == 2


def test_the_octets_of_connections_that_ended_are_kept(daemon: Daemon) -> None:
    daemon.forward(80)
    daemon.counters.observe(
        ConnectionClosed(
            listener=80,
            destination=f"{REMOTE}:80",
            client=CLIENT,
            address=(str(REMOTE), 80),
            source=None,
            bytes_to_upstream=5,
            bytes_to_client=6,
            duration_s=1.0,
            connect_s=0.1,
            attempts=1,
            reason=Reason.UPSTREAM_RESET,
        )
    )
    [told] = daemon.destinations()
    assert (told.bytes_to_upstream, told.bytes_to_client, told.total) == (5, 6, 1)


def test_a_port_that_leads_elsewhere_is_two_until_its_connections_end(daemon: Daemon) -> None:
    before = daemon.forward(80)
    before.set_addresses([REMOTE])
    daemon.client(80)
    after = Forwarder(
        daemon.plane.plane, LIMITS, Destination(80, "b.example.com", 80, 1), before.listener
    )
    daemon.table.forwarders[80] = after
    daemon.snapshot.forget([before])
    removed, current = sorted(daemon.destinations(), key=lambda one: one.state != "removed")
    assert (removed.destination, removed.state, removed.active) == (f"{REMOTE}:80", "removed", 1)
    assert removed.upstreams == ()
    assert (current.destination, current.active) == ("b.example.com:80", 0)
    daemon.end_all()
    # At the reload after its last connection has ended.
    assert len(daemon.destinations()) == 2
    daemon.snapshot.forget([after])
    assert [one.destination for one in daemon.destinations()] == ["b.example.com:80"]


def test_a_destination_that_was_changed_and_changed_back_is_one(daemon: Daemon) -> None:
    first = daemon.forward(80)
    first.set_addresses([REMOTE])
    daemon.client(80)
    second = Forwarder(daemon.plane.plane, LIMITS, first.destination, first.listener)
    second.set_addresses([REMOTE])
    daemon.table.forwarders[80] = second
    daemon.client(80)
    [told] = daemon.destinations()
    assert (told.active, told.total) == (2, 2)


def test_names_and_reloads(daemon: Daemon) -> None:
    daemon.table.refreshers["a.example.com"] = None
    daemon.counters.observe(
        DestinationUnresolved(destination="a.example.com", error="no answer", retry_s=1.0)
    )
    daemon.counters.observe(ConfigRejected(problems=("line 1",)))
    taken = daemon.snapshot.take()
    [name] = taken.names
    assert name.name == "a.example.com"
    assert name.last_failure is not None
    assert name.last_failure.what == "no answer"
    assert (taken.reloads.rejected, taken.reloads.problems) == (1, ("line 1",))
