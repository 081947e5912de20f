"""What earlier attempts at this fell into, one test each: the elector is driven event by event."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from egress_proxy.hold import messages as m
from egress_proxy.hold.elector import advance, start
from egress_proxy.hold.objects import Lease, Pod
from egress_proxy.hold.states import Role
from tests.unit.hold.simulation import ADDRESS, GATEWAY, SETTINGS

if TYPE_CHECKING:
    from egress_proxy.hold.states import State

T = TypeVar("T")

ME, OTHER = "a", "b"
STRANGER = "02:00:00:00:00:66"


class Driver:
    """An elector whose API server answers when the test says so; the gateway answers at once."""

    def __init__(self) -> None:
        self.settings = replace(SETTINGS, identity=ME)
        self.now = 100.0
        self.state: State = start(self.now, carrier=True)
        self.actions: list[m.Action] = []
        self.feed(m.Tick())

    def feed(self, event: m.Input) -> None:
        self.state, actions = advance(self.settings, self.state, event, self.now)
        self.actions.extend(actions)
        if any(isinstance(action, m.AskGateway) for action in actions):
            self.state, more = advance(self.settings, self.state, m.GatewayHeard(GATEWAY), self.now)
            self.actions.extend(more)

    def run(self, until: float) -> None:
        """Let the timers fire."""
        while self.state.wake_at <= until:
            self.now = max(self.now, self.state.wake_at)
            self.feed(m.Tick())
        self.now = until

    def answer(self, lease: Lease | None) -> None:
        self.feed(m.RequestDone(lease))

    def fail(self, failure: m.Failure) -> None:
        self.feed(m.RequestFailed(failure, "a test"))

    def take(self, kind: type[T]) -> list[T]:
        """The actions of that kind so far; all are forgotten."""
        found: list[T] = [action for action in self.actions if isinstance(action, kind)]
        self.actions.clear()
        return found

    def take_all(self) -> list[m.Action]:
        """All actions so far; they are forgotten."""
        found, self.actions = self.actions, []
        return found

    def become_active(self, version: int = 10) -> Lease:
        """Take the Lease, which there is none of yet, and the address. The Lease as it is then."""
        self.answer(None)
        [write] = self.take(m.Write)
        held = replace(write.lease, resource_version=str(version))
        self.answer(held)
        for _ in range(3):
            self.now += 0.1
            self.feed(m.Tick())
            for write in self.take(m.Write):
                version += 1
                held = replace(write.lease, resource_version=str(version))
                self.answer(held)
        assert self.state.role == Role.ACTIVE
        return held

    def next_write(self) -> m.Write:
        """The next one that the timers make."""
        self.actions.clear()
        while True:
            self.run(self.state.wake_at)
            writes = self.take(m.Write)
            if writes:
                return writes[0]


def foreign(version: int, transitions: int = 5) -> Lease:
    return Lease(
        name="",
        holder=OTHER,
        duration_s=2,
        transitions=transitions,
        resource_version=str(version),
    )


def test_1_a_renewal_depends_on_the_own_last_write_not_on_the_watch() -> None:
    driver = Driver()
    held = driver.become_active()
    driver.feed(m.LeaseSeen(replace(held, resource_version="99")))
    assert driver.next_write().lease.resource_version == held.resource_version


def test_1_a_holder_that_wakes_does_not_take_the_lease_back() -> None:
    driver = Driver()
    held = driver.become_active()
    driver.now += 10
    driver.take(m.Write)
    driver.feed(m.LeaseSeen(foreign(99, held.transitions + 1)))
    assert driver.state.role == Role.STANDBY
    assert driver.take(m.Write) == []
    driver.run(driver.now + 0.4)
    assert driver.take(m.Write) == []


def test_2_a_takeover_depends_on_the_lease_that_was_observed() -> None:
    driver = Driver()
    driver.answer(foreign(7))
    write = None
    while write is None:
        driver.run(driver.state.wake_at)
        for action in driver.take_all():
            if isinstance(action, m.Read):
                driver.answer(foreign(7))
            if isinstance(action, m.Write):
                write = action
    assert driver.now - 100.0 >= 2.0
    driver.feed(m.LeaseSeen(foreign(8)))
    assert (write.lease.resource_version, write.lease.holder) == ("7", ME)
    assert driver.take(m.Write) == []


def test_3_after_a_lost_answer_the_lease_is_read_first() -> None:
    driver = Driver()
    driver.become_active()
    write = driver.next_write()
    sent_at = driver.now
    driver.now += 0.6
    driver.fail("doubtful")
    assert len(driver.take(m.Read)) == 1
    applied = replace(write.lease, resource_version="50")
    driver.answer(applied)
    assert driver.state.valid_until == sent_at + 2
    [renewal] = driver.take(m.Write)
    assert renewal.lease.resource_version == "50"


def test_3_a_lost_answer_to_the_takeover_is_found_out() -> None:
    driver = Driver()
    driver.answer(None)
    [write] = driver.take(m.Write)
    driver.fail("doubtful")
    assert len(driver.take(m.Read)) == 1
    driver.answer(replace(write.lease, resource_version="50"))
    [again] = driver.take(m.Write)
    assert again.lease.resource_version == "50"
    driver.answer(replace(again.lease, resource_version="51"))
    assert driver.state.role == Role.TAKING


def test_4_after_a_failure_of_its_own_a_standby_observes_anew() -> None:
    driver = Driver()
    driver.answer(foreign(7))
    driver.run(101.5)
    assert driver.state.pending is not None
    driver.fail("doubtful")
    driver.run(102.3)
    assert driver.take(m.Write) == []
    assert driver.state.changed_at is None
    driver.answer(foreign(7))
    driver.run(104.2)
    assert driver.take(m.Write) == []


def test_5_claims_are_answered_ten_times_a_second_at_most() -> None:
    driver = Driver()
    driver.become_active()
    driver.run(driver.now + 0.2)
    driver.actions.clear()
    for _ in range(1000):
        driver.now += 0.0002
        driver.feed(m.Claimed(ADDRESS, STRANGER))
    assert 1 <= len(driver.take(m.Announce)) <= 3


def test_5_a_holder_that_is_late_drops_the_address_and_sends_nothing() -> None:
    driver = Driver()
    driver.become_active()
    driver.actions.clear()
    driver.now += 5
    driver.feed(m.Claimed(ADDRESS, STRANGER))
    kinds = [type(action) for action in driver.actions]
    assert m.Drop in kinds
    assert m.Announce not in kinds
    assert m.Keep not in kinds


def test_7_the_gateway_is_asked_all_the_time() -> None:
    driver = Driver()
    driver.answer(foreign(7))
    driver.take(m.AskGateway)
    asked = 0
    for _ in range(20):
        driver.feed(m.LeaseSeen(foreign(8 + asked)))
        driver.run(driver.now + 0.5)
        asked += len(driver.take(m.AskGateway))
    assert 18 <= asked <= 22


def test_8_the_address_is_not_kept_after_its_deadline() -> None:
    driver = Driver()
    driver.become_active()
    driver.actions.clear()
    held_until = driver.state.address_until
    assert held_until is not None
    driver.run(driver.now + 0.6)
    deadlines = [keep.deadline for keep in driver.take(m.Keep)]
    assert deadlines
    assert all(deadline <= held_until + 0.051 for deadline in deadlines[:1])
    driver.feed(m.KeptLate())
    assert driver.state.role == Role.STANDBY
    assert len(driver.take(m.Drop)) == 1


def start_to_take(driver: Driver) -> Lease:
    driver.answer(None)
    [write] = driver.take(m.Write)
    held = replace(write.lease, resource_version="10")
    driver.answer(held)
    assert driver.state.role == Role.TAKING
    return held


def test_a_stop_during_the_takeover_waits_for_it_and_then_hands_over() -> None:
    driver = Driver()
    start_to_take(driver)
    driver.now += 0.05
    driver.feed(m.StopRequested())
    assert driver.take(m.Write) == []
    driver.run(driver.now + 0.25)
    actions = driver.take_all()
    [first, *_] = [action for action in actions if isinstance(action, m.Keep | m.ListPods)]
    assert isinstance(first, m.Keep)
    assert any(isinstance(action, m.Announce) for action in actions)
    assert any(isinstance(action, m.ListPods) for action in actions)
    assert driver.state.role == Role.LEAVING
    assert driver.state.leave_by == 100.05 + driver.settings.drain_s
    driver.feed(m.PodsListed((Pod(name=OTHER, ready=True, deleting=False),)))
    assert driver.take(m.HandOver) == [m.HandOver(OTHER)]


def test_a_stop_while_the_lease_is_being_written_waits_for_the_answer() -> None:
    driver = Driver()
    driver.answer(None)
    [write] = driver.take(m.Write)
    driver.feed(m.StopRequested())
    assert driver.take(m.Exit) == []
    driver.answer(replace(write.lease, resource_version="10"))
    assert driver.state.role == Role.TAKING


def test_a_stop_whose_takeover_fails_lets_go_without_an_announcement() -> None:
    driver = Driver()
    held = start_to_take(driver)
    driver.feed(m.StopRequested())
    driver.feed(m.LeaseSeen(foreign(99, held.transitions + 1)))
    assert driver.state.role == Role.STOPPED
    actions = driver.take_all()
    assert m.Exit() in actions
    assert not any(isinstance(action, m.Announce | m.Keep) for action in actions)


def test_a_stop_while_a_foreign_host_blocks_the_takeover_releases_the_lease() -> None:
    driver = Driver()
    start_to_take(driver)
    driver.feed(m.StopRequested())
    while driver.state.role == Role.TAKING:
        driver.run(driver.now + 0.02)
        driver.feed(m.Claimed(ADDRESS, STRANGER))
        while writes := driver.take(m.Write):
            [write] = writes
            driver.answer(replace(write.lease, resource_version=f"{driver.now}"))
    assert driver.state.role == Role.STOPPED
    assert write.lease.holder == ""


def test_a_second_stop_ends_the_takeover() -> None:
    driver = Driver()
    start_to_take(driver)
    driver.feed(m.StopRequested())
    driver.feed(m.StopRequested())
    [write] = driver.take(m.Write)
    assert write.lease.holder == ""
