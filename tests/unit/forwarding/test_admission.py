"""Admission: at the maximum, or out of resources, listeners pause and open again by themselves."""

from __future__ import annotations

import asyncio
import errno
import os

import pytest

from egress_proxy.events import Event, ListenersPaused, ListenersResumed
from egress_proxy.forwarding.admission import Admission
from tests.support.manual_loop import ManualLoop, run_simulated

MAXIMUM = 3
REACHED = ListenersPaused(error="the maximum of 3 connections is reached", connections=3)
RESUMED = ListenersResumed(connections=2)


class Gate:
    """A listener: open or not; it can't open while it is `lacking` what an errno says."""

    def __init__(self, port: int, lacking: int = 0) -> None:
        self.port = port
        self.lacking = lacking
        self.open = False

    def pause(self) -> None:
        self.open = False

    def resume(self) -> None:
        if self.lacking:
            raise OSError(self.lacking, "as if")
        self.open = True


class Records(list[Event]):
    def observe(self, record: Event) -> None:
        self.append(record)


class Hall:
    """An admission with two gates, and what it recorded."""

    def __init__(self) -> None:
        self.loop = ManualLoop(now=1000.0)
        self.records = Records()
        self.admission = Admission(self.loop, self.records, MAXIMUM)
        self.gates = [Gate(80), Gate(443)]
        for gate in self.gates:
            self.admission.open(gate)

    def enter(self, count: int) -> None:
        for _ in range(count):
            self.admission.enter()

    def leave(self, count: int) -> None:
        for _ in range(count):
            self.admission.leave()

    def opened(self) -> bool:
        [opened] = {gate.open for gate in self.gates}
        assert opened is not self.admission.paused
        return opened


@pytest.fixture
def hall() -> Hall:
    return Hall()


def test_nothing_is_said_to_resume_when_all_ports_are_closed(hall: Hall) -> None:
    hall.enter(MAXIMUM)
    for gate in hall.gates:
        hall.admission.close(gate)
    hall.leave(MAXIMUM)
    assert [type(record) for record in hall.records] == [ListenersPaused]


def test_below_the_maximum_nothing_happens(hall: Hall) -> None:
    hall.enter(MAXIMUM - 1)
    assert (hall.opened(), hall.admission.active, hall.records) == (True, 2, [])


def test_the_last_client_that_fits_pauses_and_the_first_that_ends_resumes(hall: Hall) -> None:
    hall.enter(MAXIMUM)
    assert not hall.opened()
    assert hall.records == [REACHED]
    hall.leave(1)
    assert hall.opened()
    assert hall.records == [REACHED, RESUMED]
    hall.leave(2)
    assert hall.admission.active == 0
    assert hall.loop.armed == 0


def test_at_most_one_record_of_a_kind_a_second(hall: Hall) -> None:
    hall.enter(MAXIMUM - 1)
    for _ in range(1000):
        hall.enter(1)
        hall.leave(1)
        hall.loop.advance(0.01)
    # Ten seconds, and the start.
    assert 10 <= hall.records.count(REACHED) <= 11
    assert hall.records.count(REACHED) == hall.records.count(RESUMED)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_out_of_resources_only_time_opens_the_listeners(hall: Hall, number: int) -> None:
    hall.enter(2)
    hall.admission.exhausted(number)
    assert not hall.opened()
    # Clients that fail for the same reason end at once: that must not make it spin.
    hall.leave(2)
    assert not hall.opened()
    hall.loop.advance(0.24)
    assert not hall.opened()
    hall.loop.advance(0.02)
    assert hall.opened()
    assert hall.records == [
        ListenersPaused(error=os.strerror(number), connections=2),
        ListenersResumed(connections=0),
    ]
    assert hall.loop.armed == 0


def test_out_of_resources_again_and_again(hall: Hall) -> None:
    for _ in range(100):
        hall.enter(1)
        hall.admission.exhausted(errno.EMFILE)
        hall.admission.exhausted(errno.EMFILE)
        assert hall.loop.armed == 1
        hall.leave(1)
        hall.loop.advance(0.25)
        assert hall.opened()
    # 25 s.
    assert len(hall.records) == 50


def test_out_of_resources_at_the_maximum_a_connection_must_end_too(hall: Hall) -> None:
    hall.enter(MAXIMUM)
    hall.admission.exhausted(errno.EMFILE)
    hall.loop.advance(10)
    assert not hall.opened()
    hall.leave(1)
    assert hall.opened()


def states(hall: Hall) -> list[bool]:
    assert [hall.admission.takes_clients(gate) for gate in hall.gates] == [
        gate.open for gate in hall.gates
    ]
    return [gate.open for gate in hall.gates]


def test_one_gate_is_paused_alone(hall: Hall) -> None:
    hall.enter(1)
    hall.admission.pause_one(hall.gates[0], errno.EADDRNOTAVAIL)
    hall.admission.pause_one(hall.gates[0], errno.EADDRNOTAVAIL)
    # Only time ends it, as its clients fail at once.
    hall.leave(1)
    assert states(hall) == [False, True]
    hall.loop.advance(0.26)
    assert states(hall) == [True, True]
    assert hall.records == [
        ListenersPaused(listener=80, error=os.strerror(errno.EADDRNOTAVAIL), connections=1),
        ListenersResumed(listener=80, connections=0),
    ]
    assert hall.loop.armed == 0


def test_a_gate_stays_paused_alone_while_all_pause_and_resume(hall: Hall) -> None:
    hall.admission.pause_one(hall.gates[0], errno.EADDRNOTAVAIL)
    hall.enter(MAXIMUM)
    assert states(hall) == [False, False]
    hall.leave(1)
    assert states(hall) == [False, True]
    hall.enter(1)
    hall.loop.advance(0.26)
    assert states(hall) == [False, False]
    hall.leave(1)
    assert states(hall) == [True, True]


def test_a_gate_that_is_paused_alone_is_closed(hall: Hall) -> None:
    first = hall.gates.pop(0)
    hall.admission.pause_one(first, errno.EADDRNOTAVAIL)
    hall.admission.close(first)
    assert hall.loop.armed == 0
    # A connection of it may still fail.
    hall.admission.pause_one(first, errno.EADDRNOTAVAIL)
    assert hall.loop.armed == 0
    hall.enter(MAXIMUM)
    hall.leave(1)
    assert not first.open


def test_a_gate_is_paused_alone_again_and_again(hall: Hall) -> None:
    for _ in range(100):
        hall.admission.pause_one(hall.gates[0], errno.EADDRNOTAVAIL)
        hall.loop.advance(0.25)
        assert states(hall) == [True, True]
    # 25 s.
    assert len(hall.records) == 50


def test_a_stopped_admission_has_no_timer(hall: Hall) -> None:
    hall.admission.pause_one(hall.gates[0], errno.EADDRNOTAVAIL)
    hall.admission.exhausted(errno.EMFILE)
    hall.admission.stop()
    hall.admission.stop()
    assert hall.loop.armed == 0


@pytest.mark.parametrize("clients", [0, 1, 3])
def test_waiting_until_there_is_no_client(clients: int) -> None:
    async def drain() -> None:
        admission = Admission(asyncio.get_running_loop(), Records(), 10)
        for _ in range(clients):
            admission.enter()
        waiting = asyncio.create_task(admission.emptied())
        for _ in range(clients):
            await asyncio.sleep(1)
            assert not waiting.done()
            admission.leave()
        await waiting

    run_simulated(drain())


def test_a_higher_maximum_opens_paused_listeners_at_once(hall: Hall) -> None:
    hall.enter(MAXIMUM)
    hall.admission.maximum = MAXIMUM + 1
    assert hall.opened()
    hall.enter(1)
    assert not hall.opened()


def test_a_lower_maximum_holds_until_enough_clients_have_left(hall: Hall) -> None:
    hall.enter(2)
    hall.admission.maximum = 1
    assert not hall.opened()
    hall.leave(1)
    assert not hall.opened()
    hall.leave(1)
    assert hall.opened()


def test_a_lower_maximum_that_is_not_reached_changes_nothing(hall: Hall) -> None:
    hall.enter(1)
    hall.admission.maximum = 2
    assert hall.opened()
    assert hall.records == []


def test_listeners_that_epoll_has_no_room_for_stay_paused_and_try_again(hall: Hall) -> None:
    hall.enter(MAXIMUM)
    hall.gates[1].lacking = errno.ENOSPC
    hall.leave(1)
    assert not hall.opened()
    hall.loop.advance(10)
    assert not hall.opened()
    hall.gates[1].lacking = 0
    hall.loop.advance(0.26)
    assert hall.opened()
    assert hall.loop.armed == 0


def test_a_listener_that_epoll_has_no_room_for_at_its_opening_tries_again(hall: Hall) -> None:
    third = Gate(8443, lacking=errno.ENOSPC)
    hall.gates.append(third)
    hall.admission.open(third)
    assert not hall.opened()
    third.lacking = 0
    hall.loop.advance(0.26)
    assert hall.opened()


def test_a_listener_that_epoll_refuses_after_its_own_pause_tries_again(hall: Hall) -> None:
    hall.admission.pause_one(hall.gates[0], errno.EADDRNOTAVAIL)
    hall.gates[0].lacking = errno.ENOSPC
    hall.loop.advance(0.26)
    assert not hall.opened()
    hall.gates[0].lacking = 0
    hall.loop.advance(0.26)
    assert hall.opened()
    assert hall.loop.armed == 0
