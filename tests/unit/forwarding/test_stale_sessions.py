"""Sessions to withdrawn addresses, on a clock that the test turns on."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from egress_proxy.events import Reason
from egress_proxy.forwarding.stale_sessions import GracePeriods, StaleSessions
from tests.support.manual_loop import ManualLoop

NAME = "web.example.com"
A, B = "192.0.2.1", "2001:db8::2"
TIMEOUT_S = 60.0
CONNECT_S = 10.0


class Session:
    def __init__(self, address: str | None, host: str = NAME, origin: object = None) -> None:
        self.host = host
        self.origin = origin
        self.address = None if address is None else (address, 443)
        self.ended: list[Reason] = []

    def abort(self, reason: Reason) -> None:
        self.ended.append(reason)


class Proxy:
    """The sessions of a proxy, and what ends the stale ones."""

    def __init__(
        self, *sessions: Session, withdrawn_s: float = TIMEOUT_S, removed_s: float = TIMEOUT_S
    ) -> None:
        self.loop = ManualLoop(1000.0)
        self.sessions = list(sessions)
        periods = GracePeriods(withdrawn_s=withdrawn_s, removed_s=removed_s, connect_s=CONNECT_S)
        self.stale = StaleSessions(lambda use: use(self.live()), periods, self.loop)

    def live(self) -> list[Session]:
        return [session for session in self.sessions if not session.ended]

    def use(self, *addresses: str) -> None:
        self.stale.set_addresses(NAME, tuple(map(ip_address, addresses)))


@pytest.fixture
def sessions() -> tuple[Session, Session]:
    return Session(A), Session(B)


def test_a_session_ends_in_its_time_after_its_address_is_gone(
    sessions: tuple[Session, Session],
) -> None:
    gone, stays = sessions
    proxy = Proxy(gone, stays)
    proxy.use(A, B)
    proxy.loop.advance(3600)
    proxy.use(B)
    proxy.loop.advance(TIMEOUT_S - 1)
    assert gone.ended == []
    proxy.loop.advance(1)
    assert gone.ended == [Reason.WITHDRAWN]
    proxy.loop.advance(3600)
    assert stays.ended == []
    assert proxy.loop.armed == 0


def test_sessions_of_an_address_that_comes_back_are_not_stale(
    sessions: tuple[Session, Session],
) -> None:
    session, _ = sessions
    proxy = Proxy(session)
    for addresses in ((A,), (B,)):
        proxy.use(*addresses)
        proxy.loop.advance(TIMEOUT_S - 1)
    proxy.use(A, B)
    proxy.loop.advance(TIMEOUT_S - 1)
    proxy.use(B)
    proxy.loop.advance(TIMEOUT_S - 1)
    assert session.ended == []
    proxy.loop.advance(1)
    assert session.ended == [Reason.WITHDRAWN]


def test_more_changes_do_not_put_the_end_off(sessions: tuple[Session, Session]) -> None:
    session, _ = sessions
    proxy = Proxy(session)
    proxy.use(A)
    for number in range(12):
        proxy.use(f"192.0.2.{100 + number}")
        proxy.loop.advance(5)
    assert session.ended == [Reason.WITHDRAWN]


def test_a_session_that_was_still_connecting_ends_too() -> None:
    late = Session(None)
    proxy = Proxy(late)
    proxy.use(A)
    proxy.use(B)
    proxy.loop.advance(1)
    late.address = (A, 443)
    proxy.loop.advance(TIMEOUT_S)
    assert late.ended == [Reason.WITHDRAWN]


def test_sessions_of_other_destinations_are_left_alone() -> None:
    others = [Session(A, "other.example.com"), Session(None)]
    proxy = Proxy(*others)
    proxy.use(A)
    proxy.use(B)
    proxy.loop.advance(3600)
    assert [session.ended for session in others] == [[], []]


def test_what_is_remembered_is_what_is_still_connected(sessions: tuple[Session, Session]) -> None:
    session, _ = sessions
    proxy = Proxy(session)
    for number in range(1000):
        proxy.use(str(ip_address(0xC6336400 + number)))
        assert len(proxy.stale._withdrawn) <= 1
        assert proxy.loop.armed == 1


def test_nothing_is_left_after_stop(sessions: tuple[Session, Session]) -> None:
    proxy = Proxy(*sessions)
    proxy.use(A)
    proxy.use(B)
    proxy.stale.stop()
    proxy.stale.stop()
    assert proxy.loop.armed == 0


def test_a_session_that_connects_after_a_grace_period_shorter_than_that_ends_too() -> None:
    late = Session(None)
    proxy = Proxy(late, withdrawn_s=1.0)
    proxy.use(A)
    proxy.use(B)
    proxy.loop.advance(4)
    late.address = (A, 443)
    proxy.loop.advance(CONNECT_S)
    assert late.ended == [Reason.WITHDRAWN]


def test_sessions_of_a_removed_destination_end_in_their_time_and_no_others() -> None:
    removed, changed = object(), object()
    gone, connecting, stays = Session(A, origin=removed), Session(None, origin=removed), Session(A)
    replaced = Session(A, origin=changed)
    proxy = Proxy(gone, connecting, stays, replaced)
    proxy.stale.remove(removed)
    proxy.loop.advance(10)
    proxy.stale.remove(changed)
    proxy.loop.advance(TIMEOUT_S - 11)
    assert gone.ended == connecting.ended == []
    proxy.loop.advance(1)
    assert gone.ended == connecting.ended == [Reason.DRAINED]
    assert replaced.ended == []
    proxy.loop.advance(10)
    assert replaced.ended == [Reason.DRAINED]
    assert stays.ended == []
    assert proxy.loop.armed == 0


def test_a_removed_destination_keeps_its_sessions_without_a_grace_period() -> None:
    origin = object()
    session = Session(A, origin=origin)
    proxy = Proxy(session, removed_s=0, withdrawn_s=0)
    proxy.use(B)
    proxy.stale.remove(origin)
    proxy.loop.advance(3600)
    assert session.ended == []
    assert proxy.loop.armed == 0


def test_a_name_that_is_no_destination_any_more_is_forgotten() -> None:
    session = Session(A)
    proxy = Proxy(session)
    proxy.use(B)
    proxy.stale.forget_name(NAME)
    proxy.loop.advance(3600)
    assert session.ended == []
    assert proxy.loop.armed == 0
