"""Standard output that never makes anybody wait.

A container's log is a pipe, and when nobody reads it a write blocks: in the event loop that would
stop every connection. So a thread of its own writes; whoever logs only puts a line into a bounded
buffer, and what does not fit is dropped, counted, and told of once the reader is back. (A
non-blocking descriptor would do without the thread, but the flag belongs to the open file, which
the pod's other processes or a terminal may share, and opening it anew is not allowed to another
user.)
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# About 3000 records of connections; taken only while the reader is too slow.
_BUFFER_OCTETS = 1 << 20
# One write, so that a reader that comes back finds whole batches; a pipe's usual size.
_BATCH_OCTETS = 1 << 16
# At the end the reader has so long for what is left.
_FLUSH_S = 1.0


class LogWriter:
    """Writes lines to descriptor `fd`.

    `format_drop_notice` makes the line that says how many lines were dropped.
    """

    def __init__(
        self, fd: int, format_drop_notice: Callable[[int], str], *, capacity: int = _BUFFER_OCTETS
    ) -> None:
        self.dropped = 0
        self._fd = fd
        self._format_drop_notice = format_drop_notice
        self._capacity = capacity
        self._lines: deque[bytes] = deque()
        self._octets = 0
        self._unreported = 0
        self._full = False
        self._broken = False
        self._closing = False
        self._news = threading.Condition()
        # A daemon: one that is stuck in a write must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, text: str) -> int:
        """Take `text`, whole lines; it is written in its turn, or dropped."""
        octets = text.encode(errors="backslashreplace")
        with self._news:
            # Once full it fills up again only from the half on: gaps are few, and long.
            limit = self._capacity // 2 if self._full else self._capacity
            self._full = self._octets + len(octets) > limit
            if self._full:
                self.dropped += 1
                self._unreported += 1
            else:
                if self._unreported:
                    self._put(self._report())
                self._put(octets)
                self._news.notify()
        return len(text)

    def _put(self, octets: bytes) -> None:
        self._lines.append(octets)
        self._octets += len(octets)

    def _report(self) -> bytes:
        dropped, self._unreported = self._unreported, 0
        return self._format_drop_notice(dropped).encode(errors="backslashreplace")

    def flush(self) -> None:
        """Nothing: the thread writes as soon as the reader lets it."""

    def close(self) -> None:
        """Write what is left, if the reader takes it in time."""
        with self._news:
            self._closing = True
            self._news.notify()
        self._thread.join(_FLUSH_S)

    def _run(self) -> None:
        while batch := self._next_batch():
            try:
                self._write(batch)
                self._broken = False
            except OSError:
                # The reader is gone, or its disk is full: the next line shows whether it still is.
                self._broken = True
                with self._news:
                    self.dropped += batch.count(b"\n")
                    self._unreported += batch.count(b"\n")

    def _next_batch(self) -> bytes:
        """Wait for lines, and take some; empty at the end."""
        with self._news:
            while not (self._lines or self._closing):
                if self._unreported and not self._broken:
                    return self._report()
                self._news.wait()
            batch = []
            taken = 0
            while self._lines and taken < _BATCH_OCTETS:
                batch.append(self._lines.popleft())
                taken += len(batch[-1])
            self._octets -= taken
            return b"".join(batch)

    def _write(self, batch: bytes) -> None:
        left = memoryview(batch)
        while left:
            try:
                left = left[os.write(self._fd, left) :]
            except BlockingIOError:
                # Somebody else has made the open file non-blocking.
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll()
