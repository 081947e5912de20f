"""Which destinations there are: a forwarder for each port, a refresher for each name.

`change` puts other destinations in force, and is the whole of a reload: what can fail happens
first (ports are taken, new names are asked for), and then everything switches at once. What stays
the same is not touched: neither its listeners, nor its addresses, nor its connections.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from egress_proxy.dns.refresher import NameRefresher
from egress_proxy.errors import PlatformError, Problem
from egress_proxy.events import ConfigReloaded, DestinationDenied, Reason
from egress_proxy.forwarding.connection import Connection, Plant, SessionLimits
from egress_proxy.forwarding.forwarder import Forwarder
from egress_proxy.forwarding.stale_sessions import StaleSessions
from egress_proxy.pod.preconditions import bind_problem, destination_problems
from egress_proxy.run.reload import compare

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from egress_proxy.config.address_policy import AddressPolicy
    from egress_proxy.config.destinations import Destination
    from egress_proxy.config.settings import Settings
    from egress_proxy.dns.resolver import Lookup
    from egress_proxy.ip import Address
    from egress_proxy.pod.address_monitor import AddressMonitor
    from egress_proxy.pod.addresses import ListenPoint


class DestinationTable:
    """All forwarders by port, and all refreshers by name."""

    def __init__(
        self,
        settings: Settings,
        plant: Plant,
        address_monitor: AddressMonitor,
        listen: Sequence[ListenPoint],
        lookup: Lookup,
        policy: AddressPolicy,
    ) -> None:
        """Connect to nothing that `policy` has, the ports listened on by the table included."""
        self.forwarders: dict[int, Forwarder] = {}
        self.refreshers: dict[str, NameRefresher] = {}
        self._settings = settings
        self._plant = plant
        self._rules = SessionLimits(
            allow_clients=settings.allow_clients,
            connect_timeout_s=settings.connect_timeout_s,
            idle_timeout_s=settings.idle_timeout_s,
            half_close_timeout_s=settings.half_close_timeout_s,
            record_source_port=settings.debug,
        )
        self._address_monitor = address_monitor
        self._listen = listen
        self._lookup = lookup
        self._policy = policy
        self._fixed_ports = policy.listening
        self._withdrawals: dict[str, StaleSessions] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._cuts: set[asyncio.TimerHandle] = set()

    def bind(
        self, destinations: Iterable[Destination], changed: Iterable[Destination] = ()
    ) -> list[Forwarder]:
        """A forwarder for each, which has its port but does not listen.

        Raises `PlatformError` with all that stands in the way, of them and of `changed`, which
        have their ports already; none is taken then.
        """
        problems: list[Problem] = []
        bound = []
        for destination in changed:
            problems += self._obstacles(destination)
        for destination in destinations:
            problems += self._obstacles(destination)
            forwarder = Forwarder(self._plant, self._rules, destination)
            bound.append(forwarder)
            for point in self._listen:
                try:
                    forwarder.bind(point)
                except OSError as error:
                    problems.append(
                        bind_problem(
                            self._settings.destinations_from,
                            destination.port,
                            point.address,
                            error,
                            line=destination.line,
                        )
                    )
        if problems:
            for forwarder in bound:
                forwarder.close()
            raise PlatformError(*problems)
        return bound

    def _obstacles(self, destination: Destination) -> list[Problem]:
        sources = self._plant.connector.sources
        variable = self._settings.destinations_from
        return destination_problems(variable, destination, sources, self._policy)

    def deny_listeners(self, destinations: Iterable[Destination]) -> None:
        """Connect to no port of `destinations` on the pod itself: it would come back to us."""
        ports = {destination.port for destination in destinations}
        self._policy = replace(self._policy, listening=self._fixed_ports | ports)
        for refresher in self.refreshers.values():
            refresher.policy = self._policy

    def set_own_addresses(self, own: frozenset[Address]) -> None:
        """Connect to no listener of ours by any of `own`, the addresses that the pod has now."""
        self._policy = replace(self._policy, own=own)
        self._judge()

    def _judge(self) -> None:
        """Let nobody connect any longer to what is denied now."""
        for refresher in self.refreshers.values():
            refresher.policy = self._policy
            refresher.reapply_policy()
        for forwarder in self.forwarders.values():
            host = forwarder.destination.host
            if isinstance(host, str):
                continue
            reason = self._policy.why_denied(host, (forwarder.remote_port,))
            if reason and forwarder.addresses:
                self._plant.observer.observe(
                    DestinationDenied(destination=forwarder.name, address=str(host), error=reason)
                )
            forwarder.set_addresses(() if reason else (host,))

    def open(self, forwarders: Iterable[Forwarder]) -> None:
        """Let each listen as soon as it has an address to connect to."""
        for forwarder in forwarders:
            self.forwarders[forwarder.destination.port] = forwarder
            host = forwarder.destination.host
            forwarder.reach(self._address_monitor.families)
            if isinstance(host, str):
                self._refresher(host).subscribe(forwarder)
            else:
                forwarder.set_addresses((host,))

    async def change(self, destinations: Sequence[Destination]) -> ConfigReloaded:
        """Put `destinations` in force; what that came to.

        Raises `PlatformError`, and has then changed nothing.
        """
        present = {port: forwarder.destination for port, forwarder in self.forwarders.items()}
        difference = compare(present, destinations)
        self.deny_listeners((*present.values(), *destinations))
        try:
            added = self.bind(difference.added, difference.changed)
            try:
                await self._ask(difference.added + difference.changed)
            except BaseException:
                for forwarder in added:
                    forwarder.close()
                raise
        except BaseException:
            self.deny_listeners(present.values())
            raise
        self.deny_listeners(destinations)
        # From here on nothing waits and nothing fails.
        for port in difference.removed:
            self._dismiss(self.forwarders.pop(port))
        for destination in difference.changed:
            before = self.forwarders.pop(destination.port)
            forwarder = Forwarder(self._plant, self._rules, destination)
            self.open([forwarder])
            forwarder.take_over(before)
            self._dismiss(before)
        self.open(added)
        self._let_go_of_names()
        self._judge()
        return ConfigReloaded(
            added=tuple(destination.port for destination in difference.added),
            changed=tuple(destination.port for destination in difference.changed),
            removed=difference.removed,
            unchanged=difference.unchanged,
        )

    def reach(self, families: frozenset[int]) -> None:
        """Only addresses of `families` can be connected to from now on."""
        for forwarder in self.forwarders.values():
            forwarder.reach(families)

    def record_source_port(self, *, wanted: bool) -> None:
        """Whether the records of connections from now on carry their source port."""
        self._rules = replace(self._rules, record_source_port=wanted)
        for forwarder in self.forwarders.values():
            forwarder.rules = self._rules

    def connections(self) -> Iterator[Connection]:
        return (member for member in self._plant.wheel if isinstance(member, Connection))

    def refresh(self) -> None:
        """Ask for every name again: the name servers may be others now."""
        for refresher in self.refreshers.values():
            refresher.refresh()

    async def asked(self) -> None:
        """Wait until every name has been asked for once."""
        for refresher in list(self.refreshers.values()):
            await refresher.asked.wait()

    def close(self) -> None:
        """Give all ports up; established connections go on."""
        for forwarder in self.forwarders.values():
            forwarder.close()

    async def stop(self) -> None:
        self.close()
        for timer in self._cuts:
            timer.cancel()
        for withdrawals in self._withdrawals.values():
            withdrawals.stop()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _refresher(self, name: str) -> NameRefresher:
        """The one refresher of `name`, however many ports lead to it; it asks from now on."""
        if name not in self.refreshers:
            refresher = self.refreshers[name] = NameRefresher(
                name,
                self._lookup,
                self._plant.observer,
                self._policy,
            )
            self._tasks[name] = asyncio.create_task(refresher.run(), name=f"resolve {name}")
            if timeout_s := self._settings.withdrawn_timeout_s:
                withdrawals = StaleSessions(
                    name, self.connections, timeout_s, asyncio.get_running_loop()
                )
                refresher.tell(withdrawals.set_addresses)
                self._withdrawals[name] = withdrawals
        return self.refreshers[name]

    async def _ask(self, destinations: Iterable[Destination]) -> None:
        """Wait until each name has been asked for: a changed port never waits for its answer."""
        try:
            for refresher in [
                self._refresher(destination.host)
                for destination in destinations
                if isinstance(destination.host, str)
            ]:
                await refresher.asked.wait()
        except BaseException:
            self._let_go_of_names()
            raise

    def _let_go_of_names(self) -> None:
        wanted = {forwarder.destination.host for forwarder in self.forwarders.values()}
        for name in self.refreshers.keys() - wanted:
            del self.refreshers[name]
            self._tasks.pop(name).cancel()
            if name in self._withdrawals:
                self._withdrawals.pop(name).stop()

    def _dismiss(self, forwarder: Forwarder) -> None:
        """Let `forwarder` take no more clients, and have its connections end in time."""
        forwarder.close()
        host = forwarder.destination.host
        if isinstance(host, str):
            self.refreshers[host].unsubscribe(forwarder)
        if timeout_s := self._settings.removed_timeout_s:
            loop = asyncio.get_running_loop()
            self._cuts = {timer for timer in self._cuts if timer.when() > loop.time()}
            self._cuts.add(loop.call_later(timeout_s, self._cut, forwarder))

    def _cut(self, forwarder: Forwarder) -> None:
        for connection in self.connections():
            if connection.forwarder is forwarder:
                connection.abort(Reason.DRAINED)
