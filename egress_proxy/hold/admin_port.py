"""The port of health and metrics of `hold`, where the kubelet and Prometheus reach the pod."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from egress_proxy.config.hold_variables import ADMIN_LISTEN
from egress_proxy.errors import PlatformError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from egress_proxy.config.run_variables import AdminListen
    from egress_proxy.hold.pages import HoldPages
    from egress_proxy.ip import Address
    from egress_proxy.telemetry.admin import AdminServer


class AdminPort:
    """The port of `listen`, if any; without an address, on `pod_ip` and inside the pod."""

    def __init__(self, listen: AdminListen | None, pod_ip: Address) -> None:
        self._listen = listen
        self._pod_ip = pod_ip
        self._sockets: list[socket.socket] = []
        self._server: AdminServer | None = None

    def bind(self) -> None:
        """Take the port. Raises `PlatformError`."""
        if self._listen is None:
            return
        for host in self._hosts(self._listen):
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            try:
                self._sockets.append(socket.create_server((host, self._listen.port), family=family))
            except OSError as error:
                raise PlatformError(
                    Problem(
                        variable=ADMIN_LISTEN.name,
                        value=f"{host} port {self._listen.port}",
                        reason=f"can't listen: {error.strerror}",
                        cure="choose another port, or off",
                    )
                ) from error

    async def serve(self, pages: HoldPages) -> None:
        """Answer requests from now on."""
        if not self._sockets:
            return
        # Without this port HTTP is not needed.
        from egress_proxy.telemetry.admin import AdminServer  # noqa: PLC0415 - see above

        self._server = AdminServer(pages)
        await self._server.start(self._sockets)

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop()
        for sock in self._sockets:
            sock.close()

    def _hosts(self, listen: AdminListen) -> Iterator[str]:
        if listen.address is not None:
            yield str(listen.address)
            return
        yield str(self._pod_ip)
        loopback = "::1" if self._pod_ip.version == 6 else "127.0.0.1"  # noqa: PLR2004 - IPv6
        if loopback != str(self._pod_ip):
            yield loopback
