"""What runs out: connections, descriptors, pipes, time; and clients that only make work."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, cast

import pytest

from egress_proxy.events import (
    ListenerOpened,
    ListenersPaused,
    ListenersResumed,
    Reason,
    UpstreamFailed,
)
from egress_proxy.relay.pipes import PipePool
from egress_proxy.relay.reactor import Reactor
from tests.support.rig import TICK_S, Rig, SmallConnector, turns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from egress_proxy.forwarding.upstreams import Endpoint
    from egress_proxy.relay.reactor import Watcher
    from tests.support.peers import Peer

pytestmark = pytest.mark.asyncio

# What no test can really run out of: all processes would.
LACKING = (errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@contextmanager
def no_more_descriptors() -> Iterator[None]:
    """Set the limit so that the next descriptor is one too many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.dup(0)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def echo(client: Peer, upstream: Peer) -> None:
    await client.send(b"ping")
    assert await upstream.receive(4) == b"ping"
    await upstream.send(b"pong")
    assert await client.receive(4) == b"pong"


async def test_beyond_the_maximum_clients_wait_in_the_backlog() -> None:
    async with Rig(maximum=2) as rig:
        first, second = await rig.pair(), await rig.pair()
        waiting = await rig.client()
        await waiting.send(b"ping")
        await echo(*first)
        await echo(*second)
        assert rig.admission.active == 2
        assert rig.admission.paused
        for peer in first:
            peer.finish()
        upstream = await rig.listener.accept()
        assert await upstream.receive(4) == b"ping"
        upstream.close()
        kinds = [type(record) for record in rig.recorder.records]
    assert kinds[:2] == [ListenerOpened, ListenersPaused]
    assert kinds.count(ListenersPaused) == kinds.count(ListenersResumed) == 1


async def test_clients_that_come_together_are_no_more_than_the_maximum() -> None:
    async with Rig(maximum=2) as rig:
        clients = [rig.unconnected_client() for _ in range(5)]
        for client in clients:
            client.sock.connect_ex(rig.address)
        most = 0
        for count in range(1, len(clients) + 1):
            upstream = await rig.listener.accept()
            most = max(most, rig.admission.active)
            upstream.reset()
            await rig.recorder.wait_closed(count)
    assert most == 2


async def test_out_of_descriptors_listeners_pause_and_resume() -> None:
    """Established pairs go on meanwhile, nothing spins, and nothing is lost."""

    class Counting(Reactor):
        """Counts its batches of events, each of which has its time."""

        batches = 0

        @property
        def now(self) -> float:
            return self._now

        @now.setter
        def now(self, now: float) -> None:
            self._now = now
            self.batches += 1

    async with Rig(reactor=Counting) as rig:
        assert isinstance(rig.reactor, Counting)
        established = await rig.pair()
        await echo(*established)
        waiting = rig.unconnected_client()
        with no_more_descriptors():
            waiting.sock.connect_ex(rig.address)
            while not rig.admission.paused:
                await turns()
            await waiting.send(b"ping")
            before = rig.reactor.batches
            # Not a wait for something to happen: the time in which nothing must.
            await asyncio.sleep(1)
            batches = rig.reactor.batches - before
            await echo(*established)
        upstream = await rig.listener.accept()
        assert await upstream.receive(4) == b"ping"
        upstream.close()
        paused = [record for record in rig.recorder.records if isinstance(record, ListenersPaused)]
    assert paused[0].error == "Too many open files"
    assert len(paused) <= 2
    # It tries again after 250 ms, which is a batch; one more takes the client in.
    assert 1 <= batches <= 10


async def test_a_client_whose_upstream_socket_is_one_too_many_is_reset() -> None:
    async with Rig() as rig:
        client = rig.unconnected_client()
        spare = os.dup(0)
        with no_more_descriptors():
            os.close(spare)
            client.sock.connect_ex(rig.address)
            (record,) = await rig.recorder.wait_closed()
        assert await client.receive_all() == (b"", True)
        assert record.reason is Reason.ERROR
        # It comes back by itself.
        await echo(*await rig.pair())


@pytest.mark.parametrize("number", [*LACKING, errno.EADDRNOTAVAIL], ids=errno.errorcode.get)
async def test_what_an_upstream_socket_lacks_is_waited_for(number: int) -> None:
    """Its client is reset, listeners rest, sessions go on, and the remote is not blamed."""
    lacking = False

    class Lacking(SmallConnector):
        def open(self, endpoint: Endpoint, watcher: Watcher) -> socket.SocketType:
            if lacking:
                raise OSError(number, "as if")
            return super().open(endpoint, watcher)

    async with Rig(connector=Lacking) as rig:
        established = await rig.pair()
        lacking = True
        client = rig.unconnected_client()
        client.sock.connect_ex(rig.address)
        assert await client.receive_all() == (b"", True)
        assert not rig.admission.takes_clients(rig.port)
        # What one remote lacks is no matter of the others.
        assert rig.admission.paused is (number != errno.EADDRNOTAVAIL)
        await echo(*established)
        lacking = False
        await echo(*await rig.pair())
        (record,) = rig.recorder.closed
        kinds = {type(record) for record in rig.recorder.records}
        (paused,) = (one for one in rig.recorder.records if isinstance(one, ListenersPaused))
    assert record.reason is Reason.ERROR
    assert paused.error == os.strerror(number)
    assert UpstreamFailed not in kinds


@pytest.mark.parametrize("number", LACKING, ids=errno.errorcode.get)
async def test_what_a_client_lacks_is_waited_for(number: int) -> None:
    class Lacking:
        def _accept(self) -> None:
            raise OSError(number, "as if")

    async with Rig() as rig:
        established = await rig.pair()
        rig.port.accept(cast("socket.SocketType", Lacking()))
        assert rig.admission.paused
        await echo(*established)
        await echo(*await rig.pair())
        assert rig.recorder.closed == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOMEM], ids=errno.errorcode.get)
async def test_a_client_that_epoll_has_no_room_for_is_reset(number: int) -> None:
    """Such as fs.epoll.max_user_watches, one for all processes of a user (epoll(7))."""
    lacking = True

    class Full(Reactor):
        def watch(self, sock: socket.SocketType, watcher: Watcher) -> None:
            super().watch(sock, watcher)
            if lacking:
                self.unwatch(sock)
                raise OSError(number, "as if")

    async with Rig(reactor=Full) as rig:
        client = rig.unconnected_client()
        client.sock.connect_ex(rig.address)
        async with asyncio.timeout(5):
            (record,) = await rig.recorder.wait_closed()
        assert await client.receive_all() == (b"", True)
        assert rig.admission.active == 0
        lacking = False
        await echo(*await rig.pair())
    assert record.reason is Reason.ERROR


async def test_without_a_pipe_bulk_is_copied() -> None:
    async with Rig(pipes=0) as rig:
        await bulk(rig)


async def test_with_small_pipes_small_segments_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an unprivileged user has left once the pipes of its UID are used up (pipe(7))."""
    monkeypatch.setattr("egress_proxy.relay.pipes._SIZE", 4096)
    async with Rig() as rig:
        await bulk(rig, write=100)


async def test_without_descriptors_for_pipes_bulk_is_copied() -> None:
    async with Rig() as rig:
        client, upstream = await rig.pair()
        await echo(client, upstream)
        with no_more_descriptors():
            await pour(client, upstream, os.urandom(1 << 20), 1 << 20)


async def bulk(rig: Rig, write: int = 1 << 20) -> None:
    client, upstream = await rig.pair()
    await pour(client, upstream, os.urandom(1 << 20), write)


async def pour(sender: Peer, receiver: Peer, octets: bytes, write: int) -> None:
    """Send `octets` in writes of that size against a receiver that begins when all is stuck."""

    async def send() -> None:
        for start in range(0, len(octets), write):
            await sender.send(octets[start : start + write])
        sender.finish()

    sending = asyncio.create_task(send(), name="sender")
    await turns(2000)
    assert await receiver.receive_all() == (octets, False)
    await sending


async def test_a_dirty_pipe_is_never_used_again() -> None:
    async with Rig() as rig:
        first_client, first_upstream = await rig.pair()
        octets = os.urandom(1 << 18)
        # Until a pipe is left with octets in it.
        while not rig.pipes.in_use:
            first_client.send_what_fits(octets)
            with suppress(BlockingIOError):
                first_upstream.sock.recv(1 << 14)
            await turns()
        first_upstream.reset()
        await rig.recorder.wait_closed()
        first_client.close()
        second = await rig.pair()
        await pour(*second, os.urandom(1 << 20), 1 << 20)


async def test_pipes_are_limited_and_given_back() -> None:
    pool = PipePool(2)
    first, second = pool.take(), pool.take()
    assert first is not None
    assert second is not None
    assert pool.take() is None
    pool.give_back(first, empty=True)
    assert pool.take() is first
    pool.give_back(second, empty=False)
    third = pool.take()
    assert third is not None
    for pipe in (first, third):
        pool.give_back(pipe, empty=True)
    pool.close()


async def test_port_scans_leave_nothing_and_do_not_affect_clients() -> None:
    async with Rig() as rig:
        established = await rig.pair()
        for _ in range(20):
            scanners = [await rig.client() for _ in range(10)]
            for scanner in scanners:
                scanner.reset()
            await echo(*established)
        while rig.admission.active > 1:
            await turns()
        reasons = {record.reason for record in rig.recorder.closed}
    assert reasons <= {Reason.CLIENT_GONE, Reason.CLIENT_RESET}


async def test_both_sides_get_keepalive_at_the_first_timer_tick() -> None:
    async with Rig() as rig:
        client, upstream = await rig.pair()
        await echo(client, upstream)
        assert rig.relay is not None
        upstream_sock = rig.relay.up.sink
        while not upstream_sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE):
            await turns()
        for sock in (rig.relay.down.sink, upstream_sock):
            options = [
                sock.getsockopt(level, option)
                for level, option in (
                    (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
                    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
                    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
                    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
                )
            ]
            assert options == [1, 60, 15, 4, 0]


async def test_an_idle_connection_without_a_limit_is_looked_at_again() -> None:
    async with Rig(idle_timeout_s=0, half_close_timeout_s=0) as rig:
        await echo(*await rig.pair())
        (connection,) = rig.wheel
        assert rig.relay is not None
        rig.relay.touched -= 10 * 3600
        rig.wheel.cancel(connection)
        connection.on_timer()
        assert list(rig.wheel) == [connection]
        assert connection.deadline_tick > asyncio.get_running_loop().time() / TICK_S


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOMEM], ids=errno.errorcode.get)
async def test_listeners_that_epoll_has_no_room_for_resume_once_it_has(number: int) -> None:
    lacking = False
    refused = asyncio.Event()

    class Full(Reactor):
        def watch_listener(self, sock: socket.SocketType, watcher: Watcher) -> None:
            if lacking:
                refused.set()
                raise OSError(number, "as if")
            super().watch_listener(sock, watcher)

    async with Rig(maximum=1, reactor=Full) as rig:
        client, upstream = await rig.pair()
        assert rig.admission.paused
        lacking = True
        client.reset()
        assert await upstream.receive_all() == (b"", True)
        await refused.wait()
        # Another listener took the last room; the status says so, and the record was written.
        assert not rig.admission.takes_clients(rig.port)
        assert len(rig.recorder.closed) == 1
        lacking = False
        await echo(*await rig.pair())
