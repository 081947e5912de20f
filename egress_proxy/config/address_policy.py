"""The addresses that the proxy never connects to. Pure.

`AddressPolicy` decides for the addresses that the administrator wrote and for each address that a
name resolves to. Trust boundary: a zone may be written by a third party, so its answers must not
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
# Where no remote host can be. Linux takes 0.0.0.0 for the host itself (RFC 1122 section 3.2.1.3);
# clouds keep their metadata service on the link-local 169.254.169.254; the IPv4 forms are those of
# RFC 4291 section 2.5.5, which must not appear on a wire.
_NEVER_REMOTE = tuple(
    (ipaddress.ip_network(network), reason)
    for network, reason in (
        ("127.0.0.0/8", _LOOPBACK),
        ("::1/128", _LOOPBACK),
        ("169.254.0.0/16", "a link-local address"),
        ("fe80::/10", "a link-local address"),
        ("224.0.0.0/4", "a multicast address"),
        ("ff00::/8", "a multicast address"),
        ("0.0.0.0/8", "an unspecified address"),
        ("::/128", "an unspecified address"),
        ("255.255.255.255/32", "the broadcast address"),
        ("::ffff:0:0/96", "an IPv4 address in IPv6 form"),
        ("::/96", "an IPv4 address in IPv6 form"),
    )
)
# RFC 6052 section 2.1: a translator sends such a packet on to the IPv4 address in the last 32 bits.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# RFC 3056 section 2: 6to4 sends such a packet, wrapped, to the IPv4 address behind the 2002.
_6TO4 = ipaddress.IPv6Network("2002::/16")


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressPolicy:
    """What is never connected to, whoever says so.

    `networks` are the admin's. `own` are the pod's addresses, to which only the ports in
    `listening` are denied: a connection to one of the proxy's own listeners would come back to it.
    """

    loopback_allowed: bool = False
    networks: tuple[Network, ...] = ()
    own: frozenset[Address] = frozenset()
    listening: frozenset[int] = frozenset()

    def why_denied(self, address: Address, ports: Collection[int] = ()) -> str | None:
        """Why nothing connects to `address` on any of `ports`, or None."""
        for form in _forms(address):
            reason = next((reason for network, reason in _NEVER_REMOTE if form in network), None)
            if reason is not None and not (self.loopback_allowed and reason is _LOOPBACK):
                return reason
            for denied in self.networks:
                if form in denied:
                    return f"an address of the denied network {denied}"
            # All of 127.0.0.0/8 leads to whoever listens on every address.
            if (form in self.own or form.is_loopback) and not self.listening.isdisjoint(ports):
                return "one of the proxy's own listeners"
        return None


def _forms(address: Address) -> Iterator[Address]:
    """`address`, and the IPv4 address that a packet to it ends up at."""
    yield address
    if address in _NAT64:
        yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    elif address in _6TO4:
        yield ipaddress.IPv4Address(int(address) >> 80 & 0xFFFFFFFF)


DEFAULT_POLICY = AddressPolicy()
