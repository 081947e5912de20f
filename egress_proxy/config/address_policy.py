"""The addresses that the proxy never connects to. Pure.

`AddressPolicy` decides for the addresses that the administrator wrote and for each address that a
name resolves to. Trust boundary: a third party may control a DNS zone, so its answers must not
open a way to the pod, its node or its cloud.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from egress_proxy.ip import Address, Network

_LOOPBACK = "a loopback address"
_LINK_LOCAL = "a link-local address"
_MULTICAST = "a multicast address"
_METADATA = "a cloud's metadata address"
_IPV4_IN_IPV6 = "an IPv4 address in IPv6 form"
_DENIED_NETWORK = "an address of the denied network"

# No remote host has one of these. Linux takes 0.0.0.0 for the host itself (RFC 1122 section
# 3.2.1.3), and sends nothing to 240.0.0.0/4 on the Internet (RFC 1112 section 4). The IPv4 forms
# are those of RFC 4291 section 2.5.5, which must not appear on the wire.
# Metadata: AWS, GCP, Azure, Alibaba and Oracle, beside the link-local 169.254.169.254 of most.
_NEVER_REMOTE = tuple(
    (ipaddress.ip_network(network), reason)
    for network, reason in (
        ("127.0.0.0/8", _LOOPBACK),
        ("::1/128", _LOOPBACK),
        ("169.254.0.0/16", _LINK_LOCAL),
        ("fe80::/10", _LINK_LOCAL),
        ("224.0.0.0/4", _MULTICAST),
        ("ff00::/8", _MULTICAST),
        ("0.0.0.0/8", "an unspecified address"),
        ("::/128", "an unspecified address"),
        ("255.255.255.255/32", "the broadcast address"),
        ("240.0.0.0/4", "a reserved address"),
        ("fd00:ec2::254/128", _METADATA),
        ("fd20:ce::254/128", _METADATA),
        ("168.63.129.16/32", _METADATA),
        ("100.100.100.200/32", _METADATA),
        ("192.0.0.192/32", _METADATA),
        ("::ffff:0:0/96", _IPV4_IN_IPV6),
        ("::/96", _IPV4_IN_IPV6),
        # RFC 8215: a translator's own prefix, with an IPv4 address at a place that it chooses.
        ("64:ff9b:1::/48", "an address of a local translator (RFC 8215)"),
    )
)
# Where an IPv4 address stands in an IPv6 one, as the bits to its right: a packet to the IPv6
# address may end up at the IPv4 one.
_EMBEDDED = tuple(
    (ipaddress.IPv6Network(network), shift)
    for network, shift in (
        ("64:ff9b::/96", 0),  # NAT64, RFC 6052 section 2.1
        ("::ffff:0:0:0/96", 0),  # IPv4-translated, RFC 2765 section 2.1
        ("2002::/16", 80),  # 6to4, RFC 3056 section 2
        ("2001::/32", 64),  # the server of Teredo, RFC 4380 section 4
    )
)
_TEREDO = ipaddress.IPv6Network("2001::/32")
# ISATAP, RFC 5214 section 6.1: the interface identifier is 0000:5efe or 0200:5efe and the IPv4
# address.
_ISATAP = frozenset({0x00005EFE, 0x02005EFE})
_IPV4_BITS = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressPolicy:
    """What is never connected to, whatever a destination or a name says.

    `networks` are those of the administrator. `own` are the pod's addresses; only the ports in
    `listening` are denied on them, because a connection to one of the proxy's own listeners would
    come back to it. `reserved` are the network and broadcast addresses of the pod's own networks.
    """

    loopback_allowed: bool = False
    networks: tuple[Network, ...] = ()
    own: frozenset[Address] = frozenset()
    reserved: frozenset[Address] = frozenset()
    listening: frozenset[int] = frozenset()

    def why_denied(self, address: Address, ports: Collection[int] = ()) -> str | None:
        """Why nothing connects to `address` on any of `ports`, or None."""
        for form in _forms(address):
            reason = next((reason for network, reason in _NEVER_REMOTE if form in network), None)
            if reason is not None and not (self.loopback_allowed and reason is _LOOPBACK):
                return reason
            for denied in self.networks:
                if form in denied:
                    return f"{_DENIED_NETWORK} {denied}"
            if form in self.reserved:
                return "the network or broadcast address of one of the pod's networks"
            # All of 127.0.0.0/8 leads to a process that listens on every address.
            if (form in self.own or form.is_loopback) and not self.listening.isdisjoint(ports):
                return "one of the proxy's own listeners"
        return None


def cure_for(reason: str) -> str:
    """What the administrator does about a destination that is denied for `reason`."""
    cure = "write the remote host's own address"
    if reason.startswith(_DENIED_NETWORK):
        return f"{cure}, or remove the network from EGRESS_DNS_PROXY_DENY"
    return cure


def _forms(address: Address) -> Iterator[Address]:
    """`address`, and the IPv4 addresses that a packet to it may end up at."""
    yield address
    if isinstance(address, ipaddress.IPv4Address):
        return
    bits = int(address)
    for network, shift in _EMBEDDED:
        if address in network:
            yield ipaddress.IPv4Address(bits >> shift & _IPV4_BITS)
    if address in _TEREDO:
        # The client, with all bits inverted.
        yield ipaddress.IPv4Address(~bits & _IPV4_BITS)
    if bits >> 32 & _IPV4_BITS in _ISATAP:
        yield ipaddress.IPv4Address(bits & _IPV4_BITS)


DEFAULT_POLICY = AddressPolicy()
