"""The wheel: no member is called too early, none more than a tick late, none is forgotten."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_proxy.events import Reason
from egress_proxy.relay.timer_wheel import TICK_S, TimerWheel
from tests.support.manual_loop import ManualLoop

if TYPE_CHECKING:
    from collections.abc import Callable


class Member:
    """Notes when it was due; `then` is done each time."""

    deadline_tick: int

    def __init__(self, loop: ManualLoop, then: Callable[[], None] = lambda: None) -> None:
        self._loop = loop
        self._then = then
        self.due_at: list[float] = []
        self.aborted: list[Reason] = []

    def on_timer(self) -> None:
        self.due_at.append(self._loop.now)
        self._then()

    def abort(self, reason: Reason) -> None:
        self.aborted.append(reason)


def fail(error: Exception) -> None:
    raise AssertionError from error


@pytest.fixture
def loop() -> ManualLoop:
    # Not on a tick, as no start of a process is.
    return ManualLoop(now=1000.1)


@pytest.fixture
def wheel(loop: ManualLoop) -> TimerWheel:
    return TimerWheel(loop, fail)


@given(delays=st.lists(st.tuples(st.floats(0, 100), st.floats(0, 5)), min_size=1, max_size=20))
def test_every_member_is_called_within_a_tick_of_its_time(
    delays: list[tuple[float, float]],
) -> None:
    loop = ManualLoop(now=1000.1)
    wheel = TimerWheel(loop, fail)
    expected = []
    for delay_s, pause_s in delays:
        member = Member(loop)
        wheel.schedule(member, delay_s)
        expected.append((member, loop.now + delay_s))
        loop.advance(pause_s)
    loop.advance(200)
    for member, wanted_at in expected:
        [due_at] = member.due_at
        assert wanted_at <= due_at <= wanted_at + TICK_S + 1e-6
    assert loop.armed == 0
    assert list(wheel) == []


def test_a_member_may_come_back_from_due(loop: ManualLoop, wheel: TimerWheel) -> None:
    member = Member(loop, lambda: wheel.schedule(member, 1.0))
    wheel.schedule(member, 1.0)
    loop.advance(10)
    gaps = [later - earlier for earlier, later in pairwise(member.due_at)]
    assert len(gaps) >= 8
    assert all(1.0 - 1e-6 <= gap <= 1.0 + TICK_S + 1e-6 for gap in gaps)
    assert list(wheel) == [member]


def test_a_cancelled_member_is_not_called(loop: ManualLoop, wheel: TimerWheel) -> None:
    members = [Member(loop) for _ in range(3)]
    for member in members:
        wheel.schedule(member, 1.0)
    wheel.cancel(members[1])
    assert set(wheel) == {members[0], members[2]}
    loop.advance(5)
    assert [len(member.due_at) for member in members] == [1, 0, 1]


def test_leaving_twice_and_leaving_from_due_are_harmless(
    loop: ManualLoop, wheel: TimerWheel
) -> None:
    member = Member(loop, lambda: wheel.cancel(member))
    wheel.schedule(member, 1.0)
    loop.advance(5)
    wheel.cancel(member)
    assert len(member.due_at) == 1


def test_one_that_is_due_may_make_the_others_of_its_tick_leave(
    loop: ManualLoop, wheel: TimerWheel
) -> None:
    members: list[Member] = []

    def end_all() -> None:
        for member in members:
            wheel.cancel(member)

    members += [Member(loop, end_all) for _ in range(5)]
    for member in members:
        wheel.schedule(member, 1.0)
    loop.advance(5)
    assert sum(len(member.due_at) for member in members) == 1
    assert loop.armed == 0


def test_an_empty_wheel_has_no_timer(loop: ManualLoop, wheel: TimerWheel) -> None:
    assert loop.armed == 0
    member = Member(loop)
    wheel.schedule(member, 1.0)
    assert loop.armed == 1
    wheel.cancel(member)
    loop.advance(1)
    assert loop.armed == 0
    # And it starts again, without going through the ticks of the time between: for ever.
    loop.advance(1e12)
    wheel.schedule(member, 1.0)
    loop.advance(1.5)
    assert len(member.due_at) == 1


def test_many_members_have_one_timer(loop: ManualLoop, wheel: TimerWheel) -> None:
    for number in range(1000):
        wheel.schedule(Member(loop), number)
    assert loop.armed == 1


def test_a_process_that_was_stopped_catches_up(loop: ManualLoop, wheel: TimerWheel) -> None:
    members = [Member(loop) for _ in range(5)]
    for seconds, member in enumerate(members):
        wheel.schedule(member, seconds)
    loop.now += 60
    loop.advance(0)
    assert all(member.due_at == [1060.1] for member in members)


def test_members_may_leave_while_they_are_walked_through(
    loop: ManualLoop, wheel: TimerWheel
) -> None:
    members = {Member(loop) for _ in range(5)}
    for delay_s, member in enumerate(members):
        wheel.schedule(member, delay_s % 2)
    seen = set()
    for walked in wheel:
        seen.add(walked)
        wheel.cancel(walked)
    assert seen == members
    assert list(wheel) == []


def test_a_stopped_wheel_has_no_timer(loop: ManualLoop, wheel: TimerWheel) -> None:
    member = Member(loop)
    wheel.schedule(member, 1.0)
    wheel.stop()
    wheel.stop()
    assert loop.armed == 0
    loop.advance(5)
    assert member.due_at == []


def test_the_wheel_may_be_stopped_by_one_that_is_due(loop: ManualLoop, wheel: TimerWheel) -> None:
    members = [Member(loop, wheel.stop) for _ in range(3)]
    for member in members:
        wheel.schedule(member, 1.0)
    loop.advance(5)
    assert sum(len(member.due_at) for member in members) == 1
    assert loop.armed == 0


def raise_defect() -> None:
    raise LookupError("a defect")


class Stubborn(Member):
    """Its end raises too."""

    def abort(self, reason: Reason) -> None:
        super().abort(reason)
        raise_defect()


@pytest.mark.parametrize(("kind", "defects"), [(Member, 1), (Stubborn, 2)])
def test_a_defect_of_one_member_ends_it_alone(
    loop: ManualLoop, kind: type[Member], defects: int
) -> None:
    reported: list[Exception] = []
    wheel = TimerWheel(loop, reported.append)
    broken = kind(loop, raise_defect)
    others = [Member(loop) for _ in range(5)]
    for member in (*others, broken):
        wheel.schedule(member, 1.0)
    later = Member(loop)
    wheel.schedule(later, 3.0)
    loop.advance(5)
    assert [str(error) for error in reported] == ["a defect"] * defects
    assert broken.aborted == [Reason.ERROR]
    assert all(len(member.due_at) == 1 for member in (*others, later))
    assert loop.armed == 0
