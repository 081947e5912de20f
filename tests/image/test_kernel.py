"""The pod of `deploy/overlays/kernel`: the image's own nft as data plane, in a real container."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.image.containers import Pod
from tests.image.test_manifests import environment, pod_of, render
from tests.support.attachments import attach, macvlan
from tests.support.lab import GATEWAY, OUTSIDE, POD, RESERVED

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.lab import Lab

pytestmark = pytest.mark.usefixtures("images")


def overlay() -> dict[str, Any]:
    """The pod as the overlay renders it, with its variables in place, for the laboratory's LAN."""
    lan = {"EGRESS_SOURCE": str(RESERVED.interface4), "EGRESS_GATEWAY": GATEWAY.v4}
    resources = render("overlays/kernel")
    pod = pod_of(resources)
    for container in (*pod["spec"]["initContainers"], *pod["spec"]["containers"]):
        settings = environment(resources, container) | lan
        container["env"] = [{"name": name, "value": text} for name, text in settings.items()]
    return pod


def test_the_overlay_forwards_and_leaves_nothing_behind(lab: Lab, tmp_path: Path) -> None:
    attach(lab, "net1", macvlan("lan0", ipam={}))
    with Pod(lab, overlay(), tmp_path) as pod:
        with pod.init() as init:
            assert init.wait(timeout_s=30) == 0
        destinations = {"EGRESS_DNS_PROXY_DESTINATION": f"80 {OUTSIDE.v4} 7000"}
        with pod.proxy(**destinations, EGRESS_DNS_PROXY_DRAIN_TIMEOUT="1s") as proxy:
            proxy.wait_for("daemon.ready", listeners=1)
            with (
                lab.outside.listen(OUTSIDE.v4, 7000) as listener,
                lab.client.connect(POD.v4, 80) as client,
                listener.accept()[0] as accepted,
            ):
                assert accepted.getpeername()[0] == RESERVED.v4
                client.sendall(b"through")
                assert accepted.recv(7) == b"through"
            checked = pod.execute("egress-proxy", "check")
            assert checked.returncode == 0, checked
            assert "nft add chain inet egress_proxy forward" in checked.stdout
            told = pod.execute("egress-proxy", "status")
            assert told.returncode == 0, told
            pod.signal("TERM")
            assert proxy.wait() == 0
    with pytest.raises(ConnectionRefusedError):
        lab.client.connect(POD.v4, 80)
