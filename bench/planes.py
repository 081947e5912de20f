"""``python -m bench.planes``: compare the data planes with plain forwarding, HAProxy and nginx.

Each peer runs for its own measurements only: connection tracking begins with the rules of nftables
and would cost the others too. In redirect mode no process of this project runs: `init` sets the
rules and ends, and here the same rules are set and removed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from bench import servers, tools
from bench.clocks import Clocks
from bench.daemons import BenchError
from bench.descriptors import raise_descriptor_limit
from bench.figures import OutputError, rotated
from bench.loads import LOADS, Load, Target, check_path
from bench.machine import describe
from bench.markdown import figure, spread, table
from bench.peers import FORWARDING, HAPROXY, KERNEL, NGINX, PROJECT, Peer
from bench.samples import Sample
from bench.summary import Row, summarize
from bench.topology import EGRESS_INTERFACE, REMOTE, RESERVED, Topology
from egress_proxy.nft import command, rules_writer
from egress_proxy.nft.ruleset import Ruleset, Translation
from tests.support.namespaces import become_root

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


def _no_command(_peer: Peer, _directory: Path) -> tuple[list[str], Mapping[str, str]]:
    raise AssertionError("redirect mode has no process")


REDIRECT = Peer("redirect", "egress-proxy, redirect mode", 160, _no_command)
_PEERS = {peer.name: peer for peer in (FORWARDING, REDIRECT, KERNEL, PROJECT, HAPROXY, NGINX)}
# Upper limits of the kernel data plane's ratios: of the machine's CPU, and of the median latency.
_GOALS = {FORWARDING: (1.15, 1.15), HAPROXY: (0.75, 0.30)}

_INTRODUCTION = """\
Written by `make bench-planes` on {day}, {rounds} rounds. CPU time of the whole machine, servers and
generators included, per unit of work, and the median latency, as medians over the rounds; each also
divided by that of plain IP forwarding and of HAProxy in the same round, with the lowest and the
highest round in brackets. Other processes used up to {worst:.0%} of this machine during the run."""


@dataclass(slots=True)
class PlaneBench:
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
            # Also those of a daemon that was killed.
            stack.callback(self.topology.pod.call, rules_writer.remove)
            if peer == REDIRECT:
                self._write_rules()
            elif (daemon := peer.start(self.topology, self.proxy_core, self.directory)) is not None:
                stack.enter_context(daemon)
                peer.wait_until_serving(daemon)
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

    def _write_rules(self) -> None:
        ruleset = Ruleset(
            egress=EGRESS_INTERFACE,
            sources=(ip_address(RESERVED.v4),),
            translations=tuple(
                Translation("tcp", own, (ip_address(REMOTE.v4),), remote)
                for own, remote in REDIRECT.listeners()
            ),
        )
        self.topology.pod.call(lambda: command.commit(ruleset.table().transaction()))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.planes", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="length of one measurement")
    parser.add_argument("--peers", nargs="+", choices=_PEERS, default=list(_PEERS))
    parser.add_argument("--loads", nargs="+", choices=[load.name for load in LOADS], default=None)
    parser.add_argument("--out", type=Path, help="a file for the page; standard output without it")
    options = parser.parse_args()
    try:
        tools.provide()
        become_root()
        raise_descriptor_limit()
        page = _run(options)
    except (BenchError, OutputError) as error:
        print("\n".join([str(error), *getattr(error, "__notes__", [])]), file=sys.stderr)
        return 1
    print(page)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(page)
    return 0


def _run(options: argparse.Namespace) -> str:
    cores = sorted(os.sched_getaffinity(0))
    load_core, proxy_core = cores[0], cores[-1]
    os.sched_setaffinity(0, {load_core})
    facts = describe(proxy_core, load_core)
    loads = [load for load in LOADS if options.loads is None or load.name in options.loads]
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        topology = stack.enter_context(Topology())
        remote = stack.enter_context(servers.running(topology, load_core, directory))
        bench = PlaneBench(topology, directory, remote, proxy_core, load_core, options.seconds)
        for number in range(options.rounds):
            for load in loads:
                for name in rotated(list(options.peers), number):
                    bench.measure(number, load, _PEERS[name])
    page = _page(bench.samples, loads, facts, len(cores))
    os.sched_setaffinity(0, cores)
    # In a process of its own, whose children are nft alone.
    argv = [sys.executable, "-m", "bench.kernel_scale"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(done.stderr)
    return f"{page}\n## Many destinations, many flows\n\n```\n{done.stdout}```\n"


def _page(
    samples: Sequence[Sample], loads: Sequence[Load], facts: Mapping[str, str], cores: int
) -> str:
    rounds = 1 + max(sample.number for sample in samples)
    against = {
        (baseline.name, row.peer, row.load): row
        for baseline in (FORWARDING, HAPROXY)
        for row in _against(samples, baseline, cores)
    }
    rows = summarize(samples, KERNEL.name, cores)
    worst = max(row.disturbance for row in rows)
    day = time.strftime("%Y-%m-%d", time.gmtime())
    parts = [
        "# Data planes",
        _INTRODUCTION.format(day=day, rounds=rounds, worst=worst),
        "\n".join(f"- {name}: {value}" for name, value in facts.items()),
    ]
    for load in loads:
        parts += [f"## {load.title}", _table(load, rows, against)]
    return "\n\n".join(parts) + "\n"


def _against(samples: Sequence[Sample], baseline: Peer, cores: int) -> Iterator[Row]:
    """A row per peer and load, whose ratios are those of the peer to `baseline`."""
    for peer in dict.fromkeys(sample.peer for sample in samples):
        for row in summarize(samples, peer, cores):
            if row.peer == baseline.name:
                yield replace(row, peer=peer)


def _table(load: Load, rows: Sequence[Row], against: Mapping[tuple[str, str, str], Row]) -> str:
    lines = []
    for row in rows:
        if row.load != load.name:
            continue
        line = [_PEERS[row.peer].title, f"{figure(row.machine_cost)} {load.unit}"]
        compared = [against.get((each.name, row.peer, row.load)) for each in _GOALS]
        goals = list(_GOALS.values()) if row.peer == KERNEL.name else [(None, None)] * len(_GOALS)
        line += [
            spread(each.machine_ratio if each else None, goal)
            for each, (goal, _) in zip(compared, goals, strict=True)
        ]
        line.append(figure(row.latency_us))
        line += [
            spread(each.latency_ratio if each else None, goal if load.name == "latency" else None)
            for each, (_, goal) in zip(compared, goals, strict=True)
        ]
        lines.append(line)
    ratios = ["\N{DIVISION SIGN} forwarding", "\N{DIVISION SIGN} HAProxy"]
    head = ["peer", "CPU of the machine", *ratios, "median latency, µs", *ratios]
    return table(head, lines)


if __name__ == "__main__":
    sys.exit(main())
