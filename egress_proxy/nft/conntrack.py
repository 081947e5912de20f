"""Flows as the kernel tracks them: list them, count them, delete one.

nfnetlink, linux/netfilter/nfnetlink_conntrack.h. Trust boundary: every message is from the kernel.
"""

from __future__ import annotations

import enum
import socket
import struct
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from egress_proxy.ip import family_of
from egress_proxy.netlink import NESTED, attribute, attributes, dump, request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from egress_proxy.ip import Address

# linux/socket.h and linux/netlink.h
NETLINK_NETFILTER = 12
# linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h
SUBSYSTEM = 1 << 8
_GET = SUBSYSTEM | 1
DELETE = SUBSYSTEM | 2
CTA_TUPLE_ORIG = 1
_CTA_TUPLE_REPLY = 2
CTA_STATUS = 3
CTA_PROTOINFO = 4
_CTA_TIMEOUT = 7
_CTA_MARK = 8
_CTA_COUNTERS_ORIG = 9
_CTA_COUNTERS_REPLY = 10
_CTA_ID = 12
CTA_PROTOINFO_TCP = 1
# Where TCP's state is in CTA_PROTOINFO: two headers of attributes in.
STATE_AT = 8
_CTA_COUNTERS_BYTES = 2
_CTA_TUPLE_IP = 1
_CTA_TUPLE_PROTO = 2
# CTA_IP_V4_SRC and _V6_SRC, CTA_IP_V4_DST and _V6_DST: a tuple has one of each pair.
_SOURCES = (1, 3)
_TARGETS = (2, 4)
_CTA_PROTO_NUM = 1
_CTA_PROTO_SRC_PORT = 2
_CTA_PROTO_DST_PORT = 3
# linux/netfilter/nf_conntrack_common.h
IPS_SEEN_REPLY = 1 << 1
IPS_DST_NAT = 1 << 5

_SYSCTLS = Path("/proc/sys/net/netfilter")

PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "sctp": socket.IPPROTO_SCTP}


class TcpState(enum.IntEnum):
    """linux/netfilter/nf_conntrack_tcp.h"""

    NONE = 0
    SYN_SENT = 1
    SYN_RECV = 2
    ESTABLISHED = 3
    FIN_WAIT = 4
    CLOSE_WAIT = 5
    LAST_ACK = 6
    TIME_WAIT = 7
    CLOSE = 8
    SYN_SENT2 = 9


# A state that a later kernel may have says nothing here.
_STATES = {state.value: state for state in TcpState}
_ATTRIBUTE = struct.Struct("=HH")


class End(NamedTuple):
    """One end of a flow; `port` is None where the protocol has none."""

    address: Address
    port: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """A flow: `source` sent its first packet to `target`, before any translation.

    The replies come from `upstream` and are sent to `reserved`: what the other side sees, after
    translation. `protocol` is the IP protocol number, `translated` says whether the destination is,
    `answered` whether the upstream has sent something, `state` is TCP's, and `mark` is the number
    that a rule has given it. `sent` and `received` are octets, None where the kernel does not
    count. Without another packet the kernel forgets it in `left_s` seconds.
    `tuple` and `number` are how the kernel knows the flow; only one flow has a tuple at a time.
    """

    source: End
    target: End
    upstream: End
    reserved: End
    protocol: int
    translated: bool
    answered: bool
    state: TcpState
    mark: int
    left_s: int
    sent: int | None
    received: int | None
    tuple: bytes
    number: bytes


class Glimpse(NamedTuple):
    """What most flows are looked at for; `read_flow(body)` tells all, at five times the cost.

    `tuple`, `state` and `mark` are as in `Flow`, `status` is a mask of IPS_….
    """

    tuple: bytes
    status: int
    mark: int
    state: TcpState
    body: bytes

    @property
    def translated(self) -> bool:
        return bool(self.status & IPS_DST_NAT)

    @property
    def answered(self) -> bool:
        return bool(self.status & IPS_SEEN_REPLY)


def list_flows() -> Iterator[Flow]:
    """All flows of this network namespace. Raises OSError."""
    for glimpse in glimpses():
        yield read_flow(glimpse.body)


def glimpses() -> Iterator[Glimpse]:
    """All flows of this network namespace, at first sight. Raises OSError.

    Fifty thousand take a quarter of a second, so the event loop must not wait for it. In a thread,
    others run whenever the kernel is asked for more, each 150 flows or so.
    """
    return map(glance, dump(NETLINK_NETFILTER, _GET, _nfgenmsg(socket.AF_UNSPEC)))


def glance(body: bytes) -> Glimpse:
    """Walk over the attributes of a message without looking into more than four of them."""
    key, status, mark, state = b"", 0, 0, TcpState.NONE
    place, end = 4, len(body)
    while place + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(body, place)
        kind &= 0x3FFF
        if kind == CTA_TUPLE_ORIG:
            key = body[place + 4 : place + length]
        elif kind == CTA_STATUS:
            status = int.from_bytes(body[place + 4 : place + length])
        elif kind == _CTA_MARK:
            mark = int.from_bytes(body[place + 4 : place + length])
        elif kind == CTA_PROTOINFO:
            state = _tcp_state(body[place + 4 : place + length])
        place += max(length + -length % 4, 4)
    return Glimpse(key, status, mark, state, body)


def delete(flow: Flow) -> None:
    """Make the kernel forget `flow`; one that is gone already is fine. Raises OSError."""
    # The number tells it from a successor with the same addresses and ports.
    which = attribute(CTA_TUPLE_ORIG | NESTED, flow.tuple) + attribute(_CTA_ID, flow.number)
    try:
        request(NETLINK_NETFILTER, DELETE, _nfgenmsg(family_of(flow.source.address)) + which)
    except FileNotFoundError:
        return


def counts_octets() -> bool:
    """Whether the kernel counts each flow's octets (net.netfilter.nf_conntrack_acct)."""
    return _read_sysctl("nf_conntrack_acct") == 1


def maximum() -> int:
    """How many flows the kernel tracks, of everything in the pod; 0 if that can't be read."""
    return _read_sysctl("nf_conntrack_max")


def _read_sysctl(name: str) -> int:
    try:
        return int((_SYSCTLS / name).read_text())
    except OSError:
        # It appears with the module.
        return 0


def _nfgenmsg(family: int) -> bytes:
    """`struct nfgenmsg`: family, version, and a resource that conntrack has no use for."""
    return struct.pack("=BBH", family, 0, 0)


def read_flow(message: bytes) -> Flow:
    """The flow in the body of a message."""
    found = attributes(message[4:])
    original, reply = found[CTA_TUPLE_ORIG], found[_CTA_TUPLE_REPLY]
    source, target, protocol = _ends(original)
    upstream, reserved, _ = _ends(reply)
    status = int.from_bytes(found.get(CTA_STATUS, b""))
    return Flow(
        source=source,
        target=target,
        upstream=upstream,
        reserved=reserved,
        protocol=protocol,
        translated=bool(status & IPS_DST_NAT),
        answered=bool(status & IPS_SEEN_REPLY),
        state=_tcp_state(found.get(CTA_PROTOINFO, b"")),
        mark=int.from_bytes(found.get(_CTA_MARK, b"")),
        left_s=int.from_bytes(found.get(_CTA_TIMEOUT, b"")),
        sent=_octets(found.get(_CTA_COUNTERS_ORIG, b"")),
        received=_octets(found.get(_CTA_COUNTERS_REPLY, b"")),
        tuple=original,
        number=found[_CTA_ID],
    )


def _ends(octets: bytes) -> tuple[End, End, int]:
    """Where a tuple comes from, where it goes, and its protocol."""
    parts = attributes(octets)
    addresses = attributes(parts[_CTA_TUPLE_IP])
    proto = attributes(parts[_CTA_TUPLE_PROTO])
    source = End(_address(addresses, _SOURCES), _port(proto.get(_CTA_PROTO_SRC_PORT)))
    target = End(_address(addresses, _TARGETS), _port(proto.get(_CTA_PROTO_DST_PORT)))
    return source, target, proto[_CTA_PROTO_NUM][0]


def _address(found: dict[int, bytes], kinds: tuple[int, int]) -> Address:
    [octets] = [found[kind] for kind in kinds if kind in found]
    return ip_address(octets)


def _port(octets: bytes | None) -> int | None:
    return None if octets is None else int.from_bytes(octets)


def _tcp_state(protoinfo: bytes) -> TcpState:
    # The state is the first attribute in that of TCP (tcp_to_nlattr), and this is called often.
    if len(protoinfo) > STATE_AT and protoinfo[2] == CTA_PROTOINFO_TCP and protoinfo[6] == 1:
        return _STATES.get(protoinfo[STATE_AT], TcpState.NONE)
    return TcpState.NONE


def _octets(counters: bytes) -> int | None:
    found = attributes(counters).get(_CTA_COUNTERS_BYTES)
    return None if found is None else int.from_bytes(found)
