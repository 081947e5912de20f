"""What earlier attempts at this fell into, one test each: the elector is driven event by event.

1. A renewal with the resource version that the watch has brought: a holder that was frozen, and
   wakes, takes the Lease back.
2. A takeover with another version than the one that the expiry was judged on.
3. A lost answer: the write was applied, and the holder does not know that it is one.
4. After requests of its own have failed, the clock of a standby says "expired" of a healthy holder.
5. A defence from memory, and one without a limit.
7. The gateway is only asked when in doubt, and so was never heard before.
8. A change of an address that is gone creates it again.

6 is in `tests/netns/test_hold.py` (probes of other hosts), 9 in `test_labels.py`.
"""

from __future__ import annotations

from dataclasses import replace

from egress_proxy.hold import messages as m
from egress_proxy.hold.states import Role
from tests.unit.hold.driver import ME, STRANGER, Driver, foreign
from tests.unit.hold.simulation import ADDRESS


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
