"""One rtnetlink request and the kernel's answer (rtnetlink(7))."""

from __future__ import annotations

import socket

from egress_proxy import netlink
from egress_proxy.netlink import attribute

__all__ = ["attribute", "request"]


def request(kind: int, body: bytes, flags: int = 0) -> None:
    """Send one message and wait until the kernel has done it. Raises OSError."""
    netlink.request(socket.NETLINK_ROUTE, kind, body, flags)
