"""What `check` says of names, gateways and connections; nothing is asked and nothing is sent."""

from __future__ import annotations

import asyncio
import errno
import os
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from egress_proxy.check.preflight import connect_to, probe_gateway, resolve
from egress_proxy.config.address_policy import AddressPolicy
from egress_proxy.config.destinations import Destination
from egress_proxy.dns.answer import Answer, LookupFailedError

if TYPE_CHECKING:
    from egress_proxy.check.report import Finding
    from egress_proxy.ip import Address

FIRST, SECOND = ip_address("203.0.113.1"), ip_address("203.0.113.2")
NAMED = Destination(port=8443, host="web.example.com", remote_port=443, line=1)
GATEWAY = ip_address("192.0.2.1")


class Network:
    """Addresses that answer a connection as `errors` say; the others accept it."""

    def __init__(self, errors: dict[Address, int]) -> None:
        self.errors = errors
        self.tried: list[tuple[Address, int]] = []

    async def attempt(self, address: Address, port: int, timeout_s: float) -> int:
        assert timeout_s > 0
        self.tried.append((address, port))
        return self.errors.get(address, 0)


def resolve_to(*addresses: Address) -> tuple[tuple[Address, ...], Finding]:
    async def lookup(name: str) -> Answer:
        assert name == NAMED.host
        if not addresses:
            reason = "Domain name not found"
            raise LookupFailedError(reason)
        return Answer(addresses, 30)

    found, finding = asyncio.run(resolve(lookup, NAMED, AddressPolicy()))
    return tuple(found), finding


def test_a_name_is_good_with_the_addresses_that_may_be_used() -> None:
    found, finding = resolve_to(FIRST, ip_address("127.0.0.1"), SECOND)
    assert found == (FIRST, SECOND)
    assert (finding.subject, finding.state) == ("8443 -> web.example.com:443", "good")
    assert finding.detail == "203.0.113.1, 203.0.113.2 (TTL 30 s)"


@pytest.mark.parametrize(
    ("addresses", "detail", "cure"),
    [
        (
            (),
            "web.example.com does not resolve: Domain name not found",
            "correct the name in EGRESS_DNS_PROXY_DESTINATION, or the pod's DNS",
        ),
        (
            (ip_address("169.254.169.254"),),
            "web.example.com has only addresses that are never connected to",
            "ask the owner of the DNS zone to correct the record",
        ),
    ],
)
def test_a_name_without_a_usable_address_has_failed(
    addresses: tuple[Address, ...], detail: str, cure: str
) -> None:
    found, finding = resolve_to(*addresses)
    assert found == ()
    assert (finding.state, finding.detail, finding.cure) == ("failed", detail, cure)


def test_an_address_is_not_looked_up() -> None:
    async def lookup(name: str) -> Answer:
        raise AssertionError(name)

    literal = Destination(port=80, host=FIRST, remote_port=80, line=1)
    found, finding = asyncio.run(resolve(lookup, literal, AddressPolicy()))
    assert (tuple(found), finding.state) == ((FIRST,), "good")


def test_each_address_of_a_destination_is_tried_and_has_its_finding() -> None:
    network = Network({FIRST: errno.ECONNREFUSED})
    findings = asyncio.run(connect_to(NAMED, (FIRST, SECOND), network.attempt, 1.0))
    assert network.tried == [(FIRST, 443), (SECOND, 443)]
    assert [(one.subject, one.state) for one in findings] == [
        ("connect 8443 -> 203.0.113.1 port 443", "failed"),
        ("connect 8443 -> 203.0.113.2 port 443", "good"),
    ]
    assert findings[0].detail == os.strerror(errno.ECONNREFUSED)
    assert findings[0].cure == "nothing listens there: check the remote port, and the service"


def test_an_error_without_a_known_cure_is_reported_without_one() -> None:
    network = Network({FIRST: errno.EIO})
    [finding] = asyncio.run(connect_to(NAMED, (FIRST,), network.attempt, 1.0))
    assert (finding.state, finding.detail, finding.cure) == ("failed", os.strerror(errno.EIO), "")


@pytest.mark.parametrize("error_number", [0, errno.ECONNREFUSED, errno.ETIMEDOUT])
def test_a_gateway_that_resets_or_drops_is_there(error_number: int) -> None:
    network = Network({GATEWAY: error_number})
    finding = asyncio.run(probe_gateway(GATEWAY, network.attempt))
    assert (finding.subject, finding.state) == ("gateway", "good")
    assert finding.detail == "192.0.2.1 answers"


@pytest.mark.parametrize("error_number", [errno.EHOSTUNREACH, errno.ENETUNREACH])
def test_a_gateway_that_no_neighbour_answers_for_has_failed(error_number: int) -> None:
    network = Network({GATEWAY: error_number})
    finding = asyncio.run(probe_gateway(GATEWAY, network.attempt))
    assert finding.state == "failed"
    assert finding.detail == f"192.0.2.1: {os.strerror(error_number)}"
    assert finding.cure
