"""The port of health, metrics and the status page: bound early, served late, closed at the end.

It is bound before anything is served, so that a port that is taken is reported together with all
other problems of the start. `telemetry.admin` serves the requests.
"""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING

from egress_proxy.config.run_variables import ADMIN_LISTEN
from egress_proxy.errors import PlatformError
from egress_proxy.pod.addresses import ListenPoint
from egress_proxy.pod.preconditions import bind_problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from egress_proxy.config.run_variables import AdminListen
    from egress_proxy.errors import Problem
    from egress_proxy.telemetry.admin import AdminServer
    from egress_proxy.telemetry.pages import StatusSource


class AdminPort:
    """The port of `wanted`, if any; on the pod network (`inside`) if `wanted` has no address."""

    def __init__(self, wanted: AdminListen | None, inside: Sequence[ListenPoint]) -> None:
        self._wanted = wanted
        self._inside = inside
        self._sockets: list[socket.socket] = []
        self._server: AdminServer | None = None

    def bind(self) -> list[Problem]:
        """Bind the port; returns what prevents that."""
        if self._wanted is None:
            return []
        address, port = self._wanted
        problems = []
        for point in self._inside if address is None else (ListenPoint(address, ""),):
            try:
                # asyncio wants the class that wraps the plain one.
                self._sockets.append(socket.socket(fileno=point.bind(port).detach()))
            except OSError as error:
                problems.append(
                    bind_problem(ADMIN_LISTEN.name, str(self._wanted), point.address, error)
                )
        return problems

    async def serve(self, source: StatusSource) -> None:
        """Answer requests from now on, with the state that `source` returns.

        Raises `PlatformError` when a socket can't listen.
        """
        if not self._sockets:
            return
        # A daemon without this port does not pay for HTTP.
        from egress_proxy.telemetry.admin import BACKLOG, AdminServer  # noqa: PLC0415 - see above
        from egress_proxy.telemetry.pages import Pages  # noqa: PLC0415 - see above

        self._listen(BACKLOG)
        self._server = AdminServer(Pages(source))
        await self._server.start(self._sockets)

    def _listen(self, backlog: int) -> None:
        # uvloop would listen too, and say nothing when that fails.
        for sock in self._sockets:
            try:
                sock.listen(backlog)
            except OSError as error:
                address = ip_address(sock.getsockname()[0])
                raise PlatformError(
                    bind_problem(ADMIN_LISTEN.name, str(self._wanted), address, error)
                ) from None

    async def stop(self) -> None:
        """Close the port, served or not."""
        if self._server is not None:
            await self._server.stop()
        for sock in self._sockets:
            sock.close()
