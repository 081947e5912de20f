"""Translates between the messages of pyroute2 and the values of `state`."""

from __future__ import annotations

import socket
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any, TypeAlias

from egress_proxy.init.state import (
    IPV4,
    IPV6,
    MAIN_TABLE,
    OWN_TABLES,
    Hop,
    InterfaceAddress,
    Ipv4Sysctls,
    Ipv6Sysctls,
    Link,
    Route,
    Rule,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from egress_proxy.ip import Address

# pyroute2 has no types: a message is a dictionary with a `get` that knows attributes too.
Message: TypeAlias = Any

# linux/if.h
_IFF_UP = 0x1
_IFF_LOOPBACK = 0x8
_IFF_LOWER_UP = 0x10000
# linux/if_addr.h
_IFA_F_DADFAILED = 0x08
_IFA_F_TENTATIVE = 0x40
_IFA_F_PERMANENT = 0x80
# linux/rtnetlink.h
_RTM_F_CLONED = 0x200
_RTNH_F_ONLINK = 0x4
SCOPE_NOWHERE = 255
_TO_TABLE = 1
_KINDS = {1: "unicast", 6: "blackhole", 7: "unreachable", 8: "prohibit", 9: "throw"}
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


def read_link(message: Message) -> Link:
    flags = message["flags"]
    return Link(
        index=message["index"],
        name=message.get("ifname"),
        mac=message.get("address") or "",
        up=bool(flags & _IFF_UP),
        carrier=bool(flags & _IFF_LOWER_UP),
        loopback=bool(flags & _IFF_LOOPBACK),
        ipv4=_ipv4_sysctls(message),
        ipv6=_ipv6_sysctls(message),
    )


def _ipv4_sysctls(message: Message) -> Ipv4Sysctls:
    values = message.get(("af_spec", "af_inet")) or {}
    return Ipv4Sysctls(forwarding=values.get("forwarding", 0), rp_filter=values.get("rp_filter", 0))


def _ipv6_sysctls(message: Message) -> Ipv6Sysctls | None:
    values = message.get(("af_spec", "af_inet6", "inet6_conf"))
    times = message.get(("af_spec", "af_inet6", "inet6_cacheinfo"))
    if values is None or times is None:
        return None
    accept_ra = values["accept_ra"]
    # A router ignores advertisements unless this is 2 (ip-sysctl, accept_ra).
    hears = accept_ra > 1 or (accept_ra == 1 and not values["forwarding"])
    return Ipv6Sysctls(
        forwarding=values["forwarding"],
        disable_ipv6=values["disable_ipv6"],
        accept_ra=accept_ra if hears else 0,
        accept_ra_defrtr=values["accept_ra_defrtr"] if hears else 0,
        retrans_time_ms=times["retrans_time"],
    )


def read_address(message: Message, names: Mapping[int, str]) -> InterfaceAddress:
    flags = message.get("flags")
    return InterfaceAddress(
        interface=_name(names, message["index"]),
        # IFA_LOCAL is ours; on a point-to-point link IFA_ADDRESS is the other side's.
        address=ip_address(message.get("local") or message.get("address")),
        length=message["prefixlen"],
        tentative=bool(flags & _IFA_F_TENTATIVE),
        duplicate=bool(flags & _IFA_F_DADFAILED),
        lasting=bool(flags & _IFA_F_PERMANENT),
    )


def is_wanted(message: Message) -> bool:
    return (
        message.get("table") in (MAIN_TABLE, *OWN_TABLES)
        and message["type"] in _KINDS
        and not message["tos"]
        and not message["flags"] & _RTM_F_CLONED
    )


def read_route(message: Message, names: Mapping[int, str]) -> Route:
    any_network = "::" if message["family"] == socket.AF_INET6 else "0.0.0.0"
    metrics = message.get("metrics")
    source = message.get("prefsrc")
    kind = _KINDS[message["type"]]
    return Route(
        destination=ip_network((message.get("dst") or any_network, message["dst_len"])),
        # The kernel says of an IPv6 route to nowhere that it leads over the loopback interface.
        hops=tuple(_hops(message, names)) if kind == "unicast" else (),
        table=message.get("table"),
        metric=message.get("priority") or 0,
        source=None if source is None else ip_address(source),
        kind=kind,
        scope=message["scope"],
        metrics=tuple(_metrics(metrics)) if metrics else (),
        protocol=message["proto"],
    )


def _hops(message: Message, names: Mapping[int, str]) -> Iterator[Hop]:
    for hop in message.get("multipath") or ():
        yield _hop(hop, _name(names, hop["oif"]), hop["hops"] + 1)
    if message.get("oif"):
        yield _hop(message, _name(names, message.get("oif")), 1)


def _hop(message: Message, interface: str, weight: int) -> Hop:
    via = message.get("via")
    gateway = message.get("gateway") or (via and via["addr"])
    return Hop(
        interface=interface,
        gateway=ip_address(gateway) if gateway else None,
        onlink=bool(message["flags"] & _RTNH_F_ONLINK),
        weight=weight,
    )


def _metrics(message: Message) -> Iterable[tuple[str, int]]:
    return sorted(
        (name.removeprefix("RTAX_").lower(), value)
        for name, value in message["attrs"]
        if isinstance(value, int)
    )


def read_rules(message: Message) -> Iterator[Rule]:
    """The rule that `message` is, if it is one of init's tables."""
    selectors = (
        "FRA_DST",
        "FRA_FWMARK",
        "FRA_OIFNAME",
        "FRA_L3MDEV",
        "FRA_UID_RANGE",
        "FRA_IP_PROTO",
        "FRA_SPORT_RANGE",
        "FRA_DPORT_RANGE",
        "FRA_TUN_ID",
    )
    if message.get("table") in OWN_TABLES and message["action"] == _TO_TABLE:
        source = message.get("src")
        yield Rule(
            version=IPV6 if message["family"] == socket.AF_INET6 else IPV4,
            priority=message.get("priority") or 0,
            source=ip_network((source, message["src_len"])) if source else None,
            interface=message.get("iifname") or "",
            table=message.get("table"),
            foreign=bool(
                message["tos"] or message["flags"] or any(map(message.get_attr, selectors))
            ),
        )


def address_fields(assigned: InterfaceAddress) -> dict[str, Any]:
    return {
        "index": _index(assigned.interface),
        "family": FAMILIES[assigned.address.version],
        "address": str(assigned.address),
        "prefixlen": assigned.length,
    }


def route_fields(route: Route) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "family": FAMILIES[route.version],
        "dst": str(route.destination.network_address),
        "dst_len": route.destination.prefixlen,
        "table": route.table,
        "priority": route.metric,
        "type": route.kind,
        "proto": route.protocol,
        "scope": route.scope,
    }
    if route.source is not None:
        fields["prefsrc"] = str(route.source)
    if route.metrics:
        fields["metrics"] = dict(route.metrics)
    hops = [_hop_fields(route, hop) for hop in route.hops]
    return fields | (hops[0] if len(hops) == 1 else {"multipath": hops} if hops else {})


def _hop_fields(route: Route, hop: Hop) -> dict[str, Any]:
    fields: dict[str, Any] = {"oif": _index(hop.interface)}
    if hop.onlink:
        fields["flags"] = _RTNH_F_ONLINK
    if len(route.hops) > 1:
        fields["hops"] = hop.weight - 1
    if hop.gateway is not None:
        fields |= _gateway_field(route.version, hop.gateway)
    return fields


def _gateway_field(version: int, gateway: Address) -> dict[str, Any]:
    if gateway.version == version:
        return {"gateway": str(gateway)}
    return {"via": {"family": FAMILIES[gateway.version], "addr": str(gateway)}}


def rule_fields(rule: Rule) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "family": FAMILIES[rule.version],
        "table": rule.table,
        "priority": rule.priority,
    }
    if rule.source is not None:
        fields |= {"src": str(rule.source.network_address), "src_len": rule.source.prefixlen}
    if rule.interface:
        fields["iifname"] = rule.interface
    return fields


def _index(interface: str) -> int:
    return socket.if_nametoindex(interface)


def _name(names: Mapping[int, str], index: int) -> str:
    """An interface's name; one that came after the links were listed has none yet."""
    return names.get(index, f"if{index}")
