"""What a reload has to do, and when it happens."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address
from typing import TYPE_CHECKING

from egress_proxy.config.destinations import Destination
from egress_proxy.errors import ConfigurationError, PlatformError, Problem
from egress_proxy.events import ConfigRejected, ConfigReloaded, DaemonDefect, Event
from egress_proxy.run.reload import Difference, Reload, compare
from tests.support.manual_loop import run_simulated

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

A = Destination(80, ip_address("192.0.2.1"), 80, 1)
B = Destination(81, "b.example", 443, 2)
C = Destination(82, "c.example", 82, 3)


def present(*destinations: Destination) -> dict[int, Destination]:
    return {destination.port: destination for destination in destinations}


def test_every_kind_of_difference() -> None:
    changed = Destination(81, "b.example", 444, 1)
    assert compare(present(A, B), [changed, C]) == Difference((C,), (changed,), (80,), 0)


def test_another_line_or_order_is_no_difference() -> None:
    moved = Destination(80, A.host, 80, 7)
    assert compare(present(A, B), [B, moved]) == Difference((), (), (), 2)


def test_another_host_is_a_change_and_so_is_an_address_for_a_name() -> None:
    for host in (ip_address("192.0.2.2"), "a.example"):
        other = Destination(80, host, 80, 1)
        assert compare(present(A), [other]) == Difference((), (other,), (), 0)


RELOADED = ConfigReloaded(added=(), changed=(), removed=(), unchanged=1)
BUSY = PlatformError(Problem(reason="the port is busy"))
WRONG = ConfigurationError(Problem(reason="the text is wrong"))
DEFECT = LookupError("a defect")


class Files:
    """A file whose version the test sets, and attempts to apply it that fail with `errors`."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.events: list[Event] = []
        self.applied_at: list[float] = []
        self.first = (0, 0, 0, 1)
        self.number = 1
        self.hangs = False
        self.reload = Reload(self.read, self.apply, self, self)

    async def version(self) -> tuple[int, int, int, int]:
        if self.hangs:
            raise TimeoutError
        return (0, 0, 0, self.number)

    async def read(self) -> tuple[Destination, ...]:
        return ()

    async def apply(self, _destinations: object) -> ConfigReloaded:
        self.applied_at.append(asyncio.get_running_loop().time())
        if self.errors:
            raise self.errors.pop(0)
        return RELOADED

    def observe(self, event: Event) -> None:
        self.events.append(event)

    def run(self, scenario: Callable[[], Awaitable[None]]) -> None:
        async def both() -> None:
            task = asyncio.create_task(self.reload.run())
            await scenario()
            task.cancel()

        run_simulated(both())


def rejected(*problems: str) -> ConfigRejected:
    return ConfigRejected(problems=problems)


def test_destinations_the_pod_can_not_serve_are_tried_again_with_backoff_and_reported_once() -> (
    None
):
    files = Files(BUSY, BUSY, BUSY)

    async def scenario() -> None:
        files.reload.request()
        await asyncio.sleep(30)

    files.run(scenario)
    assert files.events == [rejected("the port is busy"), RELOADED]
    first, *others = files.applied_at
    # After 1, 2 and 4 s, looked for once a second.
    assert [2, 4, 9] >= [round(at - first) for at in others] >= [1, 3, 7]


def test_a_wrong_text_waits_for_another_one() -> None:
    files = Files(WRONG)

    async def scenario() -> None:
        files.number = 2
        await asyncio.sleep(100)
        assert files.events == [rejected("the text is wrong")]
        files.number = 3
        await asyncio.sleep(100)

    files.run(scenario)
    assert files.events == [rejected("the text is wrong"), RELOADED]


def test_a_file_system_that_does_not_answer_changes_nothing() -> None:
    files = Files()

    async def scenario() -> None:
        files.hangs, files.number = True, 2
        await asyncio.sleep(100)
        assert files.events == []
        files.hangs = False
        await asyncio.sleep(5)

    files.run(scenario)
    assert files.events == [RELOADED]


def test_a_defect_is_reported_and_the_next_reload_works() -> None:
    files = Files(DEFECT)

    async def scenario() -> None:
        files.reload.request()
        await asyncio.sleep(10)
        files.reload.request()
        await asyncio.sleep(10)

    files.run(scenario)
    defect, told, last = files.events
    assert isinstance(defect, DaemonDefect)
    assert (defect.where, defect.error) == ("reload", "LookupError('a defect')")
    assert told == rejected("a defect: LookupError('a defect')")
    assert last == RELOADED


def test_many_requests_are_one_reload_per_second() -> None:
    files = Files()

    async def scenario() -> None:
        for _ in range(1000):
            files.reload.request()
            await asyncio.sleep(0.01)

    files.run(scenario)
    assert len(files.applied_at) in range(9, 12)
