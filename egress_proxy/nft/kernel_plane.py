"""The data plane that is the kernel: nftables translates and forwards, the daemon keeps that true.

`KernelPlane` makes one set of rules of all ports (`kernel_port`) and their addresses, writes it
(`rules_writer`), hears of clients that no upstream answers (`flow_sessions`), and asks the kernel
for figures and sessions when somebody asks for them (`marks`, `conntrack`). Only while each
connection is to be recorded does it hear of each.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING

from egress_proxy.errors import PlatformError, Problem
from egress_proxy.events import DaemonDefect, Reason
from egress_proxy.nft import conntrack, conntrack_events
from egress_proxy.nft.flow_sessions import FlowSessions
from egress_proxy.nft.kernel_port import KernelPort
from egress_proxy.nft.kernel_problems import kernel_problems, refused
from egress_proxy.nft.marks import OVER, Marks, present_flows
from egress_proxy.nft.rules_writer import RulesWriter
from egress_proxy.nft.ruleset import Ruleset, Translation
from egress_proxy.nft.session_rules import NEVER_S

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    from egress_proxy.forwarding.connection import Origin
    from egress_proxy.forwarding.data_plane import DataPlane
    from egress_proxy.forwarding.upstreams import Endpoint
    from egress_proxy.ip import Address
    from egress_proxy.nft.conntrack import Glimpse
    from egress_proxy.nft.flow_session import FlowSession
    from egress_proxy.nft.marks import Marked
    from egress_proxy.nft.session_rules import SessionRules
    from egress_proxy.pod.forwarding import Forwarding
    from egress_proxy.relay.timer_wheel import Timer

# Events that are read per turn of the event loop: two milliseconds' work.
_EVENTS_PER_TURN = 50
# So many turns read more events than their buffer holds (16 MiB, each takes 700 octets or more).
_TURNS_OF_EVENTS = 1000
# Sessions that are made per turn: two milliseconds' work.
_SESSIONS_PER_TURN = 1000
# How often a drain looks for flows that are left. With many flows it looks less often: looking
# takes a fifth of its time at most.
_LOOK_S = 0.1
_REST = 4
# After the kernel has refused to list its flows.
_RETRY_S = 1.0


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
        self._due = asyncio.Event()
        self._resync_due = limits.recorded
        self._look_throughs: list[Callable[[Iterable[FlowSession]], None]] = []
        self._flows = FlowSessions(
            shared.observer,
            self._marks,
            conntrack.delete,
            self._due.set,
            monotonic,
            idle_timeout_s=limits.idle_timeout_s or NEVER_S,
            octets_counted=conntrack.counts_octets(),
        )
        self._flows.recording = limits.recorded
        self._events: socket.socket | None = None
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
            self._events = conntrack_events.open_events(every=self._flows.recording)
            self._writer.write_first()
            self._started = True
            self._forwarding.switch_on()
            self._marks.take_over(present_flows(conntrack.glimpses()))
        except OSError as error:
            raise PlatformError(refused(error)) from error
        self.shared.reactor.loop.add_reader(self._events.fileno(), self._read_events)
        spawn("write rules", self._writer.run)
        self._due.set()
        spawn("follow sessions", self._follow_sessions)

    async def settled(self) -> None:
        await self._writer.tried()

    def record_every_session(self, *, wanted: bool) -> None:
        """Emit an event for each session that ends, or only for those that reach no upstream."""
        if wanted == self._flows.recording:
            return
        if self._events is not None:
            conntrack_events.set_filter(self._events, every=wanted)
        if wanted:
            self._flows.recording = True
            self._resync_due = True
            self._due.set()
        else:
            self._flows.stop_recording()
        self.changed()

    async def count(self) -> None:
        """Counters first, then flows, then the events so far: `Marks.count` says why."""
        try:
            counters = await self._writer.read_counters()
            present = await asyncio.to_thread(lambda: present_flows(conntrack.glimpses()))
        except OSError:
            # The next look has it.
            return
        for _ in range(_TURNS_OF_EVENTS):
            if self._read_events():
                break
            await asyncio.sleep(0)
        self.shared.admission.set_active(self._marks.count(counters, present))
        if self._marks.retain(self._current.values()):
            self.changed()

    async def sessions(self) -> list[FlowSession]:
        """All open sessions. Raises OSError."""
        flows = await asyncio.to_thread(
            lambda: [conntrack.read_flow(each.body) for each in conntrack.glimpses() if _open(each)]
        )
        found = []
        for number, flow in enumerate(flows, 1):
            session = self._flows.open_session(flow)
            if session is not None:
                found.append(session)
            if number % _SESSIONS_PER_TURN == 0:
                await asyncio.sleep(0)
        return found

    def look_through(self, use: Callable[[Iterable[FlowSession]], None]) -> None:
        """Call `use` with the open sessions, soon."""
        self._look_throughs.append(use)
        self._due.set()

    async def emptied(self) -> None:
        """Wait until there is no session; new ones must be refused already."""
        await self.settled()
        while True:
            started = monotonic()
            try:
                present = await asyncio.to_thread(lambda: present_flows(conntrack.glimpses()))
            except OSError:
                await asyncio.sleep(_RETRY_S)
                continue
            if not any(self._marks.get(mark) for mark in present):
                return
            await asyncio.sleep(max(_LOOK_S, _REST * (monotonic() - started)))

    async def abort_all(self, reason: Reason) -> int:
        if not self._started:
            return 0
        try:
            left = await self.sessions()
        except OSError as error:
            self.shared.observer.observe(DaemonDefect.of(error, "abort sessions"))
            return 0
        for session in left:
            session.abort(reason)
        await self._flows.abort_queued()
        return len(left)

    async def stop(self) -> None:
        """Forwarding off first: without the rules the pod would be a router."""
        if self._events is not None:
            self.shared.reactor.loop.remove_reader(self._events.fileno())
            self._events.close()
            self._events = None
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
            sessions=replace(self._limits, recorded=self._flows.recording),
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

    def _read_events(self) -> bool:
        """Handle some of the events that have come; whether these were all."""
        if self._events is None:
            return True
        for _ in range(_EVENTS_PER_TURN):
            try:
                for change in conntrack_events.read_events(self._events):
                    self._flows.see(change.flow, ended=change.ended)
            except BlockingIOError:
                return True
            except OSError:
                # ENOBUFS: some were lost. Figures do not depend on them, records do.
                self._resync_due = self._flows.recording
                self._due.set()
        return False

    async def _follow_sessions(self) -> None:
        """Whatever takes the list of flows and can wait; until cancelled."""
        while True:
            await self._due.wait()
            self._due.clear()
            try:
                if self._resync_due:
                    # First the rules that tell of each flow, so that none is missed in between.
                    await self.settled()
                    self._resync_due = False
                    await self._flows.resync(lambda: filter(_ours, conntrack.glimpses()))
                if self._look_throughs:
                    sessions = await self.sessions()
                    uses, self._look_throughs = self._look_throughs, []
                    for use in uses:
                        use(sessions)
            except OSError:
                self._resync_due = self._flows.recording
                await asyncio.sleep(_RETRY_S)
                self._due.set()
            await self._flows.abort_queued()


def _ours(flow: Glimpse) -> bool:
    return flow.translated and flow.mark != 0


def _open(flow: Glimpse) -> bool:
    return _ours(flow) and flow.state not in OVER
