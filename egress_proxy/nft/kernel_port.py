"""A listening port in the kernel data plane: refused by the pod itself, or translated by the rules.

Its sockets only take the port: they never listen, so that the pod refuses what the rules do not
translate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from egress_proxy.events import ListenerClosed, ListenerFailed, ListenerOpened

if TYPE_CHECKING:
    import socket

    from egress_proxy.events import Observer
    from egress_proxy.forwarding.connection import Origin
    from egress_proxy.forwarding.listener import ListenerState, OnClient
    from egress_proxy.pod.addresses import ListenPoint


class PortOwner(Protocol):
    """The data plane, which a port notifies."""

    def changed(self) -> None:
        """Ports or addresses are others from now on."""

    def leads_to(self, port: int, origin: Origin) -> None:
        """New flows to `port` are those of `origin`."""

    def release(self, port: KernelPort) -> None:
        """`port` is closed: take it out of the rules."""


class KernelPort:
    """One port: refused by the pod itself, or translated by the rules."""

    def __init__(self, plane: PortOwner, observer: Observer, port: int, destination: str) -> None:
        self._observer = observer
        self.port = port
        self.state: ListenerState = "refusing"
        self.error = ""
        self.addresses: list[tuple[str, int]] = []
        self.wanted = False
        self._plane = plane
        self._destination = destination
        self._sockets: list[socket.SocketType] = []

    def bind(self, point: ListenPoint) -> None:
        sock = point.bind(self.port)
        self._sockets.append(sock)
        self.addresses.append(sock.getsockname()[:2])

    def lead_to(self, origin: Origin, _on_client: OnClient) -> None:
        self._destination = origin.name
        self._plane.leads_to(self.port, origin)

    def open(self) -> None:
        self.wanted = True
        self._plane.changed()

    def refuse(self) -> None:
        self.wanted = False
        self._plane.changed()

    def close(self) -> None:
        self.wanted = False
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()
        self.addresses.clear()
        self._plane.release(self)

    def pause(self) -> None:
        """The rules count clients themselves."""

    def resume(self) -> None:
        """See `pause`."""

    def written(self, *, translated: bool) -> None:
        """The rules in force translate this port, or do not."""
        if translated == (self.state == "listening"):
            return
        self.state, self.error = ("listening", "") if translated else ("refusing", "")
        addresses = tuple(dict.fromkeys(address for address, _ in self.addresses))
        self._observer.observe(
            ListenerOpened(listener=self.port, destination=self._destination, addresses=addresses)
            if translated
            else ListenerClosed(listener=self.port, destination=self._destination)
        )

    def failed(self, error: OSError, retry_s: float) -> None:
        """The rules that would change this port can't be written."""
        if self.wanted == (self.state == "listening"):
            return
        if self.wanted:
            self.state, self.error = "failed", error.strerror or str(error)
        self._observer.observe(
            ListenerFailed(
                listener=self.port,
                destination=self._destination,
                address="",
                error=error.strerror or str(error),
                retry_s=retry_s,
            )
        )
