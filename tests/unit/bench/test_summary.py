from __future__ import annotations

import pytest

from bench.clocks import Times
from bench.samples import IDLE, Sample
from bench.summary import Ratio, summarize


def sample(number: int, peer: str, proxy: float, *, load: str = "kept") -> Sample:
    """A thousand requests in one second of two cores; `proxy` is in milliseconds."""
    return Sample(
        number=number,
        load=load,
        peer=peer,
        amount=1000,
        times=Times(wall=1, proxy=proxy / 1000, load=0.5, network=0.1, idle=0.6, steal=0.02),
        latency_us=proxy * 2,
    )


def figures(ratio: Ratio | None) -> tuple[float, float, float]:
    assert ratio is not None
    return ratio.middle, ratio.low, ratio.high


def test_medians_of_figures_and_of_ratios() -> None:
    samples = [
        sample(0, "ours", 10),
        sample(0, "theirs", 20),
        sample(1, "theirs", 10),
        sample(1, "ours", 20),
        sample(2, "ours", 30),
        sample(2, "theirs", 30),
    ]
    ours, theirs = summarize(samples, "ours", cores=2)
    assert (ours.peer, ours.load, ours.rounds) == ("ours", "kept", 3)
    assert ours.rate == 1000
    assert ours.proxy_cost == pytest.approx(20)
    assert ours.proxy_core == pytest.approx(0.02)
    assert ours.latency_us == 40
    assert ours.machine_cost == pytest.approx(1380)
    assert ours.idle == pytest.approx(0.3)
    assert figures(theirs.proxy_ratio) == pytest.approx((1, 0.5, 2))
    assert figures(theirs.machine_ratio) == pytest.approx((1, 1, 1))
    assert figures(theirs.latency_ratio) == pytest.approx((1, 0.5, 2))


def test_the_worst_round_disturbs() -> None:
    calm, disturbed = sample(0, "ours", 700), sample(1, "ours", 100)
    (row,) = summarize([calm, disturbed], "ours", cores=2)
    # 1.38 s busy, of which the proxy used 0.1 s, the load 0.5 s, the kernel 0.1 s; and the steal.
    assert row.disturbance == pytest.approx((0.68 + 0.02) / 2)


def test_bulk_is_counted_in_seconds_per_gigabyte() -> None:
    (row,) = summarize([sample(0, "ours", 500, load="bulk-1")], "ours", cores=2)
    assert row.proxy_cost == pytest.approx(0.0005)


def test_requests_beside_idle_connections_are_a_load_of_their_own() -> None:
    rows = summarize([sample(0, "ours", 10), sample(0, "ours", 30, load=IDLE)], "ours", cores=2)
    assert [row.load for row in rows] == ["kept", IDLE]
    assert [row.proxy_cost for row in rows] == pytest.approx([10, 30])


def test_without_us_there_is_no_ratio() -> None:
    (row,) = summarize([sample(0, "theirs", 10)], "ours", cores=2)
    assert row.proxy_ratio is None
    assert row.latency_ratio is None
