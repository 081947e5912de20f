"""``python -m bench.scaling``: compare two processes, or two threads, with one.

Two load generators run at the same time. Either one egress-proxy process serves both, or each has
its own; HAProxy serves both with one thread or with two. Nothing is pinned to a core: proxies,
generators and server share all cores, as on a busy node, so a second process also takes CPU time
from the others.
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

# The proxies of one measurement. One generator uses the first of them, the other the last.
_VARIANTS: dict[str, tuple[Peer, ...]] = {
    "egress-proxy, one process": (PROJECT,),
    "egress-proxy, two processes": PROJECT_TWICE,
    "HAProxy, one thread": (HAPROXY,),
    "HAProxy, two threads": (HAPROXY_THREADS,),
}
# The variant with one process or thread, for each variant with two.
_ONE = dict(zip(list(_VARIANTS)[1::2], list(_VARIANTS)[::2], strict=True))


@dataclass(frozen=True, slots=True)
class Sample:
    """Requests per second, and CPU microseconds of the proxies per request."""

    rate: float
    cost: float


@dataclass(frozen=True, slots=True)
class ScalingBench:
    """What is the same for all measurements of a run."""

    topology: Topology
    directory: Path
    # A list for taskset(1).
    cores: str
    servers: list[int]
    seconds: int

    def measure(self, load: Load, proxies: Sequence[Peer]) -> Sample:
        with ExitStack() as stack:
            pids = []
            for peer in proxies:
                daemon = peer.start(self.topology, self.cores, self.directory)
                if daemon is not None:
                    stack.enter_context(daemon)
                    daemon.wait_for_ports(own for own, _ in peer.listeners())
                    pids.append(daemon.pid)
            clocks = Clocks(pids, self.servers)
            before = clocks.read()
            with ThreadPoolExecutor(2) as generators:
                targets = (proxies[0], proxies[-1])
                requests = sum(generators.map(lambda peer: self._generate(load, peer), targets))
            times = clocks.read() - before
        return Sample(requests / times.wall, times.proxy / requests * load.scale)

    def _generate(self, load: Load, peer: Peer) -> int:
        address, port = peer.endpoint(load.name)
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
        tools.provide()
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
        bench = ScalingBench(topology, directory, cores, remote, seconds)
        for load in (KEPT, NEW):
            samples: dict[str, dict[int, Sample]] = {variant: {} for variant in _VARIANTS}
            for number in range(rounds):
                for variant in rotated(list(_VARIANTS), number):
                    samples[variant][number] = bench.measure(load, _VARIANTS[variant])
            print(_table(load, samples), flush=True)


def _table(load: Load, samples: dict[str, dict[int, Sample]]) -> str:
    rates = {
        variant: {number: sample.rate for number, sample in rounds.items()}
        for variant, rounds in samples.items()
    }
    lines = []
    for variant, rounds in samples.items():
        one = _ONE.get(variant)
        gain = figure(median(ratios(rates[variant], rates[one]))) if one else "1"
        cost = median(sample.cost for sample in rounds.values())
        lines.append([variant, figure(median(rates[variant].values())), gain, figure(cost)])
    return "\n" + table([load.title, load.rate_unit, "÷ one", f"proxies, {load.unit}"], lines)


if __name__ == "__main__":
    sys.exit(main())
