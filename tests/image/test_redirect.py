"""The pod of `deploy/examples` in redirect mode: the image's own nft, in a real container."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.image.containers import Pod, example
from tests.support.attachments import attach, macvlan
from tests.support.lab import GATEWAY, OUTSIDE, POD, RESERVED

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.lab import Lab

pytestmark = pytest.mark.usefixtures("images")

VARIABLES = {
    "EGRESS_SOURCE": str(RESERVED.interface4),
    "EGRESS_GATEWAY": GATEWAY.v4,
    "EGRESS_DESTINATION": f"80 tcp {OUTSIDE.v4} 7000\n53 udp {OUTSIDE.v4}\n53 sctp {OUTSIDE.v4}",
}


def test_the_example_redirects_and_a_second_run_changes_nothing(lab: Lab, tmp_path: Path) -> None:
    attach(lab, "macvlan0", macvlan("lan0", ipam={}))
    with Pod(lab, example("pod-redirect"), tmp_path) as pod:
        for first in (True, False):
            with pod.proxy(**VARIABLES) as router:
                done = router.wait_for("init.done", timeout_s=30)
                assert (done["steps"] > 0) == first
                router.wait_for("init.waiting")
                with (
                    lab.outside.listen(OUTSIDE.v4, 7000) as listener,
                    lab.client.connect(POD.v4, 80) as client,
                    listener.accept()[0] as accepted,
                ):
                    assert accepted.getpeername()[0] == RESERVED.v4
                    client.sendall(b"through")
                    assert accepted.recv(7) == b"through"
                pod.signal("TERM")
                assert router.wait() == 0
