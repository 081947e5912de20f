"""Nothing dies unseen: supervised tasks restart, and every defect is an event."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

from egress_proxy.events import DaemonDefect
from egress_proxy.supervisor import Supervisor
from tests.support.manual_loop import run_simulated

if TYPE_CHECKING:
    from egress_proxy.events import Event


class Defects(list[DaemonDefect]):
    def observe(self, event: Event) -> None:
        assert isinstance(event, DaemonDefect)
        self.append(event)


def supervise(defects: Defects) -> Supervisor:
    return Supervisor(asyncio.get_running_loop(), defects)


def test_a_task_that_fails_is_reported_and_starts_again_with_backoff() -> None:
    async def scenario() -> None:
        defects = Defects()
        supervisor = supervise(defects)
        started_at = []

        async def fail() -> None:
            started_at.append(asyncio.get_running_loop().time())
            raise LookupError("a defect")

        supervisor.spawn("the task", fail)
        await asyncio.sleep(200)
        waits = [later - sooner for sooner, later in itertools.pairwise(started_at)]
        assert [round(wait) for wait in waits[:8]] == [1, 2, 4, 8, 16, 32, 60, 60]
        assert [defect.restart_s for defect in defects[:3]] == [1, 2, 4]
        assert {(defect.where, defect.error) for defect in defects} == {
            ("the task", "LookupError('a defect')")
        }
        assert list(supervisor.down) == ["the task"]
        await supervisor.stop()
        assert not supervisor.down

    run_simulated(scenario())


def test_one_that_ran_for_long_begins_again_at_a_second() -> None:
    async def scenario() -> None:
        defects = Defects()
        supervisor = supervise(defects)

        async def fail_after_an_hour() -> None:
            await asyncio.sleep(3600)
            raise LookupError

        supervisor.spawn("the task", fail_after_an_hour)
        await asyncio.sleep(3 * 3700)
        assert [defect.restart_s for defect in defects] == [1, 1, 1]
        assert not supervisor.down
        await supervisor.stop()

    run_simulated(scenario())


def test_a_task_that_returns_or_is_cancelled_does_not_start_again() -> None:
    async def scenario() -> None:
        defects = Defects()
        supervisor = supervise(defects)
        starts = []

        async def run() -> None:
            starts.append(1)
            await asyncio.sleep(5)

        done = supervisor.spawn("returns", run)
        cancelled = supervisor.spawn("is cancelled", run)
        await asyncio.sleep(1)
        cancelled.cancel()
        await asyncio.sleep(100)
        assert len(starts) == 2
        assert done.done()
        assert cancelled.cancelled()
        assert defects == []
        await supervisor.stop()

    run_simulated(scenario())


def test_what_a_callback_of_the_event_loop_raises_is_a_defect() -> None:
    async def scenario() -> None:
        defects = Defects()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(supervise(defects).handle_loop_exception)

        def fail() -> None:
            raise LookupError("a defect")

        loop.call_later(1, fail)
        await asyncio.sleep(2)
        loop.call_exception_handler({"message": "a message alone"})
        assert [defect.error for defect in defects] == [
            "LookupError('a defect')",
            "RuntimeError('a message alone')",
        ]

    run_simulated(scenario())
