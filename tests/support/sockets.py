"""A data plane without a kernel: sockets that do what a test says, and a reactor that a test turns.

For unit tests of what decides: what is listened on, connected, watched and closed is written down,
and a call fails where a test wants it to.
"""

from __future__ import annotations

import errno
import socket
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from egress_proxy.events import ConnectionClosed, Event
from egress_proxy.forwarding.admission import Admission
from egress_proxy.forwarding.data_plane import DataPlane
from egress_proxy.relay.pipes import PipePool
from egress_proxy.relay.timer_wheel import TimerWheel
from tests.support.manual_loop import ManualLoop

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

    from egress_proxy.forwarding.upstreams import Endpoint
    from egress_proxy.pod.addresses import ListenPoint
    from egress_proxy.relay.reactor import Watcher
    from egress_proxy.relay.timer_wheel import Timers

_DESCRIPTORS = count(1 << 20)


class FakeSocket:
    """One socket; `failing` gives the error number of a method that is to fail."""

    family = socket.AF_INET

    def __init__(self, address: tuple[str, int] = ("127.0.0.1", 80)) -> None:
        self.address = address
        self.failing: dict[str, int] = {}
        self.options: dict[tuple[int, int], Any] = {}
        self.listening = False
        self.closed = False
        # Clients in the backlog; an error number is what accept(2) says in one's place.
        self.backlog: list[FakeSocket | int] = []
        self._descriptor = next(_DESCRIPTORS)

    @property
    def real(self) -> socket.SocketType:
        """The same for the type checker."""
        return cast("socket.SocketType", self)

    @property
    def reset(self) -> bool:
        """Whether it was closed with a RST."""
        return self.closed and (socket.SOL_SOCKET, socket.SO_LINGER) in self.options

    def _call(self, method: str) -> None:
        assert not self.closed, f"{method} after close"
        if method in self.failing:
            raise OSError(self.failing[method], f"as if {method} failed")

    def fileno(self) -> int:
        return self._descriptor

    def getsockname(self) -> tuple[str, int]:
        return self.address

    def setsockopt(self, level: int, option: int, value: object) -> None:
        self._call("setsockopt")
        self.options[level, option] = value

    def getsockopt(self, _level: int, _option: int) -> int:
        return self.failing.get("connect", 0)

    def listen(self, _backlog: int) -> None:
        self._call("listen")
        self.listening = True

    def shutdown(self, _how: int) -> None:
        self._call("shutdown")
        self.listening = False

    def _accept(self) -> tuple[int, tuple[str, int]]:
        self._call("accept")
        if not self.backlog:
            raise BlockingIOError
        error_number = self.backlog.pop(0)
        assert isinstance(error_number, int)
        raise OSError(error_number, "as if accept failed")

    def recv_into(self, _buffer: object) -> int:
        self._call("recv_into")
        raise BlockingIOError

    def close(self) -> None:
        self.closed = True


class FakePoint:
    """Where to listen: hands out a socket for each port, and keeps it in `sockets`."""

    def __init__(self, address: IPv4Address | IPv6Address) -> None:
        self.address = address
        self.device = ""
        self.taken: set[int] = set()
        self.sockets: dict[int, FakeSocket] = {}

    @property
    def real(self) -> ListenPoint:
        """The same for the type checker."""
        return cast("ListenPoint", self)

    def bind(self, port: int) -> socket.SocketType:
        held = self.sockets.get(port)
        if port in self.taken or (held is not None and not held.closed):
            raise OSError(errno.EADDRINUSE, "Address already in use")
        self.sockets[port] = FakeSocket((str(self.address), port))
        return self.sockets[port].real


class FakeReactor:
    """Watches without epoll; `room` is for how many, and `full` what the next one gets to hear."""

    def __init__(self, loop: Timers) -> None:
        self.loop = loop
        # Connections compare it with the clock of the machine.
        self.now = monotonic()
        self.room = 1 << 20
        self.full = errno.ENOSPC
        self.watchers: dict[object, Watcher] = {}

    def watch(self, sock: socket.SocketType, watcher: Watcher) -> None:
        if len(self.watchers) >= self.room:
            raise OSError(self.full, "as if epoll had no room")
        assert sock not in self.watchers
        self.watchers[sock] = watcher

    watch_listener = watch

    def unwatch(self, sock: socket.SocketType) -> None:
        del self.watchers[sock]

    def pass_on(self, sock: socket.SocketType, watcher: Watcher) -> None:
        assert sock in self.watchers
        self.watchers[sock] = watcher

    def close(self, sock: socket.SocketType) -> None:
        self.watchers.pop(sock, None)
        sock.close()

    def again(self, watcher: Watcher) -> None:
        raise NotImplementedError(watcher)


class FakeConnector:
    """Connects to nothing: `attempts` are the endpoints that were tried, with their sockets.

    `failing` is the error number with which each next one fails at once.
    """

    def __init__(self, reactor: FakeReactor) -> None:
        self.reactor = reactor
        self.sources: dict[int, str] = {}
        self.extra_attempts = 64
        self.failing = 0
        self.attempts: list[tuple[Endpoint, FakeSocket]] = []

    def open(self, endpoint: Endpoint, watcher: Watcher) -> socket.SocketType:
        if self.failing:
            raise OSError(self.failing, "as if connect failed")
        sock = FakeSocket(("192.0.2.99", 40000))
        self.attempts.append((endpoint, sock))
        self.reactor.watch(sock.real, watcher)
        return sock.real


class Plane:
    """A `DataPlane` of these parts, with all events in `records`.

    The time is that of `timers`: by default `loop`, which the test advances.
    """

    def __init__(self, maximum: int = 100, timers: Timers | None = None) -> None:
        self.loop = ManualLoop(now=1000.0)
        timers = timers or self.loop
        self.records: list[Event] = []
        self.defects: list[Exception] = []
        self.reactor = FakeReactor(timers)
        self.connector = FakeConnector(self.reactor)
        self.admission = Admission(timers, self, maximum)
        self.wheel = TimerWheel(timers, self.defects.append)
        self.plane = DataPlane(
            reactor=cast("Any", self.reactor),
            pipes=PipePool(0),
            wheel=self.wheel,
            admission=self.admission,
            connector=cast("Any", self.connector),
            observer=self,
        )

    def observe(self, record: Event) -> None:
        self.records.append(record)

    @property
    def closed(self) -> list[ConnectionClosed]:
        return [record for record in self.records if isinstance(record, ConnectionClosed)]

    def take_records(self) -> list[Event]:
        """The records since the last call."""
        taken, self.records = self.records, []
        return taken
