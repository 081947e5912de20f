"""Flows as the kernel tracks them: list them, delete one (nfnetlink, linux/nfnetlink_conntrack.h).

Trust boundary: every message is from the kernel. A value that is not in it is None or 0.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

from egress_proxy.netlink import NESTED, attribute, attributes, dump, request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from egress_proxy.ip import Address

# linux/netlink.h, linux/nfnetlink.h and linux/nfnetlink_conntrack.h.
_NETLINK_NETFILTER = 12
_SUBSYSTEM = 1 << 8
_GET = _SUBSYSTEM | 1
_DELETE = _SUBSYSTEM | 2
_CTA_TUPLE_ORIG = 1
_CTA_STATUS = 3
_CTA_ID = 12
_CTA_TUPLE_IP = 1
_CTA_TUPLE_PROTO = 2
# CTA_IP_V4_SRC and _V6_SRC, CTA_IP_V4_DST and _V6_DST: a tuple has one of each pair.
_SOURCES = (1, 3)
_TARGETS = (2, 4)
_CTA_PROTO_NUM = 1
_CTA_PROTO_DST_PORT = 3
# linux/netfilter/nf_conntrack_common.h
_IPS_DST_NAT = 1 << 5

PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "sctp": socket.IPPROTO_SCTP}


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """A flow by its first packet: who sent it, and where to, before any translation.

    `protocol` is the IP protocol number; `port` is None where the protocol has none. `translated`
    says whether its destination is. `tuple` and `number` are how the kernel knows it.
    """

    source: Address
    target: Address
    protocol: int
    port: int | None
    translated: bool
    tuple: bytes
    number: bytes


def list_flows() -> Iterator[Flow]:
    """All flows of this network namespace. Raises OSError."""
    for answer in dump(_NETLINK_NETFILTER, _GET, _nfgenmsg(socket.AF_UNSPEC)):
        yield read_flow(answer)


def delete(flow: Flow) -> None:
    """Make the kernel forget `flow`, if it is still there. Raises OSError."""
    family = socket.AF_INET6 if flow.source.version == 6 else socket.AF_INET  # noqa: PLR2004 - IPv6
    # The number distinguishes it from a later flow with the same addresses and ports.
    which = attribute(_CTA_TUPLE_ORIG | NESTED, flow.tuple) + attribute(_CTA_ID, flow.number)
    try:
        request(_NETLINK_NETFILTER, _DELETE, _nfgenmsg(family) + which)
    except FileNotFoundError:
        return


def _nfgenmsg(family: int) -> bytes:
    """`struct nfgenmsg`: family, version, and a resource that conntrack has no use for."""
    return struct.pack("=BBH", family, 0, 0)


def read_flow(message: bytes) -> Flow:
    """The flow that the body of a message describes."""
    told = attributes(message[4:])
    parts = attributes(told[_CTA_TUPLE_ORIG])
    addresses = attributes(parts[_CTA_TUPLE_IP])
    proto = attributes(parts[_CTA_TUPLE_PROTO])
    (status,) = struct.unpack("!I", told[_CTA_STATUS])
    port = proto.get(_CTA_PROTO_DST_PORT)
    return Flow(
        source=_address(addresses, _SOURCES),
        target=_address(addresses, _TARGETS),
        protocol=proto[_CTA_PROTO_NUM][0],
        port=None if port is None else int.from_bytes(port),
        translated=bool(status & _IPS_DST_NAT),
        tuple=told[_CTA_TUPLE_ORIG],
        number=told[_CTA_ID],
    )


def _address(found: dict[int, bytes], kinds: tuple[int, int]) -> Address:
    [octets] = [found[kind] for kind in kinds if kind in found]
    return ip_address(octets)
