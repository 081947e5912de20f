"""Our table in the words of nft(8), and when two listings describe the same one."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from egress_proxy.nft.conntrack import End, Flow, TcpState
from egress_proxy.nft.ruleset import Ruleset, Translation
from egress_proxy.nft.session_rules import SessionRules
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
        source=End(ip_address("198.51.100.10"), 40000),
        target=End(ip_address("192.0.2.10"), port),
        upstream=End(ip_address("192.0.2.10"), port),
        reserved=End(ip_address("198.51.100.10"), 40000),
        protocol=protocol,
        translated=translated,
        answered=False,
        state=TcpState.NONE,
        mark=0,
        left_s=0,
        sent=None,
        received=None,
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


def block(title: str, *lines: str) -> str:
    return "\n".join([f"\t{title} {{", *(f"\t\t{line}" for line in lines), "\t}", ""])


def test_order_and_line_breaks_between_elements_do_not_matter() -> None:
    listed = block("map m", "elements = { 53 : goto b,", "\t     80 : goto a }")
    assert same(listed, block("map m", "elements = { 80 : goto a, 53 : goto b }"))
    assert not same(listed, block("map m", "elements = { 80 : goto a, 54 : goto b }"))
    rules = block("chain c", "a accept", "b drop")
    assert not same(rules, block("chain c", "b drop", "a accept"))
    assert same(rules + "\n" + listed, listed + rules)
    assert not same(rules + listed, rules)


def test_changes_of_one_port_leave_all_others_alone() -> None:
    sessions = SessionRules(connect_timeout_s=10, idle_timeout_s=0, half_close_timeout_s=0)
    web = replace(WEB, mark=8)
    before = replace(RULESET, translations=(web,), sessions=sessions)
    other = Translation("tcp", 81, (ip_address("10.4.5.8"),), 81, mark=9)
    moved = replace(web, addresses=(ip_address("10.4.5.7"),))
    assert before.table().changes(before.table()) == ""
    assert replace(before, translations=(moved,)).table().changes(before.table()) == (
        "flush chain inet egress_proxy tcp_80\n"
        'add rule inet egress_proxy tcp_80 counter name "new_80_00000008" '
        "ct mark set 0x00000008 ct event set destroy\n"
        "add rule inet egress_proxy tcp_80 tcp dport 80 dnat ip to 10.4.5.7:8080\n"
    )
    refused = replace(web, addresses=())
    assert replace(before, translations=(refused,)).table().changes(before.table()) == (
        "delete element inet egress_proxy tcp_ports { 80 }\n"
        "flush chain inet egress_proxy tcp_80\n"
        "delete chain inet egress_proxy tcp_80\n"
    )
    assert replace(before, translations=(other,)).table().changes(before.table()).splitlines() == [
        "add counter inet egress_proxy down_81_00000009",
        "add counter inet egress_proxy new_81_00000009",
        "add counter inet egress_proxy up_81_00000009",
        "add chain inet egress_proxy tcp_81",
        "flush chain inet egress_proxy tcp_81",
        (
            'add rule inet egress_proxy tcp_81 counter name "new_81_00000009" '
            "ct mark set 0x00000009 ct event set destroy"
        ),
        "add rule inet egress_proxy tcp_81 tcp dport 81 dnat ip to 10.4.5.8:81",
        "delete element inet egress_proxy tcp_ports { 80 }",
        "add element inet egress_proxy tcp_ports { 81 : goto tcp_81 }",
        "delete element inet egress_proxy down { 0x00000008 }",
        'add element inet egress_proxy down { 0x00000009 : "down_81_00000009" }',
        "delete element inet egress_proxy up { 0x00000008 }",
        'add element inet egress_proxy up { 0x00000009 : "up_81_00000009" }',
        "flush chain inet egress_proxy tcp_80",
        "delete chain inet egress_proxy tcp_80",
        "delete counter inet egress_proxy down_80_00000008",
        "delete counter inet egress_proxy new_80_00000008",
        "delete counter inet egress_proxy up_80_00000008",
    ]


@pytest.mark.parametrize(
    ("recorded", "watched", "events"),
    [
        (False, False, "destroy"),
        (False, True, "destroy,assured"),
        (True, False, "new,destroy,protoinfo"),
        (True, True, "new,destroy,protoinfo"),
    ],
)
def test_the_kernel_makes_no_event_that_nobody_needs(
    recorded: bool, watched: bool, events: str
) -> None:
    sessions = SessionRules(
        connect_timeout_s=10, idle_timeout_s=0, half_close_timeout_s=0, recorded=recorded
    )
    web = replace(WEB, watched=watched)
    listing = replace(RULESET, translations=(web,), sessions=sessions).table().listing()
    assert f"ct event set {events}\n" in listing


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
