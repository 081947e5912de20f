"""When rules are written, and what happens when they can't be; nft is not run."""

from __future__ import annotations

import asyncio
import errno
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from egress_proxy.nft import rules_writer
from egress_proxy.nft.rules_writer import RulesWriter
from egress_proxy.nft.ruleset import Ruleset, Translation
from egress_proxy.nft.session_rules import SessionRules

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from egress_proxy.nft.table import Table

EMPTY = Ruleset(
    egress="macvlan0",
    sources=(ip_address("203.0.113.99"),),
    translations=(),
    sessions=SessionRules(connect_timeout_s=10, idle_timeout_s=0, half_close_timeout_s=0),
)
WEB = replace(EMPTY, translations=(Translation("tcp", 80, (ip_address("10.4.5.6"),), 80),))


class Nft:
    """A writer, and what it does with nft in its place."""

    def __init__(self, read_back_s: float = 60) -> None:
        self.wanted = EMPTY
        self.failing = 0
        self.touched: asyncio.Queue[bool] = asyncio.Queue()
        self.puts: list[tuple[Table | None, Table]] = []
        self.told: asyncio.Queue[Ruleset | tuple[int, float]] = asyncio.Queue()
        self.writer = RulesWriter(
            lambda: self.wanted,
            self.told.put_nowait,
            lambda error, retry_s: self.told.put_nowait((error.errno or 0, retry_s)),
            rules_writer.Nft(self.put, self.is_there),
            read_back_s=read_back_s,
        )

    def put(self, before: Table | None, wanted: Table) -> None:
        self.puts.append((before, wanted))
        if self.failing:
            raise OSError(self.failing, "as if")

    def is_there(self, table: Table) -> bool:
        assert table == self.puts[-1][1]
        if self.touched.empty():
            return True
        self.touched.get_nowait()
        if self.failing:
            raise OSError(self.failing, "as if")
        return False


@asynccontextmanager
async def running(read_back_s: float = 60) -> AsyncIterator[Nft]:
    nft = Nft(read_back_s)
    nft.writer.write_first()
    assert await nft.told.get() == EMPTY
    task = asyncio.create_task(nft.writer.run())
    try:
        yield nft
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        nft.writer.close()


@pytest.mark.asyncio
async def test_a_change_is_made_of_what_is_there() -> None:
    async with running() as nft:
        nft.wanted = WEB
        nft.writer.changed()
        assert await nft.told.get() == WEB
        assert nft.puts == [(None, EMPTY.table()), (EMPTY.table(), WEB.table())]


@pytest.mark.asyncio
async def test_many_changes_at_a_time_are_one() -> None:
    async with running() as nft:
        for ruleset in (WEB, EMPTY, WEB):
            nft.wanted = ruleset
            nft.writer.changed()
        assert await nft.told.get() == WEB
        assert len(nft.puts) == 2


@pytest.mark.asyncio
async def test_after_a_failure_the_whole_table_is_written_again() -> None:
    async with running() as nft:
        nft.wanted, nft.failing = WEB, errno.ENOBUFS
        nft.writer.changed()
        assert await nft.told.get() == (errno.ENOBUFS, 1.0)
        nft.failing = 0
        assert await nft.told.get() == WEB
        assert nft.puts[-2:] == [(EMPTY.table(), WEB.table()), (None, WEB.table())]


@pytest.mark.asyncio
@pytest.mark.parametrize("failing", [0, errno.EPERM])
async def test_a_table_that_somebody_else_has_touched_is_written_again(failing: int) -> None:
    async with running(0.01) as nft:
        nft.failing = failing
        nft.touched.put_nowait(True)
        said = await nft.told.get()
        assert nft.puts[1:] == [(None, EMPTY.table())]
        assert said == ((failing, 1.0) if failing else EMPTY)


def test_a_table_that_can_not_be_written_at_first_is_an_error() -> None:
    nft = Nft()
    nft.failing = errno.EPERM
    with pytest.raises(PermissionError):
        nft.writer.write_first()
    nft.writer.close()
