"""`egress-proxy run`: puts the parts together, starts them, and ends them in order.

Start: addresses, ports and limits first, so that all problems are reported before anything listens;
then names, all concurrently. A port listens as soon as it has an address to connect to.

The end is in `drain`.
"""

from __future__ import annotations

import asyncio
import gc
from dataclasses import replace
from ipaddress import ip_address
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from egress_proxy import __version__
from egress_proxy.config.files import OffLoop, VersionedFile
from egress_proxy.config.run_variables import DESTINATION_FILE
from egress_proxy.config.settings import reread_destinations
from egress_proxy.dns.resolver import Resolver
from egress_proxy.errors import PlatformError
from egress_proxy.events import (
    ConfigReloaded,
    DaemonDefect,
    DaemonReady,
    DaemonStarted,
    LogSwitched,
    Observer,
    Observers,
    Reason,
)
from egress_proxy.forwarding.admission import Admission
from egress_proxy.forwarding.data_plane import DataPlane
from egress_proxy.forwarding.health_checks import HealthChecks
from egress_proxy.forwarding.plane import Plane, SplicePlane
from egress_proxy.forwarding.race import Connector
from egress_proxy.forwarding.source_gate import SourceGate
from egress_proxy.nft import conntrack
from egress_proxy.nft.kernel_plane import KernelPlane
from egress_proxy.nft.session_rules import session_rules
from egress_proxy.pod.address_monitor import (
    AddressMonitor,
    choose_listen_points,
    choose_sources,
    families_to_ask_for,
)
from egress_proxy.pod.addresses import pod_network_addresses, read_deprecated_addresses
from egress_proxy.pod.descriptors import load_libgcc, share_descriptors
from egress_proxy.pod.forwarding import Forwarding
from egress_proxy.pod.refusals import refusals_are_problems
from egress_proxy.relay.pipes import PipePool
from egress_proxy.relay.reactor import Reactor
from egress_proxy.relay.timer_wheel import TimerWheel
from egress_proxy.run.admin_port import AdminPort
from egress_proxy.run.destination_table import DestinationTable
from egress_proxy.run.drain import Drain, Shutdown, SourcePresence
from egress_proxy.run.reload import Reload
from egress_proxy.run.snapshot import Snapshot
from egress_proxy.supervisor import Supervisor
from egress_proxy.telemetry.counters import Counters

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from egress_proxy.config.destinations import Destination
    from egress_proxy.config.settings import Settings
    from egress_proxy.forwarding.plane import Session
    from egress_proxy.pod.descriptors import DescriptorBudget
    from egress_proxy.pod.facts import Pod

# Two SIGUSR1 within this time count as one.
_ONE_SIGNAL_S = 0.25


class Log(Observer, Protocol):
    """Where events are written; `debug` decides how many."""

    debug: bool

    @property
    def dropped(self) -> int: ...


class Daemon:
    """Everything that one process runs."""

    def __init__(self, settings: Settings, pod: Pod, log: Log, environ: Mapping[str, str]) -> None:
        """Raise `PlatformError` when there is no source address or no room for connections.

        A reload reads the destinations from `environ`, or the file it names.
        """
        load_libgcc()
        loop = asyncio.get_running_loop()
        self._started_at = monotonic()
        self._toggled_at = 0.0
        self._settings = settings
        self._environ = environ
        self._log = log
        counters = Counters()
        self._observer = Observers(log, counters)
        sources = choose_sources(settings, pod)
        # Where the cluster reaches the pod, and the LAN does not.
        inside = pod.inside(settings.interface)
        self._listen = choose_listen_points(settings, inside)
        self._admin_port = AdminPort(settings.admin_listen, inside)
        self._descriptors = pod.descriptors
        budget = self._budget(settings.destinations)

        def report(error: Exception) -> None:
            self._observer.observe(DaemonDefect.of(error, "connection"))

        reactor = Reactor(loop, report)
        shared = DataPlane(
            reactor=reactor,
            pipes=PipePool(budget.pipes),
            wheel=TimerWheel(loop, report),
            admission=Admission(loop, self._observer, budget.connections),
            connector=Connector(reactor, sources, budget.extra_attempts),
            observer=self._observer,
            source_gate=SourceGate(is_open=not settings.shared),
        )
        self._data_plane = shared
        self._plane = _make_plane(settings, shared, pod)
        self._supervisor = Supervisor(loop, self._observer)
        loop.set_exception_handler(self._supervisor.handle_loop_exception)
        self._resolver = Resolver(
            settings.nameservers,
            families_to_ask_for(sources, pod.interfaces),
            local_addresses=pod_network_addresses(pod.interfaces, settings.interface),
        )
        self._address_monitor = AddressMonitor(
            loop,
            sources,
            self._observer,
            read_deprecated=read_deprecated_addresses if settings.shared else None,
        )
        self._source = SourcePresence()
        admin = settings.admin_listen
        policy = replace(
            settings.address_policy,
            listening=frozenset() if admin is None else frozenset({admin.port}),
        )
        self._table = DestinationTable(
            settings,
            self._plane,
            self._address_monitor,
            self._listen,
            self._resolver.lookup,
            policy=policy,
            supervisor=self._supervisor,
        )
        self._address_monitor.on_change = self._source_changed
        self._address_monitor.on_addresses_changed = self._table.set_own_addresses
        self._snapshot = Snapshot(
            settings,
            self._plane,
            self._address_monitor,
            self._table,
            supervisor=self._supervisor,
            counters=counters,
            log=log,
        )
        self._off_loop = OffLoop()
        path = environ.get(DESTINATION_FILE.name, "").strip()
        self._reload = Reload(
            self._read_destinations,
            self._change,
            self._observer,
            VersionedFile(path, self._off_loop) if path else None,
        )

    def _source_changed(self) -> None:
        monitor, gate = self._address_monitor, self._data_plane.source_gate
        if not self._settings.shared:
            self._table.reach(monitor.families)
        elif monitor.usable:
            self._source.set(there=True)
            gate.open()
        else:
            gate.close()
            # Their sockets would not notice: packets from a removed address are lost silently.
            self._plane.look_through(_lose_source)
            self._source.set(there=False)

    def reload(self) -> None:
        """Read the destinations again."""
        self._reload.request()

    def toggle_debug(self) -> None:
        """Start or stop writing a record for each connection and each DNS answer.

        Signals in quick succession are one, as the kernel itself treats pending ones (signal(7)).
        """
        now = monotonic()
        if now - self._toggled_at < _ONE_SIGNAL_S:
            return
        self._toggled_at = now
        self._log.debug = not self._log.debug
        self._table.record_source_port(
            wanted=self._log.debug or self._settings.log_connections != "off"
        )
        self._plane.record_every_session(
            wanted=self._log.debug or self._settings.log_connections == "all"
        )
        self._observer.observe(LogSwitched(debug=self._log.debug))

    def _budget(self, destinations: Sequence[Destination]) -> DescriptorBudget:
        listeners = len(destinations) * len(self._listen)
        budget = share_descriptors(self._descriptors, listeners, self._settings.max_relayed)
        if self._settings.dataplane == "splice":
            return budget
        maximum = self._settings.max_connections or conntrack.maximum()
        return replace(budget, connections=maximum or budget.connections)

    async def _read_destinations(self) -> Sequence[Destination]:
        return await reread_destinations(
            self._environ,
            self._off_loop,
            policy=self._settings.address_policy,
            admin_listen=self._settings.admin_listen,
        )

    async def _change(self, destinations: Sequence[Destination]) -> ConfigReloaded:
        budget = self._budget(destinations)
        before = list(self._table.forwarders.values())
        await self._plane.count()
        changes = await self._table.change(destinations)
        await self._plane.settled()
        self._data_plane.admission.maximum = budget.connections
        self._snapshot.forget(before)
        return changes

    async def run(self, shutdown: Shutdown) -> None:
        """Forward until `shutdown`, and then drain.

        Raises `PlatformError` with everything that prevents a start.
        """
        try:
            with refusals_are_problems():
                await self._start()
            await shutdown.requested.wait()
            # A reload would reopen ports.
            for task in self._until_drain:
                task.cancel()
            await asyncio.wait(self._until_drain)
            drain = Drain(self._plane, self._table, self._snapshot, self._observer)
            source = self._source if self._settings.shared else None
            await drain.run(shutdown, self._settings.drain_timeout_s, source)
        finally:
            await self._release()

    async def _start(self) -> None:
        # First, so that destinations that lead back to the pod are reported together with all other
        # problems.
        self._address_monitor.start()
        problems = self._admin_port.bind()
        self._table.deny_listeners(self._settings.destinations)
        try:
            forwarders = self._table.bind(self._settings.destinations)
        except PlatformError as error:
            forwarders = []
            problems += error.problems
        problems += self._plane.problems()
        if problems:
            for forwarder in forwarders:
                forwarder.close()
            raise PlatformError(*problems)
        self._observer.observe(
            DaemonStarted(
                version=__version__,
                source=tuple(self._data_plane.connector.sources.values()),
                listen=tuple(dict.fromkeys(str(point.address) for point in self._listen)),
                destinations=len(forwarders),
                max_connections=self._data_plane.admission.maximum,
            )
        )
        self._table.open(forwarders)
        self._plane.start(self._supervisor.spawn)
        await self._admin_port.serve(self._snapshot)
        spawn = self._supervisor.spawn
        self._until_drain = [
            spawn("announce ready", self._announce_ready),
            spawn("reload", self._reload.run),
        ]
        spawn("watch resolv.conf", lambda: self._resolver.watch(self._table.refresh))
        if self._settings.health_interval_s:
            checks = HealthChecks(
                self._data_plane.connector,
                lambda: (forwarder.upstreams for forwarder in self._table.forwarders.values()),
                self._settings.health_interval_s,
            )
            spawn("check health", checks.run)
        # What lives until the end need not be scanned by the garbage collector again.
        gc.collect()
        gc.freeze()

    async def _announce_ready(self) -> None:
        await self._table.asked()
        await self._plane.settled()
        forwarders = self._table.forwarders.values()
        self._observer.observe(
            DaemonReady(
                listeners=sum(forwarder.listener.state == "listening" for forwarder in forwarders),
                unresolved=tuple(
                    forwarder.destination.port
                    for forwarder in forwarders
                    if forwarder.listener.state != "listening"
                ),
                startup_s=monotonic() - self._started_at,
            )
        )

    async def _release(self) -> None:
        """Release everything, in reverse order; also after a start that failed half way."""
        await self._supervisor.stop()
        await self._admin_port.stop()
        self._address_monitor.stop()
        await self._table.stop()
        await self._resolver.close()
        await self._plane.abort_all(Reason.DRAINED)
        await self._plane.stop()


def _lose_source(sessions: Iterable[Session]) -> None:
    for session in sessions:
        session.lose_source()


def _make_plane(settings: Settings, shared: DataPlane, pod: Pod) -> Plane:
    if settings.dataplane == "splice":
        return SplicePlane(shared)
    sources = [ip_address(address) for address in shared.connector.sources.values()]
    versions = {source.version for source in sources}
    return KernelPlane(
        shared,
        egress=settings.interface,
        sources=sources,
        limits=session_rules(settings),
        forwarding=Forwarding(pod.interfaces, settings.interface, versions),
        standby=settings.shared,
    )
