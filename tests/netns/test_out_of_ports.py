"""A source address has one port for each connection to the same remote, until it has none left."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from time import monotonic
from typing import TYPE_CHECKING

import pytest

from bench.clocks import process_seconds
from tests.support.deployment import Deployment
from tests.support.lab import OUTSIDE, POD
from tests.support.peers import reset
from tests.support.session import Session
from tests.support.waiting import TIMEOUT_S

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from tests.support.lab import Lab
    from tests.support.processes import Process

PORTS = 4
WAITING = 12


@pytest.fixture
def deployment(lab: Lab) -> Iterator[Deployment]:
    with Deployment(lab) as deployed:
        deployed.take_source()
        lab.pod.sysctl("ipv4/ip_local_port_range", f"40000 {40000 + PORTS - 1}")
        yield deployed


@pytest.fixture
def proxy(deployment: Deployment) -> Process:
    process = deployment.start(EGRESS_DNS_PROXY_DESTINATION=f"80 {OUTSIDE.v4}")
    process.wait_for("listener.opened")
    return process


@pytest.fixture
def cleanup() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_out_of_ports_listeners_pause_and_resume(
    deployment: Deployment, proxy: Process, cleanup: ExitStack
) -> None:
    """Sessions go on meanwhile, hardly any time is spent, and the remote is not blamed."""
    sessions = [cleanup.enter_context(deployment.connect(80)) for _ in range(PORTS)]
    clients = [cleanup.enter_context(knock(deployment, 0))]
    assert proxy.wait_for("listener.paused")["error"] == "Cannot assign requested address"
    began, spent = monotonic(), process_seconds(proxy.pid)
    clients += [cleanup.enter_context(knock(deployment, number)) for number in range(1, WAITING)]
    # One has its turn and is reset each time that the command tries again, after 250 ms.
    for client in clients[: WAITING // 2]:
        with suppress(ConnectionResetError):
            assert client.recv(1) == b""
        for session in sessions:
            session.round_trip()
    lasted = monotonic() - began
    assert process_seconds(proxy.pid) - spent < 0.05 * lasted
    told = [record for record in proxy.records if record["event"] == "listener.paused"]
    # The first was written before the clock was looked at.
    assert len(told) <= 2 + lasted

    # A connection that ends with a RST gives its port back at once.
    reset(sessions.pop().upstream)
    upstream = cleanup.enter_context(deployment.accept(80))
    Session(clients[upstream.recv(1)[0]], upstream).round_trip()
    assert [record for record in proxy.records if record["event"] == "upstream.failed"] == []
    assert proxy.stderr == ""


def knock(deployment: Deployment, number: int) -> socket.socket:
    """A client that says its number, if it is not reset before it can."""
    client = deployment.lab.client.open_socket()
    client.settimeout(TIMEOUT_S)
    with suppress(ConnectionResetError, BrokenPipeError):
        client.connect((POD.v4, 80))
        client.sendall(bytes([number]))
    return client


def test_other_destinations_have_their_ports(deployment: Deployment, cleanup: ExitStack) -> None:
    """Ports run out for one remote; clients of others are served meanwhile, not after its own."""
    destinations = f"80 {OUTSIDE.v4}\n100 {OUTSIDE.v4}"
    proxy = deployment.start(EGRESS_DNS_PROXY_DESTINATION=destinations)
    for port in (80, 100):
        proxy.wait_for("listener.opened", listener=port)
    for _ in range(PORTS):
        cleanup.enter_context(deployment.connect(80))
    for number in range(5 * WAITING):
        cleanup.enter_context(knock(deployment, number))
    proxy.wait_for("listener.paused")
    deployment.connect(100).close()
    refused = [record for record in proxy.records if record.get("reason") == "error"]
    assert len(refused) < WAITING
