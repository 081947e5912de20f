"""The data plane that is the kernel: nftables translates and forwards, the daemon keeps that true.

`KernelPlane` makes one set of rules of all ports (`kernel_port`) and their addresses, and writes it
(`rules_writer`). `FlowWatch` receives the events of clients that no upstream answers, and reads
figures (`marks`) and sessions (`flow_sessions`) from the kernel on request.
"""

from __future__ import annotations

from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING

from egress_proxy.errors import PlatformError, Problem
from egress_proxy.events import DaemonDefect
from egress_proxy.nft.flow_watch import FlowWatch
from egress_proxy.nft.kernel_port import KernelPort
from egress_proxy.nft.kernel_problems import kernel_problems, refused
from egress_proxy.nft.marks import Marks
from egress_proxy.nft.rules_writer import RulesWriter
from egress_proxy.nft.ruleset import Ruleset, Translation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from egress_proxy.events import Reason
    from egress_proxy.forwarding.connection import Origin
    from egress_proxy.forwarding.data_plane import DataPlane
    from egress_proxy.forwarding.upstreams import Endpoint
    from egress_proxy.ip import Address
    from egress_proxy.nft.flow_session import FlowSession
    from egress_proxy.nft.marks import Marked
    from egress_proxy.nft.session_rules import SessionRules
    from egress_proxy.pod.forwarding import Forwarding
    from egress_proxy.relay.timer_wheel import Timer


class KernelPlane:
    """Everything of this data plane in one process.

    `sources` are the addresses that remotes see, `egress` is the interface that they are on, and
    `limits` are what holds for sessions, and whether they are recorded. `standby`: another pod may
    have the sources.
    """

    def __init__(
        self,
        shared: DataPlane,
        *,
        egress: str,
        sources: Iterable[Address],
        limits: SessionRules,
        forwarding: Forwarding,
        standby: bool,
    ) -> None:
        self.shared = shared
        self._standby = standby
        self._egress = egress
        self._sources = tuple(sources)
        self._limits = limits
        self._forwarding = forwarding
        self._ports: dict[int, KernelPort] = {}
        # Closed, and still in the rules.
        self._leaving: list[KernelPort] = []
        self._marks = Marks()
        self._current: dict[int, Marked] = {}
        self._writer = RulesWriter(self._ruleset, self._written, self._failed)
        self._watch = FlowWatch(shared, self._marks, self._current.values, self._writer, limits)
        self._penalty: Timer | None = None
        self._started = False

    def make_port(self, port: int, destination: str) -> KernelPort:
        made = KernelPort(self, self.shared.observer, port, destination)
        self._ports[port] = made
        return made

    def release(self, port: KernelPort) -> None:
        """`port` is closed: take it out of the rules."""
        if self._ports.get(port.port) is port:
            del self._ports[port.port]
            self._current.pop(port.port, None)
        if port.state == "listening":
            self._leaving.append(port)
        self.changed()

    def leads_to(self, port: int, origin: Origin) -> None:
        """New flows to `port` are those of `origin`; its addresses may change, and their health."""
        self._current[port] = self._marks.add(port, origin)
        origin.upstreams.on_health_change = self.changed
        self.changed()

    def changed(self) -> None:
        """Ports or addresses are others from now on."""
        self._writer.changed()

    def problems(self) -> list[Problem]:
        return kernel_problems(
            self._ruleset(), standby=self._standby, ipv6_stuck=self._forwarding.stuck
        )

    def start(self, spawn: Callable[..., object]) -> None:
        """The rules first, then forwarding; sessions of an earlier process are taken over."""
        try:
            # Before the first look at the flows, so that none is missed in between.
            self._watch.open()
            self._writer.write_first()
            self._started = True
            self._forwarding.switch_on()
            self._watch.start()
        except OSError as error:
            raise PlatformError(refused(error)) from error
        spawn("write rules", self._writer.run)
        spawn("follow sessions", self._watch.run)

    async def settled(self) -> None:
        await self._writer.tried()
        # Only then does each session that ends have its record.
        await self._watch.looked()

    def record_every_session(self, *, wanted: bool) -> None:
        self._watch.record_every_session(wanted=wanted)

    async def count(self) -> None:
        await self._watch.count()

    async def sessions(self) -> list[FlowSession]:
        return await self._watch.sessions()

    def look_through(self, use: Callable[[Iterable[FlowSession]], None]) -> None:
        self._watch.look_through(use)

    async def emptied(self) -> None:
        await self._watch.emptied()

    async def abort_all(self, reason: Reason) -> int:
        return await self._watch.abort_all(reason)

    async def stop(self) -> None:
        """Forwarding off first: without the rules the pod would be a router."""
        self._watch.stop()
        if self._penalty is not None:
            self._penalty.cancel()
        if self._started:
            try:
                self._forwarding.switch_off()
                await self._writer.remove()
            except OSError as error:
                self.shared.observer.observe(DaemonDefect.of(error, "remove rules"))
        self._writer.close()
        self.shared.admission.stop()
        self.shared.wheel.stop()
        self.shared.reactor.stop()
        self.shared.pipes.close()

    def _ruleset(self) -> Ruleset:
        now = monotonic()
        return Ruleset(
            egress=self._egress,
            sources=self._sources,
            translations=tuple(self._translation(entry, now) for entry in self._marks),
            sessions=replace(self._limits, recorded=self._watch.recording),
        )

    def _translation(self, entry: Marked, now: float) -> Translation:
        """Without addresses its flows are only counted."""
        usable: list[Endpoint] = []
        if self._current.get(entry.port) is entry and self._ports[entry.port].wanted:
            endpoints = entry.origin.upstreams.endpoints
            usable = [each for each in endpoints if each.failed_until <= now] or endpoints
            self._look_again_after(endpoints, now)
        return Translation(
            "tcp",
            entry.port,
            tuple(each.address for each in usable),
            entry.origin.destination.remote_port,
            entry.mark,
            watched=any(each.failed_until for each in usable),
        )

    def _look_again_after(self, endpoints: Iterable[Endpoint], now: float) -> None:
        """Use addresses again when their penalty is over."""
        until = min((each.failed_until for each in endpoints if each.failed_until > now), default=0)
        if until and self._penalty is None:
            self._penalty = self.shared.reactor.loop.call_later(until - now, self._penalty_over)

    def _penalty_over(self) -> None:
        self._penalty = None
        self.changed()

    def _written(self, ruleset: Ruleset) -> None:
        translated = {entry.port for entry in ruleset.translations if entry.addresses}
        for port in self._ports.values():
            port.written(translated=port.port in translated)
        leaving, self._leaving = self._leaving, []
        for port in leaving:
            port.written(translated=False)

    def _failed(self, error: OSError, retry_s: float) -> None:
        for port in (*self._ports.values(), *self._leaving):
            port.failed(error, retry_s)
