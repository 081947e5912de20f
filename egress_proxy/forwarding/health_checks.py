"""Active health checks, when the administrator sets EGRESS_DNS_PROXY_HEALTH_INTERVAL.

By default nothing is sent to a remote that no client asked for. A check is a TCP connection from
the same source address, reset as soon as it is connected. Only destinations with several addresses
are checked: with one address, a client has no choice.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

from egress_proxy.forwarding.race import Race
from egress_proxy.relay.reactor import reset_on_close

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    from egress_proxy.events import Reason
    from egress_proxy.forwarding.race import Connector
    from egress_proxy.forwarding.upstreams import Endpoint, Upstreams

# A client that can use another address would not wait longer for this one.
_TIMEOUT_S = 2.0
# How many checks run at once: few, so that the descriptors remain for clients.
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
        """Check all of them at every interval, until cancelled."""
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
                # Until the next check is over, so that no client tries it first.
                endpoint.failed_until = monotonic() + self._interval_s + _TIMEOUT_S


class _Outcome:
    """Waits for a race of one endpoint; the endpoint itself records how it ended."""

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self.known = asyncio.Event()

    def connected(self, sock: socket.SocketType, _endpoint: Endpoint, _events: int) -> None:
        # A FIN would leave TIME-WAIT on the reserved address, one per check.
        reset_on_close(sock)
        self._connector.reactor.close(sock)
        self.known.set()

    def unconnected(self, _reason: Reason, _error_number: int, _endpoint: Endpoint | None) -> None:
        self.known.set()
