"""Attachments as Multus makes them: Debian's real macvlan plugin with static addresses."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.netns.init_lab import DUAL, V4, assert_works, default_routes, init, observe
from tests.support.lab import CLIENT, GATEWAY, NODE_TO_PODS, RESERVED
from tests.support.needs import do_without

if TYPE_CHECKING:
    from tests.support.lab import Lab

PLUGINS = Path("/usr/lib/cni")
ON_NET1 = {"EGRESS_INTERFACE": "net1"}


@pytest.fixture(autouse=True)
def plugins() -> None:
    """Debian has them in the package containernetworking-plugins."""
    if not (PLUGINS / "macvlan").exists() or not (PLUGINS / "static").exists():
        do_without(f"no CNI plugins in {PLUGINS}")


def attach(lab: Lab, directory: Path, **ipam: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    """Have the plugin make ``net1`` in the pod, as a runtime on the node would; its result."""
    path = directory / "net1.json"
    configuration = {
        "cniVersion": "1.0.0",
        "name": "egress",
        "type": "macvlan",
        "master": "lan0",
        "mode": "bridge",
        "ipam": {"type": "static", **ipam} if ipam else {},
    }
    path.write_text(json.dumps(configuration))
    environ = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "pod",
        "CNI_NETNS": f"/proc/{os.getpid()}/fd/{lab.pod.descriptor}",
        "CNI_IFNAME": "net1",
        "CNI_PATH": str(PLUGINS),
    }
    script = f"exec {PLUGINS}/macvlan < {path}"
    done = lab.node.run("/bin/sh", "-c", script, env=environ)
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def addresses(lab: Lab, interface: str) -> set[str]:
    return {
        f"{held.address}/{held.length}"
        for held in observe(lab.pod).addresses
        if held.interface == interface and not held.address.is_link_local
    }


@pytest.mark.parametrize("length", [25, 32])
@pytest.mark.parametrize("source", [RESERVED.v4, f"{RESERVED.v4}/25", f"{RESERVED.v4}/32"])
def test_an_address_of_any_length_for_a_source_of_any_length(
    lab: Lab, tmp_path: Path, length: int, source: str
) -> None:
    given = f"{RESERVED.v4}/{length}"
    attach(lab, tmp_path, addresses=[{"address": given}])
    env = V4 | ON_NET1 | {"EGRESS_SOURCE": source}
    init(lab, env).expect_done()
    assert addresses(lab, "net1") == {given}
    assert_works(lab, env)


def test_an_attachment_without_an_address(lab: Lab, tmp_path: Path) -> None:
    """That is an attachment without IPAM; the plugin `static` wants an address."""
    attach(lab, tmp_path)
    init(lab, V4 | ON_NET1).expect_done()
    assert_works(lab, V4 | ON_NET1)


def test_a_route_to_the_gateway(lab: Lab, tmp_path: Path) -> None:
    attach(
        lab,
        tmp_path,
        addresses=[{"address": f"{RESERVED.v4}/32"}],
        routes=[{"dst": f"{GATEWAY.v4}/32"}],
    )
    env = V4 | ON_NET1 | {"EGRESS_SOURCE": RESERVED.v4}
    init(lab, env).expect_done()
    assert_works(lab, env)


def test_both_families(lab: Lab, tmp_path: Path) -> None:
    attach(
        lab,
        tmp_path,
        addresses=[
            {"address": str(RESERVED.interface4), "gateway": GATEWAY.v4},
            {"address": str(RESERVED.interface6), "gateway": GATEWAY.v6},
        ],
    )
    init(lab, DUAL | ON_NET1).expect_done()
    assert_works(lab, DUAL | ON_NET1)


def test_the_attachment_has_the_default_route(lab: Lab, tmp_path: Path) -> None:
    """As with Multus' ``default-route``, which takes that of the pod network away."""
    clients = str(CLIENT.interface4.network)
    lab.pod.netlink(lambda ip: ip.route("del", dst="default", gateway=NODE_TO_PODS.v4))
    lab.pod.netlink(lambda ip: ip.route("add", dst=clients, gateway=NODE_TO_PODS.v4))
    attach(
        lab,
        tmp_path,
        addresses=[{"address": str(RESERVED.interface4)}],
        routes=[{"dst": "0.0.0.0/0", "gw": GATEWAY.v4}],
    )
    assert default_routes(lab.pod, 4) == [f"default via {GATEWAY.v4} dev net1"]
    result = init(lab, V4 | ON_NET1)
    result.expect_done()
    assert len(result.warnings) == 1
    assert_works(lab, V4 | ON_NET1)
