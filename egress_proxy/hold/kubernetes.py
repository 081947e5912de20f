"""The Kubernetes API, as far as `hold` needs it: one Lease and the pods of one namespace.

Requests go over kept connections, the watch over one of its own, which `lease_watch` keeps going.
The time limit of a request covers all of it, connecting included.

A request is repeated, once, only if the server closed a kept connection without an answer, and only
if repeating it is harmless: reads, and merge patches. A write of the Lease that was sent and got no
answer is `ApiUnavailable`, and may have been applied.

A Lease is written as a whole, as it was read but for the fields of `Lease`: labels and fields that
others have set stay.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

import egress_proxy
from egress_proxy.hold import lease_watch, object_json
from egress_proxy.hold.api_errors import ApiError, ApiRejected, ApiUnavailable, error_of
from egress_proxy.hold.http import Answer, Connection, HttpError, Request

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from egress_proxy.hold.api_server import ApiServer
    from egress_proxy.hold.objects import Lease, Pod

AGENT = f"egress-proxy/{egress_proxy.__version__} (hold)"
# Renewals, a list and a patch may be under way together; more connections are not kept.
_KEPT = 3
_REPEATABLE = frozenset({"GET", "PATCH"})
_JSON = "application/json"
_MERGE_PATCH = "application/merge-patch+json"


class KubernetesClient:
    """One namespace and one Lease on one API server.

    Every method raises one of `api_errors` when it fails, in `timeout_s` at the latest.
    """

    def __init__(self, server: ApiServer, *, namespace: str, lease: str) -> None:
        self._server = server
        self._namespace = quote(namespace, safe="")
        self._lease = lease
        self._kept: list[Connection] = []

    async def get_lease(self, *, timeout_s: float) -> Lease | None:
        """The Lease; None where there is none."""
        request = Request("GET", self._lease_path())
        try:
            answer = await self._request(request, timeout_s)
        except ApiRejected as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise
        return _decoded_lease(request, answer)

    async def create_lease(self, lease: Lease, *, timeout_s: float) -> Lease:
        """Create the Lease; as the server has it then. `ApiConflict` where there is one."""
        body = object_json.encode_lease(lease)
        request = Request("POST", self._leases_path(), body, _JSON)
        return _decoded_lease(request, await self._request(request, timeout_s))

    async def update_lease(self, lease: Lease, *, timeout_s: float) -> Lease:
        """Replace the Lease of `lease.resource_version`; `ApiConflict` where that is not the last.

        Without a resource version the API server would overwrite whatever is there: ValueError.
        """
        if not lease.resource_version:
            raise ValueError("a lease is updated from a resource version")
        request = Request("PUT", self._lease_path(), object_json.encode_lease(lease), _JSON)
        return _decoded_lease(request, await self._request(request, timeout_s))

    def watch_lease(
        self, failed: Callable[[ApiError], None] | None = None
    ) -> AsyncGenerator[Lease | None, None]:
        """Yields each observed state of the Lease, without end; None: there is no Lease.

        A state is not repeated. During a failure nothing is yielded; `failed` is called with each
        failure.
        """
        watched = lease_watch.WatchedLease(self._leases_path(), self._lease)
        return lease_watch.watch(self._server, AGENT, watched, failed)

    async def list_pods(self, selector: str, *, timeout_s: float) -> list[Pod]:
        """The pods of the namespace that the label selector matches."""
        query = urlencode({"labelSelector": selector})
        request = Request("GET", f"/api/v1/namespaces/{self._namespace}/pods?{query}")
        answer = await self._request(request, timeout_s)
        try:
            return object_json.decode_pods(answer.body)
        except ValueError as error:
            raise ApiUnavailable(str(request), f"the answer is no list of pods: {error}") from error

    async def patch_pod(
        self,
        name: str,
        *,
        labels: Mapping[str, str | None] | None = None,
        annotations: Mapping[str, str | None] | None = None,
        timeout_s: float,
    ) -> None:
        """Set labels and annotations of a pod; None removes one.

        By way of its status, so that the Role needs no right to change what the pod runs.
        """
        path = f"/api/v1/namespaces/{self._namespace}/pods/{quote(name, safe='')}/status"
        body = object_json.encode_metadata_patch(labels, annotations)
        await self._request(Request("PATCH", path, body, _MERGE_PATCH), timeout_s)

    async def close(self) -> None:
        """Close the kept connections; a watch ends with its iterator."""
        while self._kept:
            self._kept.pop().close()

    def _leases_path(self) -> str:
        return f"/apis/coordination.k8s.io/v1/namespaces/{self._namespace}/leases"

    def _lease_path(self) -> str:
        return f"{self._leases_path()}/{quote(self._lease, safe='')}"

    async def _request(self, request: Request, timeout_s: float) -> Answer:
        """The answer to `request` where it is a good one."""
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._exchange(request)
        except TimeoutError as error:
            raise ApiUnavailable(str(request), f"no answer within {timeout_s:g} s") from error
        except (OSError, ValueError, HttpError) as error:
            raise ApiUnavailable(str(request), str(error) or type(error).__name__) from error
        if not HTTPStatus(200) <= answer.status < HTTPStatus(300):
            raise error_of(str(request), answer)
        return answer

    async def _exchange(self, request: Request) -> Answer:
        connection = self._take() or await Connection.open(self._server, AGENT)
        fresh = connection.fresh
        try:
            answer = await connection.exchange(request)
        except HttpError as error:
            if fresh or not error.unheard or request.method not in _REPEATABLE:
                raise
            connection = await Connection.open(self._server, AGENT)
            answer = await connection.exchange(request)
        if connection.reusable and len(self._kept) < _KEPT:
            self._kept.append(connection)
        else:
            connection.close()
        return answer

    def _take(self) -> Connection | None:
        """The kept connection that was used last, if one is still good."""
        while self._kept:
            connection = self._kept.pop()
            if connection.reusable:
                return connection
            connection.close()
        return None


def _decoded_lease(request: Request, answer: Answer) -> Lease:
    """The Lease in an answer; if a write's answer has none, it was probably still applied."""
    try:
        return object_json.decode_lease(answer.body)
    except ValueError as error:
        raise ApiUnavailable(str(request), f"the answer is no lease: {error}") from error
