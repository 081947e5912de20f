"""The client of the Kubernetes API against the real one, with the overlay's own Role."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from egress_proxy.hold.api_errors import ApiRejected
from egress_proxy.hold.kubernetes import KubernetesClient
from tests.cluster.control_plane import SERVICE_ACCOUNT, ControlPlane
from tests.cluster.manifests import overlay_of
from tests.support.api_contract import (
    LABELS,
    MINE,
    NAME,
    TIMEOUT_S,
    ApiContract,
    Cluster,
    client_of,
    following,
    watching,
)
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from egress_proxy.hold.api_server import ApiServer


class RealCluster(Cluster):
    """One namespace of the control plane."""

    def __init__(self, control_plane: ControlPlane, namespace: str) -> None:
        self.administrator = self.control_plane = control_plane
        self.namespace = namespace

    def server(self) -> ApiServer:
        return self.control_plane.server(self.namespace)


@pytest.fixture
def cluster(control_plane: ControlPlane, namespace: str) -> RealCluster:
    return RealCluster(control_plane, namespace)


class TestContract(ApiContract):
    """The real API server keeps it."""


def allowed(namespace: str) -> set[tuple[str, str, str]]:
    """Verb, resource and name of all that the overlay's Role allows."""
    (role,) = overlay_of(namespace, "Role")
    return {
        (verb, resource, name)
        for rule in role["rules"]
        for verb in rule["verbs"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", [""])
    }


def asked(control_plane: ControlPlane, namespace: str) -> Iterator[tuple[str, str, str]]:
    """The same of all that the client has asked for; names that no rule can name left out."""
    user = f"system:serviceaccount:{namespace}:{SERVICE_ACCOUNT}"
    for event in control_plane.audited(user):
        what = event["objectRef"]
        resource = "/".join(filter(None, (what["resource"], what.get("subresource"))))
        named = resource == "leases" and event["verb"] != "create"
        yield event["verb"], resource, what["name"] if named else ""


@pytest.mark.asyncio
async def test_the_role_allows_what_is_asked_for_and_nothing_else(
    cluster: RealCluster, control_plane: ControlPlane
) -> None:
    namespace = cluster.namespace
    cluster.administrator.create_pod(namespace, "router-a", labels=LABELS, ip="192.0.2.10")
    async with client_of(cluster) as client, watching(client) as states:
        assert await client.get_lease(timeout_s=TIMEOUT_S) is None
        assert await following(states) is None
        made = await client.create_lease(MINE, timeout_s=TIMEOUT_S)
        assert await following(states) == made
        await client.update_lease(made, timeout_s=TIMEOUT_S)
        await client.list_pods(f"egress-proxy/lease={NAME}", timeout_s=TIMEOUT_S)
        await client.patch_pod("router-a", labels={"a": "b"}, timeout_s=TIMEOUT_S)
    # A watch is recorded when it has ended.
    await asyncio.to_thread(
        wait_until, lambda: "watch" in {verb for verb, *_ in asked(control_plane, namespace)}
    )
    assert set(asked(control_plane, namespace)) == allowed(namespace)


@pytest.mark.asyncio
async def test_another_lease_and_another_namespace_are_forbidden(
    cluster: RealCluster, control_plane: ControlPlane
) -> None:
    for namespace, lease in ((cluster.namespace, "another"), ("default", NAME)):
        server = control_plane.server(cluster.namespace)
        client = KubernetesClient(server, namespace=namespace, lease=lease)
        with pytest.raises(ApiRejected, match="Role") as refused:
            await client.get_lease(timeout_s=TIMEOUT_S)
        assert refused.value.status == 403
        await client.close()


@pytest.mark.asyncio
async def test_what_a_pod_runs_can_not_be_changed(cluster: RealCluster) -> None:
    administrator, namespace = cluster.administrator, cluster.namespace
    administrator.create_pod(namespace, "router-a", labels=LABELS, ip="192.0.2.10")
    before = administrator.pod(namespace, "router-a")["spec"]
    patch = {"spec": {"containers": [{"name": "egress-dns-proxy", "image": "another"}]}}
    path = f"/api/v1/namespaces/{namespace}/pods/router-a/status"
    administrator.ask("PATCH", path, patch, content_type="application/merge-patch+json")
    assert administrator.pod(namespace, "router-a")["spec"] == before
