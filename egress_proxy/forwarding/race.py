"""Addresses become one connected socket.

`Upstreams` is what is known of a destination's addresses: their order, and which of them failed
lately. A `Race` tries them for one client (RFC 8305, Happy Eyeballs): the next address when one
fails, or after `ATTEMPT_DELAY_S` of silence, until one answers or the time is up. Only one socket
survives; no octet of the client is sent before that.

Clients find out what fails, and nobody else asks (but see `health`): an address that refuses, is
silent, or is beaten by one that was tried later goes to the back. When its penalty is over, one
client begins with it, and the others wait for what becomes of that.
"""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from egress_proxy.events import Reason
from egress_proxy.relay.reactor import ERROR, reset_on_close

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from egress_proxy.forwarding.upstreams import Endpoint
    from egress_proxy.relay.reactor import Reactor, Watcher

# RFC 8305 section 5, "Connection Attempt Delay": how long a silent address holds up the next one.
ATTEMPT_DELAY_S = 0.25
# A refused or unreachable address goes to the back for so long.
PENALTY_S = 10.0
# Sockets of one race at a time: with many silent addresses, the oldest makes room.
_ATTEMPTS_AT_ONCE = 3

_NONBLOCKING_STREAM = int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
# linux/in.h: choose the port at connect, where it need only be unique for the remote address.
_IP_BIND_ADDRESS_NO_PORT = 24

# The pod or the node has run out of something; the remote is not to blame. ENOSPC is epoll's
# (epoll(7), max_user_watches).
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC})
# All ports towards one remote address and port are in use; another may have some left.
NO_PORT = errno.EADDRNOTAVAIL
_BLAMELESS = EXHAUSTED | {NO_PORT}
_UNDER_WAY = (errno.EINPROGRESS, 0)
# What a RST means to a socket that was connected (tcp_reset in net/ipv4/tcp_input.c); one that was
# not is refused.
_RESET_SINCE = frozenset({errno.ECONNRESET, errno.EPIPE})
_REASONS = {
    errno.ECONNREFUSED: Reason.CONNECT_REFUSED,
    errno.ETIMEDOUT: Reason.CONNECT_TIMEOUT,
    **dict.fromkeys(_BLAMELESS, Reason.ERROR),
}


class ConnectHandler(Protocol):
    """Whoever wants the socket; told once, by one of the two."""

    def connected(self, sock: socket.SocketType, endpoint: Endpoint, events: int) -> None: ...

    def unconnected(self, reason: Reason, error_number: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Connector:
    """How sockets are made: by `family` the source address to send from, if it is fixed."""

    reactor: Reactor
    sources: dict[int, str]

    def open(self, endpoint: Endpoint, watcher: Watcher) -> socket.SocketType:
        """A socket that is connecting to `endpoint`, and tells `watcher`.

        Raises `OSError` when that fails at once.
        """
        sock = socket.SocketType(endpoint.family, _NONBLOCKING_STREAM)
        try:
            source = self.sources.get(endpoint.family)
            if source is not None:
                sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
                sock.bind((source, 0))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
            error_number = sock.connect_ex(endpoint.sockaddr)
            if error_number not in _UNDER_WAY:
                raise OSError(error_number, "connect")  # noqa: TRY301 - to be closed below
            self.reactor.watch(sock, watcher)
        except BaseException:
            sock.close()
            raise
        return sock


class Race:
    """The attempts for one client; `attempts` is how many sockets have been tried."""

    __slots__ = ("_connector", "_error_number", "_left", "_running", "_waiter", "attempts")

    def __init__(
        self, connector: Connector, endpoints: Iterable[Endpoint], waiter: ConnectHandler
    ) -> None:
        self._connector = connector
        self._left: Iterator[Endpoint] = iter(endpoints)
        self._waiter = waiter
        self._running: list[_Attempt] = []
        self._error_number = 0
        self.attempts = 0

    def start_next(self) -> None:
        """Try one endpoint more; with none left and none running, the race is lost."""
        for endpoint in self._left:
            self.attempts += 1
            if len(self._running) == _ATTEMPTS_AT_ONCE:
                self._give_up(self._running.pop(0), errno.ETIMEDOUT)
            attempt = _Attempt(self, endpoint)
            try:
                attempt.sock = self._connector.open(endpoint, attempt)
            except OSError as error:
                self._record_failure(endpoint, error.errno or errno.EIO)
                if error.errno in EXHAUSTED:
                    break
            else:
                self._running.append(attempt)
                return
        if not self._running:
            self._waiter.unconnected(
                _REASONS.get(self._error_number, Reason.CONNECT_UNREACHABLE), self._error_number
            )

    def time_out(self) -> None:
        """Give up: every endpoint that has not answered counts as failed."""
        while self._running:
            self._give_up(self._running.pop(), errno.ETIMEDOUT)
        self._waiter.unconnected(Reason.CONNECT_TIMEOUT, errno.ETIMEDOUT)

    def cancel(self) -> None:
        """Give up every socket that is still connecting, or connected and not yet known to be.

        A remote that has accepted already is told that nobody is there, not that all is said; and
        a RST keeps no port in use (TIME-WAIT).
        """
        for attempt in self._running:
            reset_on_close(attempt.sock)
            self._connector.reactor.close(attempt.sock)
        self._running.clear()

    def won(self, attempt: _Attempt, events: int) -> None:
        attempt.endpoint.mark_healthy()
        self._running.remove(attempt)
        if self._running:
            self._demote_beaten(attempt)
            self.cancel()
        self._waiter.connected(attempt.sock, attempt.endpoint, events)

    def lost(self, attempt: _Attempt, error_number: int) -> None:
        self._running.remove(attempt)
        self._give_up(attempt, error_number)
        self.start_next()

    def _demote_beaten(self, winner: _Attempt) -> None:
        """Send to the back who had its time and more of it than `winner`."""
        now = monotonic()
        for attempt in self._running:
            before = attempt.started_at < winner.started_at
            if before and now - attempt.started_at >= ATTEMPT_DELAY_S:
                attempt.endpoint.mark_failed(now, "silent while another address answered")

    def _give_up(self, attempt: _Attempt, error_number: int) -> None:
        self._connector.reactor.close(attempt.sock)
        self._record_failure(attempt.endpoint, error_number)

    def _record_failure(self, endpoint: Endpoint, error_number: int) -> None:
        self._error_number = error_number
        if error_number not in _BLAMELESS:
            # Not the reactor's time: a timer may have found this out, long after its last batch.
            endpoint.mark_failed(monotonic(), os.strerror(error_number))


class _Attempt:
    """One socket of a race."""

    __slots__ = ("endpoint", "race", "sock", "started_at")

    sock: socket.SocketType

    def __init__(self, race: Race, endpoint: Endpoint) -> None:
        self.race = race
        self.endpoint = endpoint
        self.started_at = monotonic()

    def ready(self, events: int) -> None:
        if events & ERROR:
            error_number = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            # Reset since, it was connected; what it sent before its RST may wait to be read.
            if error_number and error_number not in _RESET_SINCE:
                self.race.lost(self, error_number)
                return
        self.race.won(self, events)

    def fail(self) -> None:
        self.race.lost(self, errno.EIO)
