"""Requests of netlink(7), dumps, and the attributes in both, without a library.

pyroute2 costs 25 MB resident, its synchronous calls do not run inside an event loop, and it has no
call for some messages. So the commands that stay resident build their few messages here.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# linux/netlink.h
_NLM_F_REQUEST = 0x1
_NLM_F_ACK = 0x4
_NLM_F_DUMP = 0x300
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
# NLA_F_NESTED and NLA_F_NET_BYTEORDER are flags in an attribute's type.
NESTED = 0x8000
_KIND_MASK = 0x3FFF

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
# A dump's part is never longer than what the reader offers, up to 32 KiB (netlink_dump).
_LONGEST = 1 << 16
# The kernel answers within the system call that sends the request or asks for more of the dump.
_TIMEOUT_S = 1.0


def attribute(kind: int, value: bytes) -> bytes:
    """A `struct nlattr` with its value, padded to a multiple of four octets."""
    octets = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value
    return octets + bytes(-len(octets) % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    """The values by their kinds, without flags. A truncated attribute is left out."""
    found = {}
    place = 0
    while place + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, place)
        if not _ATTRIBUTE.size <= length <= len(data) - place:
            break
        found[kind & _KIND_MASK] = data[place + _ATTRIBUTE.size : place + length]
        place += length + -length % 4
    return found


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The type and the body of each message that one recv(2) returned."""
    place = 0
    while place + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, place)
        if not _HEADER.size <= length <= len(data) - place:
            break
        yield kind, data[place + _HEADER.size : place + length]
        place += length + -length % 4


def request(protocol: int, kind: int, body: bytes, flags: int = 0) -> None:
    """Send one message and wait until the kernel has done it. Raises OSError.

    `protocol` is the netlink family, such as NETLINK_ROUTE.
    """
    with _sent(protocol, kind, _NLM_F_ACK | flags, body) as kernel:
        for answered, answer in messages(kernel.recv(_LONGEST)):
            if answered == _NLMSG_ERROR:
                _raise_error(answer)
                return
    raise OSError(errno.EBADMSG, "the kernel answers without an acknowledgement")


def dump(protocol: int, kind: int, body: bytes) -> Iterator[bytes]:
    """The bodies of everything that the kernel has of `kind`. Raises OSError."""
    with _sent(protocol, kind, _NLM_F_DUMP, body) as kernel:
        while True:
            for answered, answer in messages(kernel.recv(_LONGEST)):
                if answered in (_NLMSG_DONE, _NLMSG_ERROR):
                    _raise_error(answer)
                    return
                yield answer


def _sent(protocol: int, kind: int, flags: int, body: bytes) -> socket.socket:
    kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    try:
        kernel.settimeout(_TIMEOUT_S)
        size = _HEADER.size + len(body)
        kernel.sendto(_HEADER.pack(size, kind, _NLM_F_REQUEST | flags, 1, 0) + body, (0, 0))
    except OSError:
        kernel.close()
        raise
    return kernel


def _raise_error(answer: bytes) -> None:
    """An error and the end of a dump both begin with a number: 0, or a negative errno."""
    (error,) = struct.unpack_from("=i", answer)
    if error:
        raise OSError(-error, os.strerror(-error))
