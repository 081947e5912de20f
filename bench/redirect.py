"""``python -m bench.redirect``: compare redirect mode's rules with plain forwarding and HAProxy.

In redirect mode no process of this project runs: `init` sets nftables rules and ends. Here the same
rules are set for each of its measurements and removed after it, so that connection tracking costs
the others nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from bench import servers, tools
from bench.clocks import Clocks
from bench.daemons import BenchError
from bench.descriptors import raise_descriptor_limit
from bench.figures import OutputError, rotated
from bench.loads import LOADS, Load, Target, check_path
from bench.markdown import figure, spread, table
from bench.peers import FORWARDING, HAPROXY, Peer
from bench.samples import Sample
from bench.summary import Row, summarize
from bench.topology import EGRESS_INTERFACE, REMOTE, RESERVED, Topology
from egress_proxy.nft import command
from egress_proxy.nft.ruleset import Ruleset, Translation
from egress_proxy.nft.table import DELETION
from tests.support.namespaces import become_root

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


def _no_command(_peer: Peer, _directory: Path) -> tuple[list[str], Mapping[str, str]]:
    raise AssertionError("redirect mode has no process")


REDIRECT = Peer("redirect", "egress-proxy, redirect mode", 160, _no_command)
_PEERS = {peer.name: peer for peer in (FORWARDING, REDIRECT, HAPROXY)}


@dataclass(slots=True)
class RedirectBench:
    """What is the same for all measurements of a run, and the samples so far."""

    topology: Topology
    directory: Path
    servers: list[int]
    proxy_core: int
    load_core: int
    seconds: int
    samples: list[Sample] = field(default_factory=list)

    def measure(self, number: int, load: Load, peer: Peer) -> None:
        with ExitStack() as stack:
            pids = []
            if peer == REDIRECT:
                stack.enter_context(self._rules())
            elif (daemon := peer.start(self.topology, self.proxy_core, self.directory)) is not None:
                stack.enter_context(daemon)
                daemon.wait_for_ports(own for own, _ in peer.listeners())
                pids.append(daemon.pid)
            check_path(self.topology, peer)
            clocks = Clocks(pids, self.servers)
            before = clocks.read()
            work = load.run(
                Target(topology=self.topology, peer=peer, core=self.load_core, seconds=self.seconds)
            )
            times = clocks.read() - before
        self.samples.append(
            Sample(
                number=number,
                load=load.name,
                peer=peer.name,
                amount=work.amount,
                times=times,
                latency_us=work.latency_us,
            )
        )

    @contextmanager
    def _rules(self) -> Iterator[None]:
        ruleset = Ruleset(
            egress=EGRESS_INTERFACE,
            sources=(ip_address(RESERVED.v4),),
            translations=tuple(
                Translation("tcp", own, (ip_address(REMOTE.v4),), remote)
                for own, remote in REDIRECT.listeners()
            ),
        )
        self.topology.pod.call(lambda: command.commit(ruleset.table().transaction()))
        try:
            yield
        finally:
            self.topology.pod.call(lambda: command.commit(DELETION))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.redirect", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="length of one measurement")
    options = parser.parse_args()
    try:
        tools.provide()
        become_root()
        raise_descriptor_limit()
        _run(options.rounds, options.seconds)
    except (BenchError, OutputError) as error:
        print("\n".join([str(error), *getattr(error, "__notes__", [])]), file=sys.stderr)
        return 1
    return 0


def _run(rounds: int, seconds: int) -> None:
    cores = sorted(os.sched_getaffinity(0))
    load_core, proxy_core = cores[0], cores[-1]
    os.sched_setaffinity(0, {load_core})
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        topology = stack.enter_context(Topology())
        remote = stack.enter_context(servers.running(topology, load_core, directory))
        bench = RedirectBench(topology, directory, remote, proxy_core, load_core, seconds)
        for number in range(rounds):
            for load in LOADS:
                for name in rotated(list(_PEERS), number):
                    bench.measure(number, load, _PEERS[name])
    print(_table(summarize(bench.samples, REDIRECT.name, len(cores))))


def _table(rows: Sequence[Row]) -> str:
    units = {load.name: load.unit for load in LOADS}
    titles = {name: peer.title for name, peer in _PEERS.items()}
    worst = max(row.disturbance for row in rows)
    return (
        table(
            ["load", "peer", "machine", "redirect ÷ peer", "median latency, µs", "redirect ÷ peer"],
            [
                [
                    row.load,
                    titles[row.peer],
                    f"{figure(row.machine_cost)} {units[row.load]}",
                    spread(row.machine_ratio),
                    figure(row.latency_us),
                    spread(row.latency_ratio),
                ]
                for row in rows
            ],
        )
        + f"\n\nOther processes used up to {worst:.0%} of this machine during the run."
    )


if __name__ == "__main__":
    sys.exit(main())
