"""One direction of a relay: every octet, in order.

A `Flow` reads its source and writes its sink; what the sink does not take at once is held, and
while anything is held the flow reads nothing more, so a slow reader stalls its sender through TCP
itself. Small amounts are copied through one buffer that all flows share; a flow that fills it
moves its bulk with splice(2) through a kernel pipe.

A source has finished when recv says so, or when epoll has told of its FIN and a short read has
drained it. splice(2) is not asked: it says 0 also for octets that it can't move, such as urgent
data, which is relayed in place with the rest (RFC 6093 section 6).
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

# Splices that move less than this are dearer than copies; the flow goes back to copying.
_WORTH_SPLICING = 16 * 1024

# As an int: a flag of the enum costs more to pass.
_MORE = int(socket.MSG_MORE)

_UNUSUAL = ERROR | URGENT | PEER_FINISHED


class Pair(Protocol):
    """What a flow is one direction of: told how the direction ends.

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

        May be told more than once, by a failed send and by an event, and of a flow that has ended.
        """

    def abort(self, reason: Reason) -> None:
        """End both sides with a RST, now."""


class Flow:
    """One direction of a relay, and the watcher of its source socket.

    `count` is the number of octets that the sink's kernel has taken; `open` says whether more may
    follow, until the flow or its pair ends it; `blocked`, whether something is held that the sink
    has not taken; `source_broken`, whether the end of what can be read is a RST.
    """

    __slots__ = (
        "_bulk",
        "_held",
        "_pair",
        "_pipe",
        "_piped",
        "_readable",
        "_short_read_drains",
        "_source",
        "_source_finished",
        "blocked",
        "count",
        "open",
        "opposite",
        "reset_reason",
        "sink",
        "source_broken",
    )

    opposite: Flow

    def __init__(
        self,
        pair: Pair,
        source: socket.SocketType,
        sink: socket.SocketType,
        reset_reason: Reason,
    ) -> None:
        self._pair = pair
        self._source = source
        self.sink = sink
        self.reset_reason = reset_reason
        self.count = 0
        self.open = True
        self._readable = False
        self._source_finished = False
        self.source_broken = False
        # epoll(7): a read that returns less than asked has drained a stream socket, but for the
        # stop that recv makes at urgent data.
        self._short_read_drains = True
        self._bulk = False
        self.blocked = False
        # What the sink has not taken yet: octets in user space, or in a pipe; never both.
        self._held: memoryview | None = None
        self._pipe: Pipe | None = None
        self._piped = 0

    def ready(self, events: int) -> None:
        """The source has changed: it may be readable, writable, finished or broken."""
        if events & _UNUSUAL:
            if events & ERROR:
                self.source_broke()
                return
            if events & PEER_FINISHED:
                self._source_finished = True
            if events & URGENT:
                self._short_read_drains = self._bulk = False
        if events & OUT and self.opposite.blocked:
            self.opposite.resume()
        if events & IN:
            self._readable = True
        if self._readable and self.open and not self.blocked:
            self.move()

    def fail(self) -> None:
        # What raised may have been the end itself: whoever was told of it.
        if hasattr(self, "_pair"):
            self._pair.abort(Reason.ERROR)

    def source_broke(self) -> None:
        """Nothing can reach the source any more; what it sent before may still be unread.

        An event tells of it, or a send of the opposite flow, whose sink it is.
        """
        self.opposite.stop()
        self._pair.cause = self._pair.cause or self.reset_reason
        self.source_broken = True
        # Read on until recv itself says that there is no more.
        self._short_read_drains = False
        self._readable = True
        if not self.open:
            self._pair.broken(self)
        elif not self.blocked:
            self.move()

    def resume(self) -> None:
        """Go on: the sink takes octets again."""
        if self._deliver_held() and self._readable and self.open:
            self.move()

    def stop(self) -> None:
        """Move nothing more, and give up what is held."""
        self.open = False
        self.blocked = False
        self._held = None
        if self._pipe is not None:
            self._pair.pipes.give_back(self._pipe, empty=False)
            self._pipe = None
            self._piped = 0

    def end(self) -> None:
        """Stop, and break the circle of references, so that no garbage collector has to."""
        if self.blocked:
            self.stop()
        self.open = False
        del self.opposite, self._pair

    def move(self) -> None:  # noqa: C901, PLR0912 - the hot path: a call more costs 2 %
        """Move what the source has; of more than a buffer or a pipe, the rest in the next turn.

        Nothing is held, and the flow is open.
        """
        pair = self._pair
        if self._bulk:
            pipe = pair.pipes.take()
            if pipe is not None:
                if self._splice(pipe):
                    pair.reactor.again(self)
                return
        try:
            count = self._source.recv_into(_BUFFER)
        except BlockingIOError:
            self._readable = False
            return
        except OSError:
            pair.broken(self)
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
            self.opposite.source_broke()
            return
        self.count += taken
        pair.touched = pair.reactor.now
        if taken < count:
            # A copy: the shared buffer is another flow's next.
            self._held = memoryview(bytes(_BUFFER[taken:count]))
            self.blocked = True
        elif not drained:
            pair.reactor.again(self)
        elif last:
            pair.finished(self)

    def _end_reached(self) -> None:
        # The error of a broken socket is told once, perhaps to a send; recv then says 0.
        if self.source_broken:
            self._pair.broken(self)
        else:
            self._pair.finished(self)

    def _deliver_held(self) -> bool:
        """Whether nothing is held any more."""
        held = self._held
        if held is None:
            return self._pipe is None or self._empty_pipe(self._pipe)
        try:
            taken = self.sink.send(held)
        except BlockingIOError:
            return False
        except OSError:
            self.opposite.source_broke()
            return False
        self.count += taken
        self._pair.touched = self._pair.reactor.now
        self.blocked = taken < len(held)
        self._held = held[taken:] if self.blocked else None
        return not self.blocked

    def _splice(self, pipe: Pipe) -> bool:
        """Move one pipe's worth; whether to go on."""
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
            # The kernel tells of it once: recv would say that this is the end.
            self.source_broken = True
            self._short_read_drains = False
            count = 0
        self._bulk = not self._readable or count >= _WORTH_SPLICING
        self._piped = count
        self.blocked = True
        return self._empty_pipe(pipe) and self._readable

    def _empty_pipe(self, pipe: Pipe) -> bool:
        """Splice what is in `pipe` to the sink; whether that was all."""
        while self._piped:
            try:
                taken = os.splice(
                    pipe.read_fd, self.sink.fileno(), self._piped, flags=os.SPLICE_F_NONBLOCK
                )
            except BlockingIOError:
                return False
            except OSError:
                self.opposite.source_broke()
                return False
            self._piped -= taken
            self.count += taken
            self._pair.touched = self._pair.reactor.now
        self._pair.pipes.give_back(pipe, empty=True)
        self._pipe = None
        self.blocked = False
        return True
