"""The egress interface: its Ethernet address, and whether it carries frames.

netdevice(7) answers without a library; rtnetlink(7) only says when to ask again.
"""

from __future__ import annotations

import fcntl
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

# linux/sockios.h
_SIOCGIFFLAGS = 0x8913
_SIOCGIFHWADDR = 0x8927
# linux/if.h: struct ifreq begins with the name; up, and with a carrier.
_IFREQ = struct.Struct("=16s24x")
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_NAME_OCTETS = 16
# linux/rtnetlink.h
_RTMGRP_LINK = 0x1


def _ask(interface: str, request: int) -> bytes:
    """The answer of the kernel, a struct ifreq. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return fcntl.ioctl(sock, request, _IFREQ.pack(interface.encode()))


def read_mac(interface: str, ask: Callable[[str, int], bytes] = _ask) -> bytes:
    """The six octets of the Ethernet address. Raises OSError."""
    # struct sockaddr: the family, then the address.
    return ask(interface, _SIOCGIFHWADDR)[_NAME_OCTETS + 2 :][:6]


def has_carrier(interface: str, ask: Callable[[str, int], bytes] = _ask) -> bool:
    """Whether frames can be sent now; not over an interface that is gone."""
    try:
        (flags,) = struct.unpack_from("=H", ask(interface, _SIOCGIFFLAGS), _NAME_OCTETS)
    except OSError:
        return False
    return bool(flags & _IFF_UP and flags & _IFF_RUNNING)


class LinkMonitor:
    """Calls `on_change` with what `has_carrier` says, whenever that is different."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        interface: str,
        on_change: Callable[[bool], None],
        look: Callable[[str], bool] = has_carrier,
    ) -> None:
        self.carrier = look(interface)
        self._loop = loop
        self._interface = interface
        self._on_change = on_change
        self._look = look
        self._news: socket.socket | None = None

    def start(self) -> None:
        """Watch from now on. Raises OSError."""
        self._news = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        self._news.bind((0, _RTMGRP_LINK))
        self._loop.add_reader(self._news.fileno(), self._changed, self._news)
        self._examine()

    def stop(self) -> None:
        if self._news is not None:
            self._loop.remove_reader(self._news.fileno())
            self._news.close()
            self._news = None

    def _changed(self, news: socket.socket) -> None:
        try:
            while news.recv(1 << 16):
                pass
        except BlockingIOError:
            pass
        except OSError:
            # ENOBUFS: messages were lost. Looking makes up for them.
            pass
        self._examine()

    def _examine(self) -> None:
        carrier = self._look(self._interface)
        if carrier != self.carrier:
            self.carrier = carrier
            self._on_change(carrier)
