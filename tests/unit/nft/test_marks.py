"""Figures of destinations from the rules' counters and the list of flows; no kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from egress_proxy.config.destinations import Destination
from egress_proxy.forwarding.forwarder import Forwarder
from egress_proxy.forwarding.listener import Listener
from egress_proxy.nft.command import Counted
from egress_proxy.nft.conntrack import IPS_DST_NAT, IPS_SEEN_REPLY, Glimpse, TcpState
from egress_proxy.nft.marks import Marked, Marks, Present, present_flows
from tests.support.sockets import Plane
from tests.unit.nft.test_flow_sessions import LIMITS

if TYPE_CHECKING:
    from egress_proxy.forwarding.connection import Origin

ANSWERED = IPS_DST_NAT | IPS_SEEN_REPLY


def origin(port: int = 80, host: str = "web.example.com") -> Origin:
    plane = Plane().plane
    listener = Listener(plane, port, "", lambda *_: None)
    return Forwarder(plane, LIMITS, Destination(port, host, 443, 1), listener).origin


@pytest.fixture
def marks() -> Marks:
    return Marks()


@pytest.fixture
def web(marks: Marks) -> Marked:
    return marks.add(80, origin())


def counters(entry: Marked, new: int, up: int = 0, down: int = 0) -> dict[str, Counted]:
    name = f"{entry.port}_{entry.mark:08x}"
    return {
        f"new_{name}": Counted(new, 60 * new),
        f"up_{name}": Counted(up, up),
        f"down_{name}": Counted(down, down),
    }


def figures(entry: Marked) -> tuple[int, int, int]:
    live = entry.origin.live
    return live.active, live.ended, live.established


def test_flows_by_mark() -> None:
    body = b""
    flows = [
        Glimpse(b"", ANSWERED, 8, TcpState.ESTABLISHED, body),
        Glimpse(b"", ANSWERED, 8, TcpState.TIME_WAIT, body),
        Glimpse(b"", IPS_DST_NAT, 8, TcpState.SYN_SENT, body),
        Glimpse(b"", ANSWERED, 9, TcpState.FIN_WAIT, body),
        Glimpse(b"", IPS_SEEN_REPLY, 9, TcpState.ESTABLISHED, body),
    ]
    assert present_flows(flows) == {8: Present(2, 1), 9: Present(1, 0)}


def test_what_has_begun_and_is_gone_has_ended(marks: Marks, web: Marked) -> None:
    assert marks.count(counters(web, 5, 100, 200), {web.mark: Present(3, 1)}) == 3
    assert figures(web) == (3, 2, 4)
    assert (web.origin.live.bytes_to_upstream, web.origin.live.bytes_to_client) == (100, 200)
    # As a record says it.
    web.recorded += 1
    web.failed += 1
    assert marks.count(counters(web, 6, 150, 200), {web.mark: Present(1)}) == 1
    assert figures(web) == (1, 4, 5)
    assert (web.origin.live.bytes_to_upstream, web.origin.live.bytes_to_client) == (150, 200)


def test_figures_of_what_has_ended_never_fall(marks: Marks, web: Marked) -> None:
    """A flow that begins between the counters and the list is counted with the next look."""
    marks.count(counters(web, 5), {})
    assert figures(web) == (0, 5, 5)
    marks.count(counters(web, 5), {web.mark: Present(2, 2)})
    assert figures(web) == (2, 5, 5)
    marks.count(counters(web, 7), {web.mark: Present(1)})
    assert figures(web) == (1, 6, 7)


def test_a_table_that_was_replaced_counts_from_zero(marks: Marks, web: Marked) -> None:
    marks.count(counters(web, 5, 100), {})
    marks.count(counters(web, 2, 10), {})
    assert (web.begun, web.origin.live.bytes_to_upstream) == (7, 110)


def test_flows_of_an_earlier_process_have_begun_too(marks: Marks, web: Marked) -> None:
    marks.take_over({web.mark: Present(3, 1), 81: Present(1)})
    marks.count(counters(web, 0), {web.mark: Present(3)})
    assert figures(web) == (3, 0, 3)


def test_the_same_destination_has_the_same_mark_in_every_process(web: Marked) -> None:
    assert web.mark == Marks().add(80, origin()).mark
    others = {Marks().add(81, origin(81)).mark, Marks().add(80, origin(host="b.example.com")).mark}
    assert web.mark not in others


def test_marks_that_collide_are_moved(marks: Marks) -> None:
    # Two texts with one checksum.
    first = marks.add(80, origin())
    first.port = 81
    second = marks.add(80, origin())
    assert second.mark == first.mark + 1
    assert marks.get(first.mark) is first


def test_a_removed_destination_is_kept_while_it_has_flows(marks: Marks, web: Marked) -> None:
    marks.count(counters(web, 1), {web.mark: Present(1)})
    assert not marks.retain(())
    marks.count(counters(web, 1), {})
    assert not marks.retain((web,))
    assert marks.retain(())
    assert list(marks) == []


def test_a_removed_destination_that_comes_back_keeps_its_figures(marks: Marks, web: Marked) -> None:
    marks.count(counters(web, 5, 100), {web.mark: Present(2)})
    before, after = web.origin, origin()
    assert marks.add(80, after) is web
    assert web.origin is after
    assert (after.live.ended, after.live.bytes_to_upstream) == (3, 100)
    assert (before.live.active, before.live.ended) == (0, 0)
