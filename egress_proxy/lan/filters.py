"""Socket filters in the kernel (classic BPF): only frames about certain addresses come through.

Otherwise a packet socket for IPv6 would deliver all IPv6 traffic of the interface, and a busy LAN
has thousands of ARP requests per second. `frames` still checks every frame that comes through.
"""

from __future__ import annotations

import struct
from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Iterator
    from ipaddress import IPv4Address, IPv6Address

# asm-generic/socket.h
_SOL_SOCKET, _SO_ATTACH_FILTER = 1, 26
# linux/bpf_common.h: the operations used here.
_LOAD_WORD, _LOAD_BYTE, _JUMP_EQUAL, _RETURN = 0x20, 0x30, 0x15, 0x06
_INSTRUCTION = struct.Struct("=HBBI")
_ALL, _NOTHING = 0xFFFF, 0
# Where the fields are, without the Ethernet header: the sender in ARP (RFC 826); the next header in
# IPv6 (RFC 8200); type and target in neighbour discovery (RFC 4861 section 4.4).
_ARP_SENDER = 14
_IPV6_NEXT_HEADER, _ND_TYPE, _ND_TARGET = 6, 40, 48
_ICMPV6, _ADVERTISEMENT = 58, 136


def arp_filter(addresses: Iterable[IPv4Address]) -> bytes:
    """Lets ARP frames through whose sender is one of `addresses`."""
    blocks = (_match(_ARP_SENDER, address.packed) for address in addresses)
    return b"".join([*blocks, _give(_NOTHING)])


def advertisement_filter(addresses: Iterable[IPv6Address]) -> bytes:
    """Lets neighbour advertisements through whose target is one of `addresses`."""
    blocks = (_match(_ND_TARGET, address.packed) for address in addresses)
    return b"".join(
        [
            *_require(_IPV6_NEXT_HEADER, _ICMPV6),
            *_require(_ND_TYPE, _ADVERTISEMENT),
            *blocks,
            _give(_NOTHING),
        ]
    )


def attach(sock: socket.socket, program: bytes) -> None:
    """Give `sock` the filter `program`. Raises OSError."""
    instructions = array("B", program)
    place, _ = instructions.buffer_info()
    # struct sock_fprog, with the machine's alignment of the pointer.
    sock.setsockopt(
        _SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(program) // _INSTRUCTION.size, place)
    )


def _require(offset: int, value: int) -> Iterator[bytes]:
    yield _INSTRUCTION.pack(_LOAD_BYTE, 0, 0, offset)
    yield _INSTRUCTION.pack(_JUMP_EQUAL, 1, 0, value)
    yield _give(_NOTHING)


def _match(offset: int, packed: bytes) -> bytes:
    """Everything, if `packed` is at `offset`; else the next instruction."""
    words = struct.unpack(f"!{len(packed) // 4}I", packed)
    block = []
    for number, word in enumerate(words):
        left = 2 * (len(words) - number - 1) + 1
        block.append(_INSTRUCTION.pack(_LOAD_WORD, 0, 0, offset + 4 * number))
        block.append(_INSTRUCTION.pack(_JUMP_EQUAL, 0, left, word))
    return b"".join([*block, _give(_ALL)])


def _give(octets: int) -> bytes:
    return _INSTRUCTION.pack(_RETURN, 0, 0, octets)
