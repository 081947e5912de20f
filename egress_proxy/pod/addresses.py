"""The pod's own addresses: which ones to listen on, and which one remotes see.

The functions `read_…` ask the kernel (getifaddrs(3) and netdevice(7), through psutil, and
/proc/net/if_inet6); `ListenPoint.bind` binds a port; everything else is pure.
"""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil

from egress_proxy import netlink
from egress_proxy.errors import PlatformError, Problem
from egress_proxy.ip import family_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from egress_proxy.ip import Address

    Interfaces = Mapping[str, tuple[Address, ...]]

LOOPBACK = "lo"
POD_INTERFACE = "eth0"

# linux/rtnetlink.h and linux/if_addr.h
_RTM_GETADDR = 22
_IFADDRMSG, _IFADDRMSG_FLAGS = 8, 2
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFA_F_DEPRECATED = 0x20
_IFA_F_PERMANENT = 0x80

_FAMILIES = (socket.AF_INET, socket.AF_INET6)


def read_interfaces(
    ask: Callable[[], Mapping[str, Sequence[Any]]] = psutil.net_if_addrs,
) -> dict[str, tuple[Address, ...]]:
    """The addresses of every interface; an interface without any has an empty tuple."""
    return {
        name: tuple(
            # An IPv6 link-local address has its scope after a %.
            ipaddress.ip_address(entry.address.partition("%")[0])
            for entry in entries
            if entry.family in _FAMILIES
        )
        for name, entries in ask().items()
    }


class InterfaceState(NamedTuple):
    """All interfaces with their addresses, and the names of those that are down.

    `reserved` are the network and broadcast addresses of their networks.
    """

    interfaces: Interfaces
    down: frozenset[str] = frozenset()
    reserved: frozenset[Address] = frozenset()


def read_interface_state() -> InterfaceState:
    """The state now. Raises `OSError`."""
    return InterfaceState(read_interfaces(), read_down_interfaces(), read_reserved_addresses())


def read_reserved_addresses(
    ask: Callable[[], Mapping[str, Sequence[Any]]] = psutil.net_if_addrs,
) -> frozenset[Address]:
    """The network and broadcast addresses of all networks of the pod: no host has one."""
    found: set[Address] = set()
    for entries in ask().values():
        for entry in entries:
            if entry.family in _FAMILIES and entry.netmask:
                found.update(_reserved(entry.address.partition("%")[0], entry.netmask))
    return frozenset(found)


def _reserved(address: str, netmask: str) -> Iterator[Address]:
    if ":" in netmask:
        netmask = str(int(ipaddress.IPv6Address(netmask)).bit_count())
    network = ipaddress.ip_network(f"{address}/{netmask}", strict=False)
    # A network of one or two addresses reserves none (RFC 3021, RFC 6164).
    if network.prefixlen < network.max_prefixlen - 1:
        yield network.network_address
        if network.version == 4:  # noqa: PLR2004 - IPv6 has no broadcast
            yield network.broadcast_address


def read_down_interfaces(
    ask: Callable[[], Mapping[str, Any]] = psutil.net_if_stats,
) -> frozenset[str]:
    """The interfaces that can't send: down, or without a carrier (IFF_RUNNING)."""
    return frozenset(name for name, stats in ask().items() if not stats.isup)


def read_autoconfigured_addresses(table: Path = Path("/proc/net/if_inet6")) -> frozenset[Address]:
    """IPv6 addresses from router advertisements, which no administrator reserved (RFC 4862)."""
    try:
        lines = table.read_text("ascii").splitlines()
    except FileNotFoundError:
        # A kernel without IPv6.
        return frozenset()
    # Address, interface index, prefix length, scope, flags, name; all but the name in hexadecimal.
    fields = (line.split() for line in lines)
    return frozenset(
        ipaddress.IPv6Address(int(address, 16))
        for address, _, _, _, flags, _ in fields
        if not int(flags, 16) & _IFA_F_PERMANENT
    )


def read_deprecated_addresses() -> frozenset[Address]:
    """Addresses that new connections must not use (RFC 4862 section 5.5.4). Raises OSError.

    getifaddrs(3) does not report them.
    """
    found = set()
    # struct ifaddrmsg: family, prefix length, flags, scope, index; then the attributes.
    for body in netlink.dump(socket.NETLINK_ROUTE, _RTM_GETADDR, bytes(_IFADDRMSG)):
        values = netlink.attributes(body[_IFADDRMSG:])
        packed = values.get(_IFA_LOCAL) or values.get(_IFA_ADDRESS)
        if packed and body[_IFADDRMSG_FLAGS] & _IFA_F_DEPRECATED:
            found.add(ipaddress.ip_address(packed))
    return frozenset(found)


def source_addresses(
    interfaces: Interfaces,
    egress_interface: str,
    variable: str,
    autoconfigured: Collection[Address] = frozenset(),
) -> tuple[Address, ...]:
    """The addresses that remote hosts see: the egress interface's first global one of each family.

    Those in `autoconfigured` are left out, because they are not reserved. Raises `PlatformError`
    when there is none; `variable` is the one in which the administrator can set another source.
    """
    cure = f"check that init has run, or set {variable} to an address, or to any for a trial"
    if egress_interface not in interfaces:
        present = ", ".join(sorted(interfaces))
        raise PlatformError(
            Problem(
                variable="EGRESS_INTERFACE",
                value=egress_interface,
                reason=f"no such interface (there are {present})",
                cure=cure,
            )
        )
    found: dict[int, Address] = {}
    for address in interfaces[egress_interface]:
        if not address.is_link_local and address not in autoconfigured:
            found.setdefault(address.version, address)
    if not found:
        raise PlatformError(
            Problem(
                variable="EGRESS_INTERFACE",
                value=egress_interface,
                reason="the interface has no address to send from",
                cure=cure,
            )
        )
    return tuple(found.values())


class ListenPoint(NamedTuple):
    """An address to listen on, for clients that arrive through `device` (empty: through any)."""

    address: Address
    device: str

    def bind(self, port: int) -> socket.SocketType:
        """A non-blocking TCP socket, bound to `port` and not listening yet. Raises `OSError`."""
        family = family_of(self.address)
        sock = socket.SocketType(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if self.device:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self.device.encode())
            sock.bind((str(self.address), port))
        except BaseException:
            sock.close()
            raise
        return sock


def listen_points(
    interfaces: Interfaces, egress_interface: str, *, by_device: bool
) -> tuple[ListenPoint, ...]:
    """Every address of the pod except the egress interface's, so that the LAN can't use the pod.

    Linux accepts a packet for any of its addresses on any interface (RFC 1122 section 3.3.4.2, the
    weak host model), so a LAN host that routes the pod's address to the egress interface could
    connect. With `by_device`, an address is listened on only for clients that arrive through its
    own interface or from inside the pod. Link-local addresses are left out: clients in a cluster do
    not use them.
    """
    taken = interfaces.get(egress_interface, ())
    points = []
    for name, addresses in sorted(interfaces.items()):
        for address in addresses:
            if address.is_link_local or address in taken or name == egress_interface:
                continue
            devices = (name, LOOPBACK) if by_device else ("",)
            points += [ListenPoint(address, device) for device in devices]
    # Two interfaces may have the same address, and the second listener on it would fail.
    return tuple(dict.fromkeys(points))


def pod_network_addresses(interfaces: Interfaces, egress_interface: str) -> tuple[Address, ...]:
    """The pod's own address of each family, on the cluster's network.

    eth0 is the interface of the cluster's network (CNI, and every runtime's name for it); without
    it, the first other one. Empty without `egress_interface`: there is only one default route.
    """
    if egress_interface not in interfaces:
        return ()
    found: dict[int, Address] = {}
    for name in sorted(interfaces, key=lambda name: name != POD_INTERFACE):
        if name in {LOOPBACK, egress_interface}:
            continue
        for address in interfaces[name]:
            if not address.is_link_local:
                found.setdefault(address.version, address)
    return tuple(found.values())


def can_listen_by_device() -> bool:
    """Whether this process may bind a socket to an interface; from Linux 5.7 on, every one may."""
    with socket.socket() as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, LOOPBACK.encode())
        except PermissionError:
            return False
    return True
