"""The destinations' file changes, in every way that files do."""

from __future__ import annotations

import asyncio
import ipaddress
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from egress_proxy.config.destinations import Destination
from egress_proxy.config.files import OffLoop, Version, VersionedFile
from egress_proxy.errors import ConfigurationError, Problem
from egress_proxy.events import ConfigRejected, ConfigReloaded, Event
from egress_proxy.run.reload import Reload

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

pytestmark = pytest.mark.asyncio

POLL_S = 0.01


class Watched:
    """A watched file of listening ports; `wrong` in it is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records: asyncio.Queue[Event] = asyncio.Queue()
        file = VersionedFile(str(path), OffLoop())
        self.reload = Reload(self._read, self._apply, self, file, poll_s=POLL_S)

    def observe(self, record: Event) -> None:
        self._records.put_nowait(record)

    async def _read(self) -> Sequence[Destination]:
        try:
            words = (await asyncio.to_thread(self.path.read_text)).split()
        except OSError as error:
            raise ConfigurationError(Problem(reason=str(error.strerror))) from None
        if "wrong" in words:
            raise ConfigurationError(Problem(reason="wrong"), Problem(reason="and wrong"))
        address = ipaddress.ip_address("192.0.2.1")
        return [Destination(int(word), address, 80, 1) for word in words]

    async def _apply(self, destinations: Sequence[Destination]) -> ConfigReloaded:
        ports = tuple(destination.port for destination in destinations)
        return ConfigReloaded(added=ports, changed=(), removed=(), unchanged=0)

    async def ports(self) -> tuple[int, ...]:
        """The destinations of the next reload."""
        record = await self._records.get()
        assert isinstance(record, ConfigReloaded)
        return record.added

    async def problems(self) -> tuple[str, ...]:
        """What the next reload was rejected for."""
        record = await self._records.get()
        assert isinstance(record, ConfigRejected)
        return record.problems

    def quiet(self) -> bool:
        return self._records.empty()


@asynccontextmanager
async def watching(tmp_path: Path) -> AsyncIterator[Watched]:
    """A file that says 1, and is watched."""
    path = tmp_path / "destinations"
    path.write_text("1")
    watched = Watched(path)
    task = asyncio.create_task(watched.reload.run(), name="reload")
    try:
        yield watched
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_an_edit_in_place(tmp_path: Path) -> None:
    async with watching(tmp_path) as watched:
        watched.path.write_text("1 2")
        assert await watched.ports() == (1, 2)
        watched.path.write_text("1 2 3")
        assert await watched.ports() == (1, 2, 3)


async def test_a_file_that_takes_its_place(tmp_path: Path) -> None:
    async with watching(tmp_path) as watched:
        successor = watched.path.with_name("successor")
        successor.write_text("2")
        successor.rename(watched.path)
        assert await watched.ports() == (2,)


async def test_a_link_that_leads_elsewhere(tmp_path: Path) -> None:
    async with watching(tmp_path) as watched:
        for name, text in (("before", "2"), ("after", "3")):
            (tmp_path / name).write_text(text)
        watched.path.unlink()
        watched.path.symlink_to("before")
        assert await watched.ports() == (2,)
        swap = tmp_path / "swap"
        swap.symlink_to("after")
        swap.rename(watched.path)
        assert await watched.ports() == (3,)


async def test_a_wrong_file_is_reported_once_and_corrected(tmp_path: Path) -> None:
    async with watching(tmp_path) as watched:
        watched.path.write_text("wrong")
        assert await watched.problems() == ("wrong", "and wrong")
        watched.path.write_text("1 2")
        assert await watched.ports() == (1, 2)
        assert watched.quiet()


async def test_a_file_that_stays_away_is_rejected_and_comes_back(tmp_path: Path) -> None:
    async with watching(tmp_path) as watched:
        watched.path.unlink()
        assert await watched.problems() == ("No such file or directory",)
        watched.path.write_text("2")
        assert await watched.ports() == (2,)


async def test_a_requested_reload_is_answered_although_nothing_has_changed(tmp_path: Path) -> None:
    async with watching(tmp_path) as watched:
        watched.reload.request()
        assert await watched.ports() == (1,)


class Looks:
    """What a file looks like, look by look; the last look is for ever."""

    def __init__(self, *looks: Version) -> None:
        self._looks = list(looks)
        self.first = self._looks.pop(0)
        self.seen = asyncio.Event()

    async def version(self) -> Version:
        if len(self._looks) > 1:
            return self._looks.pop(0)
        self.seen.set()
        return self._looks[0]


A, B, C = ((1, number, 1, 1) for number in range(3))


@pytest.mark.parametrize(
    ("looks", "reads"),
    [
        ((A, A, A), 0),
        # Missing for a moment is nothing to speak of, whatever comes after.
        ((A, None, A, A), 0),
        ((A, None, B, B, B), 1),
        # Still being written.
        ((A, B, C, C, C), 1),
        ((A, B, B, C, C, C), 2),
        ((A, None, None, None), 1),
    ],
)
async def test_a_file_is_read_once_it_has_settled(looks: tuple[Version, ...], reads: int) -> None:
    seen = Looks(*looks)
    count = 0

    async def read() -> Sequence[Destination]:
        nonlocal count
        count += 1
        return ()

    async def apply(_: Sequence[Destination]) -> ConfigReloaded:
        return ConfigReloaded(added=(), changed=(), removed=(), unchanged=0)

    reload = Reload(read, apply, Nobody(), seen, poll_s=0.001)
    task = asyncio.create_task(reload.run(), name="reload")
    for _ in range(2):
        # The last look is taken once more, and what it leads to has happened then.
        seen.seen.clear()
        await seen.seen.wait()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert count == reads


class Nobody:
    def observe(self, record: Event) -> None:
        """It is counted elsewhere."""
