"""keepalived on the LAN of `bench.availability`, for the failures that it knows of."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from bench.availability_page import ADVERTISEMENTS_S
from tests.support.two_nodes import RESERVED, TwoNodes
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pyroute2 import IPRoute

    from bench.availability_page import Row
    from tests.support.processes import Process

CONFIGURATION = """\
global_defs {{
    enable_script_security
    vrrp_garp_master_repeat 3
}}
vrrp_instance egress {{
    state BACKUP
    nopreempt
    interface macvlan0
    virtual_router_id 99
    priority {priority}
    advert_int {interval}
    virtual_ipaddress {{
        {address} dev macvlan0
    }}
}}
"""


def _put(ip: IPRoute, index: int, address: str) -> None:
    ip.addr("add", index=index, address=address, prefixlen=25)


class Keepalived(ExitStack):
    """keepalived in the pods of `nodes`, which have addresses of their own on the LAN."""

    def __init__(self, nodes: TwoNodes) -> None:
        super().__init__()
        folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
        self.processes: dict[str, Process] = {}
        for number, (name, pod) in enumerate(nodes.pods.items()):
            index = pod.namespace.index("macvlan0")
            own = f"203.0.113.{80 + number}"
            pod.namespace.netlink(partial(_put, index=index, address=own))
            file = folder / f"{name}.conf"
            file.write_text(
                CONFIGURATION.format(
                    priority=100 - 10 * number,
                    interval=ADVERTISEMENTS_S,
                    address=RESERVED.interface4,
                )
            )
            file.chmod(0o600)
            pids = [f"--pid={folder / name}.pid", f"--vrrp_pid={folder / name}.vrrp"]
            self.processes[name] = self.enter_context(
                pod.namespace.start(
                    "/usr/sbin/keepalived", "-n", "-l", "-P", f"--use-file={file}", *pids, env={}
                )
            )

    def signal(self, name: str, number: int) -> None:
        """To the process, and to its child, which speaks VRRP."""
        pid = self.processes[name].pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        # A child whose parent ends first gives the address back; a parent whose child ends first
        # starts another one.
        os.kill(pid, signal.SIGSTOP)
        for target in (*map(int, children), pid):
            os.kill(target, number)


def measure(row: Row, number: int | None, afterwards_s: float) -> None:
    """Send the signal, or take the power."""
    with TwoNodes() as nodes, nodes.spy() as spy, Keepalived(nodes) as keepalived:
        active, standby = nodes.active(spy)
        time.sleep(afterwards_s)
        began_at = monotonic()
        if number is None:
            nodes.set_port(active, up=False)
        elif number == signal.SIGTERM:
            keepalived.processes[active].terminate()
        else:
            keepalived.signal(active, number)
        mac = nodes.pods[standby].mac
        wait_until(lambda: spy.first_answer_by(mac, began_at) is not None)
        row.takeovers.append((spy.first_answer_by(mac, began_at) or began_at) - began_at)
        time.sleep(afterwards_s)
        row.gaps.append(spy.gap_s(began_at))
        row.doubles += len(spy.doubles)
        row.questions += len(spy.questions)
        if number == signal.SIGSTOP:
            keepalived.signal(active, signal.SIGCONT)
        if number == signal.SIGKILL:
            keepalived.processes[active].wait()


FAILURES: tuple[tuple[str, int | None], ...] = (
    ("the master's node is cut off", None),
    ("keepalived is stopped (SIGTERM)", signal.SIGTERM),
    ("keepalived is killed (SIGKILL)", signal.SIGKILL),
    ("keepalived is frozen (SIGSTOP)", signal.SIGSTOP),
)
