"""Ask the LAN who has an address, and tell it that we have it; over packet sockets (packet(7)).

Raw frames rather than the kernel's own neighbour code, because a probe has no source address, an
announcement answers nobody, and neither may depend on the routes that are just being changed.
"""

from __future__ import annotations

import select
import time
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Self

from egress_proxy.lan.frames import (
    ETH_P_ARP,
    ETH_P_IPV6,
    announcements,
    parse,
    probe,
    question,
)
from egress_proxy.lan.packet_sockets import open_packet_socket

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import TracebackType

    from egress_proxy.config.sources import Source
    from egress_proxy.ip import Address
    from egress_proxy.lan.frames import Claim, Frame

# RFC 5227 section 1.1, PROBE_NUM.
_PROBES = 3
# Three, because each may be lost (RFC 4861 section 10, MAX_NEIGHBOR_ADVERTISEMENT).
_ANNOUNCEMENTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long init asks and tells.

    RFC 5227 section 1.1 has one or two seconds between probes, and waits two more. A pod's start
    can't wait for seven, and a LAN answers within milliseconds. Announcements last for about a
    second, because a switch port that has just come up may drop the first. A gateway has
    `patience_s` after the last question.
    """

    probe_interval_s: float = 0.2
    announcement_interval_s: float = 0.35
    patience_s: float = 0.4


DEFAULT_PACE = Pace()

# A packet that says anything about addresses is far shorter.
_LONGEST = 2048
# More frames than a socket holds with the default net.core.rmem_default.
_QUEUED = 1000


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """What `frames` returns is sent `rounds` times, `interval_s` apart.

    It ends `patience_s` after the last round, or as soon as all is sent and it is `enough`.
    """

    rounds: int
    interval_s: float
    patience_s: float
    frames: Callable[[], Iterable[Frame]]
    enough: Callable[[], bool] = _never


class Wire:
    """The LAN that `interface` is on, as the sender and hearer of frames about addresses.

    `mac` is the interface's own; `sockets` are non-blocking packet sockets by the type of frames
    that each is bound to, and are closed with the wire.
    """

    def __init__(self, interface: str, mac: bytes, sockets: Mapping[int, socket.socket]) -> None:
        self.mac = mac
        self._interface = interface
        self._sockets = sockets

    @classmethod
    def open(cls, interface: str, mac: bytes) -> Self:
        """A wire that hears from now on. Raises OSError, as without NET_RAW."""
        with ExitStack() as stack:
            sockets = {
                ethertype: stack.enter_context(open_packet_socket(interface, ethertype))
                for ethertype in (ETH_P_ARP, ETH_P_IPV6)
            }
            stack.pop_all()
        return cls(interface, mac, sockets)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        for opened in self._sockets.values():
            opened.close()

    def exchange(self, talk: Exchange) -> Iterator[Claim]:
        """Say what is to be said, and yield what others say meanwhile."""
        for number in range(talk.rounds):
            if number > 0:
                yield from self._listen(talk.interval_s, _never)
            for frame in talk.frames():
                self._send(frame)
        yield from self._listen(talk.patience_s, talk.enough)

    def pending(self) -> Iterator[Claim]:
        """What was claim and not read yet."""
        for opened in self._sockets.values():
            # Bounded, for a neighbour may send faster than this is read.
            for _ in range(_QUEUED):
                try:
                    yield from self._hear(opened)
                except BlockingIOError:
                    break

    def _send(self, frame: Frame) -> None:
        destination = (self._interface, frame.ethertype, 0, 0, frame.destination)
        self._sockets[frame.ethertype].sendto(frame.payload, destination)

    def _listen(self, duration_s: float, enough: Callable[[], bool]) -> Iterator[Claim]:
        deadline = time.monotonic() + duration_s
        while not enough():
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return
            for ready in select.select(self._sockets.values(), (), (), left_s)[0]:
                yield from self._hear(ready)

    def _hear(self, opened: socket.socket) -> Iterator[Claim]:
        """The next frame, if others say something with it. Raises BlockingIOError without one."""
        payload, (_, ethertype, _, _, sender) = opened.recvfrom(_LONGEST)
        claim = parse(ethertype, sender, payload)
        if claim is not None and claim.mac != self.mac:
            yield claim


def other_owner(claim: Iterable[Claim], addresses: Iterable[Address]) -> tuple[Address, str] | None:
    """One of `addresses` that another host has or is about to take, and its Ethernet address.

    RFC 5227 section 2.1.1: two hosts that probe for one address at a time both have a conflict.
    """
    wanted = frozenset(addresses)
    for one in claim:
        for claimed in (one.has, one.probes):
            if claimed is not None and claimed in wanted:
                return claimed, one.mac.hex(":")
    return None


def detect(wire: Wire, addresses: Iterable[Address], pace: Pace) -> tuple[Address, str] | None:
    """Probe for the IPv4 ones of `addresses` (RFC 5227), and parse of any: see `other_owner`.

    Takes three intervals, or less when there is another owner, or none when there is no IPv4.
    """
    wanted = tuple(addresses)
    frames = [probe(wire.mac, address) for address in wanted if isinstance(address, IPv4Address)]
    if not frames:
        return other_owner(wire.pending(), wanted)
    talk = Exchange(
        rounds=_PROBES,
        interval_s=pace.probe_interval_s,
        patience_s=pace.probe_interval_s,
        frames=lambda: frames,
    )
    return other_owner(wire.exchange(talk), wanted)


def announce(wire: Wire, sources: Iterable[Source], pace: Pace) -> tuple[Source, ...]:
    """Announce each source three times, and return those whose gateway has not answered."""
    silent = {source.gateway: source for source in sources}
    every = tuple(silent.values())

    def frames() -> Iterator[Frame]:
        for source in every:
            yield from announcements(wire.mac, source.address)
        for source in silent.values():
            yield question(wire.mac, source.address, source.gateway)

    talk = Exchange(
        rounds=_ANNOUNCEMENTS,
        interval_s=pace.announcement_interval_s,
        patience_s=pace.patience_s,
        frames=frames,
        enough=lambda: not silent,
    )
    for claim in wire.exchange(talk):
        if claim.has is not None:
            silent.pop(claim.has, None)
    return tuple(silent.values())
