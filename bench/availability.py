"""``make bench-ha``: how long nobody has the reserved address, failure by failure.

Two pods on two nodes, made of network namespaces as in the tests; a host on the LAN asks for the
address every 20 ms, which is also how exact the figures are. Each failure is made anew, so many
times. keepalived does the same on the same LAN for the failures that it knows of.

It needs root, or user namespaces. Nothing else may run beside it: a machine with too little time to
spare shows its own pauses.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from tests.support.lab import EGRESS_PROXY
from tests.support.namespaces import become_root
from tests.support.service_clients import Clients, Remote
from tests.support.two_nodes import OUTSIDE, PODS, PORT, RESERVED, SERVICE, TwoNodes
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyroute2 import IPRoute

    from tests.support.processes import Process
    from tests.support.spy import Spy

PAGE = Path("docs/benchmarks/ha.md")
# How long the LAN is watched once the other one answers: two owners would show.
AFTERWARDS_S = 2.0
SILENCE_S = 5.0
# VRRP counts a master as gone after three of them and a bit (RFC 5798 section 6.1).
ADVERTISEMENTS_S = 1


@dataclass(slots=True)
class Row:
    """A failure, and what was measured: seconds, and numbers of clients or questions."""

    title: str
    takeovers: list[float] = field(default_factory=list)
    services: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    failed: int = 0
    clients: int = 0
    doubles: int = 0
    questions: int = 0


@dataclass(slots=True)
class Scene:
    nodes: TwoNodes
    spy: Spy
    active: str
    standby: str
    clients: Clients | None = None


def die(scene: Scene) -> None:
    scene.nodes.kill_node(scene.active)


def stop(scene: Scene) -> None:
    """As the kubelet does it when a pod is deleted."""
    pod = scene.nodes.pods[scene.active]
    scene.nodes.api.delete_pod("egress", scene.active)
    pod.running.terminate()
    if pod.proxy is not None:
        pod.proxy.terminate()


def kill(scene: Scene) -> None:
    scene.nodes.pods[scene.active].running.kill()


def freeze(scene: Scene) -> None:
    scene.nodes.pods[scene.active].running.freeze()


def cut_port(scene: Scene) -> None:
    scene.nodes.set_port(scene.active, up=False)


def cut_carrier(scene: Scene) -> None:
    scene.nodes.set_port(scene.active, up=False, carrier=True)


def cut_api(scene: Scene) -> None:
    scene.nodes.api.order(cut=[PODS[scene.active].v4])


def silence_api(scene: Scene) -> None:
    scene.nodes.api.order(silent=True)
    time.sleep(SILENCE_S)
    scene.nodes.api.order(silent=False)


FAILURES: tuple[tuple[str, Callable[[Scene], None], bool], ...] = (
    ("the active pod's node loses its power", die, True),
    ("the active pod is deleted (SIGTERM)", stop, True),
    ("`hold` is killed (SIGKILL)", kill, True),
    ("`hold` is frozen (SIGSTOP)", freeze, True),
    ("the node's LAN port forwards nothing, the link is up", cut_port, True),
    ("the node's LAN cable is pulled", cut_carrier, True),
    ("the API server is unreachable for the active pod alone", cut_api, True),
    (f"the API server is silent for all, for {SILENCE_S:g} s", silence_api, False),
)


def measure(row: Row, fail: Callable[[Scene], None], command: str, *, moves: bool) -> None:
    """Make the failure once."""
    with TwoNodes(command=command) as nodes, nodes.spy() as spy:
        nodes.enter_context(Remote(nodes.enter_context(nodes.outside.listen(OUTSIDE.v4, 80))))
        for name in nodes.pods:
            nodes.start(name)
            nodes.run(name, EGRESS_DNS_PROXY_DEBUG="0")
        active, standby = nodes.active(spy)
        service = nodes.enter_context(nodes.service())
        wait_until(lambda: service.endpoints == (PODS[active].v4,))
        for name in nodes.pods:
            nodes.wait_for_gateway(name)
        clients = nodes.enter_context(Clients(nodes.client, (SERVICE, PORT)))
        wait_until(lambda: clients.served > 20)
        began_at, before = monotonic(), len(clients.all)
        fail(Scene(nodes, spy, active, standby))
        if moves:
            mac = nodes.pods[standby].mac
            wait_until(lambda: spy.owner() == mac)
            row.takeovers.append((spy.first_answer_by(mac, began_at) or began_at) - began_at)
            wait_until(lambda: service.endpoints == (PODS[standby].v4,))
            wait_until(lambda: any(_served_by_now(clients, began_at)))
            row.services.append(_first_served(clients, began_at))
        time.sleep(AFTERWARDS_S)
        row.gaps.append(spy.gap_s(began_at))
        asked = clients.all[before:]
        row.clients += len(asked)
        row.failed += sum(bool(client.error) for client in asked)
        row.doubles += len(spy.doubles)
        row.questions += len(spy.questions)
        if fail is freeze:
            nodes.pods[active].running.thaw()


def _served_by_now(clients: Clients, began_at: float) -> list[float]:
    """When clients were served that began after the failure."""
    return [
        client.ended_at
        for client in list(clients.all)
        if client.began_at > began_at and client.ended_at is not None and not client.error
    ]


def _first_served(clients: Clients, began_at: float) -> float:
    """From the failure until clients that begin are served at once, without having waited."""
    slow = [
        client.began_at
        for client in list(clients.all)
        if client.began_at > began_at and (client.error or client.wait_s > 0.3)
    ]
    return max(slow) - began_at if slow else 0.0


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
        for target in (pid, *map(int, children)):
            os.kill(target, number)


def measure_keepalived(row: Row, number: int | None) -> None:
    """Send the signal, or take the power."""
    with TwoNodes() as nodes, nodes.spy() as spy, Keepalived(nodes) as keepalived:
        active, standby = nodes.active(spy)
        time.sleep(AFTERWARDS_S)
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
        time.sleep(AFTERWARDS_S)
        row.gaps.append(spy.gap_s(began_at))
        row.doubles += len(spy.doubles)
        row.questions += len(spy.questions)
        if number == signal.SIGSTOP:
            keepalived.signal(active, signal.SIGCONT)
        if number == signal.SIGKILL:
            keepalived.processes[active].wait()


KEEPALIVED: tuple[tuple[str, int | None], ...] = (
    ("the master's node is cut off", None),
    ("keepalived is stopped (SIGTERM)", signal.SIGTERM),
    ("keepalived is killed (SIGKILL)", signal.SIGKILL),
    ("keepalived is frozen (SIGSTOP)", signal.SIGSTOP),
)


def footprint(command: str, seconds: float = 30) -> tuple[float, float, float, float]:
    """Resident MiB and per cent of a core of the active and the standby `hold`."""
    with TwoNodes(command=command) as nodes, nodes.spy() as spy:
        for name in nodes.pods:
            nodes.start(name)
        names = nodes.active(spy)
        time.sleep(5)
        before = [_cpu_s(nodes.pods[name].running.pid) for name in names]
        time.sleep(seconds)
        after = [_cpu_s(nodes.pods[name].running.pid) for name in names]
        resident = [_resident_mib(nodes.pods[name].running.pid) for name in names]
    busy = [100 * (b - a) / seconds for a, b in zip(before, after, strict=True)]
    return resident[0], busy[0], resident[1], busy[1]


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    # proc_pid_stat(5): utime and stime are the 14th and 15th field, here without the first two.
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident_mib(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


def seconds(values: list[float]) -> str:
    """Median and worst."""
    return f"{statistics.median(values):.2f} / {max(values):.2f}" if values else "-"


HEAD = """\
# Availability of the reserved address

Measured by `make bench-ha` on {date}: each failure {rounds} times, Linux {kernel}, {cores} cores,
two pods in network namespaces with macvlan, the stand-in for the API server, default settings
(`EGRESS_HA_LEASE_DURATION=2s`). Seconds are *median / worst*. A host on the LAN asked for the
address every 20 ms by ARP, a client asked the Service every 20 ms.

| what fails | the other pod answers after | longest time without an answer | clients are \
served at once after | clients failed | questions answered by two |
|---|---|---|---|---|---|
"""
NOTES = """
A client that begins while the Service still leads to a node without power waits for that node. It
counts as failed only if it gave up while the test ran (15 s). The Service is that of the tests and
follows the labels of the pods within 20 ms; a real kube-proxy takes longer.

`hold` takes {0:.1f} MiB resident and {1:.2f} % of a core while active, {2:.1f} MiB and {3:.2f} %
as a standby (over 30 s).
"""
KEEPALIVED_HEAD = """
## keepalived on the same LAN
Debian's keepalived with VRRP advertisements every {interval} s and `nopreempt`. It moves no
Service. A process that is killed or frozen leaves the address in its kernel, so that both
hosts answer until that is noticed.

| what fails | the other host answers after | longest time without an answer | questions answered \
by two |
|---|---|---|---|
"""


def page(rows: list[Row], others: list[Row], rounds: int, held: tuple[float, ...]) -> str:
    """The document."""
    head = HEAD.format(
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        rounds=rounds,
        kernel=platform.release().partition("-")[0],
        cores=os.cpu_count(),
    )
    lines = [
        f"| {row.title} | {seconds(row.takeovers)} | {seconds(row.gaps)} "
        f"| {seconds(row.services)} | {row.failed} of {row.clients} "
        f"| {row.doubles} of {row.questions} |\n"
        for row in rows
    ]
    text = head + "".join(lines) + NOTES.format(*held)
    if others:
        text += KEEPALIVED_HEAD.format(interval=ADVERTISEMENTS_S)
        text += "".join(
            f"| {row.title} | {seconds(row.takeovers)} | {seconds(row.gaps)} "
            f"| {row.doubles} of {row.questions} |\n"
            for row in others
        )
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--command", default=EGRESS_PROXY, help="the egress-proxy to measure")
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args()
    become_root()
    rows = []
    for title, fail, moves in FAILURES:
        row = Row(title)
        for _ in range(options.rounds):
            measure(row, fail, options.command, moves=moves)
        print(row, file=sys.stderr, flush=True)
        rows.append(row)
    others = []
    if Path("/usr/sbin/keepalived").exists():
        for title, number in KEEPALIVED:
            row = Row(title)
            for _ in range(options.rounds):
                measure_keepalived(row, number)
            print(row, file=sys.stderr, flush=True)
            others.append(row)
    options.out.write_text(page(rows, others, options.rounds, footprint(options.command)))


if __name__ == "__main__":
    main()
