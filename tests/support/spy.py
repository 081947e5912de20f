"""Asks the LAN for an address every 20 ms, and knows who answered which question.

Each question comes from another address, so that an answer tells which question it is for, however
late it comes. An owner in the sense of the tests is whoever answers: the kernel, not a program.
"""

from __future__ import annotations

import itertools
import select
import socket
import threading
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from time import monotonic
from typing import TYPE_CHECKING, Self

from egress_proxy.lan.frames import ETH_P_ARP, ETH_P_IPV6, question

if TYPE_CHECKING:
    from types import TracebackType

    from egress_proxy.ip import Address
    from tests.support.network import Namespace

INTERVAL_S = 0.02
# Where the addresses in ARP and ND frames are, without the Ethernet header.
_ARP_OPERATION, _ARP_MAC, _ARP_TARGET = slice(6, 8), slice(8, 14), slice(24, 28)
_REPLY = b"\0\2"
_IPV6_DESTINATION, _ND_TYPE, _ND_TARGET = slice(24, 40), 40, slice(48, 64)
_ADVERTISEMENT = 136


@dataclass(slots=True)
class Question:
    """One question, when it was asked (time.monotonic), and the Ethernet addresses of answers."""

    asked_at: float
    answers: set[str] = field(default_factory=set)


class Spy:
    """Asks for `address` from `interface` of `namespace` while it is entered.

    `sources` are addresses of nobody, from which it asks in turn: enough of them for the slowest
    answer.
    """

    def __init__(
        self, namespace: Namespace, interface: str, address: Address, sources: list[Address]
    ) -> None:
        self.questions: list[Question] = []
        self._address = address
        self._sources = sources
        self._by_source: dict[bytes, Question] = {}
        self._ethertype = ETH_P_ARP if isinstance(address, IPv4Address) else ETH_P_IPV6
        self._interface = interface
        self._sock = namespace.open_socket(socket.AF_PACKET, socket.SOCK_DGRAM)
        self._sock.bind((interface, self._ethertype))
        self._mac: bytes = self._sock.getsockname()[4]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spy")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._sock.close()

    @property
    def doubles(self) -> list[Question]:
        """Questions that two hosts answered."""
        return [question for question in self.questions if len(question.answers) > 1]

    def owner(self) -> str | None:
        """The Ethernet address that answered the last question whose time is up."""
        # The last few may still be answered.
        for asked in reversed(self.questions[:-3]):
            return next(iter(asked.answers), None)
        return None

    def gap_s(self, after: float) -> float:
        """The longest time without an answer since `after`, the last one before it included."""
        answered = [asked.asked_at for asked in self.questions[:-3] if asked.answers]
        later = [when for when in answered if when >= after]
        before = [when for when in answered if when < after][-1:]
        times = before + later
        return max((b - a for a, b in itertools.pairwise(times)), default=0.0)

    def first_answer_by(self, mac: str, after: float) -> float | None:
        """When `mac` first answered since `after`."""
        return next(
            (
                asked.asked_at
                for asked in self.questions
                if asked.asked_at >= after and mac in asked.answers
            ),
            None,
        )

    def _run(self) -> None:
        next_at = monotonic()
        number = 0
        while not self._ended.is_set():
            now = monotonic()
            if now >= next_at:
                next_at = max(next_at + INTERVAL_S, now)
                self._ask(self._sources[number % len(self._sources)])
                number += 1
            elif select.select([self._sock], [], [], next_at - now)[0]:
                self._hear()

    def _ask(self, source: Address) -> None:
        asked = Question(monotonic())
        self._by_source[source.packed] = asked
        self.questions.append(asked)
        frame = question(self._mac, source, self._address)
        self._sock.sendto(
            frame.payload, (self._interface, frame.ethertype, 0, 0, frame.destination)
        )

    def _hear(self) -> None:
        payload, (_, _, _, _, sender) = self._sock.recvfrom(2048)
        if self._ethertype == ETH_P_ARP:
            if payload[_ARP_OPERATION] != _REPLY or payload[14:18] != self._address.packed:
                return
            target, mac = payload[_ARP_TARGET], payload[_ARP_MAC]
        else:
            if payload[_ND_TYPE : _ND_TYPE + 1] != bytes([_ADVERTISEMENT]):
                return
            if payload[_ND_TARGET] != self._address.packed:
                return
            target, mac = payload[_IPV6_DESTINATION], sender
        asked = self._by_source.get(target)
        if asked is not None:
            asked.answers.add(mac.hex(":"))


def addresses_of_nobody(first: Address, count: int = 40) -> list[Address]:
    """So many from `first` on."""
    kind = IPv4Address if first.version == 4 else IPv6Address
    return [kind(int(first) + number) for number in range(count)]
