"""Reloads the destinations: when they are read again, and what follows.

A file is checked every second (stat(2), which follows the symbolic links that a ConfigMap volume
swaps) and read once it has stopped changing: a half-written file must not close ports. A file that
is missing for a moment is ignored. SIGHUP reads at once.

Rejected destinations change nothing. If the text is wrong, it is not tried again until it changes.
If the pod is at fault, for example because another process has the port for a second, the same text
is tried again with backoff.

inotify is left out: it does not see a swap behind a link without watches on every directory of the
path, and a kubelet takes a minute to update a volume in any case.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from egress_proxy.errors import EgressProxyError, PlatformError, Problem
from egress_proxy.events import ConfigRejected, ConfigReloaded, DaemonDefect, Observer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from egress_proxy.config.destinations import Destination
    from egress_proxy.config.files import Version

POLL_S = 1.0
# The pause before destinations that the pod can't serve are tried again; doubled each time.
RETRY_FIRST_S = 1.0
RETRY_LAST_S = 30.0


@dataclass(frozen=True, slots=True)
class Difference:
    """What a reload has to do; `removed` are ports."""

    added: tuple[Destination, ...]
    changed: tuple[Destination, ...]
    removed: tuple[int, ...]
    unchanged: int


def compare(before: Mapping[int, Destination], after: Iterable[Destination]) -> Difference:
    """The difference by port; a destination that moved to another line is the same."""
    added, changed, unchanged = [], [], 0
    left = dict(before)
    for destination in after:
        old = left.pop(destination.port, None)
        if old is None:
            added.append(destination)
        elif (old.host, old.remote_port) != (destination.host, destination.remote_port):
            changed.append(destination)
        else:
            unchanged += 1
    return Difference(tuple(added), tuple(changed), tuple(left), unchanged)


class Watched(Protocol):
    """A file that may be replaced; `first` is the version from before it was read."""

    @property
    def first(self) -> Version: ...

    async def version(self) -> Version:
        """The version now. Raises `OSError` when the file system does not answer."""


class Reload:
    """Reads with `read` and applies with `apply`; `file` is watched, if there is one."""

    def __init__(
        self,
        read: Callable[[], Awaitable[Sequence[Destination]]],
        apply: Callable[[Sequence[Destination]], Awaitable[ConfigReloaded]],
        observer: Observer,
        file: Watched | None,
        *,
        poll_s: float = POLL_S,
    ) -> None:
        self._read = read
        self._apply = apply
        self._observer = observer
        self._file = file
        self._poll_s = poll_s
        self._requested = asyncio.Event()
        # Before the file is read for the first time: a change meanwhile is not missed.
        self._in_force = file.first if file else None
        # Set while a reload that was rejected by the pod is to be tried again.
        self._retry_at: float | None = None
        self._retry_s = RETRY_FIRST_S
        self._rejected: tuple[str, ...] = ()

    def request(self) -> None:
        """Read again, changed or not; what is requested twice within `poll_s` is done once."""
        self._requested.set()

    async def run(self) -> None:
        """Reload whenever there is reason to; until cancelled."""
        loop = asyncio.get_running_loop()
        seen = self._in_force
        while True:
            requested = await self._wait()
            now = await self._look(seen)
            settled, seen = now == seen, now
            retry = self._retry_at is not None and loop.time() >= self._retry_at
            if requested or retry or (settled and now != self._in_force):
                self._in_force = now
                await self._reload()
                if requested:
                    # Many signals cause one more reload, not one each.
                    await asyncio.sleep(self._poll_s)

    async def _look(self, seen: Version) -> Version:
        """The file's version; while the file system does not answer, the one that was `seen`."""
        if self._file is None:
            return None
        try:
            return await self._file.version()
        except OSError:
            return seen

    async def _wait(self) -> bool:
        """Wait until the next check is due; returns whether a reload was requested."""
        timeout_s = self._poll_s if self._file or self._retry_at is not None else None
        try:
            async with asyncio.timeout(timeout_s):
                await self._requested.wait()
        except TimeoutError:
            return False
        self._requested.clear()
        return True

    async def _reload(self) -> None:
        self._retry_at = None
        try:
            event = await self._apply(await self._read())
        except PlatformError as error:
            self._retry_at = asyncio.get_running_loop().time() + self._retry_s
            self._retry_s = min(2 * self._retry_s, RETRY_LAST_S)
            self._reject(error, again=True)
        except EgressProxyError as error:
            self._reject(error)
        except Exception as error:  # noqa: BLE001 - the next reload must still happen
            self._observer.observe(DaemonDefect.of(error, "reload"))
            self._reject(EgressProxyError(Problem(reason=f"a defect: {error!r}")))
        else:
            self._retry_s, self._rejected = RETRY_FIRST_S, ()
            self._observer.observe(event)

    def _reject(self, error: EgressProxyError, *, again: bool = False) -> None:
        problems = tuple(map(str, error.problems))
        # A retry that is rejected for the same reason says nothing new.
        if not (again and problems == self._rejected):
            self._observer.observe(ConfigRejected(problems=problems))
        self._rejected = problems
