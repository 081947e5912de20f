"""Switches forwarding on, for the address families that redirect mode translates.

Clients' packets come in over the pod network and leave over the egress interface. The rules that
drop all other packets come before (`plan.Plan.rules`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from egress_proxy.init.state import IPV4, IPV6
from egress_proxy.init.steps import sysctl_steps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from egress_proxy.init.settings import InitSettings
    from egress_proxy.init.state import State
    from egress_proxy.init.steps import Step

# RFC 3704 section 2.4: accept a packet whose source is reachable over any interface. What a client
# sends is for the outside by then, so the strict filter would expect it on the egress interface.
# The kernel applies the higher of this and net.ipv4.conf.all.rp_filter, and 2 is the highest.
_LOOSE = 2


def forwarding_steps(state: State, settings: InitSettings) -> Iterator[Step]:
    versions = frozenset() if settings.ruleset is None else settings.ruleset.versions
    pod_links = [link for link in state.links if not link.loopback]
    if IPV4 in versions:
        for link in pod_links:
            yield from sysctl_steps(
                "ipv4/conf", link.name, "forwarding", before=link.ipv4.forwarding, wanted=1
            )
            if link.name != settings.interface:
                yield from sysctl_steps(
                    "ipv4/conf", link.name, "rp_filter", before=link.ipv4.rp_filter, wanted=_LOOSE
                )
    if IPV6 in versions:
        yield from sysctl_steps(
            "ipv6/conf", "all", "forwarding", before=int(ipv6_forwards(state)), wanted=1
        )


def ipv6_forwards(state: State) -> bool:
    """Whether it is on. IPv6 has one switch for all interfaces, only in /proc/sys (ip-sysctl)."""
    return all(link.loopback or link.ipv6 is None or link.ipv6.forwarding for link in state.links)
