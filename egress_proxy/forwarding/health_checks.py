"""Checks of addresses without a client, for an admin who asks for them.

Only with EGRESS_DNS_PROXY_HEALTH_INTERVAL: by default nothing is sent to a remote that no client
asked for. A check is a TCP connection from the same source, closed as soon as it is there, and only
addresses that have others beside them are checked: a client has no choice about the only one.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

from egress_proxy.forwarding.race import Race

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    from egress_proxy.events import Reason
    from egress_proxy.forwarding.race import Connector
    from egress_proxy.forwarding.upstreams import Endpoint, Upstreams

# A remote that takes longer is of no use to a client that has another one to go to.
_TIMEOUT_S = 2.0
# Descriptors are for clients: checks take no more than so many at once.
_CHECKS_AT_ONCE = 8


class HealthChecks:
    """Checks the endpoints of all `upstreams` every `interval_s` seconds."""

    def __init__(
        self,
        connector: Connector,
        upstreams: Callable[[], Iterable[Upstreams]],
        interval_s: float,
    ) -> None:
        self._connector = connector
        self._upstreams = upstreams
        self._interval_s = interval_s
        self._places = asyncio.Semaphore(_CHECKS_AT_ONCE)

    async def run(self) -> None:
        """Wait, check all of them, wait again; until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            async with asyncio.TaskGroup() as checks:
                for upstreams in self._upstreams():
                    if len(upstreams.endpoints) > 1:
                        for endpoint in upstreams.endpoints:
                            checks.create_task(self._check(endpoint))

    async def _check(self, endpoint: Endpoint) -> None:
        async with self._places:
            outcome = _Outcome(self._connector)
            race = Race(self._connector, (endpoint,), outcome)
            race.start_next()
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    await outcome.known.wait()
            except TimeoutError:
                race.time_out()
            finally:
                race.cancel()
            if endpoint.failed_until:
                # Until the next check has had its time, so that no client need find out.
                endpoint.failed_until = monotonic() + self._interval_s + _TIMEOUT_S


class _Outcome:
    """Waits for a race of one; what is to be known of it is in the endpoint."""

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self.known = asyncio.Event()

    def connected(self, sock: socket.SocketType, _endpoint: Endpoint, _events: int) -> None:
        self._connector.reactor.close(sock)
        self.known.set()

    def unconnected(self, _reason: Reason, _error_number: int) -> None:
        self.known.set()
