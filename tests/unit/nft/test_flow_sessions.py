"""From what conntrack says to sessions and their records; no kernel."""

from __future__ import annotations

import asyncio
import errno
from dataclasses import replace
from ipaddress import ip_address
from itertools import pairwise

import pytest

from egress_proxy.config.destinations import Destination
from egress_proxy.events import Reason, UpstreamFailed, UpstreamRecovered
from egress_proxy.forwarding.connection import SessionLimits
from egress_proxy.forwarding.forwarder import Forwarder
from egress_proxy.forwarding.listener import Listener
from egress_proxy.netlink import NESTED, attribute
from egress_proxy.nft.conntrack import (
    IPS_DST_NAT,
    IPS_SEEN_REPLY,
    End,
    Flow,
    Glimpse,
    TcpState,
    glance,
    read_flow,
)
from egress_proxy.nft.flow_sessions import FlowSessions
from egress_proxy.nft.marks import Marks
from tests.support.sockets import Plane

REMOTE, OTHER = map(ip_address, ("203.0.113.1", "203.0.113.2"))
FLOW = Flow(
    source=End(ip_address("198.51.100.10"), 40000),
    target=End(ip_address("192.0.2.10"), 80),
    upstream=End(REMOTE, 8080),
    reserved=End(ip_address("203.0.113.99"), 40001),
    protocol=6,
    translated=True,
    answered=False,
    state=TcpState.SYN_SENT,
    mark=0,
    left_s=50,
    sent=None,
    received=None,
    tuple=b"",
    number=b"1234",
)
LIMITS = SessionLimits(
    allow_clients=(),
    connect_timeout_s=10.0,
    idle_timeout_s=60.0,
    half_close_timeout_s=60.0,
    record_source_port=False,
)
WHOLE = (
    TcpState.SYN_SENT,
    TcpState.SYN_RECV,
    TcpState.ESTABLISHED,
    TcpState.FIN_WAIT,
    TcpState.CLOSE_WAIT,
    TcpState.LAST_ACK,
    TcpState.TIME_WAIT,
)


class Kernel:
    """One port, and sessions that hear of flows; every session is recorded unless `quiet`."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.plane = Plane()
        listener = Listener(self.plane.plane, 80, "", lambda *_: None)
        destination = Destination(80, REMOTE, 8080, 1)
        self.forwarder = Forwarder(self.plane.plane, LIMITS, destination, listener)
        self.forwarder.upstreams.replace((REMOTE, OTHER))
        self.forwarder.upstreams.on_health_change = self.count_change
        self.deleted: list[Flow] = []
        self.health_changes = 0
        self.aborts = 0
        self.failing = 0
        marks = Marks()
        self.entry = marks.add(80, self.forwarder.origin)
        self.sessions = FlowSessions(
            self.plane,
            marks,
            self.delete,
            self.count_abort,
            self.plane.loop.time,
            idle_timeout_s=60,
            octets_counted=True,
        )
        self.sessions.recording = not quiet

    def delete(self, flow: Flow) -> None:
        if self.failing:
            raise OSError(self.failing, "as if")
        self.deleted.append(flow)

    def count_abort(self) -> None:
        self.aborts += 1

    def count_change(self) -> None:
        self.health_changes += 1

    def see(self, *states: TcpState, flow: Flow = FLOW) -> None:
        for state in states:
            self.tell(replace(flow, state=state))

    def forget(self, state: TcpState = TcpState.NONE, flow: Flow = FLOW) -> None:
        self.tell(replace(flow, state=state), ended=True)

    def tell(self, flow: Flow, *, ended: bool = False) -> None:
        self.sessions.see(self.glimpse(flow), ended=ended)

    def glimpse(self, flow: Flow) -> Glimpse:
        # An answer is what leads to each later state.
        answered = flow.answered or flow.state not in {TcpState.SYN_SENT, TcpState.CLOSE}
        return glance(body_of(replace(flow, answered=answered), self.entry.mark))

    @property
    def figures(self) -> tuple[int, int]:
        live = self.forwarder.origin.live
        return live.active, live.established


def nested(kind: int, *parts: bytes) -> bytes:
    return attribute(kind | NESTED, b"".join(parts))


def tuple_of(source: End, target: End, protocol: int) -> bytes:
    """The octets of a tuple of IPv4."""
    return nested(
        1, attribute(1, source.address.packed), attribute(2, target.address.packed)
    ) + nested(
        2,
        attribute(1, bytes([protocol])),
        attribute(2, (source.port or 0).to_bytes(2)),
        attribute(3, (target.port or 0).to_bytes(2)),
    )


def body_of(flow: Flow, mark: int) -> bytes:
    """What the kernel would say of `flow`."""
    status = (IPS_DST_NAT if flow.translated else 0) | (IPS_SEEN_REPLY if flow.answered else 0)
    octets = b"".join(
        nested(kind, attribute(2, count.to_bytes(8)))
        for kind, count in ((9, flow.sent), (10, flow.received))
        if count is not None
    )
    return (
        bytes(4)
        + nested(1, tuple_of(flow.source, flow.target, flow.protocol))
        + nested(2, tuple_of(flow.upstream, flow.reserved, flow.protocol))
        + attribute(3, status.to_bytes(4))
        + attribute(8, (flow.mark or mark).to_bytes(4))
        + attribute(12, flow.number)
        + attribute(7, flow.left_s.to_bytes(4))
        + nested(4, nested(1, attribute(1, bytes([flow.state]))))
        + octets
    )


def client(port: int) -> Flow:
    """Another client's flow."""
    return replace(FLOW, source=FLOW.source._replace(port=port))


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


def test_a_session_from_its_first_packet_to_its_record(kernel: Kernel) -> None:
    kernel.see(TcpState.SYN_SENT)
    assert kernel.figures == (1, 0)
    kernel.plane.loop.advance(0.5)
    kernel.see(TcpState.SYN_RECV, TcpState.ESTABLISHED)
    assert kernel.figures == (1, 1)
    kernel.plane.loop.advance(1.5)
    kernel.see(*WHOLE[3:])
    assert kernel.figures == (0, 0)
    # The kernel remembers it a little longer.
    kernel.see(TcpState.TIME_WAIT)
    kernel.forget(TcpState.TIME_WAIT)
    [record] = kernel.plane.closed
    assert (record.listener, record.destination) == (80, "203.0.113.1:8080")
    assert record.client == ("198.51.100.10", 40000)
    assert record.address == ("203.0.113.1", 8080)
    assert record.source == ("203.0.113.99", 40001)
    assert (record.duration_s, record.connect_s) == (2.0, 0.5)
    assert (record.reason, record.error, record.attempts) == (Reason.FINISHED, 0, 1)
    assert (record.bytes_to_upstream, record.bytes_to_client) == (None, None)


@pytest.mark.parametrize(
    ("states", "last", "reason"),
    [
        ((TcpState.SYN_SENT,), TcpState.NONE, Reason.CONNECT_TIMEOUT),
        ((TcpState.SYN_SENT,), TcpState.CLOSE, Reason.CONNECT_REFUSED),
        (WHOLE[:2], TcpState.NONE, Reason.CLIENT_GONE),
        (WHOLE[:3], TcpState.NONE, Reason.IDLE_TIMEOUT),
        (WHOLE[:3], TcpState.CLOSE, Reason.RESET),
        (WHOLE[:4], TcpState.NONE, Reason.HALF_CLOSE_TIMEOUT),
        (WHOLE[:5], TcpState.NONE, Reason.HALF_CLOSE_TIMEOUT),
        (WHOLE[:6], TcpState.CLOSE, Reason.FINISHED),
        (WHOLE[:6], TcpState.NONE, Reason.FINISHED),
    ],
)
def test_every_end_has_its_reason(
    kernel: Kernel, states: tuple[TcpState, ...], last: TcpState, reason: Reason
) -> None:
    kernel.see(*states)
    kernel.forget(last)
    assert [record.reason for record in kernel.plane.closed] == [reason]
    assert kernel.figures == (0, 0)


@pytest.mark.parametrize("quiet", [False, True])
def test_a_failed_handshake_demotes_the_address_until_it_answers(*, quiet: bool) -> None:
    kernel = Kernel(quiet=quiet)
    if not quiet:
        kernel.see(TcpState.SYN_SENT)
    kernel.forget(TcpState.CLOSE)
    assert [entry.failed_until > 0 for entry in kernel.forwarder.upstreams.endpoints] == [
        True,
        False,
    ]
    assert kernel.health_changes == 1
    [record] = kernel.plane.closed
    assert (record.reason, record.error) == (Reason.CONNECT_REFUSED, errno.ECONNREFUSED)
    assert (record.duration_s is None) == quiet
    assert kernel.figures == (0, 0)
    if quiet:
        # The rules ask for this one while an address has failed.
        kernel.see(TcpState.ESTABLISHED, flow=client(40001))
    else:
        kernel.see(*WHOLE[:3], flow=client(40001))
    assert kernel.health_changes == 2
    kinds = [type(record) for record in kernel.plane.records]
    assert kinds.count(UpstreamFailed) == kinds.count(UpstreamRecovered) == 1


def test_a_silent_upstream_is_heard_of_without_records_of_all() -> None:
    kernel = Kernel(quiet=True)
    kernel.forget(TcpState.SYN_SENT)
    [record] = kernel.plane.closed
    assert (record.reason, record.error) == (Reason.CONNECT_TIMEOUT, errno.ETIMEDOUT)
    assert (kernel.entry.recorded, kernel.entry.failed) == (1, 1)


def test_a_session_that_was_answered_leaves_nothing_without_records_of_all() -> None:
    kernel = Kernel(quiet=True)
    kernel.forget(TcpState.TIME_WAIT)
    assert kernel.plane.records == []
    assert kernel.sessions.known == set()


def test_a_name_is_looked_up_again_when_no_address_answers(kernel: Kernel) -> None:
    refreshed = []
    kernel.forwarder.on_all_failed = lambda: refreshed.append(True)
    for port, remote in enumerate((REMOTE, OTHER), 40000):
        flow = replace(client(port), upstream=End(remote, 8080))
        kernel.see(TcpState.SYN_SENT, flow=flow)
        assert not refreshed
        kernel.forget(TcpState.CLOSE, flow)
    assert refreshed == [True]


@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.parametrize(
    "flow",
    [
        replace(FLOW, translated=False),
        replace(FLOW, mark=81),
        replace(FLOW, state=TcpState.TIME_WAIT),
    ],
)
def test_flows_that_are_no_sessions(flow: Flow, *, quiet: bool) -> None:
    kernel = Kernel(quiet=quiet)
    kernel.tell(flow)
    kernel.tell(flow, ended=True)
    assert kernel.figures == (0, 0)
    assert kernel.plane.records == []


def abort(kernel: Kernel, state: TcpState, reason: Reason) -> None:
    flow = read_flow(kernel.glimpse(replace(FLOW, state=state)).body)
    session = kernel.sessions.open_session(flow)
    assert session is not None
    session.abort(reason)
    assert kernel.aborts == 1
    asyncio.run(kernel.sessions.abort_queued())


@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.parametrize("states", [WHOLE[:1], WHOLE[:3]])
def test_an_aborted_session_is_forgotten_by_the_kernel_and_has_one_record(
    states: tuple[TcpState, ...], *, quiet: bool
) -> None:
    kernel = Kernel(quiet=quiet)
    if not quiet:
        kernel.see(*states)
    abort(kernel, states[-1], Reason.WITHDRAWN)
    assert [flow.source for flow in kernel.deleted] == [FLOW.source]
    kernel.forget(states[-1])
    assert [record.reason for record in kernel.plane.closed] == [Reason.WITHDRAWN]
    # It was not the upstream's fault.
    assert not kernel.forwarder.upstreams.endpoints[0].failed_until


def test_a_session_that_has_ended_before_it_is_aborted_has_one_record(kernel: Kernel) -> None:
    kernel.see(*WHOLE)
    abort(kernel, TcpState.ESTABLISHED, Reason.DRAINED)
    assert [record.reason for record in kernel.plane.closed] == [Reason.FINISHED]


def test_a_session_that_the_kernel_does_not_forget_is_recorded_all_the_same(kernel: Kernel) -> None:
    kernel.see(*WHOLE[:3])
    kernel.failing = errno.EPERM
    abort(kernel, TcpState.ESTABLISHED, Reason.DRAINED)
    [record] = kernel.plane.closed
    assert (record.reason, record.error) == (Reason.DRAINED, errno.EPERM)


def test_what_is_known_of_an_open_session() -> None:
    kernel = Kernel(quiet=True)
    established = replace(FLOW, state=TcpState.ESTABLISHED)
    session = kernel.sessions.open_session(read_flow(kernel.glimpse(established).body))
    assert session is not None
    assert (session.accepted_at, session.touched) == (None, kernel.plane.loop.time() - 9)
    assert session.address == ("203.0.113.1", 8080)
    kernel.sessions.recording = True
    kernel.see(TcpState.SYN_SENT)
    session = kernel.sessions.open_session(read_flow(kernel.glimpse(established).body))
    assert session is not None
    assert session.accepted_at == kernel.plane.loop.time()
    assert kernel.sessions.open_session(replace(FLOW, mark=81)) is None


def test_a_dump_makes_up_for_events_that_were_lost(kernel: Kernel) -> None:
    gone, stays, new, over = map(client, range(40000, 40004))
    for flow in (gone, over):
        kernel.see(*WHOLE[:3], flow=flow)
    kernel.see(TcpState.SYN_SENT, flow=stays)
    there = [kernel.glimpse(replace(each, state=TcpState.ESTABLISHED)) for each in (stays, new)]
    there.append(kernel.glimpse(replace(over, state=TcpState.TIME_WAIT)))
    asyncio.run(kernel.sessions.resync(lambda: there))
    assert sorted(record.reason for record in kernel.plane.closed) == [
        Reason.FINISHED,
        Reason.IDLE_TIMEOUT,
    ]
    assert kernel.figures == (2, 2)
    asyncio.run(kernel.sessions.resync(lambda: there))
    assert kernel.figures == (2, 2)


@pytest.mark.asyncio
async def test_what_ends_during_the_dump_does_not_come_back(kernel: Kernel) -> None:
    """The list says that it is there, and nothing would ever say that it is gone."""
    loop = asyncio.get_running_loop()

    def read() -> list[Glimpse]:
        found = [kernel.glimpse(replace(FLOW, state=TcpState.ESTABLISHED))]

        async def end() -> None:
            kernel.see(*WHOLE)

        asyncio.run_coroutine_threadsafe(end(), loop).result()
        return found

    await kernel.sessions.resync(read)
    assert kernel.sessions.known == set()
    assert [record.reason for record in kernel.plane.closed] == [Reason.FINISHED]


def test_sessions_are_no_longer_recorded(kernel: Kernel) -> None:
    kernel.see(*WHOLE[:3])
    kernel.sessions.stop_recording()
    kernel.forget(TcpState.CLOSE, replace(FLOW, answered=True))
    assert kernel.plane.closed == []


def test_octets_of_a_session_are_not_counted_twice(kernel: Kernel) -> None:
    """The rules' counters have them already, and the record's are added to what has ended."""
    kernel.forwarder.origin.live.bytes_to_upstream = 1000
    kernel.see(*WHOLE[:3])
    flow = replace(FLOW, state=TcpState.CLOSE, answered=True, sent=600, received=0)
    kernel.tell(flow, ended=True)
    assert kernel.plane.closed[0].bytes_to_upstream == 600
    assert kernel.forwarder.origin.live.bytes_to_upstream == 400


def test_no_order_of_events_breaks_the_figures(kernel: Kernel) -> None:
    for before, after in pairwise((*TcpState, *reversed(TcpState))):
        kernel.see(before, after)
    kernel.forget()
    active, established = kernel.figures
    entry = kernel.entry
    assert (active, established + entry.connected + entry.failed) == (0, entry.recorded)
