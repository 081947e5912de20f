"""Sets sysctls of an interface, over netlink where the kernel can.

/proc/sys is read-only in a container that is not privileged. pyroute2 has no method for these
messages.
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path

from egress_proxy.init.steps import SetSysctl
from egress_proxy.pod.rtnetlink import attribute, request

# linux/rtnetlink.h
_RTM_SETLINK = 19
_RTM_SETNEIGHTBL = 67
# linux/if_link.h
_IFLA_AF_SPEC = 26
_IFLA_INET_CONF = 1
# linux/ip.h, IPV4_DEVCONF_*: those that init sets.
_IPV4_DEVCONF = {"forwarding": 1, "rp_filter": 8}
# linux/neighbour.h
_NDTA_NAME = 1
_NDTA_PARMS = 6
_NDTPA_IFINDEX = 1
_NDTPA_RETRANS_TIME = 5


def set_sysctl(change: SetSysctl) -> None:
    """Make the change. Raises OSError."""
    match change:
        case SetSysctl("ipv4/conf", interface, name, value) if name in _IPV4_DEVCONF:
            _set_ipv4(socket.if_nametoindex(interface), _IPV4_DEVCONF[name], value)
        case SetSysctl("ipv6/neigh", interface, "retrans_time_ms", value):
            _set_retrans_time(socket.if_nametoindex(interface), value)
        case SetSysctl(tree, interface, name, value):
            path = Path("/proc/sys/net", tree, interface, name)
            path.write_text(str(value), encoding="ascii")


def _set_ipv4(index: int, setting: int, value: int) -> None:
    settings = attribute(_IFLA_INET_CONF, attribute(setting, struct.pack("=I", value)))
    # struct ifinfomsg: family, type, index, flags and which of them to change.
    link = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, 0, 0)
    request(_RTM_SETLINK, link + attribute(_IFLA_AF_SPEC, attribute(socket.AF_INET, settings)))


def _set_retrans_time(index: int, milliseconds: int) -> None:
    parameters = attribute(_NDTPA_IFINDEX, struct.pack("=I", index))
    parameters += attribute(_NDTPA_RETRANS_TIME, struct.pack("=Q", milliseconds))
    # struct ndtmsg: the family; the kernel's table of IPv6 neighbours has this name.
    table = struct.pack("=Bxxx", socket.AF_INET6) + attribute(_NDTA_NAME, b"ndisc_cache\0")
    request(_RTM_SETNEIGHTBL, table + attribute(_NDTA_PARMS, parameters))
