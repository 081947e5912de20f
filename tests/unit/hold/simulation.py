"""A cluster, a LAN and kernels in simulated time, with electors on them; nothing is opened.

Each node has a kernel that answers for the address as long as it has it, whether or not the elector
runs, and that removes it when its lifetime ends. The API server keeps one Lease. Everything that
may fail does: an API server that is silent, slow, or loses answers, for one node or all; a LAN port
that is dead; a gateway that is; an elector that is frozen.

`Simulation.owners` is what an ARP question on a LAN segment would be answered by.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import IPv4Address
from itertools import count
from typing import TYPE_CHECKING

from egress_proxy.hold import messages as m
from egress_proxy.hold.elector import advance, start
from egress_proxy.hold.lan_rules import GATEWAY_ANNOTATION, HEARD, SILENT
from egress_proxy.hold.objects import Lease, Pod
from egress_proxy.hold.states import ElectorSettings, Role

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from egress_proxy.events import Event

ADDRESS = IPv4Address("203.0.113.99")
GATEWAY = IPv4Address("203.0.113.1")
LAN_S = 0.001
# net/ipv4/devinet.c, check_lifetime: measured up to 0.11 s late.
KERNEL_LATE_S = 0.11
SETTINGS = ElectorSettings(
    identity="",
    duration_s=2,
    handover_s=1.0,
    drain_s=25.0,
    release_on_silence=False,
    gateway_check=True,
    gateways=(GATEWAY,),
)


@dataclass(slots=True)
class Node:
    """One pod on its node; `frozen_until` is that of the elector, not of the kernel."""

    name: str
    settings: ElectorSettings
    dead: bool = False
    frozen: bool = False
    deleting: bool = False
    stopped: bool = False
    segment: int = 0
    port_up: bool = True
    api: str = "good"
    held_until: float | None = None
    label: str = "standby"
    annotation: str = SILENT
    inbox: list[m.Input] = field(default_factory=list)
    records: list[tuple[float, Event]] = field(default_factory=list)
    generation: int = 0
    watch_from: int = 0


class Simulation:
    """Nodes, an API server, a LAN. Time is in seconds from 0."""

    def __init__(
        self, random: Random, names: str = "ab", settings: ElectorSettings = SETTINGS
    ) -> None:
        self.random = random
        self.now = 0.0
        self.lease: Lease | None = None
        self.version = 0
        self.gateway_segments = {0}
        self.history: list[tuple[float, str]] = []
        self._numbers = count()
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self.nodes = {name: Node(name, replace(settings, identity=name)) for name in names}
        self.states = {name: start(0.0, carrier=True) for name in names}
        # What every test wants to know at every moment.
        self.on_step: Callable[[], None] = lambda: None
        for node in self.nodes.values():
            self.at(random.uniform(0, 0.2), partial(self._deliver, node, m.Tick()))

    def at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (when, next(self._numbers), act))

    def after(self, delay: float, act: Callable[[], None]) -> None:
        self.at(self.now + delay, act)

    def run(self, until: float) -> None:
        """Let everything happen up to `until`."""
        while self._queue and self._queue[0][0] <= until:
            when, _, act = heapq.heappop(self._queue)
            self.now = max(self.now, when)
            self._expire()
            act()
            self.on_step()
        self.now = until
        self._expire()
        self.on_step()

    def owners(self, segment: int = 0) -> list[str]:
        """The nodes that answer for the address there."""
        return [
            node.name
            for node in self.nodes.values()
            if node.held_until is not None and self._on(node, segment)
        ]

    def events(self, name: str) -> list[str]:
        return [record.name for _, record in self.nodes[name].records]

    def role(self, name: str) -> Role:
        return self.states[name].role

    # Faults

    def freeze(self, name: str) -> None:
        self.nodes[name].frozen = True

    def wake(self, name: str) -> None:
        """The elector goes on: first with its timers, then with what waits for it."""
        node = self.nodes[name]
        node.frozen = False
        inbox, node.inbox = node.inbox, []
        events = [m.Tick(), *inbox] if self.random.random() < 0.5 else [*inbox, m.Tick()]
        for event in events:
            self._deliver(node, event)

    def kill_node(self, name: str) -> None:
        node = self.nodes[name]
        node.dead, node.held_until = True, None

    def kill_hold(self, name: str) -> None:
        """The process alone: the kernel keeps the address for a while."""
        self.nodes[name].dead = True

    def restart_hold(self, name: str) -> None:
        node = self.nodes[name]
        node.dead = False
        node.generation += 1
        node.inbox.clear()
        inherited = node.held_until is not None
        # A dead port of the switch still has a link, and no event says so if it has none.
        self.states[name] = start(self.now, carrier=True, inherited=inherited)
        self._deliver(node, m.Tick())

    def stop(self, name: str) -> None:
        self.nodes[name].deleting = True
        self._deliver(self.nodes[name], m.StopRequested())

    # The elector and its actions

    def _deliver(self, node: Node, event: m.Input) -> None:
        if node.dead or node.stopped:
            return
        if node.frozen:
            if not isinstance(event, m.Tick):
                node.inbox.append(event)
            return
        state, actions = advance(node.settings, self.states[node.name], event, self.now)
        self.states[node.name] = state
        for action in actions:
            self._carry_out(node, action)
        if not node.stopped:
            node.generation += 1
            generation = node.generation
            wake_at = state.wake_at + self.random.choice((0.0, 0.001, 0.005))
            self.at(max(wake_at, self.now + 1e-6), lambda: self._tick(node, generation))

    def _tick(self, node: Node, generation: int) -> None:
        if generation == node.generation:
            self._deliver(node, m.Tick())

    def _carry_out(self, node: Node, action: m.Action) -> None:  # noqa: C901, PLR0912 - one branch per action
        match action:
            case m.Read():
                self._request(node, lambda: self.lease, m.RequestDone)
            case m.Write(lease, _):
                self._request(node, lambda: self._write(lease), m.RequestDone)
            case m.Probe():
                self._probe(node)
            case m.Announce(deadline):
                if self.now <= deadline:
                    self._claim(node)
            case m.AskGateway(owner):
                if owner and node.held_until is not None:
                    self._claim(node)
                if node.port_up and node.segment in self.gateway_segments:
                    self.after(2 * LAN_S, lambda: self._deliver(node, m.GatewayHeard(GATEWAY)))
            case m.Keep(deadline):
                assert self.now <= deadline + 1e-9
                node.held_until = (
                    self.now + node.settings.duration_s + self.random.uniform(0, KERNEL_LATE_S)
                )
                self.history.append((self.now, f"{node.name} keeps"))
            case m.Drop():
                node.held_until = None
                self.history.append((self.now, f"{node.name} drops"))
            case m.ListPods():
                self._request(node, self._pods, m.PodsListed, lambda *_: m.PodsListed(None))
            case m.HandOver(successor):
                self._request(
                    node,
                    lambda: self._hand_over(node.name, successor),
                    m.HandedOver,
                    lambda *_: m.HandedOver(done=False),
                )
            case m.ShowRole(active):
                if active:
                    self.after(0.005, lambda: self._label_active(node))
            case m.ShowGateway(heard):
                self._request(node, lambda: self._annotate(node, heard=heard), None)
            case m.Tell(event):
                node.records.append((self.now, event))
                self.history.append((self.now, f"{node.name} {event}"))
            case m.Exit():
                node.stopped = True
            case m.Deprecate():
                pass

    # The kernels and the LAN

    def _expire(self) -> None:
        for node in self.nodes.values():
            if node.held_until is not None and self.now >= node.held_until:
                node.held_until = None
                self.history.append((self.now, f"kernel of {node.name} removes it"))

    def _on(self, node: Node, segment: int) -> bool:
        return node.port_up and node.segment == segment

    def _neighbours(self, node: Node) -> list[Node]:
        return [
            other
            for other in self.nodes.values()
            if other is not node and node.port_up and self._on(other, node.segment)
        ]

    def _probe(self, node: Node) -> None:
        def ask(other: Node) -> None:
            if other.held_until is not None and other in self._neighbours(node):
                self.after(LAN_S, lambda: self._deliver(node, m.Claimed(ADDRESS, other.name)))

        for other in self._neighbours(node):
            self.after(LAN_S, partial(ask, other))

    def _claim(self, node: Node) -> None:
        for other in self._neighbours(node):
            self.after(LAN_S, partial(self._deliver, other, m.Claimed(ADDRESS, node.name)))

    # The API server

    def _request(
        self,
        node: Node,
        serve: Callable[[], object],
        done: Callable[..., m.Input] | None,
        failed: Callable[..., m.Input] = m.RequestFailed,
    ) -> None:
        """Let the API server do `serve`; `done` or `failed` make the event of its answer."""
        delay_s = (
            self.random.uniform(0.1, 1.2)
            if node.api == "slow"
            else self.random.uniform(0.001, 0.01)
        )
        timeout_s = node.settings.request_timeout_s
        lost = node.api == "lossy" and self.random.random() < 0.5
        waiting = [True]

        def answer(event: m.Input | None) -> None:
            if waiting.pop() and event is not None:
                self._deliver(node, event)
            waiting.append(False)

        def arrive() -> None:
            try:
                result = serve()
                event = None if done is None else done(result)
            except _ConflictError:
                event = failed("conflict", "409")
            if not lost:
                answer(event)

        if node.api != "silent":
            # It is applied however late it comes, and the client may have given it up by then.
            self.after(delay_s, arrive)
        self.after(timeout_s, lambda: answer(failed("doubtful", "no answer") if done else None))

    def _write(self, lease: Lease) -> Lease:
        current = "" if self.lease is None else self.lease.resource_version
        if lease.resource_version != current:
            raise _ConflictError
        self.version += 1
        self.lease = replace(lease, resource_version=str(self.version))
        self.history.append((self.now, f"lease {self.lease.holder!r} v{self.version}"))
        written = self.lease
        for node in self.nodes.values():
            if node.api in ("good", "lossy"):
                delay = self.random.uniform(0.001, 0.05)
                self.after(delay, partial(self._deliver, node, m.LeaseSeen(written)))
        return written

    def _pods(self) -> tuple[Pod, ...]:
        return tuple(
            Pod(
                name=node.name,
                ready=not node.dead,
                deleting=node.deleting,
                annotations={GATEWAY_ANNOTATION: node.annotation},
            )
            for node in self.nodes.values()
        )

    def _hand_over(self, name: str, successor: str) -> bool:
        self.nodes[successor].label = "active"
        self.nodes[name].label = "standby"
        return True

    def _label_active(self, node: Node) -> None:
        for other in self.nodes.values():
            other.label = "active" if other is node else "standby"

    def _annotate(self, node: Node, *, heard: bool) -> None:
        node.annotation = HEARD if heard else SILENT


class _ConflictError(Exception):
    pass
