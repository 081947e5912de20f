"""Non-blocking standard output: a bounded buffer and a writer thread.

A container's log is a pipe, and a write blocks while it is full: in the event loop that would stop
every connection. Therefore a thread writes. The event loop only puts lines into a bounded buffer;
lines that do not fit are dropped and counted, and a notice says how many as soon as it can be
written.

A non-blocking descriptor would need no thread, but that flag belongs to the open file, which other
processes or a terminal may share, and another user may not open the file again.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# About 3000 records of connections; used only while the reader is too slow.
_BUFFER_SIZE = 1 << 20
# The most that is written at once: the usual capacity of a pipe.
_BATCH_SIZE = 1 << 16
# How long the end of the process waits for the reader.
_FLUSH_S = 1.0


class LogWriter:
    """Writes lines to descriptor `fd`; `dropped` counts those that could not be written.

    `format_drop_notice` makes the line that says how many lines were dropped.
    """

    def __init__(
        self, fd: int, format_drop_notice: Callable[[int], str], *, capacity: int = _BUFFER_SIZE
    ) -> None:
        self.dropped = 0
        self._fd = fd
        self._format_drop_notice = format_drop_notice
        self._capacity = capacity
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._unreported = 0
        self._full = False
        self._broken = False
        self._closing = False
        self._news = threading.Condition()
        # A daemon: one that is stuck in a write must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, text: str) -> int:
        """Accept `text`, one whole line: it is written in its turn, or dropped."""
        line = text.encode(errors="backslashreplace")
        with self._news:
            # After an overflow, accept lines again only below half the capacity (hysteresis): few
            # long gaps instead of many short ones.
            limit = self._capacity // 2 if self._full else self._capacity
            self._full = self._size + len(line) > limit
            if self._full:
                self.dropped += 1
                self._unreported += 1
            else:
                if self._unreported:
                    self._put(self._report())
                self._put(line)
            # Also after a drop: a line longer than the buffer is dropped while nothing is written.
            self._news.notify()
        return len(text)

    def _put(self, line: bytes) -> None:
        self._lines.append(line)
        self._size += len(line)

    def _report(self) -> bytes:
        dropped, self._unreported = self._unreported, 0
        return self._format_drop_notice(dropped).encode(errors="backslashreplace")

    def flush(self) -> None:
        """Do nothing: the thread writes as soon as it can."""

    def close(self) -> None:
        """Write what is left, unless the reader takes too long."""
        with self._news:
            self._closing = True
            self._news.notify()
        self._thread.join(_FLUSH_S)

    def _run(self) -> None:
        # The rest of a line whose beginning was written.
        begun = b""
        while batch := self._next_batch():
            data = begun + batch
            written = self._write(data)
            # The reader is gone, or its disk is full: the next line shows whether it still is.
            self._broken = written < len(data)
            begun, dropped = after_write(data, written, len(begun))
            with self._news:
                self.dropped += dropped
                self._unreported += dropped

    def _next_batch(self) -> bytes:
        """Wait for lines and take some; empty at the end."""
        with self._news:
            while not (self._lines or self._closing):
                if self._unreported and not self._broken:
                    return self._report()
                self._news.wait()
            batch = []
            taken = 0
            while self._lines and taken < _BATCH_SIZE:
                batch.append(self._lines.popleft())
                taken += len(batch[-1])
            self._size -= taken
            return b"".join(batch)

    def _write(self, data: bytes) -> int:
        """Write `data`; returns how much of it was written before an error."""
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._fd, left) :]
            except BlockingIOError:
                # Another process has made the open file non-blocking.
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll()
            except OSError:
                break
        return len(data) - len(left)


def after_write(data: bytes, written: int, begun: int = 0) -> tuple[bytes, int]:
    """What a write of `data`, lines, leaves if only `written` bytes of it could be written.

    The first `begun` bytes are the rest of a line that an earlier write began. Returns the rest of
    the line that is begun now, which is written first next time so that no half line stays in the
    log, and the number of lines that are lost.
    """
    is_begun = written < begun or (written > 0 and data[written - 1 : written] != b"\n")
    rest = data[written : data.index(b"\n", written) + 1] if is_begun else b""
    return rest, data.count(b"\n", written + len(rest))
