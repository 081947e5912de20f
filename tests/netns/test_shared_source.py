"""`egress-proxy run` whose source comes and goes: clients wait for it, sessions end with it."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest

from tests.netns.test_hold import owned, role, running
from tests.support.service_clients import Clients, Remote
from tests.support.two_nodes import NAMESPACE, OUTSIDE, PODS, PORT, SERVICE, TwoNodes
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.processes import Process

FAMILIES = ("v4",), ("v6",)


@pytest.fixture(params=FAMILIES, ids="-".join)
def families(request: pytest.FixtureRequest) -> tuple[str, ...]:
    found: tuple[str, ...] = request.param
    return found


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def connect(nodes: TwoNodes, name: str) -> socket.socket:
    """A client in the cluster, connected to the pod."""
    return nodes.cluster.connect(PODS[name].v4, PORT, timeout_s=10)


def listen(nodes: TwoNodes) -> socket.socket:
    listener = nodes.outside.listen(OUTSIDE.v4 if nodes.families[0] == "v4" else OUTSIDE.v6, 80)
    listener.settimeout(10)
    return listener


def proxy(nodes: TwoNodes, name: str) -> Process:
    found = nodes.pods[name].proxy
    assert found is not None
    return found


def status(nodes: TwoNodes, name: str, path: str) -> tuple[int, bytes]:
    """The answer of the admin port."""

    def ask() -> tuple[int, bytes]:
        with socket.create_connection((PODS[name].v4, 9153), 5) as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: pod\r\n\r\n".encode())
            answer = b"".join(iter(lambda: sock.recv(65536), b""))
        return int(answer.split()[1]), answer.partition(b"\r\n\r\n")[2]

    return nodes.cluster.call(ask)


def test_a_standby_is_ready_and_its_clients_wait_for_the_source(
    families: tuple[str, ...], stack: ExitStack
) -> None:
    with running(families=families) as (nodes, _, active, standby):
        for name in "ab":
            nodes.run(name)
        listener = stack.enter_context(listen(nodes))
        assert status(nodes, standby, "/readyz") == (200, b"ok\n")
        assert b'"role":"standby"' in status(nodes, standby, "/status.json")[1]
        assert b'"role":"active"' in status(nodes, active, "/status.json")[1]
        waiting = stack.enter_context(connect(nodes, standby))
        waiting.sendall(b"early")
        assert nodes.pods[active].running.stop() == 0
        upstream, address = listener.accept()
        stack.enter_context(upstream)
        assert address[0] == str(nodes.sources[0].address)
        upstream.settimeout(10)
        assert upstream.recv(5) == b"early"
        assert b'"role":"active"' in status(nodes, standby, "/status.json")[1]


def test_a_client_of_a_standby_is_reset_at_the_connect_timeout(stack: ExitStack) -> None:
    with running() as (nodes, _, _, standby):
        process = nodes.run(standby, EGRESS_DNS_PROXY_CONNECT_TIMEOUT="500ms")
        client = stack.enter_context(connect(nodes, standby))
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert process.wait_for("connection.closed")["reason"] == "no_source"


def session(nodes: TwoNodes, stack: ExitStack, name: str, listener: socket.socket) -> Any:  # noqa: ANN401 - two sockets
    client = stack.enter_context(connect(nodes, name))
    upstream = stack.enter_context(listener.accept()[0])
    upstream.settimeout(10)
    client.sendall(b"?")
    assert upstream.recv(1) == b"?"
    return client, upstream


def test_sessions_are_reset_on_both_sides_when_the_pod_hands_over(
    families: tuple[str, ...], stack: ExitStack
) -> None:
    with running(families=families) as (nodes, spy, active, standby):
        for name in "ab":
            nodes.run(name)
        listener = stack.enter_context(listen(nodes))
        client, upstream = session(nodes, stack, active, listener)
        stopped_at = monotonic()
        process = proxy(nodes, active)
        # As the kubelet does it: all containers at once.
        nodes.api.delete_pod(NAMESPACE, active)
        nodes.pods[active].running.terminate()
        process.terminate()
        wait_until(lambda: role(nodes, standby) == "active")
        assert status(nodes, active, "/readyz")[0] == 200
        for sock in (client, upstream):
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        assert process.wait_for("connection.closed")["reason"] == "source_lost"
        assert process.wait() == 0
        owned(nodes, spy, standby, stopped_at)
        assert monotonic() - stopped_at < 5


def test_sessions_end_when_the_address_goes_without_notice(stack: ExitStack) -> None:
    with running() as (nodes, _, active, _):
        process = nodes.run(active)
        listener = stack.enter_context(listen(nodes))
        client, _ = session(nodes, stack, active, listener)
        nodes.pods[active].running.kill()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert process.wait_for("connection.closed")["reason"] == "source_lost"
        process.wait_for("source.lost")


def _more_served(clients: Clients, count: int) -> bool:
    return clients.served > count


def test_a_rollout_fails_no_client() -> None:
    """Clients that ask the Service all the time, while each pod is replaced."""
    with running("abc") as (nodes, _, _, _):
        for name in "abc":
            nodes.run(name, EGRESS_DNS_PROXY_DEBUG="0")
        nodes.enter_context(Remote(nodes.enter_context(listen(nodes))))
        service = nodes.enter_context(nodes.service())
        wait_until(lambda: len(service.endpoints) == 1)
        clients = nodes.enter_context(Clients(nodes.client, (SERVICE, PORT)))
        wait_until(lambda: clients.served > 20)
        for name in "abc":
            nodes.roll(name)
            wait_until(partial(_more_served, clients, clients.served + 20))
        assert [(client.error, round(client.wait_s, 3)) for client in clients.failed] == []


def delete(nodes: TwoNodes, name: str) -> None:
    """As the kubelet does it: all containers at once."""
    nodes.api.delete_pod(NAMESPACE, name)
    nodes.pods[name].running.terminate()
    proxy(nodes, name).terminate()


def test_a_pod_deleted_while_it_takes_the_address_fails_no_client() -> None:
    with running("abc") as (nodes, _, active, _):
        for name in "abc":
            nodes.run(name, EGRESS_DNS_PROXY_DEBUG="0")
        nodes.enter_context(Remote(nodes.enter_context(listen(nodes))))
        service = nodes.enter_context(nodes.service())
        wait_until(lambda: service.endpoints == (PODS[active].v4,))
        clients = nodes.enter_context(Clients(nodes.client, (SERVICE, PORT)))
        wait_until(lambda: clients.served > 20)
        delete(nodes, active)
        wait_until(lambda: len(service.endpoints) == 1 and service.endpoints != (PODS[active].v4,))
        [successor] = [name for name in "abc" if service.endpoints == (PODS[name].v4,)]
        nodes.pods[successor].running.wait_for("hold.taking")
        delete(nodes, successor)
        [third] = {"a", "b", "c"} - {active, successor}
        wait_until(lambda: service.endpoints == (PODS[third].v4,))
        nodes.pods[third].running.wait_for("hold.active")
        for name in (active, successor):
            assert proxy(nodes, name).wait() == nodes.pods[name].running.wait() == 0
        begun = list(clients.all)
        wait_until(lambda: all(client.ended_at is not None for client in begun))
        assert [(client.error, round(client.wait_s, 3)) for client in clients.failed] == []
