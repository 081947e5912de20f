"""Which events the filter in the kernel lets through: its programs, carried out as bpf(2) says."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from egress_proxy.netlink import NESTED, attribute
from egress_proxy.nft.conntrack import DELETE, SUBSYSTEM, TcpState
from egress_proxy.nft.conntrack_events import EVERY_CONNECTION, HANDSHAKES, assemble

if TYPE_CHECKING:
    from collections.abc import Sequence

    from egress_proxy.nft.conntrack_events import Op

# linux/netfilter/nf_conntrack_common.h and linux/netlink.h
SEEN_REPLY, ASSURED, DST_NAT = 1 << 1, 1 << 2, 1 << 5
CREATE = 0x400


def event(kind: int, status: int | None, state: TcpState | None, flags: int = 0) -> bytes:
    attributes = b"" if status is None else attribute(3, status.to_bytes(4))
    if state is not None:
        tcp = attribute(1 | NESTED, attribute(1, bytes([state])))
        attributes += attribute(4 | NESTED, tcp)
    attributes = attribute(1 | NESTED, bytes(48)) + attributes
    return struct.pack("=IHHII4x", 20 + len(attributes), kind, flags, 0, 0) + attributes


def passes(program: Sequence[Op], packet: bytes) -> bool:
    """Carry out the octets of `program` on `packet`."""
    codes = list(struct.iter_unpack("=HBBI", assemble(program)))
    value = index = place = 0
    while True:
        code, yes, no, k = codes[place]
        place += 1
        if code == 0x06:
            return bool(k)
        if code == 0x00:
            value = k
        elif code == 0x01:
            index = k
        elif code == 0x07:
            index = value
        elif code == 0x20:
            assert k == 0xFFFFF000 + 12
            value = find(packet, value, index)
        elif code == 0x28:
            value = int.from_bytes(packet[k : k + 2])
        elif code == 0x40:
            value = int.from_bytes(packet[index + k : index + k + 4])
        elif code == 0x50:
            value = packet[index + k]
        else:
            jumps = {0x15: value == k, 0x45: bool(value & k)}
            place += yes if jumps[code] else no


def find(packet: bytes, place: int, wanted: int) -> int:
    """The offset of an attribute, as nla_find() finds it; 0 without it."""
    while place + 4 <= len(packet):
        length, kind = struct.unpack_from("=HH", packet, place)
        if kind & 0x3FFF == wanted:
            return place
        place += length + -length % 4
    return 0


REFUSED = event(DELETE, DST_NAT, TcpState.CLOSE)
SILENT = event(DELETE, DST_NAT, TcpState.SYN_SENT)
OVER = event(DELETE, DST_NAT | SEEN_REPLY | ASSURED, TcpState.TIME_WAIT)
ANSWERED = event(SUBSYSTEM, DST_NAT | SEEN_REPLY | ASSURED, TcpState.ESTABLISHED)
NEW = event(SUBSYSTEM, DST_NAT, TcpState.SYN_SENT, CREATE)
SYN_ACK = event(SUBSYSTEM, DST_NAT | SEEN_REPLY, TcpState.SYN_RECV)
FINISHED = event(SUBSYSTEM, DST_NAT | SEEN_REPLY | ASSURED, TcpState.TIME_WAIT)
RESET = event(SUBSYSTEM, DST_NAT | SEEN_REPLY | ASSURED, TcpState.CLOSE)
HALF = event(SUBSYSTEM, DST_NAT | SEEN_REPLY | ASSURED, TcpState.FIN_WAIT)


@pytest.mark.parametrize(
    ("packet", "of_handshakes", "of_every"),
    [
        (REFUSED, True, True),
        (SILENT, True, True),
        (OVER, False, True),
        # Only where a rule asks for it, in both cases.
        (ANSWERED, True, False),
        (NEW, True, True),
        (SYN_ACK, True, True),
        (FINISHED, True, True),
        (RESET, True, True),
        (HALF, True, False),
        # The pod's own connections, and what is not TCP.
        (event(DELETE, 0, TcpState.SYN_SENT), False, False),
        (event(SUBSYSTEM, SEEN_REPLY | ASSURED, TcpState.CLOSE), False, False),
        (event(SUBSYSTEM, None, None), False, False),
        (event(SUBSYSTEM, DST_NAT | SEEN_REPLY, None), True, False),
    ],
)
def test_what_passes(packet: bytes, of_handshakes: bool, of_every: bool) -> None:
    assert passes(HANDSHAKES, packet) == of_handshakes
    assert passes(EVERY_CONNECTION, packet) == of_every
