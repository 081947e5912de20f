"""Settings of an interface: over netlink where the kernel can, so that /proc/sys may be read-only.

In a container that is not privileged it is. pyroute2 has no call for these messages.
"""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

from egress_proxy.init.steps import SetSysctl

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
# linux/netlink.h
_NLM_F_REQUEST = 0x1
_NLM_F_ACK = 0x4
_NLMSG_ERROR = 2
_HEADER = struct.Struct("=IHHII")


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
    settings = _attribute(_IFLA_INET_CONF, _attribute(setting, struct.pack("=I", value)))
    # struct ifinfomsg: family, type, index, flags and which of them to change.
    link = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, 0, 0)
    _request(_RTM_SETLINK, link + _attribute(_IFLA_AF_SPEC, _attribute(socket.AF_INET, settings)))


def _set_retrans_time(index: int, milliseconds: int) -> None:
    parameters = _attribute(_NDTPA_IFINDEX, struct.pack("=I", index))
    parameters += _attribute(_NDTPA_RETRANS_TIME, struct.pack("=Q", milliseconds))
    # struct ndtmsg: the family; the kernel's table of IPv6 neighbours has this name.
    table = struct.pack("=Bxxx", socket.AF_INET6) + _attribute(_NDTA_NAME, b"ndisc_cache\0")
    _request(_RTM_SETNEIGHTBL, table + _attribute(_NDTA_PARMS, parameters))


def _attribute(kind: int, value: bytes) -> bytes:
    """A `struct nlattr` with its value, filled up to four octets (netlink(7))."""
    octets = struct.pack("=HH", 4 + len(value), kind) + value
    return octets + bytes(-len(octets) % 4)


def _request(kind: int, body: bytes) -> None:
    """Send one message and wait until the kernel has done it."""
    flags = _NLM_F_REQUEST | _NLM_F_ACK
    header = _HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.sendto(header + body, (0, 0))
        answer = kernel.recv(1 << 16)
    _, answered, _, _, _ = _HEADER.unpack_from(answer)
    (error,) = struct.unpack_from("=i", answer, _HEADER.size)
    if answered != _NLMSG_ERROR or error != 0:
        raise OSError(-error, os.strerror(-error))
