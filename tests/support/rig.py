"""One forwarder on loopback, in the test's own process and event loop."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, cast

from egress_proxy.config.destinations import Destination
from egress_proxy.events import ConnectionClosed, Event, Reason
from egress_proxy.forwarding.admission import Admission
from egress_proxy.forwarding.connection import Connection, SessionLimits
from egress_proxy.forwarding.data_plane import DataPlane
from egress_proxy.forwarding.forwarder import Forwarder
from egress_proxy.forwarding.listener import Listener as PortListener
from egress_proxy.forwarding.race import Connector
from egress_proxy.pod.addresses import ListenPoint
from egress_proxy.relay.pipes import Pipe, PipePool
from egress_proxy.relay.reactor import Reactor, Watcher
from egress_proxy.relay.timer_wheel import TimerWheel
from tests.support.peers import BUFFER, Listener, Peer

if TYPE_CHECKING:
    from types import TracebackType

    from egress_proxy.forwarding.upstreams import Endpoint
    from egress_proxy.relay.relay import Relay

LIMITS = SessionLimits(
    allow_clients=(),
    connect_timeout_s=60.0,
    idle_timeout_s=60.0,
    half_close_timeout_s=60.0,
    record_source_port=True,
)
# Timeouts are tested with a wheel that turns quickly, not by waiting.
TICK_S = 0.02
_EXTRA_ATTEMPTS = 64


class SmallConnector(Connector):
    """Sockets whose send buffers a test can fill."""

    def open(self, endpoint: Endpoint, watcher: Watcher) -> socket.SocketType:
        sock = super().open(endpoint, watcher)
        shrink(sock)
        return sock


def shrink(sock: socket.SocketType) -> None:
    # Receive buffers stay large: bulk must be able to gather.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)


class CountingPipes(PipePool):
    """Knows how many of its pipes are in use."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.in_use = 0

    def take(self) -> Pipe | None:
        pipe = super().take()
        self.in_use += pipe is not None
        return pipe

    def give_back(self, pipe: Pipe, *, empty: bool) -> None:
        super().give_back(pipe, empty=empty)
        self.in_use -= 1


class Recorder:
    """An observer that stores events, and wakes the tasks that wait for them."""

    def __init__(self) -> None:
        self.records: list[Event] = []
        self.defects: list[Exception] = []
        self._arrived = asyncio.Event()

    def observe(self, record: Event) -> None:
        self.records.append(record)
        self._arrived.set()

    def report(self, error: Exception) -> None:
        self.defects.append(error)

    @property
    def closed(self) -> list[ConnectionClosed]:
        return [record for record in self.records if isinstance(record, ConnectionClosed)]

    async def wait_closed(self, count: int = 1) -> list[ConnectionClosed]:
        """The records of connections, once there are `count`."""
        while len(self.closed) < count:
            self._arrived.clear()
            await self._arrived.wait()
        return self.closed

    async def wait_for(self, kind: type[Event]) -> None:
        """Wait until there is a record of `kind`."""
        while not any(isinstance(record, kind) for record in self.records):
            self._arrived.clear()
            await self._arrived.wait()


class Rig:
    """A forwarder to `listener`, made with the limits that a test changes."""

    def __init__(
        self,
        *,
        maximum: int = 1000,
        pipes: int = 64,
        address: str = "127.0.0.1",
        connector: type[Connector] = SmallConnector,
        reactor: type[Reactor] = Reactor,
        **limits: float,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.recorder = Recorder()
        self.listener = Listener(address)
        self.reactor = reactor(loop, self.recorder.report)
        self.pipes = CountingPipes(pipes)
        self.wheel = TimerWheel(loop, self.recorder.report, TICK_S)
        self.admission = Admission(loop, self.recorder, maximum)
        self.connector = connector(self.reactor, {}, _EXTRA_ATTEMPTS)
        self.data_plane = DataPlane(
            reactor=self.reactor,
            pipes=self.pipes,
            wheel=self.wheel,
            admission=self.admission,
            connector=self.connector,
            observer=self.recorder,
        )
        host = ipaddress.ip_address(address)
        self.port = port_listener = PortListener(self.data_plane, 0, "", lambda *_: None)
        self.forwarder = Forwarder(
            self.data_plane,
            replace(LIMITS, **cast("dict[str, Any]", limits)),
            Destination(port=0, host=host, remote_port=self.listener.address[1], line=1),
            port_listener,
        )
        port_listener.bind(ListenPoint(host, ""))
        for sock in port_listener.sockets:
            shrink(sock)
        self.forwarder.set_addresses((host,))
        self.address = port_listener.addresses[0]
        self._peers: list[Peer] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for peer in self._peers:
            peer.close()
        self.listener.close()
        self.forwarder.close()
        self.abort_all()
        self.admission.stop()
        self.wheel.stop()
        self.reactor.stop()
        self.pipes.close()
        assert self.recorder.defects == []

    async def client(self) -> Peer:
        """A client that has connected to the forwarder."""
        peer = await Peer.connect(self.address)
        self._peers.append(peer)
        return peer

    def unconnected_client(self) -> Peer:
        """A client's socket, made before there are no more."""
        peer = Peer.unconnected()
        self._peers.append(peer)
        return peer

    async def pair(self) -> tuple[Peer, Peer]:
        """A client and the upstream that it was connected to."""
        return await self.client(), await self.upstream()

    async def upstream(self) -> Peer:
        """The upstream that the next client was connected to."""
        peer = await self.listener.accept()
        self._peers.append(peer)
        return peer

    def abort_all(self) -> None:
        for connection in self.wheel:
            connection.abort(Reason.DRAINED)

    @property
    def connections(self) -> list[Connection]:
        return [member for member in self.wheel if isinstance(member, Connection)]

    @property
    def extra_attempts(self) -> int:
        """How many sockets are connecting beyond the first one of each client."""
        return _EXTRA_ATTEMPTS - self.connector.extra_attempts

    @property
    def racing(self) -> bool:
        """Whether a client's upstream is being connected."""
        return any(connection._race is not None for connection in self.connections)

    @property
    def relay(self) -> Relay | None:
        """The relay of the one connection there is."""
        (connection,) = self.wheel
        assert isinstance(connection, Connection)
        return connection._relay


async def turns(count: int = 1) -> None:
    """Let the event loop turn, so that what is ready happens."""
    for _ in range(count):
        await asyncio.sleep(0)
