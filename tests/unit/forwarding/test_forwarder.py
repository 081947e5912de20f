"""One destination: when its port is open, and what a reload hands over."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from egress_proxy.config.destinations import Destination
from egress_proxy.events import ListenerClosed, ListenerOpened
from egress_proxy.forwarding.connection import SessionLimits
from egress_proxy.forwarding.forwarder import Forwarder
from egress_proxy.forwarding.listener import Listener
from egress_proxy.relay.reactor import OUT
from tests.support.sockets import FakePoint, FakeSocket, Plane

if TYPE_CHECKING:
    from egress_proxy.ip import Address

V4, V6 = map(ip_address, ("203.0.113.1", "2001:db8::1"))
LIMITS = SessionLimits(
    allow_clients=(),
    connect_timeout_s=10.0,
    idle_timeout_s=60.0,
    half_close_timeout_s=60.0,
    record_source_port=False,
)
FIRST = Destination(port=80, host="a.example.com", remote_port=8080, line=1)
SECOND = Destination(port=80, host="b.example.com", remote_port=8080, line=1)
CLIENT = ("198.51.100.1", 40000)


class Port:
    """A port that is bound, and the forwarder of its first destination."""

    def __init__(self, families: tuple[int, ...] = (socket.AF_INET, socket.AF_INET6)) -> None:
        self.plane = Plane()
        self.listener = Listener(self.plane.plane, 80, "", lambda *_: None)
        self.point = FakePoint(ip_address("192.0.2.10"))
        self.listener.bind(self.point.real)
        self.forwarder = Forwarder(self.plane.plane, LIMITS, FIRST, self.listener, families)

    def client(self) -> FakeSocket:
        """A client that was accepted, and has had its first event."""
        sock = FakeSocket()
        self.listener.on_client(sock.real, CLIENT)
        self.plane.reactor.watchers[sock].ready(OUT)
        return sock

    def tried(self) -> list[tuple[str, int]]:
        return [endpoint.sockaddr for endpoint, _ in self.plane.connector.attempts]


@pytest.fixture
def port() -> Port:
    return Port()


def kinds(port: Port) -> list[type]:
    return [type(record) for record in port.plane.take_records()]


def test_the_first_addresses_open_the_port_and_the_last_one_closes_it(port: Port) -> None:
    states = []
    for addresses in ([V4], [V4, V6], []):
        port.forwarder.set_addresses(addresses)
        states.append(port.listener.state)
    assert states == ["listening", "listening", "refusing"]
    assert kinds(port) == [ListenerOpened, ListenerClosed]


@pytest.mark.parametrize(
    ("families", "usable"),
    [
        ((socket.AF_INET,), [V4]),
        ((socket.AF_INET6,), [V6]),
        ((socket.AF_INET, socket.AF_INET6), [V4, V6]),
        ((), []),
    ],
    ids=["IPv4", "IPv6", "both", "none"],
)
def test_only_addresses_with_a_source_are_used(
    families: tuple[int, ...], usable: list[Address]
) -> None:
    port = Port(families)
    port.forwarder.set_addresses([V4, V6])
    assert [address for address, _ in port.forwarder.upstreams.health()] == [*map(str, usable)]
    assert port.listener.state == ("listening" if usable else "refusing")
    # What DNS said is remembered, for when the source is back.
    assert port.forwarder.addresses == (V4, V6)
    port.forwarder.reach(frozenset({socket.AF_INET, socket.AF_INET6}))
    assert [address for address, _ in port.forwarder.upstreams.health()] == [str(V4), str(V6)]
    assert port.listener.state == "listening"


def test_a_source_that_goes_closes_the_port(port: Port) -> None:
    port.forwarder.set_addresses([V4])
    port.forwarder.reach(frozenset())
    assert kinds(port) == [ListenerOpened, ListenerClosed]
    assert port.point.sockets[80].closed is False


def test_clients_get_an_upstream_of_the_destination_in_turn(port: Port) -> None:
    port.forwarder.set_addresses([V4, ip_address("203.0.113.2")])
    for _ in range(4):
        port.client()
    assert sorted(port.tried()) == [("203.0.113.1", 8080)] * 2 + [("203.0.113.2", 8080)] * 2


def test_the_name_is_looked_up_again_when_a_client_found_no_address(port: Port) -> None:
    asked = []
    port.forwarder.on_all_failed = lambda: asked.append(True)
    port.forwarder.set_addresses([V4])
    port.plane.connector.failing = 111
    assert port.client().reset
    assert asked == [True]


def test_another_destination_takes_the_port_over_as_it_is(port: Port) -> None:
    port.forwarder.set_addresses([V4])
    before = port.client()
    kinds(port)
    successor = Forwarder(port.plane.plane, LIMITS, SECOND, port.listener)
    assert port.listener.state == "listening"
    assert port.listener.destination == "b.example.com:8080"
    successor.set_addresses([ip_address("203.0.113.7")])
    port.client()
    assert port.tried() == [("203.0.113.1", 8080), ("203.0.113.7", 8080)]
    # Neither the port nor the connections of before have noticed.
    assert kinds(port) == []
    assert not before.closed
    assert (port.forwarder.origin.live.active, successor.origin.live.active) == (1, 1)
    successor.close()
    assert port.point.sockets[80].closed


def test_the_ports_of_a_forwarder_are_those_of_its_destination(port: Port) -> None:
    assert (port.forwarder.port, port.forwarder.remote_port, port.forwarder.name) == (
        80,
        8080,
        "a.example.com:8080",
    )
