"""``python -m bench.kernel_scale``: the kernel data plane with many destinations and many flows.

First the rules of a thousand destinations with ten addresses each: time and memory of nft(8). Then
flows that stay open without a socket (TCP_REPAIR closes silently), and what looking at them costs
the daemon: CPU time, memory, and how long its event loop is busy.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from http.client import HTTPConnection
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Self

from bench import tools
from bench.clocks import process_seconds, resident_octets
from bench.daemons import BenchError
from bench.descriptors import raise_descriptor_limit
from bench.peers import KERNEL
from bench.servers import PORTS
from bench.topology import CLIENT, EGRESS_INTERFACE, POD, REMOTE, RESERVED, Topology
from egress_proxy.nft import command, rules_writer
from egress_proxy.nft.ruleset import Ruleset, Translation
from egress_proxy.nft.session_rules import SessionRules
from tests.support.namespaces import become_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.daemons import Daemon

# linux/tcp.h
_TCP_REPAIR = 19
_FIRST_PORT = 10_000
_ADMIN_PORT = 9053 + KERNEL.first_port
_PAUSE_S = 0.005
# After this time all flows are followed.
_RECORDING_S = 4.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.kernel_scale", description=__doc__)
    parser.add_argument("--destinations", type=int, default=1000)
    parser.add_argument("--addresses", type=int, default=10)
    parser.add_argument("--flows", type=int, default=50_000)
    options = parser.parse_args()
    try:
        tools.provide()
        become_root()
        raise_descriptor_limit()
        for line in measure(options.destinations, options.addresses, options.flows):
            print(line, flush=True)
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def measure(destinations: int = 1000, addresses: int = 10, count: int = 50_000) -> Iterator[str]:
    with Topology() as topology:
        yield from rules(topology, destinations, addresses)
    with ExitStack() as stack:
        topology = stack.enter_context(Topology())
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        yield from flows(stack, topology, directory, count)


def rules(topology: Topology, destinations: int, addresses: int) -> Iterator[str]:
    def ruleset(moved: int) -> Ruleset:
        """The destinations below `moved` have other addresses."""
        return Ruleset(
            egress=EGRESS_INTERFACE,
            sources=(ip_address(RESERVED.v4),),
            translations=tuple(
                Translation(
                    "tcp",
                    _FIRST_PORT + number,
                    tuple(
                        ip_address(f"198.51.{100 + (number < moved)}.{1 + last}")
                        for last in range(addresses)
                    ),
                    443,
                    mark=1 + number,
                )
                for number in range(destinations)
            ),
            sessions=SessionRules(connect_timeout_s=10, idle_timeout_s=0, half_close_timeout_s=0),
        )

    first, moved, many = (ruleset(count).table() for count in (0, 1, destinations))
    yield (f"{destinations} destinations with {addresses} addresses each: wall, CPU of nft")
    pod = topology.pod
    for title, function in (
        ("write all and read them back", lambda: rules_writer.put_table(None, first)),
        ("read them back", lambda: rules_writer.is_there(first)),
        ("move one destination", lambda: rules_writer.put_table(first, moved)),
        ("move the others", lambda: rules_writer.put_table(moved, many)),
        ("read the counters", command.read_counters),
    ):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.monotonic()
        pod.call(function)
        wall = time.monotonic() - started
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        yield f"  {title}: {wall:.3f} s, {cpu:.3f} s"
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    yield (f"  largest nft so far: {largest / 1024:.0f} MiB")


def flows(stack: ExitStack, topology: Topology, directory: Path, count: int) -> Iterator[str]:
    argv, env = KERNEL.command(KERNEL, directory) if KERNEL.command else ([], {})
    env = {**env, "EGRESS_DNS_PROXY_ADMIN_SESSIONS": "on"}
    peer = replace(KERNEL, command=lambda _peer, _directory: (argv, env))
    daemon = peer.start(topology, max(os.sched_getaffinity(0)), directory)
    if daemon is None:
        raise BenchError("the kernel data plane has a process")
    stack.enter_context(daemon)
    KERNEL.wait_until_serving(daemon)
    empty = resident_octets(daemon.pid)
    open_flows(topology, KERNEL.endpoint("kept")[1], count)
    yield (f"{count} flows: CPU of the daemon, wall, longest wait of another request, resident")

    def show(title: str, function: Callable[[], object]) -> str:
        with Probe(topology) as probe:
            cpu, started = process_seconds(daemon.pid), time.monotonic()
            function()
            wall = time.monotonic() - started
            cpu = process_seconds(daemon.pid) - cpu
        resident = (resident_octets(daemon.pid) - empty) / (1 << 20)
        return (
            f"  {title}: {cpu:.3f} s, {wall:.3f} s, {1e3 * probe.longest_s:.1f} ms, "
            f"{resident:+.1f} MiB"
        )

    yield show("nothing", lambda: time.sleep(1))
    yield show("/metrics", lambda: get(topology, "/metrics"))
    time.sleep(1.1)
    yield show("/metrics again", lambda: get(topology, "/metrics"))
    yield show("/sessions.json", lambda: get(topology, "/sessions.json"))
    yield show("records of every session from now on", lambda: record(daemon))


def record(daemon: Daemon) -> None:
    """Ask for it, and wait until all flows are followed."""
    os.kill(daemon.pid, signal.SIGUSR1)
    time.sleep(_RECORDING_S)


def open_flows(topology: Topology, port: int, count: int) -> None:
    """Connect, and forget the connection at both ends."""

    def close_silently(sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
        sock.close()

    with topology.remote.listen(REMOTE.v4, PORTS["kept"]) as listener:

        def connect() -> None:
            for own in range(_FIRST_PORT, _FIRST_PORT + count):
                client = socket.socket()
                client.bind((CLIENT.v4, own))
                client.connect((POD.v4, port))
                upstream, _ = listener.accept()
                close_silently(upstream)
                close_silently(client)

        topology.client.call(connect)


def get(topology: Topology, path: str) -> bytes:
    connection = HTTPConnection(POD.v4, _ADMIN_PORT)
    connection.sock = topology.client.connect(POD.v4, _ADMIN_PORT)
    connection.request("GET", path)
    with connection.getresponse() as answer:
        return answer.read()


class Probe:
    """Asks /livez all the time, in a thread; `longest_s` is the longest answer."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.longest_s = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(_PAUSE_S):
            started = time.monotonic()
            try:
                get(self._topology, "/livez")
            except OSError:
                # It drains, and has ended.
                return
            self.longest_s = max(self.longest_s, time.monotonic() - started)


if __name__ == "__main__":
    sys.exit(main())
