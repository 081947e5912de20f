"""Floods, port scans and silent clients, and a session beside them that they must not harm.

Times say more about the machine than about the command, so none is held against a limit. What a
crowd can take from a session is counted instead: how many others have their turn before it, and how
much work each of its round trips is.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING

import pytest

from bench.clocks import process_seconds
from tests.support.island import PORT, SILENT_PORT, Island
from tests.support.peers import reset
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.session import Session

# All fit in a listener's backlog of 4096.
FLOOD = 4000
# Or as many as RLIMIT_NOFILE allows the command, at two descriptors each: 9,901 of 20,000.
SILENT = 10_000
SCANS = 5000

ROUND_TRIPS = 200
SERIES = 15


@pytest.fixture
def island() -> Iterator[Island]:
    with Island() as made:
        yield made


@pytest.fixture
def session(island: Island) -> Session:
    made = island.session()
    made.round_trip()
    return made


def test_a_flood_leaves_a_session_its_turn(island: Island, session: Session) -> None:
    """The command is stopped until all of the flood wait, and the session's octet behind them.

    A turn of the reactor takes one client from a listener, so few are served before the session and
    few between any two of its octets. They are counted where they arrive, each time the session has
    its answer. A command that took all that wait would serve thousands first.
    """
    flood = min(FLOOD, island.maximum - 2)
    with island.stopped():
        for _ in range(flood):
            island.connect(PORT)
        session.ask()
    others: list[int] = []
    while sum(others) < flood:
        session.answer()
        others.append(island.dismiss_waiting())
        session.ask()
    session.answer()
    # 6 in the middle and 21 at most, where nothing else runs; some more each time that this process
    # has to wait for a core, up to 41 in the middle where four others want it too.
    assert median(others) <= 128
    assert sorted(others)[len(others) * 9 // 10] <= 512


@pytest.mark.parametrize("port", [PORT, SILENT_PORT], ids=["connected", "connecting"])
def test_silent_clients_add_nothing_to_a_round_trip(
    island: Island, session: Session, port: int
) -> None:
    """The command's CPU time is compared, which a busy machine hardly changes."""
    with on_one_core(island.process.pid):
        alone = seconds_of_a_round_trip(island, session)
        island.clients(min(SILENT, island.maximum - 2), port)
        among_them = seconds_of_a_round_trip(island, session)
    assert among_them < 1.5 * alone


def test_port_scans_leave_nothing_behind(island: Island, session: Session) -> None:
    """Each is one record, and the session goes on between them."""
    os.kill(island.process.pid, signal.SIGUSR1)
    island.process.wait_for("log.switched")
    before = island.descriptors()
    for scan in range(SCANS):
        # Some are gone before the command looks, some while it connects, some later.
        reset(island.namespace.connect("127.0.0.1", (PORT, SILENT_PORT)[scan % 2]))
        if scan % 100 == 0:
            session.round_trip()
    wait_until(lambda: island.active() == 1)
    # The last answer of the admin port may still have one.
    wait_until(lambda: island.descriptors() == before)
    session.round_trip()
    closed = [island.process.wait_for("connection.closed") for _ in range(SCANS)]
    reasons = Counter((record["listener"], record["reason"]) for record in closed)
    assert reasons.keys() <= {
        (PORT, "client_gone"),
        (PORT, "client_reset"),
        (SILENT_PORT, "client_gone"),
    }
    assert reasons[SILENT_PORT, "client_gone"] == SCANS // 2


def seconds_of_a_round_trip(island: Island, session: Session) -> float:
    """CPU time of the command, in the best of several series: others on the core only add to it."""
    taken = []
    for _ in range(SERIES):
        before = process_seconds(island.process.pid)
        for _ in range(ROUND_TRIPS):
            session.round_trip()
        taken.append(process_seconds(island.process.pid) - before)
    return min(taken) / ROUND_TRIPS


@contextmanager
def on_one_core(pid: int) -> Iterator[None]:
    """Run this thread and `pid` in turn on the same core.

    On two, who pays for waking up whom is a matter of luck, and makes a round trip cost three
    times as much, or not.
    """
    before = os.sched_getaffinity(0)
    core = {max(before)}
    os.sched_setaffinity(pid, core)
    os.sched_setaffinity(0, core)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
