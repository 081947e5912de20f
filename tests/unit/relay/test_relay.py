"""The table of `relay.relay`: each state of a relay, and each thing that can happen in it.

The sockets are pairs that no network sees (AF_UNIX). On them an octet counts as acknowledged once
it is read, and a close with unread octets is a RST (unix_release_sock in net/unix/af_unix.c).
"""

from __future__ import annotations

import socket
import struct
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, cast

import pytest

from egress_proxy.events import Reason
from egress_proxy.relay.pipes import PipePool
from egress_proxy.relay.reactor import ERROR, IN, OUT, PEER_FINISHED
from egress_proxy.relay.relay import Relay
from tests.support.manual_loop import ManualLoop
from tests.support.sockets import FakeReactor

if TYPE_CHECKING:
    from collections.abc import Iterator

SIDES = pytest.mark.parametrize("actor", ["client", "upstream"])
RESETS = {"client": Reason.CLIENT_RESET, "upstream": Reason.UPSTREAM_RESET}


class Reactor(FakeReactor):
    """Writes down whether each closed socket sends a RST."""

    def __init__(self, loop: ManualLoop) -> None:
        super().__init__(loop)
        self.resets: list[bool] = []

    def close(self, sock: socket.SocketType) -> None:
        linger = sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
        self.resets.append(linger == struct.pack("ii", 1, 0))
        super().close(sock)


class Rig:
    """A relay that has started, its two peers, and the calls of its owner."""

    def __init__(self, stack: ExitStack, actor: str) -> None:
        self.loop = ManualLoop()
        self.reactor = Reactor(self.loop)
        self.reasons: list[Reason] = []
        client, client_peer = _pair(stack)
        upstream, upstream_peer = _pair(stack)
        for sock in (client, upstream):
            self.reactor.watch(sock, cast("Any", None))
        self.relay = Relay(cast("Any", self.reactor), PipePool(0), client, upstream, self)
        self.relay.start(OUT, OUT)
        # The flow whose source is the actor, and the two ends that it connects.
        self.flow = self.relay.up if actor == "client" else self.relay.down
        self.opposite = self.flow.opposite
        peers = client_peer, upstream_peer
        self.peer, self.other = peers if actor == "client" else reversed(peers)
        self.actor = actor
        self.reason = RESETS[actor]
        self.other_reason = RESETS["upstream" if actor == "client" else "client"]

    def relay_ended(self, reason: Reason) -> None:
        self.reasons.append(reason)

    def half_close(self) -> None:
        """The other side has finished before, and the actor has not read what it said."""
        self.other.send(b"unread")
        self.other.shutdown(socket.SHUT_WR)
        self.opposite.ready(IN | PEER_FINISHED)
        assert self.relay.half_closed

    def send(self, octets: bytes = b"last words") -> None:
        """The actor's octets reach the other's kernel, unread."""
        self.peer.send(octets)
        self.flow.ready(IN)
        assert self.flow.count == len(octets)

    def reset(self) -> None:
        """The actor resets; the relay gets the event."""
        if not self.relay.half_closed:
            # What it has not read makes its close a RST.
            self.opposite.sink.send(b"unread")
        self.peer.close()
        self.flow.ready(IN | OUT | ERROR | PEER_FINISHED)

    def wait_for_acknowledgements(self) -> None:
        self.send()
        self.reset()
        assert self.reasons == []
        assert self.loop.armed == 1

    def ended(self, reason: Reason, *, with_reset: bool) -> None:
        """The relay has ended, once, and has left nothing behind."""
        assert self.reasons == [reason]
        assert self.relay.ended
        assert self.reactor.resets == [with_reset] * 2
        assert self.reactor.watchers == {}
        assert self.loop.armed == 0


def _pair(stack: ExitStack) -> tuple[socket.SocketType, socket.socket]:
    inside, outside = socket.socketpair()
    for end in (inside, outside):
        end.setblocking(False)
        stack.enter_context(end)
    return inside, outside


@pytest.fixture
def rig(actor: str) -> Iterator[Rig]:
    with ExitStack() as stack:
        yield Rig(stack, actor)


@SIDES
def test_octets_are_relayed_and_counted(rig: Rig) -> None:
    rig.send(b"question")
    assert rig.other.recv(100) == b"question"
    assert (rig.flow.count, rig.opposite.count, rig.reasons) == (8, 0, [])


# open ------------------------------------------------------------------------------------------


@SIDES
def test_open_and_one_finishes(rig: Rig) -> None:
    rig.send()
    rig.peer.shutdown(socket.SHUT_WR)
    rig.flow.ready(IN | PEER_FINISHED)
    assert [rig.other.recv(100), rig.other.recv(100)] == [b"last words", b""]
    assert (rig.relay.half_closed, rig.relay.ended, rig.reasons) == (True, False, [])
    # The other direction goes on.
    rig.other.send(b"answer")
    rig.opposite.ready(IN)
    assert rig.peer.recv(100) == b"answer"


@SIDES
def test_open_and_one_breaks_with_everything_acknowledged(rig: Rig) -> None:
    rig.reset()
    rig.ended(rig.reason, with_reset=True)


@SIDES
def test_open_and_one_breaks_before_its_octets_are_acknowledged(rig: Rig) -> None:
    rig.wait_for_acknowledgements()
    # However often it asks.
    rig.loop.advance(3600)
    assert rig.reasons == []
    assert rig.other.recv(100) == b"last words"
    rig.loop.advance(1)
    rig.ended(rig.reason, with_reset=True)


@SIDES
def test_open_and_aborted(rig: Rig) -> None:
    rig.relay.abort(Reason.DRAINED)
    rig.ended(Reason.DRAINED, with_reset=True)


# half-closed -----------------------------------------------------------------------------------


@SIDES
def test_half_closed_and_the_second_finishes(rig: Rig) -> None:
    rig.half_close()
    rig.send()
    rig.peer.shutdown(socket.SHUT_WR)
    rig.flow.ready(IN | PEER_FINISHED)
    rig.ended(Reason.FINISHED, with_reset=False)
    assert [rig.other.recv(100), rig.other.recv(100)] == [b"last words", b""]


@SIDES
def test_half_closed_and_the_second_breaks(rig: Rig) -> None:
    rig.half_close()
    rig.wait_for_acknowledgements()
    assert rig.other.recv(100) == b"last words"
    rig.loop.advance(1)
    rig.ended(rig.reason, with_reset=True)


@SIDES
def test_half_closed_and_aborted(rig: Rig) -> None:
    rig.half_close()
    rig.relay.abort(Reason.HALF_CLOSE_TIMEOUT)
    rig.ended(Reason.HALF_CLOSE_TIMEOUT, with_reset=True)


# waiting for acknowledgements ------------------------------------------------------------------


@SIDES
def test_waiting_and_the_same_side_breaks_again(rig: Rig) -> None:
    """A send and an event may tell of one RST."""
    rig.wait_for_acknowledgements()
    rig.relay.broken(rig.flow)
    assert rig.reasons == []
    assert rig.loop.armed == 1


@SIDES
def test_waiting_and_the_other_side_breaks(rig: Rig) -> None:
    """There is no peer left to wait for, and the first cause is the reason."""
    rig.wait_for_acknowledgements()
    rig.other.close()
    rig.opposite.ready(IN | OUT | ERROR | PEER_FINISHED)
    rig.ended(rig.reason, with_reset=True)


@SIDES
def test_waiting_and_aborted(rig: Rig) -> None:
    rig.wait_for_acknowledgements()
    rig.relay.abort(Reason.IDLE_TIMEOUT)
    rig.ended(rig.reason, with_reset=True)


# ended -----------------------------------------------------------------------------------------


@SIDES
def test_ended_and_aborted(rig: Rig) -> None:
    rig.relay.abort(Reason.DRAINED)
    rig.relay.abort(Reason.ERROR)
    rig.ended(Reason.DRAINED, with_reset=True)


@SIDES
def test_events_that_came_before_the_relay_are_its_first(actor: str) -> None:
    """Such as octets that a client sent while its upstream was connected."""
    with ExitStack() as stack:
        client, client_peer = _pair(stack)
        upstream, upstream_peer = _pair(stack)
        reactor = Reactor(ManualLoop())
        for sock in (client, upstream):
            reactor.watch(sock, cast("Any", None))
        ended: list[Reason] = []

        class Owner:
            def relay_ended(self, reason: Reason) -> None:
                ended.append(reason)

        relay = Relay(cast("Any", reactor), PipePool(0), client, upstream, Owner())
        sender, receiver = (
            (client_peer, upstream_peer) if actor == "client" else (upstream_peer, client_peer)
        )
        sender.send(b"early")
        events = {actor: IN | OUT}
        relay.start(events.get("client", OUT), events.get("upstream", OUT))
        assert receiver.recv(100) == b"early"
        relay.abort(Reason.DRAINED)
        assert ended == [Reason.DRAINED]
