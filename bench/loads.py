"""The loads: each sends work through one peer, checks that it arrived, and returns the amount.

The caller measures the CPU time that the work needed.
"""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.daemons import PATH, BenchError, pinned
from bench.figures import parse_iperf3, parse_wrk
from bench.servers import Status, get
from bench.topology import CLIENT, RESERVED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.peers import Peer
    from bench.topology import Topology

WRK_SCRIPT = str(Path(__file__).with_name("wrk.lua"))
_REQUEST = b"GET / HTTP/1.1\r\nHost: remote\r\n\r\n"
# Long enough for a proxy to finish its work for connections that it has just accepted.
_SETTLE_S = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The peer that a load goes through, the generator's core, and the length in seconds."""

    topology: Topology
    peer: Peer
    core: int
    seconds: int


@dataclass(frozen=True, slots=True)
class Work:
    """The gigabytes or requests that arrived; the median latency of requests in microseconds."""

    amount: float
    latency_us: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One kind of traffic. CPU seconds per amount of work, times `scale`, have the unit `unit`."""

    name: str
    title: str
    unit: str
    scale: float
    rate_unit: str
    run: Callable[[Target], Work]


def bulk(target: Target, streams: int) -> Work:
    """Send on `streams` connections as fast as they accept it."""
    address, port = target.peer.endpoint("bulk")
    output = _generate(
        target,
        *("iperf3", "--json", "--client", address, "--port", str(port)),
        *("--parallel", str(streams), "--time", str(target.seconds)),
    )
    # 10⁹ octets.
    return Work(parse_iperf3(output) / 1e9)


def requests(target: Target, server: str, connections: int) -> Work:
    """Request a small page repeatedly on `connections` connections at the same time."""
    address, port = target.peer.endpoint(server)
    before = _settled(target.topology)
    output = _generate(
        target,
        *("wrk", "--threads", "1", "--connections", str(connections)),
        *("--duration", f"{target.seconds}s", "--script", WRK_SCRIPT),
        *(["--header", "Connection: close"] if server == "new" else []),
        f"http://{address}:{port}/",
    )
    result = parse_wrk(output, connections)
    served = Status(target.topology).requests - before
    # The server also counts requests that wrk did not wait for, and the request for the status.
    if not result.requests <= served <= result.requests + connections + 1:
        raise BenchError(f"wrk counts {result.requests} requests, the server {served}")
    return Work(result.requests, result.latency_us)


def _settled(topology: Topology) -> int:
    """The number of requests served so far, when no request of an earlier load is in progress."""
    served = Status(topology).requests
    while True:
        time.sleep(_SETTLE_S)
        before, served = served, Status(topology).requests
        # The difference is the request for the status itself.
        if served == before + 1:
            return served


def _generate(target: Target, *argv: str) -> str:
    done = target.topology.client.run(
        *pinned(target.core, *argv), env={"PATH": PATH}, timeout_s=target.seconds + 30
    )
    if done.returncode:
        raise BenchError(f"{argv[0]} failed: {done.stdout[-1000:]}{done.stderr[-1000:]}")
    return done.stdout


@contextmanager
def idle_connections(target: Target, count: int) -> Iterator[None]:
    """Keep `count` connections open, after one request on each."""
    endpoint = target.peer.endpoint("kept")
    before = Status(target.topology).active
    with ExitStack() as stack:

        def open_all() -> None:
            for _ in range(count):
                sock = stack.enter_context(socket.create_connection(endpoint, 10))
                sock.sendall(_REQUEST)
                if not sock.recv(4096).startswith(b"HTTP/1.1 200 "):
                    raise BenchError("an idle connection got no answer")

        target.topology.client.call(open_all)
        time.sleep(_SETTLE_S)
        active = Status(target.topology).active - before
        if active < count:
            raise BenchError(f"{count} idle connections, but {active} at the server")
        yield


def check_path(topology: Topology, peer: Peer) -> None:
    """Check that the remote sees the reserved address, or without a proxy the client's address."""
    expected = RESERVED.v4 if peer.command else CLIENT.v4
    seen = get(topology.client, peer.endpoint("kept"), "/client")
    if seen != expected:
        raise BenchError(f"{peer.name}: the remote sees {seen} instead of {expected}")


LOADS = (
    Load(
        name="bulk-1",
        title="bulk, 1 stream",
        unit="s/GB",
        scale=1,
        rate_unit="GB/s",
        run=lambda target: bulk(target, 1),
    ),
    Load(
        name="bulk-8",
        title="bulk, 8 streams",
        unit="s/GB",
        scale=1,
        rate_unit="GB/s",
        run=lambda target: bulk(target, 8),
    ),
    Load(
        name="kept",
        title="requests on 64 kept connections",
        unit="µs/request",
        scale=1e6,
        rate_unit="requests/s",
        run=lambda target: requests(target, "kept", 64),
    ),
    Load(
        name="new",
        title="new connections, 64 at a time",
        unit="µs/connection",
        scale=1e6,
        rate_unit="connections/s",
        run=lambda target: requests(target, "new", 64),
    ),
    Load(
        name="latency",
        title="one kept connection",
        unit="µs/request",
        scale=1e6,
        rate_unit="requests/s",
        run=lambda target: requests(target, "kept", 1),
    ),
)
KEPT, NEW = LOADS[2], LOADS[3]
