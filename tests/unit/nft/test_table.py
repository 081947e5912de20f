"""Our table in the words of nft(8), and when two listings describe the same one."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from egress_proxy.nft.conntrack import Flow
from egress_proxy.nft.ruleset import Ruleset, Translation
from egress_proxy.nft.table import quote_interface, same

WEB = Translation("tcp", 80, (ip_address("10.4.5.6"),), 8080)
DNS = Translation("udp", 53, (ip_address("2001:db8::1"),), 53)
RULESET = Ruleset(
    egress="macvlan0",
    sources=(ip_address("203.0.113.99"), ip_address("2001:db8:3::99")),
    translations=(WEB, DNS),
    fallback=ip_address("10.1.2.3"),
)
LISTING = """\
table inet egress_proxy {
	map tcp_ports {
		type inet_service : verdict
		elements = { 80 : goto tcp_80 }
	}
	map udp_ports {
		type inet_service : verdict
		elements = { 53 : goto udp_53 }
	}
	chain tcp_80 {
		tcp dport 80 dnat ip to 10.4.5.6:8080
	}
	chain udp_53 {
		udp dport 53 dnat ip6 to [2001:db8::1]:53
	}
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		iifname "macvlan0" return
		fib daddr . iif type != local return
		tcp dport vmap @tcp_ports
		udp dport vmap @udp_ports
		dnat ip to 10.1.2.3
	}
	chain forward {
		type filter hook forward priority filter; policy drop;
		ct status dnat ct direction original oifname "macvlan0" accept
		ct status dnat ct direction reply iifname "macvlan0" accept
		drop
	}
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		oifname "macvlan0" ct status dnat snat ip to 203.0.113.99
		oifname "macvlan0" ct status dnat snat ip6 to 2001:db8:3::99
	}
}
"""


def flow(protocol: int, port: int | None, *, translated: bool = False) -> Flow:
    return Flow(
        source=ip_address("198.51.100.10"),
        target=ip_address("192.0.2.10"),
        protocol=protocol,
        port=port,
        translated=translated,
        tuple=b"",
        number=b"",
    )


def test_the_listing() -> None:
    assert RULESET.table().listing() == LISTING


def test_the_transaction_replaces_what_is_there() -> None:
    assert RULESET.table().transaction() == (
        f"add table inet egress_proxy\ndelete table inet egress_proxy\n{LISTING}"
    )


def test_the_commands_come_in_an_order_that_nft_takes() -> None:
    commands = list(RULESET.table().commands())
    assert commands[0] == "nft add table inet egress_proxy"
    assert commands[3] == (
        "nft add chain inet egress_proxy prerouting "
        "'{ type nat hook prerouting priority dstnat; policy accept; }'"
    )
    assert commands[6] == (
        "nft add map inet egress_proxy tcp_ports "
        "'{ type inet_service : verdict; elements = { 80 : goto tcp_80 }; }'"
    )
    assert commands[8] == (
        "nft add rule inet egress_proxy tcp_80 'tcp dport 80 dnat ip to 10.4.5.6:8080'"
    )
    assert len(commands) == 20


def test_several_addresses_take_turns_within_their_family() -> None:
    addresses = ("10.4.5.6", "2001:db8::1", "10.4.5.7")
    web = Translation("tcp", 80, tuple(map(ip_address, addresses)), 8080)
    listing = Ruleset(egress="net1", sources=(), translations=(web,)).table().listing()
    assert (
        "tcp dport 80 dnat ip to numgen inc mod 2 map "
        "{ 0 : 10.4.5.6 . 8080, 1 : 10.4.5.7 . 8080 }\n"
        "\t\ttcp dport 80 dnat ip6 to [2001:db8::1]:8080\n"
    ) in listing


def test_order_and_line_breaks_between_elements_do_not_matter() -> None:
    listed = "map m {\n\telements = { 53 : goto b,\n\t\t     80 : goto a }\n\t}\n"
    assert same(listed, "map m { elements = { 80 : goto a, 53 : goto b } }")
    assert not same(listed, "map m { elements = { 80 : goto a, 54 : goto b } }")
    assert not same("chain c { a accept b drop }", "chain c { b drop a accept }")


def test_versions_are_those_of_the_targets() -> None:
    assert RULESET.versions == {4, 6}
    assert Ruleset(egress="net1", sources=(), translations=(DNS,)).versions == {6}
    rest = Ruleset(egress="net1", sources=(), translations=(), fallback=ip_address("10.1.2.3"))
    assert rest.versions == {4}


@pytest.mark.parametrize(
    ("seen", "missed"),
    [
        (flow(6, 80), True),
        (flow(17, 53), True),
        (flow(6, 53), False),
        (flow(1, None), False),
        (flow(6, 80, translated=True), False),
    ],
)
def test_flows_that_began_before_the_rules(seen: Flow, *, missed: bool) -> None:
    ports = Ruleset(egress="net1", sources=(), translations=(WEB, DNS))
    assert ports.misses(seen) == missed
    assert RULESET.misses(seen) != seen.translated


@pytest.mark.parametrize("name", ["eth*", 'a"b', "a b", "a;b", "", "a" * 16, "eth0\n"])
def test_names_that_nft_can_not_express(name: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - it has no text
        quote_interface(name)


@pytest.mark.parametrize("name", ["eth0", "macvlan0", "net1.100", "a" * 15])
def test_names_that_nft_can_express(name: str) -> None:
    assert quote_interface(name) == f'"{name}"'
