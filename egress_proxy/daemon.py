"""`egress-proxy run`: puts the parts together, starts them, and ends them in order.

Starting: addresses, ports and limits first, so that what can't work is told before anything
listens; then names, all at once; a port listens as soon as it has an address to connect to.

Ending: go on accepting for a moment while the cluster withdraws the endpoints, close the
listeners, let sessions finish, reset those that are left.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
from time import monotonic
from typing import TYPE_CHECKING

from egress_proxy import __version__, addresses
from egress_proxy.addresses import ListenPoint
from egress_proxy.admission import Admission, maximum_connections, raise_descriptor_limit
from egress_proxy.connector import Connector
from egress_proxy.destinations import Denials
from egress_proxy.errors import PlatformError, Problem
from egress_proxy.forwarder import Connection, Forwarder, Plant, Rules
from egress_proxy.health import HealthChecks
from egress_proxy.names import NameKeeper
from egress_proxy.pipes import PipePool
from egress_proxy.reactor import Reactor
from egress_proxy.records import (
    DaemonDraining,
    DaemonReady,
    DaemonStarted,
    DaemonStopped,
    Observer,
    Reason,
)
from egress_proxy.resolver import Resolver
from egress_proxy.settings import DESTINATION, LISTEN, SOURCE
from egress_proxy.splice import Engine
from egress_proxy.wheel import Wheel
from egress_proxy.withdrawals import Withdrawals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from egress_proxy.addresses import Interfaces
    from egress_proxy.destinations import Destination
    from egress_proxy.settings import Settings
    from egress_proxy.variables import Address

# After SIGTERM clients still come until every node has heard that the pod is going.
_WITHDRAWAL_S = 2.0

_BIND_CURES = {
    errno.EADDRINUSE: "another process of the pod listens there: use another port",
    errno.EADDRNOTAVAIL: f"the pod has no such address: correct {LISTEN.name}",
    errno.EACCES: (
        "let the pod's securityContext set the sysctl net.ipv4.ip_unprivileged_port_start to 0, "
        "or use a port from 1024"
    ),
}


class Stopping:
    """What the outside wants: `asked` to drain, or `forced` to end at once."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.forced = asyncio.Event()

    def ask(self) -> None:
        """Drain; asked once more, end at once."""
        if self.asked.is_set():
            self.forced.set()
        self.asked.set()


class Daemon:
    """All forwarders of one process.

    `report` is told of defects: exceptions that the program did not expect.
    """

    def __init__(
        self,
        settings: Settings,
        interfaces: Interfaces,
        observer: Observer,
        report: Callable[[Exception], None],
    ) -> None:
        """Raise `PlatformError` when there is no source address or no room for connections."""
        loop = asyncio.get_running_loop()
        self._started_at = monotonic()
        self._settings = settings
        self._observer = observer
        self._sources = choose_sources(settings, interfaces)
        self._listen = (
            addresses.listen_points(
                interfaces, settings.interface, by_device=addresses.can_listen_by_device()
            )
            if settings.listen == "auto"
            else tuple(ListenPoint(address, "") for address in settings.listen)
        )
        maximum = maximum_connections(
            settings.max_connections,
            raise_descriptor_limit(),
            len(settings.destinations) * len(self._listen),
        )
        engine = Engine(loop, Reactor(loop, report), PipePool())
        self._plant = Plant(
            engine=engine,
            wheel=Wheel(loop),
            admission=Admission(loop, observer, maximum),
            connector=Connector(engine.reactor, self._sources),
            observer=observer,
        )
        self._resolver = Resolver(settings.nameservers, self._families(interfaces))
        self._denials = Denials(
            loopback_allowed=settings.source == "any",
            networks=settings.deny,
            own=frozenset(address for entries in interfaces.values() for address in entries),
            listening=frozenset(destination.port for destination in settings.destinations),
        )
        self._keepers: dict[str, NameKeeper] = {}
        self._withdrawals: list[Withdrawals] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._forwarders: list[Forwarder] = []

    def _families(self, interfaces: Interfaces) -> set[int]:
        if self._sources:
            return set(self._sources)
        # The kernel chooses the source; it has an IPv6 one if any interface has.
        versions = {
            address.version
            for entries in interfaces.values()
            for address in entries
            if not (address.is_loopback or address.is_link_local)
        }
        return {socket.AF_INET} | ({socket.AF_INET6} if 6 in versions else set())  # noqa: PLR2004

    async def run(self, stopping: Stopping) -> None:
        """Forward until `stopping`, and then drain.

        Raises `PlatformError` with all that stands in the way of starting.
        """
        try:
            self._bind()
            self._start()
            await stopping.asked.wait()
            await self._drain(stopping)
        finally:
            await self._release()

    def _bind(self) -> None:
        rules = Rules(
            allow_clients=self._settings.allow_clients,
            connect_timeout_s=self._settings.connect_timeout_s,
            idle_timeout_s=self._settings.idle_timeout_s,
            half_close_timeout_s=self._settings.half_close_timeout_s,
            audit=self._settings.debug,
        )
        problems: list[Problem] = []
        for destination in self._settings.destinations:
            problems += _source_problems(destination, self._sources)
            problems += _loop_problems(destination, self._denials)
            forwarder = Forwarder(self._plant, rules, destination)
            self._forwarders.append(forwarder)
            for point in self._listen:
                try:
                    forwarder.bind(point)
                except OSError as error:
                    problems.append(_bind_problem(destination, point.address, error))
        if problems:
            raise PlatformError(*problems)

    def _start(self) -> None:
        self._observer.observe(
            DaemonStarted(
                version=__version__,
                source=tuple(self._sources.values()),
                listen=tuple(dict.fromkeys(str(point.address) for point in self._listen)),
                destinations=len(self._forwarders),
                max_connections=self._plant.admission.maximum,
            )
        )
        for forwarder in self._forwarders:
            host = forwarder.destination.host
            if isinstance(host, str):
                self._keeper(host).serve(forwarder)
            else:
                forwarder.use((host,))
        self._tasks = [
            asyncio.create_task(keeper.run(), name=f"resolve {keeper.name}")
            for keeper in self._keepers.values()
        ]
        self._tasks.append(asyncio.create_task(self._announce_ready(), name="announce ready"))
        self._tasks.append(
            asyncio.create_task(self._resolver.watch(self._ask_again), name="watch resolv.conf")
        )
        if self._settings.health_interval_s:
            checks = HealthChecks(
                self._plant.connector,
                lambda: (forwarder.upstreams for forwarder in self._forwarders),
                self._settings.health_interval_s,
            )
            self._tasks.append(asyncio.create_task(checks.run(), name="check health"))
        # What lives until the end need not be looked at by the garbage collector again.
        gc.collect()
        gc.freeze()

    def _keeper(self, name: str) -> NameKeeper:
        """The one keeper of `name`, however many ports lead to it."""
        if name not in self._keepers:
            self._keepers[name] = NameKeeper(
                name,
                self._resolver.lookup,
                self._observer,
                self._denials,
            )
            if self._settings.withdrawn_timeout_s:
                withdrawals = Withdrawals(
                    name,
                    self._sessions,
                    self._settings.withdrawn_timeout_s,
                    asyncio.get_running_loop(),
                )
                self._keepers[name].tell(withdrawals.use)
                self._withdrawals.append(withdrawals)
        return self._keepers[name]

    def _sessions(self) -> Iterator[Connection]:
        return (member for member in self._plant.wheel if isinstance(member, Connection))

    def _ask_again(self) -> None:
        """Ask for every name: the name servers may be others now."""
        for keeper in self._keepers.values():
            keeper.refresh()

    async def _announce_ready(self) -> None:
        for keeper in self._keepers.values():
            await keeper.asked.wait()
        self._observer.observe(
            DaemonReady(
                listeners=sum(forwarder.listening for forwarder in self._forwarders),
                unresolved=tuple(
                    forwarder.destination.port
                    for forwarder in self._forwarders
                    if not forwarder.listening
                ),
                startup_s=monotonic() - self._started_at,
            )
        )

    async def _drain(self, stopping: Stopping) -> None:
        timeout_s = self._settings.drain_timeout_s
        admission = self._plant.admission
        self._observer.observe(DaemonDraining(connections=admission.active, timeout_s=timeout_s))
        forced = asyncio.create_task(stopping.forced.wait(), name="wait for a second signal")
        # 1. Clients that have not heard yet are still served.
        await asyncio.wait({forced}, timeout=min(_WITHDRAWAL_S, timeout_s))
        # 2. No more clients.
        for forwarder in self._forwarders:
            forwarder.close()
        # 3. Sessions finish.
        emptied = asyncio.create_task(admission.emptied(), name="wait for sessions")
        await asyncio.wait(
            {forced, emptied},
            timeout=max(timeout_s - _WITHDRAWAL_S, 0),
            return_when=asyncio.FIRST_COMPLETED,
        )
        for task in (forced, emptied):
            task.cancel()
        await asyncio.gather(forced, emptied, return_exceptions=True)
        # 4. The others are cut.
        left = admission.active
        self._abort_connections()
        self._observer.observe(DaemonStopped(reset=left))

    def _abort_connections(self) -> None:
        for connection in self._plant.wheel:
            connection.abort(Reason.DRAINED)

    async def _release(self) -> None:
        """Give everything back, in reverse; also after a start that failed half way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for withdrawals in self._withdrawals:
            withdrawals.stop()
        await self._resolver.close()
        for forwarder in self._forwarders:
            forwarder.close()
        self._abort_connections()
        self._plant.admission.stop()
        self._plant.wheel.stop()
        self._plant.engine.reactor.stop()
        self._plant.engine.pipes.close()


def choose_sources(settings: Settings, interfaces: Interfaces) -> dict[int, str]:
    """The source address of each family; empty when the kernel chooses.

    Raises `PlatformError` when the wanted one is not there.
    """
    if settings.source == "any":
        return {}
    if settings.source == "auto":
        chosen = addresses.source_addresses(interfaces, settings.interface, SOURCE.name)
    else:
        chosen = settings.source
        present = {address for entries in interfaces.values() for address in entries}
        missing = [address for address in chosen if address not in present]
        if missing:
            raise PlatformError(
                *(
                    Problem(
                        variable=SOURCE.name,
                        value=str(address),
                        reason="no interface of the pod has this address",
                        cure="check that init has run, or correct the address",
                    )
                    for address in missing
                )
            )
    return {addresses.family_of(address): str(address) for address in chosen}


def _source_problems(destination: Destination, sources: dict[int, str]) -> list[Problem]:
    host = destination.host
    if isinstance(host, str) or not sources or addresses.family_of(host) in sources:
        return []
    return [
        Problem(
            variable=DESTINATION.name,
            line=destination.line,
            value=str(host),
            reason=f"there is no IPv{host.version} source address to reach it from",
            cure=f"give the egress interface one, or set {SOURCE.name}",
        )
    ]


def _loop_problems(destination: Destination, denials: Denials) -> list[Problem]:
    host = destination.host
    reason = None if isinstance(host, str) else denials.reason(host, (destination.remote_port,))
    if reason is None:
        return []
    return [
        Problem(
            variable=DESTINATION.name,
            line=destination.line,
            value=str(destination),
            reason=f"{reason} is never connected to",
            cure="write the remote host's own address",
        )
    ]


def _bind_problem(destination: Destination, address: Address, error: OSError) -> Problem:
    return Problem(
        variable=DESTINATION.name,
        line=destination.line,
        value=str(destination.port),
        reason=f"can't listen on {address}: {error.strerror}",
        cure=_BIND_CURES.get(error.errno or 0, "see the reason"),
    )
