"""Contradictions between variables, with the whole message that each one gets."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from egress_proxy.check.warnings import gateway_warnings, source_warnings
from egress_proxy.config.settings import read_settings
from egress_proxy.config.sources import Source

P = "EGRESS_DNS_PROXY_"
RESERVED = (Source(ip_address("198.51.100.99"), 24, ip_address("198.51.100.1")),)
GOOD = {f"{P}DESTINATION": "80 192.0.2.1\n81 a.example"}


@pytest.mark.parametrize(
    ("address", "length", "gateway", "subnet"),
    [
        ("198.51.100.99", 24, "198.51.100.1", None),
        ("198.51.100.99", None, "198.51.110.1", None),
        ("2001:db8::99", 64, "fe80::1", None),
        ("198.51.100.99", 24, "198.51.110.1", "198.51.100.0/24"),
        ("2001:db8::99", 64, "2001:db8:1::1", "2001:db8::/64"),
    ],
)
def test_a_gateway_outside_the_subnet(
    address: str, length: int | None, gateway: str, subnet: str | None
) -> None:
    source = Source(ip_address(address), length, ip_address(gateway))
    assert list(map(str, gateway_warnings([source]))) == (
        [
            (
                f"EGRESS_GATEWAY: '{gateway}': not in {subnet}, the subnet of EGRESS_SOURCE; "
                "correct it if this is a typing error; otherwise init adds a route to it"
            )
        ]
        if subnet
        else []
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({f"{P}SOURCE": "198.51.100.99"}, None),
        ({f"{P}SOURCE": "any"}, None),
        ({f"{P}LISTEN": "192.0.2.10"}, None),
        (
            {f"{P}SOURCE": "198.51.100.98"},
            (
                f"{P}SOURCE: '198.51.100.98': EGRESS_SOURCE reserves 198.51.100.99; "
                "write the same address, or auto"
            ),
        ),
        (
            {f"{P}LISTEN": "198.51.100.99"},
            (
                f"{P}LISTEN: '198.51.100.99': the reserved address: hosts on the LAN can connect "
                "to the ports; write auto, or the pod's own address"
            ),
        ),
        (
            {f"{P}DESTINATION": "80 192.0.2.1\n81 2001:db8::1"},
            (
                f"{P}DESTINATION line 2: '2001:db8::1': no IPv6 source address is configured; "
                "add one to EGRESS_SOURCE, or remove the destination"
            ),
        ),
    ],
)
def test_contradictions_between_run_and_init(changes: dict[str, str], message: str | None) -> None:
    settings = read_settings({**GOOD, **changes})
    told = list(map(str, source_warnings(settings, RESERVED)))
    assert told == ([message] if message else [])
    assert list(source_warnings(settings, ())) == []
