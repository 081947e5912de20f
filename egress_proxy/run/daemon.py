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
    Ground,
    choose_listen_points,
    choose_sources,
    families_to_ask_for,
)
from egress_proxy.relay.pipes import PipePool
from egress_proxy.relay.reactor import Reactor
from egress_proxy.relay.relay import Engine
from egress_proxy.relay.timer_wheel import Wheel
from egress_proxy.run.admin_port import AdminPort
from egress_proxy.run.destination_table import Roster
from egress_proxy.run.reload import Reload
from egress_proxy.run.snapshot import Survey
from egress_proxy.telemetry.counters import Tally

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from egress_proxy.config.destinations import Destination
    from egress_proxy.config.settings import Settings
    from egress_proxy.pod.addresses import Interfaces

# After SIGTERM clients still come until every node has heard that the pod is going.
_WITHDRAWAL_S = 2.0


class Log(Observer, Protocol):
    """Where records and defects are written; `debug` decides how many."""

    debug: bool

    @property
    def dropped(self) -> int: ...

    def report(self, error: Exception) -> None: ...


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
        tally = Tally()
        self._observer = Observers(log, tally)
        sources = choose_sources(settings, interfaces)
        # Where the cluster reaches the pod, and the LAN does not.
        inside = addresses.listen_points(
            interfaces, settings.interface, by_device=addresses.can_listen_by_device()
        )
        self._listen = choose_listen_points(settings, inside)
        self._admin_port = AdminPort(settings.admin_listen, inside)
        self._descriptors = raise_descriptor_limit()
        engine = Engine(loop, Reactor(loop, log.report), PipePool())
        self._plant = Plant(
            engine=engine,
            wheel=Wheel(loop),
            admission=Admission(loop, self._observer, self._maximum(settings.destinations)),
            connector=Connector(engine.reactor, sources),
            observer=self._observer,
        )
        self._resolver = Resolver(settings.nameservers, families_to_ask_for(sources, interfaces))
        self._ground = Ground(loop, sources, self._observer)
        admin = settings.admin_listen
        denials = replace(
            settings.denials,
            listening=frozenset() if admin is None else frozenset({admin.port}),
        )
        self._roster = Roster(
            settings, self._plant, self._ground, self._listen, self._resolver.lookup, denials
        )
        self._ground.on_change = lambda: self._roster.reach(self._ground.families)
        self._ground.on_own = self._roster.deny_own
        self._survey = Survey(
            settings, self._plant.admission, self._ground, self._roster, tally, log
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
        self._roster.audit(wanted=self._log.debug)
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
            denials=self._settings.denials,
            admin_listen=self._settings.admin_listen,
        )

    async def _change(self, destinations: Sequence[Destination]) -> ConfigReloaded:
        maximum = self._maximum(destinations)
        before = list(self._roster.forwarders.values())
        changes = await self._roster.change(destinations)
        self._plant.admission.maximum = maximum
        self._survey.forget(before)
        return changes

    async def run(self, stopping: Stopping) -> None:
        """Forward until `stopping`, and then drain.

        Raises `PlatformError` with all that stands in the way of starting.
        """
        try:
            await self._start()
            await stopping.asked.wait()
            await self._drain(stopping)
        finally:
            await self._release()

    async def _start(self) -> None:
        # First: what leads back to the pod is told with all else that can't work.
        self._ground.start()
        problems = self._admin_port.bind()
        self._roster.deny_listeners(self._settings.destinations)
        try:
            forwarders = self._roster.bind(self._settings.destinations)
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
        self._roster.open(forwarders)
        await self._admin_port.serve(self._survey.take)
        self._tasks = [
            asyncio.create_task(self._announce_ready(), name="announce ready"),
            asyncio.create_task(self._reload.run(), name="reload"),
            asyncio.create_task(
                self._resolver.watch(self._roster.refresh), name="watch resolv.conf"
            ),
        ]
        if self._settings.health_interval_s:
            checks = HealthChecks(
                self._plant.connector,
                lambda: (forwarder.upstreams for forwarder in self._roster.forwarders.values()),
                self._settings.health_interval_s,
            )
            self._tasks.append(asyncio.create_task(checks.run(), name="check health"))
        # What lives until the end need not be looked at by the garbage collector again.
        gc.collect()
        gc.freeze()

    async def _announce_ready(self) -> None:
        await self._roster.asked()
        forwarders = self._roster.forwarders.values()
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

    async def _drain(self, stopping: Stopping) -> None:
        timeout_s = self._settings.drain_timeout_s
        admission = self._plant.admission
        self._survey.draining = True
        self._observer.observe(DaemonDraining(connections=admission.active, timeout_s=timeout_s))
        # 0. What was decided last holds: a reload would open ports again.
        await self._end_tasks()
        forced = asyncio.create_task(stopping.forced.wait(), name="wait for a second signal")
        # 1. Clients that have not heard yet are still served.
        await asyncio.wait({forced}, timeout=min(_WITHDRAWAL_S, timeout_s))
        # 2. No more clients.
        self._roster.close()
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
        self._ground.stop()
        await self._roster.stop()
        await self._resolver.close()
        self._abort_connections()
        self._plant.admission.stop()
        self._plant.wheel.stop()
        self._plant.engine.reactor.stop()
        self._plant.engine.pipes.close()
