"""What `KubernetesClient` and a Kubernetes API server agree on, as tests.

They run against the stand-in of the other tests (``tests/integration``) and against the real one
(``tests/cluster``): what holds for one holds for the other. A subclass gives the fixture `cluster`;
each test has a namespace of its own, so that it finds no lease and no pod.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from egress_proxy.hold.api_errors import ApiConflict, ApiRejected
from egress_proxy.hold.kubernetes import KubernetesClient
from egress_proxy.hold.objects import Lease

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from egress_proxy.hold.api_server import ApiServer
    from tests.support.administrator import Administrator

NAME = "egress-router"
TIMEOUT_S = 10.0
MINE = Lease(
    name=NAME,
    holder="router-a",
    duration_s=2,
    acquire_time="2026-01-01T00:00:00.000001Z",
    renew_time="2026-01-01T00:00:00.500000Z",
    annotations={"example.com/kept": "yes"},
)
LABELS = {"egress-proxy/lease": NAME, "egress-proxy/role": "standby"}


class Cluster(ABC):
    """An API server, and a namespace in it whose Role is that of the overlay."""

    administrator: Administrator
    namespace: str

    @abstractmethod
    def server(self) -> ApiServer:
        """How a pod of the namespace reaches it, with the service account's token."""


@contextlib.asynccontextmanager
async def client_of(cluster: Cluster) -> AsyncIterator[KubernetesClient]:
    client = KubernetesClient(cluster.server(), namespace=cluster.namespace, lease=NAME)
    try:
        yield client
    finally:
        await client.close()


@contextlib.asynccontextmanager
async def watching(client: KubernetesClient) -> AsyncIterator[AsyncGenerator[Lease | None, None]]:
    async with contextlib.aclosing(client.watch_lease()) as states:
        yield states


async def following(states: AsyncIterator[Lease | None]) -> Lease | None:
    async with asyncio.timeout(TIMEOUT_S):
        return await anext(states)


@pytest.mark.asyncio
class ApiContract:
    """The tests; see the module."""

    async def test_no_lease_is_none(self, cluster: Cluster) -> None:
        async with client_of(cluster) as client:
            assert await client.get_lease(timeout_s=TIMEOUT_S) is None

    async def test_a_lease_comes_back_as_it_was_written(self, cluster: Cluster) -> None:
        async with client_of(cluster) as client:
            made = await client.create_lease(MINE, timeout_s=TIMEOUT_S)
            assert replace(made, resource_version="") == MINE
            assert await client.get_lease(timeout_s=TIMEOUT_S) == made

    async def test_the_second_to_create_it_has_a_conflict(self, cluster: Cluster) -> None:
        async with client_of(cluster) as client:
            await client.create_lease(MINE, timeout_s=TIMEOUT_S)
            with pytest.raises(ApiConflict):
                await client.create_lease(replace(MINE, holder="router-b"), timeout_s=TIMEOUT_S)

    async def test_a_stale_version_is_a_conflict_and_changes_nothing(
        self, cluster: Cluster
    ) -> None:
        async with client_of(cluster) as client:
            first = await client.create_lease(MINE, timeout_s=TIMEOUT_S)
            taken = await client.update_lease(
                replace(first, holder="router-b", transitions=1), timeout_s=TIMEOUT_S
            )
            assert taken.resource_version != first.resource_version
            with pytest.raises(ApiConflict):
                await client.update_lease(first, timeout_s=TIMEOUT_S)
            assert await client.get_lease(timeout_s=TIMEOUT_S) == taken

    async def test_a_release_is_an_empty_holder_for_one_second(self, cluster: Cluster) -> None:
        async with client_of(cluster) as client:
            made = await client.create_lease(MINE, timeout_s=TIMEOUT_S)
            freed = await client.update_lease(
                replace(made, holder="", duration_s=1), timeout_s=TIMEOUT_S
            )
            assert (freed.holder, freed.duration_s) == ("", 1)

    async def test_a_write_keeps_what_others_have_set(self, cluster: Cluster) -> None:
        async with client_of(cluster) as client, watching(client) as states:
            assert await following(states) is None
            await client.create_lease(MINE, timeout_s=TIMEOUT_S)
            assert await following(states) == await client.get_lease(timeout_s=TIMEOUT_S)
            document = cluster.administrator.ask("GET", lease_path(cluster))
            document["metadata"]["labels"] = {"example.com/team": "network"}
            document["metadata"]["finalizers"] = ["example.com/kept"]
            cluster.administrator.ask("PUT", lease_path(cluster), document)
            seen = await following(states)
            read = await client.get_lease(timeout_s=TIMEOUT_S)
            for base in (seen, read):
                assert base is not None
                latest = await client.get_lease(timeout_s=TIMEOUT_S)
                assert latest is not None
                version = latest.resource_version
                written = replace(base, holder="router-b", annotations={}, resource_version=version)
                await client.update_lease(written, timeout_s=TIMEOUT_S)
                document = cluster.administrator.ask("GET", lease_path(cluster))
                assert document["metadata"]["labels"] == {"example.com/team": "network"}
                assert document["metadata"]["finalizers"] == ["example.com/kept"]
                assert not document["metadata"].get("annotations")
                assert document["spec"]["holderIdentity"] == "router-b"
            document["metadata"]["finalizers"] = []
            cluster.administrator.ask("PUT", lease_path(cluster), document)

    async def test_a_duration_of_nothing_is_refused(self, cluster: Cluster) -> None:
        async with client_of(cluster) as client:
            with pytest.raises(ApiRejected) as refused:
                await client.create_lease(replace(MINE, duration_s=0), timeout_s=TIMEOUT_S)
            assert refused.value.status == 422

    async def test_a_time_needs_six_digits_of_a_second(self, cluster: Cluster) -> None:
        async with client_of(cluster) as client:
            wrong = replace(MINE, renew_time="2026-01-01T00:00:00Z")
            with pytest.raises(ApiRejected) as refused:
                await client.create_lease(wrong, timeout_s=TIMEOUT_S)
            assert refused.value.status == 400

    async def test_an_update_of_what_is_gone_makes_it_again(self, cluster: Cluster) -> None:
        async with client_of(cluster) as client:
            made = await client.create_lease(MINE, timeout_s=TIMEOUT_S)
            cluster.administrator.ask("DELETE", lease_path(cluster))
            again = await client.update_lease(made, timeout_s=TIMEOUT_S)
            assert again.resource_version != made.resource_version

    async def test_an_update_of_one_that_was_made_again_is_a_conflict(
        self, cluster: Cluster
    ) -> None:
        async with client_of(cluster) as client:
            made = await client.create_lease(MINE, timeout_s=TIMEOUT_S)
            cluster.administrator.ask("DELETE", lease_path(cluster))
            await client.create_lease(MINE, timeout_s=TIMEOUT_S)
            with pytest.raises(ApiConflict):
                await client.update_lease(made, timeout_s=TIMEOUT_S)

    async def test_a_watch_shows_each_state_from_the_beginning(self, cluster: Cluster) -> None:
        async with client_of(cluster) as client, watching(client) as states:
            assert await following(states) is None
            made = await client.create_lease(MINE, timeout_s=TIMEOUT_S)
            assert await following(states) == made
            renewed = await client.update_lease(
                replace(made, renew_time="2026-01-01T00:00:01.000000Z"), timeout_s=TIMEOUT_S
            )
            assert await following(states) == renewed
            cluster.administrator.ask("DELETE", lease_path(cluster))
            assert await following(states) is None

    async def test_a_watch_that_starts_later_begins_with_what_is(self, cluster: Cluster) -> None:
        async with client_of(cluster) as client:
            made = await client.create_lease(MINE, timeout_s=TIMEOUT_S)
            async with watching(client) as states:
                assert await following(states) == made

    async def test_pods_are_found_by_their_labels(self, cluster: Cluster) -> None:
        create, namespace = cluster.administrator.create_pod, cluster.namespace
        create(namespace, "router-a", labels=LABELS, ip="192.0.2.10")
        create(namespace, "another", labels={}, ip="192.0.2.11")
        async with client_of(cluster) as client:
            (pod,) = await client.list_pods(f"egress-proxy/lease={NAME}", timeout_s=TIMEOUT_S)
        assert (pod.name, pod.ready, pod.deleting) == ("router-a", True, False)
        assert (pod.ip, pod.labels) == ("192.0.2.10", LABELS)

    async def test_a_pod_that_is_not_ready_and_one_that_ends(self, cluster: Cluster) -> None:
        administrator, namespace = cluster.administrator, cluster.namespace
        administrator.create_pod(namespace, "router-a", labels=LABELS, ip="192.0.2.10")
        administrator.set_ready(namespace, "router-a", ip="192.0.2.10", ready=False)
        administrator.create_pod(namespace, "router-b", labels=LABELS, ip="192.0.2.11")
        administrator.delete_pod(namespace, "router-b")
        async with client_of(cluster) as client:
            pods = await client.list_pods(f"egress-proxy/lease={NAME}", timeout_s=TIMEOUT_S)
        assert {pod.name: pod.ready for pod in pods}["router-a"] is False
        # A real server deletes a pod that is on no node at once.
        assert all(pod.deleting for pod in pods if pod.name == "router-b")

    async def test_labels_and_annotations_change_through_the_status(self, cluster: Cluster) -> None:
        cluster.administrator.create_pod(
            cluster.namespace, "router-a", labels={**LABELS, "gone": "soon"}, ip="192.0.2.10"
        )
        async with client_of(cluster) as client:
            await client.patch_pod(
                "router-a",
                labels={"egress-proxy/role": "active", "gone": None},
                annotations={"egress-proxy/gateway": "heard"},
                timeout_s=TIMEOUT_S,
            )
            (pod,) = await client.list_pods("egress-proxy/role=active", timeout_s=TIMEOUT_S)
        assert pod.labels == {**LABELS, "egress-proxy/role": "active"}
        assert pod.annotations["egress-proxy/gateway"] == "heard"
        assert pod.ready

    async def test_a_pod_that_is_not_there_is_refused(self, cluster: Cluster) -> None:
        async with client_of(cluster) as client:
            with pytest.raises(ApiRejected) as refused:
                await client.patch_pod("nobody", labels={"a": "b"}, timeout_s=TIMEOUT_S)
            assert refused.value.status == 404

    async def test_without_its_token_it_is_refused(self, cluster: Cluster) -> None:
        server = cluster.server()
        server.token_file.path.write_text("wrong")
        client = KubernetesClient(server, namespace=cluster.namespace, lease=NAME)
        with pytest.raises(ApiRejected) as refused:
            await client.get_lease(timeout_s=TIMEOUT_S)
        assert refused.value.status == 401
        await client.close()


def lease_path(cluster: Cluster) -> str:
    return f"/apis/coordination.k8s.io/v1/namespaces/{cluster.namespace}/leases/{NAME}"
