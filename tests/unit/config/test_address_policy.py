"""Which addresses are never connected to, in whatever form they come."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_proxy.config.address_policy import AddressPolicy

# Every kind of address that is never connected to, each in several spellings.
DENIED: list[tuple[str, str]] = [
    (address, reason)
    for reason, addresses in (
        ("a loopback address", "127.0.0.1 127.255.255.254 ::1 0:0:0:0:0:0:0:1"),
        ("a loopback address", "64:ff9b::127.0.0.1 64:ff9b::7f00:1"),
        ("a link-local address", "169.254.169.254 169.254.0.0 fe80::1 FEBF::1"),
        ("a link-local address", "64:ff9b::169.254.169.254 2002:a9fe:a9fe::1"),
        ("a loopback address", "2002:7f00:1:: 2002:7fff:ffff:ffff::"),
        ("a multicast address", "224.0.0.1 239.255.255.250 ff02::1 ffff:: 64:ff9b::e000:1"),
        ("an unspecified address", "0.0.0.0 0.1.2.3 :: 0::0.0.0.0 64:ff9b::"),
        ("the broadcast address", "255.255.255.255 64:ff9b::ffff:ffff"),
        ("an IPv4 address in IPv6 form", "::ffff:127.0.0.1 ::FFFF:a9fe:a9fe ::ffff:0.0.0.0"),
        ("an IPv4 address in IPv6 form", "0:0:0:0:0:ffff:192.0.2.1 ::127.0.0.1 ::192.0.2.1 ::2"),
        ("a reserved address", "240.0.0.1 255.255.255.254 64:ff9b::240.0.0.1"),
        ("a cloud's metadata address", "fd00:ec2::254 fd20:ce::254 168.63.129.16"),
        ("a cloud's metadata address", "100.100.100.200 192.0.0.192 64:ff9b::100.100.100.200"),
        ("an address of a local translator (RFC 8215)", "64:ff9b:1::1 64:ff9b:1:ffff::10.0.0.1"),
        # IPv4-translated, Teredo's server and (inverted) client, ISATAP.
        ("a link-local address", "::ffff:0:169.254.169.254"),
        ("a link-local address", "2001:0:a9fe:a9fe:: 2001:0:102:304::5601:5601"),
        ("a link-local address", "2001:db8::5efe:169.254.169.254"),
        ("a loopback address", "2001:db8:1:2:200:5efe:127.0.0.1 ::ffff:0:127.0.0.1"),
    )
    for address in addresses.split()
]

ALLOWED = [
    "1.1.1.1",
    "10.0.0.1",
    "126.255.255.255",
    "128.0.0.1",
    "169.253.255.255",
    "169.255.0.0",
    "192.168.0.1",
    "223.255.255.255",
    "2001:db8::1",
    "fd00::1",
    "fe7f::1",
    "fec0::1",
    "feff::1",
    "64:ff9b::192.0.2.1",
    "64:ff9b:2::1",
    "168.63.129.17",
    "2001:0:102:304::f7f7:f7f7",
    "::ffff:0:192.0.2.1",
    "2001:db8::5efe:192.0.2.1",
    "::fffe:0:1",
]


@pytest.mark.parametrize(("address", "reason"), DENIED)
def test_addresses_that_are_never_connected_to(address: str, reason: str) -> None:
    assert AddressPolicy().why_denied(ip_address(address)) == reason


@pytest.mark.parametrize("address", ALLOWED)
def test_addresses_beside_the_denied_ones(address: str) -> None:
    assert AddressPolicy().why_denied(ip_address(address)) is None


@pytest.mark.parametrize(("address", "reason"), DENIED)
def test_only_the_loopback_rule_can_be_lifted(address: str, reason: str) -> None:
    loopback = reason == "a loopback address"
    assert (
        AddressPolicy(loopback_allowed=True).why_denied(ip_address(address)) is None
    ) == loopback


@pytest.mark.parametrize("address", ["10.1.2.3", "64:ff9b::10.1.2.3", "2002:a01:203::"])
def test_networks_that_the_admin_denies(address: str) -> None:
    policy = AddressPolicy(networks=(ip_network("2001:db8::/32"), ip_network("10.0.0.0/8")))
    reason = "an address of the denied network 10.0.0.0/8"
    assert policy.why_denied(ip_address(address)) == reason
    assert policy.why_denied(ip_address("11.1.2.3")) is None


@pytest.mark.parametrize(
    "address",
    ["192.0.2.10", "2001:db8::10", "127.0.0.1", "127.0.0.2", "::1", "64:ff9b::192.0.2.10"],
)
def test_own_listeners_by_any_address_of_the_pod(address: str) -> None:
    policy = AddressPolicy(
        loopback_allowed=True,
        own=frozenset(map(ip_address, ("192.0.2.10", "2001:db8::10"))),
        listening=frozenset({80, 443}),
    )
    assert policy.why_denied(ip_address(address), (8080, 443)) == "one of the proxy's own listeners"
    assert policy.why_denied(ip_address(address), (8080,)) is None
    assert policy.why_denied(ip_address("192.0.2.11"), (443,)) is None


@given(number=st.integers(0, 2**32 - 1))
def test_an_ipv4_address_gets_the_same_decision_behind_a_translator(number: int) -> None:
    address = IPv4Address(number)
    translated = IPv6Address(int(IPv6Address("64:ff9b::")) | number)
    assert AddressPolicy().why_denied(translated) == AddressPolicy().why_denied(address)
    assert AddressPolicy().why_denied(IPv6Address(f"::ffff:{address}")) is not None


def test_the_network_and_broadcast_addresses_of_the_pods_own_networks() -> None:
    policy = AddressPolicy(reserved=frozenset(map(ip_address, ("192.0.2.0", "192.0.2.255"))))
    reason = "the network or broadcast address of one of the pod's networks"
    for address in ("192.0.2.0", "192.0.2.255", "64:ff9b::192.0.2.255"):
        assert policy.why_denied(ip_address(address)) == reason
    assert policy.why_denied(ip_address("192.0.2.254")) is None
