"""How long init asks and listens, whatever the neighbours do."""

from __future__ import annotations

import os
from contextlib import contextmanager
from ipaddress import IPv4Address, ip_address
from typing import TYPE_CHECKING, Any, cast

import pytest

from egress_proxy.config.sources import Source
from egress_proxy.init.announce import DEFAULT_PACE, LanSockets, Pace, announce, detect, other_owner
from egress_proxy.lan.frames import ETH_P_ARP, Claim, announcements, probe

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

OWN = bytes.fromhex("020000000099")
OTHER = bytes.fromhex("020000000001")
ADDRESS = IPv4Address("203.0.113.99")
GATEWAY = IPv4Address("203.0.113.1")
SOURCE = Source(ADDRESS, 25, GATEWAY)
HASTE = Pace(probe_interval_s=0.01, announcement_interval_s=0.01, answer_timeout_s=0.01)


class Lan:
    """A packet socket on a LAN where one host says one thing without end, and never stops."""

    def __init__(self, readable: int, payload: bytes) -> None:
        self.sent: list[bytes] = []
        self._readable = readable
        self._payload = payload

    def fileno(self) -> int:
        return self._readable

    def recvfrom(self, _size: int) -> tuple[bytes, tuple[Any, ...]]:
        return self._payload, ("macvlan0", ETH_P_ARP, 0, 1, OTHER)

    def sendto(self, payload: bytes, _address: object) -> None:
        self.sent.append(payload)


@contextmanager
def lan(payload: bytes) -> Iterator[tuple[Lan, LanSockets]]:
    reader, writer = os.pipe()
    try:
        # Never read, so that the socket is ready for ever.
        os.write(writer, b"!")
        talking = Lan(reader, payload)
        yield talking, LanSockets("macvlan0", OWN, {ETH_P_ARP: cast("socket.socket", talking)})
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.timeout(10)
def test_a_neighbour_that_floods_the_lan_delays_nothing() -> None:
    with lan(probe(OTHER, IPv4Address("203.0.113.98")).payload) as (talking, sockets):
        assert detect(sockets, [ADDRESS], HASTE) is None
        assert talking.sent == [probe(OWN, ADDRESS).payload] * 3
        assert announce(sockets, [SOURCE], HASTE) == (SOURCE,)
        assert other_owner(sockets.pending(), [ADDRESS]) is None


@pytest.mark.timeout(10)
def test_a_gateway_that_has_answered_is_not_asked_again() -> None:
    with lan(announcements(OTHER, GATEWAY)[0].payload) as (talking, sockets):
        assert announce(sockets, [SOURCE], HASTE) == ()
    told = [frame.payload for frame in announcements(OWN, ADDRESS)]
    assert [payload for payload in talking.sent if payload not in told] == [talking.sent[2]]
    assert len(talking.sent) == 7


def test_own_frames_are_no_conflict() -> None:
    """A bridge may send our own frames back."""
    with lan(announcements(OWN, ADDRESS)[0].payload) as (_, sockets):
        assert detect(sockets, [ADDRESS], HASTE) is None


@pytest.mark.parametrize(
    ("claim", "owner"),
    [
        ([], None),
        ([Claim(OTHER, has=GATEWAY)], None),
        ([Claim(OTHER, has=GATEWAY), Claim(OTHER, has=ADDRESS)], "02:00:00:00:00:01"),
        ([Claim(OTHER, probes=ADDRESS)], "02:00:00:00:00:01"),
    ],
)
def test_other_owners(claim: list[Claim], owner: str | None) -> None:
    found = other_owner(claim, [ADDRESS, ip_address("2001:db8::99")])
    assert found == (None if owner is None else (ADDRESS, owner))


def test_a_pods_start_waits_little_for_neighbours() -> None:
    """Three probes and three announcements, and a gateway that never answers."""
    pace = DEFAULT_PACE
    probing_s = 3 * pace.probe_interval_s
    assert probing_s == pytest.approx(0.6)
    assert probing_s + 2 * pace.announcement_interval_s + pace.answer_timeout_s <= 2.0
