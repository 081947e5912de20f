"""The client of the Kubernetes API against the stand-in: the contract, and what goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from egress_proxy.hold.api_errors import (
    ApiConflict,
    ApiError,
    ApiRejected,
    ApiTooManyRequests,
    ApiUnavailable,
)
from egress_proxy.hold.api_server import ApiServer
from egress_proxy.hold.kubernetes import KubernetesClient
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
from tests.support.api_process import TOKEN, ApiProcess
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from egress_proxy.hold.objects import Lease

pytestmark = pytest.mark.asyncio


class StandIn(Cluster):
    """The stand-in as a cluster."""

    namespace = "egress"

    def __init__(self, api: ApiProcess) -> None:
        self.administrator = api
        self._api = api

    def server(self) -> ApiServer:
        return ApiServer.in_cluster(
            self._api.environment, source="127.0.0.1", mount=self._api.folder
        )


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiProcess]:
    with ApiProcess(tmp_path) as serving:
        yield serving


@pytest.fixture
def cluster(api: ApiProcess) -> StandIn:
    return StandIn(api)


class TestContract(ApiContract):
    """The stand-in keeps it."""


def asked(api: ApiProcess, method: str) -> int:
    return sum(request["method"] == method for request in api.requests())


@contextlib.asynccontextmanager
async def next_state(
    api: ApiProcess, states: AsyncIterator[Lease | None]
) -> AsyncIterator[asyncio.Task[Lease | None]]:
    """The state after this one, once the server has the request for the watch."""
    task = asyncio.create_task(following(states))
    await asyncio.to_thread(
        wait_until, lambda: any("watch" in request["query"] for request in api.requests())
    )
    yield task
    await task


async def test_requests_share_a_connection(api: ApiProcess, cluster: StandIn) -> None:
    async with client_of(cluster) as client:
        for _ in range(3):
            await client.get_lease(timeout_s=TIMEOUT_S)
        assert len({request["connection"] for request in api.requests()}) == 1


async def test_a_rotated_token_is_read_again(api: ApiProcess, cluster: StandIn) -> None:
    async with client_of(cluster) as client:
        await client.get_lease(timeout_s=TIMEOUT_S)
        api.order(tokens=["renewed"])
        (api.folder / "..token").write_text("renewed")
        (api.folder / "..token").replace(api.folder / "token")
        assert await client.get_lease(timeout_s=TIMEOUT_S) is None


async def test_a_token_that_is_gone_for_a_moment_stays_in_use(
    api: ApiProcess, cluster: StandIn
) -> None:
    async with client_of(cluster) as client:
        (api.folder / "token").unlink()
        assert await client.get_lease(timeout_s=TIMEOUT_S) is None


async def test_a_kept_connection_that_was_closed_costs_no_write(
    api: ApiProcess, cluster: StandIn
) -> None:
    async with client_of(cluster) as client:
        await client.get_lease(timeout_s=TIMEOUT_S)
        api.order(hang_up=True)
        made = await client.create_lease(MINE, timeout_s=TIMEOUT_S)
        assert made.holder == MINE.holder


async def test_a_kept_connection_that_closes_under_a_read_costs_no_read(
    api: ApiProcess, cluster: StandIn
) -> None:
    async with client_of(cluster) as client:
        await client.get_lease(timeout_s=TIMEOUT_S)
        api.order(drop=1)
        assert await client.get_lease(timeout_s=TIMEOUT_S) is None
        assert asked(api, "GET") == 3


async def test_a_write_whose_answer_is_lost_is_not_repeated(
    api: ApiProcess, cluster: StandIn
) -> None:
    async with client_of(cluster) as client:
        made = await client.create_lease(MINE, timeout_s=TIMEOUT_S)
        api.order(lose=1)
        with pytest.raises(ApiUnavailable):
            await client.update_lease(replace(made, transitions=7), timeout_s=TIMEOUT_S)
        assert asked(api, "PUT") == 1
        found = await client.get_lease(timeout_s=TIMEOUT_S)
        assert found is not None
        assert found.transitions == 7


async def test_a_patch_whose_answer_is_lost_is_repeated(api: ApiProcess, cluster: StandIn) -> None:
    api.create_pod(cluster.namespace, "router-a", labels=LABELS, ip="192.0.2.10")
    async with client_of(cluster) as client:
        await client.get_lease(timeout_s=TIMEOUT_S)
        api.order(lose=1)
        await client.patch_pod("router-a", labels={"role": "active"}, timeout_s=TIMEOUT_S)
        assert asked(api, "PATCH") == 2


async def test_silence_ends_at_the_time_limit(api: ApiProcess, cluster: StandIn) -> None:
    async with client_of(cluster) as client:
        api.order(silent=True)
        with pytest.raises(ApiUnavailable, match=r"no answer within 0\.2 s"):
            await client.get_lease(timeout_s=0.2)
        api.order(silent=False)
        # The answer that was not waited for is on a connection that is closed.
        assert await client.get_lease(timeout_s=TIMEOUT_S) is None
        made = await client.create_lease(MINE, timeout_s=TIMEOUT_S)
        assert made.holder == MINE.holder


async def test_a_busy_server_gives_the_time_to_wait(api: ApiProcess, cluster: StandIn) -> None:
    async with client_of(cluster) as client:
        api.order(busy=1)
        with pytest.raises(ApiTooManyRequests) as told:
            await client.get_lease(timeout_s=TIMEOUT_S)
        assert told.value.retry_after_s == 1.0
        assert await client.get_lease(timeout_s=TIMEOUT_S) is None


async def test_a_server_that_is_gone_is_unavailable(api: ApiProcess, cluster: StandIn) -> None:
    async with client_of(cluster) as client:
        await client.get_lease(timeout_s=TIMEOUT_S)
        api.kill()
        with pytest.raises(ApiUnavailable):
            await client.get_lease(timeout_s=TIMEOUT_S)


async def test_another_authority_is_not_trusted(
    api: ApiProcess, cluster: StandIn, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other")
    with ApiProcess(other) as impostor:
        environment = api.environment | {"KUBERNETES_SERVICE_PORT": str(impostor.port)}
        server = ApiServer.in_cluster(environment, mount=api.folder)
        client = KubernetesClient(server, namespace=cluster.namespace, lease=NAME)
        with pytest.raises(ApiUnavailable, match="certificate"):
            await client.get_lease(timeout_s=TIMEOUT_S)
        assert impostor.requests() == []


async def test_an_ipv6_server(tmp_path: Path) -> None:
    with ApiProcess(tmp_path, address="::1") as api:
        server = ApiServer.in_cluster(api.environment, source="::1", mount=tmp_path)
        client = KubernetesClient(server, namespace="egress", lease=NAME)
        assert await client.get_lease(timeout_s=TIMEOUT_S) is None
        await client.close()


async def test_after_an_answer_of_500_a_write_may_have_been_applied(
    api: ApiProcess, cluster: StandIn
) -> None:
    async with client_of(cluster) as client:
        api.order(broken=1)
        with pytest.raises(ApiUnavailable, match="500"):
            await client.create_lease(MINE, timeout_s=TIMEOUT_S)


async def test_a_lease_without_a_version_is_never_put(cluster: StandIn) -> None:
    async with client_of(cluster) as client:
        with pytest.raises(ValueError, match="resource version"):
            await client.update_lease(MINE, timeout_s=TIMEOUT_S)


async def test_requests_come_from_the_pods_own_address(api: ApiProcess, cluster: StandIn) -> None:
    server = ApiServer.in_cluster(api.environment, source="127.0.0.9", mount=api.folder)
    client = KubernetesClient(server, namespace=cluster.namespace, lease=NAME)
    await client.get_lease(timeout_s=TIMEOUT_S)
    async with watching(client) as states:
        await following(states)
    await client.close()
    assert {request["client"] for request in api.requests()} == {"127.0.0.9"}


async def test_a_watch_survives_a_compaction(api: ApiProcess, cluster: StandIn) -> None:
    async with client_of(cluster) as client, watching(client) as states:
        assert await following(states) is None
        async with next_state(api, states) as state:
            # Seen by the watch only after the history before it is gone: 410.
            api.order(silent=True)
            api.create_pod(cluster.namespace, "router-a", labels=LABELS, ip="192.0.2.10")
            api.order(compact=True)
            api.order(silent=False)
            made = await client.create_lease(MINE, timeout_s=TIMEOUT_S)
            assert await state == made


async def test_a_watch_comes_back_when_the_connection_broke(
    api: ApiProcess, cluster: StandIn
) -> None:
    failures: list[ApiError] = []
    async with (
        client_of(cluster) as client,
        contextlib.aclosing(client.watch_lease(failures.append)) as states,
    ):
        assert await following(states) is None
        async with next_state(api, states) as state:
            api.order(hang_up=True)
            made = await client.create_lease(MINE, timeout_s=TIMEOUT_S)
            assert await state == made
    assert [type(failure) for failure in failures] == [ApiUnavailable]


async def test_a_watch_that_is_refused_waits_as_long_as_the_server_asks(
    api: ApiProcess, cluster: StandIn
) -> None:
    failures: list[ApiError] = []
    api.order(busy=1)
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with (
        client_of(cluster) as client,
        contextlib.aclosing(client.watch_lease(failures.append)) as states,
    ):
        assert await following(states) is None
    assert [type(failure) for failure in failures] == [ApiTooManyRequests]
    assert loop.time() - began >= 1.0


async def test_a_watch_without_permission_reports_it(api: ApiProcess, cluster: StandIn) -> None:
    refused: asyncio.Future[ApiError] = asyncio.get_running_loop().create_future()

    def failed(error: ApiError) -> None:
        if not refused.done():
            refused.set_result(error)

    api.order(tokens=[])
    async with (
        client_of(cluster) as client,
        contextlib.aclosing(client.watch_lease(failed)) as states,
    ):
        waiting = asyncio.ensure_future(anext(states))
        error = await asyncio.wait_for(refused, TIMEOUT_S)
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
    assert isinstance(error, ApiRejected)
    api.order(tokens=[TOKEN])


async def test_a_silent_watch_is_replaced(api: ApiProcess, cluster: StandIn) -> None:
    async with client_of(cluster) as client, watching(client) as states:
        assert await following(states) is None
        async with next_state(api, states) as state:
            # The watch's own connection is dead from here on, and nothing says so.
            api.order(deaf=True)
            made = await client.create_lease(MINE, timeout_s=TIMEOUT_S)
            assert await state == made


async def test_two_writers_of_one_version_one_wins(cluster: StandIn) -> None:
    async with client_of(cluster) as one, client_of(cluster) as other:
        made = await one.create_lease(MINE, timeout_s=TIMEOUT_S)
        results = await asyncio.gather(
            one.update_lease(replace(made, holder="a"), timeout_s=TIMEOUT_S),
            other.update_lease(replace(made, holder="b"), timeout_s=TIMEOUT_S),
            return_exceptions=True,
        )
    assert sum(isinstance(result, ApiConflict) for result in results) == 1
