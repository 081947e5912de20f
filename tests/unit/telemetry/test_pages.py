"""Lists of sessions: how often one is made, whoever asks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from egress_proxy.telemetry.pages import Pages
from tests.support.manual_loop import run_simulated
from tests.support.statuses import Shown, destination, status

if TYPE_CHECKING:
    from egress_proxy.telemetry.sessions import Query, SessionList


class Crowded(Shown):
    """Its sessions take 30 ms to list."""

    def __init__(self) -> None:
        super().__init__(status(destination()))
        self.listed_at: list[float] = []

    async def sessions(self, query: Query) -> SessionList | None:
        self.listed_at.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0.03)
        return await super().sessions(query)


def test_sessions_are_listed_for_a_small_part_of_the_time() -> None:
    async def ask() -> None:
        source = Crowded()
        pages = Pages(source)
        began = asyncio.get_running_loop().time()
        await asyncio.gather(*(pages.answer("GET", "/sessions.json") for _ in range(3)))
        assert [round(at - began, 3) for at in source.listed_at] == [0, 0.63, 1.26]

    run_simulated(ask())
