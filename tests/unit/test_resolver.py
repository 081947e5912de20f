"""The life of a name's addresses, in simulated time and with scripted answers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_proxy.records import (
    DestinationChanged,
    DestinationDenied,
    DestinationResolved,
    DestinationStale,
    DestinationUnresolved,
    Record,
)
from egress_proxy.resolver import Answer, LookupFailedError, NameKeeper
from tests.support.manual_loop import run_simulated

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from egress_proxy.variables import Address

NAME = "web.example.com"
OUTAGE = LookupFailedError("no answer within 10 s")
DENIED = "every address in the answer is one that is never connected to"


def answer(*addresses: str, ttl_s: float = 60) -> Answer:
    return Answer(tuple(map(ip_address, addresses)), ttl_s)


ONE = answer("192.0.2.1")
TWO = answer("192.0.2.1", "192.0.2.2")


class Port:
    """A listener, and the addresses that it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []
        self.on_all_failed: Callable[[], None] = lambda: None

    def use(self, addresses: Sequence[Address]) -> None:
        self.told.append(tuple(map(str, addresses)))


@dataclass
class Life:
    """What happened to a name: when it was asked for, what was told, what was recorded."""

    asked_at: list[float] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    ports: list[Port] = field(default_factory=lambda: [Port(), Port()])

    def observe(self, record: Record) -> None:
        self.records.append(record)

    @property
    def intervals(self) -> list[float]:
        return [later - earlier for earlier, later in pairwise(self.asked_at)]

    def told(self, kind: type[Record]) -> list[Record]:
        return [record for record in self.records if isinstance(record, kind)]


def live(
    script: Sequence[Answer | LookupFailedError],
    seconds: float,
    *,
    lookup_s: float = 0.0,
    loopback_allowed: bool = False,
    fail_every_s: float | None = None,
) -> Life:
    """Keep a name for `seconds`; the last entry of `script` is the answer from then on.

    With `fail_every_s` a client finds all addresses failing so often.
    """
    life = Life()

    async def lookup(name: str) -> Answer:
        assert name == NAME
        life.asked_at.append(asyncio.get_running_loop().time())
        entry = script[min(len(life.asked_at), len(script)) - 1]
        await asyncio.sleep(lookup_s)
        if isinstance(entry, LookupFailedError):
            raise entry
        return entry

    async def main() -> None:
        keeper = NameKeeper(NAME, lookup, life, loopback_allowed=loopback_allowed)
        for port in life.ports:
            keeper.serve(port)
        try:
            async with asyncio.timeout(seconds):
                await asyncio.gather(keeper.run(), clients())
        except TimeoutError:
            pass

    async def clients() -> None:
        while fail_every_s is not None:
            await asyncio.sleep(fail_every_s)
            life.ports[0].on_all_failed()

    run_simulated(main())
    return life


@pytest.mark.parametrize(
    ("ttl_s", "shortest_s", "longest_s"),
    [
        (0, 5, 5.5),
        (1, 5, 5.5),
        (5, 5, 5.5),
        (60, 60, 66),
        (300, 300, 330),
        (86400, 300, 330),
    ],
)
def test_a_name_is_asked_for_again_when_its_ttl_is_over(
    ttl_s: float, shortest_s: float, longest_s: float
) -> None:
    intervals = live([answer("192.0.2.1", ttl_s=ttl_s)], 12 * 3600).intervals
    assert len(intervals) > 100
    assert all(shortest_s <= interval <= longest_s + 1e-6 for interval in intervals)
    # Jittered: not in step with the other names of the same answer.
    assert max(intervals) - min(intervals) > (longest_s - shortest_s) / 2


def test_an_unchanged_answer_is_recorded_and_disturbs_no_port() -> None:
    life = live([TWO, answer("192.0.2.2", "192.0.2.1")], 200, lookup_s=0.5)
    assert [port.told for port in life.ports] == 2 * [[("192.0.2.1", "192.0.2.2")]]
    assert life.records[:3] == [
        DestinationResolved(
            destination=NAME, addresses=("192.0.2.1", "192.0.2.2"), ttl_s=60, lookup_s=0.5
        ),
        DestinationChanged(destination=NAME, addresses=("192.0.2.1", "192.0.2.2"), before=()),
        DestinationResolved(
            destination=NAME, addresses=("192.0.2.2", "192.0.2.1"), ttl_s=60, lookup_s=0.5
        ),
    ]
    assert len(life.told(DestinationChanged)) == 1


def test_a_changed_answer_is_told_to_every_port() -> None:
    life = live([ONE, TWO, answer("2001:db8::3")], 200)
    told = [("192.0.2.1",), ("192.0.2.1", "192.0.2.2"), ("2001:db8::3",)]
    assert [port.told for port in life.ports] == 2 * [told]
    assert life.told(DestinationChanged) == [
        DestinationChanged(destination=NAME, addresses=after, before=before)
        for before, after in pairwise([(), *told])
    ]


def test_a_port_that_comes_later_is_told_at_once() -> None:
    async def lookup(name: str) -> Answer:
        assert name == NAME
        return ONE

    async def main() -> None:
        keeper = NameKeeper(NAME, lookup, Life(), loopback_allowed=False)
        port = Port()
        running = asyncio.create_task(keeper.run())
        assert not keeper.asked.is_set()
        await keeper.asked.wait()
        keeper.serve(port)
        assert port.told == [("192.0.2.1",)]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run_simulated(main())


BACKOFF = [1, 2, 4, 8, 16, 30, 30, 30]


def test_a_name_without_an_answer_is_retried_with_backoff() -> None:
    life = live([OUTAGE], sum(BACKOFF) + 1)
    assert life.intervals == pytest.approx(BACKOFF)
    assert life.records == [
        DestinationUnresolved(destination=NAME, error=str(OUTAGE), retry_s=retry_s)
        for retry_s in (*BACKOFF, 30)
    ]
    assert [port.told for port in life.ports] == [[], []]


def test_the_retry_comes_after_the_failed_look_up_not_with_it() -> None:
    life = live([OUTAGE], 100, lookup_s=10)
    assert life.intervals[:4] == pytest.approx([11, 12, 14, 18])


def test_a_late_name_serves_with_its_first_answer() -> None:
    life = live([OUTAGE, OUTAGE, ONE], 10)
    assert life.asked_at == pytest.approx([0, 1, 3])
    assert [port.told for port in life.ports] == 2 * [[("192.0.2.1",)]]


def test_an_outage_keeps_the_last_good_addresses_and_is_told() -> None:
    life = live([TWO, OUTAGE, OUTAGE, OUTAGE, TWO, OUTAGE, ONE], 300)
    assert [port.told for port in life.ports] == 2 * [[("192.0.2.1", "192.0.2.2"), ("192.0.2.1",)]]
    assert life.told(DestinationStale) == [
        DestinationStale(
            destination=NAME,
            error=str(OUTAGE),
            addresses=("192.0.2.1", "192.0.2.2"),
            retry_s=retry_s,
        )
        # A good answer sets the backoff back.
        for retry_s in (1, 2, 4, 1)
    ]
    assert life.told(DestinationUnresolved) == []
    assert life.intervals[1:4] == pytest.approx([1, 2, 4])
    assert life.intervals[5] == pytest.approx(1)


@pytest.mark.parametrize("fail_every_s", [0.001, 0.1, 0.9])
def test_when_all_addresses_fail_it_is_asked_again_at_most_once_a_second(
    fail_every_s: float,
) -> None:
    intervals = live([answer("192.0.2.1", ttl_s=300)], 100, fail_every_s=fail_every_s).intervals
    assert len(intervals) > 50
    assert all(0.999 < interval < 1.001 + fail_every_s for interval in intervals)


def test_when_all_addresses_fail_late_it_is_asked_again_at_once() -> None:
    life = live([answer("192.0.2.1", ttl_s=300)], 45, fail_every_s=20)
    assert life.asked_at == pytest.approx([0, 20, 40])


def test_an_early_question_finds_the_new_address() -> None:
    life = live([answer("192.0.2.1", ttl_s=300), answer("192.0.2.2")], 21, fail_every_s=20)
    assert life.ports[1].told == [("192.0.2.1",), ("192.0.2.2",)]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1", "a loopback address"),
        ("::1", "a loopback address"),
        ("169.254.169.254", "a link-local address"),
        ("::ffff:169.254.169.254", "an IPv4 address in IPv6 form"),
        ("64:ff9b::a9fe:a9fe", "a link-local address"),
        ("224.0.0.1", "a multicast address"),
        ("0.0.0.0", "an unspecified address"),
        ("255.255.255.255", "the broadcast address"),
    ],
)
def test_addresses_that_are_never_connected_to_reach_no_port(address: str, reason: str) -> None:
    denied = DestinationDenied(destination=NAME, address=str(ip_address(address)), error=reason)
    mixed = live([answer(address, "192.0.2.1")], 10)
    assert [port.told for port in mixed.ports] == 2 * [[("192.0.2.1",)]]
    assert mixed.records[0] == denied
    alone = live([answer(address)], 0.5)
    assert [port.told for port in alone.ports] == [[], []]
    assert alone.records == [
        denied,
        DestinationUnresolved(destination=NAME, error=DENIED, retry_s=1.0),
    ]


def test_a_good_name_that_turns_to_denied_addresses_keeps_the_good_ones() -> None:
    life = live([ONE, answer("127.0.0.1")], 70)
    assert [port.told for port in life.ports] == 2 * [[("192.0.2.1",)]]
    [stale, *_] = life.told(DestinationStale)
    assert stale == DestinationStale(
        destination=NAME, error=DENIED, addresses=("192.0.2.1",), retry_s=1.0
    )


def test_a_trial_may_reach_loopback_and_nothing_else_denied() -> None:
    life = live([answer("127.0.0.1", "169.254.169.254")], 1, loopback_allowed=True)
    assert life.ports[0].told == [("127.0.0.1",)]


@given(
    script=st.lists(
        st.sampled_from([ONE, TWO, OUTAGE, answer("127.0.0.1"), answer("192.0.2.9", ttl_s=0)]),
        min_size=1,
        max_size=20,
    )
)
def test_whatever_dns_says_no_port_ever_loses_its_addresses(
    script: list[Answer | LookupFailedError],
) -> None:
    life = live(script, 600)
    assert all(interval > 0.999 for interval in life.intervals)
    for port in life.ports:
        assert all(port.told)
        # Told when it changed, and only then.
        assert all(set(before) != set(after) for before, after in pairwise(port.told))
    good = [entry for entry in script[: len(life.asked_at)] if entry in {ONE, TWO}]
    assert bool(life.ports[0].told) >= bool(good)
