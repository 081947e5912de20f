"""Files that may be anything: read off the event loop, within a time limit.

A mounted file may be a FIFO or a device, and its mount may hang for ever. Only regular files are
read; every call happens in a daemon thread, so that neither the event loop nor the exit of the
process waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

# A disk answers within milliseconds, and a network file system that lost its server never.
TIMEOUT_S = 5.0
THREAD_NAME = "file"

# From stat(2) of the file; None while it does not exist.
Version = tuple[int, int, int, int] | None


def file_version(path: str) -> Version:
    """Changes whenever the file behind `path` is rewritten or replaced; None without a file.

    Blocks as long as the file system does.
    """
    try:
        found = os.stat(path)  # noqa: PTH116 - called every second, without a Path each time
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def read_file(path: str, limit: int) -> bytes:
    """The file's first `limit` octets. Raises `OSError`, also when it is not a regular file.

    Blocks as long as the file system does, but never on a FIFO.
    """
    # O_NOCTTY: a terminal that is opened must not become this process's own.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return file.read(limit)


def in_time(work: Callable[[], T], timeout_s: float = TIMEOUT_S) -> T:
    """What `work` returns. Raises its exception, and `OSError` when it takes too long."""
    future = _start(work)
    try:
        return future.result(timeout_s)
    except TimeoutError:
        raise _too_slow() from None


class OffLoop:
    """Calls that may hang, for the event loop: one at a time.

    A call that hangs keeps its thread. Until it returns, further calls fail at once.
    """

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._running: Future[object] | None = None

    async def call(self, work: Callable[[], T]) -> T:
        """What `work` returns. Raises its exception, and `OSError` when it takes too long."""
        if self._running is not None and not self._running.done():
            raise _too_slow()
        future = _start(work)
        self._running = future  # type: ignore[assignment] # only asked whether it is done
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise _too_slow() from None


class VersionedFile:
    """A file that may be replaced at any time; `first` is its version at the start."""

    def __init__(self, path: str, off_loop: OffLoop) -> None:
        self._path = path
        self._off_loop = off_loop
        self.first: Version = None
        with contextlib.suppress(OSError):
            self.first = in_time(lambda: file_version(path))

    async def version(self) -> Version:
        """The version now. Raises `OSError` when the file system does not answer."""
        return await self._off_loop.call(lambda: file_version(self._path))


def _too_slow() -> OSError:
    return OSError(errno.ETIMEDOUT, "the file system does not answer")


def _start(work: Callable[[], T]) -> Future[T]:
    """Run `work` in a thread of its own. Raises `OSError` when there can't be another thread."""
    future: Future[T] = Future()
    # From now on it can't be cancelled, so that setting its result never fails.
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - passed to the caller
            future.set_exception(error)
        else:
            future.set_result(result)

    try:
        threading.Thread(target=run, name=THREAD_NAME, daemon=True).start()
    except RuntimeError:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None
    return future
