"""The plan: the steps from the observed state to the settings. Pure; empty if nothing is missing.

The result is the same whatever an interrupted run has left, because all state is in the kernel: the
pod network as it was before init is what the main table still has of it, and what the reply table
already has. Therefore the reply table is filled before the main table loses anything, and the
default route over the egress interface is added before another one is removed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from egress_proxy.init.forwarding import forwarding_steps
from egress_proxy.init.routes import route_steps
from egress_proxy.init.state import IPV4, IPV6, RETRANS_TIME_MS, InterfaceAddress
from egress_proxy.init.steps import (
    DropAddress,
    PutAddress,
    PutTable,
    RestoreTable,
    SetLink,
    SetSysctl,
    Step,
    sysctl_steps,
)
from egress_proxy.nft.table import same

if TYPE_CHECKING:
    from collections.abc import Iterator

    from egress_proxy.init.settings import InitSettings
    from egress_proxy.init.state import Link, State


# How long IPv6 duplicate address detection waits for an answer, after a delay of up to 1 s; a LAN
# answers within a few milliseconds. The value is unusual, so that one that init left behind is
# recognized, and a whole number of ticks at any CONFIG_HZ (100, 250, 300, 1000).
_FAST_RETRANS_MS = 220


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The steps in the order in which they are made.

    `rules` come first: from then on nothing is forwarded that they do not name. `link` makes the
    interface carry frames. `ipv6_addresses` start the kernel's duplicate address detection,
    `ipv4_addresses` wait for ours, and `routes` come when no duplicate was found. The last of them
    switch forwarding on.
    """

    rules: tuple[Step, ...]
    link: tuple[Step, ...]
    ipv6_addresses: tuple[Step, ...]
    ipv4_addresses: tuple[Step, ...]
    routes: tuple[Step, ...]

    @property
    def steps(self) -> tuple[Step, ...]:
        return self.rules + self.link + self.ipv6_addresses + self.ipv4_addresses + self.routes


def make_plan(state: State, settings: InitSettings) -> Plan:
    """The steps from `state` to `settings`. Raises KeyError without the egress interface."""
    link = state.link(settings.interface)
    if link is None:
        raise KeyError(settings.interface)
    ipv6_addresses = tuple(_address_steps(state, settings, IPV6))
    fast_dad, restore = _fast_dad_steps(link, needed=bool(ipv6_addresses))
    routes = (
        step
        for source in settings.sources
        for step in route_steps(state, link, source, shared=settings.shared)
    )
    return Plan(
        rules=tuple(_rule_steps(state, settings)),
        link=tuple(_link_steps(state, link, settings)),
        ipv6_addresses=fast_dad + ipv6_addresses,
        ipv4_addresses=tuple(_address_steps(state, settings, IPV4)),
        routes=(*restore, *routes, *forwarding_steps(state, settings)),
    )


def _rule_steps(state: State, settings: InitSettings) -> Iterator[Step]:
    if settings.ruleset is None:
        return
    table = settings.ruleset.table()
    before = state.table_listing
    if not same(table.listing(), before):
        yield Step(PutTable(table, replaces=bool(before)), RestoreTable(before))


def _link_steps(state: State, egress: Link, settings: InitSettings) -> Iterator[Step]:
    if state.sysctls_writable:
        ipv6_wanted = any(source.version == IPV6 for source in settings.sources)
        for link in state.links:
            if link.ipv6 is None:
                continue
            if link == egress:
                # An advertisement would add addresses and a default route that are not reserved.
                yield from _off(link, "accept_ra", link.ipv6.accept_ra)
                if ipv6_wanted:
                    yield from _off(link, "disable_ipv6", link.ipv6.disable_ipv6)
            elif ipv6_wanted and not link.loopback:
                # The pod network may need advertisements for its addresses, but not for a route.
                yield from _off(link, "accept_ra_defrtr", link.ipv6.accept_ra_defrtr)
    if not egress.up:
        yield Step(SetLink(egress.name, up=True), SetLink(egress.name, up=False))


def _off(link: Link, name: str, before: int) -> tuple[Step, ...]:
    return sysctl_steps("ipv6/conf", link.name, name, before=before, wanted=0)


def _fast_dad_steps(link: Link, *, needed: bool) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    """Shorten the kernel's DAD retransmission time; and the steps that restore it afterwards.

    Each part is empty if it is not needed. A value that an interrupted run left is restored too.
    """
    before = RETRANS_TIME_MS if link.ipv6 is None else link.ipv6.retrans_time_ms
    usual = RETRANS_TIME_MS if before == _FAST_RETRANS_MS else before
    quick = SetSysctl("ipv6/neigh", link.name, "retrans_time_ms", _FAST_RETRANS_MS)
    slow = replace(quick, value=usual)
    fast_dad = (Step(quick, slow),) if needed and before != _FAST_RETRANS_MS else ()
    restore = (Step(slow, quick),) if needed or before == _FAST_RETRANS_MS else ()
    return fast_dad, restore


def _address_steps(state: State, settings: InitSettings, version: int) -> Iterator[Step]:
    """Add the address; one that the interface already has keeps its prefix length."""
    if settings.shared:
        # `hold` takes it.
        return
    for source in settings.sources:
        assigned = state.assigned(source.address)
        if source.version != version or (assigned is not None and not assigned.duplicate):
            continue
        if assigned is not None:
            # The kernel never repeats a failed detection, and the other owner may be gone.
            yield Step(DropAddress(assigned), PutAddress(assigned))
        length = source.address.max_prefixlen if source.length is None else source.length
        wanted = InterfaceAddress(
            interface=settings.interface, address=source.address, length=length
        )
        yield Step(PutAddress(wanted), DropAddress(wanted))
