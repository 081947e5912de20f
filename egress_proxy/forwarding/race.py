"""Connects one client to the first address that answers (RFC 8305, Happy Eyeballs).

A `Race` tries the next address when one fails, or after `ATTEMPT_DELAY_S` of silence, until one
answers or the time is up. Only one socket survives; no octet of the client is sent before that.
"""

from __future__ import annotations

import errno
import os
import socket
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from egress_proxy.events import Reason
from egress_proxy.relay.reactor import ERROR, reset_on_close

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from egress_proxy.forwarding.upstreams import Endpoint
    from egress_proxy.relay.reactor import Reactor, Watcher

# RFC 8305 section 5, "Connection Attempt Delay": how long a silent address delays the next one.
ATTEMPT_DELAY_S = 0.25
# Sockets of one race at a time; for a further attempt the oldest one is closed.
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
_IN_PROGRESS = (errno.EINPROGRESS, 0)
# SO_ERROR of a socket that was connected and then reset (tcp_reset in net/ipv4/tcp_input.c); one
# that never was connected has ECONNREFUSED.
_CONNECTED_THEN_RESET = frozenset({errno.ECONNRESET, errno.EPIPE})
_REASONS = {
    errno.ECONNREFUSED: Reason.CONNECT_REFUSED,
    errno.ETIMEDOUT: Reason.CONNECT_TIMEOUT,
    **dict.fromkeys(_BLAMELESS, Reason.ERROR),
}


class ConnectHandler(Protocol):
    """Receives the result of a race: exactly one of the two is called, once."""

    def connected(self, sock: socket.SocketType, endpoint: Endpoint, events: int) -> None: ...

    def unconnected(self, reason: Reason, error_number: int, endpoint: Endpoint | None) -> None:
        """`endpoint` is the one that failed last, with `error_number`; None without endpoints."""


class Connector:
    """Makes sockets. `sources` has the source address of each family, where it is fixed.

    `extra_attempts` is how many sockets races may hold beyond one each, all together: the limit of
    connections counts one socket per upstream, and a silent name must not cost the other
    destinations their descriptors.
    """

    def __init__(
        self, reactor: Reactor, sources: dict[int, str], extra_attempts: int = 256
    ) -> None:
        self.reactor = reactor
        self.sources = sources
        self.extra_attempts = extra_attempts

    def open(self, endpoint: Endpoint, watcher: Watcher) -> socket.SocketType:
        """A socket that is connecting to `endpoint`, watched by `watcher`.

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
            if error_number not in _IN_PROGRESS:
                raise OSError(error_number, "connect")  # noqa: TRY301 - to be closed below
            self.reactor.watch(sock, watcher)
        except BaseException:
            sock.close()
            raise
        return sock


class Race:
    """The attempts for one client; `attempts` is how many sockets have been tried."""

    __slots__ = (
        "_connector",
        "_error_number",
        "_failed",
        "_handler",
        "_left",
        "_running",
        "attempts",
    )

    def __init__(
        self, connector: Connector, endpoints: Iterable[Endpoint], handler: ConnectHandler
    ) -> None:
        self._connector = connector
        self._left: Iterator[Endpoint] = iter(endpoints)
        self._handler = handler
        self._running: list[_Attempt] = []
        # The last failure.
        self._failed: Endpoint | None = None
        self._error_number = 0
        self.attempts = 0

    def start_next(self) -> None:
        """Try one more endpoint; with none left and none running, the race is lost."""
        if 0 < len(self._running) < _ATTEMPTS_AT_ONCE and not self._connector.extra_attempts:
            # Other races hold all extra sockets: this one tries again at its next timer.
            return
        for endpoint in self._left:
            if len(self._running) == _ATTEMPTS_AT_ONCE:
                self._give_up(self._remove(self._running[0]), errno.ETIMEDOUT)
            self.attempts += 1
            attempt = _Attempt(self, endpoint)
            try:
                attempt.sock = self._connector.open(endpoint, attempt)
            except OSError as error:
                self._record_failure(endpoint, error.errno or errno.EIO)
                if error.errno in EXHAUSTED:
                    break
            else:
                self._add(attempt)
                return
        if not self._running:
            self._handler.unconnected(
                _REASONS.get(self._error_number, Reason.CONNECT_UNREACHABLE),
                self._error_number,
                self._failed,
            )

    def time_out(self) -> None:
        """Give up: every endpoint that has not answered counts as failed."""
        while self._running:
            self._give_up(self._remove(self._running[-1]), errno.ETIMEDOUT)
        self._handler.unconnected(Reason.CONNECT_TIMEOUT, errno.ETIMEDOUT, self._failed)

    def cancel(self) -> None:
        """Close every socket of this race that is not handed over, with a RST.

        Not with a FIN: a remote that has already accepted must not take this for an orderly end. A
        RST leaves no TIME-WAIT either.
        """
        while self._running:
            attempt = self._remove(self._running[-1])
            reset_on_close(attempt.sock)
            self._connector.reactor.close(attempt.sock)

    def won(self, attempt: _Attempt, events: int) -> None:
        attempt.endpoint.mark_healthy()
        self._remove(attempt)
        if self._running:
            self._demote_beaten(attempt)
            self.cancel()
        self._handler.connected(attempt.sock, attempt.endpoint, events)

    def lost(self, attempt: _Attempt, error_number: int) -> None:
        self._give_up(self._remove(attempt), error_number)
        self.start_next()

    def _add(self, attempt: _Attempt) -> None:
        if self._running:
            self._connector.extra_attempts -= 1
        self._running.append(attempt)

    def _remove(self, attempt: _Attempt) -> _Attempt:
        self._running.remove(attempt)
        if self._running:
            self._connector.extra_attempts += 1
        return attempt

    def _demote_beaten(self, winner: _Attempt) -> None:
        """Demote attempts that began before `winner`, had a full delay, and did not answer."""
        now = monotonic()
        for attempt in self._running:
            before = attempt.started_at < winner.started_at
            if before and now - attempt.started_at >= ATTEMPT_DELAY_S:
                attempt.endpoint.mark_failed(now, "silent while another address answered")

    def _give_up(self, attempt: _Attempt, error_number: int) -> None:
        self._connector.reactor.close(attempt.sock)
        self._record_failure(attempt.endpoint, error_number)

    def _record_failure(self, endpoint: Endpoint, error_number: int) -> None:
        self._failed, self._error_number = endpoint, error_number
        if error_number not in _BLAMELESS:
            # Not the reactor's time, which is out of date when a timer calls this.
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
            # One that was reset after it connected has won: what the upstream sent before its RST
            # may still be unread.
            if error_number and error_number not in _CONNECTED_THEN_RESET:
                self.race.lost(self, error_number)
                return
        self.race.won(self, events)

    def fail(self) -> None:
        self.race.lost(self, errno.EIO)
