"""What the records add up to."""

from __future__ import annotations

import time

from egress_proxy.events import (
    ConfigRejected,
    ConfigReloaded,
    ConnectionClosed,
    DaemonDefect,
    DaemonStopped,
    DestinationChanged,
    DestinationResolved,
    DestinationStale,
    DestinationUnresolved,
    Event,
    Reason,
    UpstreamFailed,
    UpstreamRecovered,
)
from egress_proxy.telemetry.counters import BOUNDS_S, Counters


def closed(
    reason: Reason = Reason.FINISHED,
    *,
    port: int = 80,
    connect_s: float | None = 0.001,
    up: int = 0,
    down: int = 0,
) -> ConnectionClosed:
    return ConnectionClosed(
        listener=port,
        destination="a.example:80",
        client=("10.128.0.7", 40000),
        address=None,
        source=None,
        bytes_to_upstream=up,
        bytes_to_client=down,
        duration_s=1.0,
        connect_s=connect_s,
        attempts=1,
        reason=reason,
    )


def tally_of(*records: Event) -> Counters:
    counters = Counters()
    for record in records:
        counters.observe(record)
    return counters


RESOLVED = DestinationResolved(
    destination="a.example", addresses=("192.0.2.1", "127.0.0.1"), ttl_s=30, lookup_s=0.1
)
CHANGED = DestinationChanged(destination="a.example", addresses=("192.0.2.1",), before=())
STALE = DestinationStale(
    destination="a.example", error="timed out", addresses=("192.0.2.1",), retry_s=1
)
UNRESOLVED = DestinationUnresolved(destination="a.example", error="no such name", retry_s=1)


def test_connections_by_destination_and_reason() -> None:
    counters = tally_of(
        closed(up=1, down=10),
        closed(up=2, down=20),
        closed(Reason.DENIED_CLIENT, connect_s=None),
        closed(Reason.IDLE_TIMEOUT, port=81, up=3),
        DaemonStopped(reset=0),
    )
    assert set(counters.ended) == {(80, "a.example:80"), (81, "a.example:80")}
    ended = counters.ended[80, "a.example:80"]
    assert {reason: count for reason, count in ended.reasons.items() if count} == {
        "finished": 2,
        "denied_client": 1,
    }
    assert list(ended.reasons) == list(map(str, Reason))
    assert (ended.total, ended.bytes_to_upstream, ended.bytes_to_client) == (3, 3, 30)
    assert ended.last_failure is None


def test_the_last_failure_is_one_that_the_destination_is_to_blame_for() -> None:
    ended = tally_of(
        closed(Reason.CONNECT_REFUSED), closed(Reason.CONNECT_TIMEOUT), closed(Reason.CLIENT_RESET)
    ).ended[80, "a.example:80"]
    assert ended.last_failure is not None
    assert ended.last_failure.what == Reason.CONNECT_TIMEOUT
    assert time.time() - 60 < ended.last_failure.at <= time.time()


def test_how_long_connecting_took() -> None:
    # On a bound, as Prometheus' le has it, is within it.
    times = (
        tally_of(
            closed(connect_s=0.001),
            closed(connect_s=0.3),
            closed(connect_s=60.0),
            closed(connect_s=None),
            closed(port=81),
        )
        .ended[80, "a.example:80"]
        .connect_times
    )
    assert dict(zip(BOUNDS_S, times.within, strict=True)) == {
        0.001: 1,
        0.005: 1,
        0.025: 1,
        0.1: 1,
        0.25: 1,
        1.0: 2,
        3.0: 2,
        10.0: 2,
    }
    assert (times.count, times.sum_s) == (3, 60.301)


def test_a_name_from_its_first_answer_to_an_outage() -> None:
    counters = Counters()
    assert (counters.name("a.example").last_success, counters.name("a.example").addresses) == (
        None,
        0,
    )
    counters = tally_of(UNRESOLVED)
    before = counters.name("a.example")
    assert before.last_failure is not None
    assert (before.last_failure.what, before.stale) == ("no such name", False)
    counters.observe(RESOLVED)
    counters.observe(CHANGED)
    fresh = counters.name("a.example")
    # One address of the answer is denied, so one is in use.
    assert (fresh.addresses, fresh.stale) == (1, False)
    assert 29 < fresh.fresh_until - time.time() <= 30
    assert fresh.last_success is not None
    counters.observe(STALE)
    stale = counters.name("a.example")
    assert (stale.addresses, stale.stale) == (1, True)
    assert stale.lookups == {"resolved": 1, "stale": 1, "unresolved": 1}
    counters.observe(RESOLVED)
    assert not counters.name("a.example").stale


def test_failures_of_upstreams_by_destination_until_it_is_forgotten() -> None:
    address = "192.0.2.1"
    failed = UpstreamFailed(destination="a.example:80", address=address, error="", retry_s=10)
    recovered = UpstreamRecovered(destination="a.example:80", address=address)
    counters = tally_of(failed, recovered, failed, closed())
    assert (
        counters.upstream_failures["a.example:80"],
        counters.upstream_failures["b.example:80"],
    ) == (
        2,
        0,
    )
    counters.retain_only({(81, "a.example:80")}, ())
    assert counters.upstream_failures == {"a.example:80": 2}
    counters.retain_only({(81, "b.example:80")}, ())
    assert counters.upstream_failures == {}


def test_reloads() -> None:
    good = ConfigReloaded(added=(), changed=(), removed=(), unchanged=1)
    counters = tally_of(good, ConfigRejected(problems=("line 1",)))
    reloads = counters.reloads
    assert (reloads.reloaded, reloads.rejected, reloads.problems) == (1, 1, ("line 1",))
    assert reloads.last is not None
    counters.observe(good)
    assert (counters.reloads.reloaded, counters.reloads.problems) == (2, ())


def test_defects() -> None:
    assert tally_of(closed()).defects == 0
    defect = DaemonDefect.of(ValueError("a defect"), "reload")
    assert tally_of(defect, defect).defects == 2


def test_what_is_not_kept_is_forgotten() -> None:
    counters = tally_of(closed(), closed(port=81), RESOLVED)
    counters.retain_only({(81, "a.example:80")}, {"a.example"})
    assert set(counters.ended) == {(81, "a.example:80")}
    assert counters.name("a.example").lookups["resolved"] == 1
    counters.retain_only({(81, "a.example:80")}, ())
    assert counters.name("a.example").lookups["resolved"] == 0
