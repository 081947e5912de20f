"""One direction of a relay: every octet, in order.

A `Flow` reads its source and writes its sink. What the sink does not take at once is buffered, and
while anything is buffered the flow reads nothing more: TCP's own flow control then stalls the
sender. Small amounts are copied through one buffer that all flows share; a flow that fills it
moves its bulk with splice(2) through a kernel pipe.

A source has finished when recv(2) returns 0, or when epoll has reported its FIN and a short read
has drained it. A 0 from splice(2) is no end: it also returns 0 for octets that it can't move, such
as urgent data, which is relayed in place with the rest (RFC 6093 section 6).
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Protocol

from egress_proxy.events import Reason
from egress_proxy.relay.reactor import ERROR, IN, OUT, PEER_FINISHED, URGENT

if TYPE_CHECKING:
    from egress_proxy.relay.pipes import Pipe, PipePool
    from egress_proxy.relay.reactor import Reactor

# A read that fills the shared buffer is bulk. 64 KiB is also what a default pipe holds.
_READ = 64 * 1024
_BUFFER = memoryview(bytearray(_READ))

# Splices that move less than this cost more than copies; the flow goes back to copying.
_WORTH_SPLICING = 16 * 1024

# As an int: a flag of the enum costs more to pass.
_MORE = int(socket.MSG_MORE)

_UNUSUAL = ERROR | URGENT | PEER_FINISHED


class FlowOwner(Protocol):
    """Owns both directions of a relay; a flow reports to it how its direction ends.

    `touched` is the reactor's time at which an octet or a FIN moved last; `cause` says which side
    broke first, if one did.
    """

    reactor: Reactor
    pipes: PipePool
    touched: float
    cause: Reason | None

    def finished(self, flow: Flow) -> None:
        """`flow` has read its source's FIN and delivered everything before it."""

    def broken(self, flow: Flow) -> None:
        """`flow`'s source is broken, and what it sent is on its way: let a RST follow.

        May be called more than once (by a failed send and by an epoll event), also after the flow
        has ended.
        """

    def abort(self, reason: Reason) -> None:
        """End both sides with a RST, now."""


class Flow:
    """One direction of a relay, and the watcher of its source socket.

    `count` is the number of octets that the sink's kernel has taken. `open`: more may follow.
    `write_blocked`: something is buffered that the sink has not taken. `source_broken`: what can
    still be read ends with a RST.
    """

    __slots__ = (
        "_buffered",
        "_bulk",
        "_in_pipe",
        "_owner",
        "_pipe",
        "_readable",
        "_short_read_drains",
        "_source",
        "_source_finished",
        "count",
        "open",
        "opposite",
        "reset_reason",
        "sink",
        "source_broken",
        "write_blocked",
    )

    opposite: Flow

    def __init__(
        self,
        owner: FlowOwner,
        source: socket.SocketType,
        sink: socket.SocketType,
        reset_reason: Reason,
    ) -> None:
        self._owner = owner
        self._source = source
        self.sink = sink
        self.reset_reason = reset_reason
        self.count = 0
        self.open = True
        self._readable = False
        self._source_finished = False
        self.source_broken = False
        # epoll(7): a read that returns less than asked has drained a stream socket, except that
        # recv also stops at urgent data.
        self._short_read_drains = True
        self._bulk = False
        self.write_blocked = False
        # What the sink has not taken yet: octets in user space, or in a pipe; never both.
        self._buffered: memoryview | None = None
        self._pipe: Pipe | None = None
        self._in_pipe = 0

    def ready(self, events: int) -> None:
        """The source has changed: it may be readable, writable, finished or broken."""
        if events & _UNUSUAL:
            if events & ERROR:
                self.on_source_error()
                return
            if events & PEER_FINISHED:
                self._source_finished = True
            if events & URGENT:
                self._short_read_drains = self._bulk = False
        if events & OUT and self.opposite.write_blocked:
            self.opposite.resume()
        if events & IN:
            self._readable = True
        if self._readable and self.open and not self.write_blocked:
            self.move()

    def fail(self) -> None:
        # The exception may come from the owner's end-of-relay callback; then `_owner` is gone.
        if hasattr(self, "_owner"):
            self._owner.abort(Reason.ERROR)

    def on_source_error(self) -> None:
        """Nothing can reach the source any more; what it sent before may still be unread.

        An event reports it, or a failed send of the opposite flow, which sends to this source.
        """
        self.opposite.discard()
        self._owner.cause = self._owner.cause or self.reset_reason
        self.source_broken = True
        # Read until recv itself reports the end.
        self._short_read_drains = False
        self._readable = True
        if not self.open:
            self._owner.broken(self)
        elif not self.write_blocked:
            self.move()

    def resume(self) -> None:
        """Go on: the sink takes octets again."""
        if self._deliver_buffered() and self._readable and self.open:
            self.move()

    def discard(self) -> None:
        """Stop moving octets, and drop those that are buffered."""
        self.open = False
        self.write_blocked = False
        self._buffered = None
        if self._pipe is not None:
            self._owner.pipes.give_back(self._pipe, empty=False)
            self._pipe = None
            self._in_pipe = 0

    def detach(self) -> None:
        """Stop, and break the circle of references, so that no garbage collector has to."""
        if self.write_blocked:
            self.discard()
        self.open = False
        del self.opposite, self._owner

    def move(self) -> None:  # noqa: C901, PLR0912 - the hot path: one more call costs 2 %
        """Move at most one buffer or pipe of what the source has; the rest in the next turn.

        Nothing is buffered, and the flow is open.
        """
        owner = self._owner
        if self._bulk:
            pipe = owner.pipes.take()
            if pipe is not None:
                if self._splice(pipe):
                    owner.reactor.again(self)
                return
        try:
            count = self._source.recv_into(_BUFFER)
        except BlockingIOError:
            self._readable = False
            return
        except OSError:
            owner.broken(self)
            return
        if not count:
            self._end_reached()
            return
        if count < _READ and self._short_read_drains:
            drained = True
            last = self._readable = self._source_finished
        else:
            drained = last = False
            self._bulk = count == _READ and self._short_read_drains
        try:
            # The last octets wait for the FIN that follows at once: one segment for both.
            taken = self.sink.send(_BUFFER[:count], _MORE if last else 0)
        except BlockingIOError:
            taken = 0
        except OSError:
            self.opposite.on_source_error()
            return
        self.count += taken
        owner.touched = owner.reactor.now
        if taken < count:
            # A copy: the next flow overwrites the shared buffer.
            self._buffered = memoryview(bytes(_BUFFER[taken:count]))
            self.write_blocked = True
        elif not drained:
            owner.reactor.again(self)
        elif last:
            owner.finished(self)

    def _end_reached(self) -> None:
        # The kernel reports the error of a broken socket once, perhaps to a send; recv then
        # returns 0.
        if self.source_broken:
            self._owner.broken(self)
        else:
            self._owner.finished(self)

    def _deliver_buffered(self) -> bool:
        """Whether nothing is buffered any more."""
        buffered = self._buffered
        if buffered is None:
            return self._pipe is None or self._empty_pipe(self._pipe)
        try:
            taken = self.sink.send(buffered)
        except BlockingIOError:
            return False
        except OSError:
            self.opposite.on_source_error()
            return False
        self.count += taken
        self._owner.touched = self._owner.reactor.now
        self.write_blocked = taken < len(buffered)
        self._buffered = buffered[taken:] if self.write_blocked else None
        return not self.write_blocked

    def _splice(self, pipe: Pipe) -> bool:
        """Move at most one pipe of octets; returns whether to continue."""
        self._pipe = pipe
        try:
            count = os.splice(
                self._source.fileno(), pipe.write_fd, pipe.size, flags=os.SPLICE_F_NONBLOCK
            )
        except BlockingIOError:
            # The pipe is empty, so it is the source that has nothing.
            self._readable = False
            count = 0
        except OSError:
            # The kernel reports it once; recv would then return 0, as for a FIN.
            self.source_broken = True
            self._short_read_drains = False
            count = 0
        self._bulk = not self._readable or count >= _WORTH_SPLICING
        self._in_pipe = count
        self.write_blocked = True
        return self._empty_pipe(pipe) and self._readable

    def _empty_pipe(self, pipe: Pipe) -> bool:
        """Splice what is in `pipe` to the sink; whether that was all."""
        while self._in_pipe:
            try:
                taken = os.splice(
                    pipe.read_fd, self.sink.fileno(), self._in_pipe, flags=os.SPLICE_F_NONBLOCK
                )
            except BlockingIOError:
                return False
            except OSError:
                self.opposite.on_source_error()
                return False
            self._in_pipe -= taken
            self.count += taken
            self._owner.touched = self._owner.reactor.now
        self._owner.pipes.give_back(pipe, empty=True)
        self._pipe = None
        self.write_blocked = False
        return True
