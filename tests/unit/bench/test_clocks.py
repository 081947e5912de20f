from __future__ import annotations

import os
import time

import pytest

from bench.clocks import Times, parse_stat, process_seconds, resident_octets

STAT = """\
cpu  45881 10 17453 410450 1449 0 306 42 0 0
cpu0 22940 5 8726 205225 724 0 153 21 0 0
intr 1
"""


def test_idleness_has_iowait_and_steal_is_apart() -> None:
    idle, steal = parse_stat(STAT)
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    assert idle == pytest.approx((410450 + 1449) / ticks_per_s)
    assert steal == pytest.approx(42 / ticks_per_s)


def test_a_process_is_charged_what_it_used() -> None:
    before = process_seconds(os.getpid())
    assert before == pytest.approx(time.process_time(), abs=0.1)
    sum(range(200_000))
    assert process_seconds(os.getpid()) > before


def test_a_process_has_memory() -> None:
    assert resident_octets(os.getpid()) > 2**20


def test_what_is_left_of_two_cores() -> None:
    times = Times(wall=10, proxy=4, load=8, network=1, idle=5, steal=1)
    assert times.busy(2) == 14
    assert times.foreign(2) == 1


def test_rounding_makes_no_time_negative() -> None:
    times = Times(wall=10, proxy=4, load=0, network=0, idle=20.01, steal=0)
    assert times.busy(2) == 0
    assert times.foreign(2) == 0


def test_times_between_two_moments() -> None:
    earlier = Times(wall=1, proxy=1, load=1, network=1, idle=1, steal=1)
    later = Times(wall=2, proxy=3, load=4, network=5, idle=6, steal=7)
    assert later - earlier == Times(wall=1, proxy=2, load=3, network=4, idle=5, steal=6)
