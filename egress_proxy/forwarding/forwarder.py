"""One destination, from listening to the record of each connection.

A `Forwarder` listens; each client becomes a `Connection`, which connects, relays and records:
one object owns a connection from accept to record, whatever happens to it.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING

from egress_proxy.events import ListenerClosed, ListenerOpened
from egress_proxy.forwarding.connection import Connection, keep_alive
from egress_proxy.forwarding.race import EXHAUSTED
from egress_proxy.forwarding.upstreams import Upstreams
from egress_proxy.ip import family_of

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence

    from egress_proxy.config.destinations import Destination
    from egress_proxy.forwarding.connection import Plant, SessionLimits
    from egress_proxy.ip import Address
    from egress_proxy.pod.addresses import ListenPoint

_FAMILIES = frozenset({socket.AF_INET, socket.AF_INET6})

# The kernel cuts it down to net.core.somaxconn (listen(2)).
_BACKLOG = 4096

# Clients taken at once: the same thing four times in a row costs less, and who is connected already
# waits no longer than that.
_ACCEPTS = 4


class Forwarder:
    """Listens for one destination.

    `addresses` are the destination's, and `upstreams` those that there is a source for;
    `on_all_failed` is called when a client found none of them answering. `listen_error` says why
    the port cannot listen although there are upstreams; it is empty otherwise.
    """

    def __init__(self, plant: Plant, rules: SessionLimits, destination: Destination) -> None:
        self.plant = plant
        self.rules = rules
        self.destination = destination
        self.name = str(destination)
        self.upstreams = Upstreams(self.name, destination.remote_port, plant.observer)
        self.on_all_failed: Callable[[], None] = _nothing
        self.listening = False
        self.listen_error = ""
        self.addresses: tuple[Address, ...] = ()
        self._families: Container[int] = _FAMILIES
        self._listeners: list[socket.SocketType] = []

    @property
    def port(self) -> int:
        return self.destination.port

    @property
    def remote_port(self) -> int:
        return self.destination.remote_port

    def bind(self, point: ListenPoint) -> None:
        """Take the port at `point`; until `use`, clients are refused. Raises `OSError`."""
        sock = point.bind(self.destination.port)
        # Accepted sockets inherit these.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        keep_alive(sock)
        self._listeners.append(sock)

    def take_over(self, other: Forwarder) -> None:
        """Listen where `other` does, which keeps its established connections and no more.

        No client is refused meanwhile: those in the backlog come here.
        """
        admission = self.plant.admission
        if other.listening:
            admission.close(other)
        self._listeners, other._listeners = other._listeners, []
        self.listening, other.listening = other.listening, False
        if self.listening:
            admission.open(self)
        self._adjust()

    def set_addresses(self, addresses: Sequence[Address]) -> None:
        """Connect to `addresses` from now on; the first ones open the port, none close it."""
        self.addresses = tuple(addresses)
        self._adjust()

    def reach(self, families: Container[int]) -> None:
        """Connect only to addresses of `families`, those that there is a source address for.

        With no address left the port refuses its clients, until there is one again.
        """
        self._families = families
        self._adjust()

    def _adjust(self) -> None:
        usable = [address for address in self.addresses if family_of(address) in self._families]
        self.upstreams.replace(usable)
        if usable and not self.listening:
            self._listen()
        elif self.listening and not usable:
            self._refuse_clients()

    def _listen(self) -> None:
        if not self._listeners:
            return
        self.listening = True
        for sock in self._listeners:
            sock.listen(_BACKLOG)
        self.plant.admission.open(self)
        self.plant.observer.observe(
            ListenerOpened(
                listener=self.destination.port,
                destination=self.name,
                addresses=tuple(dict.fromkeys(address for address, _ in self.socket_addresses)),
            )
        )

    def _refuse_clients(self) -> None:
        self._leave_gate()
        for sock in self._listeners:
            # Linux: the port stays taken, and no longer listens (inet_shutdown in net/ipv4).
            sock.shutdown(socket.SHUT_RD)
        self._tell_closed()

    def _tell_closed(self) -> None:
        self.plant.observer.observe(
            ListenerClosed(listener=self.destination.port, destination=self.name)
        )

    @property
    def socket_addresses(self) -> list[tuple[str, int]]:
        """The address and port of each listening socket."""
        return [sock.getsockname()[:2] for sock in self._listeners]

    def resume(self) -> None:
        for sock in self._listeners:
            self.plant.engine.reactor.watch_listener(sock, _Acceptor(self, sock))

    def pause(self) -> None:
        for sock in self._listeners:
            self.plant.engine.reactor.unwatch(sock)

    def close(self) -> None:
        """Give the port up; established connections go on."""
        was_listening = self.listening
        if was_listening:
            self._leave_gate()
        for sock in self._listeners:
            sock.close()
        self._listeners.clear()
        # Once it is true.
        if was_listening:
            self._tell_closed()

    def _leave_gate(self) -> None:
        self.listening = False
        self.plant.admission.close(self)

    def accept(self, listener: socket.SocketType) -> bool:
        """Take one client out of the backlog, if one is there; whether to look for another."""
        try:
            # socket.accept() would wrap the socket in a slower class, at twice the cost.
            fd, client_address = listener._accept()  # type: ignore[attr-defined]  # noqa: SLF001 - see above
        except BlockingIOError:
            return False
        except ConnectionAbortedError:
            return True
        except OSError as error:
            if error.errno not in EXHAUSTED:
                raise
            self.plant.admission.exhausted(error.errno)
            return False
        client = socket.SocketType(listener.family, socket.SOCK_STREAM, 0, fd)
        client.setblocking(False)  # noqa: FBT003 - the method has no keyword
        Connection(self, client, client_address).begin()
        return self.plant.admission.takes_clients(self)

    def allows(self, client_address: Sequence[object]) -> bool:
        networks = self.rules.allow_clients
        if not networks:
            return True
        address = ipaddress.ip_address(str(client_address[0]))
        return any(address in network for network in networks)


def _nothing() -> None:
    """Literal addresses have nobody to ask again."""


class _Acceptor:
    """Watches one listening socket."""

    __slots__ = ("_forwarder", "_sock")

    def __init__(self, forwarder: Forwarder, sock: socket.SocketType) -> None:
        self._forwarder = forwarder
        self._sock = sock

    def ready(self, _events: int) -> None:
        accept = self._forwarder.accept
        for _ in range(_ACCEPTS):
            if not accept(self._sock):
                return

    def fail(self) -> None:
        """The listener goes on: nothing of it is broken."""
