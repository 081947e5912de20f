"""What does not make `init` fail, but an administrator may not expect. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from egress_proxy.config import sources as names
from egress_proxy.config import variables
from egress_proxy.errors import Problem
from egress_proxy.init.problems import no_carrier, set_sysctl
from egress_proxy.init.state import IPV6, REPLY_TABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from egress_proxy.config.sources import Source
    from egress_proxy.init.settings import InitSettings
    from egress_proxy.init.state import Link, State


def find_warnings(state: State, settings: InitSettings) -> tuple[Problem, ...]:
    """What does not make init fail, but an administrator may not expect."""
    link = state.link(settings.interface)
    if link is None:
        return ()
    warnings: list[Problem] = []
    if link.up and not link.carrier:
        warnings.append(no_carrier(link.name))
    for source in settings.sources:
        warnings.extend(_way_back_warnings(state, link, source))
        warnings.extend(_address_warnings(state, link, source))
    warnings.extend(_advertisement_warnings(state, link, settings))
    return tuple(warnings)


def _way_back_warnings(state: State, link: Link, source: Source) -> Iterator[Problem]:
    pod_addresses = [
        assigned
        for assigned in state.addresses
        if assigned.address.version == source.version
        and assigned.interface != link.name
        and not (assigned.address.is_loopback or assigned.address.is_link_local)
    ]
    way_back = any(
        route.default
        and route.version == source.version
        and any(hop.interface != link.name for hop in route.hops)
        for route in state.routes
    )
    if pod_addresses and not way_back:
        yield Problem(
            reason=f"the pod network has no IPv{source.version} default route to copy to table "
            f"{REPLY_TABLE}: clients get replies only where another of its routes leads to them",
            cure="leave the default route of the pod to the pod network (Multus: no default-route)",
        )


def _address_warnings(state: State, link: Link, source: Source) -> Iterator[Problem]:
    for assigned in state.addresses:
        if (
            assigned.interface == link.name
            and assigned.address.version == source.version
            and assigned.address != source.address
            and not assigned.address.is_link_local
        ):
            yield Problem(
                variable=names.SOURCE.name,
                value=str(source),
                reason=f"{link.name} has the address {assigned.address} too",
                cure=f"set EGRESS_DNS_PROXY_SOURCE to {source.address} in the main container, "
                "so that remotes never see the other one",
            )


def _advertisement_warnings(state: State, link: Link, settings: InitSettings) -> Iterator[Problem]:
    """An address that is advertised is never a source of `run`; a route may take traffic away.

    A pod without IPv6 has neither.
    """
    if link.ipv6 is None or link.ipv6.disable_ipv6 or not link.ipv6.accept_ra:
        return
    uses_ipv6 = any(source.version == IPV6 for source in settings.sources) or any(
        held.address.version == IPV6
        and held.interface != link.name
        and not (held.address.is_loopback or held.address.is_link_local)
        for held in state.addresses
    )
    if uses_ipv6 and not state.sysctls_writable:
        yield Problem(
            variable=variables.INTERFACE.name,
            value=link.name,
            reason="routers on the LAN may add IPv6 addresses and routes of their own to it "
            "(the routes of init win), and /proc/sys is read-only",
            cure=set_sysctl(link, "accept_ra"),
        )
