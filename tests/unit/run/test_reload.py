"""What a reload has to do."""

from __future__ import annotations

from ipaddress import ip_address

from egress_proxy.config.destinations import Destination
from egress_proxy.run.reload import Difference, compare

A = Destination(80, ip_address("192.0.2.1"), 80, 1)
B = Destination(81, "b.example", 443, 2)
C = Destination(82, "c.example", 82, 3)


def present(*destinations: Destination) -> dict[int, Destination]:
    return {destination.port: destination for destination in destinations}


def test_every_kind_of_difference() -> None:
    changed = Destination(81, "b.example", 444, 1)
    assert compare(present(A, B), [changed, C]) == Difference((C,), (changed,), (80,), 0)


def test_another_line_or_order_is_no_difference() -> None:
    moved = Destination(80, A.host, 80, 7)
    assert compare(present(A, B), [B, moved]) == Difference((), (), (), 2)


def test_another_host_is_a_change_and_so_is_an_address_for_a_name() -> None:
    for host in (ip_address("192.0.2.2"), "a.example"):
        other = Destination(80, host, 80, 1)
        assert compare(present(A), [other]) == Difference((), (other,), (), 0)
