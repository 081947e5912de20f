"""``make demo-ha``: two pods and one reserved address before a person's eyes, in namespaces.

The node of the active pod loses its power, and then each pod is replaced, while a client asks the
Service every 50 ms and a host on the LAN asks for the address every 20 ms. The exit status is 0
only if no question on the LAN was answered by two hosts, the takeover took less than 3 s, and no
client failed while the pods were replaced.
"""
# ruff: noqa: T201 - a demonstration prints

from __future__ import annotations

import io
import os
import sys
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

from tests.support.demo import heading, say, show
from tests.support.namespaces import LabUnavailableError, become_root
from tests.support.service_clients import Clients, Remote
from tests.support.two_nodes import LEASE, OUTSIDE, PODS, RESERVED, SERVICE, TwoNodes
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.support.service import Service
    from tests.support.spy import Spy

PORT = 80
LIMIT_S = 3.0

PICTURE = f"""\
              ┌─ pod a ─ node a ─┐
client ─ Service                switch ─ gateway ─ outside
              └─ pod b ─ node b ─┘

the Service {SERVICE} leads to pod a, {PODS["a"].v4}, or pod b, {PODS["b"].v4}
the outside, {OUTSIDE.v4}, sees {RESERVED.v4}, which is with one of the pods"""


@dataclass(slots=True)
class Scene:
    """What is observed."""

    nodes: TwoNodes
    spy: Spy
    service: Service
    clients: Clients


def main() -> int:
    # Where the output can't show the lines of the picture, it still gets the text.
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(errors="replace", line_buffering=True)
    started_at = monotonic()
    user = os.getuid()
    try:
        become_root()
        with TwoNodes() as nodes, nodes.spy() as spy:
            introduce(user)
            scene = begin(nodes, spy)
            takeover_s = kill_the_active_node(scene)
            failed = roll_the_pods(scene)
            doubles = len(spy.doubles)
    except LabUnavailableError as error:
        print(f"make demo-ha: {error}", file=sys.stderr)
        return 1
    heading("4. The end")
    say(
        f"The host on the LAN asked {len(spy.questions)} times for {RESERVED.v4}; {doubles} "
        f"questions were answered by two hosts. All of this took {monotonic() - started_at:.0f} s."
    )
    return 0 if doubles == failed == 0 and takeover_s < LIMIT_S else 1


def introduce(user: int) -> None:
    heading("1. Two nodes, two pods, one reserved address")
    who = "root" if user == 0 else f"user {user}, who is root in a user namespace"
    say(
        f"Made of network namespaces, by {who}; nothing is left over. The API server is a stand-in "
        "that has Leases and pods, and the Service leads to the pod that is labelled active."
    )
    show(PICTURE)


def begin(nodes: TwoNodes, spy: Spy) -> Scene:
    nodes.enter_context(Remote(nodes.enter_context(nodes.outside.listen(OUTSIDE.v4, 80))))
    for name in nodes.pods:
        nodes.start(name)
        nodes.run(name, EGRESS_DNS_PROXY_DEBUG="0")
    active, standby = nodes.active(spy)
    service = nodes.enter_context(nodes.service())
    wait_until(lambda: service.endpoints == (PODS[active].v4,))
    nodes.wait_for_gateway(standby)
    clients = nodes.enter_context(Clients(nodes.client, (SERVICE, PORT), 0.05))
    wait_until(lambda: clients.served > 20)
    say(
        f"Pod {active} has the Lease {LEASE} and the address; pod {standby} is the standby. From "
        "now on a client asks the Service every 50 ms."
    )
    return Scene(nodes, spy, service, clients)


def kill_the_active_node(scene: Scene) -> float:
    nodes, spy, clients = scene.nodes, scene.spy, scene.clients
    active, standby = nodes.active(spy)
    heading(f"2. Node {active} loses its power")
    before = len(clients.all)
    died_at = monotonic()
    nodes.kill_node(active)
    wait_until(lambda: spy.owner() == nodes.pods[standby].mac)
    taken_at = spy.first_answer_by(nodes.pods[standby].mac, died_at)
    assert taken_at is not None
    wait_until(lambda: scene.service.endpoints == (PODS[standby].v4,))
    moved_at = monotonic()
    wait_until(lambda: sum(one.began_at > moved_at for one in clients.all) > 20)
    gap = [client for client in clients.all[before:] if client.began_at < moved_at]
    later = [client for client in clients.all if client.began_at >= moved_at]
    failed = sum(bool(one.error) for one in later)
    show_records(scene, standby, "hold.")
    show(
        f"{taken_at - died_at:5.2f} s  pod {standby} answers for {RESERVED.v4} on the LAN\n"
        f"{moved_at - died_at:5.2f} s  the Service leads to pod {standby}\n"
        f"{len(gap):5}    clients began in between: they wait for a node that is off\n"
        f"{len(later):5}    clients began later, {failed} of them failed"
    )
    return max(taken_at, moved_at) - died_at


def roll_the_pods(scene: Scene) -> int:
    nodes, spy, clients = scene.nodes, scene.spy, scene.clients
    heading("3. The node is back, and each pod is replaced")
    standby = next(name for name, pod in nodes.pods.items() if pod.mac != spy.owner())
    nodes.revive(standby)
    nodes.wait_for_gateway(standby)
    began_at, before = monotonic(), len(clients.all)
    for name in (*nodes.pods, next(iter(nodes.pods))):
        active, other = nodes.active(spy)
        rolled_at = monotonic()
        nodes.roll(name)
        nodes.wait_for_gateway(name)
        wait_until(lambda: spy.owner() is not None)
        moved = f"pod {other} has the address now" if name == active else "it was the standby"
        show(f"pod {name} replaced in {monotonic() - rolled_at:4.1f} s: {moved}")
    seen = clients.served
    wait_until(lambda: clients.served > seen + 20)
    asked = clients.all[before:]
    failed = sum(bool(one.error) for one in asked)
    longest_s = max(one.wait_s for one in asked)
    show(
        f"the longest time that nobody answered on the LAN: {spy.gap_s(began_at):.2f} s\n"
        f"{len(asked)} clients asked the Service meanwhile, {failed} of them failed\n"
        f"the longest time that one of them waited: {longest_s:.2f} s"
    )
    return failed


def show_records(scene: Scene, name: str, prefix: str) -> None:
    for record in scene.nodes.pods[name].running.records[-2:]:
        if record["event"].startswith(prefix):
            omitted = {"event", "time", "level"}
            fields = [f"{key}={value}" for key, value in record.items() if key not in omitted]
            show(f"{record['event']}  {'  '.join(fields)}")


if __name__ == "__main__":
    sys.exit(main())
