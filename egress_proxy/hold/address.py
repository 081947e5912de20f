"""The reserved addresses in the kernel, with a lifetime, and their routes (rtnetlink(7)).

Each has a lifetime of the Lease's duration, so that the kernel removes it when this process no
longer runs. Packets from a reserved address follow the routes of `SOURCE_TABLE`; `init` has added
the rule for that, and an `unreachable` default route. When an address is removed, the kernel
deletes the IPv4 routes that prefer it as source; the IPv6 ones stay, but can't be used.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from ipaddress import ip_network
from typing import TYPE_CHECKING

from egress_proxy.config.sources import SOURCE, SOURCE_TABLE
from egress_proxy.errors import Problem
from egress_proxy.ip import family_of
from egress_proxy.pod.rtnetlink import attribute, request

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from egress_proxy.config.sources import Source
    from egress_proxy.ip import Address, Network

# linux/netlink.h
_NLM_F_REPLACE, _NLM_F_CREATE = 0x100, 0x400
# linux/rtnetlink.h
_RTM_NEWADDR, _RTM_DELADDR, _RTM_NEWROUTE, _RTM_DELROUTE = 20, 21, 24, 25
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC, _RTA_TABLE = 1, 4, 5, 7, 15
_RTN_UNICAST, _RTPROT_STATIC, _SCOPE_UNIVERSE, _SCOPE_LINK = 1, 4, 0, 253
_RTNH_F_ONLINK = 0x4
# linux/if_addr.h
_IFA_ADDRESS, _IFA_LOCAL, _IFA_CACHEINFO = 1, 2, 6
_IFA_F_NODAD = 0x02
# Nothing to remove: it is gone already.
_GONE = frozenset({errno.EADDRNOTAVAIL, errno.ESRCH, errno.ENODEV, errno.ENOENT})


class ReservedAddresses:
    """The addresses of `sources` on `interface`. Every method but `present` raises OSError.

    `clock` is that of the deadlines.
    """

    def __init__(
        self,
        interface: str,
        sources: Sequence[Source],
        lifetime_s: int,
        clock: Callable[[], float],
    ) -> None:
        self._interface = interface
        self._sources = sources
        self._lifetime_s = lifetime_s
        self._clock = clock
        self._kept = False

    def present(self) -> bool:
        """Whether the kernel has all of them."""
        return all(_is_local(source.address) for source in self._sources)

    def keep(self, deadline: float) -> bool:
        """Add them, or restart their lifetime; returns whether that was done before `deadline`.

        The kernel adds an address again that it has just removed, even without the flag to create
        it. So the clock is read again afterwards, and an address that was added too late is
        removed.
        """
        if self._clock() > deadline:
            return False
        index = socket.if_nametoindex(self._interface)
        if not self._kept:
            # The kernel takes a route only once it has the route's source. `run` connects as soon
            # as an address is there that is not deprecated, and has to find the routes.
            self._put(index, 0)
        self._put(index, self._lifetime_s)
        self._kept = True
        if self._clock() > deadline:
            self.drop()
            return False
        return True

    def deprecate(self) -> None:
        """Deprecate them: existing connections keep them for a while, new ones do not use them."""
        index = socket.if_nametoindex(self._interface)
        for source in self._sources:
            self._put_address(source, index, 0)

    def drop(self) -> None:
        """Remove them, and their routes."""
        self._kept = False
        try:
            index = socket.if_nametoindex(self._interface)
        except OSError:
            # The interface is gone, and the addresses with it.
            return
        for source in self._sources:
            for destination, gateway in _routes(source):
                _forgive(_RTM_DELROUTE, _route(source, index, destination, gateway))
            _forgive(_RTM_DELADDR, _address(source, index))

    def _put(self, index: int, preferred_s: int) -> None:
        for source in self._sources:
            self._put_address(source, index, preferred_s)
            for destination, gateway in _routes(source):
                _put_route(source, index, destination, gateway)

    def _put_address(self, source: Source, index: int, preferred_s: int) -> None:
        # struct ifa_cacheinfo: preferred and valid lifetime in seconds, and two times of its own.
        lifetimes = struct.pack("=IIII", preferred_s, self._lifetime_s, 0, 0)
        body = _address(source, index) + attribute(_IFA_CACHEINFO, lifetimes)
        request(_RTM_NEWADDR, body, _NLM_F_CREATE | _NLM_F_REPLACE)


def refused(error: OSError, source: Source) -> Problem:
    """The kernel refuses the address or its route."""
    powerless = error.errno in (errno.EPERM, errno.EACCES)
    return Problem(
        variable=SOURCE.name,
        value=str(source),
        reason=f"the kernel refuses the address or its route: {os.strerror(error.errno or 0)}",
        cure="add NET_ADMIN to securityContext.capabilities of egress-hold, and runAsUser: 0"
        if powerless
        else "look at the interface with egress-proxy check",
    )


def _is_local(address: Address) -> bool:
    # Only an address of its own lets a socket bind to it.
    with socket.socket(family_of(address), socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((str(address), 0))
        except OSError:
            return False
    return True


def _routes(source: Source) -> list[tuple[Network, Address | None]]:
    """Destination and gateway of each route: the LAN itself, where it is known, and the rest."""
    everything = ip_network((0, 0)) if source.version == 4 else ip_network("::/0")  # noqa: PLR2004 - IPv4
    routes: list[tuple[Network, Address | None]] = [(everything, source.gateway)]
    if source.length is not None and source.length < source.address.max_prefixlen:
        routes.insert(0, (ip_network((source.address, source.length), strict=False), None))
    return routes


def _address(source: Source, index: int) -> bytes:
    length = source.address.max_prefixlen if source.length is None else source.length
    flags = _IFA_F_NODAD if source.version == 6 else 0  # noqa: PLR2004 - IPv6
    # struct ifaddrmsg: family, prefix length, flags, scope, index.
    header = struct.pack("=BBBBI", family_of(source.address), length, flags, _SCOPE_UNIVERSE, index)
    packed = source.address.packed
    return header + attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)


def _put_route(source: Source, index: int, destination: Network, gateway: Address | None) -> None:
    body = _route(source, index, destination, gateway)
    request(_RTM_NEWROUTE, body, _NLM_F_CREATE | _NLM_F_REPLACE)


def _route(source: Source, index: int, destination: Network, gateway: Address | None) -> bytes:
    on_link = gateway is None and source.version == 4  # noqa: PLR2004 - IPv4
    # struct rtmsg: family, lengths of destination and source, TOS, table (in an attribute),
    # protocol, scope, type, flags.
    body = struct.pack(
        "=BBBBBBBBI",
        family_of(source.address),
        destination.prefixlen,
        0,
        0,
        0,
        _RTPROT_STATIC,
        _SCOPE_LINK if on_link else _SCOPE_UNIVERSE,
        _RTN_UNICAST,
        0 if gateway is None else _RTNH_F_ONLINK,
    )
    body += attribute(_RTA_TABLE, struct.pack("=I", SOURCE_TABLE))
    body += attribute(_RTA_OIF, struct.pack("=I", index))
    body += attribute(_RTA_PREFSRC, source.address.packed)
    if destination.prefixlen:
        body += attribute(_RTA_DST, destination.network_address.packed)
    if gateway is not None:
        body += attribute(_RTA_GATEWAY, gateway.packed)
    return body


def _forgive(kind: int, body: bytes) -> None:
    try:
        request(kind, body)
    except OSError as error:
        if error.errno not in _GONE:
            raise
