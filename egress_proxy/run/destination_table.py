"""Which destinations there are: a forwarder for each port, a keeper for each name.

`change` puts other destinations in force, and is the whole of a reload: what can fail happens
first (ports are taken, new names are asked for), and then everything switches at once. What stays
the same is not touched: neither its listeners, nor its addresses, nor its connections.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from egress_proxy.dns.refresher import NameKeeper
from egress_proxy.errors import PlatformError, Problem
from egress_proxy.events import ConfigReloaded, DestinationDenied, Reason
from egress_proxy.forwarding.connection import Connection, Plant, Rules
from egress_proxy.forwarding.forwarder import Forwarder
from egress_proxy.forwarding.stale_sessions import Withdrawals
from egress_proxy.pod.preconditions import bind_problem, find_obstacles
from egress_proxy.run.reload import compare

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from egress_proxy.config.address_policy import Denials
    from egress_proxy.config.destinations import Destination
    from egress_proxy.config.settings import Settings
    from egress_proxy.dns.resolver import Lookup
    from egress_proxy.ip import Address
    from egress_proxy.pod.address_monitor import Ground
    from egress_proxy.pod.addresses import ListenPoint


class Roster:
    """All forwarders by port, and all keepers by name."""

    def __init__(
        self,
        settings: Settings,
        plant: Plant,
        ground: Ground,
        listen: Sequence[ListenPoint],
        lookup: Lookup,
        denials: Denials,
    ) -> None:
        """Connect to nothing that `denials` has, the ports listened on by the roster included."""
        self.forwarders: dict[int, Forwarder] = {}
        self.keepers: dict[str, NameKeeper] = {}
        self._settings = settings
        self._plant = plant
        self._rules = Rules(
            allow_clients=settings.allow_clients,
            connect_timeout_s=settings.connect_timeout_s,
            idle_timeout_s=settings.idle_timeout_s,
            half_close_timeout_s=settings.half_close_timeout_s,
            audit=settings.debug,
        )
        self._ground = ground
        self._listen = listen
        self._lookup = lookup
        self._denials = denials
        self._fixed_ports = denials.listening
        self._withdrawals: dict[str, Withdrawals] = {}
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
        return find_obstacles(variable, destination, sources, self._denials)

    def deny_listeners(self, destinations: Iterable[Destination]) -> None:
        """Connect to no port of `destinations` on the pod itself: it would come back to us."""
        ports = {destination.port for destination in destinations}
        self._denials = replace(self._denials, listening=self._fixed_ports | ports)
        for keeper in self.keepers.values():
            keeper.denials = self._denials

    def deny_own(self, own: frozenset[Address]) -> None:
        """Connect to no listener of ours by any of `own`, the addresses that the pod has now."""
        self._denials = replace(self._denials, own=own)
        self._judge()

    def _judge(self) -> None:
        """Let nobody connect any longer to what is denied now."""
        for keeper in self.keepers.values():
            keeper.denials = self._denials
            keeper.judge()
        for forwarder in self.forwarders.values():
            host = forwarder.destination.host
            if isinstance(host, str):
                continue
            reason = self._denials.reason(host, (forwarder.remote_port,))
            if reason and forwarder.addresses:
                self._plant.observer.observe(
                    DestinationDenied(destination=forwarder.name, address=str(host), error=reason)
                )
            forwarder.use(() if reason else (host,))

    def open(self, forwarders: Iterable[Forwarder]) -> None:
        """Let each listen as soon as it has an address to connect to."""
        for forwarder in forwarders:
            self.forwarders[forwarder.destination.port] = forwarder
            host = forwarder.destination.host
            forwarder.reach(self._ground.families)
            if isinstance(host, str):
                self._keeper(host).serve(forwarder)
            else:
                forwarder.use((host,))

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

    def audit(self, *, wanted: bool) -> None:
        """Whether the records of connections from now on carry their source port."""
        self._rules = replace(self._rules, audit=wanted)
        for forwarder in self.forwarders.values():
            forwarder.rules = self._rules

    def connections(self) -> Iterator[Connection]:
        return (member for member in self._plant.wheel if isinstance(member, Connection))

    def refresh(self) -> None:
        """Ask for every name again: the name servers may be others now."""
        for keeper in self.keepers.values():
            keeper.refresh()

    async def asked(self) -> None:
        """Wait until every name has been asked for once."""
        for keeper in list(self.keepers.values()):
            await keeper.asked.wait()

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

    def _keeper(self, name: str) -> NameKeeper:
        """The one keeper of `name`, however many ports lead to it; it asks from now on."""
        if name not in self.keepers:
            keeper = self.keepers[name] = NameKeeper(
                name,
                self._lookup,
                self._plant.observer,
                self._denials,
            )
            self._tasks[name] = asyncio.create_task(keeper.run(), name=f"resolve {name}")
            if timeout_s := self._settings.withdrawn_timeout_s:
                withdrawals = Withdrawals(
                    name, self.connections, timeout_s, asyncio.get_running_loop()
                )
                keeper.tell(withdrawals.use)
                self._withdrawals[name] = withdrawals
        return self.keepers[name]

    async def _ask(self, destinations: Iterable[Destination]) -> None:
        """Wait until each name has been asked for: a changed port never waits for its answer."""
        try:
            for keeper in [
                self._keeper(destination.host)
                for destination in destinations
                if isinstance(destination.host, str)
            ]:
                await keeper.asked.wait()
        except BaseException:
            self._let_go_of_names()
            raise

    def _let_go_of_names(self) -> None:
        wanted = {forwarder.destination.host for forwarder in self.forwarders.values()}
        for name in self.keepers.keys() - wanted:
            del self.keepers[name]
            self._tasks.pop(name).cancel()
            if name in self._withdrawals:
                self._withdrawals.pop(name).stop()

    def _dismiss(self, forwarder: Forwarder) -> None:
        """Let `forwarder` take no more clients, and have its connections end in time."""
        forwarder.close()
        host = forwarder.destination.host
        if isinstance(host, str):
            self.keepers[host].forget(forwarder)
        if timeout_s := self._settings.removed_timeout_s:
            loop = asyncio.get_running_loop()
            self._cuts = {timer for timer in self._cuts if timer.when() > loop.time()}
            self._cuts.add(loop.call_later(timeout_s, self._cut, forwarder))

    def _cut(self, forwarder: Forwarder) -> None:
        for connection in self.connections():
            if connection.forwarder is forwarder:
                connection.abort(Reason.DRAINED)
