"""Endings of which the kernel tells once, or in an order that the matrix does not make happen."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from egress_proxy.events import Reason
from egress_proxy.relay.reactor import ERROR, IN
from egress_proxy.relay.relay import unacknowledged
from tests.support.rig import Rig, turns

if TYPE_CHECKING:
    from egress_proxy.relay.flow import Flow
    from tests.support.peers import Peer

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.both_loops,
    pytest.mark.parametrize("actor", ["client", "upstream"]),
]

RESETS = {"client": Reason.CLIENT_RESET, "upstream": Reason.UPSTREAM_RESET}


async def relayed(rig: Rig, actor: str) -> tuple[Peer, Peer, Flow]:
    """An actor, its other, and the flow from the one to the other."""
    client, upstream = await rig.pair()
    while (relay := rig.relay) is None:
        await turns()
    if actor == "client":
        return client, upstream, relay.up
    return upstream, client, relay.down


async def test_a_reset_that_only_splice_reports(actor: str) -> None:
    """The error is gone after it (sock_error in net/core), and recv says that there is no more."""
    async with Rig() as rig:
        one, other, flow = await relayed(rig, actor)
        flow._bulk = True
        sent = one.send_what_fits(bytes(20_000))
        one.reset()
        # As if epoll had been asked before the RST came.
        flow.ready(IN)
        received, was_reset = await other.receive_all()
        assert (len(received), was_reset) == (sent, True)
        (record,) = await rig.recorder.wait_closed()
    assert record.reason is RESETS[actor]


async def test_a_reader_that_finishes_while_a_reset_waits_for_its_acknowledgements(
    actor: str,
) -> None:
    """Its FIN is no reason to take the other side's RST for one."""
    async with Rig() as rig:
        one, other, flow = await relayed(rig, actor)
        sent = 0
        # Until `other` has no room, and the relay's kernel has.
        while not unacknowledged(flow.sink):
            sent += one.send_what_fits(bytes(1024))
            await turns(3)
        assert flow.count == sent
        one.reset()
        # As if epoll_wait had returned before the RST came: recv reports it.
        flow.ready(IN)
        other.finish()
        received, was_reset = await other.receive_all()
        assert (len(received), was_reset) == (sent, True)
        (record,) = await rig.recorder.wait_closed()
    assert record.reason is RESETS[actor]


async def test_a_reset_that_a_send_and_an_event_report_counts_once(actor: str) -> None:
    """One side has broken, not two: the other's acknowledgements are waited for."""
    async with Rig() as rig:
        one, other, flow = await relayed(rig, actor)
        flow.sink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 19)
        sent = one.send_what_fits(bytes(40_000))
        while flow.count < sent:
            await turns()
        assert unacknowledged(flow.sink)
        assert other.send_what_fits(b"at that moment") == 14
        one.reset()
        # As if both were in one batch of events.
        flow.opposite.ready(IN)
        flow.ready(IN | ERROR)
        received, was_reset = await other.receive_all()
        assert (len(received), was_reset) == (sent, True)
        (record,) = await rig.recorder.wait_closed()
    assert record.reason is RESETS[actor]


async def test_both_sides_reset_while_both_directions_are_stalled(actor: str) -> None:
    """No peer is left to acknowledge anything; a reset socket still counts what it sent."""
    async with Rig() as rig:
        one, other, flow = await relayed(rig, actor)
        octets = bytes(1 << 18)
        quiet = 0
        while quiet < 20:
            quiet = 0 if one.send_what_fits(octets) + other.send_what_fits(octets) else quiet + 1
            await turns(3)
        assert flow.write_blocked
        assert flow.opposite.write_blocked
        one.reset()
        await turns(10)
        other.reset()
        async with asyncio.timeout(5):
            (record,) = await rig.recorder.wait_closed()
    assert record.reason is RESETS[actor]
