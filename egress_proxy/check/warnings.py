"""What is allowed, and yet probably a mistake: contradictions between variables. Pure."""

from __future__ import annotations

from ipaddress import ip_network
from typing import TYPE_CHECKING

from egress_proxy.config.run_variables import LISTEN, SOURCE
from egress_proxy.config.sources import GATEWAY
from egress_proxy.config.sources import SOURCE as RESERVED
from egress_proxy.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from egress_proxy.config.settings import Settings
    from egress_proxy.config.sources import Source


def gateway_warnings(sources: Iterable[Source]) -> Iterator[Problem]:
    """A gateway outside the subnet of its source is allowed, and often a typing error."""
    for source in sources:
        gateway = source.gateway
        if source.length is None or gateway.is_link_local:
            continue
        subnet = ip_network((source.address, source.length), strict=False)
        if gateway not in subnet:
            yield Problem(
                variable=GATEWAY.name,
                value=str(gateway),
                reason=f"not in {subnet}, the subnet of {RESERVED.name}",
                cure="correct it if this is a typing error; otherwise init adds a route to it",
            )


def source_warnings(settings: Settings, reserved: Sequence[Source]) -> Iterator[Problem]:
    """Where `run` contradicts `init`: another source, a listener on the LAN, a missing family."""
    addresses = {source.address for source in reserved}
    if not addresses:
        return
    texts = ", ".join(map(str, sorted(addresses, key=str)))
    chosen = set(settings.source) if isinstance(settings.source, tuple) else None
    if chosen is not None and not chosen <= addresses:
        yield Problem(
            variable=SOURCE.name,
            value=", ".join(map(str, settings.source)),
            reason=f"{RESERVED.name} reserves {texts}",
            cure="write the same address, or auto",
        )
    if settings.listen != "auto":
        for address in settings.listen:
            if address in addresses:
                yield Problem(
                    variable=LISTEN.name,
                    value=str(address),
                    reason="the reserved address: hosts on the LAN can connect to the ports",
                    cure="write auto, or the pod's own address",
                )
    if settings.source == "any":
        return
    versions = {address.version for address in chosen or addresses}
    for destination in settings.destinations:
        host = destination.host
        if not isinstance(host, str) and host.version not in versions:
            yield Problem(
                variable=settings.destinations_from,
                line=destination.line,
                value=str(host),
                reason=f"no IPv{host.version} source address is configured",
                cure=f"add one to {RESERVED.name}, or remove the destination",
            )
