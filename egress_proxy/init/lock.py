"""One init at a time in a network namespace: two would undo what the other one did.

The lock is a listening abstract Unix socket (unix(7)): its name belongs to the network namespace,
which all containers of the pod share, and the kernel removes it when its owner ends, even if it is
killed. A process that finds the name in use connects to the socket. The owner never accepts, so the
connection ends when the owner does, and that is what the process waits for.
"""

from __future__ import annotations

import errno
import socket
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING

from egress_proxy.errors import PlatformError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAME = "\0egress-proxy init"
# Several times the duration of an init that waits for the maximum everywhere.
_TIMEOUT_S = 60.0
# More than ever wait at the same time.
_BACKLOG = 64


@contextmanager
def exclusive(name: str = _NAME, timeout_s: float = _TIMEOUT_S) -> Iterator[None]:
    """Hold the lock; wait for it up to `timeout_s`.

    Raises `PlatformError` if another process has it for longer, `OSError` if sockets fail.
    """
    deadline = monotonic() + timeout_s
    while (lock := _try_lock(name)) is None:
        if not _wait_for_release(name, deadline - monotonic()):
            raise PlatformError(
                Problem(
                    reason=f"another init has been running in this pod for {timeout_s:g} s",
                    cure="see its log; if there is none, delete the pod",
                )
            )
    with lock:
        yield


def _try_lock(name: str) -> socket.socket | None:
    """A socket that has `name`, or None if another process has it."""
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        lock.bind(name)
        lock.listen(_BACKLOG)
    except OSError as error:
        lock.close()
        if error.errno != errno.EADDRINUSE:
            raise
        return None
    return lock


def _wait_for_release(name: str, timeout_s: float) -> bool:
    """Wait until the owner of `name` ends; false if it has not within `timeout_s`."""
    if timeout_s <= 0:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as waiting:
        waiting.settimeout(timeout_s)
        try:
            waiting.connect(name)
            waiting.recv(1)
        except TimeoutError:
            return False
        except ConnectionError:
            # It has ended: before or after the connect.
            return True
    return True
