"""When the destinations' file is to be read again, and what comes of it.

A file is looked at every second (stat(2) through whatever symbolic links a ConfigMap volume swaps)
and read once it has stopped changing: an editor or a copy that is half done must not take ports
away. A file that is not there for a moment is nothing to speak of; one that stays away, or is
wrong, is rejected once, and the destinations of before stay in force. SIGHUP reads at once.

inotify is left out: it does not see a swap behind a link without watches on every directory of the
way, and a kubelet takes a minute to update a volume in any case.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from egress_proxy.errors import EgressProxyError
from egress_proxy.events import ConfigRejected, ConfigReloaded, Observer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from egress_proxy.config.destinations import Destination

POLL_S = 1.0

# What stat(2) says of a file; None while there is none.
Look = tuple[int, int, int, int] | None


def file_version(path: str) -> Look:
    """Something that is different whenever the file behind `path` is."""
    try:
        found = os.stat(path)  # noqa: PTH116 - it is about descriptors' worth of a call, not paths
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


@dataclass(frozen=True, slots=True)
class Difference:
    """What has to be done to get from some destinations to others; `removed` are ports."""

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


class Reload:
    """Reads with `read` and puts in force with `apply`; `path` is watched, if there is one."""

    def __init__(
        self,
        read: Callable[[], Sequence[Destination]],
        apply: Callable[[Sequence[Destination]], Awaitable[ConfigReloaded]],
        observer: Observer,
        path: str,
        *,
        poll_s: float = POLL_S,
        look: Callable[[str], Look] = file_version,
    ) -> None:
        self._read = read
        self._apply = apply
        self._observer = observer
        self._path = path
        self._poll_s = poll_s
        self._look = look
        self._asked = asyncio.Event()
        # Before the file is read for the first time: what changes meanwhile is not missed.
        self._in_force = look(path) if path else None

    def ask(self) -> None:
        """Read again now, changed or not."""
        self._asked.set()

    async def run(self) -> None:
        """Reload whenever there is reason to; until cancelled."""
        seen = self._in_force
        while True:
            asked = await self._pause()
            now = self._look(self._path) if self._path else None
            settled, seen = now == seen, now
            if asked or (settled and now != self._in_force):
                self._in_force = now
                await self._reload()

    async def _pause(self) -> bool:
        """Wait for the next look; whether somebody asked for it."""
        try:
            async with asyncio.timeout(self._poll_s if self._path else None):
                await self._asked.wait()
        except TimeoutError:
            return False
        self._asked.clear()
        return True

    async def _reload(self) -> None:
        try:
            record: ConfigReloaded | ConfigRejected = await self._apply(self._read())
        except EgressProxyError as error:
            record = ConfigRejected(problems=tuple(map(str, error.problems)))
        self._observer.observe(record)
