"""The rate of large answers."""

from __future__ import annotations

from egress_proxy.telemetry.admin import Allowance


def test_the_bytes_of_a_second_can_be_saved_up_and_not_more() -> None:
    allowance = Allowance(1000, now=50)
    assert [allowance.take(400, 60) for _ in range(4)] == [True, True, True, False]
    # 200 too many were taken.
    assert not allowance.take(1, 60.1)
    assert allowance.take(1, 60.3)


def test_an_answer_of_any_size_is_sent_and_later_ones_wait_for_it() -> None:
    allowance = Allowance(1000, now=0)
    assert allowance.take(5000, 0)
    assert not allowance.take(1, 3.9)
    assert allowance.take(1, 4.1)
