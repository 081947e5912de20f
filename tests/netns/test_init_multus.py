"""Attachments as Multus makes them: those of `deploy/overlays`, and with static addresses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.netns.init_lab import (
    DUAL,
    V4,
    answered,
    assert_works,
    default_routes,
    init,
    observe,
    seen_outside,
)
from tests.support import attachments
from tests.support.attachments import macvlan, shipped
from tests.support.lab import CLIENT, GATEWAY, NODE_TO_PODS, OUTSIDE, POD, RESERVED

if TYPE_CHECKING:
    from tests.support.lab import Lab

ON_NET1 = {"EGRESS_INTERFACE": "net1"}


@pytest.fixture(autouse=True)
def plugins() -> None:
    attachments.require_plugins()


def attach(lab: Lab, **ipam: Any) -> None:  # noqa: ANN401 - JSON
    """Give the pod ``net1`` with the addresses of `ipam`, as an attachment of one plugin does."""
    attachments.attach(
        lab, "net1", macvlan("lan0", {"type": "static", **ipam} if ipam else {}, tuning=False)
    )


def make_bridge(lab: Lab) -> None:
    """Make the node's interface on the LAN a port of br-ex, as OVN-Kubernetes does."""
    macvlan0, lan = lab.pod.index("macvlan0"), lab.node.index("lan0")
    lab.pod.netlink(lambda ip: ip.link("del", index=macvlan0))
    lab.node.netlink(lambda ip: ip.link("add", ifname="br-ex", kind="bridge"))
    bridge = lab.node.index("br-ex")
    lab.node.netlink(lambda ip: ip.link("set", index=lan, master=bridge))
    lab.node.configure("br-ex")


@pytest.mark.parametrize("env", [V4, DUAL], ids=["IPv4", "both families"])
def test_the_shipped_macvlan_works_without_a_warning(lab: Lab, env: dict[str, str]) -> None:
    attachments.attach(lab, "net1", macvlan("lan0", ipam={}))
    result = init(lab, env | ON_NET1, read_only=True)
    result.expect_done()
    assert result.warnings == []
    assert_works(lab, env | ON_NET1, read_only=True)


def test_an_address_of_the_pods_annotation(lab: Lab) -> None:
    address = str(RESERVED.interface4)
    attachments.attach(lab, "net1", attachments.with_addresses("lan0"), ips=(address,))
    assert addresses(lab, "net1") == {address}
    result = init(lab, V4 | ON_NET1, read_only=True)
    result.expect_done()
    assert result.warnings == []
    assert_works(lab, V4 | ON_NET1, read_only=True)


def test_a_macvlan_needs_br_ex_where_that_has_the_only_interface(lab: Lab) -> None:
    make_bridge(lab)
    with pytest.raises(OSError, match="device or resource busy"):
        attachments.attach(lab, "net1", macvlan("lan0", ipam={}))
    attachments.attach(lab, "net1", macvlan("br-ex", ipam={}))
    init(lab, V4 | ON_NET1).expect_done()
    assert_works(lab, V4 | ON_NET1)


def attach_localnet(lab: Lab) -> None:
    """A port of OVN-Kubernetes' switch: a veth whose other end is a port of the node's bridge.

    The plugin itself needs a cluster.
    """
    assert "subnets" not in shipped("ovn-localnet")  # so the interface has no address
    make_bridge(lab)
    lab.pod.join("net1", lab.node, "port0")
    port, bridge = lab.node.index("port0"), lab.node.index("br-ex")
    lab.node.netlink(lambda ip: ip.link("set", index=port, master=bridge, state="up"))


def test_a_localnet_of_ovn_kubernetes(lab: Lab) -> None:
    attach_localnet(lab)
    result = init(lab, DUAL | ON_NET1, read_only=True)
    result.expect_done()
    # OVN-Kubernetes allows no second plugin that could set it.
    (warning,) = result.warnings
    assert (warning["value"], warning["reason"][:18]) == ("net1", "routers on the LAN")
    assert_works(lab, DUAL | ON_NET1, read_only=True)


def test_a_localnet_in_a_pod_without_ipv6_gives_no_warning(lab: Lab) -> None:
    lab.pod.sysctl("ipv6/conf/eth0/disable_ipv6", 1)
    attach_localnet(lab)
    result = init(lab, V4 | ON_NET1, read_only=True)
    result.expect_done()
    assert result.warnings == []
    assert seen_outside(lab, OUTSIDE.v4) == RESERVED.v4
    assert answered(lab, lab.client, POD.v4) == CLIENT.v4


def addresses(lab: Lab, interface: str) -> set[str]:
    return {
        f"{assigned.address}/{assigned.length}"
        for assigned in observe(lab.pod).addresses
        if assigned.interface == interface and not assigned.address.is_link_local
    }


@pytest.mark.parametrize("length", [25, 32])
@pytest.mark.parametrize("source", [RESERVED.v4, f"{RESERVED.v4}/25", f"{RESERVED.v4}/32"])
def test_an_address_of_any_length_for_a_source_of_any_length(
    lab: Lab, length: int, source: str
) -> None:
    given = f"{RESERVED.v4}/{length}"
    attach(lab, addresses=[{"address": given}])
    env = V4 | ON_NET1 | {"EGRESS_SOURCE": source}
    init(lab, env).expect_done()
    assert addresses(lab, "net1") == {given}
    assert_works(lab, env)


def test_an_attachment_without_an_address(lab: Lab) -> None:
    """That is an attachment without IPAM; the plugin `static` wants an address."""
    attach(lab)
    init(lab, V4 | ON_NET1).expect_done()
    assert_works(lab, V4 | ON_NET1)


def test_a_route_to_the_gateway(lab: Lab) -> None:
    attach(
        lab,
        addresses=[{"address": f"{RESERVED.v4}/32"}],
        routes=[{"dst": f"{GATEWAY.v4}/32"}],
    )
    env = V4 | ON_NET1 | {"EGRESS_SOURCE": RESERVED.v4}
    init(lab, env).expect_done()
    assert_works(lab, env)


def test_both_families(lab: Lab) -> None:
    attach(
        lab,
        addresses=[
            {"address": str(RESERVED.interface4), "gateway": GATEWAY.v4},
            {"address": str(RESERVED.interface6), "gateway": GATEWAY.v6},
        ],
    )
    init(lab, DUAL | ON_NET1).expect_done()
    assert_works(lab, DUAL | ON_NET1)


def test_the_attachment_has_the_default_route(lab: Lab) -> None:
    """As with Multus' ``default-route``, which takes that of the pod network away."""
    clients = str(CLIENT.interface4.network)
    lab.pod.netlink(lambda ip: ip.route("del", dst="default", gateway=NODE_TO_PODS.v4))
    lab.pod.netlink(lambda ip: ip.route("add", dst=clients, gateway=NODE_TO_PODS.v4))
    attach(
        lab,
        addresses=[{"address": str(RESERVED.interface4)}],
        routes=[{"dst": "0.0.0.0/0", "gw": GATEWAY.v4}],
    )
    assert default_routes(lab.pod, 4) == [f"default via {GATEWAY.v4} dev net1"]
    result = init(lab, V4 | ON_NET1)
    result.expect_done()
    assert len(result.warnings) == 1
    assert_works(lab, V4 | ON_NET1)
