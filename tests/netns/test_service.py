"""The stand-in for a Service follows the label, refuses without a pod, and keeps connections."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.support.api_process import ApiProcess
from tests.support.network import Host, Namespace
from tests.support.service import Service
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path

ROUTER_TO_CLIENTS = Host.of("198.51.100.1/25", "2001:db8:0:1::1/64")
CLIENT = Host.of("198.51.100.10/25", "2001:db8:0:1::10/64")
ROUTER = Host.of("192.0.2.1/24", "2001:db8:0:2::1/64")
POD = Host.of("192.0.2.11/24", "2001:db8:0:2::11/64")
SECOND = Host.of("192.0.2.12/24", "2001:db8:0:2::12/64")
SERVICE = "198.51.100.200"
PORT = 80
DEFAULT = Host.of("0.0.0.0/0", "::/0")
ROLE = "egress-proxy/role"


class Network:
    """A client and a pod with two addresses, on both sides of a router."""

    def __init__(self) -> None:
        self.client, self.router, self.pod = (Namespace(n) for n in ("client", "router", "pod"))
        self.client.join("eth0", self.router, "clients0")
        self.pod.join("eth0", self.router, "pods0")
        self.router.sysctl("ipv4/ip_forward", 1)
        self.router.configure("clients0", ROUTER_TO_CLIENTS)
        self.router.configure("pods0", ROUTER)
        self.client.configure("eth0", CLIENT)
        self.client.route(DEFAULT, ROUTER_TO_CLIENTS)
        self.pod.configure("eth0", POD, SECOND)
        self.pod.route(DEFAULT, ROUTER)


@pytest.fixture
def network() -> Iterator[Network]:
    made = Network()
    yield made
    for namespace in (made.client, made.router, made.pod):
        namespace.close()


def serve(listener: socket.socket) -> socket.socket:
    """Say to the next client at which address it arrived."""
    connection, _ = listener.accept()
    connection.sendall(connection.getsockname()[0].encode())
    return connection


def test_clients_go_where_the_label_is(network: Network, tmp_path: Path) -> None:
    with (
        ApiProcess(tmp_path) as api,
        Service(network.router, api, pods="egress", address=SERVICE, port=PORT) as service,
        network.pod.listen("0.0.0.0", PORT) as listener,
    ):
        with pytest.raises(ConnectionRefusedError):
            network.client.connect(SERVICE, PORT)
        for name, host in (("router-a", POD), ("router-b", SECOND)):
            api.create_pod("egress", name, labels={ROLE: "standby"}, ip=host.v4)
        for name, other, host in (("router-a", "router-b", POD), ("router-b", "router-a", SECOND)):
            label(api, name, "active")
            label(api, other, "standby")
            wait_until(partial(is_endpoint, service, host))
            with network.client.connect(SERVICE, PORT) as client, serve(listener):
                assert client.recv(100).decode() == host.v4


def is_endpoint(service: Service, host: Host) -> bool:
    """Whether the Service leads to `host` and nowhere else."""
    return service.endpoints == (host.v4,)


def label(api: ApiProcess, name: str, role: str) -> None:
    api.ask(
        "PATCH",
        f"/api/v1/namespaces/egress/pods/{name}/status",
        {"metadata": {"labels": {ROLE: role}}},
        content_type="application/merge-patch+json",
    )
