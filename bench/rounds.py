"""Run rounds: every load through every peer, one after the other, in an order that changes.

Within a round, each load goes through all peers within seconds, so that a machine that becomes
slower or busier does so for all of them.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bench.clocks import Clocks, resident_octets
from bench.daemons import BenchError
from bench.figures import rotated
from bench.loads import KEPT, Load, Target, check_path, idle_connections
from bench.peers import FORWARDING, LOGGING, PEERS, Peer
from bench.samples import IDLE, Sample

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bench.daemons import Daemon
    from bench.topology import Topology


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What is the same for all measurements of a run."""

    topology: Topology
    directory: Path
    servers: list[int]
    proxy_core: int
    load_core: int
    seconds: int
    idle: int
    wanted: frozenset[str]
    loads: tuple[Load, ...]
    report: Callable[[str], None]

    def run_round(self, number: int) -> list[Sample]:
        """Send all loads through all peers. Each round starts with another peer."""
        names = [name for name in PEERS if name in self.wanted]
        peers = [PEERS[name] for name in rotated(names, number)]
        samples = self._run_loads(number, peers)
        for peer in peers:
            # Idle connections cost forwarding no memory of a process, and they log nothing.
            if self.idle and peer not in {FORWARDING, LOGGING}:
                samples.append(self._run_idle(number, peer))
        return samples

    def _run_loads(self, number: int, peers: list[Peer]) -> list[Sample]:
        samples = []
        with ExitStack() as stack:
            daemons = {peer.name: self._start(stack, peer) for peer in peers}
            for load in self.loads:
                for peer in peers:
                    # Only connections that end are logged.
                    if peer != LOGGING or load.name == "new":
                        daemon = daemons[peer.name]
                        samples.append(self._measure(number, load, peer, daemon))
            if LOGGING in peers:
                _check_log(daemons[LOGGING.name], samples)
        return samples

    def _run_idle(self, number: int, peer: Peer) -> Sample:
        """The load of `KEPT`, through a new process that also has idle connections."""
        with ExitStack() as stack:
            daemon = self._start(stack, peer)
            empty = _resident_octets(daemon)
            stack.enter_context(idle_connections(self._target(peer), self.idle))
            per_pair = (_resident_octets(daemon) - empty) / self.idle
            sample = self._measure(number, KEPT, peer, daemon, name=IDLE)
            return replace(sample, octets_per_pair=per_pair)

    def _start(self, stack: ExitStack, peer: Peer) -> Daemon | None:
        """Start `peer`, wait until it listens, and check the path through it."""
        daemon = peer.start(self.topology, self.proxy_core, self.directory)
        if daemon is not None:
            stack.enter_context(daemon)
            daemon.wait_for_ports(own for own, _ in peer.listeners())
        check_path(self.topology, peer)
        return daemon

    def _target(self, peer: Peer) -> Target:
        return Target(topology=self.topology, peer=peer, core=self.load_core, seconds=self.seconds)

    def _measure(
        self, number: int, load: Load, peer: Peer, daemon: Daemon | None, *, name: str = ""
    ) -> Sample:
        """Run `load` and measure the CPU time. `name` replaces the name of the load."""
        clocks = Clocks([daemon.pid] if daemon else [], self.servers)
        before = clocks.read()
        work = load.run(self._target(peer))
        times = clocks.read() - before
        name = name or load.name
        self.report(
            f"round {number + 1}  {name:8} {peer.name:20}"
            f" {work.amount / times.wall:10.4g} {load.rate_unit:14}"
            f" {times.proxy / work.amount * load.scale:8.3f} {load.unit}"
        )
        return Sample(
            number=number,
            load=name,
            peer=peer.name,
            amount=work.amount,
            times=times,
            latency_us=work.latency_us,
        )


def _resident_octets(daemon: Daemon | None) -> int:
    return resident_octets(daemon.pid) if daemon else 0


def _check_log(daemon: Daemon | None, samples: list[Sample]) -> None:
    """Raise `BenchError` unless every connection was logged: the cost of logging would be wrong."""
    logged = daemon.output().count(b'"connection.closed"') if daemon else 0
    ended = sum(int(sample.amount) for sample in samples if sample.peer == LOGGING.name)
    if logged < ended:
        raise BenchError(f"{ended} connections with logging on, but {logged} records")
