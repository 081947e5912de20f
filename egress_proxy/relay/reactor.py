"""One edge-triggered epoll for all relayed sockets, watched by the event loop.

The event loop sees a single readable descriptor; behind it, each socket is registered once and
never modified, which is what makes a relayed byte cheap. asyncio (with uvloop) keeps running DNS,
timers, signals and the admin port beside it.

A watcher is called for *changes* of its socket (epoll(7), edge-triggered): after "readable" it must
read until the socket is drained, or ask to be called `again`. Two rules keep batches correct:

- A socket is closed only after the batch: the kernel may give its descriptor to a new socket while
  events of the old one still wait in the batch. Until then the socket has no watcher.
- When a watcher raises, its `fail` is called and the other watchers go on.
"""

from __future__ import annotations

import select
import socket
import struct
from time import monotonic
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

IN = select.EPOLLIN
OUT = select.EPOLLOUT
ERROR = select.EPOLLERR
# The peer has sent its FIN; bytes before it may still be unread.
PEER_FINISHED = select.EPOLLRDHUP
URGENT = select.EPOLLPRI

_EDGES = IN | OUT | PEER_FINISHED | URGENT | select.EPOLLET

# Events per epoll_wait(2); a longer list would come from a slower part of malloc.
_BATCH = 64
# Batches may follow each other for this long before the event loop gets its turn; another batch is
# worth while when the last one had at least _BUSY events.
_BATCHES_S = 0.005
_BUSY = 2


# SO_LINGER {on, 0 s}: close(2) sends a RST (socket(7)).
_LINGER_RESET = struct.pack("ii", 1, 0)


def reset_on_close(sock: socket.SocketType) -> None:
    """Make the close of `sock` a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)


class Watcher(Protocol):
    """Receives the events of one socket."""

    def ready(self, events: int) -> None: ...

    def fail(self) -> None:
        """End the connection in which `ready` raised."""


class _NoWatcher:
    """Ignores events of sockets that were closed or unwatched during the batch."""

    def ready(self, events: int) -> None: ...

    def fail(self) -> None: ...


_NO_WATCHER = _NoWatcher()


class Reactor:
    """Dispatches events to watchers.

    `now` is the time of the batch, in seconds of time.monotonic(). `report` receives what a watcher
    raises: a defect of this program, never something a peer can cause.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, report: Callable[[Exception], None]
    ) -> None:
        self.loop = loop
        self._report = report
        self._epoll = select.epoll()
        # Indexed by descriptor.
        self._watchers: list[Watcher] = []
        # A dict, so that each is in it once and in order.
        self._again: dict[Watcher, None] = {}
        self._closing: list[socket.SocketType] = []
        self._in_batch = False
        self.now = monotonic()
        loop.add_reader(self._epoll.fileno(), self._run)

    def watch(self, sock: socket.SocketType, watcher: Watcher) -> None:
        """Call `watcher` for each change of `sock`; its present state counts as the first change.

        Raises `OSError` when epoll has no room for it (epoll_ctl(2): ENOSPC, ENOMEM).
        """
        self._register(sock, watcher, _EDGES)

    def watch_listener(self, sock: socket.SocketType, watcher: Watcher) -> None:
        """Call `watcher` as long as clients wait in the listening socket's backlog.

        Raises `OSError` as `watch` does.
        """
        self._register(sock, watcher, IN)

    def _register(self, sock: socket.SocketType, watcher: Watcher, events: int) -> None:
        fd, watchers = sock.fileno(), self._watchers
        while fd >= len(watchers):
            watchers.append(_NO_WATCHER)
        self._epoll.register(fd, events)
        watchers[fd] = watcher

    def unwatch(self, sock: socket.SocketType) -> None:
        fd = sock.fileno()
        self._watchers[fd] = _NO_WATCHER
        self._epoll.unregister(fd)

    def pass_on(self, sock: socket.SocketType, watcher: Watcher) -> None:
        """Call another watcher from now on."""
        self._watchers[sock.fileno()] = watcher

    def close(self, sock: socket.SocketType) -> None:
        """Stop watching `sock`, and close it once this batch is done."""
        self._watchers[sock.fileno()] = _NO_WATCHER
        if not (self._in_batch or self._closing):
            self.loop.call_soon(self._close_sockets)
        self._closing.append(sock)

    def again(self, watcher: Watcher) -> None:
        """Call `watcher.ready(0)` after the other sockets have had their turn."""
        if not self._again:
            self.loop.call_soon(self._run_again)
        self._again[watcher] = None

    def stop(self) -> None:
        self.loop.remove_reader(self._epoll.fileno())
        self._close_sockets()
        self._epoll.close()

    def _run(self) -> None:
        until = monotonic() + _BATCHES_S
        self._in_batch = True
        try:
            while True:
                batch = self._epoll.poll(0, _BATCH)
                self.now = monotonic()
                self._dispatch(batch)
                if self._closing:
                    self._close_sockets()
                # Under load, another poll here is cheaper than a turn of the event loop, which
                # polls as well.
                if len(batch) < _BUSY or self.now > until:
                    return
        finally:
            self._in_batch = False

    def _dispatch(self, batch: list[tuple[int, int]]) -> None:
        watchers = self._watchers
        for fd, events in batch:
            try:
                watchers[fd].ready(events)
            except Exception as error:  # noqa: BLE001 - must not stop other connections
                self._fail(watchers[fd], error)

    def _run_again(self) -> None:
        self.now = monotonic()
        watchers, self._again = self._again, {}
        for watcher in watchers:
            try:
                watcher.ready(0)
            except Exception as error:  # noqa: BLE001 - as above
                self._fail(watcher, error)

    def _fail(self, watcher: Watcher, error: Exception) -> None:
        self._report(error)
        try:
            watcher.fail()
        except Exception as another:  # noqa: BLE001 - as above
            self._report(another)

    def _close_sockets(self) -> None:
        for sock in self._closing:
            sock.close()
        self._closing.clear()
