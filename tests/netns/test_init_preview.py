"""What check says of init, in a real pod: everything, without touching anything."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from egress_proxy.init.run import preview
from egress_proxy.init.settings import read_settings
from egress_proxy.lan.frames import ETH_P_ARP
from tests.netns.init_lab import DUAL, drain, init, monitor, settle
from tests.support.lab import RESERVED

if TYPE_CHECKING:
    from egress_proxy.init.preview import Preview
    from tests.support.lab import Lab


def look(lab: Lab, env: dict[str, str]) -> Preview:
    return lab.pod.call(lambda: preview(read_settings(env)))


def test_nothing_is_changed_and_nothing_is_sent(lab: Lab) -> None:
    lab.pod.configure("macvlan0")
    settle(lab)
    with (
        monitor(lab.pod) as changes,
        lab.gateway.open_socket(socket.AF_PACKET, socket.SOCK_DGRAM) as arp,
    ):
        arp.bind(("lan0", ETH_P_ARP))
        assert look(lab, DUAL).steps
        assert drain(changes) == drain(arp) == 0


def test_the_steps_are_those_that_init_takes(lab: Lab) -> None:
    planned = look(lab, DUAL).steps
    result = init(lab, {**DUAL, "EGRESS_ROUTER_DEBUG": "1"})
    taken = [record["command"] for record in result.records if record["event"] == "init.step"]
    # The name servers of this machine are not those of the pod that init ran in.
    assert set(taken) <= set(planned)
    assert look(lab, DUAL).state.assigned(read_settings(DUAL).sources[0].address) is not None


def test_a_finished_pod_and_a_missing_interface(lab: Lab) -> None:
    init(lab, DUAL).expect_done()
    seen = look(lab, DUAL)
    assert seen.problems == seen.warnings == ()
    assert f"  {RESERVED.interface4} dev macvlan0" in str(seen).splitlines()
    missing = look(lab, {**DUAL, "EGRESS_INTERFACE": "net1"})
    assert missing.steps == ()
    assert [problem.variable for problem in missing.problems] == ["EGRESS_INTERFACE"]
