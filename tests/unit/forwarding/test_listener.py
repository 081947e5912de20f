"""One port: bound, listening, refusing or failed, and what each change leaves behind."""

from __future__ import annotations

import errno
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from egress_proxy.events import ListenerClosed, ListenerFailed, ListenerOpened, ListenersPaused
from egress_proxy.forwarding.listener import Listener
from egress_proxy.relay.reactor import IN
from tests.support.sockets import FakePoint, Plane

if TYPE_CHECKING:
    import socket

V4, V6 = map(ip_address, ("192.0.2.10", "2001:db8::10"))
OPENED = ListenerOpened(listener=80, destination="a:80", addresses=(str(V4), str(V6)))
CLOSED = ListenerClosed(listener=80, destination="a:80")


class Port:
    """A port on two addresses, bound."""

    def __init__(self) -> None:
        self.plane = Plane()
        self.listener = Listener(self.plane.plane, 80, "a:80", lambda *_: None)
        points = FakePoint(V4), FakePoint(V6)
        for point in points:
            self.listener.bind(point.real)
        self.first, self.second = (point.sockets[80] for point in points)

    @property
    def watched(self) -> set[object]:
        return set(self.plane.reactor.watchers)


@pytest.fixture
def port() -> Port:
    return Port()


def failed(retry_s: float) -> ListenerFailed:
    return ListenerFailed(
        listener=80,
        destination="a:80",
        address=str(V6),
        error="as if listen failed",
        retry_s=retry_s,
    )


def test_a_port_that_is_bound_refuses_its_clients(port: Port) -> None:
    assert (port.listener.state, port.first.listening, port.watched) == ("refusing", False, set())
    assert port.listener.addresses == [(str(V4), 80), (str(V6), 80)]
    assert port.plane.records == []


def test_an_open_port_listens_everywhere_and_is_reported_once(port: Port) -> None:
    for _ in range(2):
        port.listener.open()
        assert (port.listener.state, port.listener.error) == ("listening", "")
        assert port.first.listening
        assert port.second.listening
        assert port.watched == {port.first, port.second}
    assert port.plane.records == [OPENED]


def test_a_port_that_refuses_stays_bound_and_can_open_again(port: Port) -> None:
    port.listener.open()
    for _ in range(2):
        port.listener.refuse()
        assert (port.listener.state, port.first.listening, port.watched) == (
            "refusing",
            False,
            set(),
        )
        assert not port.first.closed
    port.listener.open()
    assert port.plane.records == [OPENED, CLOSED, OPENED]


def test_what_is_closed_is_given_back_and_watched_no_more(port: Port) -> None:
    port.listener.open()
    port.listener.close()
    assert (port.first.closed, port.second.closed, port.watched) == (True, True, set())
    assert port.plane.records == [OPENED, CLOSED]
    # Without a socket there is nothing to open.
    port.listener.open()
    assert port.listener.state == "refusing"


def test_a_port_that_never_listened_closes_without_an_event(port: Port) -> None:
    port.listener.close()
    assert port.first.closed
    assert port.plane.records == []


def test_when_one_socket_can_not_listen_the_others_stop(port: Port) -> None:
    port.second.failing["listen"] = errno.EADDRINUSE
    port.listener.open()
    assert (port.listener.state, port.listener.error) == ("failed", "as if listen failed")
    assert (port.first.listening, port.watched) == (False, set())
    assert port.plane.take_records() == [failed(1.0)]
    # It is no gate of admission, whose pauses must not meet it.
    port.plane.admission.exhausted(errno.EMFILE)
    assert isinstance(port.plane.take_records()[0], ListenersPaused)


def test_a_failed_port_tries_again_less_and_less_often(port: Port) -> None:
    port.second.failing["listen"] = errno.EADDRINUSE
    port.listener.open()
    delays = [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    for delay in delays:
        assert port.plane.take_records() == [failed(delay)]
        port.plane.loop.advance(delay - 0.01)
        assert port.plane.records == []
        port.plane.loop.advance(0.01)
    del port.second.failing["listen"]
    port.plane.loop.advance(30.0)
    assert port.plane.take_records()[1:] == [OPENED]
    assert (port.listener.state, port.listener.error) == ("listening", "")
    # And the next failure begins at a second again.
    port.listener.refuse()
    port.second.failing["listen"] = errno.EADDRINUSE
    port.listener.open()
    assert port.plane.take_records() == [CLOSED, failed(1.0)]


@pytest.mark.parametrize("end", ["refuse", "close"])
def test_a_failed_port_that_is_removed_stops_trying(port: Port, end: str) -> None:
    port.second.failing["listen"] = errno.EADDRINUSE
    port.listener.open()
    getattr(port.listener, end)()
    assert (port.listener.state, port.listener.error) == ("refusing", "")
    assert port.plane.loop.armed == 0
    assert port.plane.take_records() == [failed(1.0)]


def test_pausing_and_resuming_twice_is_the_same_as_once(port: Port) -> None:
    port.listener.open()
    for _ in range(2):
        port.listener.pause()
        assert port.watched == set()
    for _ in range(2):
        port.listener.resume()
        assert port.watched == {port.first, port.second}


def test_a_port_that_can_not_be_watched_is_watched_on_no_address(port: Port) -> None:
    port.listener.open()
    port.listener.pause()
    port.plane.reactor.room = 1
    with pytest.raises(OSError, match="no room"):
        port.listener.resume()
    assert port.watched == set()
    port.plane.reactor.room = 2
    port.listener.resume()
    assert port.watched == {port.first, port.second}


def look(port: Port, *errors: int) -> None:
    """What a look at the first socket's backlog makes of these errors of accept(2)."""
    port.listener.open()
    port.plane.take_records()
    port.first.backlog += errors
    port.plane.reactor.watchers[port.first].ready(IN)


@pytest.mark.parametrize(
    "number",
    [errno.ECONNABORTED, errno.EPROTO, errno.EHOSTUNREACH, errno.ENETDOWN],
    ids=errno.errorcode.get,
)
def test_an_error_of_one_client_does_not_affect_the_port(port: Port, number: int) -> None:
    look(port, *[number] * 3)
    assert port.first.backlog == []
    assert port.watched == {port.first, port.second}
    assert port.plane.records == []


def test_no_more_clients_are_taken_in_a_turn_than_four(port: Port) -> None:
    look(port, *[errno.ECONNABORTED] * 6)
    assert len(port.first.backlog) == 2


def test_out_of_descriptors_every_port_pauses(port: Port) -> None:
    other = Listener(port.plane.plane, 443, "b:443", lambda *_: None)
    point = FakePoint(V4)
    other.bind(point.real)
    other.open()
    look(port, errno.EMFILE)
    assert port.plane.admission.paused
    assert port.watched == set()
    port.plane.loop.advance(1.0)
    assert port.watched == {port.first, port.second, point.sockets[443]}


def test_any_other_error_pauses_the_port_alone(port: Port) -> None:
    """The socket stays readable: without a pause it would be looked at for ever."""
    look(port, errno.EINVAL)
    assert not port.plane.admission.paused
    assert port.watched == set()
    [paused] = port.plane.take_records()
    assert paused == ListenersPaused(listener=80, error="Invalid argument", connections=0)
    port.plane.loop.advance(1.0)
    assert port.watched == {port.first, port.second}


def test_a_socket_that_has_its_port_is_kept_when_its_options_fail() -> None:
    """So that the code that gives up closes it."""
    plane = Plane()
    listener = Listener(plane.plane, 80, "a:80", lambda *_: None)

    class Stubborn(FakePoint):
        def bind(self, port: int) -> socket.SocketType:
            bound = super().bind(port)
            self.sockets[port].failing["setsockopt"] = errno.ENOBUFS
            return bound

    point = Stubborn(V4)
    with pytest.raises(OSError, match="setsockopt"):
        listener.bind(point.real)
    listener.close()
    assert point.sockets[80].closed
