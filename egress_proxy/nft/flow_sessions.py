"""Clients' sessions that the kernel forwards, as conntrack reports them.

A handshake that fails is always heard of, because the address must be left out then, as after a
failed connect in the other data plane; unlike there, the client is not connected to another
address. Everything else about sessions is heard of only while each of them is to be recorded:
`recording`. Then a session begins with its first packet and is over when both sides have finished,
one has reset, or the kernel forgets it. Its record is emitted then, though the kernel remembers the
flow a little longer.

Not known here: which side reset, whether a silent upstream is unreachable, and the octets of one
session unless net.netfilter.nf_conntrack_acct is on.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections import deque
from typing import TYPE_CHECKING

from egress_proxy.events import ConnectionClosed, Reason
from egress_proxy.nft.conntrack import TcpState, read_flow
from egress_proxy.nft.flow_session import FlowSession, endpoint_of, sockaddr
from egress_proxy.nft.marks import OVER

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from egress_proxy.events import Observer
    from egress_proxy.forwarding.upstreams import Endpoint
    from egress_proxy.nft.conntrack import Flow, Glimpse
    from egress_proxy.nft.marks import Marks

_CONNECTING = frozenset({TcpState.NONE, TcpState.SYN_SENT, TcpState.SYN_SENT2})
# Why a session ended that the kernel has forgotten in that state.
_FORGOTTEN = {
    TcpState.NONE: Reason.CONNECT_TIMEOUT,
    TcpState.SYN_SENT: Reason.CONNECT_TIMEOUT,
    TcpState.SYN_SENT2: Reason.CONNECT_TIMEOUT,
    TcpState.SYN_RECV: Reason.CLIENT_GONE,
    TcpState.ESTABLISHED: Reason.IDLE_TIMEOUT,
    TcpState.FIN_WAIT: Reason.HALF_CLOSE_TIMEOUT,
    TcpState.CLOSE_WAIT: Reason.HALF_CLOSE_TIMEOUT,
    TcpState.LAST_ACK: Reason.FINISHED,
}
# How many sessions are handled per turn of the event loop: two milliseconds' work.
_PER_TURN = 50


class FlowSessions:
    """What is known of sessions; `marks` says whose a flow is, `now` is monotonic.

    `delete` makes the kernel forget a flow and may raise OSError. `aborting` is called when
    `abort_next` has something to do. `octets_counted` says whether the kernel counts those of each
    flow, `idle_timeout_s` how long it remembers an established one that is idle.
    """

    def __init__(  # noqa: PLR0913 - each is a seam
        self,
        observer: Observer,
        marks: Marks,
        delete: Callable[[Flow], None],
        aborting: Callable[[], None],
        now: Callable[[], float],
        *,
        idle_timeout_s: int,
        octets_counted: bool,
    ) -> None:
        self._observer = observer
        self._marks = marks
        self._delete = delete
        self._aborting = aborting
        self._now = now
        self._idle_timeout_s = idle_timeout_s
        self._octets_counted = octets_counted
        self._sessions: dict[bytes, FlowSession] = {}
        self._to_abort: deque[tuple[FlowSession, Reason]] = deque()
        # Flows without an answer that were deleted here, until the kernel says so.
        self._deleted: set[bytes] = set()
        # Those that were closed while `resync` is on its way.
        self._closed: set[bytes] | None = None
        self.recording = False

    def stop_recording(self) -> None:
        """Sessions that are open end without a record."""
        self.recording = False
        self._sessions.clear()

    def see(self, seen: Glimpse, *, ended: bool) -> None:
        """The kernel says that a flow has begun, changed or, if `ended`, been forgotten."""
        session = self._sessions.get(seen.tuple)
        if session is None:
            session = self._see_unknown(seen, ended=ended)
            if session is None:
                return
        elif self._octets_counted and (ended or seen.state in OVER):
            session.flow = read_flow(seen.body)
        before, session.state = session.state, seen.state or session.state
        if session.connected_at is None and session.state not in _CONNECTING | {TcpState.CLOSE}:
            self._connected(session)
        if session.state in OVER:
            self._over(session, before)
        elif ended:
            self._close(session, _FORGOTTEN[session.state])

    @property
    def known(self) -> Collection[bytes]:
        """The tuples of the sessions that are followed."""
        return self._sessions.keys()

    async def resync(self, read: Callable[[], Iterable[Glimpse]]) -> None:
        """Events were lost, or recording begins: what `read` returns, in a thread, is all there is.

        Raises OSError.
        """
        before = list(self._sessions)
        self._closed = set()
        try:
            present = await asyncio.to_thread(lambda: {flow.tuple: flow for flow in read()})
            for number, (key, flow) in enumerate(present.items(), 1):
                if key not in self._closed:
                    self.see(flow, ended=False)
                if number % _PER_TURN == 0:
                    await asyncio.sleep(0)
            for number, key in enumerate(before, 1):
                session = self._sessions.get(key)
                if session is not None and key not in present:
                    self._close(session, _FORGOTTEN[session.state])
                if number % _PER_TURN == 0:
                    await asyncio.sleep(0)
        finally:
            self._closed = None

    def open_session(self, flow: Flow) -> FlowSession | None:
        """The session of `flow`, which is not over; None if it is no client's."""
        entry = self._marks.get(flow.mark)
        if entry is None:
            return None
        session = self._sessions.get(flow.tuple)
        if session is None:
            session = FlowSession(self, entry, flow, None)
            session.connected_at = self._now() if flow.answered else None
        session.flow = flow
        if flow.state == TcpState.ESTABLISHED:
            # The kernel says whole seconds that are left, and drops the rest.
            session.touched = self._now() - max(self._idle_timeout_s - flow.left_s - 1, 0)
        return session

    def abort(self, session: FlowSession, reason: Reason) -> None:
        self._to_abort.append((session, reason))
        self._aborting()

    async def abort_queued(self) -> None:
        """End the sessions that `abort` was called for."""
        number = 0
        while self._to_abort:
            session, reason = self._to_abort.popleft()
            self._abort(session, reason)
            number += 1
            if number % _PER_TURN == 0:
                await asyncio.sleep(0)

    def _abort(self, session: FlowSession, reason: Reason) -> None:
        key, error_number = session.flow.tuple, 0
        try:
            self._delete(session.flow)
        except OSError as error:
            error_number = error.errno or errno.EIO
        if self.recording and key not in self._sessions:
            # It has ended meanwhile and has its record.
            return
        if not session.flow.answered and not error_number:
            self._deleted.add(key)
        self._close(session, reason, error_number)

    def _see_unknown(self, seen: Glimpse, *, ended: bool) -> FlowSession | None:
        """Make a session of a flow that is not followed, if there is more to do with it."""
        entry = self._marks.get(seen.mark)
        if entry is None or not seen.translated:
            return None
        flow = read_flow(seen.body)
        if ended:
            if seen.tuple in self._deleted:
                self._deleted.remove(seen.tuple)
            elif not seen.answered:
                return self._begin(FlowSession(self, entry, flow, None))
        elif self.recording and seen.state not in OVER:
            began_at = self._now() if seen.state in _CONNECTING else None
            return self._begin(FlowSession(self, entry, flow, began_at))
        elif seen.answered:
            self._answered(endpoint_of(entry.origin, flow))
        return None

    def _begin(self, session: FlowSession) -> FlowSession:
        self._sessions[session.flow.tuple] = session
        session.origin.live.active += 1
        return session

    def _connected(self, session: FlowSession) -> None:
        session.connected_at = self._now()
        session.origin.live.established += 1
        self._answered(session.endpoint)

    def _answered(self, endpoint: Endpoint | None) -> None:
        if endpoint is not None:
            endpoint.mark_healthy()

    def _over(self, session: FlowSession, before: TcpState) -> None:
        if session.state == TcpState.TIME_WAIT:
            self._close(session, Reason.FINISHED)
        elif session.connected_at is None:
            self._close(session, Reason.CONNECT_REFUSED, errno.ECONNREFUSED)
        elif before in {TcpState.LAST_ACK, TcpState.TIME_WAIT}:
            self._close(session, Reason.FINISHED)
        else:
            self._close(session, Reason.RESET)

    def _close(self, session: FlowSession, reason: Reason, error_number: int = 0) -> None:
        """Every session with a record ends here, once."""
        flow, entry, now = session.flow, session.entry, self._now()
        self._sessions.pop(flow.tuple, None)
        if self._closed is not None:
            self._closed.add(flow.tuple)
        if reason == Reason.CONNECT_TIMEOUT:
            error_number = errno.ETIMEDOUT
        live = entry.origin.live
        live.active -= 1
        entry.recorded += 1
        connect_s = None
        if session.connected_at is None:
            entry.failed += 1
        elif session.began_at is not None:
            connect_s = session.connected_at - session.began_at
            live.established -= 1
            entry.connected += 1
        # The counters of the rules have these octets too.
        live.bytes_to_upstream -= flow.sent or 0
        live.bytes_to_client -= flow.received or 0
        self._observer.observe(
            ConnectionClosed(
                listener=entry.port,
                destination=entry.origin.name,
                client=session.client_address,
                address=session.address,
                source=sockaddr(flow.reserved),
                bytes_to_upstream=flow.sent,
                bytes_to_client=flow.received,
                duration_s=None if session.began_at is None else now - session.began_at,
                connect_s=connect_s,
                attempts=1,
                reason=reason,
                error=error_number,
            )
        )
        if reason in {Reason.CONNECT_REFUSED, Reason.CONNECT_TIMEOUT}:
            self._demote(session, error_number)

    def _demote(self, session: FlowSession, error_number: int) -> None:
        endpoint = session.endpoint
        if endpoint is not None:
            endpoint.mark_failed(self._now(), os.strerror(error_number))
        if all(entry.failed_until for entry in session.origin.upstreams.endpoints):
            session.origin.on_all_failed()
