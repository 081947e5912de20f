"""What `egress-proxy check` finds out about `run` beyond its text; it changes nothing.

It looks at the source address, asks for the names, knocks at the gateway, sees whether the ports
are free, and, when asked to, connects to each address of each destination from the source address
that `run` would use. Each finding that is not good has its cure.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import TYPE_CHECKING

from egress_proxy.check.report import Finding
from egress_proxy.config.run_variables import DESTINATION
from egress_proxy.dns.resolver import LookupFailedError, Resolver
from egress_proxy.ip import family_of
from egress_proxy.pod import addresses
from egress_proxy.pod.address_monitor import (
    choose_listen_points,
    choose_sources,
    families_to_ask_for,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from egress_proxy.config.address_policy import AddressPolicy
    from egress_proxy.config.destinations import Destination
    from egress_proxy.config.settings import Settings
    from egress_proxy.ip import Address
    from egress_proxy.pod.addresses import ListenPoint

# A gateway that is there answers for its discard port (RFC 863), if only with a RST.
_GATEWAY_PORT = 9
# The kernel gives up on a neighbour after three questions, a second each (arp(7)).
_GATEWAY_TIMEOUT_S = 5.0

_CONNECT_CURES = {
    errno.ECONNREFUSED: "nothing listens there: check the remote port, and the service",
    errno.EHOSTUNREACH: "no answer from the next hop: check EGRESS_GATEWAY and the VLAN",
    errno.ENETUNREACH: "there is no route: check that init has run",
    errno.ETIMEDOUT: "a firewall may drop it: let the source address through",
    errno.EADDRNOTAVAIL: "the source address is not on this pod: check that init has run",
}


async def examine(
    settings: Settings, gateways: Iterable[Address], *, connect: bool
) -> list[Finding]:
    """Everything about `run`. Raises `PlatformError` when there is no source address."""
    interfaces = addresses.read_interfaces()
    sources = choose_sources(settings, interfaces)
    inside = addresses.listen_points(interfaces, settings.interface, by_device=False)
    points = choose_listen_points(settings, inside)
    findings = [
        Finding(
            subject="source",
            state="good",
            detail=", ".join(sources.values()) or "what the kernel chooses",
        )
    ]
    findings += await asyncio.gather(*(_knock(gateway, sources) for gateway in gateways))
    resolver = Resolver(
        settings.nameservers,
        families_to_ask_for(sources, interfaces),
        local_addresses=addresses.pod_network_addresses(interfaces, settings.interface),
    )
    try:
        for destination, (found, finding) in zip(
            settings.destinations,
            await asyncio.gather(
                *(
                    _resolve(resolver, destination, settings.address_policy)
                    for destination in settings.destinations
                )
            ),
            strict=True,
        ):
            findings.append(finding)
            findings += _port_findings(destination, points)
            if connect:
                findings += await _connect(destination, found, sources, settings.connect_timeout_s)
    finally:
        await resolver.close()
    return findings


async def _resolve(
    resolver: Resolver, destination: Destination, policy: AddressPolicy
) -> tuple[Sequence[Address], Finding]:
    """The addresses of `destination`, and what there is to say of them."""
    subject = f"{destination.port} -> {destination}"
    host = destination.host
    if not isinstance(host, str):
        return (host,), Finding(subject=subject, state="good", detail="an address")
    try:
        answer = await resolver.lookup(host)
    except LookupFailedError as error:
        return (), Finding(
            subject=subject,
            state="failed",
            detail=f"{host} does not resolve: {error}",
            cure=f"check the name in {DESTINATION.name}, and the pod's DNS",
        )
    usable = [
        address
        for address in answer.addresses
        if policy.why_denied(address, (destination.remote_port,)) is None
    ]
    if not usable:
        return (), Finding(
            subject=subject,
            state="failed",
            detail=f"{host} leads only to addresses that are never connected to",
            cure="let the zone's owner correct the record",
        )
    told = ", ".join(map(str, usable))
    return usable, Finding(
        subject=subject, state="good", detail=f"{told} (TTL {answer.ttl_s:.0f} s)"
    )


def _port_findings(destination: Destination, points: Iterable[ListenPoint]) -> list[Finding]:
    findings = []
    for point in points:
        try:
            point.bind(destination.port).close()
        except OSError as error:
            findings.append(
                Finding(
                    subject=f"port {destination.port}",
                    state="warning",
                    detail=f"can't listen on {point.address}: {error.strerror}",
                    cure="all is well if it is a running egress-proxy that has it"
                    if error.errno == errno.EADDRINUSE
                    else "see the sysctls and EGRESS_DNS_PROXY_LISTEN in the README",
                )
            )
    return findings


async def _connect(
    destination: Destination,
    found: Iterable[Address],
    sources: dict[int, str],
    timeout_s: float,
) -> list[Finding]:
    findings = []
    loop = asyncio.get_running_loop()
    for address in found:
        subject = f"connect {destination.port} -> {address} port {destination.remote_port}"
        began = loop.time()
        error_number = await _try(address, destination.remote_port, sources, timeout_s)
        if error_number:
            findings.append(
                Finding(
                    subject=subject,
                    state="failed",
                    detail=os.strerror(error_number),
                    cure=_CONNECT_CURES.get(error_number, "see the reason"),
                )
            )
        else:
            took_ms = (loop.time() - began) * 1000
            findings.append(
                Finding(subject=subject, state="good", detail=f"connected in {took_ms:.1f} ms")
            )
    return findings


async def _knock(gateway: Address, sources: dict[int, str]) -> Finding:
    """Whether `gateway` is there: any answer is a good one, and so is none but the neighbour's."""
    error_number = await _try(gateway, _GATEWAY_PORT, sources, _GATEWAY_TIMEOUT_S)
    if error_number in _CONNECT_CURES and error_number not in (
        errno.ECONNREFUSED,
        errno.ETIMEDOUT,
    ):
        return Finding(
            subject="gateway",
            state="failed",
            detail=f"{gateway}: {os.strerror(error_number)}",
            cure=_CONNECT_CURES[error_number],
        )
    return Finding(subject="gateway", state="good", detail=f"{gateway} is there")


async def _try(address: Address, port: int, sources: dict[int, str], timeout_s: float) -> int:
    """Connect from the source address, and hang up; the error number, or 0."""
    family = family_of(address)
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        try:
            if family in sources:
                sock.bind((sources[family], 0))
            async with asyncio.timeout(timeout_s):
                await asyncio.get_running_loop().sock_connect(sock, (str(address), port))
        except TimeoutError:
            return errno.ETIMEDOUT
        except OSError as error:
            return error.errno or errno.EIO
    return 0
