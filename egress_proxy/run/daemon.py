"""`egress-proxy run`: puts the parts together, starts them, and ends them in order.

Starting: addresses, ports and limits first, so that what can't work is told before anything
listens; then names, all at once; a port listens as soon as it has an address to connect to.

Ending: go on accepting for a moment while the cluster withdraws the endpoints, close the
listeners, let sessions finish, reset those that are left.
"""

from __future__ import annotations

import asyncio
import gc
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from egress_proxy import __version__
from egress_proxy.config.run_variables import DESTINATION_FILE
from egress_proxy.config.settings import read_destinations
from egress_proxy.dns.resolver import Resolver
from egress_proxy.errors import PlatformError
from egress_proxy.events import (
    ConfigReloaded,
    DaemonDefect,
    DaemonDraining,
    DaemonReady,
    DaemonStarted,
    DaemonStopped,
    LogSwitched,
    Observer,
    Observers,
    Reason,
)
from egress_proxy.forwarding.admission import Admission, maximum_connections, raise_descriptor_limit
from egress_proxy.forwarding.connection import Plant
from egress_proxy.forwarding.health_checks import HealthChecks
from egress_proxy.forwarding.race import Connector
from egress_proxy.pod import addresses
from egress_proxy.pod.address_monitor import (
    AddressMonitor,
    choose_listen_points,
    choose_sources,
    families_to_ask_for,
)
from egress_proxy.relay.pipes import PipePool
from egress_proxy.relay.reactor import Reactor
from egress_proxy.relay.relay import Engine
from egress_proxy.relay.timer_wheel import TimerWheel
from egress_proxy.run.admin_port import AdminPort
from egress_proxy.run.destination_table import DestinationTable
from egress_proxy.run.reload import Reload
from egress_proxy.run.snapshot import Snapshot
from egress_proxy.telemetry.counters import Counters

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from egress_proxy.config.destinations import Destination
    from egress_proxy.config.settings import Settings
    from egress_proxy.pod.addresses import Interfaces

# After SIGTERM clients still come until every node has heard that the pod is going.
_WITHDRAWAL_S = 2.0


class Log(Observer, Protocol):
    """Where events are written; `debug` decides how many."""

    debug: bool

    @property
    def dropped(self) -> int: ...


class Shutdown:
    """What the outside wants: `asked` to drain, or `forced` to end at once."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.forced = asyncio.Event()

    def request(self) -> None:
        """Drain; asked once more, end at once."""
        if self.requested.is_set():
            self.forced.set()
        self.requested.set()


class Daemon:
    """Everything that one process runs."""

    def __init__(
        self, settings: Settings, interfaces: Interfaces, log: Log, environ: Mapping[str, str]
    ) -> None:
        """Raise `PlatformError` when there is no source address or no room for connections.

        A reload reads the destinations from `environ`, or the file it names.
        """
        loop = asyncio.get_running_loop()
        self._started_at = monotonic()
        self._settings = settings
        self._environ = environ
        self._log = log
        counters = Counters()
        self._observer = Observers(log, counters)
        sources = choose_sources(settings, interfaces)
        # Where the cluster reaches the pod, and the LAN does not.
        inside = addresses.listen_points(
            interfaces, settings.interface, by_device=addresses.can_listen_by_device()
        )
        self._listen = choose_listen_points(settings, inside)
        self._admin_port = AdminPort(settings.admin_listen, inside)
        self._descriptors = raise_descriptor_limit()
        engine = Engine(
            loop,
            Reactor(
                loop, lambda error: self._observer.observe(DaemonDefect.of(error, "connection"))
            ),
            PipePool(),
        )
        self._plant = Plant(
            engine=engine,
            wheel=TimerWheel(loop),
            admission=Admission(loop, self._observer, self._maximum(settings.destinations)),
            connector=Connector(engine.reactor, sources),
            observer=self._observer,
        )
        self._resolver = Resolver(settings.nameservers, families_to_ask_for(sources, interfaces))
        self._address_monitor = AddressMonitor(loop, sources, self._observer)
        admin = settings.admin_listen
        policy = replace(
            settings.address_policy,
            listening=frozenset() if admin is None else frozenset({admin.port}),
        )
        self._table = DestinationTable(
            settings,
            self._plant,
            self._address_monitor,
            self._listen,
            self._resolver.lookup,
            policy,
        )
        self._address_monitor.on_change = lambda: self._table.reach(self._address_monitor.families)
        self._address_monitor.on_addresses_changed = self._table.set_own_addresses
        self._snapshot = Snapshot(
            settings, self._plant.admission, self._address_monitor, self._table, counters, log
        )
        self._reload = Reload(
            self._read_destinations,
            self._change,
            self._observer,
            environ.get(DESTINATION_FILE.name, "").strip(),
        )
        self._tasks: list[asyncio.Task[None]] = []

    def reload(self) -> None:
        """Read the destinations again."""
        self._reload.ask()

    def toggle_debug(self) -> None:
        """Begin, or stop, to write a record for each connection and each answer."""
        self._log.debug = not self._log.debug
        self._table.record_source_port(wanted=self._log.debug)
        self._observer.observe(LogSwitched(debug=self._log.debug))

    def _maximum(self, destinations: Sequence[Destination]) -> int:
        return maximum_connections(
            self._settings.max_connections,
            self._descriptors,
            len(destinations) * len(self._listen),
        )

    def _read_destinations(self) -> Sequence[Destination]:
        return read_destinations(
            self._environ,
            policy=self._settings.address_policy,
            admin_listen=self._settings.admin_listen,
        )

    async def _change(self, destinations: Sequence[Destination]) -> ConfigReloaded:
        maximum = self._maximum(destinations)
        before = list(self._table.forwarders.values())
        changes = await self._table.change(destinations)
        self._plant.admission.maximum = maximum
        self._snapshot.forget(before)
        return changes

    async def run(self, shutdown: Shutdown) -> None:
        """Forward until `shutdown`, and then drain.

        Raises `PlatformError` with all that stands in the way of starting.
        """
        try:
            await self._start()
            await shutdown.requested.wait()
            await self._drain(shutdown)
        finally:
            await self._release()

    async def _start(self) -> None:
        # First: what leads back to the pod is told with all else that can't work.
        self._address_monitor.start()
        problems = self._admin_port.bind()
        self._table.deny_listeners(self._settings.destinations)
        try:
            forwarders = self._table.bind(self._settings.destinations)
        except PlatformError as error:
            forwarders = []
            problems += error.problems
        if problems:
            raise PlatformError(*problems)
        self._observer.observe(
            DaemonStarted(
                version=__version__,
                source=tuple(self._plant.connector.sources.values()),
                listen=tuple(dict.fromkeys(str(point.address) for point in self._listen)),
                destinations=len(forwarders),
                max_connections=self._plant.admission.maximum,
            )
        )
        self._table.open(forwarders)
        await self._admin_port.serve(self._snapshot.take)
        self._tasks = [
            asyncio.create_task(self._announce_ready(), name="announce ready"),
            asyncio.create_task(self._reload.run(), name="reload"),
            asyncio.create_task(
                self._resolver.watch(self._table.refresh), name="watch resolv.conf"
            ),
        ]
        if self._settings.health_interval_s:
            checks = HealthChecks(
                self._plant.connector,
                lambda: (forwarder.upstreams for forwarder in self._table.forwarders.values()),
                self._settings.health_interval_s,
            )
            self._tasks.append(asyncio.create_task(checks.run(), name="check health"))
        # What lives until the end need not be looked at by the garbage collector again.
        gc.collect()
        gc.freeze()

    async def _announce_ready(self) -> None:
        await self._table.asked()
        forwarders = self._table.forwarders.values()
        self._observer.observe(
            DaemonReady(
                listeners=sum(forwarder.listening for forwarder in forwarders),
                unresolved=tuple(
                    forwarder.destination.port
                    for forwarder in forwarders
                    if not forwarder.listening
                ),
                startup_s=monotonic() - self._started_at,
            )
        )

    async def _drain(self, shutdown: Shutdown) -> None:
        timeout_s = self._settings.drain_timeout_s
        admission = self._plant.admission
        self._snapshot.draining = True
        self._observer.observe(DaemonDraining(connections=admission.active, timeout_s=timeout_s))
        # 0. What was decided last holds: a reload would open ports again.
        await self._end_tasks()
        forced = asyncio.create_task(shutdown.forced.wait(), name="wait for a second signal")
        # 1. Clients that have not heard yet are still served.
        await asyncio.wait({forced}, timeout=min(_WITHDRAWAL_S, timeout_s))
        # 2. No more clients.
        self._table.close()
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

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _release(self) -> None:
        """Give everything back, in reverse; also after a start that failed half way."""
        await self._end_tasks()
        await self._admin_port.stop()
        self._address_monitor.stop()
        await self._table.stop()
        await self._resolver.close()
        self._abort_connections()
        self._plant.admission.stop()
        self._plant.wheel.stop()
        self._plant.engine.reactor.stop()
        self._plant.engine.pipes.close()
