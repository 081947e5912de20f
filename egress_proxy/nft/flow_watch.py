"""Receives the events of conntrack, and lists flows and sessions on request.

By default there are events only of flows that no upstream has answered; while each session is
recorded, there are events of each.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

from egress_proxy.events import DaemonDefect, Reason
from egress_proxy.nft import conntrack, conntrack_events
from egress_proxy.nft.flow_sessions import FlowSessions
from egress_proxy.nft.marks import OVER, present_flows
from egress_proxy.nft.session_rules import NEVER_S

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    from egress_proxy.forwarding.data_plane import DataPlane
    from egress_proxy.nft.conntrack import Glimpse
    from egress_proxy.nft.flow_session import FlowSession
    from egress_proxy.nft.marks import Marked, Marks
    from egress_proxy.nft.rules_writer import RulesWriter
    from egress_proxy.nft.session_rules import SessionRules

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


class FlowWatch:
    """The flows of `marks`; `current` returns the entries that have a port now."""

    def __init__(
        self,
        shared: DataPlane,
        marks: Marks,
        current: Callable[[], Iterable[Marked]],
        writer: RulesWriter,
        limits: SessionRules,
    ) -> None:
        self._loop = shared.reactor.loop
        self._observer = shared.observer
        self._admission = shared.admission
        self._marks = marks
        self._current = current
        self._writer = writer
        self._due = asyncio.Event()
        self._due.set()
        self._looked = asyncio.Event()
        self._resync_due = limits.recorded
        self._resyncing = False
        self._look_throughs: list[Callable[[Iterable[FlowSession]], None]] = []
        self._flows = FlowSessions(
            shared.observer,
            marks,
            conntrack.delete,
            self._due.set,
            monotonic,
            idle_timeout_s=limits.idle_timeout_s or NEVER_S,
            octets_counted=conntrack.counts_octets(),
        )
        self._flows.recording = limits.recorded
        self._events: socket.socket | None = None
        self._started = False

    @property
    def recording(self) -> bool:
        """Whether every session is recorded."""
        return self._flows.recording

    def open(self) -> None:
        """Receive events from now on. Raises OSError."""
        self._events = conntrack_events.open_events(every=self.recording)

    def start(self) -> None:
        """The rules are in force: take over the sessions of an earlier process. Raises OSError."""
        self._started = True
        self._marks.take_over(present_flows(conntrack.glimpses()))
        if self._events is not None:
            self._loop.add_reader(self._events.fileno(), self._read_events)

    def stop(self) -> None:
        if self._events is not None:
            self._loop.remove_reader(self._events.fileno())
            self._events.close()
            self._events = None

    def record_every_session(self, *, wanted: bool) -> None:
        """Emit an event for each session that ends, or only for those that reach no upstream."""
        if wanted == self.recording:
            return
        if self._events is not None:
            conntrack_events.set_filter(self._events, every=wanted)
        if wanted:
            self._flows.recording = True
            self._resync_due = True
            self._due.set()
        else:
            self._flows.stop_recording()
        self._writer.changed()

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
        if self._resync_due or self._resyncing:
            # Sessions would count as ended now, and again when they get their records.
            return
        self._admission.set_active(self._marks.count(counters, present))
        if self._marks.retain(self._current()):
            self._writer.changed()

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

    async def looked(self) -> None:
        """Wait until sessions of an earlier process are followed, or could not be listed."""
        await self._looked.wait()

    async def emptied(self) -> None:
        """Wait until there is no session; new ones must be refused already."""
        await self._writer.tried()
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
            self._observer.observe(DaemonDefect.of(error, "abort sessions"))
            return 0
        for session in left:
            session.abort(reason)
        await self._flows.abort_queued()
        return len(left)

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

    async def run(self) -> None:
        """Whatever takes the list of flows and can wait; until cancelled."""
        while True:
            await self._due.wait()
            self._due.clear()
            try:
                if self._resync_due:
                    # First the rules that make events of each flow, so that none is missed.
                    await self._writer.tried()
                    self._resync_due, self._resyncing = False, True
                    await self._flows.resync(lambda: filter(_ours, conntrack.glimpses()))
                    self._resyncing = False
                if self._look_throughs:
                    sessions = await self.sessions()
                    uses, self._look_throughs = self._look_throughs, []
                    for use in uses:
                        use(sessions)
            except OSError:
                self._resync_due, self._resyncing = self._flows.recording, False
                self._looked.set()
                await asyncio.sleep(_RETRY_S)
                self._due.set()
            self._looked.set()
            await self._flows.abort_queued()


def _ours(flow: Glimpse) -> bool:
    return flow.translated and flow.mark != 0


def _open(flow: Glimpse) -> bool:
    return _ours(flow) and flow.state not in OVER
