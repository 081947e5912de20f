"""What is known of a destination's addresses: their turn, their failures, their replacement."""

from __future__ import annotations

import socket
from collections import Counter
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_proxy.events import UpstreamFailed, UpstreamRecovered
from egress_proxy.forwarding.race import ATTEMPT_DELAY_S
from egress_proxy.forwarding.upstreams import PENALTY_S, Endpoint, Upstreams
from tests.support.manual_loop import ManualLoop

if TYPE_CHECKING:
    from egress_proxy.events import Event

A, B, C, D = map(ip_address, ("192.0.2.1", "192.0.2.2", "2001:db8::3", "192.0.2.4"))
NOW = 1000.0


class Recorder:
    def __init__(self) -> None:
        self.records: list[Event] = []

    def observe(self, record: Event) -> None:
        self.records.append(record)


def make_upstreams(recorder: Recorder | None = None) -> Upstreams:
    return Upstreams("web.example.com:443", 443, recorder or Recorder())


def addresses_of(upstreams: Upstreams) -> list[object]:
    return [endpoint.address for endpoint in upstreams.endpoints]


@pytest.fixture
def upstreams() -> Upstreams:
    known = make_upstreams()
    known.replace([A, B, C])
    return known


def firsts(upstreams: Upstreams, clients: int, now: float = NOW) -> list[str]:
    return [str(upstreams.in_order(now)[0].address) for _ in range(clients)]


def endpoint_of(upstreams: Upstreams, address: object) -> Endpoint:
    [endpoint] = [each for each in upstreams.in_order(NOW) if each.address == address]
    return endpoint


@pytest.mark.parametrize(
    ("address", "family"), [("192.0.2.1", socket.AF_INET), ("2001:db8::3", socket.AF_INET6)]
)
def test_an_endpoint_is_what_a_socket_connects_to(
    address: str, family: socket.AddressFamily
) -> None:
    endpoint = Endpoint(ip_address(address), 443, make_upstreams())
    assert (endpoint.family, endpoint.sockaddr) == (family, (address, 443))


def test_without_addresses_there_is_nothing_to_try() -> None:
    assert list(make_upstreams().in_order(NOW)) == []


def test_one_address_is_tried_whether_it_failed_or_not() -> None:
    upstreams = make_upstreams()
    upstreams.replace([A])
    for failed_until in (0.0, NOW + 10):
        [endpoint] = upstreams.in_order(NOW)
        assert endpoint.address == A
        endpoint.failed_until = failed_until


def test_each_client_begins_with_the_next_address(upstreams: Upstreams) -> None:
    orders = [[each.address for each in upstreams.in_order(NOW)] for _ in range(6)]
    assert orders[:3] == orders[3:]
    assert sorted(map(str, orders)) == sorted(map(str, 2 * [[A, C, B], [C, B, A], [B, A, C]]))
    assert orders[1][0] == orders[0][1]


def test_an_address_that_failed_is_tried_last_until_its_time_is_over(upstreams: Upstreams) -> None:
    endpoint_of(upstreams, B).failed_until = NOW + 10
    for _ in range(3):
        assert [each.address for each in upstreams.in_order(NOW + 9.9)][-1] == B


def test_one_client_tries_an_address_whose_penalty_is_over_and_the_others_wait(
    upstreams: Upstreams,
) -> None:
    failed = endpoint_of(upstreams, B)
    failed.mark_failed(NOW, "Connection refused")
    later = NOW + PENALTY_S
    assert Counter(firsts(upstreams, 300, later))[str(B)] == 1
    # It gave no answer: one more after the same time.
    assert Counter(firsts(upstreams, 300, later + PENALTY_S))[str(B)] == 1
    failed.mark_healthy()
    assert Counter(firsts(upstreams, 300, later + PENALTY_S))[str(B)] == 100


class Clients:
    """A thousand in a minute, each served as a race would, by addresses of which `A` answers.

    `B` refuses, `C` is silent. `tried` counts the attempts, `took_s` is the time of each client.
    """

    def __init__(self) -> None:
        self.tried: Counter[object] = Counter()
        self.took_s: list[float] = []
        self._upstreams = make_upstreams()
        self._upstreams.replace([A, B, C])
        self._loop = ManualLoop(NOW)
        for number in range(1000):
            self._loop.call_later(number * 0.06, self._begin)
        self._loop.advance(61)

    def _begin(self) -> None:
        started_at = self._loop.time()
        left = iter(self._upstreams.in_order(started_at))
        silent: list[Endpoint] = []

        def attempt() -> None:
            now = self._loop.time()
            for endpoint in left:
                self.tried[endpoint.address] += 1
                if endpoint.address == C:
                    silent.append(endpoint)
                    self._loop.call_later(ATTEMPT_DELAY_S, attempt)
                    return
                if endpoint.address == A:
                    break
                endpoint.mark_failed(now, "Connection refused")
            for beaten in silent:
                beaten.mark_failed(now, "silent while another address answered")
            self.took_s.append(now - started_at)

        attempt()


def test_of_a_thousand_clients_one_in_ten_seconds_probes_each_failed_address() -> None:
    clients = Clients()
    assert len(clients.took_s) == clients.tried[A] == 1000
    # Two may find out at first, and then every ten seconds one.
    assert 6 <= clients.tried[B] <= 7
    assert 6 <= clients.tried[C] <= 8
    assert sum(took_s > 0 for took_s in clients.took_s) == clients.tried[C]
    assert max(clients.took_s) == pytest.approx(ATTEMPT_DELAY_S)


def test_the_turns_of_a_failed_address_are_shared_by_all_others(upstreams: Upstreams) -> None:
    endpoint_of(upstreams, B).mark_failed(NOW, "Connection refused")
    assert Counter(firsts(upstreams, 300)) == {str(A): 150, str(C): 150}


def test_a_failure_and_its_end_are_reported_once() -> None:
    recorder = Recorder()
    upstreams = make_upstreams(recorder)
    upstreams.replace([A, B])
    endpoint = endpoint_of(upstreams, B)
    endpoint.mark_healthy()
    for now in (NOW, NOW + 1, NOW + 20):
        endpoint.mark_failed(now, "Connection refused")
    endpoint.mark_healthy()
    endpoint.mark_healthy()
    destination = "web.example.com:443"
    assert recorder.records == [
        UpstreamFailed(
            destination=destination, address=str(B), error="Connection refused", retry_s=PENALTY_S
        ),
        UpstreamRecovered(destination=destination, address=str(B)),
    ]


def test_the_families_alternate() -> None:
    upstreams = make_upstreams()
    sixes = [ip_address(f"2001:db8::{number}") for number in range(1, 4)]
    upstreams.replace([*sixes, A, B])
    assert addresses_of(upstreams) == [sixes[0], A, sixes[1], B, sixes[2]]


def test_when_all_have_failed_all_are_tried_in_turn(upstreams: Upstreams) -> None:
    for endpoint in upstreams.in_order(NOW):
        endpoint.failed_until = NOW + 10
    assert len(upstreams.in_order(NOW)) == 3
    assert set(firsts(upstreams, 3)) == {str(A), str(B), str(C)}


def test_new_addresses_keep_what_is_known_of_those_that_stay(upstreams: Upstreams) -> None:
    kept = endpoint_of(upstreams, B)
    kept.failed_until = NOW + 10
    endpoint_of(upstreams, C).failed_until = NOW + 10
    upstreams.replace([D, B])
    assert addresses_of(upstreams) == [D, B]
    assert endpoint_of(upstreams, B) is kept
    assert set(firsts(upstreams, 4)) == {str(D)}
    # One that was away begins anew.
    upstreams.replace([C, B])
    assert set(firsts(upstreams, 4)) == {str(C)}


def test_an_order_that_was_handed_out_does_not_change(upstreams: Upstreams) -> None:
    order = upstreams.in_order(NOW)
    before = list(order)
    upstreams.replace([D])
    assert list(order) == before


def test_a_smaller_set_does_not_upset_the_turn(upstreams: Upstreams) -> None:
    firsts(upstreams, 2)
    upstreams.replace([A, B])
    assert Counter(firsts(upstreams, 100)) == {str(A): 50, str(B): 50}
    upstreams.replace([])
    assert list(upstreams.in_order(NOW)) == []


@given(
    failed=st.lists(st.booleans(), min_size=1, max_size=60),
    clients=st.integers(0, 70),
)
def test_an_order_holds_every_address_once_and_the_failed_ones_last(
    failed: list[bool], clients: int
) -> None:
    upstreams = make_upstreams()
    upstreams.replace([ip_address(0xC0000200 + number) for number in range(len(failed))])
    for endpoint, has_failed in zip(upstreams.in_order(NOW), failed, strict=True):
        endpoint.failed_until = NOW + 1 if has_failed else 0.0
    for _ in range(clients):
        order = upstreams.in_order(NOW)
        assert {each.address for each in order} == set(addresses_of(upstreams))
        assert len(order) == len(failed)
        lately_failed = [each.failed_until > NOW for each in order]
        assert lately_failed == sorted(lately_failed)
