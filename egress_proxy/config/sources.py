"""The reserved addresses and their gateways: `EGRESS_SOURCE` and `EGRESS_GATEWAY`.

`init` configures them, `hold` takes and releases them, and `run` connects from them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_network
from typing import TYPE_CHECKING

from egress_proxy.config import variables
from egress_proxy.config.variables import RefusedError, Variable

if TYPE_CHECKING:
    from egress_proxy.ip import Address

_ENTRY = re.compile(r"([^/]*)(?:/([1-9][0-9]{0,2}))?", re.ASCII)
# With high availability, the table for what has a reserved address as its source: `init` puts the
# rule and an unreachable default, `hold` the routes. Any number without a name in ip-route(8) would
# do.
SOURCE_TABLE = 1092
# RFC 1122 section 3.2.1.3: hosts of "this network", never a host's address on the wire.
_THIS_NETWORK = IPv4Network("0.0.0.0/8")


@dataclass(frozen=True, slots=True)
class Source:
    """A reserved address, and the next hop of everything that leaves with it.

    `length` is that of the on-link prefix; None: the admin gave none, and only the gateway is
    on-link. The gateway is of the same family; an IPv6 one may be link-local.
    """

    address: Address
    length: int | None
    gateway: Address

    @property
    def version(self) -> int:
        return self.address.version

    def __str__(self) -> str:
        return str(self.address) if self.length is None else f"{self.address}/{self.length}"


def _parse_sources(text: str) -> tuple[tuple[Address, int | None], ...]:
    sources = tuple(map(_parse_source, variables.split_list(text)))
    _refuse_two_of_one_family([address for address, _ in sources])
    return sources


def _parse_source(entry: str) -> tuple[Address, int | None]:
    variables.refuse_quotation_marks(entry)
    match = _ENTRY.fullmatch(entry)
    if match is None:
        raise RefusedError("not an address with a length", "write for example 192.0.2.99/24", entry)
    address = variables.parse_address(match[1])
    reason = _unusable(address) or ("a link-local address" if address.is_link_local else "")
    if reason:
        raise RefusedError(reason, "write the address that is reserved for this pod", entry)
    if match[2] is None:
        return address, None
    length = int(match[2])
    if length > address.max_prefixlen:
        raise RefusedError(f"a length beyond {address.max_prefixlen}", "correct the length", entry)
    _refuse_subnet_address(address, length, entry)
    return address, length


def _refuse_subnet_address(address: Address, length: int, entry: str) -> None:
    """RFC 1122 section 3.2.1.3 and RFC 4291 section 2.6.1: two names of a subnet, not of a host.

    A prefix of one or two addresses has none (RFC 3021, RFC 6164).
    """
    if length >= address.max_prefixlen - 1:
        return
    subnet = ip_network((address, length), strict=False)
    cure = f"write a host's address in {subnet}"
    if address == subnet.network_address:
        raise RefusedError("the first address of its subnet, which no host has", cure, entry)
    if isinstance(address, IPv4Address) and address == subnet.broadcast_address:
        raise RefusedError("the broadcast address of its subnet", cure, entry)


def _parse_gateways(text: str) -> tuple[Address, ...]:
    gateways = variables.parse_addresses(text)
    for gateway in gateways:
        reason = _unusable(gateway)
        if reason:
            raise RefusedError(reason, "write the router's address on this network", str(gateway))
    _refuse_two_of_one_family(gateways)
    return gateways


def _unusable(address: Address) -> str:
    """Why `address` can't be a host's on the wire, or nothing."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return "an IPv4 address in IPv6 form"
    if address.is_loopback:
        return "a loopback address"
    if address.is_multicast:
        return "a multicast address"
    if address.is_unspecified or address in _THIS_NETWORK:
        return "an unspecified address"
    # 240.0.0.0/4; in IPv6 "reserved" is most of the space, and no error.
    if isinstance(address, IPv4Address) and address.is_reserved:
        return "a reserved address"
    return ""


def _refuse_two_of_one_family(addresses: tuple[Address, ...] | list[Address]) -> None:
    if len({address.version for address in addresses}) != len(addresses):
        raise RefusedError("two addresses of one family", "write one IPv4, one IPv6, or both")


SOURCE = Variable(
    "EGRESS_SOURCE",
    None,
    _parse_sources,
    "the reserved address, A or A/len; one IPv4, one IPv6, or both with a comma",
)
GATEWAY = Variable(
    "EGRESS_GATEWAY", None, _parse_gateways, "the next hop for each family of the source"
)


def read_sources(reader: variables.Reader) -> tuple[Source, ...]:
    """Each reserved address with the gateway of its family, IPv4 first."""
    before = len(reader.problems)
    addresses = reader.read_required(SOURCE)
    gateways = reader.read_required(GATEWAY)
    if len(reader.problems) > before:
        return ()
    by_version = {gateway.version: gateway for gateway in gateways}
    sources = []
    for address, length in sorted(addresses, key=lambda entry: entry[0].version):
        gateway = by_version.pop(address.version, None)
        if gateway is None:
            _refuse_gateway(
                reader, f"no IPv{address.version} gateway for {address}", "add the router's address"
            )
        elif gateway == address:
            _refuse_gateway(
                reader, f"the same address as {SOURCE.name}", "write the router's address"
            )
        else:
            sources.append(Source(address, length, gateway))
    for gateway in by_version.values():
        _refuse_gateway(
            reader,
            f"{gateway} is for IPv{gateway.version}, and {SOURCE.name} has no such address",
            "remove the gateway, or add the address",
        )
    return tuple(sources)


def _refuse_gateway(reader: variables.Reader, reason: str, cure: str) -> None:
    reader.refuse(GATEWAY, RefusedError(reason, cure), reader.text(GATEWAY))
