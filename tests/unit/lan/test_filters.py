"""The programs of the socket filters, run as the kernel would run them (linux/filter.h)."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

import pytest

from egress_proxy.lan.filters import advertisement_filter, arp_filter
from egress_proxy.lan.frames import announcements, probe, question

MAC = bytes.fromhex("020000000001")
RESERVED, GATEWAY, OTHER = (IPv4Address(f"203.0.113.{last}") for last in (99, 1, 7))
RESERVED6, GATEWAY6 = IPv6Address("2001:db8::99"), IPv6Address("fe80::1")
# It differs in the last word alone, which a filter that compares the first would take.
OTHER6 = IPv6Address("2001:db8::98")


def run(program: bytes, packet: bytes) -> int:
    """How many octets of `packet` the program lets through."""
    instructions = list(struct.iter_unpack("=HBBI", program))
    place, value = 0, 0
    while True:
        code, if_true, if_false, operand = instructions[place]
        place += 1
        if code == 0x06:
            return int(operand)
        if code == 0x15:
            place += if_true if value == operand else if_false
            continue
        size = {0x20: 4, 0x30: 1}[code]
        if operand + size > len(packet):
            # The kernel drops what a program reads beyond the end of.
            return 0
        value = int.from_bytes(packet[operand : operand + size], "big")


@pytest.mark.parametrize(
    ("packet", "passes"),
    [
        (announcements(MAC, RESERVED)[0].payload, True),
        (announcements(MAC, RESERVED)[1].payload, True),
        (question(MAC, GATEWAY, OTHER).payload, True),
        (announcements(MAC, OTHER)[0].payload, False),
        (question(MAC, OTHER, RESERVED).payload, False),
        (probe(MAC, RESERVED).payload, False),
        (b"short", False),
    ],
)
def test_arp_comes_through_by_its_sender(packet: bytes, passes: bool) -> None:
    assert bool(run(arp_filter([RESERVED, GATEWAY]), packet)) == passes


@pytest.mark.parametrize(
    ("packet", "passes"),
    [
        (announcements(MAC, RESERVED6)[0].payload, True),
        (announcements(MAC, GATEWAY6)[0].payload, True),
        (announcements(MAC, OTHER6)[0].payload, False),
        (probe(MAC, RESERVED6).payload, False),
        (question(MAC, OTHER6, RESERVED6).payload, False),
        # TCP, with the address where an advertisement would have it.
        (bytes(6) + b"\x06" + bytes(33) + b"\x88" + bytes(7) + RESERVED6.packed, False),
        (b"short", False),
    ],
)
def test_advertisements_come_through_by_their_target(packet: bytes, passes: bool) -> None:
    assert bool(run(advertisement_filter([RESERVED6, GATEWAY6]), packet)) == passes
