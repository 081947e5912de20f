"""What `egress-proxy check` finds out about `run` beyond its preconditions; it changes nothing.

It probes the gateway, tries whether the ports are free, looks the names up, and, with `--connect`,
connects to each address of each destination from the source address that `run` would use. A
finding that is not good has its cure where there is one.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from egress_proxy.check.report import Finding
from egress_proxy.config.run_variables import DESTINATION
from egress_proxy.control import admin_client
from egress_proxy.dns.answer import Lookup, LookupFailedError
from egress_proxy.dns.resolver import Resolver
from egress_proxy.errors import PlatformError
from egress_proxy.ip import family_of
from egress_proxy.pod.address_monitor import choose_sources, families_to_ask_for
from egress_proxy.pod.addresses import pod_network_addresses
from egress_proxy.pod.preconditions import listeners, policy_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from egress_proxy.config.address_policy import AddressPolicy
    from egress_proxy.config.destinations import Destination
    from egress_proxy.config.settings import Settings
    from egress_proxy.ip import Address
    from egress_proxy.pod.facts import Pod

# The discard port (RFC 863): a gateway answers a connection to it, if only with a RST.
_GATEWAY_PORT = 9
# The kernel gives up on a neighbour after three requests, one per second (arp(7)).
_GATEWAY_TIMEOUT_S = 5.0

# Destinations that are connected to at the same time: each may take the connect timeout.
_AT_ONCE = 64

_CONNECT_CURES = {
    errno.ECONNREFUSED: "nothing listens there: check the remote port, and the service",
    errno.EHOSTUNREACH: "no router answers, or one says that there is no such host: check the "
    "address, EGRESS_GATEWAY and the VLAN",
    errno.ENETUNREACH: "this pod or a router on the way has no route: check that init has run, "
    "then the network behind the gateway",
    errno.ETIMEDOUT: "a firewall may drop it: allow the source address",
    errno.EADDRNOTAVAIL: "the source address is not on this pod: check that init has run",
}

_ANY_SOURCE = "any: the kernel chooses, there is no reserved address"


class Attempt(Protocol):
    """Connects from the source address, and closes again."""

    async def __call__(self, address: Address, port: int, timeout_s: float) -> int:
        """The error number, or 0."""


class Examined(NamedTuple):
    """All findings, and the usable addresses of each destination."""

    findings: list[Finding]
    addresses: list[tuple[Destination, Sequence[Address]]]


async def examine(
    settings: Settings, pod: Pod, gateways: Iterable[Address], *, connect: bool
) -> Examined:
    """What is found about `run` beyond its preconditions, which must hold."""
    sources = choose_sources(settings, pod)
    here = frozenset(str(address) for entries in pod.interfaces.values() for address in entries)
    standby = settings.shared and not here.issuperset(sources.values())
    if standby:
        # Nothing can be tried from an address that another pod has.
        gateways, connect = (), False
    findings = [
        Finding(
            subject="source",
            state="good",
            detail=(", ".join(sources.values()) or _ANY_SOURCE)
            + (", which this pod does not have now: it is a standby" if standby else ""),
        )
    ]
    attempt = partial(_attempt, sources=sources)
    findings += await asyncio.gather(*(probe_gateway(gateway, attempt) for gateway in gateways))
    findings += _listener_findings(settings, pod)
    resolver = Resolver(
        settings.nameservers,
        families_to_ask_for(sources, pod.interfaces),
        local_addresses=pod_network_addresses(pod.interfaces, settings.interface),
    )
    policy = policy_in(settings, pod)
    connecting = asyncio.Semaphore(_AT_ONCE)

    addresses: list[tuple[Destination, Sequence[Address]]] = []

    async def try_out(destination: Destination) -> list[Finding]:
        found, finding = await resolve(resolver.lookup, destination, policy)
        addresses.append((destination, found))
        if not connect:
            return [finding]
        async with connecting:
            timeout_s = settings.connect_timeout_s
            return [finding, *await connect_to(destination, found, attempt, timeout_s)]

    try:
        for each in await asyncio.gather(*map(try_out, settings.destinations)):
            findings += each
    finally:
        await resolver.close()
    return Examined(findings, sorted(addresses, key=lambda entry: entry[0].port))


async def resolve(
    lookup: Lookup, destination: Destination, policy: AddressPolicy
) -> tuple[Sequence[Address], Finding]:
    """The usable addresses of `destination`, and the finding about them."""
    subject = f"{destination.port} -> {destination}"
    host = destination.host
    if not isinstance(host, str):
        return (host,), Finding(subject=subject, state="good", detail="a literal address")
    try:
        answer = await lookup(host)
    except LookupFailedError as error:
        return (), Finding(
            subject=subject,
            state="failed",
            detail=f"{host} does not resolve: {error}",
            cure=f"correct the name in {DESTINATION.name}, or the pod's DNS",
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
            detail=f"{host} has only addresses that are never connected to",
            cure="ask the owner of the DNS zone to correct the record",
        )
    told = ", ".join(map(str, usable))
    return usable, Finding(
        subject=subject, state="good", detail=f"{told} (TTL {answer.ttl_s:.0f} s)"
    )


def _listener_findings(settings: Settings, pod: Pod) -> list[Finding]:
    """Ports that can't be bound, unless a running `egress-proxy run` has them."""
    refused = [
        (listener, error)
        for listener in listeners(settings, pod)
        if (error := listener.try_to_bind()) is not None
    ]
    if not refused:
        return []
    served = _served_ports(settings)
    findings = []
    if served:
        findings.append(
            Finding(
                subject="ports",
                state="good",
                detail="egress-proxy run is running in this pod and has them",
            )
        )
    for listener, error in refused:
        if error.errno == errno.EADDRINUSE and listener.port in served:
            continue
        problem = listener.problem(error)
        findings.append(
            Finding(
                subject=f"port {listener.port}",
                state="failed",
                detail=problem.reason,
                cure=problem.cure,
            )
        )
    return findings


def _served_ports(settings: Settings) -> frozenset[int]:
    """The ports of the `egress-proxy run` that runs in this pod; empty when none answers."""
    if settings.admin_listen is None:
        return frozenset()
    try:
        page = admin_client.fetch(settings.admin_listen)
    except PlatformError:
        return frozenset()
    ports = {destination.listener for destination in page.status.destinations}
    return frozenset({settings.admin_listen.port, *ports})


async def connect_to(
    destination: Destination, found: Iterable[Address], attempt: Attempt, timeout_s: float
) -> list[Finding]:
    """A finding for each address of `destination`, tried one after the other."""
    findings = []
    loop = asyncio.get_running_loop()
    for address in found:
        subject = f"connect {destination.port} -> {address} port {destination.remote_port}"
        began = loop.time()
        error_number = await attempt(address, destination.remote_port, timeout_s)
        if error_number:
            findings.append(
                Finding(
                    subject=subject,
                    state="failed",
                    detail=os.strerror(error_number),
                    cure=_CONNECT_CURES.get(error_number, ""),
                )
            )
        else:
            took_ms = (loop.time() - began) * 1000
            findings.append(
                Finding(subject=subject, state="good", detail=f"connected in {took_ms:.1f} ms")
            )
    return findings


async def probe_gateway(gateway: Address, attempt: Attempt) -> Finding:
    """Whether `gateway` answers.

    Any TCP answer proves it, and so does silence once ARP or ND has answered.
    """
    error_number = await attempt(gateway, _GATEWAY_PORT, _GATEWAY_TIMEOUT_S)
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
    return Finding(subject="gateway", state="good", detail=f"{gateway} answers")


async def _attempt(
    address: Address, port: int, timeout_s: float, *, sources: dict[int, str]
) -> int:
    """Connect from the source address, and close; the error number, or 0."""
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
