"""What the kernel says of a flow, as octets that a kernel sent."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_proxy.netlink import NESTED, attribute
from egress_proxy.nft.conntrack import End, TcpState, glance, read_flow


def nested(kind: int, *parts: bytes) -> bytes:
    return attribute(kind | NESTED, b"".join(parts))


def message(addresses: bytes, proto: bytes, status: int) -> bytes:
    return (
        b"\x02\0\0\0"
        + nested(1, addresses, proto)
        + nested(2, addresses, proto)
        + attribute(3, status.to_bytes(4))
        + attribute(8, b"\0\0\x12\x34")
        + attribute(7, b"\0\0\0\x3c")
        + attribute(12, b"\0\0\0\x07")
    )


def test_a_tcp_flow_that_is_translated() -> None:
    addresses = nested(1, attribute(1, b"\xc6\x33\x64\x0a"), attribute(2, b"\xc0\0\x02\x0a"))
    proto = nested(2, attribute(1, b"\x06"), attribute(2, b"\x9c\x40"), attribute(3, b"\0\x50"))
    flow = read_flow(message(addresses, proto, 0x3AA))
    assert flow.source == End(ip_address("198.51.100.10"), 40000)
    assert flow.target == End(ip_address("192.0.2.10"), 80)
    assert (flow.protocol, flow.translated, flow.state) == (6, True, TcpState.NONE)
    assert (flow.answered, flow.mark, flow.left_s) == (True, 0x1234, 60)
    assert (flow.tuple, flow.number) == (addresses + proto, b"\0\0\0\x07")


def test_an_icmpv6_flow_that_is_not() -> None:
    client, pod = ip_address("2001:db8::10"), ip_address("2001:db8::1")
    addresses = nested(1, attribute(3, client.packed), attribute(4, pod.packed))
    proto = nested(2, attribute(1, b"\x3a"), attribute(7, b"\0\x01"))
    flow = read_flow(message(addresses, proto, 0x8))
    assert (flow.source, flow.target) == (End(client, None), End(pod, None))
    assert (flow.protocol, flow.translated) == (58, False)


@pytest.mark.parametrize(
    ("state", "expected"),
    [(b"\x03", TcpState.ESTABLISHED), (b"\x07", TcpState.TIME_WAIT), (b"\x2a", TcpState.NONE)],
)
def test_the_state_of_tcp_and_the_octets(state: bytes, expected: TcpState) -> None:
    addresses = nested(1, attribute(1, b"\xc6\x33\x64\x0a"), attribute(2, b"\xc0\0\x02\x0a"))
    proto = nested(2, attribute(1, b"\x06"), attribute(2, b"\x9c\x40"), attribute(3, b"\0\x50"))
    flow = read_flow(
        message(addresses, proto, 0)
        + nested(4, nested(1, attribute(1, state)))
        + nested(9, attribute(1, bytes(8)), attribute(2, (1000).to_bytes(8)))
    )
    assert (flow.state, flow.sent, flow.received) == (expected, 1000, None)


@given(st.sampled_from(TcpState), st.integers(0, 0xFFF))
def test_a_glimpse_says_the_same_as_the_flow(state: TcpState, status: int) -> None:
    pod = ip_address("2001:db8::1")
    addresses = nested(1, attribute(3, pod.packed), attribute(4, pod.packed))
    proto = nested(2, attribute(1, b"\x06"), attribute(2, b"\x9c\x40"), attribute(3, b"\0\x50"))
    body = message(addresses, proto, status) + nested(4, nested(1, attribute(1, bytes([state]))))
    flow, glimpse = read_flow(body), glance(body)
    assert (glimpse.tuple, glimpse.state, glimpse.mark) == (flow.tuple, flow.state, flow.mark)
    assert (glimpse.translated, glimpse.answered) == (flow.translated, flow.answered)
    assert flow.state == state


@given(st.binary(max_size=80))
def test_any_octets_are_a_glimpse(body: bytes) -> None:
    glance(body)
