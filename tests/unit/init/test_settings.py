"""The environment of init: what it accepts, and every message it refuses with."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from egress_proxy.config.sources import Source
from egress_proxy.errors import ConfigurationError
from egress_proxy.init.settings import VARIABLES, InitSettings, read_settings
from egress_proxy.nft.ruleset import Ruleset, Translation

GOOD = {"EGRESS_SOURCE": "192.0.2.99/24", "EGRESS_GATEWAY": "192.0.2.1"}
SOURCE = Source(ip_address("192.0.2.99"), 24, ip_address("192.0.2.1"))


def test_the_pod_spec_of_the_original_is_enough() -> None:
    assert read_settings({**GOOD, "EGRESS_ROUTER_MODE": "dns-proxy"}) == InitSettings(
        interface="macvlan0",
        sources=(SOURCE,),
        mode="dns-proxy",
        gateway_required=False,
        debug=False,
        log_format="",
    )


def test_every_variable_is_read() -> None:
    settings = read_settings(
        {
            **GOOD,
            "EGRESS_ROUTER_MODE": "http-proxy",
            "EGRESS_ROUTER_DEBUG": "1",
            "EGRESS_INTERFACE": "net1",
            "EGRESS_GATEWAY_REQUIRED": "yes",
            "EGRESS_DNS_PROXY_LOG_FORMAT": "json",
        }
    )
    assert settings == InitSettings(
        interface="net1",
        sources=(SOURCE,),
        mode="http-proxy",
        gateway_required=True,
        debug=True,
        log_format="json",
    )


def test_help_can_list_each_variable_once() -> None:
    assert len({variable.name for variable in VARIABLES}) == len(VARIABLES) == 9


@pytest.mark.parametrize(
    ("source", "gateway", "expected"),
    [
        ("192.0.2.99", "192.0.2.1", [("192.0.2.99", None, "192.0.2.1")]),
        (" 192.0.2.99/32 ", "192.0.2.1,", [("192.0.2.99", 32, "192.0.2.1")]),
        ("192.0.2.0/31", "192.0.2.1", [("192.0.2.0", 31, "192.0.2.1")]),
        ("2001:db8::99/64", "fe80::1", [("2001:db8::99", 64, "fe80::1")]),
        ("2001:db8::/127", "2001:db8::1", [("2001:db8::", 127, "2001:db8::1")]),
        # Any order, and a gateway outside the prefix: init lays a link route to it.
        (
            "2001:db8::99, 192.0.2.99/28",
            "198.51.100.1, 2001:db8::1",
            [("192.0.2.99", 28, "198.51.100.1"), ("2001:db8::99", None, "2001:db8::1")],
        ),
    ],
)
def test_sources(source: str, gateway: str, expected: list[tuple[str, int | None, str]]) -> None:
    settings = read_settings({"EGRESS_SOURCE": source, "EGRESS_GATEWAY": gateway})
    assert settings.sources == tuple(
        Source(ip_address(address), length, ip_address(hop)) for address, length, hop in expected
    )


@pytest.mark.parametrize(
    ("source", "shown"), [("192.0.2.99", "192.0.2.99"), ("192.0.2.99/24", "192.0.2.99/24")]
)
def test_a_source_reads_as_the_admin_wrote_it(source: str, shown: str) -> None:
    [read] = read_settings({**GOOD, "EGRESS_SOURCE": source}).sources
    assert str(read) == shown


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"EGRESS_SOURCE": " "},
            (
                "EGRESS_SOURCE: not set; set it to the reserved address, A or A/len; "
                "one IPv4, one IPv6, or both with a comma"
            ),
        ),
        (
            {"EGRESS_GATEWAY": ""},
            "EGRESS_GATEWAY: not set; set it to the next hop for each family of the source",
        ),
        (
            {"EGRESS_SOURCE": "192.0.2.99/255.255.255.0"},
            (
                "EGRESS_SOURCE: '192.0.2.99/255.255.255.0': not an address with a length; "
                "write for example 192.0.2.99/24"
            ),
        ),
        (
            {"EGRESS_SOURCE": "192.0.2.99/0"},
            (
                "EGRESS_SOURCE: '192.0.2.99/0': not an address with a length; "
                "write for example 192.0.2.99/24"
            ),
        ),
        (
            {"EGRESS_SOURCE": "192.0.2.99/33"},
            "EGRESS_SOURCE: '192.0.2.99/33': a length beyond 32; correct the length",
        ),
        (
            {"EGRESS_SOURCE": "192.0.02.99"},
            "EGRESS_SOURCE: '192.0.02.99': not an IP address; write for example 192.0.2.10",
        ),
        (
            {"EGRESS_SOURCE": "192.0.2.0/24"},
            (
                "EGRESS_SOURCE: '192.0.2.0/24': the first address of its subnet, "
                "which no host has; "
                "write a host's address in 192.0.2.0/24"
            ),
        ),
        (
            {"EGRESS_SOURCE": "192.0.2.255/24"},
            (
                "EGRESS_SOURCE: '192.0.2.255/24': the broadcast address of its subnet; "
                "write a host's address in 192.0.2.0/24"
            ),
        ),
        *(
            (
                {"EGRESS_SOURCE": source},
                (
                    f"EGRESS_SOURCE: '{source}': {reason}; "
                    "write the address that is reserved for this pod"
                ),
            )
            for source, reason in (
                ("127.0.0.1", "a loopback address"),
                ("224.0.0.1", "a multicast address"),
                ("0.0.0.0", "an unspecified address"),
                ("0.1.2.3", "an unspecified address"),
                ("255.255.255.255", "a reserved address"),
                ("169.254.1.1", "a link-local address"),
                ("fe80::1", "a link-local address"),
                ("::", "an unspecified address"),
                ("::ffff:192.0.2.1", "an IPv4 address in IPv6 form"),
            )
        ),
        (
            {"EGRESS_SOURCE": "192.0.2.98,192.0.2.99"},
            (
                "EGRESS_SOURCE: '192.0.2.98,192.0.2.99': two addresses of one family; "
                "write one IPv4, one IPv6, or both"
            ),
        ),
        (
            {"EGRESS_GATEWAY": "127.0.0.1"},
            (
                "EGRESS_GATEWAY: '127.0.0.1': a loopback address; "
                "write the router's address on this network"
            ),
        ),
        (
            {"EGRESS_GATEWAY": "192.0.2.1,192.0.2.2"},
            (
                "EGRESS_GATEWAY: '192.0.2.1,192.0.2.2': two addresses of one family; "
                "write one IPv4, one IPv6, or both"
            ),
        ),
        (
            {"EGRESS_GATEWAY": "192.0.2.99"},
            (
                "EGRESS_GATEWAY: '192.0.2.99': the same address as EGRESS_SOURCE; "
                "write the router's address"
            ),
        ),
        (
            {"EGRESS_SOURCE": "192.0.2.99,2001:db8::99"},
            (
                "EGRESS_GATEWAY: '192.0.2.1': no IPv6 gateway for 2001:db8::99; "
                "add the router's address"
            ),
        ),
        (
            {"EGRESS_GATEWAY": "192.0.2.1,2001:db8::1"},
            (
                "EGRESS_GATEWAY: '192.0.2.1,2001:db8::1': 2001:db8::1 is for IPv6, "
                "and EGRESS_SOURCE has no such address; remove the gateway, or add the address"
            ),
        ),
        (
            {"EGRESS_ROUTER_MODE": "unit-test"},
            (
                "EGRESS_ROUTER_MODE: 'unit-test': not a mode; "
                "write dns-proxy, http-proxy, init, legacy"
            ),
        ),
        *(
            (
                {"EGRESS_ROUTER_MODE": mode, "EGRESS_DESTINATION": " "},
                (
                    "EGRESS_DESTINATION: no rule; write one per line: "
                    "<port> tcp|udp|sctp <address> [<remote port>]; "
                    "or an address alone, for everything"
                ),
            )
            for mode in ("init", "legacy")
        ),
        (
            {"EGRESS_DESTINATION": "\n80 tcp 2001:db8::1"},
            (
                "EGRESS_DESTINATION line 2: '2001:db8::1': an IPv6 address, and EGRESS_SOURCE has "
                "none to send from; add one to EGRESS_SOURCE, and its router to EGRESS_GATEWAY"
            ),
        ),
        (
            {"EGRESS_DESTINATION": "80 tcp 10.4.5.6\n192.0.2.99"},
            (
                "EGRESS_DESTINATION line 2: '192.0.2.99': the same address as EGRESS_SOURCE; "
                "write the remote host's own address"
            ),
        ),
        (
            {"EGRESS_DESTINATION": "10.1.2.3", "EGRESS_INTERFACE": "eth*"},
            (
                "EGRESS_INTERFACE: 'eth*': nftables can't name this interface in redirect mode; "
                "give it a name of letters, digits, '.', '_', '@' and '-'"
            ),
        ),
        (
            {"EGRESS_INTERFACE": "an interface"},
            (
                "EGRESS_INTERFACE: 'an interface': not an interface name: no blank, '/' or ':'; "
                "write for example net1"
            ),
        ),
    ],
)
def test_refusals(changes: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_settings({**GOOD, **changes})
    assert str(caught.value) == message
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("mode", "expected"),
    [({}, "legacy"), ({"EGRESS_ROUTER_MODE": "init"}, "init")],
)
def test_redirect_mode(mode: dict[str, str], expected: str) -> None:
    settings = read_settings({**GOOD, **mode, "EGRESS_DESTINATION": "80 tcp 10.4.5.6 81"})
    assert settings.mode == expected
    assert settings.ruleset == Ruleset(
        egress="macvlan0",
        sources=(SOURCE.address,),
        translations=(Translation("tcp", 80, (ip_address("10.4.5.6"),), 81),),
    )


def test_a_mode_makes_the_originals_other_variables_harmless() -> None:
    environ = {**GOOD, "EGRESS_DESTINATION": "203.0.113.25", "EGRESS_ROUTER_MODE": "dns-proxy"}
    settings = read_settings(environ)
    assert (settings.sources, settings.ruleset) == ((SOURCE,), None)


def test_all_problems_are_reported_together() -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_settings(
            {
                "EGRESS_SOURCE": "192.0.2.300",
                "EGRESS_GATEWAY": "router",
                "EGRESS_ROUTER_MODE": "legacy",
                "EGRESS_DESTINATION": "80 icmp 10.4.5.6",
                "EGRESS_INTERFACE": "a/b",
                "EGRESS_DNS_PROXY_LOG_FORMAT": "xml",
            }
        )
    assert sorted(problem.variable for problem in caught.value.problems) == [
        "EGRESS_DESTINATION",
        "EGRESS_DNS_PROXY_LOG_FORMAT",
        "EGRESS_GATEWAY",
        "EGRESS_INTERFACE",
        "EGRESS_SOURCE",
    ]


def test_redirect_mode_has_no_high_availability() -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_settings(
            {
                "EGRESS_SOURCE": "192.0.2.99/24",
                "EGRESS_GATEWAY": "192.0.2.1",
                "EGRESS_DESTINATION": "80 tcp 198.51.100.1",
                "EGRESS_HA": "lease",
            }
        )
    assert str(caught.value) == (
        "EGRESS_HA: 'lease': redirect mode has no high availability; "
        "set EGRESS_ROUTER_MODE to dns-proxy, or remove EGRESS_HA"
    )
