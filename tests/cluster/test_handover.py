"""A rolled Deployment of the overlay, with the real controllers, scheduler and kube-proxy.

Clients of the Service's address go on all the time, and none of them may fail.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

import pytest

from tests.cluster.kubelet import Kubelets
from tests.cluster.lan import API, GATEWAY, INTERFACE, OUTSIDE, RESERVED, Lan
from tests.cluster.manifests import overlay_of
from tests.support.service_clients import Clients, Remote
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster.control_plane import ControlPlane
    from tests.support.network import Namespace

NAME = "egress-router"
PORT = 80
# As many clients as must not fail, in each of two clusters.
CLIENTS = 1000
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"


@pytest.fixture(scope="module")
def controllers(control_plane: ControlPlane) -> None:
    """What reconciles Deployments and Services; kube-proxy has the control plane's network."""
    control_plane.start_controllers("deployment", "replicaset", "endpoint", "endpointslice")
    control_plane.start_scheduler()
    control_plane.start_program(
        "kube-proxy",
        f"--kubeconfig={control_plane.kubeconfig}",
        *("--proxy-mode=iptables", "--hostname-override=router", f"--bind-address={API.v4}"),
        *("--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0"),
        *("--conntrack-tcp-timeout-close-wait=0", "--healthz-bind-address=127.0.0.1:10256"),
        "--metrics-bind-address=127.0.0.1:10249",
    )


@dataclass
class Router:
    """The overlay's Deployment, as it runs in a test."""

    plane: ControlPlane
    namespace: str
    kubelets: Kubelets
    client: Namespace
    remote: Remote
    address: str

    @property
    def path(self) -> str:
        return f"/apis/apps/v1/namespaces/{self.namespace}/deployments/{NAME}"

    def complete(self) -> bool:
        """Whether all pods are of the latest template, and ready: ``kubectl rollout status``."""
        self.kubelets.raise_failure()
        found = self.plane.ask("GET", self.path)
        status = found["status"]
        return (
            status.get("observedGeneration") == found["metadata"]["generation"]
            and {status.get(key) for key in ("replicas", "updatedReplicas", "availableReplicas")}
            == {2}
            and len(self.kubelets.pods) == 2
        )

    def settled(self) -> bool:
        """Whether one pod is labelled active, and has the address.

        A successor is labelled before. What ends it in between ends its clients that wait.
        """
        active = self.active()
        return len(active) == 1 and any(
            record["event"] == "hold.active"
            for record in self.kubelets.pods[active[0]].hold.records
        )

    def active(self) -> list[str]:
        """The pods that are labelled so."""
        items = self.plane.ask("GET", f"/api/v1/namespaces/{self.namespace}/pods")["items"]
        return [
            item["metadata"]["name"]
            for item in items
            if item["metadata"]["labels"]["egress-proxy/role"] == "active"
        ]

    def serves(self) -> bool:
        """Whether kube-proxy and the active pod have come as far as to serve a client."""
        try:
            with self.client.connect(self.address, PORT) as connection:
                connection.sendall(b"?")
                return bool(connection.recv(1))
        except OSError:
            return False

    def restart(self) -> None:
        """``kubectl rollout restart``, to its end."""
        annotations = {"kubectl.kubernetes.io/restartedAt": str(monotonic())}
        patch = {"spec": {"template": {"metadata": {"annotations": annotations}}}}
        self.plane.ask("PATCH", self.path, patch, content_type=STRATEGIC)
        wait_until(self.complete, timeout_s=90)

    def delete(self, pod: str) -> None:
        """``kubectl delete pod``, until there are two again."""
        self.plane.delete_pod(self.namespace, pod)
        wait_until(lambda: pod not in self.kubelets.pods, timeout_s=60)
        wait_until(self.complete, timeout_s=60)


@pytest.fixture(params=["three nodes", "two nodes"])
def router(
    request: pytest.FixtureRequest,
    control_plane: ControlPlane,
    controllers: None,
    namespace: str,
) -> Iterator[Router]:
    del controllers
    letters = "abc" if request.param == "three nodes" else "ab"
    nodes = [f"{namespace}-{letter}" for letter in letters]
    with ExitStack() as stack:
        lan = stack.enter_context(Lan(control_plane.namespace))
        remote = stack.enter_context(
            Remote(stack.enter_context(lan.outside.listen(OUTSIDE.v4, PORT)))
        )
        for node in nodes:
            register(control_plane, node)
            stack.callback(control_plane.ask, "DELETE", f"/api/v1/nodes/{node}")
        kubelets = stack.enter_context(Kubelets(control_plane, lan, namespace, nodes))
        address = apply(control_plane, namespace, two_nodes=len(nodes) == 2)
        running = Router(control_plane, namespace, kubelets, lan.client, remote, address)
        stack.callback(remove, running)
        wait_until(running.complete, timeout_s=90)
        wait_until(running.settled)
        wait_until(running.serves)
        yield running


def register(plane: ControlPlane, node: str) -> None:
    """A node that is ready, and has room."""
    labels = {"kubernetes.io/hostname": node}
    plane.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node, "labels": labels}})
    room = {"cpu": "4", "memory": "8Gi", "pods": "110"}
    conditions = [{"type": "Ready", "status": "True"}]
    status = {"status": {"capacity": room, "allocatable": room, "conditions": conditions}}
    plane.ask("PATCH", f"/api/v1/nodes/{node}/status", status, content_type=MERGE_PATCH)


def apply(plane: ControlPlane, namespace: str, *, two_nodes: bool) -> str:
    """The overlay, with this network's addresses; the Service's address."""
    for resource in overlay_of(namespace, "ConfigMap", "Deployment", "Service"):
        if resource["kind"] == "ConfigMap":
            resource["data"] |= {
                "EGRESS_SOURCE": str(RESERVED.interface4),
                "EGRESS_GATEWAY": GATEWAY.v4,
                "EGRESS_INTERFACE": INTERFACE,
                "EGRESS_DNS_PROXY_DESTINATION": f"{PORT} {OUTSIDE.v4}",
                "EGRESS_DNS_PROXY_LOG_FORMAT": "json",
                # The last pod of a test keeps the address for so long: there is no other.
                "EGRESS_DNS_PROXY_DRAIN_TIMEOUT": "4s",
            }
        elif resource["kind"] == "Deployment" and two_nodes:
            resource["spec"]["strategy"]["rollingUpdate"] = {"maxUnavailable": 1, "maxSurge": 0}
        made = plane.create(resource, namespace)
        if resource["kind"] == "Service":
            address: str = made["spec"]["clusterIP"]
    return address


def remove(router: Router) -> None:
    """The Deployment goes, and its pods with it (no garbage collector runs here)."""
    options = {"propagationPolicy": "Orphan"}
    router.plane.ask("DELETE", router.path, options)
    sets = f"/apis/apps/v1/namespaces/{router.namespace}/replicasets"
    router.plane.ask("DELETE", sets)
    for pod in list(router.kubelets.pods):
        router.plane.delete_pod(router.namespace, pod)
    wait_until(lambda: not router.kubelets.pods, timeout_s=60)


def assert_none_failed(router: Router, clients: Clients) -> None:
    longest = max(client.wait_s for client in clients.all)
    summary = (
        f"{len(clients.all)} clients, {len(clients.failed)} failed, longest wait {longest:.2f} s"
    )
    # ``pytest -rP`` shows it.
    sys.stdout.write(f"{summary}\n")
    assert clients.failed == [], f"{summary}\n{router.kubelets.transcript()}"
    assert router.remote.sources == {RESERVED.v4}


def drained(clients: Clients) -> bool:
    """Whether no client from before this moment is still waiting."""
    return all(client.ended_at is not None for client in clients.all[: len(clients.all) - 2])


@pytest.mark.timeout(300)
def test_a_rollout_fails_no_client(router: Router) -> None:
    with Clients(router.client, (router.address, PORT)) as clients:
        while len(clients.all) < CLIENTS:
            router.restart()
            wait_until(router.settled)
        wait_until(lambda: drained(clients))
    assert_none_failed(router, clients)


@pytest.mark.timeout(300)
def test_a_deleted_active_pod_fails_no_client(router: Router) -> None:
    with Clients(router.client, (router.address, PORT)) as clients:
        for _ in range(3):
            (active,) = router.active()
            router.delete(active)
            wait_until(router.settled)
        wait_until(lambda: drained(clients))
    assert_none_failed(router, clients)
