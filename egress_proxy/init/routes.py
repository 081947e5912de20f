"""The routes and rules of one family: replies, what stays reachable, and the default route.

The routes of the pod network are copied to the reply table, and packets from the pod's own
addresses are routed by it. So replies go back the way they came, without knowledge of the cluster's
address ranges, and the reverse path filter (RFC 3704) accepts every packet.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from ipaddress import IPv6Address, ip_network
from typing import TYPE_CHECKING

from egress_proxy.config.sources import SOURCE_TABLE
from egress_proxy.init.state import (
    IPV6,
    MAIN_TABLE,
    REPLY_TABLE,
    ROUTER_ADVERTISEMENT,
    SCOPE_LINK,
    SCOPE_UNIVERSE,
    STATIC,
    Hop,
    Route,
    Rule,
    host,
    longest_match,
)
from egress_proxy.init.steps import DropRoute, DropRule, PutRoute, PutRule, Step

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from egress_proxy.config.sources import Source
    from egress_proxy.init.state import Link, State
    from egress_proxy.ip import Address, Network

# After the local table's rule (0) and before the main table's (32766), ip-rule(8).
RULE_PRIORITY = 1091
SOURCE_RULE_PRIORITY = 1092
# CNIs and router advertisements make default routes of metric 1024 (IP6_RT_PRIO_USER in
# linux/ipv6_route.h). The lowest metric wins even where advertisements can't be switched off.
IPV6_DEFAULT_METRIC = 1
_IPV6_METRIC = 1024


# The worst metric, so that any other route of the table is preferred. While `hold` does not have
# the reserved address, nothing leaves by the pod network with it.
_UNREACHABLE_METRIC = 4_278_198_272


def route_steps(state: State, egress: Link, source: Source, *, shared: bool) -> Iterator[Step]:
    """The steps for the family of `source`, in order.

    `shared`: only what has the reserved address as its source leaves over the egress interface, by
    routes that `hold` makes.
    """
    family = _Family(state, egress, source)
    return family.shared_steps() if shared else family.steps()


def foreign_uses(state: State, egress: Link, source: Source) -> tuple[Route | Rule, ...]:
    """The routes and rules of the reply table that init can't have made."""
    family = _Family(state, egress, source)
    rules = [
        rule for rule in state.rules if (rule.version, rule.table) == (source.version, REPLY_TABLE)
    ]
    own = [rule for rule in rules if rule.priority == RULE_PRIORITY and not rule.foreign]
    # Until its first rule is there, init has only copied routes of the main table, which still
    # has them.
    copied = {
        replace(route, table=REPLY_TABLE)
        for route in (*map(family.pod_part, family.main), *family.kept)
        if route is not None
    }
    return (
        *(rule for rule in rules if rule not in own),
        *(
            route
            for route in family.reply
            if route.protocol != STATIC or not (own or route in copied)
        ),
    )


class _Family:
    def __init__(self, state: State, egress: Link, source: Source) -> None:
        self.state = state
        self.egress = egress
        self.source = source
        self.main = state.table(MAIN_TABLE, source.version)
        self.reply = state.table(REPLY_TABLE, source.version)
        self.sourced = state.table(SOURCE_TABLE, source.version)
        self.metric = _IPV6_METRIC if source.version == IPV6 else 0
        self.link_scope = SCOPE_UNIVERSE if source.version == IPV6 else SCOPE_LINK

    def steps(self) -> Iterator[Step]:
        yield from self._reply_steps()
        yield from self._put_all(self.kept)
        yield from self._put_all(self.links)
        yield from self._default_steps()

    def shared_steps(self) -> Iterator[Step]:
        yield from self._reply_steps()
        source = host(self.source.address)
        nowhere = Route(
            destination=_network(self.source.gateway, 0),
            table=SOURCE_TABLE,
            metric=_UNREACHABLE_METRIC,
            kind="unreachable",
        )
        yield from self._put_all([nowhere])
        yield from self._put_rules(
            [
                Rule(
                    version=self.source.version,
                    priority=SOURCE_RULE_PRIORITY,
                    source=source,
                    table=SOURCE_TABLE,
                )
            ]
        )

    @cached_property
    def pod_network(self) -> dict[object, Route]:
        """The routes that the main table had before init, by slot."""
        found: dict[object, Route] = {}
        for route in (*self.main, *self.reply):
            part = self.pod_part(route)
            if part is not None:
                # The first of a slot is the one that the kernel uses.
                found.setdefault(part.slot, part)
        return found

    def pod_part(self, route: Route) -> Route | None:
        """`route` of the main table, without its next hops over the egress interface."""
        elsewhere = {self.egress.name, *(link.name for link in self.state.links if link.loopback)}
        hops = tuple(hop for hop in route.hops if hop.interface not in elsewhere)
        if route.kind != "unicast" or not hops:
            return None
        return replace(route, hops=hops, table=MAIN_TABLE)

    def _reply_steps(self) -> Iterator[Step]:
        wanted = {route.slot: route for route in self.kept} | self.pod_network
        # The kernel takes a gateway only once it has a route to it.
        ordered = sorted(wanted.values(), key=lambda route: not route.on_link)
        yield from self._put_all(
            replace(route, table=REPLY_TABLE, protocol=STATIC) for route in ordered
        )
        yield from self._put_rules(self._rules() if wanted else ())

    def _put_rules(self, wanted: Iterable[Rule]) -> Iterator[Step]:
        for rule in wanted:
            if rule not in self.state.rules:
                yield Step(PutRule(rule), DropRule(rule))

    def _rules(self) -> Iterator[Rule]:
        version = self.source.version
        for assigned in self.state.addresses:
            if (
                assigned.address.version == version
                and assigned.interface != self.egress.name
                and not _local(assigned.address)
            ):
                yield Rule(version=version, priority=RULE_PRIORITY, source=host(assigned.address))
        yield Rule(version=version, priority=RULE_PRIORITY, interface=self.egress.name)

    @cached_property
    def links(self) -> tuple[Route, ...]:
        """The on-link routes over the egress interface that neither exist nor come with a step."""
        wanted = []
        if self.source.length is not None:
            prefix = self._link_route(self.source.address, self.source.length)
            if not any(_within(prefix, route) for route in self.specific if self._leads_out(route)):
                wanted.append(prefix)
        nearest = longest_match([*self.specific, *wanted], self.source.gateway)
        known = nearest is not None and self._leads_out(nearest)
        if not (known or _local(self.source.gateway)):
            wanted.append(self._link_route(self.source.gateway, self.source.gateway.max_prefixlen))
        return tuple(wanted)

    def _leads_out(self, route: Route) -> bool:
        """Whether it is on-link over the egress interface: the kernel requires it for a gateway."""
        return route.on_link and route.over(self.egress.name) and route.scope == self.link_scope

    @cached_property
    def specific(self) -> tuple[Route, ...]:
        """All but default routes: those of the main table and those that come with an address."""
        there = [route for route in self.main if not route.default]
        if self.state.assigned(self.source.address) is None and self.source.length is not None:
            there.append(self._link_route(self.source.address, self.source.length))
        if not self.egress.up:
            there.extend(
                self._link_route(assigned.address, assigned.length)
                for assigned in self.state.addresses
                if assigned.interface == self.egress.name
                and assigned.address.version == self.source.version
            )
        return tuple(there)

    def _link_route(self, address: Address, length: int) -> Route:
        return Route(
            destination=_network(address, length),
            hops=(Hop(self.egress.name),),
            metric=self.metric,
            source=self.source.address,
            scope=self.link_scope,
        )

    @cached_property
    def kept(self) -> tuple[Route, ...]:
        """Host routes to what must stay reachable over the pod network."""
        found = []
        remaining = (*self.specific, *self.links)
        for target in self._pod_targets():
            before = longest_match(self.pod_network.values(), target)
            now = longest_match(remaining, target)
            if before is None or (now is not None and self.pod_part(now) is not None):
                continue
            # A gateway is on the link.
            hops = tuple(
                replace(hop, gateway=None, onlink=False) if hop.gateway == target else hop
                for hop in before.hops
            )
            kept = replace(
                before,
                destination=host(target),
                hops=hops,
                metric=self.metric,
                protocol=STATIC,
            )
            found.append(replace(kept, scope=self.link_scope) if kept.on_link else kept)
        return tuple(found)

    def _pod_targets(self) -> Iterator[Address]:
        """The name servers and the gateways of the pod network."""
        gateways = [hop.gateway for route in self.pod_network.values() for hop in route.hops]
        own = {assigned.address for assigned in self.state.addresses}
        never = {None, self.source.address, self.source.gateway, *own}
        for target in dict.fromkeys((*self.state.name_servers, *gateways)):
            if target is None or target in never or _local(target):
                continue
            if target.version == self.source.version:
                yield target

    def _default_steps(self) -> Iterator[Step]:
        wanted = Route(
            destination=_network(self.source.gateway, 0),
            hops=(Hop(self.egress.name, self.source.gateway),),
            metric=IPV6_DEFAULT_METRIC if self.source.version == IPV6 else 0,
            source=self.source.address,
        )
        kept = (wanted, self._in_slot(wanted))
        yield from self._put_all([wanted])
        ways_out = [route for route in self.main if route.default and route.kind == "unicast"]
        for route in ways_out:
            if route not in kept and not self._would_return(route):
                yield Step(DropRoute(route), PutRoute(route))

    def _would_return(self, route: Route) -> bool:
        """Whether the next router advertisement would add it again; its metric is worse."""
        hearing = {
            link.name
            for link in self.state.links
            if link.ipv6 is not None and link.ipv6.accept_ra_defrtr
        }
        return (
            route.protocol == ROUTER_ADVERTISEMENT
            and not self.state.sysctls_writable
            and all(hop.interface in hearing for hop in route.hops)
        )

    def _put_all(self, wanted: Iterable[Route]) -> Iterator[Step]:
        for route in wanted:
            existing = self._in_slot(route)
            if existing != route:
                undo = DropRoute(route) if existing is None else PutRoute(existing)
                yield Step(PutRoute(route), undo)

    def _in_slot(self, wanted: Route) -> Route | None:
        """The route itself if it is there, otherwise the one that it would replace."""
        every = (*self.main, *self.reply, *self.sourced)
        occupants = [route for route in every if route.slot == wanted.slot]
        return wanted if wanted in occupants else next(iter(occupants), None)


def _local(address: Address) -> bool:
    """Needs no route: loopback, or on whatever link it is seen on (RFC 4291 section 2.5.6)."""
    return address.is_loopback or (isinstance(address, IPv6Address) and address.is_link_local)


def _network(address: Address, length: int) -> Network:
    return ip_network((address, length), strict=False)


def _within(inner: Route, outer: Route) -> bool:
    wide = outer.destination
    return inner.destination.prefixlen >= wide.prefixlen and inner.destination[0] in wide
