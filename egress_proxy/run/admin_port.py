"""The port of health, metrics and the status page: taken early, served late, given back.

It is taken before anything is served, so that a port that can't be had is told with all else that
stands in the way of starting. What is served there is `admin`'s.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from egress_proxy.config.run_variables import ADMIN_LISTEN
from egress_proxy.pod.addresses import ListenPoint
from egress_proxy.pod.preconditions import bind_problem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from egress_proxy.config.run_variables import AdminListen
    from egress_proxy.errors import Problem
    from egress_proxy.telemetry.admin import AdminServer
    from egress_proxy.telemetry.status import Status


class AdminPort:
    """The port of `wanted`, if any; at `inside`, where the cluster is, unless it says where."""

    def __init__(self, wanted: AdminListen | None, inside: Sequence[ListenPoint]) -> None:
        self._wanted = wanted
        self._inside = inside
        self._sockets: list[socket.socket] = []
        self._server: AdminServer | None = None

    def bind(self) -> list[Problem]:
        """Take the port; what stands in the way."""
        if self._wanted is None:
            return []
        address, port = self._wanted
        problems = []
        for point in self._inside if address is None else (ListenPoint(address, ""),):
            try:
                # asyncio wants the class that wraps the plain one.
                self._sockets.append(socket.socket(fileno=point.bind(port).detach()))
            except OSError as error:
                problems.append(bind_problem(ADMIN_LISTEN.name, port, point.address, error))
        return problems

    async def serve(self, take: Callable[[], Status]) -> None:
        """Answer from now on, with what `take` returns."""
        if not self._sockets:
            return
        # A daemon without this port does not pay for HTTP and the metrics' library.
        from egress_proxy.telemetry.admin import AdminServer, Pages  # noqa: PLC0415 - see above

        self._server = AdminServer(Pages(take))
        await self._server.start(self._sockets)

    async def stop(self) -> None:
        """Give the port back, served or not."""
        if self._server is not None:
            await self._server.stop()
        for sock in self._sockets:
            sock.close()
