"""Whatever a CNI or an earlier run has left in the pod, init ends in a pod that works."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from egress_proxy.init.netlink import Netlink
from tests.netns.init_lab import (
    DUAL,
    V4,
    assert_works,
    default_routes,
    init,
    routes,
    seen_outside,
    snapshot,
)
from tests.support.lab import (
    CLIENT,
    EGRESS_PROXY,
    GATEWAY,
    NODE_TO_PODS,
    OUTSIDE,
    POD,
    RESERVED,
    Lab,
)
from tests.support.network import Host

if TYPE_CHECKING:
    from pyroute2 import IPRoute

    from egress_proxy.init.state import State
    from tests.support.network import Namespace

# On the LAN as well, and not reserved for us.
OTHER = Host.of("203.0.113.98/25", "2001:db8:0:3::98/64")
# A gateway that is on no subnet of the pod's, as Calico's 169.254.1.1.
LINK_GATEWAY = "198.51.100.254"


def change_routes(namespace: Namespace, *changes: tuple[str, dict[str, object]]) -> None:
    def change(ip: IPRoute) -> None:
        for command, fields in changes:
            ip.route(command, **fields)

    namespace.netlink(change)


def eth0(lab: Lab) -> int:
    return lab.pod.index("eth0")


def test_the_address_and_its_prefix_are_there(lab: Lab) -> None:
    lab.pod.configure("macvlan0", RESERVED)
    done = init(lab, V4).expect_done()
    assert done["steps"] > 0
    assert_works(lab, V4)


def test_a_route_to_the_gateway_is_there_and_the_default_is_not(lab: Lab) -> None:
    """The original takes ``ip route get <gateway>`` over macvlan0 for a finished init."""
    lab.pod.configure("macvlan0", Host.of(f"{RESERVED.v4}/32", f"{RESERVED.v6}/128"))
    oif = lab.pod.index("macvlan0")
    change_routes(lab.pod, ("add", {"dst": f"{GATEWAY.v4}/32", "oif": oif, "scope": "link"}))
    init(lab, {**V4, "EGRESS_SOURCE": RESERVED.v4}).expect_done()
    assert default_routes(lab.pod, 4) == [
        f"default via {GATEWAY.v4} dev macvlan0 src {RESERVED.v4}"
    ]
    assert_works(lab, {**V4, "EGRESS_SOURCE": RESERVED.v4})


def test_the_default_is_over_the_egress_interface_already(lab: Lab) -> None:
    """Multus with ``default-route``: the cluster has routes of its own over eth0."""
    lab.pod.configure("macvlan0", RESERVED)
    clients = str(CLIENT.interface4.network)
    change_routes(
        lab.pod,
        ("add", {"dst": clients, "gateway": NODE_TO_PODS.v4}),
        ("replace", {"dst": "default", "gateway": GATEWAY.v4}),
    )
    result = init(lab, V4)
    result.expect_done()
    [warning] = result.warnings
    assert warning["reason"] == (
        "the pod network has no IPv4 default route to copy to table 1091: "
        "clients get replies only where another of its routes leads to them"
    )
    assert_works(lab, V4)


def test_two_default_routes(lab: Lab) -> None:
    """The one that wins is the one that replies took before."""
    unreachable = {"dst": "default", "gateway": "192.0.2.77", "priority": 200}
    change_routes(
        lab.pod,
        ("del", {"dst": "default", "gateway": NODE_TO_PODS.v4}),
        ("add", {"dst": "default", "gateway": NODE_TO_PODS.v4, "priority": 100}),
        ("add", unreachable),
    )
    init(lab, V4).expect_done()
    assert default_routes(lab.pod, 4) == [
        f"default via {GATEWAY.v4} dev macvlan0 src {RESERVED.v4}"
    ]
    assert_works(lab, V4)


@pytest.mark.parametrize("version", [4, 6])
def test_a_multipath_default_route(lab: Lab, version: int) -> None:
    """Both lead to the same node, over another address of it."""
    lab.node.configure("pods0", Host.of("192.0.2.2/24", "2001:db8:0:2::2/64"))
    ways = (NODE_TO_PODS.v4, "192.0.2.2") if version == 4 else (NODE_TO_PODS.v6, "2001:db8:0:2::2")
    multipath = [{"gateway": way, "oif": eth0(lab)} for way in ways]
    everywhere = "0.0.0.0/0" if version == 4 else "::/0"
    change_routes(lab.pod, ("replace", {"dst": everywhere, "multipath": multipath}))
    [before] = default_routes(lab.pod, version)
    assert before.count("nexthop") == 2
    init(lab, DUAL).expect_done()
    assert before.replace("default", "default table 1091", 1) in routes(lab.pod)
    assert_works(lab, DUAL)


def test_the_metrics_of_the_default_route_are_kept(lab: Lab) -> None:
    """Clouds have an MTU there, and where it is lost, large packets are."""
    metrics = {"mtu": 1400, "advmss": 1300}
    change_routes(
        lab.pod, ("replace", {"dst": "default", "gateway": NODE_TO_PODS.v4, "metrics": metrics})
    )
    init(lab, V4).expect_done()
    assert f"default via {NODE_TO_PODS.v4} dev eth0 table 1091 advmss 1300 mtu 1400" in routes(
        lab.pod
    )
    assert_works(lab, V4)


def test_no_default_route(lab: Lab) -> None:
    """Then only the pod's own subnet gets replies, as before, and the default route is there."""
    change_routes(lab.pod, ("del", {"dst": "default", "gateway": NODE_TO_PODS.v4}))
    result = init(lab, V4)
    result.expect_done()
    assert len(result.warnings) == 1
    assert seen_outside(lab, OUTSIDE.v4) == RESERVED.v4
    with lab.pod.listen(POD.v4, 80), lab.node.connect(POD.v4, 80):
        pass


@pytest.mark.parametrize("onlink", [False, True])
def test_a_gateway_beyond_every_subnet(lab: Lab, *, onlink: bool) -> None:
    """On the link by a route of its own, as Calico has it, or by a flag, as others do."""
    oif = eth0(lab)
    own = {"index": oif, "address": POD.v4}
    lab.pod.netlink(lambda ip: ip.addr("del", prefixlen=24, **own))
    lab.pod.netlink(lambda ip: ip.addr("add", prefixlen=32, **own))
    lab.node.configure("pods0", Host.of(f"{LINK_GATEWAY}/32", "2001:db8:0:2::fe/64"))
    way = {"dst": "default", "gateway": LINK_GATEWAY, "oif": oif}
    if onlink:
        change_routes(lab.pod, ("add", {**way, "flags": ["onlink"]}))
    else:
        link = {"dst": f"{LINK_GATEWAY}/32", "oif": oif, "scope": "link"}
        change_routes(lab.pod, ("add", link), ("add", way))
    [before] = default_routes(lab.pod, 4)
    assert before.endswith("onlink") == onlink
    init(lab, V4).expect_done()
    assert {f"{before} table 1091", f"{LINK_GATEWAY} dev eth0"} <= routes(lab.pod)
    assert_works(lab, V4)


def test_more_addresses_than_one(lab: Lab) -> None:
    lab.pod.configure("eth0", Host.of("192.0.2.11/24", "2001:db8:0:2::11/64"))
    init(lab, V4).expect_done()
    with lab.pod.listen("192.0.2.11", 80), lab.client.connect("192.0.2.11", 80):
        pass
    assert_works(lab, V4)


def test_another_address_on_the_egress_interface(lab: Lab) -> None:
    """The route says which one the kernel takes, and a warning says what the proxy needs."""
    lab.pod.configure("macvlan0", OTHER)
    result = init(lab, V4)
    result.expect_done()
    [warning] = result.warnings
    assert warning["reason"] == f"macvlan0 has the address {OTHER.v4} too"
    assert warning["cure"] == (
        f"set EGRESS_DNS_PROXY_SOURCE to {RESERVED.v4} in the main container, "
        "so that remotes never see the other one"
    )
    assert_works(lab, V4)


def test_an_interface_without_a_carrier(lab: Lab) -> None:
    """It is waited for, and if it never comes then everything is as before."""
    lan0 = lab.node.index("lan0")
    lab.node.netlink(lambda ip: ip.link("set", index=lan0, state="down"))
    before = snapshot(lab.pod)
    started = time.monotonic()
    result = init(lab, V4)
    assert result.status == 1
    assert time.monotonic() - started > 5
    assert result.failure == (
        "EGRESS_INTERFACE: 'macvlan0': no carrier within 5 s; "
        "check the node's interface below it: is it up, and is its cable in\n"
    )
    assert snapshot(lab.pod) == before


def test_an_interface_whose_carrier_comes_late(lab: Lab) -> None:
    lan0 = lab.node.index("lan0")
    lab.node.netlink(lambda ip: ip.link("set", index=lan0, state="down"))
    with lab.pod.start(EGRESS_PROXY, "init", env={**V4, "EGRESS_ROUTER_DEBUG": "1"}) as process:
        process.wait_for("init.step", command="ip link set macvlan0 up")
        lab.node.netlink(lambda ip: ip.link("set", index=lan0, state="up"))
        process.wait_for("init.done")
        assert process.wait() == 0


def test_a_wait_ends_with_the_change(lab: Lab) -> None:
    """The carrier comes after the first look, and nothing but the kernel's message tells of it."""
    lan0, macvlan0 = lab.node.index("lan0"), lab.pod.index("macvlan0")
    lab.node.netlink(lambda ip: ip.link("set", index=lan0, state="down"))
    lab.pod.netlink(lambda ip: ip.link("set", index=macvlan0, state="up"))
    looks = []

    def check(state: State) -> bool | None:
        link = state.link("macvlan0")
        assert link is not None
        looks.append(link.carrier)
        if len(looks) == 1:
            lab.node.netlink(lambda ip: ip.link("set", index=lan0, state="up"))
        return link.carrier or None

    def wait() -> bool | None:
        with Netlink() as netlink:
            return netlink.wait(check, 60)

    started = time.monotonic()
    assert lab.pod.call(wait)
    assert time.monotonic() - started < 30
    assert not looks[0]


@pytest.mark.parametrize("rp_filter", [0, 1, 2])
def test_any_reverse_path_filter(rp_filter: int) -> None:
    with Lab(rp_filter=rp_filter) as lab:
        init(lab, V4).expect_done()
        assert_works(lab, V4)
