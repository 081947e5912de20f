"""One client without a kernel: what it may cost, how it ends, and its one record."""

from __future__ import annotations

import errno
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

import pytest

from egress_proxy.config.destinations import Destination
from egress_proxy.events import Reason
from egress_proxy.forwarding.connection import Connection, Origin, SessionLimits
from egress_proxy.forwarding.race import ATTEMPT_DELAY_S
from egress_proxy.forwarding.upstreams import Upstreams
from egress_proxy.relay.reactor import ERROR, OUT
from egress_proxy.relay.timer_wheel import TICK_S
from tests.support.sockets import FakeSocket, Plane

if TYPE_CHECKING:
    from collections.abc import Sequence

    from egress_proxy.events import ConnectionClosed

LIMITS = SessionLimits(
    allow_clients=(),
    connect_timeout_s=3600.0,
    idle_timeout_s=3600.0,
    half_close_timeout_s=3600.0,
    record_source_port=False,
)
ADDRESSES = tuple(map(ip_address, ("203.0.113.1", "203.0.113.2")))
FIRST, SECOND = ((str(address), 8080) for address in ADDRESSES)
CLIENT = ("198.51.100.1", 40000)


class Gate:
    """The port that clients come from; `closed` is how many had ended when it last opened."""

    port = 80

    def __init__(self, plane: Plane) -> None:
        self.open = False
        self.closed = 0
        self._plane = plane

    def pause(self) -> None:
        self.open = False

    def resume(self) -> None:
        self.open = True
        self.closed = len(self._plane.closed)


class Clients:
    """Clients of one destination, whose upstreams do what a test says."""

    def __init__(self, maximum: int = 100, **limits: Any) -> None:  # noqa: ANN401 - as SessionLimits
        self.plane = Plane(maximum)
        self.gate = Gate(self.plane)
        self.plane.admission.open(self.gate)
        self.asked = 0
        destination = Destination(port=80, host="a.example.com", remote_port=8080, line=1)
        self.origin = Origin(
            data_plane=self.plane.plane,
            destination=destination,
            name=str(destination),
            limits=replace(LIMITS, **limits),
            upstreams=Upstreams(str(destination), 8080, self.plane),
            gate=self.gate,
            on_all_failed=self._ask,
        )
        # One address, unless a test wants more: the first client of two begins with the second.
        self.origin.upstreams.replace(ADDRESSES[:1])

    def _ask(self) -> None:
        self.asked += 1

    def accept(self, *, events: int = OUT, address: Sequence[object] = CLIENT) -> FakeSocket:
        """A client, and its first event: 0 if that has not come."""
        client = FakeSocket()
        Connection(self.origin, client.real, address).begin()
        if events and client in self.plane.reactor.watchers:
            self.happens(client, events)
        return client

    def happens(self, sock: FakeSocket, events: int) -> None:
        self.plane.reactor.watchers[sock].ready(events)

    @property
    def tried(self) -> list[tuple[str, int]]:
        return [endpoint.sockaddr for endpoint, _ in self.plane.connector.attempts]

    @property
    def upstream(self) -> FakeSocket:
        """The socket of the last attempt."""
        return self.plane.connector.attempts[-1][1]

    def refuse(self, error_number: int = errno.ECONNREFUSED) -> None:
        """The remote answers the last attempt with an error."""
        upstream = self.upstream
        upstream.failing["connect"] = error_number
        self.happens(upstream, ERROR)

    def record(self) -> ConnectionClosed:
        """The one record there is, of a connection that has left nothing behind."""
        [record] = self.plane.closed
        assert self.plane.admission.active == self.origin.live.active == 0
        assert list(self.plane.wheel) == []
        assert self.plane.reactor.watchers == {}
        assert self.plane.defects == []
        return record


@pytest.fixture
def clients() -> Clients:
    return Clients()


def test_a_client_counts_from_its_accept(clients: Clients) -> None:
    client = clients.accept(events=0)
    assert clients.plane.admission.active == clients.origin.live.active == 1
    # Until its first event nothing is known of it, and no upstream is asked.
    assert clients.tried == []
    clients.happens(client, OUT)
    assert clients.tried == [FIRST]


def test_more_events_of_a_client_make_no_more_attempts(clients: Clients) -> None:
    client = clients.accept()
    clients.happens(client, OUT)
    assert clients.tried == [FIRST]


def test_a_client_that_is_gone_before_it_is_looked_at_reaches_no_upstream(
    clients: Clients,
) -> None:
    client = clients.accept(events=ERROR)
    record = clients.record()
    assert (record.reason, record.attempts, clients.tried) == (Reason.CLIENT_GONE, 0, [])
    assert client.closed
    assert clients.asked == 0


def test_a_client_that_goes_while_it_waits_takes_its_attempt_along(clients: Clients) -> None:
    client = clients.accept()
    clients.happens(client, ERROR)
    assert clients.upstream.reset
    record = clients.record()
    assert (record.reason, record.attempts, record.connect_s) == (Reason.CLIENT_GONE, 1, None)


@pytest.mark.parametrize(
    ("address", "allowed"), [(CLIENT, True), (("198.51.100.200", 40000), False)]
)
def test_only_clients_of_the_allowed_networks_are_served(
    address: tuple[str, int], *, allowed: bool
) -> None:
    clients = Clients(allow_clients=(ip_network("198.51.100.0/25"),))
    client = clients.accept(address=address)
    assert client.reset is not allowed
    assert clients.tried == ([FIRST] if allowed else [])
    if not allowed:
        assert clients.record().reason is Reason.DENIED_CLIENT


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOMEM], ids=errno.errorcode.get)
def test_a_client_that_can_not_be_watched_is_reset_and_the_ports_pause(
    clients: Clients, number: int
) -> None:
    clients.plane.reactor.room, clients.plane.reactor.full = 0, number
    client = clients.accept()
    assert client.reset
    record = clients.record()
    assert (record.reason, record.error, record.address) == (Reason.ERROR, number, None)
    assert clients.plane.admission.paused


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ECONNREFUSED, Reason.CONNECT_REFUSED),
        (errno.ETIMEDOUT, Reason.CONNECT_TIMEOUT),
        (errno.EHOSTUNREACH, Reason.CONNECT_UNREACHABLE),
    ],
    ids=["refused", "timed out", "unreachable"],
)
def test_a_client_whose_upstream_fails_is_reset_and_the_name_is_asked_for_again(
    clients: Clients, number: int, reason: Reason
) -> None:
    client = clients.accept()
    clients.refuse(number)
    assert client.reset
    record = clients.record()
    assert (record.reason, record.error, record.attempts) == (reason, number, 1)
    assert (record.address, record.connect_s) == (FIRST, None)
    assert clients.asked == 1
    assert clients.gate.open


def test_out_of_descriptors_all_ports_pause_and_no_name_is_asked_for(clients: Clients) -> None:
    clients.plane.connector.failing = errno.EMFILE
    client = clients.accept()
    assert client.reset
    assert clients.record().reason is Reason.ERROR
    assert (clients.plane.admission.paused, clients.asked) == (True, 0)


def test_out_of_ports_for_one_remote_only_its_own_port_pauses(clients: Clients) -> None:
    clients.plane.connector.failing = errno.EADDRNOTAVAIL
    clients.accept()
    assert clients.record().reason is Reason.ERROR
    assert (clients.gate.open, clients.plane.admission.paused, clients.asked) == (False, False, 0)


def test_the_next_address_is_tried_after_a_delay_and_the_first_to_answer_wins() -> None:
    clients = Clients()
    clients.origin.upstreams.replace(ADDRESSES)
    client = clients.accept()
    [silent] = clients.tried
    clients.plane.loop.advance(ATTEMPT_DELAY_S / 2)
    assert len(clients.tried) == 1
    clients.plane.loop.advance(ATTEMPT_DELAY_S)
    assert set(clients.tried) == {FIRST, SECOND}
    [connection] = clients.plane.wheel
    assert isinstance(connection, Connection)
    assert (clients.origin.live.established, connection.address) == (0, None)
    clients.happens(clients.upstream, OUT)
    assert clients.plane.connector.attempts[0][1].reset
    assert clients.origin.live.established == 1
    assert connection.address != silent
    assert not client.closed


def test_without_extra_sockets_an_attempt_waits_until_another_race_has_ended() -> None:
    clients = Clients()
    clients.origin.upstreams.replace(ADDRESSES)
    clients.plane.connector.extra_attempts = 1
    for _ in range(2):
        clients.accept()
    # Two clients with a socket each, and the one extra socket.
    clients.plane.loop.advance(4 * ATTEMPT_DELAY_S)
    assert len(clients.tried) == 3
    assert clients.plane.connector.extra_attempts == 0
    # The first client's race ends.
    clients.happens(clients.plane.connector.attempts[2][1], OUT)
    assert clients.plane.connector.extra_attempts == 1
    clients.plane.loop.advance(2 * ATTEMPT_DELAY_S)
    assert len(clients.tried) == 4


def test_a_connect_timeout_below_the_attempt_delay_is_kept() -> None:
    clients = Clients(connect_timeout_s=0.05)
    client = clients.accept()
    [connection] = clients.plane.wheel
    # The clock of the accept is the machine's, that of the wheel the test's.
    assert connection.deadline_tick <= (clients.plane.loop.now + 0.05) / TICK_S + 1
    assert not client.closed


def test_a_client_that_waits_too_long_is_reset() -> None:
    clients = Clients(connect_timeout_s=1e-6)
    client = clients.accept()
    clients.plane.loop.advance(1.0)
    assert client.reset
    assert clients.upstream.closed
    record = clients.record()
    assert (record.reason, record.error) == (Reason.CONNECT_TIMEOUT, errno.ETIMEDOUT)
    assert record.address == FIRST


def test_a_client_whose_first_event_is_late_is_waited_for() -> None:
    """As when the event loop was held up between the two."""
    clients = Clients(connect_timeout_s=1e-6)
    client = clients.accept(events=0)
    clients.plane.loop.advance(10.0)
    assert not client.closed
    clients.happens(client, OUT)
    assert clients.tried == [FIRST]


def connected(clients: Clients) -> tuple[FakeSocket, FakeSocket, Connection]:
    client = clients.accept()
    clients.happens(clients.upstream, OUT)
    [connection] = clients.plane.wheel
    assert isinstance(connection, Connection)
    return client, clients.upstream, connection


@pytest.mark.parametrize("wanted", [True, False])
def test_the_source_port_is_asked_for_only_when_it_is_recorded(*, wanted: bool) -> None:
    clients = Clients(record_source_port=wanted)
    _, _, connection = connected(clients)
    connection.abort(Reason.DRAINED)
    record = clients.record()
    assert record.source == (("192.0.2.99", 40000) if wanted else None)
    assert record.address == FIRST
    assert record.connect_s is not None


def test_keepalive_is_set_at_the_first_tick_and_not_before(clients: Clients) -> None:
    _, upstream, _ = connected(clients)
    before = set(upstream.options)
    clients.plane.loop.advance(1.0)
    assert set(upstream.options) > before
    assert clients.plane.closed == []


def test_a_session_whose_keepalive_is_refused_goes_on(clients: Clients) -> None:
    """As a BPF program of the container's cgroup may do."""
    _, upstream, _ = connected(clients)
    upstream.failing["setsockopt"] = errno.EPERM
    clients.plane.loop.advance(1.0)
    assert clients.plane.defects == []
    assert clients.plane.closed == []


def test_a_silent_session_ends_at_its_idle_timeout() -> None:
    clients = Clients(idle_timeout_s=1e-6)
    client, upstream, _ = connected(clients)
    clients.plane.loop.advance(1.0)
    assert client.reset
    assert upstream.reset
    assert clients.record().reason is Reason.IDLE_TIMEOUT


def test_a_session_without_limits_is_looked_at_once_an_hour(clients: Clients) -> None:
    clients.origin.limits = replace(LIMITS, idle_timeout_s=0.0, half_close_timeout_s=0.0)
    connected(clients)
    clients.plane.loop.advance(2 * 3600.0)
    assert clients.plane.closed == []
    assert len(list(clients.plane.wheel)) == 1
    assert clients.plane.loop.armed == 1


@pytest.mark.parametrize("when", ["accepted", "connecting", "connected"])
def test_an_abort_ends_it_once_wherever_it_is(clients: Clients, when: str) -> None:
    client = clients.accept(events=0 if when == "accepted" else OUT)
    [connection] = clients.plane.wheel
    if when == "connected":
        clients.happens(clients.upstream, OUT)
    for _ in range(2):
        connection.abort(Reason.DRAINED)
    assert client.reset
    assert clients.record().reason is Reason.DRAINED


def test_the_record_is_there_when_the_ports_resume() -> None:
    """Resuming may fail, and must not cost the record."""
    clients = Clients(maximum=1)
    clients.accept(events=ERROR)
    assert clients.record().reason is Reason.CLIENT_GONE
    assert (clients.gate.open, clients.gate.closed) == (True, 1)
