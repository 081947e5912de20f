"""A rolled Deployment of the overlay, with the real controllers, scheduler and kube-proxy.

Clients of the Service's address go on all the time, and none of them may fail.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.cluster.kubelet import Kubelets
from tests.cluster.lan import OUTSIDE, Lan
from tests.cluster.router import PORT, Router, apply, drained
from tests.support.administrator import MERGE_PATCH
from tests.support.service_clients import Clients, Remote
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster.control_plane import ControlPlane

# As many clients as must not fail, in each of two clusters.
CLIENTS = 1000


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
        change = without_surge if len(nodes) == 2 else lambda _: None
        address = apply(control_plane, namespace, change)
        running = Router(control_plane, namespace, lan.client, remote, address, kubelets.transcript)
        stack.callback(running.remove)
        wait_until(running.complete, timeout_s=90)
        wait_until(running.settled)
        yield running


def register(plane: ControlPlane, node: str) -> None:
    """A node that is ready, and has room."""
    labels = {"kubernetes.io/hostname": node}
    plane.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node, "labels": labels}})
    room = {"cpu": "4", "memory": "8Gi", "pods": "110"}
    conditions = [{"type": "Ready", "status": "True"}]
    status = {"status": {"capacity": room, "allocatable": room, "conditions": conditions}}
    plane.ask("PATCH", f"/api/v1/nodes/{node}/status", status, content_type=MERGE_PATCH)


def without_surge(resource: dict[str, Any]) -> None:
    """``components/two-nodes``."""
    if resource["kind"] == "Deployment":
        resource["spec"]["strategy"]["rollingUpdate"] = {"maxUnavailable": 1, "maxSurge": 0}


@pytest.mark.timeout(300)
def test_a_rollout_fails_no_client(router: Router) -> None:
    with Clients(router.client, (router.address, PORT)) as clients:
        while len(clients.all) < CLIENTS:
            router.restart()
            wait_until(router.settled)
        wait_until(lambda: drained(clients))
    router.assert_none_failed(clients)


@pytest.mark.timeout(300)
def test_a_deleted_active_pod_fails_no_client(router: Router) -> None:
    with Clients(router.client, (router.address, PORT)) as clients:
        for _ in range(3):
            (active,) = router.active()
            router.delete(active)
            wait_until(router.settled)
        wait_until(lambda: drained(clients))
    router.assert_none_failed(clients)
