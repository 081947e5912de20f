"""Every ending of a connection, from either side, in every state: a matrix.

`actor` is the side that does something, `other` the one that must see it happen. The states:

connecting   the upstream has not answered yet
open         octets have passed both ways
half-closed  `other` has sent its FIN before
paused       `other` does not read, so that `actor`'s direction is stalled
"""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from egress_proxy.events import Reason
from egress_proxy.relay.reactor import ERROR
from tests.support.peers import Peer
from tests.support.rig import Rig, turns

pytestmark = [pytest.mark.asyncio, pytest.mark.both_loops]

SIDES = ("client", "upstream")
GREETINGS = {"client": b"hello", "upstream": b"welcome"}
RESETS = {"client": Reason.CLIENT_RESET, "upstream": Reason.UPSTREAM_RESET}


async def open_pair(rig: Rig, actor: str) -> tuple[Peer, Peer]:
    """An actor and its other, with octets passed both ways."""
    client, upstream = await rig.pair()
    for peer, other, greeting in (
        (client, upstream, GREETINGS["client"]),
        (upstream, client, GREETINGS["upstream"]),
    ):
        await peer.send(greeting)
        assert await other.receive(len(greeting)) == greeting
    return (client, upstream) if actor == "client" else (upstream, client)


async def half_closed_pair(rig: Rig, actor: str) -> tuple[Peer, Peer]:
    one, other = await open_pair(rig, actor)
    other.finish()
    assert await one.receive_all() == (b"", False)
    return one, other


async def paused_pair(rig: Rig, actor: str) -> tuple[Peer, Peer, bytes]:
    """A pair whose `other` does not read, and what its actor has sent until nothing moved."""
    one, other = await open_pair(rig, actor)
    sent = await stall(rig, actor, one)
    return one, other, sent


async def stall(rig: Rig, actor: str, sender: Peer) -> bytes:
    relay = rig.relay
    assert relay is not None
    flow = relay.up if actor == "client" else relay.down
    octets = os.urandom(1 << 18)
    sent = bytearray()
    while True:
        taken = sender.send_what_fits(octets)
        sent += octets[:taken]
        await turns(3)
        if taken == 0 and flow.write_blocked:
            return bytes(sent)


class SilentUpstream:
    """A listening socket whose backlog is full: the next SYN gets no answer."""

    def __init__(self, rig: Rig) -> None:
        rig.listener.sock.listen(0)
        self._rig = rig
        self._fillers: list[socket.socket] = []

    async def __aenter__(self) -> None:
        filler = socket.socket()
        filler.setblocking(False)
        self._fillers.append(filler)
        # A backlog of 0 holds one connection (listen(2)).
        await asyncio.get_running_loop().sock_connect(filler, self._rig.listener.address)

    async def __aexit__(self, *_: object) -> None:
        for filler in self._fillers:
            filler.close()


async def connecting_client(rig: Rig) -> Peer:
    client = await rig.client()
    while not rig.racing:
        await turns()
    return client


# connecting ------------------------------------------------------------------------------------


async def test_connecting_client_finishes() -> None:
    """Its FIN waits in the kernel with its octets, and both arrive once the upstream answers."""
    async with Rig() as rig:
        async with SilentUpstream(rig):
            client = await connecting_client(rig)
            await client.send(b"early")
            client.finish()
            (await rig.listener.accept()).close()
            # The kernel sends the unanswered SYN again after a second.
            upstream = await rig.listener.accept()
        assert await upstream.receive_all() == (b"early", False)
        await upstream.send(b"late")
        upstream.close()
        assert await client.receive_all() == (b"late", False)
        (record,) = await rig.recorder.wait_closed()
    assert record.reason is Reason.FINISHED


async def test_connecting_client_resets() -> None:
    async with Rig() as rig, SilentUpstream(rig):
        client = await connecting_client(rig)
        client.reset()
        (record,) = await rig.recorder.wait_closed()
    assert record.reason is Reason.CLIENT_GONE
    assert (record.attempts, record.connect_s) == (1, None)


async def test_connecting_client_resets_when_its_upstream_has_just_accepted() -> None:
    """Both at once, and the client's event comes first."""
    async with Rig() as rig:
        await connecting_client(rig)
        (connection,) = rig.connections
        connection.ready(ERROR)
        upstream = await rig.upstream()
        assert await upstream.receive_all() == (b"", True)
        (record,) = await rig.recorder.wait_closed()
    assert record.reason is Reason.CLIENT_GONE


async def test_a_port_scan_reaches_no_upstream() -> None:
    """SYN, ACK, RST: the client is gone before the proxy has looked at it."""
    async with Rig() as rig:
        client = rig.unconnected_client()
        client.sock.connect_ex(rig.address)
        client.reset()
        (record,) = await rig.recorder.wait_closed()
    assert record.reason is Reason.CLIENT_GONE
    assert record.attempts == 0


async def test_time_passes_before_the_first_event_of_a_client() -> None:
    """As when the event loop is held up between the two."""
    async with Rig() as rig:
        client = await rig.client()
        while not rig.connections:
            await turns()
        (connection,) = rig.connections
        assert not rig.racing
        rig.wheel.cancel(connection)
        connection.on_timer()
        upstream = await rig.upstream()
        await client.send(b"still here?")
        assert await upstream.receive(11) == b"still here?"


async def test_connecting_upstream_is_silent_until_the_timeout() -> None:
    async with Rig(connect_timeout_s=0.1) as rig, SilentUpstream(rig):
        client = await connecting_client(rig)
        await client.send(b"early")
        assert await client.receive_all() == (b"", True)
        (record,) = await rig.recorder.wait_closed()
    assert record.reason is Reason.CONNECT_TIMEOUT


async def test_connecting_upstream_refuses() -> None:
    async with Rig() as rig:
        rig.listener.close()
        client = rig.unconnected_client()
        client.sock.connect_ex(rig.address)
        assert await client.receive_all() == (b"", True)
        (record,) = await rig.recorder.wait_closed()
    assert record.reason is Reason.CONNECT_REFUSED


async def test_connecting_upstream_says_something_and_resets() -> None:
    """All of it before the proxy looks: what was said still arrives, and then the reset."""
    async with Rig() as rig:
        client = await connecting_client(rig)
        sock, _ = rig.listener.sock.accept()
        upstream = Peer(sock)
        upstream.send_what_fits(b"too busy")
        upstream.reset()
        assert await client.receive_all() == (b"too busy", True)
        (record,) = await rig.recorder.wait_closed()
    assert record.reason is Reason.UPSTREAM_RESET
    assert record.bytes_to_client == 8


async def test_connecting_drained() -> None:
    async with Rig() as rig, SilentUpstream(rig):
        client = await connecting_client(rig)
        rig.abort_all()
        assert await client.receive_all() == (b"", True)
        (record,) = await rig.recorder.wait_closed()
    assert record.reason is Reason.DRAINED


# open ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("actor", SIDES)
async def test_open_finishes(actor: str) -> None:
    async with Rig() as rig:
        one, other = await open_pair(rig, actor)
        await one.send(b"last words")
        one.finish()
        assert await other.receive_all() == (b"last words", False)
        other.finish()
        assert await one.receive_all() == (b"", False)
        (record,) = await rig.recorder.wait_closed()
    assert record.reason is Reason.FINISHED


@pytest.mark.parametrize("actor", SIDES)
async def test_open_resets(actor: str) -> None:
    async with Rig() as rig:
        one, other = await open_pair(rig, actor)
        one.reset()
        assert await other.receive_all() == (b"", True)
        (record,) = await rig.recorder.wait_closed()
    assert record.reason is RESETS[actor]


@pytest.mark.parametrize("actor", SIDES)
async def test_open_stalls_and_goes_on(actor: str) -> None:
    async with Rig() as rig:
        one, other, sent = await paused_pair(rig, actor)
        await other.send(b"meanwhile")
        assert await one.receive(9) == b"meanwhile"
        assert await other.receive(len(sent)) == sent
        await one.send(b"and on")
        assert await other.receive(6) == b"and on"


async def test_open_idle() -> None:
    async with Rig(idle_timeout_s=0.1) as rig:
        client, upstream = await open_pair(rig, "client")
        assert await client.receive_all() == (b"", True)
        assert await upstream.receive_all() == (b"", True)
        (record,) = await rig.recorder.wait_closed()
    assert record.reason is Reason.IDLE_TIMEOUT
    assert record.duration_s is not None
    assert record.duration_s >= 0.1


async def test_open_drained() -> None:
    async with Rig() as rig:
        client, upstream = await open_pair(rig, "client")
        rig.abort_all()
        assert await client.receive_all() == (b"", True)
        assert await upstream.receive_all() == (b"", True)
        (record,) = await rig.recorder.wait_closed()
    assert record.reason is Reason.DRAINED


# half-closed -----------------------------------------------------------------------------------


@pytest.mark.parametrize("actor", SIDES)
async def test_half_closed_finishes(actor: str) -> None:
    async with Rig() as rig:
        one, other = await half_closed_pair(rig, actor)
        await one.send(b"the rest")
        one.finish()
        assert await other.receive_all() == (b"the rest", False)
        (record,) = await rig.recorder.wait_closed()
    assert record.reason is Reason.FINISHED


@pytest.mark.parametrize("actor", SIDES)
@pytest.mark.parametrize("resetter", ["the one that may still send", "the one that has finished"])
async def test_half_closed_resets(actor: str, resetter: str) -> None:
    async with Rig() as rig:
        one, other = await half_closed_pair(rig, actor)
        await one.send(b"more")
        assert await other.receive(4) == b"more"
        if resetter == "the one that may still send":
            one.reset()
            assert await other.receive_all() == (b"", True)
            reason = RESETS[actor]
        else:
            other.reset()
            (record,) = await rig.recorder.wait_closed()
            # It has read the end of that direction already: the RST shows when it sends.
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                await one.send(b"anyone?")
            reason = RESETS["upstream" if actor == "client" else "client"]
        (record,) = await rig.recorder.wait_closed()
    assert record.reason is reason


@pytest.mark.parametrize("actor", SIDES)
async def test_half_closed_stalls_and_goes_on(actor: str) -> None:
    async with Rig() as rig:
        one, other = await half_closed_pair(rig, actor)
        sent = await stall(rig, actor, one)
        assert await other.receive(len(sent)) == sent
        one.finish()
        assert await other.receive_all() == (b"", False)
        (record,) = await rig.recorder.wait_closed()
    assert record.reason is Reason.FINISHED


@pytest.mark.parametrize("actor", SIDES)
async def test_half_closed_and_silent(actor: str) -> None:
    async with Rig(half_close_timeout_s=0.1) as rig:
        _, other = await half_closed_pair(rig, actor)
        assert await other.receive_all() == (b"", True)
        (record,) = await rig.recorder.wait_closed()
    assert record.reason is Reason.HALF_CLOSE_TIMEOUT


@pytest.mark.parametrize("actor", SIDES)
async def test_half_closed_drained(actor: str) -> None:
    async with Rig() as rig:
        _, other = await half_closed_pair(rig, actor)
        rig.abort_all()
        assert await other.receive_all() == (b"", True)
        (record,) = await rig.recorder.wait_closed()
    assert record.reason is Reason.DRAINED


# paused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("actor", SIDES)
async def test_paused_sender_finishes(actor: str) -> None:
    async with Rig() as rig:
        one, other, sent = await paused_pair(rig, actor)
        one.finish()
        assert await other.receive_all() == (sent, False)
        other.finish()
        assert await one.receive_all() == (b"", False)
        (record,) = await rig.recorder.wait_closed()
    assert record.reason is Reason.FINISHED


@pytest.mark.parametrize("actor", SIDES)
async def test_paused_sender_resets(actor: str) -> None:
    """What had reached the relay's kernel before the RST is delivered before the RST."""
    async with Rig() as rig:
        one, other, sent = await paused_pair(rig, actor)
        relay = rig.relay
        assert relay is not None
        flow = relay.up if actor == "client" else relay.down
        in_relay = flow.count
        one.reset()
        received, was_reset = await other.receive_all()
        (record,) = await rig.recorder.wait_closed()
    assert was_reset
    assert sent.startswith(received)
    assert len(received) > in_relay
    # All that the kernel took on its way has arrived: the RST has waited for it.
    counted = record.bytes_to_upstream if actor == "client" else record.bytes_to_client
    assert len(GREETINGS[actor]) + len(received) == counted
    assert record.reason is RESETS[actor]


@pytest.mark.parametrize("actor", SIDES)
async def test_paused_sender_resets_and_the_reader_never_reads(actor: str) -> None:
    """The idle timer ends it, but the reason is what came first."""
    async with Rig(half_close_timeout_s=0.2) as rig:
        one, _, _ = await paused_pair(rig, actor)
        one.reset()
        (record,) = await rig.recorder.wait_closed()
    assert record.reason is RESETS[actor]


@pytest.mark.parametrize("actor", SIDES)
async def test_paused_reader_resets(actor: str) -> None:
    async with Rig() as rig:
        one, other, _ = await paused_pair(rig, actor)
        other.reset()
        assert await one.receive_all() == (b"", True)
        (record,) = await rig.recorder.wait_closed()
    assert record.reason is RESETS["upstream" if actor == "client" else "client"]


@pytest.mark.parametrize("actor", SIDES)
async def test_paused_reader_finishes(actor: str) -> None:
    async with Rig() as rig:
        one, other, sent = await paused_pair(rig, actor)
        other.finish()
        assert await one.receive_all() == (b"", False)
        one.finish()
        assert await other.receive_all() == (sent, False)
        (record,) = await rig.recorder.wait_closed()
    assert record.reason is Reason.FINISHED


@pytest.mark.parametrize("actor", SIDES)
async def test_paused_for_too_long(actor: str) -> None:
    async with Rig(idle_timeout_s=0.1) as rig:
        one, other, _ = await paused_pair(rig, actor)
        assert (await one.receive_all())[1]
        assert (await other.receive_all())[1]
        (record,) = await rig.recorder.wait_closed()
    assert record.reason is Reason.IDLE_TIMEOUT


@pytest.mark.parametrize("actor", SIDES)
async def test_paused_drained(actor: str) -> None:
    async with Rig() as rig:
        one, other, _ = await paused_pair(rig, actor)
        rig.abort_all()
        assert (await one.receive_all())[1]
        assert (await other.receive_all())[1]
        (record,) = await rig.recorder.wait_closed()
    assert record.reason is Reason.DRAINED
