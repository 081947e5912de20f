"""The relay of one pair of sockets: both directions, and every way in which it can end.

Each direction is a `Flow`. What a flow reports, and what the relay does about it:

================== ======================= ============================== =================
the relay is       `finished`: the         `broken`: the source's RST     `abort(reason)`
                   source's FIN, delivered has been read
================== ======================= ============================== =================
open               send a FIN to the sink; discard the opposite flow;     RST to both, end
                   half-closed             wait for the sink's ACKs
half-closed        close both, end as      the same                       RST to both, end
                   `finished`
waiting for ACKs   cannot be: the opposite by the same flow: ignored; by  RST to both, end
                   flow is discarded       the other: RST to both, end    with the first
                                           with the first cause           cause
ended              cannot be               cannot be                      ignored
================== ======================= ============================== =================

A FIN ends its own direction only; the other one stays open (RFC 9293 section 3.6). A RST is passed
on after everything that was sent before it, and only once the sink has acknowledged that: a RST
makes both kernels drop what is still in flight. When the sink is broken too, no ACK will come.
"""

from __future__ import annotations

import fcntl
import socket
import sys
import termios
from typing import TYPE_CHECKING, Protocol

from egress_proxy.events import Reason
from egress_proxy.relay.flow import Flow
from egress_proxy.relay.reactor import OUT, reset_on_close

if TYPE_CHECKING:
    import asyncio

    from egress_proxy.relay.pipes import PipePool
    from egress_proxy.relay.reactor import Reactor

# How long to wait before asking again whether the peer has acknowledged everything.
_FLUSH_POLL_S = 0.005
_FLUSH_POLL_MAX_S = 0.25


class RelayOwner(Protocol):
    """Owns a relay; called exactly once, when the relay has ended."""

    def relay_ended(self, reason: Reason) -> None: ...


class Relay:
    """Both directions between `client` and `upstream`, two connected non-blocking sockets.

    Both must have SO_OOBINLINE set and be watched already.
    """

    __slots__ = (
        "_client",
        "_flush_timer",
        "_owner",
        "_resetting",
        "_upstream",
        "cause",
        "down",
        "ended",
        "pipes",
        "reactor",
        "touched",
        "up",
    )

    def __init__(
        self,
        reactor: Reactor,
        pipes: PipePool,
        client: socket.SocketType,
        upstream: socket.SocketType,
        owner: RelayOwner,
    ) -> None:
        self.reactor = reactor
        self.pipes = pipes
        self._client = client
        self._upstream = upstream
        self._owner = owner
        # The broken flow whose RST is due once the other side has acknowledged everything.
        self._resetting: Flow | None = None
        self._flush_timer: asyncio.TimerHandle | None = None
        self.cause: Reason | None = None
        self.ended = False
        self.touched = reactor.now
        self.up = Flow(self, client, upstream, Reason.CLIENT_RESET)
        self.down = Flow(self, upstream, client, Reason.UPSTREAM_RESET)
        self.up.opposite = self.down
        self.down.opposite = self.up

    def start(self, client_events: int, upstream_events: int) -> None:
        """Watch both sockets, beginning with the events that they have had so far."""
        self.reactor.pass_on(self._client, self.up)
        self.reactor.pass_on(self._upstream, self.down)
        self.up.ready(client_events)
        # Every connected upstream is writable.
        if upstream_events != OUT and not self.ended:
            self.down.ready(upstream_events)

    @property
    def half_closed(self) -> bool:
        """Whether a direction has ended."""
        return not (self.up.open and self.down.open)

    def abort(self, reason: Reason) -> None:
        """Reset both sides now. When a side has broken before, that is the recorded reason."""
        if not self.ended:
            reset_on_close(self._client)
            reset_on_close(self._upstream)
            self._end(self.cause or reason)

    def finished(self, flow: Flow) -> None:
        flow.open = False
        if not flow.opposite.open:
            # Closing sends the FIN that is still due.
            self._end(Reason.FINISHED)
            return
        self.touched = self.reactor.now
        try:
            flow.sink.shutdown(socket.SHUT_WR)
        except OSError:
            flow.opposite.on_source_error()

    def broken(self, flow: Flow) -> None:
        if self._resetting is flow:
            # The same RST, reported by a send and by an event.
            return
        flow.open = False
        self.cause = self.cause or flow.reset_reason
        # Nothing can reach the source any more, so the sink's FIN no longer matters.
        flow.opposite.discard()
        if self._resetting is not None or flow.opposite.source_broken:
            # The other side has broken too: there is no ACK to wait for.
            self.abort(self.cause)
        else:
            self._resetting = flow
            self._reset_once_acknowledged(flow.sink, _FLUSH_POLL_S)

    def _reset_once_acknowledged(self, sink: socket.SocketType, delay_s: float) -> None:
        # No event reports ACKs, so this polls; the idle timeout bounds the wait.
        if unacknowledged(sink):
            self._flush_timer = self.reactor.loop.call_later(
                delay_s, self._reset_once_acknowledged, sink, min(2 * delay_s, _FLUSH_POLL_MAX_S)
            )
        else:
            self.abort(Reason.ERROR)

    def _end(self, reason: Reason) -> None:
        self.ended = True
        if self._flush_timer is not None:
            self._flush_timer.cancel()
        self.up.detach()
        self.down.detach()
        self.reactor.close(self._client)
        self.reactor.close(self._upstream)
        self._owner.relay_ended(reason)


def unacknowledged(sock: socket.SocketType) -> int:
    """Octets sent that the peer's kernel has not acknowledged (SIOCOUTQ, tcp(7))."""
    return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
