"""A flow moves a buffer or a pipe at a time; then the others have their turn."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from egress_proxy.relay.pipes import PipePool
from egress_proxy.relay.reactor import IN, Reactor
from egress_proxy.relay.relay import Relay
from tests.support.rig import Recorder, turns

if TYPE_CHECKING:
    from contextlib import ExitStack

    from egress_proxy.events import Reason

pytestmark = [pytest.mark.asyncio, pytest.mark.both_loops]

BUFFER = 64 * 1024
PIPE = 256 * 1024


class Owner:
    def relay_ended(self, reason: Reason) -> None: ...


def ends(cleanup: ExitStack) -> tuple[socket.SocketType, socket.SocketType]:
    """Two ends of a connection with as much room as an ordinary user may have."""
    pair = socket.socketpair()
    for end in pair:
        cleanup.callback(end.close)
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    return pair


async def test_bulk_moves_a_buffer_or_a_pipe_in_a_turn(cleanup: ExitStack) -> None:
    recorder, pipes = Recorder(), PipePool(2)
    cleanup.callback(pipes.close)
    loop = asyncio.get_running_loop()
    reactor = Reactor(loop, recorder.report)
    cleanup.callback(reactor.stop)
    (sender, client), (upstream, receiver) = ends(cleanup), ends(cleanup)
    relay = Relay(reactor, pipes, client, upstream, Owner())
    amount = sender.send(bytes(PIPE))
    assert amount > 2 * BUFFER
    # By hand, so that every turn is seen.
    relay.up.ready(IN)
    moved = [relay.up.count]
    while sum(moved) < amount:
        relay.up.ready(0)
        moved.append(relay.up.count - sum(moved))
    assert moved[0] == BUFFER
    assert max(moved) <= PIPE
    assert len(receiver.recv(amount)) == amount
    relay.up.detach()
    relay.down.detach()
    assert recorder.defects == []


async def test_sockets_that_are_always_ready_leave_the_event_loop_its_turn(
    cleanup: ExitStack,
) -> None:
    recorder = Recorder()
    reactor = Reactor(asyncio.get_running_loop(), recorder.report)
    cleanup.callback(reactor.stop)

    class Echo:
        def __init__(self, sock: socket.SocketType) -> None:
            self._sock = sock

        def ready(self, events: int) -> None:
            if events & IN:
                self._sock.send(self._sock.recv(1))

        def fail(self) -> None: ...

    for _ in range(16):
        one, other = ends(cleanup)
        for end in (one, other):
            reactor.watch(end, Echo(end))
        one.send(b"!")
    # It hangs if not.
    await turns(10)
    assert recorder.defects == []
