"""Kernel pipes, the buffers of splice(2), kept for reuse.

A pipe is worth its two descriptors only while a direction moves bulk, so there are few of them
and a direction that gets none copies instead. Unprivileged users get small pipes once all of
their pipes together pass ``fs.pipe-user-pages-soft`` (pipe(7)); in a cluster every pod with the
same UID shares that limit, so the size is read back rather than assumed.
"""

from __future__ import annotations

import fcntl
import os

# 64 pipes of 256 KiB are the default fs.pipe-user-pages-soft of 16384 pages, exactly.
PIPES = 64
_SIZE = 256 * 1024


class Pipe:
    """One pipe: `read_fd`, `write_fd`, and its `size` in octets."""

    __slots__ = ("read_fd", "size", "write_fd")

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self.size = fcntl.fcntl(self.write_fd, fcntl.F_SETPIPE_SZ, _SIZE)
        except OSError:
            self.size = fcntl.fcntl(self.write_fd, fcntl.F_GETPIPE_SZ)

    def close(self) -> None:
        os.close(self.read_fd)
        os.close(self.write_fd)


class PipePool:
    """At most `limit` pipes, made when they are first needed."""

    def __init__(self, limit: int = PIPES) -> None:
        self._limit = limit
        self._made = 0
        self._idle: list[Pipe] = []

    def take(self) -> Pipe | None:
        """An empty pipe, or None when none is available."""
        if self._idle:
            return self._idle.pop()
        if self._made == self._limit:
            return None
        try:
            pipe = Pipe()
        except OSError:
            return None
        self._made += 1
        return pipe

    def give_back(self, pipe: Pipe, *, empty: bool) -> None:
        """Return `pipe` to the pool; a pipe that still holds octets is closed, never reused."""
        if empty:
            self._idle.append(pipe)
        else:
            pipe.close()
            self._made -= 1

    def close(self) -> None:
        for pipe in self._idle:
            pipe.close()
        self._made -= len(self._idle)
        self._idle.clear()
