"""SIGTERM: what a pod does before it ends, event by event."""

from __future__ import annotations

from dataclasses import replace

import pytest

from egress_proxy.hold import messages as m
from egress_proxy.hold.events import HoldLeaving
from egress_proxy.hold.objects import Lease, Pod
from egress_proxy.hold.states import Role
from tests.unit.hold.driver import OTHER, STRANGER, Driver, foreign
from tests.unit.hold.simulation import ADDRESS


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


@pytest.mark.parametrize(("drain_s", "kept_s"), [(25.0, 1.0), (0.4, 0.3), (0.05, 0.0)])
def test_the_time_that_the_address_is_kept_is_at_most_what_is_left_of_the_drain(
    drain_s: float, kept_s: float
) -> None:
    driver = Driver()
    driver.become_active()
    driver.settings = replace(driver.settings, drain_s=drain_s)
    driver.feed(m.StopRequested())
    driver.now += 0.1
    driver.actions.clear()
    driver.feed(m.PodsListed((Pod(name=OTHER, ready=True, deleting=False),)))
    [leaving] = [tell.event for tell in driver.take(m.Tell) if isinstance(tell.event, HoldLeaving)]
    assert leaving.kept_s == pytest.approx(kept_s)
