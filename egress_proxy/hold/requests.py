"""The elector's requests to the API server; each result is an event for the elector."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from egress_proxy.hold import messages
from egress_proxy.hold.api_errors import (
    ApiConflict,
    ApiError,
    ApiRejected,
    ApiTooManyRequests,
)
from egress_proxy.hold.labels import Pods

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from egress_proxy.hold.labels import Labels
    from egress_proxy.hold.messages import Failure, Input
    from egress_proxy.hold.objects import Lease
    from egress_proxy.hold.pages import Counts

_NOT_FOUND = 404


class Client(Pods, Protocol):
    """The Kubernetes API; each method raises `ApiError`."""

    async def get_lease(self, *, timeout_s: float) -> Lease | None: ...

    async def create_lease(self, lease: Lease, *, timeout_s: float) -> Lease: ...

    async def update_lease(self, lease: Lease, *, timeout_s: float) -> Lease: ...

    def watch_lease(
        self, failed: Callable[[ApiError], None] | None = None
    ) -> AsyncGenerator[Lease | None, None]: ...

    async def close(self) -> None: ...


class Requests:
    """Reads and writes the Lease `name`, and the labels; each request takes `timeout_s` at most."""

    def __init__(
        self, client: Client, labels: Labels, counts: Counts, name: str, timeout_s: float
    ) -> None:
        self._client = client
        self._labels = labels
        self._counts = counts
        self._name = name
        self._timeout_s = timeout_s

    async def read(self) -> Input:
        try:
            lease = await self._client.get_lease(timeout_s=self._timeout_s)
        except ApiError as error:
            return _failed(error)
        return messages.RequestDone(lease)

    async def write(self, lease: Lease, *, acquire: bool) -> Input:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        written = replace(
            lease,
            name=self._name,
            renew_time=now,
            acquire_time=now if acquire or not lease.acquire_time else lease.acquire_time,
        )
        write = self._client.update_lease if lease.resource_version else self._client.create_lease
        try:
            done = await write(written, timeout_s=self._timeout_s)
        except ApiError as error:
            failed = _failed(error)
            self._counts.renewals[failed.failure] += 1
            return failed
        self._counts.renewals["done"] += 1
        return messages.RequestDone(done)

    async def list_pods(self) -> Input:
        try:
            return messages.PodsListed(await self._labels.list_pods())
        except ApiError:
            return messages.PodsListed(None)

    async def hand_over(self, successor: str) -> Input:
        try:
            await self._labels.hand_over(successor)
        except ApiError:
            return messages.HandedOver(done=False)
        return messages.HandedOver(done=True)


def _failed(error: ApiError) -> messages.RequestFailed:
    match error:
        case ApiConflict():
            failure: Failure = "conflict"
        case ApiRejected(status=status):
            # The Lease was deleted: decisions based on it are void.
            failure = "conflict" if status == _NOT_FOUND else "refused"
        case ApiTooManyRequests(retry_after_s=retry_after_s):
            return messages.RequestFailed("refused", str(error), retry_after_s)
        case _:
            failure = "doubtful"
    return messages.RequestFailed(failure, str(error))
