"""Sessions to withdrawn addresses, on a clock that the test turns on."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from egress_proxy.events import Reason
from egress_proxy.forwarding.stale_sessions import StaleSessions
from tests.support.manual_loop import ManualLoop

NAME = "web.example.com"
A, B = "192.0.2.1", "2001:db8::2"
TIMEOUT_S = 60.0


class Session:
    def __init__(self, address: str | None, host: str = NAME) -> None:
        self.host = host
        self.address = None if address is None else (address, 443)
        self.ended: list[Reason] = []

    def abort(self, reason: Reason) -> None:
        self.ended.append(reason)


class Plant:
    """The sessions of a proxy, and what watches over those of one name."""

    def __init__(self, *sessions: Session) -> None:
        self.loop = ManualLoop(1000.0)
        self.sessions = list(sessions)
        self.withdrawals = StaleSessions(NAME, self.live, TIMEOUT_S, self.loop)

    def live(self) -> list[Session]:
        return [session for session in self.sessions if not session.ended]

    def use(self, *addresses: str) -> None:
        self.withdrawals.set_addresses(tuple(map(ip_address, addresses)))


@pytest.fixture
def sessions() -> tuple[Session, Session]:
    return Session(A), Session(B)


def test_a_session_ends_in_its_time_after_its_address_is_gone(
    sessions: tuple[Session, Session],
) -> None:
    gone, stays = sessions
    plant = Plant(gone, stays)
    plant.use(A, B)
    plant.loop.advance(3600)
    plant.use(B)
    plant.loop.advance(TIMEOUT_S - 1)
    assert gone.ended == []
    plant.loop.advance(1)
    assert gone.ended == [Reason.WITHDRAWN]
    plant.loop.advance(3600)
    assert stays.ended == []
    assert plant.loop.armed == 0


def test_an_address_that_comes_back_was_never_away(sessions: tuple[Session, Session]) -> None:
    session, _ = sessions
    plant = Plant(session)
    for addresses in ((A,), (B,)):
        plant.use(*addresses)
        plant.loop.advance(TIMEOUT_S - 1)
    plant.use(A, B)
    plant.loop.advance(TIMEOUT_S - 1)
    plant.use(B)
    plant.loop.advance(TIMEOUT_S - 1)
    assert session.ended == []
    plant.loop.advance(1)
    assert session.ended == [Reason.WITHDRAWN]


def test_more_changes_do_not_put_the_end_off(sessions: tuple[Session, Session]) -> None:
    session, _ = sessions
    plant = Plant(session)
    plant.use(A)
    for number in range(12):
        plant.use(f"192.0.2.{100 + number}")
        plant.loop.advance(5)
    assert session.ended == [Reason.WITHDRAWN]


def test_a_session_that_was_still_connecting_ends_too() -> None:
    late = Session(None)
    plant = Plant(late)
    plant.use(A)
    plant.use(B)
    plant.loop.advance(1)
    late.address = (A, 443)
    plant.loop.advance(TIMEOUT_S)
    assert late.ended == [Reason.WITHDRAWN]


def test_sessions_of_other_destinations_are_left_alone() -> None:
    others = [Session(A, "other.example.com"), Session(None)]
    plant = Plant(*others)
    plant.use(A)
    plant.use(B)
    plant.loop.advance(3600)
    assert [session.ended for session in others] == [[], []]


def test_what_is_remembered_is_what_is_still_connected(sessions: tuple[Session, Session]) -> None:
    session, _ = sessions
    plant = Plant(session)
    for number in range(1000):
        plant.use(str(ip_address(0xC6336400 + number)))
        assert len(plant.withdrawals._since) <= 1
        assert plant.loop.armed == 1


def test_nothing_is_left_after_stop(sessions: tuple[Session, Session]) -> None:
    plant = Plant(*sessions)
    plant.use(A)
    plant.use(B)
    plant.withdrawals.stop()
    plant.withdrawals.stop()
    assert plant.loop.armed == 0
