"""Which destinations there are: a forwarder for each port, a refresher for each name.

`change` carries out a reload. The steps that can fail come first, and all of them are undone if one
does (`_prepare`); then everything switches at once (`_switch`). An unchanged destination keeps its
listener, its addresses and its connections. A port whose new name has not been looked up yet keeps
its old destination until the answer is there; nothing else waits for that.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from egress_proxy.dns.refresher import NameRefresher
from egress_proxy.errors import PlatformError, Problem
from egress_proxy.events import ConfigReloaded, DestinationDenied
from egress_proxy.forwarding.connection import SessionLimits
from egress_proxy.forwarding.forwarder import Forwarder
from egress_proxy.forwarding.stale_sessions import GracePeriods, StaleSessions
from egress_proxy.pod.preconditions import bind_problem, destination_problems
from egress_proxy.run.reload import compare

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from egress_proxy.config.address_policy import AddressPolicy
    from egress_proxy.config.destinations import Destination
    from egress_proxy.config.settings import Settings
    from egress_proxy.dns.answer import Lookup
    from egress_proxy.forwarding.plane import Plane, Port
    from egress_proxy.ip import Address
    from egress_proxy.pod.address_monitor import AddressMonitor
    from egress_proxy.pod.addresses import ListenPoint
    from egress_proxy.run.reload import Difference
    from egress_proxy.supervisor import Supervisor

# The longest that a changed port waits for the first answer of its new name: the limit of one
# look-up.
_ANSWER_TIMEOUT_S = 10.0


class DestinationTable:
    """All forwarders by port, and all refreshers by name."""

    def __init__(  # noqa: PLR0913 - it joins the parts that it is made of
        self,
        settings: Settings,
        plane: Plane,
        address_monitor: AddressMonitor,
        listen: Sequence[ListenPoint],
        lookup: Lookup,
        *,
        policy: AddressPolicy,
        supervisor: Supervisor,
    ) -> None:
        """Connect to nothing that `policy` denies, nor to the table's own listening ports."""
        self.forwarders: dict[int, Forwarder] = {}
        self.refreshers: dict[str, NameRefresher] = {}
        self._settings = settings
        self._plane = plane
        self._data_plane = plane.shared
        self._limits = SessionLimits(
            allow_clients=settings.allow_clients,
            connect_timeout_s=settings.connect_timeout_s,
            idle_timeout_s=settings.idle_timeout_s,
            half_close_timeout_s=settings.half_close_timeout_s,
            record_source_port=settings.debug or settings.log_connections != "off",
        )
        self._address_monitor = address_monitor
        self._listen = listen
        self._lookup = lookup
        self._policy = policy
        self._fixed_ports = policy.listening
        self._supervisor = supervisor
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stale_sessions = StaleSessions(
            plane.look_through,
            GracePeriods(
                withdrawn_s=settings.withdrawn_timeout_s,
                removed_s=settings.removed_timeout_s,
                connect_s=settings.connect_timeout_s,
            ),
            plane.shared.reactor.loop,
        )

    def bind(
        self, destinations: Iterable[Destination], changed: Iterable[Destination] = ()
    ) -> list[Forwarder]:
        """A forwarder for each of `destinations`, which has its port but does not listen.

        Raises `PlatformError` with all problems, of them and of `changed`, which have their ports
        already; no port is taken then.
        """
        problems = [problem for entry in changed for problem in self._problems(entry)]
        bound = []
        for destination in destinations:
            problems += self._problems(destination)
            listener = self._plane.make_port(destination.port, str(destination))
            bound.append(self._forwarder(destination, listener))
            for point in self._listen:
                try:
                    listener.bind(point)
                except OSError as error:
                    problems.append(
                        bind_problem(
                            self._settings.destinations_from,
                            str(destination.port),
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

    def _forwarder(self, destination: Destination, listener: Port) -> Forwarder:
        families = self._address_monitor.families
        return Forwarder(self._data_plane, self._limits, destination, listener, families)

    def _problems(self, destination: Destination) -> list[Problem]:
        sources = self._data_plane.connector.sources
        variable = self._settings.destinations_from
        return destination_problems(variable, destination, sources, self._policy)

    def deny_listeners(self, destinations: Iterable[Destination]) -> None:
        """Deny connections to the ports of `destinations` on the pod itself: they would loop."""
        ports = {destination.port for destination in destinations}
        self._policy = replace(self._policy, listening=self._fixed_ports | ports)
        for refresher in self.refreshers.values():
            refresher.policy = self._policy

    def set_own_addresses(self, own: frozenset[Address]) -> None:
        """Deny connections to the own listeners at `own`, the addresses that the pod has now."""
        self._policy = replace(self._policy, own=own, reserved=self._address_monitor.reserved)
        self._reapply_policy()

    def _reapply_policy(self) -> None:
        """Stop using addresses that the policy denies now, and use those that it allows again."""
        for refresher in self.refreshers.values():
            refresher.policy = self._policy
            refresher.reapply_policy()
        for forwarder in self.forwarders.values():
            host = forwarder.destination.host
            if isinstance(host, str):
                continue
            reason = self._policy.why_denied(host, (forwarder.remote_port,))
            if reason and forwarder.addresses:
                self._data_plane.observer.observe(
                    DestinationDenied(destination=forwarder.name, address=str(host), error=reason)
                )
            forwarder.set_addresses(() if reason else (host,))

    def open(self, forwarders: Iterable[Forwarder]) -> None:
        """Let each listen as soon as it has an address to connect to."""
        for forwarder in forwarders:
            self.forwarders[forwarder.port] = forwarder
            host = forwarder.destination.host
            if isinstance(host, str):
                refresher = self._refresher(host)
                forwarder.set_addresses(refresher.addresses)
                refresher.subscribe(forwarder)
            else:
                forwarder.set_addresses((host,))

    async def change(self, destinations: Sequence[Destination]) -> ConfigReloaded:
        """Put `destinations` in force; returns what has changed.

        Raises `PlatformError`, and has then changed nothing.
        """
        present = {port: forwarder.destination for port, forwarder in self.forwarders.items()}
        difference = compare(present, destinations)
        added = self._prepare(difference, (*present.values(), *destinations))
        waiting = [
            destination
            for destination in difference.changed
            if isinstance(destination.host, str)
            and not self.refreshers[destination.host].asked.is_set()
        ]
        self._switch(added, difference, waiting)
        await self._switch_when_answered(waiting)
        self.deny_listeners(destinations)
        self._drop_unused_names()
        self._reapply_policy()
        return ConfigReloaded(
            added=tuple(destination.port for destination in difference.added),
            changed=tuple(destination.port for destination in difference.changed),
            removed=difference.removed,
            unchanged=difference.unchanged,
        )

    def _prepare(self, difference: Difference, listening: Iterable[Destination]) -> list[Forwarder]:
        """Take the ports of added destinations, and ask for new names; all of it or nothing.

        Connections to the ports of `listening`, the old and the new ones, are denied.
        """
        with ExitStack() as undo:
            undo.callback(self._restore_policy, self._policy)
            self.deny_listeners(listening)
            added = self.bind(difference.added, difference.changed)
            for forwarder in added:
                undo.callback(forwarder.close)
            undo.callback(self._drop_unused_names)
            for destination in difference.changed:
                if isinstance(destination.host, str):
                    self._refresher(destination.host)
            undo.pop_all()
        return added

    def _restore_policy(self, policy: AddressPolicy) -> None:
        # With the addresses of the pod that are known by now.
        self._policy = replace(policy, own=self._policy.own)
        self._reapply_policy()

    def _switch(
        self,
        added: Sequence[Forwarder],
        difference: Difference,
        waiting: Sequence[Destination],
    ) -> None:
        """Put everything but `waiting` in force. Nothing here waits or fails."""
        for port in difference.removed:
            forwarder = self.forwarders.pop(port)
            forwarder.close()
            self._retire(forwarder)
        for destination in difference.changed:
            if destination not in waiting:
                self._replace(destination)
        self.open(added)

    async def _switch_when_answered(self, waiting: Sequence[Destination]) -> None:
        """Replace each destination as soon as its name has been looked up, or can't be in time."""
        answers = {
            asyncio.create_task(self.refreshers[str(entry.host)].asked.wait()): entry
            for entry in waiting
        }
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                for answered in asyncio.as_completed(list(answers)):
                    await answered
                    for task in [task for task in answers if task.done()]:
                        self._replace(answers.pop(task))
        except TimeoutError:
            for destination in answers.values():
                self._replace(destination)
        finally:
            for task in answers:
                task.cancel()

    def _replace(self, destination: Destination) -> None:
        """Forward the port of `destination` to it from now on; its listener stays open."""
        before = self.forwarders[destination.port]
        self._retire(before)
        self.open([self._forwarder(destination, before.listener)])

    def _retire(self, forwarder: Forwarder) -> None:
        """Stop updating `forwarder`; its connections end after the grace period."""
        host = forwarder.destination.host
        if isinstance(host, str):
            self.refreshers[host].unsubscribe(forwarder)
        self._stale_sessions.remove(forwarder.origin)

    def reach(self, families: frozenset[int]) -> None:
        """Connect only to addresses of `families` from now on."""
        for forwarder in self.forwarders.values():
            forwarder.reach(families)

    def record_source_port(self, *, wanted: bool) -> None:
        """Whether the records of connections from now on carry their source port."""
        self._limits = replace(self._limits, record_source_port=wanted)
        for forwarder in self.forwarders.values():
            forwarder.origin.limits = self._limits

    def refresh(self) -> None:
        """Look every name up again: the name servers may have changed."""
        for refresher in self.refreshers.values():
            refresher.refresh()

    async def asked(self) -> None:
        """Wait until every name has been looked up once."""
        for refresher in list(self.refreshers.values()):
            await refresher.asked.wait()

    def close(self) -> None:
        """Close all ports; established connections go on."""
        for forwarder in self.forwarders.values():
            forwarder.close()

    async def stop(self) -> None:
        self.close()
        self._stale_sessions.stop()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _refresher(self, name: str) -> NameRefresher:
        """The one refresher of `name`, however many ports lead to it; it asks from now on."""
        if name not in self.refreshers:
            refresher = NameRefresher(
                name,
                self._lookup,
                self._data_plane.observer,
                self._policy,
                self._settings.stale_timeout_s,
            )
            refresher.tell(lambda addresses: self._stale_sessions.set_addresses(name, addresses))
            self._tasks[name] = self._supervisor.spawn(f"resolve {name}", refresher.run)
            self.refreshers[name] = refresher
        return self.refreshers[name]

    def _drop_unused_names(self) -> None:
        wanted = {forwarder.destination.host for forwarder in self.forwarders.values()}
        for name in self.refreshers.keys() - wanted:
            refresher = self.refreshers.pop(name)
            self._tasks.pop(name).cancel()
            self._stale_sessions.forget_name(name)
            # Tasks that wait for its first answer stop waiting.
            refresher.asked.set()
