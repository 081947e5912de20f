"""Duplicate detection, announcements, and the probe of the gateway, on a real LAN."""

from __future__ import annotations

import socket
from collections import Counter
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import pytest

from egress_proxy.lan.frames import ETH_P_ARP, ETH_P_IPV6, parse, probe
from tests.netns.init_lab import DUAL, V4, V6, default_routes, init, observe, snapshot
from tests.support.lab import EGRESS_PROXY, NODE_TO_PODS, OUTSIDE, RESERVED, Lab

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.network import Namespace
    from tests.support.processes import Record

_ARP_REPLY = b"\0\2"


def mac(namespace: Namespace, interface: str) -> str:
    link = observe(namespace).link(interface)
    assert link is not None
    return link.mac


@pytest.fixture
def arp(lab: Lab) -> Iterator[socket.socket]:
    """Hears the ARP of the LAN, as the gateway."""
    with lab.gateway.open_socket(socket.AF_PACKET, socket.SOCK_DGRAM) as opened:
        opened.bind(("lan0", ETH_P_ARP))
        yield opened


def frames(opened: socket.socket) -> Iterator[tuple[bytes, bytes]]:
    """The sender and the payload of each frame that came in so far."""
    opened.setblocking(False)
    while True:
        try:
            payload, (_, _, _, _, sender) = opened.recvfrom(2048)
        except BlockingIOError:
            return
        yield sender, payload


@pytest.mark.parametrize("env", [V4, V6, DUAL], ids=["IPv4", "IPv6", "both"])
def test_an_address_that_another_host_has_is_refused(lab: Lab, env: dict[str, str]) -> None:
    lab.gateway.configure("lan0", RESERVED)
    before = snapshot(lab.pod)
    result = init(lab, env)
    assert result.status == 1
    assert result.failure.count("\n") == 1
    assert f": {mac(lab.gateway, 'lan0')} has this address already; reserve " in result.failure
    assert snapshot(lab.pod) == before


def init_while_the_gateway_probes(lab: Lab, arp: socket.socket, address: str) -> Record:
    """The last record of init, when another host probes for `address` just then."""
    with lab.pod.start(EGRESS_PROXY, "init", env=V4) as process:
        arp.settimeout(10)
        claim = None
        while claim is None or claim.probes is None:
            payload, (_, ethertype, _, _, sender) = arp.recvfrom(2048)
            claim = parse(ethertype, sender, payload)
        own = bytes.fromhex(mac(lab.gateway, "lan0").replace(":", ""))
        sent = probe(own, IPv4Address(address))
        arp.sendto(sent.payload, ("lan0", ETH_P_ARP, 0, 0, sent.destination))
        process.wait()
        return process.records[-1]


def test_a_host_that_probes_at_the_same_time_is_a_conflict(lab: Lab, arp: socket.socket) -> None:
    record = init_while_the_gateway_probes(lab, arp, RESERVED.v4)
    assert record["event"] == "init.failed"
    [problem] = record["problems"]
    assert f"{mac(lab.gateway, 'lan0')} has this address already" in problem


def test_a_host_that_probes_for_another_address_is_none(lab: Lab, arp: socket.socket) -> None:
    record = init_while_the_gateway_probes(lab, arp, "203.0.113.98")
    assert record["event"] == "init.done"


def test_an_interface_that_goes_away_on_the_way(lab: Lab, arp: socket.socket) -> None:
    """The attachment is taken back while init waits for answers."""
    with lab.pod.start(EGRESS_PROXY, "init", env=V4) as process:
        arp.settimeout(10)
        arp.recv(2048)
        index = lab.pod.index("macvlan0")
        lab.pod.netlink(lambda ip: ip.link("del", index=index))
        assert process.wait() == 1
        first, *left = process.records[-1]["problems"]
    assert first.startswith("EGRESS_INTERFACE: 'macvlan0': the network failed while init ran: ")
    assert all("could not be undone" in line for line in left)
    assert default_routes(lab.pod, 4) == [f"default via {NODE_TO_PODS.v4} dev eth0"]


def test_three_probes_and_three_announcements_of_each_kind(lab: Lab, arp: socket.socket) -> None:
    init(lab, V4).expect_done()
    own = mac(lab.pod, "macvlan0")
    reserved = socket.inet_aton(RESERVED.v4)
    kinds: Counter[str] = Counter()
    for sender, payload in frames(arp):
        if sender.hex(":") == own:
            source, target = payload[14:18], payload[24:28]
            if (source, target) == (bytes(4), reserved):
                kinds["probe"] += 1
            elif (source, target) == (reserved, reserved):
                kinds["reply" if payload[6:8] == _ARP_REPLY else "request"] += 1
    assert kinds == {"probe": 3, "request": 3, "reply": 3}


def test_three_unsolicited_advertisements(lab: Lab) -> None:
    with lab.gateway.open_socket(socket.AF_PACKET, socket.SOCK_DGRAM) as nd:
        nd.bind(("lan0", ETH_P_IPV6))
        init(lab, V6).expect_done()
        claim = [parse(ETH_P_IPV6, sender, payload) for sender, payload in frames(nd)]
    own = bytes.fromhex(mac(lab.pod, "macvlan0").replace(":", ""))
    told = [one for one in claim if one is not None and str(one.has) == RESERVED.v6]
    assert [one.mac for one in told] == [own] * 3


def test_the_neighbours_learn_a_new_place_at_once(lab: Lab) -> None:
    """The gateway believes that the address is where a former pod was."""
    stale = {"dst": RESERVED.v4, "lladdr": "02:00:00:00:00:99", "nud": "stale"}
    index = lab.gateway.index("lan0")
    lab.gateway.netlink(lambda ip: ip.neigh("add", ifindex=index, **stale))
    init(lab, V4).expect_done()
    [entry] = lab.gateway.netlink(lambda ip: ip.get_neighbours(dst=RESERVED.v4))
    assert entry.get("lladdr") == mac(lab.pod, "macvlan0")


def test_a_silent_gateway_is_a_warning(lab: Lab) -> None:
    silent = {"EGRESS_GATEWAY": "203.0.113.77,2001:db8:0:3::77"}
    result = init(lab, DUAL | silent)
    result.expect_done()
    assert [warning["value"] for warning in result.warnings] == silent["EGRESS_GATEWAY"].split(",")
    for warning in result.warnings:
        assert warning["variable"] == "EGRESS_GATEWAY"
        assert warning["reason"] == "does not answer on macvlan0"
        assert all(cause in warning["cure"] for cause in ("MAC", "parent interface", "VLAN"))


def test_a_silent_gateway_fails_where_it_is_required(lab: Lab) -> None:
    before = snapshot(lab.pod)
    silent = {"EGRESS_GATEWAY": "203.0.113.77", "EGRESS_GATEWAY_REQUIRED": "1"}
    result = init(lab, V4 | silent)
    assert result.status == 1
    assert result.failure.startswith(
        "EGRESS_GATEWAY: '203.0.113.77': does not answer on macvlan0; "
    )
    assert snapshot(lab.pod) == before


def test_a_gateway_that_answers_satisfies_the_requirement(lab: Lab) -> None:
    result = init(lab, {**DUAL, "EGRESS_GATEWAY_REQUIRED": "1"})
    result.expect_done()
    assert result.warnings == []


def test_an_address_that_is_there_already_is_still_probed_for(lab: Lab) -> None:
    """Two pods of one Multus attachment: the CNI gives both the address without a check."""
    lab.pod.configure("macvlan0", RESERVED)
    lab.gateway.configure("lan0", RESERVED)
    before = snapshot(lab.pod)
    result = init(lab, V4)
    assert (result.status, mac(lab.gateway, "lan0") in result.failure) == (1, True)
    assert snapshot(lab.pod) == before


def test_another_owner_that_has_gone_is_forgotten(lab: Lab) -> None:
    """The kernel keeps an IPv6 address as a duplicate for ever; init tries again."""
    lab.gateway.configure("lan0", RESERVED)
    index = lab.pod.index("macvlan0")
    address = {"address": RESERVED.v6, "prefixlen": RESERVED.interface6.network.prefixlen}
    lab.pod.netlink(lambda ip: ip.link("set", index=index, state="up"))
    lab.pod.netlink(lambda ip: ip.addr("add", index=index, **address))
    assert init(lab, V6).status == 1
    there = lab.gateway.index("lan0")
    lab.gateway.netlink(lambda ip: ip.addr("del", index=there, **address))
    init(lab, V6).expect_done()
    with lab.outside.listen(OUTSIDE.v6, 80), lab.pod.connect(OUTSIDE.v6, 80) as connected:
        assert connected.getsockname()[0] == RESERVED.v6
