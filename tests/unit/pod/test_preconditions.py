"""The problems of destinations and ports that the pod can't serve."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from egress_proxy.config.address_policy import AddressPolicy
from egress_proxy.config.destinations import Destination
from egress_proxy.config.settings import read_settings
from egress_proxy.pod.facts import Pod
from egress_proxy.pod.preconditions import bind_problem, destination_problems, preconditions

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
def test_nothing_prevents_it(host: Address | str, remote_port: int, sources: set[int]) -> None:
    destination = Destination(80, host, remote_port, 1)
    assert destination_problems("TEXT", destination, sources, DENIALS) == []


def test_everything_that_prevents_it_is_reported() -> None:
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


P = "EGRESS_DNS_PROXY_"
POD = Pod(
    interfaces={
        "lo": (ip_address("127.0.0.1"),),
        "eth0": (ip_address("192.0.2.10"),),
        "macvlan0": (ip_address("203.0.113.99"),),
    },
    autoconfigured=frozenset(),
    reserved=frozenset({ip_address("203.0.113.255")}),
    listens_by_device=False,
    descriptors=1000,
)


def problems(pod: Pod = POD, **variables: str) -> list[str]:
    environ = {f"{P}DESTINATION": "80 198.51.100.1"}
    environ |= {f"{P}{name}": text for name, text in variables.items()}
    return list(map(str, preconditions(read_settings(environ), pod)))


def test_a_pod_in_which_run_works() -> None:
    assert problems() == []


def test_everything_that_keeps_run_from_starting_is_reported_together() -> None:
    without = replace(POD, interfaces={"eth0": POD.interfaces["eth0"]}, descriptors=10)
    interface, limit = problems(without)
    assert interface.startswith("EGRESS_INTERFACE: 'macvlan0': no such interface (there are eth0);")
    assert limit.startswith("the limit of open files is 10, ")


@pytest.mark.parametrize(
    ("variables", "start"),
    [
        ({"DESTINATION": "80 2001:db8::1"}, "line 1: '2001:db8::1': there is no IPv6 source"),
        ({"DESTINATION": "80 192.0.2.10"}, "line 1: '192.0.2.10:80': one of the proxy's own"),
        ({"DESTINATION": "80 192.0.2.10 9153"}, "line 1: '192.0.2.10:9153': one of the proxy's"),
        ({"DESTINATION": "80 203.0.113.255"}, "line 1: '203.0.113.255:80': the network or broad"),
    ],
)
def test_a_destination_that_can_not_be_meant(variables: dict[str, str], start: str) -> None:
    [problem] = problems(POD, **variables)
    assert problem.startswith(f"{P}DESTINATION {start}")


def test_more_connections_than_the_limit_of_open_files_allows() -> None:
    [problem] = problems(MAX_CONNECTIONS="1000")
    assert problem.startswith(f"{P}MAX_CONNECTIONS: '1000': the limit of open files is 1000, ")


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
