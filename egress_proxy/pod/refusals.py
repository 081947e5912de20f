"""What the kernel refuses while a daemon starts: one problem in one line, never a traceback."""

from __future__ import annotations

import errno
import os
import select
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

from egress_proxy.errors import PlatformError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

_CURES = {
    errno.EAGAIN: "raise the container's limit of processes (pids)",
    errno.EMFILE: "raise the container's nofile limit (RLIMIT_NOFILE)",
    errno.ENFILE: "raise the node's sysctl fs.file-max",
    errno.ENOSPC: "raise the node's sysctl fs.epoll.max_user_watches",
}


@contextmanager
def refusals_are_problems() -> Iterator[None]:
    """Raise `PlatformError` where the body raises `OSError`, or can't start a thread."""
    try:
        yield
    except RuntimeError as error:
        # clone3(2): EAGAIN. threading has no type of its own for it.
        if str(error) != "can't start new thread":
            raise
        raise PlatformError(
            Problem(reason=f"can't start: {error}", cure=_CURES[errno.EAGAIN])
        ) from None
    except OSError as error:
        raise PlatformError(
            Problem(
                reason=f"can't start: {error.strerror or error}",
                cure=_CURES.get(error.errno or 0, ""),
            )
        ) from None


def check_resources() -> None:
    """Take what the event loop starts with, and release it. Raises `PlatformError`.

    Without it the event loop would end in a traceback, or abort the process.
    """
    with refusals_are_problems():
        one, other = socket.socketpair()
        with one, other, select.epoll() as epoll:
            epoll.register(one)
        for descriptor in (os.eventfd(0), *os.pipe()):
            os.close(descriptor)
