"""What init does in each situation that it may find, and what must hold in all of them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from itertools import accumulate
from typing import TYPE_CHECKING

import pytest

from egress_proxy.init.plan import make_plan
from egress_proxy.init.state import MAIN_TABLE, Ipv4Sysctls, Ipv6Sysctls
from egress_proxy.init.steps import RestoreTable
from egress_proxy.nft.ruleset import Ruleset, Translation
from tests.unit.init.iproute import ETH0, MACVLAN0, NET1, after, settings, state

if TYPE_CHECKING:
    from egress_proxy.init.settings import InitSettings
    from egress_proxy.init.state import State

POD = """
address 192.0.2.10/24 dev eth0
192.0.2.0/24 dev eth0 src 192.0.2.10
default via 192.0.2.1 dev eth0
"""
POD6 = """
address 2001:db8:2::10/64 dev eth0
address fe80::10/64 dev eth0
2001:db8:2::/64 dev eth0 metric 256
fe80::/64 dev eth0 metric 256
-6 default via fe80::1 dev eth0 metric 1024
"""
REPLY = """
ip route replace 192.0.2.0/24 dev eth0 table 1091 src 192.0.2.10
ip route replace default via 192.0.2.1 dev eth0 table 1091
ip rule add priority 1091 from 192.0.2.10 lookup 1091
ip rule add priority 1091 iif {interface} lookup 1091
"""
WANTED = settings("203.0.113.99/25", "203.0.113.1")
WANTED_ON_NET1 = replace(WANTED, interface="net1")
WANTED6 = settings("2001:db8:3::99/64", "2001:db8:3::1")
BOTH = settings("203.0.113.99/25,2001:db8:3::99/64", "203.0.113.1,2001:db8:3::1")


def commands(observed: State, wanted: InitSettings = WANTED) -> list[str]:
    return [str(step) for step in make_plan(observed, wanted).steps]


def lines(text: str, interface: str = "macvlan0") -> list[str]:
    return text.format(interface=interface).strip().splitlines()


def test_a_bare_interface_as_openshift_leaves_it() -> None:
    assert commands(state(POD)) == [
        "ip link set macvlan0 up",
        "ip address add 203.0.113.99/25 dev macvlan0",
        *lines(REPLY),
        "ip route replace default via 203.0.113.1 dev macvlan0 src 203.0.113.99",
    ]


@pytest.mark.parametrize(
    ("source", "gateway"),
    [
        # Without a length, and with one that leaves the gateway out, only the gateway is on-link.
        ("203.0.113.99", "203.0.113.1"),
        ("203.0.113.99/32", "203.0.113.1"),
        ("203.0.113.99/27", "203.0.113.1"),
    ],
)
def test_a_gateway_outside_the_prefix_gets_a_link_route(source: str, gateway: str) -> None:
    address = source if "/" in source else f"{source}/32"
    assert commands(state(POD), settings(source, gateway)) == [
        "ip link set macvlan0 up",
        f"ip address add {address} dev macvlan0",
        *lines(REPLY),
        "ip route replace 203.0.113.1 dev macvlan0 src 203.0.113.99",
        "ip route replace default via 203.0.113.1 dev macvlan0 src 203.0.113.99",
    ]


@pytest.mark.parametrize("length", [24, 25, 32])
def test_an_address_from_multus_is_left_as_it_is(length: int) -> None:
    """Whatever its length: what the CNI made stays, and what is missing is a route."""
    connected = {24: "203.0.113.0/24", 25: "203.0.113.0/25"}.get(length)
    observed = state(
        POD
        + f"address 203.0.113.99/{length} dev net1\n"
        + (f"{connected} dev net1 src 203.0.113.99" if connected else ""),
        ETH0,
        NET1,
    )
    prefix = [] if connected else ["ip route replace 203.0.113.0/25 dev net1 src 203.0.113.99"]
    assert commands(observed, WANTED_ON_NET1) == [
        *lines(REPLY, "net1"),
        *prefix,
        "ip route replace default via 203.0.113.1 dev net1 src 203.0.113.99",
    ]


def test_a_gateway_that_is_on_the_link_already_does_not_mean_that_init_is_done() -> None:
    observed = state(POD + "address 203.0.113.99/32 dev net1\n203.0.113.1 dev net1", ETH0, NET1)
    wanted = replace(settings("203.0.113.99", "203.0.113.1"), interface="net1")
    assert commands(observed, wanted) == [
        *lines(REPLY, "net1"),
        "ip route replace default via 203.0.113.1 dev net1 src 203.0.113.99",
    ]


def test_a_route_to_the_gateway_that_the_kernel_does_not_take_for_one() -> None:
    """CNI plugins give their on-link routes the scope global."""
    observed = state(
        POD + "address 203.0.113.99/32 dev net1\n203.0.113.1 dev net1 scope global", ETH0, NET1
    )
    wanted = replace(settings("203.0.113.99", "203.0.113.1"), interface="net1")
    assert commands(observed, wanted)[-2:] == [
        "ip route replace 203.0.113.1 dev net1 src 203.0.113.99",
        "ip route replace default via 203.0.113.1 dev net1 src 203.0.113.99",
    ]


def test_a_gateway_behind_another_router_of_the_interface_is_brought_on_the_link() -> None:
    observed = state(
        POD
        + "address 203.0.113.99/32 dev net1\n203.0.113.2 dev net1\n"
        + "203.0.113.0/28 via 203.0.113.2 dev net1",
        ETH0,
        NET1,
    )
    wanted = replace(settings("203.0.113.99", "203.0.113.1"), interface="net1")
    assert "ip route replace 203.0.113.1 dev net1 src 203.0.113.99" in commands(observed, wanted)


def test_a_default_over_the_egress_interface_keeps_its_slot_and_gets_the_source() -> None:
    observed = state(
        """
        address 192.0.2.10/24 dev eth0
        192.0.2.0/24 dev eth0 src 192.0.2.10
        198.51.100.0/24 via 192.0.2.1 dev eth0
        address 203.0.113.99/25 dev net1
        203.0.113.0/25 dev net1 src 203.0.113.99
        default via 203.0.113.1 dev net1
        """,
        ETH0,
        NET1,
    )
    assert commands(observed, WANTED_ON_NET1) == [
        "ip route replace 192.0.2.0/24 dev eth0 table 1091 src 192.0.2.10",
        "ip route replace 198.51.100.0/24 via 192.0.2.1 dev eth0 table 1091",
        "ip rule add priority 1091 from 192.0.2.10 lookup 1091",
        "ip rule add priority 1091 iif net1 lookup 1091",
        "ip route replace default via 203.0.113.1 dev net1 src 203.0.113.99",
    ]


def test_two_default_routes_are_both_kept_for_replies() -> None:
    observed = state(POD + "default via 192.0.2.2 dev eth0 metric 100")
    assert commands(observed)[-6:] == [
        "ip route replace default via 192.0.2.1 dev eth0 table 1091",
        "ip route replace default via 192.0.2.2 dev eth0 table 1091 metric 100",
        "ip rule add priority 1091 from 192.0.2.10 lookup 1091",
        "ip rule add priority 1091 iif macvlan0 lookup 1091",
        "ip route replace default via 203.0.113.1 dev macvlan0 src 203.0.113.99",
        "ip route del default via 192.0.2.2 dev eth0 metric 100",
    ]


def test_a_pod_without_a_default_route() -> None:
    observed = state("address 192.0.2.10/24 dev eth0\n192.0.2.0/24 dev eth0 src 192.0.2.10")
    assert commands(observed)[2:] == [
        "ip route replace 192.0.2.0/24 dev eth0 table 1091 src 192.0.2.10",
        "ip rule add priority 1091 from 192.0.2.10 lookup 1091",
        "ip rule add priority 1091 iif macvlan0 lookup 1091",
        "ip route replace default via 203.0.113.1 dev macvlan0 src 203.0.113.99",
    ]


def test_a_pod_with_no_other_network() -> None:
    assert commands(state("", MACVLAN0)) == [
        "ip link set macvlan0 up",
        "ip address add 203.0.113.99/25 dev macvlan0",
        "ip route replace default via 203.0.113.1 dev macvlan0 src 203.0.113.99",
    ]


def test_a_gateway_given_as_a_link_route() -> None:
    """Calico: the pod's address is a /32, and the gateway is nowhere but on the link."""
    observed = state(
        """
        address 192.0.2.10/32 dev eth0
        default via 169.254.1.1 dev eth0
        169.254.1.1 dev eth0
        """
    )
    assert commands(observed)[2:] == [
        "ip route replace 169.254.1.1 dev eth0 table 1091",
        "ip route replace default via 169.254.1.1 dev eth0 table 1091",
        "ip rule add priority 1091 from 192.0.2.10 lookup 1091",
        "ip rule add priority 1091 iif macvlan0 lookup 1091",
        "ip route replace default via 203.0.113.1 dev macvlan0 src 203.0.113.99",
    ]


def test_a_gateway_without_any_route_becomes_reachable_on_its_link() -> None:
    observed = state("address 192.0.2.10/32 dev eth0\ndefault via 198.51.100.1 dev eth0 onlink")
    assert commands(observed)[2:] == [
        "ip route replace 198.51.100.1 dev eth0 table 1091",
        "ip route replace default via 198.51.100.1 dev eth0 onlink table 1091",
        "ip rule add priority 1091 from 192.0.2.10 lookup 1091",
        "ip rule add priority 1091 iif macvlan0 lookup 1091",
        "ip route replace 198.51.100.1 dev eth0",
        "ip route replace default via 203.0.113.1 dev macvlan0 src 203.0.113.99",
    ]


def test_each_of_the_pods_addresses_gets_a_rule() -> None:
    observed = state(
        POD + "address 192.0.2.11/24 dev eth0\naddress 198.51.100.10/24 dev net2",
        ETH0,
        replace(NET1, name="net2"),
        MACVLAN0,
    )
    assert [command for command in commands(observed) if "rule" in command] == [
        "ip rule add priority 1091 from 192.0.2.10 lookup 1091",
        "ip rule add priority 1091 from 192.0.2.11 lookup 1091",
        "ip rule add priority 1091 from 198.51.100.10 lookup 1091",
        "ip rule add priority 1091 iif macvlan0 lookup 1091",
    ]


@pytest.mark.parametrize(
    ("server", "route"),
    [
        ("198.51.100.53", "198.51.100.53 via 192.0.2.1 dev eth0"),
        # NodeLocal DNSCache has a link-local address, and it is the node's, not the link's.
        ("169.254.20.10", "169.254.20.10 via 192.0.2.1 dev eth0"),
        # On the LAN, where the connected route would lead out with the reserved address.
        ("203.0.113.53", "203.0.113.53 via 192.0.2.1 dev eth0"),
    ],
)
def test_a_name_server_stays_reachable_over_the_pod_network(server: str, route: str) -> None:
    planned = commands(state(POD, name_servers=server))
    assert f"ip route replace {route}" in planned
    assert f"ip route replace {route} table 1091" in planned


@pytest.mark.parametrize("server", ["192.0.2.53", "127.0.0.53", "203.0.113.1", "2001:db8:5::53"])
def test_a_name_server_that_needs_no_route(server: str) -> None:
    """On the pod's subnet, on the loopback, the egress gateway itself, of a family left alone."""
    assert commands(state(POD, name_servers=server)) == commands(state(POD))


def test_a_name_server_under_a_wider_route_of_the_pod_and_in_the_egress_prefix() -> None:
    observed = state(POD + "203.0.0.0/8 via 192.0.2.1 dev eth0", name_servers="203.0.113.53")
    assert "ip route replace 203.0.113.53 via 192.0.2.1 dev eth0" in commands(observed)


def test_the_metrics_of_the_old_route_are_kept() -> None:
    observed = state(
        """
        address 192.0.2.10/24 dev eth0
        192.0.2.0/24 dev eth0 src 192.0.2.10
        default via 192.0.2.1 dev eth0 mtu 1400
        """,
        name_servers="198.51.100.53",
    )
    planned = commands(observed)
    assert "ip route replace default via 192.0.2.1 dev eth0 table 1091 mtu 1400" in planned
    assert "ip route replace 198.51.100.53 via 192.0.2.1 dev eth0 mtu 1400" in planned


def test_ipv6_wins_by_metric_and_then_removes_the_old_default() -> None:
    assert commands(state(POD6), WANTED6) == [
        "ip link set macvlan0 up",
        "sysctl -w net.ipv6.neigh.macvlan0.retrans_time_ms=220",
        "ip address add 2001:db8:3::99/64 dev macvlan0",
        "sysctl -w net.ipv6.neigh.macvlan0.retrans_time_ms=1000",
        "ip -6 route replace 2001:db8:2::/64 dev eth0 table 1091 metric 256",
        "ip -6 route replace fe80::/64 dev eth0 table 1091 metric 256",
        "ip -6 route replace default via fe80::1 dev eth0 table 1091 metric 1024",
        "ip -6 rule add priority 1091 from 2001:db8:2::10 lookup 1091",
        "ip -6 rule add priority 1091 iif macvlan0 lookup 1091",
        "ip -6 route replace default via 2001:db8:3::1 dev macvlan0 src 2001:db8:3::99 metric 1",
        "ip -6 route del default via fe80::1 dev eth0 metric 1024",
    ]


def test_an_ipv6_gateway_outside_the_prefix_and_a_link_local_one() -> None:
    outside = commands(state(POD6), settings("2001:db8:3::99", "2001:db8:3::1"))
    assert (
        "ip -6 route replace 2001:db8:3::1 dev macvlan0 src 2001:db8:3::99 metric 1024" in outside
    )
    local = commands(state(POD6), settings("2001:db8:3::99", "fe80::1"))
    assert [command for command in local if "fe80::1 " in command and "macvlan0" in command] == [
        "ip -6 route replace default via fe80::1 dev macvlan0 src 2001:db8:3::99 metric 1"
    ]


def test_next_hops_of_one_route_are_distinguished() -> None:
    """IPv6 makes one route of two default routes with the same metric."""
    observed = state(
        """
        address 2001:db8:2::10/64 dev eth0
        2001:db8:2::/64 dev eth0 metric 256
        address 2001:db8:3::99/64 dev net1
        2001:db8:3::/64 dev net1 metric 256
        -6 default metric 1024 nexthop via 2001:db8:2::1 dev eth0 nexthop via 2001:db8:3::1 dev net1
        """,
        ETH0,
        NET1,
    )
    planned = commands(observed, replace(WANTED6, interface="net1"))
    assert (
        "ip -6 route replace default via 2001:db8:2::1 dev eth0 table 1091 metric 1024" in planned
    )
    assert planned[-1] == (
        "ip -6 route del default metric 1024 nexthop via 2001:db8:2::1 dev eth0 weight 1 "
        "nexthop via 2001:db8:3::1 dev net1 weight 1"
    )


def test_a_family_without_a_source_is_left_alone() -> None:
    assert not [command for command in commands(state(POD + POD6)) if ":" in command]
    assert not [command for command in commands(state(POD + POD6), WANTED6) if "192." in command]


def test_a_failed_detection_is_tried_again() -> None:
    observed = state(POD6 + "address 2001:db8:3::99/64 dev macvlan0 dadfailed")
    assert commands(observed, WANTED6)[2:4] == [
        "ip address del 2001:db8:3::99/64 dev macvlan0",
        "ip address add 2001:db8:3::99/64 dev macvlan0",
    ]


HEARS = Ipv6Sysctls(accept_ra=2, accept_ra_defrtr=1)


def test_advertisements_are_switched_off_where_that_is_possible() -> None:
    links = (replace(ETH0, ipv6=HEARS), replace(MACVLAN0, ipv6=HEARS))
    writable = make_plan(state(POD6, *links, sysctls_writable=True), WANTED6)
    assert [str(step) for step in writable.link] == [
        # The pod network may live on advertisements; only their default route is in the way.
        "sysctl -w net.ipv6.conf.eth0.accept_ra_defrtr=0",
        "sysctl -w net.ipv6.conf.macvlan0.accept_ra=0",
        "ip link set macvlan0 up",
    ]
    assert [str(step.undo) for step in writable.link] == [
        "sysctl -w net.ipv6.conf.eth0.accept_ra_defrtr=1",
        "sysctl -w net.ipv6.conf.macvlan0.accept_ra=2",
        "ip link set macvlan0 down",
    ]
    assert commands(state(POD6, *links), WANTED6)[0] == "ip link set macvlan0 up"


def test_a_default_from_an_advertisement_that_would_come_back_is_left() -> None:
    links = (replace(ETH0, ipv6=HEARS), MACVLAN0)
    text = POD6.replace(
        "-6 default via fe80::1 dev eth0", "-6 default via fe80::1 dev eth0 proto 9"
    )
    gone = "ip -6 route del default via fe80::1 dev eth0 metric 1024"
    assert gone not in commands(state(text, *links), WANTED6)
    assert gone in commands(state(text, *links, sysctls_writable=True), WANTED6)
    # Once advertisements are ignored, it is an ordinary route.
    assert gone in commands(state(text), WANTED6)


def test_ipv6_is_switched_on_for_an_ipv6_source_alone() -> None:
    links = (ETH0, replace(MACVLAN0, ipv6=Ipv6Sysctls(disable_ipv6=1)))
    on = "sysctl -w net.ipv6.conf.macvlan0.disable_ipv6=0"
    assert on in commands(state(POD6, *links, sysctls_writable=True), WANTED6)
    assert on not in commands(state(POD, *links, sysctls_writable=True), WANTED)


def test_a_connected_route_that_comes_with_the_link_is_not_made_again() -> None:
    observed = state(POD + "address 203.0.113.99/25 dev macvlan0")
    assert "ip route replace 203.0.113.0/25 dev macvlan0" not in "\n".join(commands(observed))


def test_detection_is_quick_and_then_everything_is_as_it_was() -> None:
    slow = replace(MACVLAN0, ipv6=Ipv6Sysctls(retrans_time_ms=3000))
    planned = [step for step in commands(state(POD6, ETH0, slow), WANTED6) if "retrans" in step]
    assert planned == [
        "sysctl -w net.ipv6.neigh.macvlan0.retrans_time_ms=220",
        "sysctl -w net.ipv6.neigh.macvlan0.retrans_time_ms=3000",
    ]


@pytest.mark.parametrize("address", ["", "address 2001:db8:3::99/64 dev macvlan0"])
def test_an_interrupted_detection_leaves_nothing_quick(address: str) -> None:
    left = replace(MACVLAN0, ipv6=Ipv6Sysctls(retrans_time_ms=220))
    planned = commands(state(POD6 + address, ETH0, left), WANTED6)
    assert [step for step in planned if "retrans" in step] == [
        "sysctl -w net.ipv6.neigh.macvlan0.retrans_time_ms=1000",
    ]


REDIRECT = replace(
    BOTH,
    mode="init",
    ruleset=Ruleset(
        egress="macvlan0",
        sources=tuple(source.address for source in BOTH.sources),
        translations=(
            Translation("tcp", 80, (ip_address("10.4.5.6"), ip_address("2001:db8::1")), 80),
        ),
    ),
)


def test_redirect_mode_begins_with_the_rules_and_ends_with_forwarding() -> None:
    observed = state(POD + POD6, replace(ETH0, ipv4=Ipv4Sysctls(rp_filter=1)), MACVLAN0)
    without = make_plan(observed, BOTH)
    plan = make_plan(observed, REDIRECT)
    [rules] = plan.rules
    assert str(rules).splitlines()[0] == "nft add table inet egress_proxy"
    assert str(rules.undo) == "nft delete table inet egress_proxy"
    assert plan.steps[0] == rules
    assert [str(step) for step in plan.steps[1 + len(without.steps) :]] == [
        "sysctl -w net.ipv4.conf.eth0.forwarding=1",
        "sysctl -w net.ipv4.conf.eth0.rp_filter=2",
        "sysctl -w net.ipv4.conf.macvlan0.forwarding=1",
        "sysctl -w net.ipv6.conf.all.forwarding=1",
    ]
    assert plan.steps[1 : 1 + len(without.steps)] == without.steps


def test_rules_that_are_there_and_forwarding_that_is_on_need_nothing() -> None:
    assert REDIRECT.ruleset is not None
    forwards = Ipv4Sysctls(forwarding=1, rp_filter=2)
    links = (
        replace(link, ipv4=forwards, ipv6=Ipv6Sysctls(forwarding=1)) for link in (ETH0, MACVLAN0)
    )
    observed = replace(state(POD + POD6, *links), table_listing=REDIRECT.ruleset.table().listing())
    assert make_plan(observed, REDIRECT) == make_plan(observed, BOTH)


def test_other_rules_are_replaced_and_can_be_put_back() -> None:
    before = "table inet egress_proxy {\n}\n"
    [step] = make_plan(replace(state(POD, ETH0, MACVLAN0), table_listing=before), REDIRECT).rules
    assert str(step).splitlines()[:2] == [
        "nft delete table inet egress_proxy",
        "nft add table inet egress_proxy",
    ]
    assert step.undo == RestoreTable(before)
    assert RestoreTable(before).transaction == f"delete table inet egress_proxy\n{before}"


def test_a_family_without_rules_is_not_forwarded() -> None:
    assert REDIRECT.ruleset is not None
    only4 = Translation("tcp", 80, (ip_address("10.4.5.6"),), 80)
    ruleset = replace(REDIRECT.ruleset, translations=(only4,))
    steps = make_plan(state(POD + POD6, ETH0, MACVLAN0), replace(REDIRECT, ruleset=ruleset)).steps
    assert not any("ipv6.conf.all" in str(step) for step in steps)


def test_an_interface_that_is_not_there() -> None:
    with pytest.raises(KeyError, match="macvlan0"):
        make_plan(state(POD, ETH0), WANTED)


SITUATIONS = {
    "OpenShift": (state(POD, name_servers="198.51.100.53"), WANTED),
    "no length": (state(POD), settings("203.0.113.99", "203.0.113.1")),
    "Multus": (
        state(
            POD + "address 203.0.113.99/24 dev net1\n203.0.113.0/24 dev net1 src 203.0.113.99",
            ETH0,
            NET1,
            name_servers="203.0.113.53",
        ),
        WANTED_ON_NET1,
    ),
    "Calico": (
        state(
            """
            address 192.0.2.10/32 dev eth0
            default via 169.254.1.1 dev eth0
            169.254.1.1 dev eth0
            """,
            name_servers="198.51.100.53",
        ),
        WANTED,
    ),
    "onlink": (
        state("address 192.0.2.10/32 dev eth0\ndefault via 198.51.100.1 dev eth0 onlink"),
        WANTED,
    ),
    "two defaults": (
        state(POD.replace("dev eth0\n", "dev eth0 metric 50\n") + "default via 192.0.2.2 dev eth0"),
        WANTED,
    ),
    "both families": (
        state(
            POD + POD6,
            replace(ETH0, ipv6=HEARS),
            replace(MACVLAN0, ipv6=HEARS),
            name_servers="198.51.100.53 2001:db8:5::53",
            sysctls_writable=True,
        ),
        BOTH,
    ),
    "the name server's wide route": (
        state(POD + "203.0.0.0/8 via 192.0.2.1 dev eth0", name_servers="203.0.113.53"),
        WANTED,
    ),
}
every_situation = pytest.mark.parametrize(
    ("observed", "wanted"), SITUATIONS.values(), ids=SITUATIONS.keys()
)


def applied(observed: State, wanted: InitSettings) -> list[State]:
    """The states before, between and after the steps."""
    changes = (step.change for step in make_plan(observed, wanted).steps)
    return list(accumulate(changes, after, initial=observed))


@every_situation
def test_a_second_run_has_nothing_to_do(observed: State, wanted: InitSettings) -> None:
    assert commands(applied(observed, wanted)[-1], wanted) == []


@every_situation
def test_a_run_after_an_interrupted_one_ends_in_the_same_state(
    observed: State, wanted: InitSettings
) -> None:
    *between, final = applied(observed, wanted)
    for interrupted in between:
        assert contents(applied(interrupted, wanted)[-1]) == contents(final)


@every_situation
def test_there_is_a_default_route_at_any_time(observed: State, wanted: InitSettings) -> None:
    for interrupted in applied(observed, wanted):
        for source in wanted.sources:
            main = interrupted.table(MAIN_TABLE, source.version)
            assert any(route.default for route in main)


@every_situation
def test_undoing_from_any_step_restores_everything(observed: State, wanted: InitSettings) -> None:
    steps = make_plan(observed, wanted).steps
    for number, reached in enumerate(applied(observed, wanted)):
        undone = list(
            accumulate((step.undo for step in reversed(steps[:number])), after, initial=reached)
        )
        assert contents(undone[-1]) == contents(observed)
        assert all(
            any(route.default and route.table == MAIN_TABLE for route in one.routes)
            for one in undone
        )


def contents(observed: State) -> tuple[object, ...]:
    """`observed` without the order of things."""
    return (
        set(observed.links),
        set(observed.addresses),
        set(observed.routes),
        set(observed.rules),
    )


def test_the_loopback_interface_is_no_pod_network() -> None:
    observed = state(POD + "198.51.100.0/24 dev lo")
    assert "lo" not in {word for command in commands(observed) for word in command.split()}


SHARED = replace(WANTED, shared=True)
SHARED6 = replace(WANTED6, shared=True)
NOWHERE = "table 1092 metric 4278198272"


def test_a_shared_address_is_prepared_for_and_not_taken() -> None:
    assert commands(state(POD), SHARED) == [
        "ip link set macvlan0 up",
        *lines(REPLY),
        f"ip route replace unreachable default {NOWHERE}",
        "ip rule add priority 1092 from 203.0.113.99 lookup 1092",
    ]


def test_a_shared_ipv6_address_leaves_the_default_route_to_the_pod_network() -> None:
    steps = commands(state(POD6), SHARED6)
    assert steps[-2:] == [
        f"ip -6 route replace unreachable default {NOWHERE}",
        "ip -6 rule add priority 1092 from 2001:db8:3::99 lookup 1092",
    ]
    assert not any("address" in step or "macvlan0 src" in step for step in steps)


@pytest.mark.parametrize(("pod", "wanted"), [(POD, SHARED), (POD6, SHARED6)])
def test_a_shared_address_is_prepared_for_once(pod: str, wanted: InitSettings) -> None:
    observed = state(pod)
    for step in make_plan(observed, wanted).steps:
        observed = after(observed, step.change)
    assert make_plan(observed, wanted).steps == ()
