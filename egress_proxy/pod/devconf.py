"""IPv4 settings of an interface, set over netlink: /proc/sys may be read-only (rtnetlink(7)).

In a container that is not privileged it is. IPv6 has one switch for forwarding, below /proc/sys.
"""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

from egress_proxy.pod.rtnetlink import attribute, request

# linux/rtnetlink.h
_RTM_SETLINK = 19
# linux/if_link.h
_IFLA_AF_SPEC = 26
_IFLA_INET_CONF = 1
# linux/ip.h, IPV4_DEVCONF_*: those that this program sets.
IPV4_DEVCONF = {"forwarding": 1, "rp_filter": 8}

_CONF = Path("/proc/sys/net")
_IPV6_FORWARDING = _CONF / "ipv6/conf/all/forwarding"


def set_ipv4(interface: str, name: str, value: int) -> None:
    """Set ``net.ipv4.conf.<interface>.<name>``. Raises OSError, KeyError for another name."""
    settings = attribute(_IFLA_INET_CONF, attribute(IPV4_DEVCONF[name], struct.pack("=I", value)))
    # struct ifinfomsg: family, type, index, flags and which of them to change.
    link = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, socket.if_nametoindex(interface), 0, 0)
    request(_RTM_SETLINK, link + attribute(_IFLA_AF_SPEC, attribute(socket.AF_INET, settings)))


def read(version: int, interface: str, name: str) -> int:
    """The value of such a setting, of IPv4 or IPv6. Raises OSError."""
    return int((_CONF / f"ipv{version}/conf" / interface / name).read_text())


def set_ipv6_forwarding(value: int) -> None:
    """Set ``net.ipv6.conf.all.forwarding``. Raises OSError, as where /proc/sys is read-only."""
    _IPV6_FORWARDING.write_text(str(value))


def ipv6_forwarding_writable() -> bool:
    return os.access(_IPV6_FORWARDING, os.W_OK)
