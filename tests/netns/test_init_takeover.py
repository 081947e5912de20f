"""init in a real pod: an address on a real macvlan, the way out over it, and the way back home."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from tests.netns.init_lab import (
    DUAL,
    NEEDED,
    V4,
    answered,
    default_routes,
    drain,
    init,
    monitor,
    seen_outside,
    settle,
    snapshot,
)
from tests.support.lab import CLIENT, CLUSTER_DNS, GATEWAY, NODE_TO_LAN, OUTSIDE, POD, RESERVED

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.lab import Lab


@pytest.fixture
def resolv_conf(tmp_path: Path) -> Path:
    path = tmp_path / "resolv.conf"
    path.write_text(f"nameserver {CLUSTER_DNS.v4}\nnameserver {CLUSTER_DNS.v6}\n")
    return path


def test_the_outside_sees_the_reserved_address(lab: Lab) -> None:
    init(lab, V4).expect_done()
    assert seen_outside(lab, OUTSIDE.v4) == RESERVED.v4


def test_a_client_on_another_subnet_gets_its_replies(lab: Lab) -> None:
    init(lab, V4).expect_done()
    assert answered(lab, lab.client, POD.v4) == CLIENT.v4


def test_a_client_on_the_egress_lan_gets_its_replies_over_the_pod_network(lab: Lab) -> None:
    """As through a node port that keeps the client's address: the node expects the replies."""
    lab.gateway.netlink(
        lambda ip: ip.route("add", dst=str(POD.interface4.network), gateway=NODE_TO_LAN.v4)
    )
    init(lab, V4).expect_done()
    assert answered(lab, lab.gateway, POD.v4) == GATEWAY.v4


@pytest.mark.parametrize("server", [CLUSTER_DNS.v4, CLUSTER_DNS.v6])
def test_the_name_server_is_still_asked_over_the_pod_network(
    lab: Lab, resolv_conf: Path, server: str
) -> None:
    init(lab, DUAL, resolv_conf=resolv_conf).expect_done()
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with (
        lab.node.open_socket(family, socket.SOCK_DGRAM) as listener,
        lab.pod.open_socket(family, socket.SOCK_DGRAM) as asker,
    ):
        listener.bind((server, 53))
        listener.settimeout(5)
        asker.sendto(b"question", (server, 53))
        question, sender = listener.recvfrom(512)
        assert question == b"question"
        assert sender[0] in {POD.v4, POD.v6}


def test_a_second_run_changes_nothing(lab: Lab, resolv_conf: Path) -> None:
    """Seen by a monitor, which a plan without steps would not be enough for."""
    with monitor(lab.pod) as changes:
        init(lab, DUAL, resolv_conf=resolv_conf).expect_done()
        settle(lab)
        assert drain(changes) > 0
        before = snapshot(lab.pod)
        assert init(lab, DUAL, resolv_conf=resolv_conf).expect_done()["steps"] == 0
        assert drain(changes) == 0
    assert snapshot(lab.pod) == before


def test_every_step_is_logged_for_debugging(lab: Lab) -> None:
    result = init(lab, {**V4, "EGRESS_ROUTER_DEBUG": "1"})
    steps = [record["command"] for record in result.records if record["event"] == "init.step"]
    assert len(steps) == result.expect_done()["steps"]
    assert steps[-1] == (
        f"ip route replace default via {GATEWAY.v4} dev macvlan0 src {RESERVED.v4}"
    )


@pytest.mark.parametrize(
    ("changes", "capabilities", "status", "said"),
    [
        (
            {"EGRESS_INTERFACE": "net1"},
            NEEDED,
            1,
            "EGRESS_INTERFACE: 'net1': no such interface (there are eth0, macvlan0); ",
        ),
        ({"EGRESS_SOURCE": POD.v4}, NEEDED, 1, "the pod has this address on eth0; "),
        ({"EGRESS_SOURCE": "203.0.113.999"}, NEEDED, 2, "not an IP address; "),
        ({}, ("NET_ADMIN",), 1, "init has no capability NET_RAW; "),
        ({}, ("NET_RAW",), 1, "init has no capability NET_ADMIN; "),
    ],
)
def test_a_refusal_is_one_line_and_leaves_everything_as_it_was(
    lab: Lab,
    changes: dict[str, str],
    capabilities: tuple[str, ...],
    status: int,
    said: str,
) -> None:
    before = snapshot(lab.pod)
    result = init(lab, {**V4, **changes}, capabilities=capabilities)
    assert (result.status, result.failure.count("\n")) == (status, 1)
    assert said in result.failure
    assert snapshot(lab.pod) == before
    assert default_routes(lab.pod, 4) == ["default via 192.0.2.1 dev eth0"]
