"""The watch of one Lease: lists it, receives its changes, and starts over whenever that ends.

It ends when the server says so (410 Gone, its own time limit), when the connection breaks, and when
nothing came for `SILENCE_S`: an active pod renews several times a second, so either the watch is
dead or the active pod is. Each start is a new connection: where one API server of several is gone,
the next connection leads to another.

Bookmarks are asked for and only say that the watch is alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from egress_proxy.hold import object_json
from egress_proxy.hold.api_errors import ApiError, ApiTooManyRequests, ApiUnavailable, error_of
from egress_proxy.hold.http import Connection, HttpError, Request

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from egress_proxy.hold.api_server import ApiServer
    from egress_proxy.hold.objects import Lease

# The longest default lease is renewed every 0.5 s; a released one is listed so often.
SILENCE_S = 3.0
# To connect, to list, and until a watch is accepted.
_REQUEST_TIMEOUT_S = 2.0
# The duration that is asked for; the server may end a watch earlier.
_WATCH_S = 300
# After a failure; doubled with each, with jitter, up to the second value.
_FIRST_PAUSE_S = 0.05
_LAST_PAUSE_S = 1.0
# The end of a watch that has lasted this long is not a failure.
_STEADY_S = 1.0


@dataclass(frozen=True, slots=True)
class WatchedLease:
    """Which lease: its name, and the path of the leases of its namespace."""

    path: str
    name: str

    def list_request(self) -> Request:
        return Request("GET", f"{self.path}?{urlencode(self._selector())}")

    def watch_request(self, version: str) -> Request:
        query = {
            **self._selector(),
            "watch": "1",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(_WATCH_S),
        }
        return Request("GET", f"{self.path}?{urlencode(query)}")

    def _selector(self) -> dict[str, str]:
        # A Role that names the lease allows list and watch of this one alone.
        return {"fieldSelector": f"metadata.name={self.name}"}


async def watch(
    server: ApiServer,
    agent: str,
    lease: WatchedLease,
    failed: Callable[[ApiError], None] | None = None,
) -> AsyncGenerator[Lease | None, None]:
    """Yields each observed state of the Lease, without end; None: there is no Lease.

    A state is not repeated. `failed` is called with each failure, before the pause that follows.
    """
    seen: Lease | None = None
    first = True
    failures = 0
    while True:
        started = time.monotonic()
        pause_s = 0.0
        try:
            async with contextlib.aclosing(_session(server, agent, lease)) as states:
                async for state in states:
                    if first or state != seen:
                        first = False
                        seen = state
                        yield state
        except ApiError as error:
            if failed is not None:
                failed(error)
            if isinstance(error, ApiTooManyRequests):
                pause_s = error.retry_after_s
        failures = 0 if time.monotonic() - started >= _STEADY_S else failures + 1
        await asyncio.sleep(max(pause_s, backoff_s(failures)))


def backoff_s(failures: int) -> float:
    """The pause after this number of failures in a row, which may be 0."""
    if not failures:
        return 0.0
    longest = min(_FIRST_PAUSE_S * 2.0 ** min(failures - 1, 16), _LAST_PAUSE_S)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - spreads pods, protects nothing


async def _session(
    server: ApiServer, agent: str, lease: WatchedLease
) -> AsyncGenerator[Lease | None, None]:
    """One list and one watch; ends with the watch, and raises `ApiError` where it failed."""
    connection: Connection | None = None
    request = lease.list_request()
    try:
        async with asyncio.timeout(_REQUEST_TIMEOUT_S):
            connection = await Connection.open(server, agent)
            answer = await connection.exchange(request)
        if answer.status != HTTPStatus.OK:
            raise error_of(str(request), answer)
        state, version = object_json.decode_lease_list(answer.body, lease.name)
        yield state
        request = lease.watch_request(version)
        async with asyncio.timeout(_REQUEST_TIMEOUT_S):
            if not connection.reusable:
                connection.close()
                connection = await Connection.open(server, agent)
            answer, lines = await connection.stream(request)
        if answer.status != HTTPStatus.OK:
            raise error_of(str(request), answer)
        async for line in _until_silence(lines):
            event = object_json.decode_event(line)
            if event.type == "ERROR":
                # Most often 410: the version is too old to continue from.
                raise ApiUnavailable(str(request), event.status.message or event.status.reason)
            if event.lease is not None and event.lease.name == lease.name:
                yield None if event.type == "DELETED" else event.lease
    except (OSError, ValueError, HttpError) as error:
        raise ApiUnavailable(str(request), str(error) or "no answer in time") from error
    finally:
        if connection is not None:
            connection.close()


async def _until_silence(lines: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    while True:
        try:
            async with asyncio.timeout(SILENCE_S):
                line = await anext(lines, None)
        except TimeoutError:
            return
        if line is None:
            return
        yield line
