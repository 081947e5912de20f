"""Builds and parses the frames of ARP and of IPv6 neighbour discovery. Pure.

Trust boundary: `parse` reads what anyone on the LAN may send. It accepts only frames that are
completely well-formed, and ignores all others.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from egress_proxy.ip import Address

# linux/if_ether.h
ETH_P_ARP = 0x0806
ETH_P_IPV6 = 0x86DD

_BROADCAST = b"\xff" * 6
_NO_MAC = bytes(6)
# RFC 826: Ethernet, IPv4, and the lengths of their addresses; then operation and the two pairs.
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_ARP_HEADER = (1, 0x0800, 6, 4)
_REQUEST, _REPLY = 1, 2

# RFC 8200 section 3: version, payload length, next header, hop limit, source, destination.
_IPV6 = struct.Struct("!IHBB16s16s")
# RFC 4861 sections 4.3 and 4.4: type, code, checksum, flags, target; then the options.
_ND = struct.Struct("!BBHI16s")
_ICMPV6 = 58
_SOLICITATION, _ADVERTISEMENT = 135, 136
# Section 4.4, and sections 7.1.1 and 7.1.2: a frame with another hop limit is not from this link.
_OVERRIDE = 0x20000000
_HOP_LIMIT = 255
# Section 4.6.1: an Ethernet address as source or target takes one unit of eight octets.
_SOURCE_MAC, _TARGET_MAC = b"\x01\x01", b"\x02\x01"
_ALL_NODES = IPv6Address("ff02::1")
_UNSPECIFIED = IPv6Address("::")


@dataclass(frozen=True, slots=True)
class Frame:
    """A payload of type `ethertype` for the Ethernet address `destination`."""

    ethertype: int
    destination: bytes
    payload: bytes


@dataclass(frozen=True, slots=True)
class Claim:
    """What a host with the Ethernet address `mac` says: the address that it has, or will take."""

    mac: bytes
    has: Address | None = None
    probes: Address | None = None


def probe(mac: bytes, address: Address) -> Frame:
    """Ask for `address` without claiming it: RFC 5227 section 2.1.1, RFC 4862 section 5.4.2."""
    if isinstance(address, IPv4Address):
        return _arp(_REQUEST, (mac, IPv4Address(0)), (_NO_MAC, address))
    return _nd(_SOLICITATION, 0, (_UNSPECIFIED, _solicited_node(address)), address, b"")


def announcements(mac: bytes, address: Address) -> tuple[Frame, ...]:
    """Frames that make every neighbour send packets for `address` to `mac`.

    ARP in both forms, because hosts differ in which one they learn from (RFC 5227 section 3), or an
    unsolicited advertisement (RFC 4861 section 7.2.6).
    """
    if isinstance(address, IPv4Address):
        return (
            _arp(_REQUEST, (mac, address), (_NO_MAC, address)),
            _arp(_REPLY, (mac, address), (_BROADCAST, address)),
        )
    option = _TARGET_MAC + mac
    return (_nd(_ADVERTISEMENT, _OVERRIDE, (address, _ALL_NODES), address, option),)


def question(mac: bytes, source: Address, target: Address) -> Frame:
    """Ask for the Ethernet address of `target` in the name of `source`, of the same family."""
    if isinstance(source, IPv4Address) and isinstance(target, IPv4Address):
        return _arp(_REQUEST, (mac, source), (_NO_MAC, target))
    if isinstance(source, IPv6Address) and isinstance(target, IPv6Address):
        ends = (source, _solicited_node(target))
        return _nd(_SOLICITATION, 0, ends, target, _SOURCE_MAC + mac)
    raise TypeError(f"{source} and {target} are of two families")


def parse(ethertype: int, sender: bytes, payload: bytes) -> Claim | None:
    """What a frame from the Ethernet address `sender` says about addresses, if anything."""
    if ethertype == ETH_P_ARP:
        return _hear_arp(payload)
    if ethertype == ETH_P_IPV6:
        return _hear_nd(sender, payload)
    return None


def _hear_arp(payload: bytes) -> Claim | None:
    if len(payload) < _ARP.size:
        return None
    *header, operation, mac, sender, _, target = _ARP.unpack_from(payload)
    if tuple(header) != _ARP_HEADER or operation not in (_REQUEST, _REPLY):
        return None
    has = IPv4Address(sender)
    if has == IPv4Address(0):
        return Claim(mac, probes=IPv4Address(target)) if operation == _REQUEST else None
    return Claim(mac, has=has)


def _hear_nd(sender: bytes, packet: bytes) -> Claim | None:
    if len(packet) < _IPV6.size + _ND.size:
        return None
    _, length, following, hop_limit, source, destination = _IPV6.unpack_from(packet)
    message = packet[_IPV6.size : _IPV6.size + length]
    if (following, hop_limit) != (_ICMPV6, _HOP_LIMIT) or not _ND.size <= len(message) == length:
        return None
    if _checksum(source, destination, message) != 0:
        return None
    kind, code, _, _, target = _ND.unpack_from(message)
    if (kind, code) == (_ADVERTISEMENT, 0):
        return Claim(sender, has=IPv6Address(target))
    # RFC 4862 section 5.4.3: only duplicate-address detection asks from no address.
    if (kind, code) == (_SOLICITATION, 0) and IPv6Address(source) == _UNSPECIFIED:
        return Claim(sender, probes=IPv6Address(target))
    return None


def _solicited_node(address: IPv6Address) -> IPv6Address:
    """RFC 4291 section 2.7.1: the multicast group that the owner of `address` is in."""
    return IPv6Address(b"\xff\x02" + bytes(9) + b"\x01\xff" + address.packed[-3:])


def _arp(
    operation: int, sender: tuple[bytes, IPv4Address], target: tuple[bytes, IPv4Address]
) -> Frame:
    fields = (sender[0], sender[1].packed, target[0], target[1].packed)
    return Frame(ETH_P_ARP, _BROADCAST, _ARP.pack(*_ARP_HEADER, operation, *fields))


def _nd(
    kind: int, flags: int, ends: tuple[IPv6Address, IPv6Address], target: IPv6Address, option: bytes
) -> Frame:
    source, destination = ends[0].packed, ends[1].packed
    blank = _ND.pack(kind, 0, 0, flags, target.packed) + option
    checksum = _checksum(source, destination, blank)
    message = _ND.pack(kind, 0, checksum, flags, target.packed) + option
    header = _IPV6.pack(6 << 28, len(message), _ICMPV6, _HOP_LIMIT, source, destination)
    # RFC 2464 section 7: the Ethernet address of a multicast group.
    return Frame(ETH_P_IPV6, b"\x33\x33" + destination[-4:], header + message)


def _checksum(source: bytes, destination: bytes, message: bytes) -> int:
    """RFC 8200 section 8.1; over a message that has its checksum, the result is 0."""
    pseudo = source + destination + struct.pack("!II", len(message), _ICMPV6)
    octets = pseudo + message + b"\0" * (len(message) % 2)
    total: int = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
