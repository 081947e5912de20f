"""The relay against real sockets: octets, half-close, resets, backpressure."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from egress_proxy.events import Reason
from tests.support.rig import Rig, turns

if TYPE_CHECKING:
    from tests.support.peers import Peer

pytestmark = [pytest.mark.asyncio, pytest.mark.both_loops]


async def test_octets_pass_both_ways() -> None:
    async with Rig() as rig:
        client, upstream = await rig.pair()
        await client.send(b"question")
        assert await upstream.receive(8) == b"question"
        await upstream.send(b"answer")
        assert await client.receive(6) == b"answer"
        client.finish()
        upstream.finish()
        (record,) = await rig.recorder.wait_closed()
    assert record.reason is Reason.FINISHED
    assert (record.bytes_to_upstream, record.bytes_to_client) == (8, 6)


async def test_bulk_passes_both_ways_at_once() -> None:
    async with Rig() as rig:
        client, upstream = await rig.pair()
        there, back = os.urandom(8 << 20), os.urandom(8 << 20)

        async def send(peer: Peer, octets: bytes) -> None:
            await peer.send(octets)
            peer.finish()

        _, _, at_upstream, at_client = await asyncio.gather(
            send(client, there), send(upstream, back), upstream.receive_all(), client.receive_all()
        )
        (record,) = await rig.recorder.wait_closed()
    assert at_upstream == (there, False)
    assert at_client == (back, False)
    assert (record.bytes_to_upstream, record.bytes_to_client) == (8 << 20, 8 << 20)


@pytest.mark.parametrize("first", ["client", "upstream"])
async def test_half_close_leaves_the_other_direction_open(first: str) -> None:
    async with Rig() as rig:
        client, upstream = await rig.pair()
        one, other = (client, upstream) if first == "client" else (upstream, client)
        await one.send(b"all I have")
        one.finish()
        assert await other.receive_all() == (b"all I have", False)
        await other.send(b"still here")
        assert await one.receive(10) == b"still here"
        other.finish()
        assert await one.receive_all() == (b"", False)
        (record,) = await rig.recorder.wait_closed()
    assert record.reason is Reason.FINISHED


async def test_the_last_octets_and_the_fin_are_one_segment() -> None:
    async with Rig() as rig:
        client, upstream = await rig.pair()
        before = segments_in(client)
        # Without a turn of the loop in between: the proxy finds both at once.
        upstream.send_what_fits(b"answer")
        upstream.finish()
        assert await client.receive_all() == (b"answer", False)
        assert segments_in(client) == before + 1


async def test_a_first_answer_in_two_pieces_is_not_held_up() -> None:
    """As Nagle's algorithm would hold up the second one, were the first one's ACK delayed."""
    late = []
    # Others on this machine may delay an ACK of theirs meanwhile, but not each time.
    for _ in range(5):
        async with Rig() as rig:
            client = rig.unconnected_client()
            client.sock.connect_ex(rig.address)
            client.send_what_fits(b"question")
            upstream = await rig.upstream()
            assert await upstream.receive(8) == b"question"
            before = delayed_acks()
            for piece in (b"\0\6", b"answer"):
                upstream.send_what_fits(piece)
            assert await client.receive(8) == b"\0\6answer"
            late.append(delayed_acks() - before)
    assert 0 in late


def delayed_acks() -> int:
    """ACKs that this namespace's kernel has sent late (TcpExtDelayedACKs in /proc/net/netstat)."""
    names, numbers = (
        line.split()
        for line in Path("/proc/thread-self/net/netstat").read_text().splitlines()
        if line.startswith("TcpExt:")
    )
    return int(numbers[names.index("DelayedACKs")])


def segments_in(peer: Peer) -> int:
    """Segments that `peer` has received: tcpi_segs_in, at 140 in struct tcp_info (linux/tcp.h)."""
    info = peer.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int.from_bytes(info[140:144], sys.byteorder)


async def test_a_slow_reader_stalls_its_sender() -> None:
    async with Rig() as rig:
        client, upstream = await rig.pair()
        octets = os.urandom(1 << 20)
        sent = bytearray()
        while (relay := rig.relay) is None or not relay.up.write_blocked:
            sent += octets[: client.send_what_fits(octets)]
            await turns()
        stuck = relay.up.count
        for _ in range(100):
            sent += octets[: client.send_what_fits(octets)]
            await turns()
        assert relay.up.count == stuck
        client.finish()
        assert await upstream.receive_all() == (bytes(sent), False)


async def test_urgent_octets_stay_in_their_place() -> None:
    async with Rig() as rig:
        client, upstream = await rig.pair()
        upstream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        await client.send(b"before")
        client.sock.send(b"!", socket.MSG_OOB)
        await client.send(b"after")
        client.finish()
        assert await upstream.receive_all() == (b"before!after", False)


async def test_urgent_octets_stay_in_their_place_in_bulk_too() -> None:
    """splice(2) does not pass an urgent mark, and says that there is nothing to read."""
    async with Rig() as rig:
        client, upstream = await rig.pair()
        upstream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        octets = os.urandom(1 << 20)

        async def send() -> None:
            await client.send(octets)
            client.sock.setblocking(True)
            client.sock.send(b"!", socket.MSG_OOB)
            client.sock.setblocking(False)
            await client.send(octets)
            client.finish()

        sending = asyncio.create_task(send(), name="sender")
        assert await upstream.receive(len(octets)) == octets
        assert await upstream.receive(1) == b"!"
        assert await upstream.receive_all() == (octets, False)
        await sending
