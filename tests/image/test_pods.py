"""The pod of `deploy/examples`, in both privilege forms, in real containers on a real macvlan."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.image.containers import Pod, example
from tests.support.attachments import attach, macvlan
from tests.support.dns import DnsServer, Name
from tests.support.lab import CLUSTER_DNS, OUTSIDE, POD, RESERVED, Lab

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PORT, NAMED_PORT, REMOTE_PORT = 80, 8443, 7000
DESTINATIONS = f"{PORT} {OUTSIDE.v4} {REMOTE_PORT}\n{NAMED_PORT} web.example.com {REMOTE_PORT}"
# 16 MiB: more than the sockets on the way can hold (tcp_rmem and tcp_wmem end at 6 and 4 MiB).
BULK = bytes(range(256)) * (1 << 16)


@pytest.fixture(params=["pod-privileged", "pod-least-privilege"])
def pod(lab: Lab, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Pod]:
    """The pod in one privilege form, its macvlan without an address, its names resolvable."""
    attach(lab, "macvlan0", macvlan("lan0", ipam={}))
    with (
        DnsServer(lab.node.bind(CLUSTER_DNS.v4, 53), lab.node.listen(CLUSTER_DNS.v4, 53)) as server,
        Pod(lab, example(request.param), tmp_path) as made,
    ):
        server.zone["web.example.com"] = Name(a=(OUTSIDE.v4,))
        yield made


@pytest.fixture
def outside(lab: Lab) -> Iterator[socket.socket]:
    with lab.outside.listen(OUTSIDE.v4, REMOTE_PORT) as listener:
        listener.settimeout(10)
        yield listener


def initialize(pod: Pod) -> None:
    with pod.init() as init:
        assert init.wait(timeout_s=30) == 0


def connect(lab: Lab, outside: socket.socket, port: int) -> tuple[socket.socket, socket.socket]:
    """A connection through the pod: the client's end and the outside's."""
    client = lab.client.connect(POD.v4, port)
    upstream, (address, _) = outside.accept()
    upstream.settimeout(10)
    assert address == RESERVED.v4
    return client, upstream


def read_all(end: socket.socket) -> bytes:
    return b"".join(iter(lambda: end.recv(1 << 16), b""))


def carry(source: socket.socket, sink: socket.socket) -> None:
    """`BULK` and an end of stream, from one end to the other, which must not see more."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        received = pool.submit(read_all, sink)
        source.sendall(BULK)
        source.shutdown(socket.SHUT_WR)
        assert received.result(timeout=30) == BULK


@pytest.mark.parametrize("port", [PORT, NAMED_PORT])
def test_bytes_pass_and_the_outside_sees_the_reserved_address(
    lab: Lab, pod: Pod, outside: socket.socket, port: int
) -> None:
    initialize(pod)
    with pod.proxy(EGRESS_DNS_PROXY_DESTINATION=DESTINATIONS) as proxy:
        proxy.wait_for("daemon.ready")
        client, upstream = connect(lab, outside, port)
        with client, upstream:
            carry(client, upstream)
            carry(upstream, client)
        closed = proxy.wait_for("connection.closed")
        assert closed["reason"] == "finished"
        assert closed["source"].startswith(f"{RESERVED.v4}:")
        assert closed["bytes_to_upstream"] == closed["bytes_to_client"] == len(BULK)
        assert proxy.stop() == 0


def test_an_interface_that_multus_gave_the_address_works_as_well(
    lab: Lab, tmp_path: Path, outside: socket.socket
) -> None:
    ipam = {"type": "static", "addresses": [{"address": str(RESERVED.interface4)}]}
    attach(lab, "macvlan0", macvlan("lan0", ipam))
    with Pod(lab, example("pod-least-privilege"), tmp_path) as pod:
        initialize(pod)
        with pod.proxy(EGRESS_DNS_PROXY_DESTINATION=f"{PORT} {OUTSIDE.v4} {REMOTE_PORT}") as proxy:
            proxy.wait_for("daemon.ready")
            client, upstream = connect(lab, outside, PORT)
            with client, upstream:
                carry(client, upstream)


def test_sigterm_drains(lab: Lab, pod: Pod, outside: socket.socket) -> None:
    initialize(pod)
    with pod.proxy(EGRESS_DNS_PROXY_DESTINATION=DESTINATIONS) as proxy:
        proxy.wait_for("daemon.ready")
        client, upstream = connect(lab, outside, PORT)
        with client, upstream:
            pod.signal("TERM")
            proxy.wait_for("daemon.draining")
            carry(client, upstream)
            carry(upstream, client)
        assert proxy.wait_for("connection.closed")["reason"] == "finished"
        assert proxy.wait() == 0


def test_what_has_not_finished_at_the_drain_timeout_is_reset(
    lab: Lab, pod: Pod, outside: socket.socket
) -> None:
    initialize(pod)
    with pod.proxy(
        EGRESS_DNS_PROXY_DESTINATION=DESTINATIONS, EGRESS_DNS_PROXY_DRAIN_TIMEOUT="500ms"
    ) as proxy:
        proxy.wait_for("daemon.ready")
        client, upstream = connect(lab, outside, PORT)
        with client, upstream:
            pod.signal("TERM")
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        assert proxy.wait_for("connection.closed")["reason"] == "drained"
        assert proxy.wait() == 0


@pytest.mark.parametrize("both", [False, True], ids=["proxy alone", "init too"])
def test_after_a_restart_all_is_as_before(
    lab: Lab, pod: Pod, outside: socket.socket, *, both: bool
) -> None:
    initialize(pod)
    for restarted in (False, True):
        if restarted and both:
            initialize(pod)
        with pod.proxy(EGRESS_DNS_PROXY_DESTINATION=DESTINATIONS) as proxy:
            proxy.wait_for("daemon.ready")
            client, upstream = connect(lab, outside, NAMED_PORT)
            with client, upstream:
                carry(client, upstream)
            assert proxy.stop() == 0


def test_a_killed_proxy_comes_back(lab: Lab, pod: Pod, outside: socket.socket) -> None:
    initialize(pod)
    with ExitStack() as ends, pod.proxy(EGRESS_DNS_PROXY_DESTINATION=DESTINATIONS) as proxy:
        proxy.wait_for("daemon.ready")
        for end in connect(lab, outside, PORT):
            ends.enter_context(end)
        pod.signal("KILL")
        assert proxy.wait() != 0
        with pod.proxy(EGRESS_DNS_PROXY_DESTINATION=DESTINATIONS) as again:
            again.wait_for("daemon.ready")
            client, upstream = connect(lab, outside, PORT)
            with client, upstream:
                carry(client, upstream)


def test_wrong_destinations_end_the_proxy_and_are_in_the_termination_message(pod: Pod) -> None:
    with pod.proxy(EGRESS_DNS_PROXY_DESTINATION="80 web\n443 999.1.1.1") as proxy:
        assert proxy.wait() == 2
    lines = pod.termination_message.splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        "EGRESS_DNS_PROXY_DESTINATION line 1",
        "EGRESS_DNS_PROXY_DESTINATION line 2",
    ]


def test_a_wrong_source_ends_init_and_is_in_the_termination_message(pod: Pod) -> None:
    with pod.init(EGRESS_SOURCE="203.0.113") as init:
        assert init.wait() == 2
    assert pod.termination_message.startswith("EGRESS_SOURCE: '203.0.113': ")


@pytest.mark.parametrize("form", ["pod-privileged", "pod-least-privilege"])
def test_without_an_egress_interface_both_say_what_is_missing(
    lab: Lab, tmp_path: Path, form: str
) -> None:
    with Pod(lab, example(form), tmp_path) as pod:
        with pod.init() as init:
            assert init.wait() == 1
        assert "EGRESS_INTERFACE: 'macvlan0': no such interface" in pod.termination_message
        with pod.proxy(EGRESS_DNS_PROXY_DESTINATION=DESTINATIONS) as proxy:
            assert proxy.wait() == 1
        assert "macvlan0" in pod.termination_message


# Forks twice: when the grandchild ends, only PID 1 can reap it.
LEAVE_AN_ORPHAN = """
import os, time
reader, writer = os.pipe()
if child := os.fork():
    os.close(writer)
    os.waitpid(child, 0)
    orphan = f"/proc/{os.read(reader, 20).decode()}"
    deadline = time.monotonic() + 5
    while os.path.exists(orphan) and time.monotonic() < deadline:
        os.sched_yield()
    print("still there" if os.path.exists(orphan) else "gone", flush=True)
elif os.fork() == 0:
    while os.getppid() != 1:
        os.sched_yield()
    os.write(writer, str(os.getpid()).encode())
os._exit(0)
"""


def test_pid_1_buries_orphans(pod: Pod) -> None:
    with pod.proxy(
        EGRESS_DNS_PROXY_DESTINATION=DESTINATIONS, EGRESS_DNS_PROXY_SOURCE="any"
    ) as proxy:
        proxy.wait_for("daemon.ready")
        assert pod.execute("python3", "-c", LEAVE_AN_ORPHAN).stdout == "gone\n"
