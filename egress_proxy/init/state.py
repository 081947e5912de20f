"""The pod's network as init reads it: frozen values, with the text that ip(8) prints.

Left out on purpose: routes that depend on a type of service, and rules of other tables than the
reply table. init neither needs nor touches them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import TYPE_CHECKING

from egress_proxy.config.sources import SOURCE_TABLE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from egress_proxy.ip import Address, Network

IPV4 = 4
IPV6 = 6

# linux/rtnetlink.h, RT_TABLE_MAIN.
MAIN_TABLE = 254
# The routes of the pod network before init. Any number without a name in ip-route(8) would do.
REPLY_TABLE = 1091
# The tables that nothing but this project uses.
OWN_TABLES = (REPLY_TABLE, SOURCE_TABLE)
# linux/rtnetlink.h, RT_SCOPE_*: beyond a gateway, and on the link.
SCOPE_UNIVERSE = 0
SCOPE_LINK = 253
# linux/rtnetlink.h, RTPROT_*: who made a route.
STATIC = 4
ROUTER_ADVERTISEMENT = 9


# RFC 4861 section 10, RETRANS_TIMER.
RETRANS_TIME_MS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Ipv4Sysctls:
    """What an interface has below /proc/sys/net/ipv4/conf, by the kernel's names."""

    forwarding: int = 0
    rp_filter: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ipv6Sysctls:
    """What an interface has below /proc/sys/net/ipv6/conf and neigh.

    `accept_ra` and `accept_ra_defrtr` are also 0 if the kernel ignores them because the pod is a
    router.
    """

    forwarding: int = 0
    disable_ipv6: int = 0
    accept_ra: int = 0
    accept_ra_defrtr: int = 0
    retrans_time_ms: int = RETRANS_TIME_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """An interface. `ipv6` is None where the kernel has no IPv6 for it."""

    index: int
    name: str
    mac: str
    up: bool
    carrier: bool
    loopback: bool = False
    ipv4: Ipv4Sysctls = Ipv4Sysctls()
    ipv6: Ipv6Sysctls | None = Ipv6Sysctls()


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceAddress:
    """An address that an interface has.

    `tentative` and `duplicate` are IPv6's (RFC 4862 section 5.4): duplicate address detection is
    running, or has found another owner. `lasting` is false for an address from a router
    advertisement or DHCP.
    """

    interface: str
    address: Address
    length: int
    tentative: bool = False
    duplicate: bool = False
    lasting: bool = True

    @property
    def network(self) -> Network:
        return ip_network((self.address, self.length), strict=False)

    def __str__(self) -> str:
        return f"{self.address}/{self.length} dev {self.interface}"


@dataclass(frozen=True, slots=True)
class Hop:
    """One next hop of a route; without a gateway the destination is on the link."""

    interface: str
    gateway: Address | None = None
    onlink: bool = False
    weight: int = 1

    def __str__(self) -> str:
        via = f"via {self.gateway} " if self.gateway is not None else ""
        return f"{via}dev {self.interface}{' onlink' if self.onlink else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route of one table.

    `scope` is only used for IPv4: the kernel accepts a gateway only if a route of scope link leads
    to it. `metrics` are the properties of the path, such as its MTU, by their names in ip-route(8).
    `protocol` says who made the route, and has no effect.
    """

    destination: Network
    hops: tuple[Hop, ...] = ()
    table: int = MAIN_TABLE
    metric: int = 0
    source: Address | None = None
    kind: str = "unicast"
    scope: int = SCOPE_UNIVERSE
    metrics: tuple[tuple[str, int], ...] = ()
    protocol: int = field(default=STATIC, compare=False)

    @property
    def version(self) -> int:
        return self.destination.version

    @property
    def default(self) -> bool:
        return self.destination.prefixlen == 0

    @property
    def slot(self) -> tuple[Network, int, int]:
        """The key of a route: only one can have it, and another one with it replaces the route."""
        return self.destination, self.table, self.metric

    @property
    def on_link(self) -> bool:
        return self.kind == "unicast" and all(hop.gateway is None for hop in self.hops)

    def over(self, interface: str) -> bool:
        return any(hop.interface == interface for hop in self.hops)

    def __str__(self) -> str:
        words = [] if self.kind == "unicast" else [self.kind]
        words.append("default" if self.default else _network(self.destination))
        if len(self.hops) == 1:
            words.append(str(self.hops[0]))
        if self.table != MAIN_TABLE:
            words.append(f"table {self.table}")
        if self.scope == SCOPE_UNIVERSE and self.version == IPV4 and self.on_link:
            # ip(8) would take it for a route of scope link.
            words.append("scope global")
        if self.source is not None:
            words.append(f"src {self.source}")
        if self.metric:
            words.append(f"metric {self.metric}")
        words.extend(f"{name} {value}" for name, value in self.metrics)
        if len(self.hops) > 1:
            words.extend(f"nexthop {hop} weight {hop.weight}" for hop in self.hops)
        return " ".join(words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Packets from `source`, or that came in over `interface`, are routed by `table`.

    A `foreign` one selects by something that init never uses.
    """

    version: int
    priority: int
    source: Network | None = None
    interface: str = ""
    table: int = REPLY_TABLE
    foreign: bool = False

    def __str__(self) -> str:
        words = [f"priority {self.priority}"]
        if self.source is not None:
            words.append(f"from {_network(self.source)}")
        if self.interface:
            words.append(f"iif {self.interface}")
        if self.foreign:
            words.append("…")
        return " ".join([*words, f"lookup {self.table}"])


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The pod's network as observed; `routes` are those of the main and the reply table.

    `name_servers` are those of resolv.conf. `sysctls_writable` is false where /proc/sys is
    read-only, as in every container that is not privileged. `table_listing` is our nftables
    table as nft prints it, or empty, and `table_refusal` is why nft can't read it or take the one
    that is wanted; both are looked at in redirect mode only.
    """

    links: tuple[Link, ...]
    addresses: tuple[InterfaceAddress, ...] = ()
    routes: tuple[Route, ...] = ()
    rules: tuple[Rule, ...] = ()
    name_servers: tuple[Address, ...] = ()
    missing_capabilities: tuple[str, ...] = ()
    sysctls_writable: bool = False
    table_listing: str = ""
    table_refusal: OSError | None = None

    def link(self, name: str) -> Link | None:
        return next((link for link in self.links if link.name == name), None)

    def assigned(self, address: Address) -> InterfaceAddress | None:
        return next((assigned for assigned in self.addresses if assigned.address == address), None)

    def table(self, table: int, version: int) -> tuple[Route, ...]:
        return tuple(
            route for route in self.routes if (route.table, route.version) == (table, version)
        )


def longest_match(routes: Iterable[Route], target: Address) -> Route | None:
    """The route that the kernel would take to `target`, by prefix length and then by metric."""
    return max(
        (route for route in routes if target in route.destination),
        key=lambda route: (route.destination.prefixlen, -route.metric),
        default=None,
    )


def host(address: Address) -> Network:
    """The network that is `address` alone."""
    return ip_network(address)


def _network(network: Network) -> str:
    alone = network.prefixlen == network.max_prefixlen
    return str(network.network_address if alone else network)
