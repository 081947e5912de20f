"""The overlay's Deployment in a test's cluster, and what an administrator does with it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

from tests.cluster.lan import GATEWAY, INTERFACE, OUTSIDE, RESERVED
from tests.cluster.manifests import overlay_of
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cluster.control_plane import ControlPlane
    from tests.support.network import Namespace
    from tests.support.service_clients import Clients, Remote

NAME = "egress-router"
PORT = 80
STRATEGIC = "application/strategic-merge-patch+json"


@dataclass
class Router:
    """The overlay's Deployment, as it runs in a test."""

    plane: ControlPlane
    namespace: str
    client: Namespace
    remote: Remote
    address: str
    transcript: Callable[[], str]

    @property
    def path(self) -> str:
        return f"/apis/apps/v1/namespaces/{self.namespace}/deployments/{NAME}"

    def complete(self) -> bool:
        """Whether all pods are of the latest template, and ready: ``kubectl rollout status``."""
        found = self.plane.ask("GET", self.path)
        status = found["status"]
        return (
            status.get("observedGeneration") == found["metadata"]["generation"]
            and {status.get(key) for key in ("replicas", "updatedReplicas", "availableReplicas")}
            == {2}
            and len(self.pods()) == 2
        )

    def pods(self) -> list[dict[str, Any]]:
        """All pods of the namespace, those that are ending too."""
        found: list[dict[str, Any]] = self.plane.ask(
            "GET", f"/api/v1/namespaces/{self.namespace}/pods"
        )["items"]
        return found

    def settled(self) -> bool:
        """Whether one pod is labelled active, and has the address.

        A successor is labelled before. What ends it in between ends its clients that wait.
        """
        active = self.active()
        if len(active) != 1:
            return False
        holder = self.plane.lease(self.namespace, NAME)["spec"]["holderIdentity"]
        return bool(holder == active[0]) and self.serves()

    def active(self) -> list[str]:
        """The pods that are labelled so."""
        return [
            pod["metadata"]["name"]
            for pod in self.pods()
            if pod["metadata"]["labels"]["egress-proxy/role"] == "active"
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
        wait_until(
            lambda: pod not in {each["metadata"]["name"] for each in self.pods()}, timeout_s=60
        )
        wait_until(self.complete, timeout_s=60)

    def remove(self) -> None:
        """The Deployment goes, and its pods with it (no garbage collector runs here)."""
        self.plane.ask("DELETE", self.path, {"propagationPolicy": "Orphan"})
        sets = f"/apis/apps/v1/namespaces/{self.namespace}/replicasets"
        self.plane.ask("DELETE", sets)
        for pod in self.pods():
            self.plane.delete_pod(self.namespace, pod["metadata"]["name"])
        wait_until(lambda: not self.pods(), timeout_s=60)

    def assert_none_failed(self, clients: Clients) -> None:
        """Every client was served, from the reserved address; says how many there were."""
        longest = max(client.wait_s for client in clients.all)
        failed = len(clients.failed)
        summary = f"{len(clients.all)} clients, {failed} failed, longest wait {longest:.2f} s"
        # ``pytest -rP`` shows it.
        sys.stdout.write(f"{summary}\n")
        assert clients.failed == [], f"{summary}\n{self.transcript()}"
        assert self.remote.sources == {RESERVED.v4}


def apply(plane: ControlPlane, namespace: str, change: Callable[[dict[str, Any]], None]) -> str:
    """The overlay, with this network's addresses and a `change` of each; the Service's address."""
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
        change(resource)
        made = plane.create(resource, namespace)
        if resource["kind"] == "Service":
            address: str = made["spec"]["clusterIP"]
    return address


def drained(clients: Clients) -> bool:
    """Whether no client from before this moment is still waiting."""
    return all(client.ended_at is not None for client in clients.all[: len(clients.all) - 2])
