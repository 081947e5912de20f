"""Events of conntrack: a socket for them, and a filter in the kernel in front of it.

The rules decide which events the kernel makes of a flow (``ct event set`` in `ruleset`). The filter
drops those that are not needed: a connection that succeeds does not wake this process up, unless
its record is wanted. See linux/netfilter/nfnetlink_conntrack.h. Trust boundary: every message is
from the kernel.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from typing import TYPE_CHECKING, Literal, NamedTuple

from egress_proxy.netlink import messages
from egress_proxy.nft.conntrack import (
    CTA_PROTOINFO,
    CTA_STATUS,
    DELETE,
    IPS_DST_NAT,
    IPS_SEEN_REPLY,
    NETLINK_NETFILTER,
    STATE_AT,
    SUBSYSTEM,
    Glimpse,
    TcpState,
    glance,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# NFNLGRP_CONNTRACK_NEW, _UPDATE and _DESTROY, as a mask.
_GROUPS = 0b111
# asm-generic/socket.h: beyond net.core.rmem_max, with NET_ADMIN.
_SO_RCVBUFFORCE = 33
# An event takes about 1 KiB of it: tens of thousands of flows may change while the loop is busy.
_BUFFER = 16 << 20
_LONGEST = 1 << 16
# asm-generic/socket.h, linux/filter.h and linux/bpf_common.h: a classic filter, see bpf(2).
_SO_ATTACH_FILTER = 26
_LD_VALUE, _LDX_VALUE, _LD_HALF = 0x00, 0x01, 0x28
_LD_WORD, _LD_WORD_AT_X, _LD_BYTE_AT_X = 0x20, 0x40, 0x50
_JUMP_IF_EQUAL, _JUMP_IF_ANY, _RETURN, _A_TO_X = 0x15, 0x45, 0x06, 0x07
# SKF_AD_OFF is -0x1000 as an unsigned number.
_SKF_AD_OFF, _SKF_AD_NLATTR = 0xFFFFF000, 12
_OP = struct.Struct("=HBBI")
# Where a message's type, its flags, and its first attribute are (struct nlmsghdr, nfgenmsg).
_TYPE_AT, _FLAGS_AT, _ATTRIBUTES_AT = 4, 6, 20
# The filter loads the type, which is in the machine's order, as if it were in network order.
_DELETE_LOADED = int.from_bytes(DELETE.to_bytes(2, sys.byteorder))


class Change(NamedTuple):
    """A flow that began, changed or, if `ended`, was forgotten."""

    flow: Glimpse
    ended: bool


class Op(NamedTuple):
    """An instruction of a socket filter (linux/filter.h); `yes` and `no` say where it jumps to."""

    code: int
    k: int
    yes: Literal["next", "pass", "drop"] = "next"
    no: Literal["next", "pass", "drop"] = "next"


def open_events(*, every: bool) -> socket.socket:
    """A non-blocking socket for events of translated flows; `set_filter` says which.

    Its recv(2) raises OSError (ENOBUFS) when events were lost. Raises OSError.
    """
    events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    try:
        events.settimeout(0)
        set_filter(events, every=every)
        try:
            events.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        except PermissionError:
            # Before Linux 5.16, in a user namespace: as much as net.core.rmem_max allows.
            events.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        events.bind((0, _GROUPS))
    except OSError:
        events.close()
        raise
    return events


def read_events(events: socket.socket) -> Iterator[Change]:
    """The changes in the next packet of messages.

    Raises BlockingIOError when there is none, OSError when some were lost.
    """
    for kind, body in messages(events.recv(_LONGEST)):
        if kind & ~0xFF == SUBSYSTEM:
            yield Change(glance(body), ended=kind == DELETE)


def set_filter(events: socket.socket, *, every: bool) -> None:
    """Let pass what records of `every` connection need, or only handshakes.

    In the latter case a flow passes that is forgotten and was never answered, and one that changes,
    if a rule asks for changes: the upstream has answered. Raises OSError.
    """
    program = assemble(EVERY_CONNECTION if every else HANDSHAKES)
    buffer = ctypes.create_string_buffer(program)
    # struct sock_fprog: the number of instructions, and where they are.
    fprog = struct.pack("HL", len(program) // _OP.size, ctypes.addressof(buffer))
    events.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)


def assemble(program: Sequence[Op]) -> bytes:
    """`program` as the kernel wants it: an array of struct sock_filter."""
    places = {"pass": len(program), "drop": len(program) + 1}
    octets = b""
    for number, op in enumerate(program, 1):
        yes, no = (places.get(target, number) - number for target in (op.yes, op.no))
        octets += _OP.pack(op.code, yes, no, op.k)
    return octets + _OP.pack(_RETURN, 0, 0, 0xFFFFFFFF) + _OP.pack(_RETURN, 0, 0, 0)


def _attribute(kind: int) -> tuple[Op, ...]:
    """Jump to "drop" without this attribute, else load its offset."""
    return (
        Op(_LD_VALUE, _ATTRIBUTES_AT),
        Op(_LDX_VALUE, kind),
        Op(_LD_WORD, _SKF_AD_OFF + _SKF_AD_NLATTR),
        Op(_JUMP_IF_EQUAL, 0, yes="drop"),
        Op(_A_TO_X, 0),
    )


_TRANSLATED = (
    *_attribute(CTA_STATUS),
    Op(_LD_WORD_AT_X, 4),
    Op(_JUMP_IF_ANY, IPS_DST_NAT, no="drop"),
)
HANDSHAKES = (
    *_TRANSLATED,
    Op(_JUMP_IF_ANY, IPS_SEEN_REPLY, no="pass"),
    Op(_LD_HALF, _TYPE_AT),
    Op(_JUMP_IF_EQUAL, _DELETE_LOADED, yes="drop", no="pass"),
)
# A flow begins or is forgotten; TCP has got its SYN-ACK, is over, or was reset.
EVERY_CONNECTION = (
    *_TRANSLATED,
    Op(_LD_HALF, _TYPE_AT),
    Op(_JUMP_IF_EQUAL, _DELETE_LOADED, yes="pass"),
    # Without flags the flow is not new.
    Op(_LD_HALF, _FLAGS_AT),
    Op(_JUMP_IF_EQUAL, 0, no="pass"),
    *_attribute(CTA_PROTOINFO),
    Op(_LD_BYTE_AT_X, 4 + STATE_AT),
    Op(_JUMP_IF_EQUAL, TcpState.SYN_RECV, yes="pass"),
    Op(_JUMP_IF_EQUAL, TcpState.TIME_WAIT, yes="pass"),
    Op(_JUMP_IF_EQUAL, TcpState.CLOSE, yes="pass", no="drop"),
)
