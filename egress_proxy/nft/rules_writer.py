"""Keeps our table in the kernel equal to the one that is wanted, one transaction per change.

nft(8) runs in a thread: the event loop does not wait for it. A table that is written as a whole is
read back. A change of it is not, because reading takes longer than changing; what is in the kernel
is compared once a minute, and a table that something else has changed is then replaced as a whole.
"""

from __future__ import annotations

import asyncio
import errno
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from egress_proxy.nft import command
from egress_proxy.nft.table import DELETION, same

if TYPE_CHECKING:
    from collections.abc import Callable

    from egress_proxy.nft.command import Counted
    from egress_proxy.nft.ruleset import Ruleset
    from egress_proxy.nft.table import Table

T = TypeVar("T")

# After a failure the same is tried again so much later, doubled each time up to the last.
_RETRY_FIRST_S = 1.0
_RETRY_LAST_S = 30.0
_READ_BACK_S = 60.0


def put_table(before: Table | None, wanted: Table) -> None:
    """Make `wanted` the table in the kernel, where `before` is if it is known. Raises OSError."""
    if before is not None:
        try:
            changes = wanted.changes(before)
            if changes:
                command.commit(changes)
        except OSError:
            # Something else has changed the table: the whole one is tried below.
            pass
        else:
            return
    command.commit(wanted.transaction())
    if not is_there(wanted):
        raise OSError(errno.EIO, "the table that nft lists is not the one that it was given")


def is_there(table: Table) -> bool:
    """Whether `table` is what the kernel has. Raises OSError."""
    return same(command.list_table(), table.listing())


def remove() -> None:
    """Take the table away, if there is one. Raises OSError."""
    if command.list_table():
        command.commit(DELETION)


@dataclass(frozen=True, slots=True)
class Nft:
    """What a writer does with nft."""

    put: Callable[[Table | None, Table], None] = put_table
    is_there: Callable[[Table], bool] = is_there


class RulesWriter:
    """Writes what `wanted` returns whenever `changed` was called.

    `written` is called with each table that is in force, `failed` with the error of one that can't
    be written and the seconds until it is tried again.
    """

    def __init__(
        self,
        wanted: Callable[[], Ruleset],
        written: Callable[[Ruleset], None],
        failed: Callable[[OSError, float], None],
        nft: Nft = Nft(),
        *,
        read_back_s: float = _READ_BACK_S,
    ) -> None:
        self._wanted = wanted
        self._written = written
        self._failed = failed
        self._nft = nft
        self._read_back_s = read_back_s
        self._due = asyncio.Event()
        self._tried = asyncio.Event()
        self._tried.set()
        self._table: Table | None = None
        self._retry_s = _RETRY_FIRST_S
        self._thread = ThreadPoolExecutor(1, "nft")

    def changed(self) -> None:
        """Something else may be wanted from now on."""
        self._due.set()
        self._tried.clear()

    async def tried(self) -> None:
        """Wait until each change so far is in force, or has failed to be."""
        await self._tried.wait()

    def write_first(self) -> None:
        """Replace whatever table is there, before anything else runs. Raises OSError."""
        ruleset = self._wanted()
        table = ruleset.table()
        self._nft.put(None, table)
        self._table = table
        self._written(ruleset)

    async def run(self) -> None:
        """Write each change; until cancelled."""
        while True:
            try:
                async with asyncio.timeout(self._read_back_s):
                    await self._due.wait()
            except TimeoutError:
                await self._read_back()
            else:
                await self._write()

    async def _read_back(self) -> None:
        table = self._table
        try:
            if table is None or await self._call(self._nft.is_there, table):
                return
        except OSError:
            # Whether it can be written shows.
            pass
        self._table = None
        self.changed()

    async def _write(self) -> None:
        self._due.clear()
        ruleset = self._wanted()
        table = ruleset.table()
        try:
            await self._call(self._nft.put, self._table, table)
        except OSError as error:
            # What is in the kernel now is not known.
            self._table = None
            retry_s, self._retry_s = self._retry_s, min(2 * self._retry_s, _RETRY_LAST_S)
            self._failed(error, retry_s)
            self._tried.set()
            await asyncio.sleep(retry_s)
            self._due.set()
        else:
            self._table = table
            self._retry_s = _RETRY_FIRST_S
            self._written(ruleset)
            if not self._due.is_set():
                self._tried.set()

    async def read_counters(self) -> dict[str, Counted]:
        """Our counters by their names. Raises OSError."""
        return await self._call(command.read_counters)

    async def remove(self) -> None:
        """Take the table away, if there is one. Raises OSError."""
        await self._call(remove)

    def close(self) -> None:
        """Write nothing more."""
        self._thread.shutdown(wait=False)

    async def _call(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, lambda: function(*arguments)
        )
