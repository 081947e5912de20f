"""What an admin is told of a destination or a port that the pod can't have."""

from __future__ import annotations

import errno
import os
import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from egress_proxy.config.address_policy import AddressPolicy
from egress_proxy.config.destinations import Destination
from egress_proxy.pod.preconditions import bind_problem, destination_problems

if TYPE_CHECKING:
    from egress_proxy.ip import Address

OWN = ip_address("2001:db8::10")
DENIALS = AddressPolicy(own=frozenset({OWN}), listening=frozenset({443}))


@pytest.mark.parametrize(
    ("host", "remote_port", "sources"),
    [
        ("a.example", 443, {socket.AF_INET}),
        (ip_address("2001:db8::1"), 443, set()),
        (ip_address("192.0.2.1"), 443, {socket.AF_INET}),
        (OWN, 444, {socket.AF_INET6}),
    ],
)
def test_nothing_stands_in_the_way(
    host: Address | str, remote_port: int, sources: set[int]
) -> None:
    destination = Destination(80, host, remote_port, 1)
    assert destination_problems("TEXT", destination, sources, DENIALS) == []


def test_all_that_stands_in_the_way_is_told() -> None:
    destination = Destination(80, OWN, 443, 7)
    source, loop = destination_problems("TEXT", destination, {socket.AF_INET}, DENIALS)
    assert str(source) == (
        "TEXT line 7: '2001:db8::10': there is no IPv6 source address to reach it from; "
        "give the egress interface one, or set EGRESS_DNS_PROXY_SOURCE"
    )
    assert str(loop) == (
        "TEXT line 7: '[2001:db8::10]:443': one of the proxy's own listeners is never connected "
        "to; write the remote host's own address"
    )


@pytest.mark.parametrize(
    ("number", "cure"),
    [
        (errno.EADDRINUSE, "another process of the pod listens there: use another port"),
        (errno.EADDRNOTAVAIL, "the pod has no such address: correct EGRESS_DNS_PROXY_LISTEN"),
    ],
)
def test_a_port_that_can_not_be_had(number: int, cure: str) -> None:
    error = OSError(number, os.strerror(number))
    problem = bind_problem("TEXT", "80", ip_address("192.0.2.1"), error, line=3)
    assert str(problem) == f"TEXT line 3: '80': can't listen on 192.0.2.1: {error.strerror}; {cure}"
