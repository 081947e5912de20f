"""IPv6: both families at once, routers that advertise, sysctls that can't be written."""

from __future__ import annotations

import socket
import struct
from contextlib import contextmanager
from ipaddress import IPv6Network
from typing import TYPE_CHECKING

import pytest

from egress_proxy.init.devconf import set_sysctl
from egress_proxy.init.netlink import Netlink
from egress_proxy.init.steps import SetSysctl
from tests.netns.init_lab import (
    DUAL,
    V4,
    V6,
    answered,
    assert_works,
    default_routes,
    init,
    observe,
    seen_outside,
    settle,
    snapshot,
)
from tests.support.lab import CLIENT, GATEWAY, NODE_TO_PODS, OUTSIDE, POD, RESERVED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from egress_proxy.init.state import State
    from tests.support.lab import Lab
    from tests.support.network import Namespace

OURS = f"default via {GATEWAY.v6} dev macvlan0 src {RESERVED.v6} metric 1"
# What a router would have its hosts make addresses of.
ADVERTISED = IPv6Network("2001:db8:0:ff::/64")
# linux/in6.h and RFC 4443.
ICMPV6 = 58
ECHO_REQUEST, ECHO_REPLY = 128, 129


@pytest.mark.parametrize(
    ("source", "gateway"),
    [
        (str(RESERVED.interface6), GATEWAY.v6),
        (RESERVED.v6, GATEWAY.v6),
        (f"{RESERVED.v4},{RESERVED.v6}", f"{GATEWAY.v6},{GATEWAY.v4}"),
    ],
    ids=["prefix", "no prefix", "both"],
)
def test_traffic_both_ways(lab: Lab, source: str, gateway: str) -> None:
    env = {**V6, "EGRESS_SOURCE": source, "EGRESS_GATEWAY": gateway}
    init(lab, env).expect_done()
    assert default_routes(lab.pod, 6) == [OURS]
    assert seen_outside(lab, OUTSIDE.v6) == RESERVED.v6
    assert answered(lab, lab.client, POD.v6) == CLIENT.v6


def test_a_link_local_gateway(lab: Lab) -> None:
    local = link_local(lab.gateway, "lan0")
    result = init(lab, {**V6, "EGRESS_GATEWAY": local, "EGRESS_GATEWAY_REQUIRED": "1"})
    result.expect_done()
    assert default_routes(lab.pod, 6) == [
        f"default via {local} dev macvlan0 src {RESERVED.v6} metric 1"
    ]
    with lab.outside.listen(OUTSIDE.v6, 80), lab.pod.connect(OUTSIDE.v6, 80) as connected:
        assert connected.getsockname()[0] == RESERVED.v6


def test_a_family_without_a_source_is_left_alone(lab: Lab) -> None:
    before = default_routes(lab.pod, 6)
    init(lab, V4).expect_done()
    assert (
        default_routes(lab.pod, 6)
        == before
        == [f"default via {NODE_TO_PODS.v6} dev eth0 metric 1024"]
    )


def link_local(namespace: Namespace, interface: str) -> str:
    [address] = [
        str(assigned.address)
        for assigned in observe(namespace).addresses
        if assigned.interface == interface
        and assigned.address.version == 6
        and assigned.address.is_link_local
    ]
    return address


def advertise(router: Namespace, interface: str) -> None:
    """One router advertisement with a prefix to make addresses of (RFC 4861 section 4.2)."""
    header = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
    prefix = struct.pack("!BBBBIII16s", 3, 4, 64, 0xC0, 3600, 3600, 0, ADVERTISED[0].packed)
    with icmpv6(router, interface) as opened:
        opened.sendto(header + prefix, ("ff02::1", 0, 0, router.index(interface)))


@contextmanager
def icmpv6(namespace: Namespace, interface: str) -> Iterator[socket.socket]:
    """A raw socket on the link, with the only hop limit that RFC 4861 allows."""
    opened = namespace.call(lambda: socket.socket(socket.AF_INET6, socket.SOCK_RAW, ICMPV6))
    with opened:
        index = namespace.index(interface)
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        opened.settimeout(10)
        yield opened


def wait_for_answer(router: Namespace, interface: str, host: str) -> None:
    """Return once `host` has answered a multicast, and so has seen all that was sent before it."""
    with icmpv6(router, interface) as opened:
        request = struct.pack("!BBHHH", ECHO_REQUEST, 0, 0, 1, 1)
        opened.sendto(request, ("ff02::1", 0, 0, router.index(interface)))
        while True:
            answer, sender = opened.recvfrom(2048)
            if answer[0] == ECHO_REPLY and sender[0] == host:
                return


def wait_for_advertised(lab: Lab, interface: str) -> None:
    """Wait until the pod has made itself an address of what was advertised."""

    def made(state: State) -> bool | None:
        found = any(
            assigned.interface == interface and assigned.address in ADVERTISED
            for assigned in state.addresses
        )
        return True if found else None

    def wait() -> bool | None:
        with Netlink() as netlink:
            return netlink.wait(made, 10)

    assert lab.pod.call(wait)


def test_advertisements_on_the_lan_change_nothing(lab: Lab) -> None:
    init(lab, V6).expect_done()
    settle(lab)
    before = snapshot(lab.pod)
    advertise(lab.gateway, "lan0")
    wait_for_answer(lab.gateway, "lan0", link_local(lab.pod, "macvlan0"))
    assert snapshot(lab.pod) == before
    assert default_routes(lab.pod, 6) == [OURS]


def test_advertisements_on_the_pod_network_bring_no_default_back(lab: Lab) -> None:
    init(lab, V6).expect_done()
    advertise(lab.node, "pods0")
    # They do bring addresses, which a pod network may need.
    wait_for_advertised(lab, "eth0")
    assert default_routes(lab.pod, 6) == [OURS]


def test_a_default_that_was_advertised_before_is_kept_for_replies(lab: Lab) -> None:
    lab.pod.netlink(lambda ip: ip.route("del", dst="::/0", gateway=NODE_TO_PODS.v6))
    advertise(lab.node, "pods0")
    wait_for_advertised(lab, "eth0")
    assert len(default_routes(lab.pod, 6)) == 1
    init(lab, DUAL).expect_done()
    assert default_routes(lab.pod, 6) == [OURS]
    assert_works(lab, DUAL)


def test_advertisements_that_nothing_can_stop_come_second(lab: Lab) -> None:
    """With a read-only /proc/sys there is a second default route, which never wins."""
    result = init(lab, V6, read_only=True)
    result.expect_done()
    [warning] = result.warnings
    assert warning["variable"] == "EGRESS_INTERFACE"
    assert "set net.ipv6.conf.macvlan0.accept_ra=0" in warning["cure"]
    advertise(lab.gateway, "lan0")
    wait_for_advertised(lab, "macvlan0")
    advertise(lab.node, "pods0")
    wait_for_advertised(lab, "eth0")
    both = default_routes(lab.pod, 6)
    assert OURS in both
    assert len(both) > 1
    with lab.outside.listen(OUTSIDE.v6, 80), lab.pod.connect(OUTSIDE.v6, 80) as connected:
        assert connected.getsockname()[0] == RESERVED.v6
    # The pod network has a new address and a new router, and those are learnt; then all is done.
    init(lab, V6, read_only=True).expect_done()
    assert init(lab, V6, read_only=True).expect_done()["steps"] == 0
    assert default_routes(lab.pod, 6) == both


def test_ipv6_that_is_off_is_switched_on(lab: Lab) -> None:
    lab.pod.sysctl("ipv6/conf/macvlan0/disable_ipv6", 1)
    init(lab, V6).expect_done()
    assert default_routes(lab.pod, 6) == [OURS]


def test_ipv6_that_is_off_and_must_stay_so_is_refused(lab: Lab) -> None:
    lab.pod.sysctl("ipv6/conf/macvlan0/disable_ipv6", 1)
    before = snapshot(lab.pod)
    result = init(lab, V6, read_only=True)
    assert result.status == 1
    assert result.failure == (
        f"EGRESS_SOURCE: '{RESERVED.interface6}': IPv6 is off on macvlan0, and /proc/sys is "
        "read-only; set net.ipv6.conf.macvlan0.disable_ipv6=0, for example with the CNI plugin "
        "tuning in the network attachment, or run init privileged\n"
    )
    assert snapshot(lab.pod) == before


@pytest.mark.parametrize(("name", "value"), [("forwarding", 1), ("rp_filter", 2)])
def test_ipv4_sysctls_go_over_netlink(lab: Lab, name: str, value: int) -> None:
    """For the data path to come, in a container that can't write to /proc/sys."""
    lab.pod.call(lambda: set_sysctl(SetSysctl("ipv4/conf", "eth0", name, value)))
    link = observe(lab.pod).link("eth0")
    assert link is not None
    assert getattr(link.ipv4, name) == value


def test_a_sysctl_that_the_kernel_refuses(lab: Lab) -> None:
    with pytest.raises(FileNotFoundError):
        lab.pod.call(lambda: set_sysctl(SetSysctl("ipv6/conf", "eth0", "no_such", 0)))
