"""The problems that `init` reports, with their whole text."""

from __future__ import annotations

import errno
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from egress_proxy.init import problems
from egress_proxy.init.problems import unmet_preconditions
from egress_proxy.init.state import Ipv6Sysctls, Link, Rule, State
from egress_proxy.init.steps import PutAddress, PutRoute, PutRule, SetLink
from egress_proxy.init.warnings import find_warnings
from tests.unit.init.iproute import ETH0, MACVLAN0, assigned, route, settings, state

if TYPE_CHECKING:
    from egress_proxy.init.settings import InitSettings

POD = """
address 192.0.2.10/24 dev eth0
192.0.2.0/24 dev eth0 src 192.0.2.10
default via 192.0.2.1 dev eth0
address 2001:db8:2::10/64 dev eth0
2001:db8:2::/64 dev eth0 metric 256
-6 default via 2001:db8:2::1 dev eth0 metric 1024
"""
V4 = settings("203.0.113.99/25", "203.0.113.1")
V6 = settings("2001:db8:3::99/64", "2001:db8:3::1")
TUNING = "for example with the CNI plugin tuning in the network attachment, or run init privileged"


def told(observed: State, wanted: InitSettings = V4) -> list[str]:
    return [str(problem) for problem in unmet_preconditions(observed, wanted)]


def warned(observed: State, wanted: InitSettings = V4) -> list[str]:
    return [str(problem) for problem in find_warnings(observed, wanted)]


def test_nothing_prevents_it() -> None:
    both = settings("203.0.113.99/25,2001:db8:3::99/64", "203.0.113.1,2001:db8:3::1")
    assert told(state(POD), both) == warned(state(POD), both) == []


def test_everything_is_reported_together() -> None:
    observed = replace(
        state(POD + "address 203.0.113.99/25 dev eth0\naddress 203.0.113.1/25 dev eth0"),
        missing_capabilities=("NET_ADMIN",),
    )
    assert told(observed) == [
        (
            "init has no capability NET_ADMIN; add NET_ADMIN to securityContext.capabilities, and "
            "runAsUser: 0, because Kubernetes gives capabilities to root only"
        ),
        (
            "EGRESS_SOURCE: '203.0.113.99/25': the pod has this address on eth0; "
            "write an address that is reserved on the egress network"
        ),
        "EGRESS_GATEWAY: '203.0.113.1': this is the pod's own address; write the router's address",
    ]


@pytest.mark.parametrize(
    ("interface", "links", "reason"),
    [
        ("macvlan0", (ETH0,), "no such interface (there are eth0)"),
        ("macvlan0", (replace(ETH0, loopback=True),), "no such interface (there are none)"),
        ("lo", (ETH0, MACVLAN0), "this is the loopback interface"),
        ("macvlan0", (ETH0, replace(MACVLAN0, mac="")), "this is not an Ethernet interface"),
        ("eth0", (ETH0, MACVLAN0), "this is the pod's only network"),
    ],
)
def test_an_interface_that_can_not_be_the_egress_one(
    interface: str, links: tuple[Link, ...], reason: str
) -> None:
    wanted = replace(V4, interface=interface)
    [problem] = told(state(POD, *links), wanted)
    assert problem == (
        f"EGRESS_INTERFACE: '{interface}': {reason}; with OpenShift SDN set the annotation "
        'pod.network.openshift.io/assign-macvlan: "true"; elsewhere attach a macvlan network '
        "(Multus, whose first interface is net1)"
    )


def test_a_kernel_without_ipv6() -> None:
    assert told(state(POD, ETH0, replace(MACVLAN0, ipv6=None)), V6) == [
        (
            "EGRESS_SOURCE: '2001:db8:3::99/64': macvlan0 has no IPv6; "
            "enable IPv6 in the node's kernel (ipv6.disable=0), with an MTU of 1280 or more"
        )
    ]


def test_ipv6_that_is_off() -> None:
    links = (ETH0, replace(MACVLAN0, ipv6=Ipv6Sysctls(disable_ipv6=1)))
    assert told(state(POD, *links), V6) == [
        (
            "EGRESS_SOURCE: '2001:db8:3::99/64': IPv6 is off on macvlan0, "
            "and /proc/sys is read-only; "
            f"set net.ipv6.conf.macvlan0.disable_ipv6=0, {TUNING}"
        )
    ]
    assert told(state(POD, *links, sysctls_writable=True), V6) == []
    assert told(state(POD, *links), V4) == []


@pytest.mark.parametrize("wanted", [V4, V6], ids=["IPv4", "IPv6"])
def test_advertisements_that_can_not_be_stopped(wanted: InitSettings) -> None:
    """They matter for an IPv4 source too: a route may take the pod's own IPv6 traffic away."""
    links = (ETH0, replace(MACVLAN0, ipv6=Ipv6Sysctls(accept_ra=1)))
    [warning] = warned(state(POD, *links), wanted)
    assert warning == (
        "EGRESS_INTERFACE: 'macvlan0': routers on the LAN may add IPv6 addresses and routes of "
        "their own to it (the routes of init win), and /proc/sys is read-only; "
        f"set net.ipv6.conf.macvlan0.accept_ra=0, {TUNING}"
    )
    assert warned(state(POD, *links, sysctls_writable=True), wanted) == []
    off = (ETH0, replace(MACVLAN0, ipv6=Ipv6Sysctls(accept_ra=1, disable_ipv6=1)))
    assert warned(state(POD, *off), wanted) == []


def test_advertisements_do_not_matter_to_a_pod_without_ipv6() -> None:
    links = (ETH0, replace(MACVLAN0, ipv6=Ipv6Sysctls(accept_ra=1)))
    pod = POD.partition("address 2001")[0] + (
        "address fe80::2/64 dev eth0\naddress 2001:db8:3::77/64 dev macvlan0"
    )
    assert warned(state(pod, *links), V4) == []


def test_without_a_default_route_to_copy_for_replies() -> None:
    observed = state("address 192.0.2.10/24 dev eth0\n192.0.2.0/24 dev eth0 src 192.0.2.10")
    assert warned(observed) == [
        (
            "the pod network has no IPv4 default route to copy to table 1091: clients get replies "
            "only where another of its routes leads to them; leave the default route of the pod to "
            "the pod network (Multus: no default-route)"
        )
    ]
    # A finished init has it there, and a pod without another network has nothing to reply on.
    kept = (*observed.routes, route("default via 192.0.2.1 dev eth0 table 1091"))
    assert warned(replace(observed, routes=kept)) == []
    assert warned(state("", MACVLAN0)) == []


def test_another_address_on_the_egress_interface() -> None:
    observed = state(POD + "address 203.0.113.98/25 dev macvlan0\naddress fe80::3/64 dev macvlan0")
    assert warned(observed) == [
        (
            "EGRESS_SOURCE: '203.0.113.99/25': macvlan0 has the address 203.0.113.98 too; "
            "set EGRESS_DNS_PROXY_SOURCE to 203.0.113.99 in the main container, "
            "so that remotes never see the other one"
        )
    ]


def test_an_interface_that_is_up_without_a_carrier() -> None:
    [warning] = warned(state(POD, ETH0, replace(MACVLAN0, up=True)))
    assert warning == (
        "EGRESS_INTERFACE: 'macvlan0': no carrier; "
        "check the node's interface below it: is it up, and is its cable in"
    )


def test_no_interface_no_warnings() -> None:
    assert warned(state("", ETH0)) == []


REFUSED = OSError(errno.ENETUNREACH, "Nexthop has invalid gateway")


@pytest.mark.parametrize(
    ("change", "blamed"),
    [
        (SetLink("macvlan0", up=True), "EGRESS_INTERFACE: 'macvlan0'"),
        (PutAddress(assigned("203.0.113.99/25 dev macvlan0")), "EGRESS_SOURCE: '203.0.113.99'"),
        (PutRoute(route("default via 203.0.113.1 dev macvlan0")), "EGRESS_GATEWAY: '203.0.113.1'"),
    ],
)
def test_the_kernel_refuses(change: SetLink | PutAddress | PutRule, blamed: str) -> None:
    assert str(problems.refused(change, REFUSED, V4)) == (
        f"{blamed}: the kernel refuses '{change}': Nexthop has invalid gateway; "
        "compare it with what egress-proxy check shows"
    )


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES])
def test_the_kernel_refuses_for_want_of_a_capability(number: int) -> None:
    problem = problems.refused(SetLink("macvlan0", up=True), OSError(number, "no"), V4)
    assert problem.cure == "add NET_ADMIN to securityContext.capabilities"


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (
            problems.no_packet_socket("macvlan0", OSError(errno.EPERM, "Operation not permitted")),
            (
                "EGRESS_INTERFACE: 'macvlan0': can't send and receive frames on it: Operation not "
                "permitted; add NET_RAW to securityContext.capabilities"
            ),
        ),
        (
            problems.address_in_use(ip_address("203.0.113.99"), ""),
            (
                "EGRESS_SOURCE: '203.0.113.99': another host has this address already; "
                "reserve one address for each pod; a Deployment needs one replica and strategy "
                "Recreate, so that the old pod has gone before the new one starts"
            ),
        ),
        (
            problems.failed(OSError("no interface with this name"), V4),
            (
                "EGRESS_INTERFACE: 'macvlan0': the network failed while init ran: no interface "
                "with this name; look for something else that changes the pod's network"
            ),
        ),
        (
            problems.not_undone(SetLink("macvlan0", up=False), REFUSED),
            (
                "'ip link set macvlan0 down': could not be undone: Nexthop has invalid gateway; "
                "delete the pod"
            ),
        ),
        (
            problems.undecided(5),
            (
                "EGRESS_SOURCE: IPv6 looks for duplicates for more than 5 s; "
                "lower net.ipv6.conf.default.dad_transmits"
            ),
        ),
        (
            problems.not_in_effect(SetLink("macvlan0", up=True)),
            (
                "'ip link set macvlan0 up': was made, but is not in effect; "
                "look for something else that changes the pod's network"
            ),
        ),
    ],
)
def test_failures_of_single_steps(problem: object, text: str) -> None:
    assert str(problem) == text


def test_a_shared_address_that_the_attachment_has_added_is_a_problem() -> None:
    shared = replace(settings("203.0.113.99/25", "203.0.113.1"), shared=True)
    there = "address 192.0.2.10/24 dev eth0\naddress 203.0.113.99/25 dev macvlan0"
    [problem] = unmet_preconditions(state(there), shared)
    assert str(problem) == (
        "EGRESS_SOURCE: '203.0.113.99/25': macvlan0 has this address already, permanently; "
        "remove ipam from the network attachment: with high availability, hold takes the address, "
        "and only one pod at a time has it"
    )
    assert unmet_preconditions(state(f"{there} dynamic"), shared) == ()


REPLY = """
192.0.2.0/24 dev eth0 src 192.0.2.10 table 1091
default via 192.0.2.1 dev eth0 table 1091
"""
OWN_RULE = Rule(version=4, priority=1091, interface="macvlan0")


def foreign(text: str, *rules: Rule) -> list[str | None]:
    """The values of the problems with the reply table."""
    observed = replace(state(text), rules=rules)
    found = [
        problem
        for problem in unmet_preconditions(observed, V4)
        if "another program uses routing table 1091" in problem.reason
    ]
    return [problem.value for problem in found]


def test_what_init_itself_puts_into_the_reply_table_is_no_foreign_use() -> None:
    # An earlier run was killed before its first rule, or later.
    assert foreign(POD + REPLY) == foreign(POD + REPLY, OWN_RULE) == []
    assert foreign(POD + REPLY.splitlines()[1]) == []


@pytest.mark.parametrize(
    ("text", "rules", "value"),
    [
        # Before init has a rule: not a copy of the main table.
        ("198.18.0.0/15 via 192.0.2.1 dev eth0 table 1091", (), None),
        # After: not made by init, which makes static ones.
        (
            "198.18.0.0/15 via 192.0.2.1 dev eth0 proto 3 table 1091",
            (OWN_RULE,),
            "198.18.0.0/15 via 192.0.2.1 dev eth0 table 1091",
        ),
        ("", (replace(OWN_RULE, priority=77),), "priority 77 iif macvlan0 lookup 1091"),
        ("", (replace(OWN_RULE, foreign=True),), "priority 1091 iif macvlan0 … lookup 1091"),
    ],
)
def test_another_use_of_the_reply_table(
    text: str, rules: tuple[Rule, ...], value: str | None
) -> None:
    assert foreign(POD + text, *rules) == [value or text]


def test_rules_of_another_table_are_not_looked_at() -> None:
    assert foreign(POD, replace(OWN_RULE, table=1092, priority=1092)) == []
