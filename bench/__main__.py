"""``python -m bench``: compare this project with HAProxy, nginx and plain IP forwarding."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from bench import servers, tools
from bench.daemons import BenchError
from bench.descriptors import capacity, raise_descriptor_limit
from bench.figures import OutputError
from bench.loads import LOADS
from bench.machine import describe
from bench.peers import PEERS, earlier
from bench.report import Run, syscalls_table, write
from bench.rounds import Bench
from bench.syscalls import count_all
from bench.topology import Topology
from tests.support.namespaces import become_root


def main() -> int:
    options = _parser().parse_args()
    for number, checkout in enumerate(options.earlier):
        peer = earlier(checkout.resolve(), number)
        PEERS[peer.name] = peer
        options.peers.append(peer.name)
    # SystemExit stops all processes on its way out.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        tools.provide()
        become_root()
        raise_descriptor_limit()
        _run(options)
    except (BenchError, OutputError) as error:
        print("\n".join([str(error), *getattr(error, "__notes__", [])]), file=sys.stderr)
        return 1
    return 0


def _run(options: argparse.Namespace) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise BenchError("two cores are needed: one for the proxy, one for everything else")
    # The proxy gets the last core, because the first one usually handles the interrupts.
    load_core, proxy_core = cores[0], cores[-1]
    os.sched_setaffinity(0, {load_core})
    facts = describe(proxy_core, load_core)
    started = time.monotonic()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        topology = stack.enter_context(Topology())
        bench = Bench(
            topology=topology,
            directory=directory,
            servers=stack.enter_context(servers.running(topology, load_core, directory)),
            proxy_core=proxy_core,
            load_core=load_core,
            seconds=options.seconds,
            # Leave 200 connections for the requests and the checks.
            idle=min(options.idle, capacity() - 200),
            wanted=frozenset(options.peers),
            loads=tuple(load for load in LOADS if load.name in (options.loads or load.name)),
            report=lambda line: print(line, flush=True),
        )
        rounds = 0 if options.syscalls else options.rounds
        samples = [sample for number in range(rounds) for sample in bench.run_round(number)]
        syscalls = count_all(topology, proxy_core, directory, bench.wanted)
    run = Run(
        facts=facts,
        samples=samples,
        syscalls=syscalls,
        rounds=options.rounds,
        seconds=options.seconds,
        idle=bench.idle,
        cores=len(cores),
        duration_s=time.monotonic() - started,
    )
    if options.syscalls:
        print(syscalls_table(syscalls))
    else:
        write(run, options.out)
        print(f"written to {options.out}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="each has every load and peer")
    parser.add_argument("--seconds", type=int, default=3, help="of one measurement")
    parser.add_argument("--idle", type=int, default=10_000, help="number of idle connections")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--loads", nargs="+", choices=[load.name for load in LOADS])
    parser.add_argument(
        "--earlier", type=Path, nargs="+", default=[], help="other checkouts of this project"
    )
    parser.add_argument(
        "--syscalls", action="store_true", help="count system calls and do nothing else"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
