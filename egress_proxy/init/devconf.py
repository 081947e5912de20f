"""Sets sysctls of an interface, over netlink where the kernel can.

/proc/sys is read-only in a container that is not privileged. pyroute2 has no method for these
messages.
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path

from egress_proxy.init.steps import SetSysctl
from egress_proxy.pod.devconf import IPV4_DEVCONF, set_ipv4
from egress_proxy.pod.rtnetlink import attribute, request

# linux/rtnetlink.h
_RTM_SETNEIGHTBL = 67
# linux/neighbour.h
_NDTA_NAME = 1
_NDTA_PARMS = 6
_NDTPA_IFINDEX = 1
_NDTPA_RETRANS_TIME = 5


def set_sysctl(change: SetSysctl) -> None:
    """Make the change. Raises OSError."""
    match change:
        case SetSysctl("ipv4/conf", interface, name, value) if name in IPV4_DEVCONF:
            set_ipv4(interface, name, value)
        case SetSysctl("ipv6/neigh", interface, "retrans_time_ms", value):
            _set_retrans_time(socket.if_nametoindex(interface), value)
        case SetSysctl(tree, interface, name, value):
            path = Path("/proc/sys/net", tree, interface, name)
            path.write_text(str(value), encoding="ascii")


def _set_retrans_time(index: int, milliseconds: int) -> None:
    parameters = attribute(_NDTPA_IFINDEX, struct.pack("=I", index))
    parameters += attribute(_NDTPA_RETRANS_TIME, struct.pack("=Q", milliseconds))
    # struct ndtmsg: the family; the kernel's table of IPv6 neighbours has this name.
    table = struct.pack("=Bxxx", socket.AF_INET6) + attribute(_NDTA_NAME, b"ndisc_cache\0")
    request(_RTM_SETNEIGHTBL, table + attribute(_NDTA_PARMS, parameters))
