"""One end of a connection that acts at random, and the model of what TCP promises for it.

What one end reads is a piece of what the other has sent, from its start; and all of it, if the
stream ends with a FIN.
"""

from __future__ import annotations

import random
import socket

from tests.support.peers import reset

# The octet at position n of a stream is _NOISE[n % len(_NOISE)], so that a lost or doubled one
# shows. Its length is no multiple of any that a buffer has.
_NOISE = random.Random(0).randbytes((1 << 20) + 7)  # noqa: S311 - test data
_NOISE_TWICE = memoryview(_NOISE * 2)


class End:
    """Does what can be done without waiting; `sock` becomes non-blocking.

    `ending` is how the stream ended that it reads: "finished" with a FIN, "reset" by the other end,
    "own" after a reset of its own, and "" before any of them.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self.sent = 0
        self.received = bytearray()
        self.finished = False
        self.ending = ""

    def act(self, action: str, size: int = 0) -> None:
        """Take one of the actions write, read, finish and reset, if it is still possible."""
        if self.ending == "own":
            return
        try:
            getattr(self, f"_{action}")(size)
        except BlockingIOError:
            pass
        except OSError:
            self.ending = "reset"

    def read_on(self) -> bool:
        """Read; whether the end of the stream has come."""
        self.act("read", 1 << 20)
        return bool(self.ending)

    def _write(self, size: int) -> None:
        if not self.finished:
            start = self.sent % len(_NOISE)
            self.sent += self._sock.send(_NOISE_TWICE[start : start + size])

    def _read(self, size: int) -> None:
        if not self.ending:
            octets = self._sock.recv(size)
            self.received += octets
            self.ending = "" if octets else "finished"

    def _finish(self, _size: int) -> None:
        if not self.finished:
            self._sock.shutdown(socket.SHUT_WR)
            self.finished = True

    def _reset(self, _size: int) -> None:
        self.ending = "own"
        reset(self._sock)


def check(sender: End, reader: End) -> None:
    """What `reader` has read is what TCP promises of what `sender` has sent."""
    count = len(reader.received)
    assert count <= sender.sent
    assert reader.received == (_NOISE * (count // len(_NOISE) + 1))[:count]
    if reader.ending == "finished":
        assert sender.finished
        assert count == sender.sent
