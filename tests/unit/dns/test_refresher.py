"""The life of a name's addresses, in simulated time and with scripted answers."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_proxy.config.address_policy import AddressPolicy
from egress_proxy.dns.answer import Answer, FamilyFailure, LookupFailedError
from egress_proxy.dns.refresher import NameRefresher
from egress_proxy.events import (
    DaemonDefect,
    DestinationChanged,
    DestinationDenied,
    DestinationResolved,
    DestinationStale,
    DestinationUnresolved,
    Event,
)
from tests.support.manual_loop import run_simulated

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from egress_proxy.ip import Address

NAME = "web.example.com"
OUTAGE = LookupFailedError("no answer within 10 s")
NEVER = AddressPolicy()
DENIED = "every address in the answer is one that is never connected to"


def answer(*addresses: str, ttl_s: float = 60) -> Answer:
    return Answer(tuple(map(ip_address, addresses)), ttl_s)


ONE = answer("192.0.2.1")
TWO = answer("192.0.2.1", "192.0.2.2")


class Port:
    """A subscriber, and the addresses that it got."""

    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []
        self.remote_port = 443
        self.on_all_failed: Callable[[], None] = lambda: None

    def set_addresses(self, addresses: Sequence[Address]) -> None:
        self.told.append(tuple(map(str, addresses)))


@dataclass
class Life:
    """The history of a name: when it was looked up, what subscribers got, what was recorded."""

    asked_at: list[float] = field(default_factory=list)
    records: list[Event] = field(default_factory=list)
    ports: list[Port] = field(default_factory=lambda: [Port(), Port()])

    def observe(self, record: Event) -> None:
        self.records.append(record)

    @property
    def intervals(self) -> list[float]:
        return [later - earlier for earlier, later in pairwise(self.asked_at)]

    def told(self, kind: type[Event]) -> list[Event]:
        return [record for record in self.records if isinstance(record, kind)]


def live(  # noqa: PLR0913 - each test has its own of these
    script: Sequence[Answer | LookupFailedError],
    seconds: float,
    *,
    lookup_s: float = 0.0,
    policy: AddressPolicy = NEVER,
    fail_every_s: float | None = None,
    stale_timeout_s: float = 0.0,
    life: Life | None = None,
) -> Life:
    """Keep a name for `seconds`; the last entry of `script` is the answer from then on.

    With `fail_every_s` a client finds all addresses failing so often.
    """
    life = life or Life()

    async def lookup(name: str) -> Answer:
        assert name == NAME
        life.asked_at.append(asyncio.get_running_loop().time())
        entry = script[min(len(life.asked_at), len(script)) - 1]
        await asyncio.sleep(lookup_s)
        if isinstance(entry, LookupFailedError):
            raise entry
        return entry

    async def main() -> None:
        refresher = NameRefresher(NAME, lookup, life, policy, stale_timeout_s)
        for port in life.ports:
            refresher.subscribe(port)
        try:
            async with asyncio.timeout(seconds):
                await asyncio.gather(refresher.run(), clients())
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
    assert life.records[:2] == [
        DestinationResolved(
            destination=NAME, addresses=("192.0.2.1", "192.0.2.2"), ttl_s=60, lookup_s=0.5
        ),
        DestinationChanged(destination=NAME, addresses=("192.0.2.1", "192.0.2.2"), before=()),
    ]
    assert {type(record) for record in life.records[2:]} == {DestinationResolved}
    assert len(life.records[2:]) == len(life.intervals)


def test_a_changed_answer_reaches_every_port() -> None:
    life = live([ONE, TWO, answer("2001:db8::3")], 200)
    told = [("192.0.2.1",), ("192.0.2.1", "192.0.2.2"), ("2001:db8::3",)]
    assert [port.told for port in life.ports] == 2 * [told]
    assert life.told(DestinationChanged) == [
        DestinationChanged(destination=NAME, addresses=after, before=before)
        for before, after in pairwise([(), *told])
    ]


def test_a_port_that_subscribes_later_gets_the_addresses_at_once() -> None:
    async def lookup(name: str) -> Answer:
        assert name == NAME
        return ONE

    async def main() -> None:
        refresher = NameRefresher(NAME, lookup, Life(), AddressPolicy())
        port = Port()
        running = asyncio.create_task(refresher.run())
        assert not refresher.asked.is_set()
        await refresher.asked.wait()
        refresher.subscribe(port)
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


def test_an_outage_keeps_the_last_good_addresses_and_is_reported() -> None:
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


BOTH = answer("192.0.2.1", "2001:db8::1")
NO_V6 = replace(answer("192.0.2.2"), failed=(FamilyFailure(6, "general failure"),))


def test_a_family_that_fails_keeps_its_last_good_addresses() -> None:
    life = live([BOTH, NO_V6, answer("192.0.2.2")], 150)
    assert life.ports[0].told == [
        ("192.0.2.1", "2001:db8::1"),
        ("192.0.2.2", "2001:db8::1"),
        # It has no address any longer: that is an answer.
        ("192.0.2.2",),
    ]
    [stale] = life.told(DestinationStale)
    assert isinstance(stale, DestinationStale)
    assert (stale.error, stale.addresses) == ("IPv6: general failure", ("2001:db8::1",))
    assert life.told(DestinationUnresolved) == []


def test_a_family_that_never_had_an_address_is_not_stale() -> None:
    life = live([NO_V6], 100)
    assert life.ports[0].told == [("192.0.2.2",)]
    assert life.told(DestinationStale) == []


def test_stale_addresses_expire_and_the_port_refuses_until_there_is_an_answer() -> None:
    failures = [OUTAGE] * 9
    life = live([ONE, *failures, TWO], 400, stale_timeout_s=100)
    assert life.ports[0].told == [("192.0.2.1",), (), ("192.0.2.1", "192.0.2.2")]
    stale, unresolved = life.told(DestinationStale), life.told(DestinationUnresolved)
    assert len(stale) + len(unresolved) == 9
    first = unresolved[0]
    assert isinstance(first, DestinationUnresolved)
    assert first.error == f"{OUTAGE}; no good answer for 100 s"
    # Looked up once more when they expire, and not only with the next retry.
    assert 100 in [round(at, 6) for at in life.asked_at]


def test_the_families_expire_one_by_one() -> None:
    life = live([BOTH, NO_V6], 400, stale_timeout_s=150)
    assert life.ports[0].told == [
        ("192.0.2.1", "2001:db8::1"),
        ("192.0.2.2", "2001:db8::1"),
        ("192.0.2.2",),
    ]
    assert life.told(DestinationUnresolved) == []


def test_a_port_with_a_defect_does_not_stop_the_others() -> None:
    class Defect(Port):
        def set_addresses(self, addresses: Sequence[Address]) -> None:
            super().set_addresses(addresses)
            raise LookupError("a defect")

    life = Life(ports=[Defect(), Port()])
    live([ONE, TWO], 100, life=life)
    told = [("192.0.2.1",), ("192.0.2.1", "192.0.2.2")]
    assert [port.told for port in life.ports] == 2 * [told]
    defects = life.told(DaemonDefect)
    assert [defect.where for defect in defects if isinstance(defect, DaemonDefect)] == [
        f"addresses of {NAME}",
        f"addresses of {NAME}",
    ]


def test_waiting_for_a_name_ends_when_it_is_dropped() -> None:
    async def lookup(name: str) -> Answer:
        assert name == NAME
        await asyncio.Event().wait()
        raise AssertionError

    async def main() -> None:
        refresher = NameRefresher(NAME, lookup, Life(), NEVER)
        running = asyncio.create_task(refresher.run())
        await asyncio.sleep(1)
        running.cancel()
        await refresher.asked.wait()
        await asyncio.gather(running, return_exceptions=True)

    run_simulated(main())


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
    life = live(
        [answer("127.0.0.1", "169.254.169.254")], 1, policy=AddressPolicy(loopback_allowed=True)
    )
    assert life.ports[0].told == [("127.0.0.1",)]


@given(
    script=st.lists(
        st.sampled_from([ONE, TWO, OUTAGE, answer("127.0.0.1"), answer("192.0.2.9", ttl_s=0)]),
        min_size=1,
        max_size=20,
    )
)
def test_no_answer_makes_a_port_lose_its_addresses(
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


def test_a_denied_address_is_reported_once_and_again_when_it_comes_back() -> None:
    both, good = answer("192.0.2.1", "127.0.0.1"), answer("192.0.2.1")
    life = live([both, both, good, both], 280)
    assert len(life.asked_at) >= 4
    assert len(life.told(DestinationDenied)) == 2


def leading_back(*own: str) -> AddressPolicy:
    return AddressPolicy(own=frozenset(map(ip_address, own)), listening=frozenset({443}))


def test_addresses_that_become_the_pods_own_are_dropped_at_once_and_come_back() -> None:
    life = Life()

    async def lookup(name: str) -> Answer:
        assert name == NAME
        life.asked_at.append(asyncio.get_running_loop().time())
        return TWO

    async def main() -> None:
        refresher = NameRefresher(NAME, lookup, life, NEVER)
        refresher.subscribe(life.ports[0])
        running = asyncio.create_task(refresher.run())
        await refresher.asked.wait()
        for own in (("192.0.2.1",), (), ("192.0.2.1", "192.0.2.2")):
            refresher.policy = leading_back(*own)
            refresher.reapply_policy()
        # With nothing left it is asked again, for others, and says why there are none.
        await asyncio.sleep(2)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run_simulated(main())
    assert life.ports[0].told == [
        ("192.0.2.1", "192.0.2.2"),
        ("192.0.2.2",),
        ("192.0.2.1", "192.0.2.2"),
        (),
    ]
    denied = [record.address for record in life.records if isinstance(record, DestinationDenied)]
    assert denied == ["192.0.2.1", "192.0.2.1", "192.0.2.2"]
    assert life.asked_at == pytest.approx([0, 1])
    assert life.told(DestinationUnresolved) == [
        DestinationUnresolved(destination=NAME, error=DENIED, retry_s=1.0)
    ]


def test_a_name_that_leads_back_to_a_listener_reaches_no_port() -> None:
    life = live([TWO], 10, policy=leading_back("192.0.2.1"))
    assert [port.told for port in life.ports] == 2 * [[("192.0.2.2",)]]


# Twelve hours ----------------------------------------------------------------------------------

HOURS_S = 12 * 3600.0
CHANGE_EVERY_S = 600.0
OUTAGES = ((3 * 3600.0, 4 * 3600.0), (7 * 3600.0, 7.5 * 3600.0))


def zone(now: float, ttl_s: float) -> Answer | None:
    """Two of many addresses, others every ten minutes; nothing during an outage."""
    if any(start <= now < end for start, end in OUTAGES):
        return None
    first = 0xC6336400 + int(now / CHANGE_EVERY_S)
    return answer(str(ip_address(first)), str(ip_address(first + 1)), ttl_s=ttl_s)


class Hours:
    """The answers for a name in twelve hours, and when; nothing that grows is kept."""

    def __init__(self, ttl_s: float) -> None:
        self.ttl_s = ttl_s
        self.questions = 0
        self.good: Answer | None = None
        self.kinds: Counter[type[Event]] = Counter()
        self.wrong = 0
        self.told: tuple[Address, ...] = ()
        self.blocks: list[int] = []

    def observe(self, record: Event) -> None:
        self.kinds[type(record)] += 1

    def set_addresses(self, addresses: Sequence[Address]) -> None:
        self.told = tuple(addresses)

    async def lookup(self, name: str) -> Answer:
        assert name == NAME
        self.questions += 1
        found = zone(asyncio.get_running_loop().time(), self.ttl_s)
        if found is None:
            # A new one: each raise of an old one would make its traceback longer.
            raise LookupFailedError(str(OUTAGE))
        self.good = found
        return found

    async def compare(self) -> None:
        """Every minute, hold what is used against the last good answer; every hour, count."""
        while True:
            for _ in range(60):
                await asyncio.sleep(60)
                assert self.good is not None
                self.wrong += set(self.told) != set(self.good.addresses)
            gc.collect()
            self.blocks.append(sys.getallocatedblocks())

    async def live(self) -> None:
        refresher = NameRefresher(NAME, self.lookup, self, AddressPolicy())
        refresher.tell(self.set_addresses)
        try:
            async with asyncio.timeout(HOURS_S + 1):
                await asyncio.gather(refresher.run(), self.compare())
        except TimeoutError:
            pass


@pytest.mark.parametrize(("ttl_s", "interval_s"), [(0, 5), (30, 30), (3600, 300)])
def test_twelve_hours_of_a_changing_zone(ttl_s: float, interval_s: float) -> None:
    hours = Hours(ttl_s)
    run_simulated(hours.live())
    assert hours.wrong == 0
    down_s = sum(end - start for start, end in OUTAGES)
    up_s = HOURS_S - down_s
    # In an outage a question every 30 s, and five before it comes to that. An interval at the
    # edge of an outage belongs to both.
    edges = 2 * len(OUTAGES)
    least = up_s / (1.1 * interval_s) + down_s / 30 - edges * (1 + interval_s / 30)
    most = up_s / interval_s + down_s / 30 + edges * 5
    assert least <= hours.questions <= most
    # Every ten minutes one; what changed during an outage is seen as one when it is over.
    changes = up_s / CHANGE_EVERY_S
    assert changes - edges <= hours.kinds[DestinationChanged] <= changes + edges
    assert hours.kinds[DestinationUnresolved] == 0
    assert hours.kinds[DestinationResolved] + hours.kinds[DestinationStale] == hours.questions
    assert len(hours.blocks) == 12
    # After the first hour nothing grows, with however many questions.
    assert hours.blocks[-1] - hours.blocks[0] < 50
