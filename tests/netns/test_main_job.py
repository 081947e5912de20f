"""The main job: the pod of the README between a client of the cluster and hosts outside it."""

from __future__ import annotations

import hashlib
import os
import random
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.deployment import (
    AS_DOCUMENTED,
    BOTH_DATA_PLANES,
    ENDPOINTS,
    KERNEL,
    LEAST_PRIVILEGE,
    Deployment,
    PodSecurity,
)
from tests.support.lab import CLIENT, OUTSIDE, POD, RESERVED
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyroute2 import IPRoute

    from tests.support.lab import Lab
    from tests.support.network import Namespace
    from tests.support.processes import Process

MIB = 1 << 20
BULK_OCTETS = 32 * MIB
# From a byte to well over a socket's buffer.
WRITE_OCTETS = (1, 512 * 1024)

_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")

SECURITY = pytest.mark.parametrize(
    "security",
    [AS_DOCUMENTED, LEAST_PRIVILEGE, KERNEL],
    ids=["as documented", "least privilege", "kernel"],
)


@pytest.fixture(params=BOTH_DATA_PLANES)
def security(request: pytest.FixtureRequest) -> PodSecurity:
    return BOTH_DATA_PLANES[request.param]


@pytest.fixture
def deployment(lab: Lab, security: PodSecurity) -> Iterator[Deployment]:
    with Deployment(lab, security) as deployed:
        deployed.init()
        yield deployed


@pytest.fixture
def proxy(deployment: Deployment) -> Iterator[Process]:
    process = deployment.start()
    process.wait_for("daemon.ready", listeners=len(ENDPOINTS))
    yield process
    # The second signal ends it at once.
    process.terminate()
    process.wait_for("daemon.draining")
    assert process.stop() == 0
    assert process.stderr == ""


@SECURITY
def test_the_outside_sees_the_reserved_address_on_every_destination(
    deployment: Deployment, proxy: Process
) -> None:
    for port, (address, remote_port) in ENDPOINTS.items():
        with deployment.connect(port) as (client, upstream):
            client_address, seen = client.getsockname(), upstream.getpeername()
            client.sendall(b"question")
            assert upstream.recv(8) == b"question"
            upstream.sendall(b"answer")
            assert client.recv(6) == b"answer"
        assert seen[0] == RESERVED.v4
        record = proxy.wait_for("connection.closed", listener=port)
        assert record["client"] == f"{CLIENT.v4}:{client_address[1]}"
        assert record["address"] == f"{address}:{remote_port}"
        assert record["source"] == f"{RESERVED.v4}:{seen[1]}"
        octets = (record["bytes_to_upstream"], record["bytes_to_client"])
        assert octets == ((None, None) if deployment.by_kernel else (8, 6))
        assert record["reason"] == "finished"


def test_names_resolve_over_the_pod_network_after_the_default_route_has_moved(
    deployment: Deployment, proxy: Process
) -> None:
    def way_out(ip: IPRoute) -> int:
        (route,) = ip.route("get", dst=OUTSIDE.v4)
        return int(route.get_attr("RTA_OIF"))

    pod = deployment.lab.pod
    assert pod.netlink(way_out) == pod.index("macvlan0")
    # init asks nothing, so these are the questions of run, which started after it.
    assert deployment.dns.asked("example.com", "A")
    assert deployment.dns.asked("web.example.com", "A")
    resolved = proxy.wait_for("destination.resolved", destination="example.com")
    assert resolved["addresses"] == [OUTSIDE.v4]


@pytest.mark.usefixtures("proxy")
def test_the_lan_finds_nothing_on_the_reserved_address(deployment: Deployment) -> None:
    for port in ENDPOINTS:
        with pytest.raises(ConnectionRefusedError):
            deployment.lab.gateway.connect(RESERVED.v4, port)


@pytest.mark.usefixtures("proxy")
@pytest.mark.parametrize("rp_filter", [0, 2])
def test_the_lan_finds_nothing_on_the_pods_own_address(deployment: Deployment) -> None:
    """A packet for eth0's address that comes in over macvlan0 (RFC 1122 section 3.3.4.2).

    A strict reverse-path filter drops it; the kernel's own setting and systemd's do not.
    """
    gateway = deployment.lab.gateway
    gateway.route(POD, RESERVED)
    with pytest.raises(OSError, match=r"refused|timed out"):
        gateway.connect(POD.v4, 80, timeout_s=2).close()


@SECURITY
def test_bulk_passes_both_ways_at_once_unchanged(deployment: Deployment, proxy: Process) -> None:
    with deployment.connect(8443) as ends, ThreadPoolExecutor(max_workers=4) as pool:
        sent = [pool.submit(send_bulk, end, seed) for seed, end in enumerate(ends)]
        received = [pool.submit(receive_bulk, end) for end in reversed(list(ends))]
        for there, here in zip(sent, received, strict=True):
            assert here.result() == (BULK_OCTETS, there.result())
    record = proxy.wait_for("connection.closed", listener=8443)
    octets = (record["bytes_to_upstream"], record["bytes_to_client"])
    assert octets == ((None, None) if deployment.by_kernel else (BULK_OCTETS, BULK_OCTETS))
    assert record["reason"] == "finished"


def send_bulk(end: socket.socket, seed: int) -> str:
    """Write random octets in writes of random sizes, then finish; returns their SHA-256."""
    source = random.Random(seed)  # noqa: S311 - the same in each run is what a test wants
    digest = hashlib.sha256()
    left = BULK_OCTETS
    while left:
        octets = source.randbytes(min(left, source.randint(*WRITE_OCTETS)))
        end.sendall(octets)
        digest.update(octets)
        left -= len(octets)
    end.shutdown(socket.SHUT_WR)
    return digest.hexdigest()


def receive_bulk(end: socket.socket) -> tuple[int, str]:
    """Read to the end; returns the number of octets and their SHA-256."""
    count, digest = 0, hashlib.sha256()
    while octets := end.recv(MIB):
        count += len(octets)
        digest.update(octets)
    return count, digest.hexdigest()


@pytest.mark.parametrize("client_first", [True, False], ids=["client first", "upstream first"])
def test_one_side_finishes_and_still_gets_all_of_the_other(
    deployment: Deployment, proxy: Process, *, client_first: bool
) -> None:
    with deployment.connect(100) as (client, upstream):
        first, second = (client, upstream) if client_first else (upstream, client)
        first.sendall(b"all I have")
        first.shutdown(socket.SHUT_WR)
        assert read_to_end(second) == b"all I have"
        for word in (b"one ", b"two ", b"three"):
            second.sendall(word)
            assert first.recv(5) == word
        second.shutdown(socket.SHUT_WR)
        assert first.recv(1) == b""
        assert proxy.wait_for("connection.closed")["reason"] == "finished"


def read_to_end(end: socket.socket) -> bytes:
    with end.makefile("rb") as stream:
        return stream.read()


def test_a_client_that_vanishes_ends_at_the_idle_timeout(deployment: Deployment) -> None:
    """Its link is cut, so that neither FIN nor RST ever comes."""
    process = deployment.start(EGRESS_DNS_PROXY_IDLE_TIMEOUT="500ms")
    process.wait_for("daemon.ready", listeners=len(ENDPOINTS))
    with deployment.connect(80) as session:
        session.round_trip()
        cut(deployment.lab.client)
        # The kernel looks for flows that have expired once in a while.
        closed = process.wait_for("connection.closed", timeout_s=100)
        assert closed["reason"] == "idle_timeout"
        if deployment.by_kernel:
            # It resets who sends, and nobody before.
            session.upstream.sendall(b"?")
        with pytest.raises(ConnectionResetError):
            session.upstream.recv(1)


@pytest.mark.parametrize("security", [LEAST_PRIVILEGE])
def test_both_sides_are_kept_alive_for_as_long_as_they_last(deployment: Deployment) -> None:
    """So that one that vanishes while nothing is under way is found out in two minutes."""
    process = deployment.start(EGRESS_DNS_PROXY_IDLE_TIMEOUT="0")
    process.wait_for("daemon.ready", listeners=len(ENDPOINTS))

    def both() -> bool:
        timers = keepalive_timers(deployment.lab.pod)
        # The kernel's own default is two hours.
        return len(timers) == 2 and all(0 < seconds <= 60 for seconds in timers)

    with deployment.connect(8443) as session:
        wait_until(both)
        session.round_trip()
        wait_until(both)


def keepalive_timers(namespace: Namespace) -> list[float]:
    """The seconds until each socket's next probe, of those that have no other timer running."""
    table = namespace.call(lambda: Path("/proc/thread-self/net/tcp").read_text())
    # Documentation/networking/proc_net_tcp.rst: "02" is the keepalive timer, and when it expires.
    timers = (line.split()[5].split(":") for line in table.splitlines()[1:])
    return [int(when, 16) / _CLOCK_TICKS for kind, when in timers if kind == "02"]


def cut(namespace: Namespace) -> None:
    def set_down(ip: IPRoute) -> None:
        ip.link("set", index=namespace.index("eth0"), state="down")

    namespace.netlink(set_down)
