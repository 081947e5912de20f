"""Frames as RFC 826, RFC 4861 and RFC 5227 draw them, octet by octet."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_proxy.lan.frames import (
    ETH_P_ARP,
    ETH_P_IPV6,
    Claim,
    Frame,
    announcements,
    parse,
    probe,
    question,
)

MAC = bytes.fromhex("020000000099")
OTHER = bytes.fromhex("020000000001")
V4 = IPv4Address("192.0.2.99")
GATEWAY = IPv4Address("192.0.2.1")
V6 = IPv6Address("2001:db8::99")
GATEWAY6 = IPv6Address("2001:db8::12:3456")
BROADCAST = bytes.fromhex("ffffffffffff")


def arp(operation: str, sender: str, target: str) -> bytes:
    return bytes.fromhex("0001 0800 06 04" + operation + sender + target)


def test_a_probe_asks_without_a_claim() -> None:
    assert probe(MAC, V4) == Frame(
        ETH_P_ARP, BROADCAST, arp("0001", "020000000099 00000000", "000000000000 c0000263")
    )


def test_announcements_are_a_request_and_a_reply() -> None:
    assert announcements(MAC, V4) == (
        Frame(ETH_P_ARP, BROADCAST, arp("0001", "020000000099 c0000263", "000000000000 c0000263")),
        Frame(ETH_P_ARP, BROADCAST, arp("0002", "020000000099 c0000263", "ffffffffffff c0000263")),
    )


def test_an_unsolicited_advertisement() -> None:
    [frame] = announcements(MAC, V6)
    assert (frame.ethertype, frame.destination) == (ETH_P_IPV6, bytes.fromhex("333300000001"))
    assert frame.payload[:40] == bytes.fromhex(
        "60000000 0020 3a ff 20010db8000000000000000000000099 ff020000000000000000000000000001"
    )
    # tcpdump calls this checksum right.
    assert frame.payload[40:] == bytes.fromhex(
        "88 00 f762 20000000 20010db8000000000000000000000099 0201020000000099"
    )


def test_a_question_for_an_ipv4_gateway() -> None:
    assert question(MAC, V4, GATEWAY) == Frame(
        ETH_P_ARP, BROADCAST, arp("0001", "020000000099 c0000263", "000000000000 c0000201")
    )


def test_a_question_for_an_ipv6_gateway_goes_to_its_group() -> None:
    frame = question(MAC, V6, GATEWAY6)
    assert frame.destination == bytes.fromhex("3333ff123456")
    assert frame.payload[24:40] == IPv6Address("ff02::1:ff12:3456").packed
    assert frame.payload[40] == 135
    assert frame.payload[48:] == GATEWAY6.packed + bytes.fromhex("0101020000000099")


def test_a_question_across_families() -> None:
    with pytest.raises(TypeError, match="are of two families"):
        question(MAC, V4, GATEWAY6)


@pytest.mark.parametrize(
    ("frame", "claim"),
    [
        (probe(MAC, V4), Claim(MAC, probes=V4)),
        (announcements(MAC, V4)[0], Claim(MAC, has=V4)),
        (announcements(MAC, V4)[1], Claim(MAC, has=V4)),
        (question(MAC, V4, GATEWAY), Claim(MAC, has=V4)),
        (announcements(MAC, V6)[0], Claim(MAC, has=V6)),
        # One that looks for a neighbour says nothing that we ask for.
        (question(MAC, V6, GATEWAY6), None),
        # From no address: duplicate-address detection.
        (question(MAC, IPv6Address("::"), V6), Claim(MAC, probes=V6)),
    ],
)
def test_what_is_sent_is_heard(frame: Frame, claim: Claim | None) -> None:
    assert parse(frame.ethertype, MAC, frame.payload) == claim
    # Ethernet fills a short frame up.
    assert parse(frame.ethertype, MAC, frame.payload + bytes(18)) == claim


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        arp("0001", "020000000001 c0000263", "000000000000 c00002"),
        arp("0003", "020000000001 c0000263", "000000000000 c0000263"),
        # A reply from no address.
        arp("0002", "020000000001 00000000", "000000000000 c0000263"),
        # Not Ethernet, not IPv4.
        bytes.fromhex("0006") + arp("0001", "020000000001 c0000263", "000000000000 c0000263")[2:],
        bytes.fromhex("000186dd")
        + arp("0001", "020000000001 c0000263", "000000000000 c0000263")[4:],
    ],
)
def test_arp_that_claims_nothing(payload: bytes) -> None:
    assert parse(ETH_P_ARP, OTHER, payload) is None


@pytest.mark.parametrize(
    ("position", "octet"),
    [
        (6, 17),  # UDP
        (7, 254),  # has passed a router
        (5, 33),  # longer than it is
        (41, 1),  # another code
        (42, 0),  # a wrong checksum
        (63, 0),  # the same, by what it covers
    ],
)
def test_an_advertisement_that_is_not_well_formed(position: int, octet: int) -> None:
    payload = bytearray(announcements(MAC, V6)[0].payload)
    payload[position] = octet
    assert parse(ETH_P_IPV6, MAC, bytes(payload)) is None


def test_another_protocol_claims_nothing() -> None:
    assert parse(0x0800, MAC, probe(MAC, V4).payload) is None


@given(st.sampled_from((ETH_P_ARP, ETH_P_IPV6)), st.binary(max_size=100))
def test_parsing_any_frame_is_safe(ethertype: int, payload: bytes) -> None:
    claim = parse(ethertype, OTHER, payload)
    assert claim is None or (claim.has is None) != (claim.probes is None)


@given(st.binary(max_size=60), st.integers(0, 71))
def test_parsing_a_damaged_advertisement_is_safe(noise: bytes, position: int) -> None:
    payload = announcements(MAC, V6)[0].payload
    damaged = payload[:position] + noise + payload[position + len(noise) :]
    claim = parse(ETH_P_IPV6, OTHER, damaged)
    assert claim is None or claim.mac == OTHER
