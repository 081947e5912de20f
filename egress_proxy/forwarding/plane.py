"""What takes clients and carries their octets: one protocol, two data planes.

`SplicePlane` is this room's: the daemon accepts, connects and relays. In `nft.kernel_plane` the
kernel translates and forwards. What is above (names, reload, drain, telemetry) works with either.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from egress_proxy.forwarding.connection import Connection
from egress_proxy.forwarding.listener import Listener

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from egress_proxy.errors import Problem
    from egress_proxy.events import Reason
    from egress_proxy.forwarding.connection import Origin
    from egress_proxy.forwarding.data_plane import DataPlane
    from egress_proxy.forwarding.listener import ListenerState, OnClient
    from egress_proxy.ip import Address
    from egress_proxy.pod.addresses import ListenPoint

# So many are looked at before the event loop turns; each is about half a millisecond's work.
_CONNECTIONS_PER_TURN = 1000


class Session(Protocol):
    """A client's connection. `address` is the upstream's socket address, once there is one."""

    @property
    def origin(self) -> Origin: ...

    @property
    def host(self) -> Address | str: ...

    @property
    def address(self) -> Sequence[object] | None: ...

    @property
    def client_address(self) -> Sequence[object]: ...

    @property
    def accepted_at(self) -> float | None:
        """Monotonic seconds, as `touched`: when an octet was last seen. None if not known."""

    @property
    def touched(self) -> float | None: ...

    @property
    def relayed(self) -> tuple[int, int]:
        """The octets to the upstream and to the client, as far as they are known."""

    @property
    def closed(self) -> bool: ...

    def lose_source(self) -> None:
        """The source address goes."""

    def abort(self, reason: Reason) -> None:
        """End it, and record `reason`."""


class Port(Protocol):
    """One listening port of the pod; a gate of admission.

    It is bound from `bind` until `close`. Clients are refused until `open`, and after `refuse`.
    """

    @property
    def port(self) -> int: ...

    @property
    def state(self) -> ListenerState: ...

    @property
    def error(self) -> str:
        """Why the port can't listen; empty unless the state is "failed"."""

    @property
    def addresses(self) -> Sequence[tuple[str, int]]: ...

    def bind(self, point: ListenPoint) -> None:
        """Take the port at `point`. Raises `OSError`."""

    def lead_to(self, origin: Origin, on_client: OnClient) -> None:
        """Clients are those of `origin` from now on; `on_client` takes the accepted ones."""

    def open(self) -> None:
        """Let clients in, and use the addresses that the origin has now."""

    def refuse(self) -> None: ...

    def close(self) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Plane(Protocol):
    """A data plane; `shared` is what its sessions and health checks use."""

    @property
    def shared(self) -> DataPlane: ...

    def make_port(self, port: int, destination: str) -> Port:
        """A port that is not bound yet; `destination` is the name for records."""

    async def sessions(self) -> Iterable[Session]:
        """All that are open. Raises OSError."""

    def look_through(self, use: Callable[[Iterable[Session]], None]) -> None:
        """Call `use` with all sessions that are open, now or soon."""

    def record_every_session(self, *, wanted: bool) -> None:
        """Whether the events of all sessions are needed, or only those of failed ones."""

    def problems(self) -> list[Problem]:
        """What stands in the way of a start. Changes nothing."""

    def start(self, spawn: Callable[..., object]) -> None:
        """Begin, with long tasks of the supervisor's `spawn`. Raises `PlatformError`."""

    async def settled(self) -> None:
        """Wait until the last changes of the ports are in force, or have failed."""

    async def count(self) -> None:
        """Bring the figures in each `Origin.live` up to date, and how many sessions there are."""

    async def emptied(self) -> None:
        """Wait until there is no session. The ports are closed already."""

    async def abort_all(self, reason: Reason) -> int:
        """End all sessions; how many there were."""

    async def stop(self) -> None:
        """Give everything back. The ports are closed already."""


class SplicePlane:
    """The daemon itself accepts, connects and relays."""

    def __init__(self, shared: DataPlane) -> None:
        self.shared = shared

    def make_port(self, port: int, destination: str) -> Port:
        return Listener(self.shared, port, destination, _reset_at_once)

    async def sessions(self) -> Iterator[Connection]:
        return self._connections()

    def look_through(self, use: Callable[[Iterable[Connection]], None]) -> None:
        use(self._connections())

    def _connections(self) -> Iterator[Connection]:
        return (member for member in self.shared.wheel if isinstance(member, Connection))

    def record_every_session(self, *, wanted: bool) -> None:
        """Every session has an event."""

    def problems(self) -> list[Problem]:
        return []

    def start(self, spawn: Callable[..., object]) -> None:
        """Ports begin by themselves."""

    async def settled(self) -> None:
        """Changes of ports are in force at once."""

    async def count(self) -> None:
        for number, connection in enumerate(self._connections(), 1):
            connection.count_bytes()
            if number % _CONNECTIONS_PER_TURN == 0:
                await asyncio.sleep(0)

    async def emptied(self) -> None:
        await self.shared.admission.emptied()

    async def abort_all(self, reason: Reason) -> int:
        left = self.shared.admission.active
        for connection in self.shared.wheel:
            connection.abort(reason)
        return left

    async def stop(self) -> None:
        self.shared.admission.stop()
        self.shared.wheel.stop()
        self.shared.reactor.stop()
        self.shared.pipes.close()


def _reset_at_once(*_: object) -> None:
    """Until its forwarder is there a listener is only bound, and has no clients."""
