"""``make bench-ha``: how long nobody has the reserved address, failure by failure.

Two pods on two nodes, made of network namespaces as in the tests; a host on the LAN asks for the
address every 20 ms, which is also how exact the figures are. Each failure is made anew, so many
times. keepalived does the same on the same LAN for the failures that it knows of.

It needs root, or user namespaces. Nothing else should run beside it: a machine with too little time
to spare shows its own pauses. The page says how busy the machine was.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from bench import keepalived
from bench.availability_page import Row, page
from bench.clocks import parse_stat
from bench.failovers import FAILURES, Scene
from tests.support.lab import EGRESS_PROXY
from tests.support.lan_faults import OtherSide, Stranger
from tests.support.namespaces import become_root
from tests.support.service_clients import Clients, Remote
from tests.support.two_nodes import OUTSIDE, PODS, PORT, SERVICE, TwoNodes
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.failovers import Failure
    from tests.support.spy import Spy

PAGE = Path("docs/benchmarks/ha.md")
# How long the LAN is watched once the other one answers: two owners would show.
AFTERWARDS_S = 1.5
# A client that has waited so long when the run ends is one that has no answer.
_UNANSWERED_S = 1.0
# One that is served within this time has not waited for the address.
_AT_ONCE_S = 0.3


def measure(row: Row, failure: Failure, command: str) -> None:
    """Make the failure once."""
    with (
        TwoNodes(failure.names, (failure.family,), command) as nodes,
        nodes.spy(failure.family) as spy,
    ):
        outside = OUTSIDE.v4 if failure.family == "v4" else OUTSIDE.v6
        nodes.enter_context(Remote(nodes.enter_context(nodes.outside.listen(outside, 80))))
        stranger = nodes.enter_context(Stranger(nodes))
        scene = Scene(nodes, spy, *_started(nodes, spy), stranger, OtherSide(nodes))
        service = nodes.enter_context(nodes.service())
        wait_until(lambda: service.endpoints == (PODS[scene.active].v4,))
        clients = nodes.enter_context(
            Clients(nodes.client, (SERVICE, PORT), failure.client_interval_s)
        )
        wait_until(lambda: clients.served > 20)
        began_at, before = monotonic(), len(clients.all)
        failure.make(scene)
        if failure.moves:
            _wait_for_takeover(scene, row, began_at)
            wait_until(lambda: service.endpoints == (PODS[scene.standby].v4,))
        time.sleep(AFTERWARDS_S)
        mended_at = monotonic()
        if failure.moves:
            row.services.append(_served_at_once(clients, began_at))
        if failure.mend is not None:
            failure.mend(scene)
            time.sleep(AFTERWARDS_S)
        if failure.clients:
            wait_until(lambda: len(clients.all) - before >= failure.clients)
        _count_clients(row, clients, before, settle=failure.clients > 0)
        _count_answers(row, scene, began_at, mended_at)
        expected = failure.owner(scene)
        if expected is not None and spy.owner() != nodes.pods[expected].mac:
            raise RuntimeError(f"{failure.title}: {spy.owner()} has the address")


def _started(nodes: TwoNodes, spy: Spy) -> tuple[str, str]:
    """Start everything in every pod: the active one and a standby, which hear the gateway."""
    for name in nodes.pods:
        nodes.start(name)
        nodes.run(name, EGRESS_DNS_PROXY_DEBUG="0")
    names = nodes.active(spy)
    for name in nodes.pods:
        nodes.wait_for_gateway(name)
    return names


def _wait_for_takeover(scene: Scene, row: Row, began_at: float) -> None:
    mac = scene.nodes.pods[scene.standby].mac
    wait_until(lambda: scene.spy.first_answer_by(mac, began_at) is not None)
    row.takeovers.append((scene.spy.first_answer_by(mac, began_at) or began_at) - began_at)


def _count_clients(row: Row, clients: Clients, before: int, *, settle: bool) -> None:
    """Count those that began since the failure; `settle`: once all of them have ended."""
    asked = clients.all[before:]
    if settle:
        wait_until(lambda: all(client.ended_at is not None for client in asked))
    unanswered = [
        client for client in asked if client.ended_at is None and client.wait_s > _UNANSWERED_S
    ]
    row.clients.append(len(asked))
    row.failed += sum(bool(client.error) for client in asked)
    row.unanswered += len(unanswered)
    if not unanswered:
        row.waits.append(max(client.wait_s for client in asked))


def _count_answers(row: Row, scene: Scene, began_at: float, mended_at: float) -> None:
    """Count questions that two pods answered; a stranger's answers are not theirs."""
    spy = scene.spy
    macs = {pod.mac for pod in scene.nodes.pods.values()}
    for asked in spy.questions:
        asked.answers &= macs
    row.gaps.append(spy.gap_s(began_at))
    row.questions += len(spy.questions)
    row.doubles += len(spy.doubles)
    if spy.doubles and spy.doubles[0].asked_at >= mended_at:
        row.overlaps.append(spy.doubles[-1].asked_at - mended_at)
    times = [asked.asked_at for asked in spy.questions]
    row.pauses.append(max(b - a for a, b in itertools.pairwise(times)))


def _served_at_once(clients: Clients, began_at: float) -> float:
    """From the failure until clients that begin are served at once, without having waited."""
    slow = [
        client.began_at
        for client in list(clients.all)
        if client.began_at > began_at and (client.error or client.wait_s > _AT_ONCE_S)
    ]
    return max(slow) - began_at if slow else 0.0


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


@dataclass(frozen=True, slots=True)
class Measurement:
    """One row, and what measures it once more."""

    row: Row
    measure: Callable[[Row], None]

    def repeat(self) -> None:
        """Measure once more, and note how busy the machine was."""
        began_at, idle = monotonic(), _idle_s()
        self.measure(self.row)
        elapsed_s = (monotonic() - began_at) * (os.cpu_count() or 1)
        self.row.busy.append(max(1 - (_idle_s() - idle) / elapsed_s, 0.0))


def _idle_s() -> float:
    return parse_stat(Path("/proc/stat").read_text())[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--command", default=EGRESS_PROXY, help="the egress-proxy to measure")
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args()
    become_root()
    measured = [
        Measurement(Row(failure.title), partial(measure, failure=failure, command=options.command))
        for failure in FAILURES
    ]
    others = [
        Measurement(
            Row(title), partial(keepalived.measure, number=number, afterwards_s=AFTERWARDS_S)
        )
        for title, number in keepalived.FAILURES
        if Path("/usr/sbin/keepalived").exists()
    ]
    held = footprint(options.command)
    # All rows in each round: what else the machine does concerns all of them.
    for number in range(1, options.rounds + 1):
        for each in measured + others:
            each.repeat()
        rows = [each.row for each in measured]
        options.out.write_text(page(rows, [each.row for each in others], number, held))
        print(f"round {number} of {options.rounds}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
