"""``python -m bench.scaling``: one process, or thread, against two.

Two generators at once, each with its connections. One process serves both, or each has one of its
own, as two workers with a port between them would; HAProxy serves both with one thread or with two.
Nothing is pinned: proxies, generators and server share all cores, as they do on a node that has
nothing to spare, so a second process also takes from them.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from bench import servers, tools
from bench.clocks import Clocks
from bench.daemons import PATH, BenchError, pinned
from bench.descriptors import raise_descriptor_limit
from bench.figures import OutputError, parse_wrk, ratios, rotated
from bench.loads import KEPT, NEW, WRK_SCRIPT, Load
from bench.markdown import figure, table
from bench.peers import HAPROXY, HAPROXY_THREADS, PROJECT, PROJECT_TWICE, Peer
from bench.topology import Topology
from tests.support.namespaces import become_root

if TYPE_CHECKING:
    from collections.abc import Sequence

_CONNECTIONS = 64

# The proxies of one measurement; the generators go to the first and to the last of them.
_TEAMS: dict[str, tuple[Peer, ...]] = {
    "egress-proxy, one process": (PROJECT,),
    "egress-proxy, two processes": PROJECT_TWICE,
    "HAProxy, one thread": (HAPROXY,),
    "HAProxy, two threads": (HAPROXY_THREADS,),
}
# Two of something, beside one.
_ONE = dict(zip(list(_TEAMS)[1::2], list(_TEAMS)[::2], strict=True))


@dataclass(frozen=True, slots=True)
class Sample:
    """Requests a second, and CPU microseconds of the proxies for each."""

    rate: float
    cost: float


@dataclass(frozen=True, slots=True)
class Laboratory:
    """What stays the same from one measurement to the next."""

    topology: Topology
    directory: Path
    # As taskset(1) has them.
    cores: str
    servers: list[int]
    seconds: int

    def measure(self, load: Load, team: Sequence[Peer]) -> Sample:
        with ExitStack() as stack:
            pids = []
            for peer in team:
                daemon = peer.start(self.topology, self.cores, self.directory)
                if daemon is not None:
                    stack.enter_context(daemon)
                    daemon.wait_for_ports(own for own, _ in peer.listeners())
                    pids.append(daemon.pid)
            clocks = Clocks(pids, self.servers)
            before = clocks.read()
            with ThreadPoolExecutor(2) as generators:
                doors = (team[0], team[-1])
                requests = sum(generators.map(lambda door: self._generate(load, door), doors))
            times = clocks.read() - before
        return Sample(requests / times.wall, times.proxy / requests * load.scale)

    def _generate(self, load: Load, door: Peer) -> int:
        address, port = door.endpoint(load.name)
        done = self.topology.client.run(
            *pinned(self.cores, "wrk", "--threads", "1", "--connections", str(_CONNECTIONS)),
            *("--duration", f"{self.seconds}s", "--script", WRK_SCRIPT),
            *(["--header", "Connection: close"] if load is NEW else []),
            f"http://{address}:{port}/",
            env={"PATH": PATH},
            timeout_s=self.seconds + 30,
        )
        return parse_wrk(done.stdout, _CONNECTIONS).requests


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="length of one measurement")
    options = parser.parse_args()
    try:
        tools.install_missing()
        become_root()
        raise_descriptor_limit()
        _run(options.rounds, options.seconds)
    except (BenchError, OutputError) as error:
        print("\n".join([str(error), *getattr(error, "__notes__", [])]), file=sys.stderr)
        return 1
    return 0


def _run(rounds: int, seconds: int) -> None:
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        topology = stack.enter_context(Topology())
        remote = stack.enter_context(servers.running(topology, cores, directory))
        laboratory = Laboratory(topology, directory, cores, remote, seconds)
        for load in (KEPT, NEW):
            samples: dict[str, dict[int, Sample]] = {team: {} for team in _TEAMS}
            for number in range(rounds):
                for team in rotated(list(_TEAMS), number):
                    samples[team][number] = laboratory.measure(load, _TEAMS[team])
            print(_table(load, samples), flush=True)


def _table(load: Load, samples: dict[str, dict[int, Sample]]) -> str:
    rates = {
        team: {number: sample.rate for number, sample in rounds.items()}
        for team, rounds in samples.items()
    }
    lines = []
    for team, rounds in samples.items():
        one = _ONE.get(team)
        gain = figure(median(ratios(rates[team], rates[one]))) if one else "1"
        cost = median(sample.cost for sample in rounds.values())
        lines.append([team, figure(median(rates[team].values())), gain, figure(cost)])
    return "\n" + table([load.title, load.rate_unit, "÷ one", f"proxies, {load.unit}"], lines)


if __name__ == "__main__":
    sys.exit(main())
