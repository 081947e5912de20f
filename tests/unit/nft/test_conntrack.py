"""What the kernel says of a flow, as octets that a kernel sent."""

from __future__ import annotations

from ipaddress import ip_address

from egress_proxy.netlink import NESTED, attribute
from egress_proxy.nft.conntrack import read_flow


def nested(kind: int, *parts: bytes) -> bytes:
    return attribute(kind | NESTED, b"".join(parts))


def message(addresses: bytes, proto: bytes, status: int) -> bytes:
    return (
        b"\x02\0\0\0"
        + nested(1, addresses, proto)
        + attribute(3, status.to_bytes(4))
        + attribute(12, b"\0\0\0\x07")
    )


def test_a_tcp_flow_that_is_translated() -> None:
    addresses = nested(1, attribute(1, b"\xc6\x33\x64\x0a"), attribute(2, b"\xc0\0\x02\x0a"))
    proto = nested(2, attribute(1, b"\x06"), attribute(2, b"\x9c\x40"), attribute(3, b"\0\x50"))
    flow = read_flow(message(addresses, proto, 0x3A8))
    assert (flow.source, flow.target) == (ip_address("198.51.100.10"), ip_address("192.0.2.10"))
    assert (flow.protocol, flow.port, flow.translated) == (6, 80, True)
    assert (flow.tuple, flow.number) == (addresses + proto, b"\0\0\0\x07")


def test_an_icmpv6_flow_that_is_not() -> None:
    client, pod = ip_address("2001:db8::10"), ip_address("2001:db8::1")
    addresses = nested(1, attribute(3, client.packed), attribute(4, pod.packed))
    proto = nested(2, attribute(1, b"\x3a"), attribute(7, b"\0\x01"))
    flow = read_flow(message(addresses, proto, 0x8))
    assert (flow.source, flow.target) == (client, pod)
    assert (flow.protocol, flow.port, flow.translated) == (58, None, False)
