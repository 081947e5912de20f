"""States of a pod's network, written as ip(8) would show them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from egress_proxy.config.sources import Source
from egress_proxy.init.settings import InitSettings
from egress_proxy.init.state import (
    IPV6,
    MAIN_TABLE,
    SCOPE_LINK,
    SCOPE_UNIVERSE,
    Hop,
    InterfaceAddress,
    Ipv6Sysctls,
    Link,
    Route,
    Rule,
    State,
)
from egress_proxy.init.steps import (
    Change,
    DropAddress,
    DropRoute,
    DropRule,
    PutAddress,
    PutRoute,
    PutRule,
    PutTable,
    RestoreTable,
    SetLink,
    SetSysctl,
)

LO = Link(index=1, name="lo", mac="", up=True, carrier=True, loopback=True)
ETH0 = Link(index=2, name="eth0", mac="02:00:00:00:00:02", up=True, carrier=True)
MACVLAN0 = Link(index=3, name="macvlan0", mac="02:00:00:00:00:03", up=False, carrier=False)
NET1 = replace(MACVLAN0, name="net1", up=True, carrier=True)


def settings(source: str, gateway: str, interface: str = "macvlan0") -> InitSettings:
    """Settings for comma lists of the same order."""
    return InitSettings(
        interface=interface,
        sources=tuple(map(_source, source.split(","), gateway.split(","))),
        mode="dns-proxy",
        gateway_required=False,
        debug=False,
        log_format="",
    )


def _source(text: str, gateway: str) -> Source:
    address, slash, length = text.partition("/")
    return Source(ip_address(address), int(length) if slash else None, ip_address(gateway))


def assigned(text: str) -> InterfaceAddress:
    """``192.0.2.10/24 dev eth0``, and a flag behind it."""
    address, _, name, *flags = text.split()
    interface = ip_interface(address)
    return InterfaceAddress(
        interface=name,
        address=interface.ip,
        length=interface.network.prefixlen,
        tentative="tentative" in flags,
        duplicate="dadfailed" in flags,
        lasting="dynamic" not in flags,
    )


def route(text: str, *, six: bool = False) -> Route:
    """A line of ``ip route``, with ``table``; ``six`` makes ``default`` an IPv6 one."""
    words = text.split()
    if words[0] == "default":
        words[0] = "::/0" if six else "0.0.0.0/0"
    head, *ways = " ".join(words[1:]).split("nexthop")
    fields = _fields(head)
    return Route(
        destination=ip_network(words[0]),
        hops=tuple(_hop(_fields(way)) for way in ways) or (_hop(fields),),
        table=int(fields.get("table", MAIN_TABLE)),
        metric=int(fields.get("metric", 0)),
        source=ip_address(fields["src"]) if "src" in fields else None,
        scope=_scope(text) if "." in words[0] else SCOPE_UNIVERSE,
        metrics=(("mtu", int(fields["mtu"])),) if "mtu" in fields else (),
        protocol=int(fields.get("proto", 4)),
    )


def _fields(text: str) -> dict[str, str]:
    words = text.replace("onlink", "onlink 1").split()
    return dict(zip(words[::2], words[1::2], strict=True))


def _scope(text: str) -> int:
    """What ip(8) makes of an IPv4 route."""
    return SCOPE_UNIVERSE if "via" in text or "scope global" in text else SCOPE_LINK


def _hop(fields: dict[str, str]) -> Hop:
    return Hop(
        fields["dev"],
        ip_address(fields["via"]) if "via" in fields else None,
        onlink="onlink" in fields,
        weight=int(fields.get("weight", 1)),
    )


def state(text: str, *links: Link, name_servers: str = "", sysctls_writable: bool = False) -> State:
    """Routes, and addresses behind the word ``address``, one a line; ``-6 default`` is IPv6's."""
    addresses, routes = [], []
    for line in filter(None, map(str.strip, text.splitlines())):
        words = line.removeprefix("-6 ")
        if words.split()[0] == "address":
            addresses.append(assigned(words.removeprefix("address ")))
        else:
            routes.append(route(words, six=words != line))
    return State(
        links=(LO, *(links or (ETH0, MACVLAN0))),
        addresses=(assigned("127.0.0.1/8 dev lo"), assigned("::1/128 dev lo"), *addresses),
        routes=tuple(routes),
        name_servers=tuple(map(ip_address, name_servers.split())),
        sysctls_writable=sysctls_writable,
    )


def after(observed: State, change: Change) -> State:  # noqa: C901, PLR0911 - one for each change
    """What the kernel would show after `change`, as far as a plan depends on it."""
    match change:
        case SetLink(interface, up):
            links = tuple(
                replace(link, up=up, carrier=up) if link.name == interface else link
                for link in observed.links
            )
            return replace(observed, links=links)
        case PutAddress(address):
            return _with_address(observed, address)
        case DropAddress(address):
            addresses = tuple(one for one in observed.addresses if one != address)
            connected = _connected(address)
            routes = tuple(one for one in observed.routes if one != connected)
            return replace(observed, addresses=addresses, routes=routes)
        case PutRoute(wanted):
            return replace(observed, routes=_put(observed.routes, wanted))
        case DropRoute(wanted):
            routes = tuple(one for one in observed.routes if one != wanted)
            return replace(observed, routes=routes)
        case PutRule(rule):
            return replace(observed, rules=(*observed.rules, rule))
        case DropRule(rule):
            return replace(observed, rules=_without(observed.rules, rule))
        case SetSysctl():
            return _with_sysctl(observed, change)
        case PutTable(table):
            return replace(observed, table_listing=table.listing())
        case RestoreTable(listing):
            return replace(observed, table_listing=listing)


def _with_address(observed: State, address: InterfaceAddress) -> State:
    made = replace(observed, addresses=(*observed.addresses, address))
    if address.length == address.address.max_prefixlen:
        return made
    return replace(made, routes=(*made.routes, _connected(address)))


def _connected(address: InterfaceAddress) -> Route:
    return Route(
        destination=address.network,
        hops=(Hop(address.interface),),
        metric=256 if address.address.version == IPV6 else 0,
        source=None if address.address.version == IPV6 else address.address,
        scope=SCOPE_UNIVERSE if address.address.version == IPV6 else SCOPE_LINK,
    )


def _put(routes: tuple[Route, ...], wanted: Route) -> tuple[Route, ...]:
    for number, one in enumerate(routes):
        if one.slot == wanted.slot:
            return (*routes[:number], wanted, *routes[number + 1 :])
    return (*routes, wanted)


def _without(rules: tuple[Rule, ...], rule: Rule) -> tuple[Rule, ...]:
    return tuple(one for one in rules if one != rule)


def _with_sysctl(observed: State, change: SetSysctl) -> State:
    def changed(link: Link) -> Link:
        if change.interface not in (link.name, "all"):
            return link
        value: dict[str, Any] = {change.name: change.value}
        if change.tree.startswith("ipv4"):
            return replace(link, ipv4=replace(link.ipv4, **value))
        return replace(link, ipv6=replace(link.ipv6 or Ipv6Sysctls(), **value))

    return replace(observed, links=tuple(map(changed, observed.links)))
