"""One listening port: its sockets, and whether clients are accepted, refused, or can't be served.

A port that is bound and does not listen refuses its clients: the kernel answers with a RST. This is
done for a destination without an address. listen(2) may fail for a port that is bound: another
process of the pod that sets SO_REUSEADDR can bind and listen on it too. The port is then *failed*,
reports it, and tries again; no other port is affected.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Literal, TypeAlias

from egress_proxy.events import ListenerClosed, ListenerFailed, ListenerOpened
from egress_proxy.forwarding.keepalive import keep_alive
from egress_proxy.forwarding.race import EXHAUSTED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from egress_proxy.forwarding.connection import Origin
    from egress_proxy.forwarding.data_plane import DataPlane
    from egress_proxy.pod.addresses import ListenPoint
    from egress_proxy.relay.timer_wheel import Timer

    OnClient: TypeAlias = Callable[[socket.SocketType, Sequence[object]], None]

ListenerState: TypeAlias = Literal["refusing", "listening", "failed"]

# The kernel cuts it down to net.core.somaxconn (listen(2)).
_BACKLOG = 4096
# Clients accepted in one turn. Four in a row cost less than four turns, and connections that are
# established wait no longer than that.
_ACCEPTS = 4
# The pause before a port that could not listen tries again; doubled each time, up to the second
# value.
_RETRY_FIRST_S = 1.0
_RETRY_LAST_S = 30.0
# Errors of the new connection, not of the listener (accept(2), "Error handling"). After so many in
# a row, the listener is taken to be at fault.
_ERRORS_IN_A_ROW = 64
_OF_THE_CLIENT = frozenset(
    {
        errno.ECONNABORTED,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENONET,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.EPROTO,
    }
)


class Listener:
    """The sockets of one port, and a gate of admission.

    `destination` is the name of the destination in records, and `on_client` receives each accepted
    socket with the client's socket address; a reload may replace both.
    """

    def __init__(
        self, data_plane: DataPlane, port: int, destination: str, on_client: OnClient
    ) -> None:
        self.port = port
        self.destination = destination
        self.on_client = on_client
        self.state: ListenerState = "refusing"
        # Why the port can't listen; empty unless the state is "failed".
        self.error = ""
        # The address and port of each socket.
        self.addresses: list[tuple[str, int]] = []
        self._data_plane = data_plane
        self._sockets: list[socket.SocketType] = []
        self._listening: list[socket.SocketType] = []
        self._watched: list[socket.SocketType] = []
        self._accept_errors = 0
        self._retry: Timer | None = None
        self._retry_s = _RETRY_FIRST_S

    def bind(self, point: ListenPoint) -> None:
        """Take the port at `point`; until `open`, clients are refused. Raises `OSError`."""
        sock = point.bind(self.port)
        self._sockets.append(sock)
        # Accepted sockets inherit these.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        keep_alive(sock)
        self.addresses.append(sock.getsockname()[:2])

    def lead_to(self, origin: Origin, on_client: OnClient) -> None:
        """Hand accepted clients to `on_client` from now on, those in the backlog included."""
        self.destination = origin.name
        self.on_client = on_client

    @property
    def sockets(self) -> Sequence[socket.SocketType]:
        return self._sockets

    def open(self) -> None:
        """Accept clients; a port that can't listen tries again by itself."""
        if self.state == "refusing" and self._sockets:
            self._listen()

    def refuse(self) -> None:
        """Refuse clients from now on; established connections go on."""
        if self._stop():
            self._data_plane.observer.observe(
                ListenerClosed(listener=self.port, destination=self.destination)
            )

    def close(self) -> None:
        """Close the port; established connections go on."""
        was_listening = self._stop()
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()
        self.addresses.clear()
        if was_listening:
            self._data_plane.observer.observe(
                ListenerClosed(listener=self.port, destination=self.destination)
            )

    def resume(self) -> None:
        """Watch for clients. Raises `OSError`, and then watches for none."""
        try:
            for sock in self._sockets[len(self._watched) :]:
                self._data_plane.reactor.watch_listener(sock, _Acceptor(self, sock))
                self._watched.append(sock)
        except OSError:
            self.pause()
            raise

    def pause(self) -> None:
        """Leave clients in the backlog."""
        while self._watched:
            self._data_plane.reactor.unwatch(self._watched.pop())

    def accept(self, listening: socket.SocketType) -> bool:
        """Take one client out of the backlog, if one is there; whether to look for another."""
        try:
            # socket.accept() would wrap the socket in a slower class, at twice the cost.
            fd, client_address = listening._accept()  # type: ignore[attr-defined]  # noqa: SLF001 - see above
        except BlockingIOError:
            return False
        except OSError as error:
            return self._accept_failed(error.errno or errno.EIO)
        self._accept_errors = 0
        client = socket.SocketType(listening.family, socket.SOCK_STREAM, 0, fd)
        client.setblocking(False)  # noqa: FBT003 - the method has no keyword
        self.on_client(client, client_address)
        return self._data_plane.admission.takes_clients(self)

    def _accept_failed(self, error_number: int) -> bool:
        self._accept_errors += 1
        if error_number in _OF_THE_CLIENT and self._accept_errors % _ERRORS_IN_A_ROW:
            return True
        admission = self._data_plane.admission
        if error_number in EXHAUSTED:
            admission.exhausted(error_number)
        else:
            # The socket stays readable, so without a pause this would be a busy loop.
            admission.pause_one(self, error_number)
        return False

    def _listen(self) -> None:
        self._retry = None
        for sock, (address, _) in zip(self._sockets, self.addresses, strict=True):
            try:
                sock.listen(_BACKLOG)
            except OSError as error:
                self._stop_listening()
                self._failed(address, error)
                return
            self._listening.append(sock)
        self.state, self.error, self._retry_s = "listening", "", _RETRY_FIRST_S
        self._data_plane.admission.open(self)
        self._data_plane.observer.observe(
            ListenerOpened(
                listener=self.port,
                destination=self.destination,
                addresses=tuple(dict.fromkeys(address for address, _ in self.addresses)),
            )
        )

    def _failed(self, address: str, error: OSError) -> None:
        self.state, self.error = "failed", error.strerror or str(error)
        retry_s, self._retry_s = self._retry_s, min(2 * self._retry_s, _RETRY_LAST_S)
        self._retry = self._data_plane.reactor.loop.call_later(retry_s, self._listen)
        self._data_plane.observer.observe(
            ListenerFailed(
                listener=self.port,
                destination=self.destination,
                address=address,
                error=self.error,
                retry_s=retry_s,
            )
        )

    def _stop(self) -> bool:
        """Stop listening, or trying to; whether the port was listening."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        was_listening = self.state == "listening"
        if was_listening:
            self._data_plane.admission.close(self)
            self._stop_listening()
        self.state, self.error, self._retry_s = "refusing", "", _RETRY_FIRST_S
        return was_listening

    def _stop_listening(self) -> None:
        # Linux: the socket stays bound, and no longer listens. Only for a listening socket: another
        # one would pass the shutdown on to the connections that it accepts later (inet_shutdown in
        # net/ipv4/af_inet.c).
        while self._listening:
            self._listening.pop().shutdown(socket.SHUT_RD)


class _Acceptor:
    """Watches one listening socket."""

    __slots__ = ("_listener", "_sock")

    def __init__(self, listener: Listener, sock: socket.SocketType) -> None:
        self._listener = listener
        self._sock = sock

    def ready(self, _events: int) -> None:
        accept = self._listener.accept
        for _ in range(_ACCEPTS):
            if not accept(self._sock):
                return

    def fail(self) -> None:
        """The listener itself is not broken, so it continues."""
