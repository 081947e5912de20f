"""One rtnetlink request and the kernel's answer, without a library (rtnetlink(7), netlink(7)).

pyroute2 costs 25 MB resident and its synchronous calls do not run inside an event loop, so what
stays resident makes its few messages here.
"""

from __future__ import annotations

import os
import socket
import struct

# linux/netlink.h
_NLM_F_REQUEST = 0x1
_NLM_F_ACK = 0x4
_NLMSG_ERROR = 2
_HEADER = struct.Struct("=IHHII")
# The kernel answers within the system call that sends the request.
_TIMEOUT_S = 1.0


def attribute(kind: int, value: bytes) -> bytes:
    """A `struct nlattr` with its value, filled up to four octets."""
    octets = struct.pack("=HH", 4 + len(value), kind) + value
    return octets + bytes(-len(octets) % 4)


def request(kind: int, body: bytes, flags: int = 0) -> None:
    """Send one message and wait until the kernel has done it. Raises OSError."""
    octets = _HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_REQUEST | _NLM_F_ACK | flags, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.settimeout(_TIMEOUT_S)
        kernel.sendto(octets + body, (0, 0))
        answer = kernel.recv(1 << 16)
    _, answered, _, _, _ = _HEADER.unpack_from(answer)
    (error,) = struct.unpack_from("=i", answer, _HEADER.size)
    if answered != _NLMSG_ERROR or error != 0:
        raise OSError(-error, os.strerror(-error))
