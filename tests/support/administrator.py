"""What a test does with a cluster's API itself: pods made, reported Ready, deleted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"


class RefusedError(Exception):
    """The API server's answer was not 2xx: `status`, and its word for it."""

    def __init__(self, status: int, answer: Any) -> None:  # noqa: ANN401 - any JSON
        super().__init__(status, answer)
        self.status = status


class Administrator(ABC):
    """A user who may do everything; `ask` raises `RefusedError`."""

    @abstractmethod
    def ask(self, method: str, path: str, body: object = None, *, content_type: str = JSON) -> Any:  # noqa: ANN401 - any JSON
        """The answer to a request."""

    def create_pod(self, namespace: str, name: str, *, labels: dict[str, str], ip: str) -> None:
        """A pod that is Ready, as a kubelet would have reported it."""
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": labels},
            "spec": {"containers": [{"name": "egress-dns-proxy", "image": "egress-dns-proxy"}]},
        }
        self.ask("POST", f"/api/v1/namespaces/{namespace}/pods", pod)
        self.set_ready(namespace, name, ip=ip)

    def set_ready(self, namespace: str, name: str, *, ip: str, ready: bool = True) -> None:
        """Report the pod's address and whether it is Ready."""
        condition = {"type": "Ready", "status": "True" if ready else "False"}
        status = {
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "phase": "Running",
            "conditions": [condition],
        }
        path = f"/api/v1/namespaces/{namespace}/pods/{name}/status"
        self.ask("PATCH", path, {"status": status}, content_type=MERGE_PATCH)

    def delete_pod(self, namespace: str, name: str, *, grace_s: int = 30) -> None:
        """Ask for the pod's end; with a grace period of 0 it is gone."""
        path = f"/api/v1/namespaces/{namespace}/pods/{name}"
        self.ask("DELETE", path, {"gracePeriodSeconds": grace_s})

    def pod(self, namespace: str, name: str) -> Any:  # noqa: ANN401 - an object's JSON
        """The pod as it is now."""
        return self.ask("GET", f"/api/v1/namespaces/{namespace}/pods/{name}")

    def lease(self, namespace: str, name: str) -> Any:  # noqa: ANN401 - an object's JSON
        """The Lease as it is now."""
        path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{name}"
        return self.ask("GET", path)
