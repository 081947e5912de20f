"""Detect duplicate addresses on the LAN and announce ours, over packet sockets (packet(7)).

The kernel's own neighbour code is not used: a probe has no source address, an announcement is no
answer to a request, and neither may depend on the routes that are just being changed.
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
# Three, because any of them may be lost (RFC 4861 section 10, MAX_NEIGHBOR_ADVERTISEMENT).
_ANNOUNCEMENTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The times of probes and announcements.

    RFC 5227 section 1.1 has one or two seconds between probes, and waits two more. The start of a
    pod can't wait for seven seconds, and a LAN answers within milliseconds. Announcements take
    about a second, because a switch port that has just come up may drop the first. A gateway may
    answer until `answer_timeout_s` after the last request.
    """

    probe_interval_s: float = 0.2
    announcement_interval_s: float = 0.35
    answer_timeout_s: float = 0.4


DEFAULT_PACE = Pace()

# In bytes: ARP and neighbour discovery packets are far shorter.
_MAX_FRAME = 2048
# More frames than a socket holds with the default net.core.rmem_default.
_MAX_QUEUED = 1000


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """Frames to send, and how long to receive.

    The frames that `frames` returns are sent `rounds` times, `interval_s` apart. The exchange ends
    `answer_timeout_s` after the last round, or after it as soon as `complete` returns true.
    """

    rounds: int
    interval_s: float
    answer_timeout_s: float
    frames: Callable[[], Iterable[Frame]]
    complete: Callable[[], bool] = _never


class LanSockets:
    """Sends and receives ARP and neighbour discovery frames on `interface`.

    `mac` is the address of the interface. `sockets` are non-blocking packet sockets, by the type of
    frames that each is bound to; they are closed with this object.
    """

    def __init__(self, interface: str, mac: bytes, sockets: Mapping[int, socket.socket]) -> None:
        self.mac = mac
        self._interface = interface
        self._sockets = sockets

    @classmethod
    def open(cls, interface: str, mac: bytes) -> Self:
        """Receive from now on. Raises OSError, for example without NET_RAW."""
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

    def exchange(self, exchange: Exchange) -> Iterator[Claim]:
        """Send the frames of `exchange`, and yield what other hosts claim meanwhile."""
        for number in range(exchange.rounds):
            if number > 0:
                yield from self._receive_for(exchange.interval_s, _never)
            for frame in exchange.frames():
                self._send(frame)
        yield from self._receive_for(exchange.answer_timeout_s, exchange.complete)

    def pending(self) -> Iterator[Claim]:
        """The claims that were received and not read yet."""
        for opened in self._sockets.values():
            # Bounded, because a neighbour may send faster than this reads.
            for _ in range(_MAX_QUEUED):
                try:
                    yield from self._receive(opened)
                except BlockingIOError:
                    break

    def _send(self, frame: Frame) -> None:
        destination = (self._interface, frame.ethertype, 0, 0, frame.destination)
        self._sockets[frame.ethertype].sendto(frame.payload, destination)

    def _receive_for(self, duration_s: float, complete: Callable[[], bool]) -> Iterator[Claim]:
        deadline = time.monotonic() + duration_s
        while not complete():
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return
            for ready in select.select(self._sockets.values(), (), (), left_s)[0]:
                yield from self._receive(ready)

    def _receive(self, opened: socket.socket) -> Iterator[Claim]:
        """The claim in the next frame, if it is another host's. BlockingIOError without a frame."""
        payload, (_, ethertype, _, _, sender) = opened.recvfrom(_MAX_FRAME)
        claim = parse(ethertype, sender, payload)
        if claim is not None and claim.mac != self.mac:
            yield claim


def other_owner(
    claims: Iterable[Claim], addresses: Iterable[Address]
) -> tuple[Address, str] | None:
    """One of `addresses` that another host has or probes for, and the host's Ethernet address.

    RFC 5227 section 2.1.1: if two hosts probe for one address at the same time, both have a
    conflict.
    """
    wanted = frozenset(addresses)
    for claim in claims:
        for claimed in (claim.has, claim.probes):
            if claimed is not None and claimed in wanted:
                return claimed, claim.mac.hex(":")
    return None


def detect(lan: LanSockets, addresses: Iterable[Address], pace: Pace) -> tuple[Address, str] | None:
    """Probe for the IPv4 addresses among `addresses` (RFC 5227); returns `other_owner` of all.

    Takes three intervals, less if there is another owner, and no time without an IPv4 address.
    """
    wanted = tuple(addresses)
    frames = [probe(lan.mac, address) for address in wanted if isinstance(address, IPv4Address)]
    if not frames:
        return other_owner(lan.pending(), wanted)
    exchange = Exchange(
        rounds=_PROBES,
        interval_s=pace.probe_interval_s,
        answer_timeout_s=pace.probe_interval_s,
        frames=lambda: frames,
    )
    return other_owner(lan.exchange(exchange), wanted)


def announce(lan: LanSockets, sources: Iterable[Source], pace: Pace) -> tuple[Source, ...]:
    """Announce each source three times; returns those whose gateway has not answered."""
    silent = {source.gateway: source for source in sources}
    every = tuple(silent.values())

    def frames() -> Iterator[Frame]:
        for source in every:
            yield from announcements(lan.mac, source.address)
        for source in silent.values():
            yield question(lan.mac, source.address, source.gateway)

    exchange = Exchange(
        rounds=_ANNOUNCEMENTS,
        interval_s=pace.announcement_interval_s,
        answer_timeout_s=pace.answer_timeout_s,
        frames=frames,
        complete=lambda: not silent,
    )
    for claim in lan.exchange(exchange):
        if claim.has is not None:
            silent.pop(claim.has, None)
    return tuple(silent.values())
