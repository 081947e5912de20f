"""The loads: each puts work through one peer, checks that it went through, and says how much.

A load function returns what it did; who paid for it is measured around it.
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
# A proxy that has just taken its connections may still have work to do for them.
_SETTLE_S = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """Where a load runs: what and where to, on which core, and for how long."""

    topology: Topology
    peer: Peer
    core: int
    seconds: int


@dataclass(frozen=True, slots=True)
class Work:
    """Gigabytes or requests that arrived; the median latency of requests in microseconds."""

    amount: float
    latency_us: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One kind of traffic. `scale` turns CPU seconds per work into `unit`."""

    name: str
    title: str
    unit: str
    scale: float
    rate_unit: str
    run: Callable[[Stand], Work]


def bulk(stand: Stand, streams: int) -> Work:
    """Send in `streams` connections as fast as they take it."""
    address, port = stand.peer.endpoint("bulk")
    output = _generate(
        stand,
        *("iperf3", "--json", "--client", address, "--port", str(port)),
        *("--parallel", str(streams), "--time", str(stand.seconds)),
    )
    # 10⁹ octets.
    return Work(parse_iperf3(output) / 1e9)


def requests(stand: Stand, server: str, connections: int) -> Work:
    """Ask for a small page over and over in `connections` connections at a time."""
    address, port = stand.peer.endpoint(server)
    before = _settled(stand.topology)
    output = _generate(
        stand,
        *("wrk", "--threads", "1", "--connections", str(connections)),
        *("--duration", f"{stand.seconds}s", "--script", WRK_SCRIPT),
        *(["--header", "Connection: close"] if server == "new" else []),
        f"http://{address}:{port}/",
    )
    result = parse_wrk(output, connections)
    served = Status(stand.topology).requests - before
    # Those under way when wrk stops are served, but not counted; so is the status itself.
    if not result.requests <= served <= result.requests + connections + 1:
        raise BenchError(f"wrk counts {result.requests} requests, the server {served}")
    return Work(result.requests, result.latency_us)


def _settled(topology: Topology) -> int:
    """The requests served so far, once those that an earlier load left under way are among them."""
    served = Status(topology).requests
    while True:
        time.sleep(_SETTLE_S)
        before, served = served, Status(topology).requests
        # The one more is that for the status.
        if served == before + 1:
            return served


def _generate(stand: Stand, *argv: str) -> str:
    done = stand.topology.client.run(
        *pinned(stand.core, *argv), env={"PATH": PATH}, timeout_s=stand.seconds + 30
    )
    if done.returncode:
        raise BenchError(f"{argv[0]} failed: {done.stdout[-1000:]}{done.stderr[-1000:]}")
    return done.stdout


@contextmanager
def idle_connections(stand: Stand, count: int) -> Iterator[None]:
    """Hold `count` connections open, each of which has asked once and is kept since."""
    endpoint = stand.peer.endpoint("kept")
    before = Status(stand.topology).active
    with ExitStack() as stack:

        def open_all() -> None:
            for _ in range(count):
                sock = stack.enter_context(socket.create_connection(endpoint, 10))
                sock.sendall(_REQUEST)
                if not sock.recv(4096).startswith(b"HTTP/1.1 200 "):
                    raise BenchError("an idle connection got no answer")

        stand.topology.client.call(open_all)
        time.sleep(_SETTLE_S)
        active = Status(stand.topology).active - before
        if active < count:
            raise BenchError(f"{count} idle connections, but {active} at the server")
        yield


def check_path(topology: Topology, peer: Peer) -> None:
    """Make sure that the remote sees the reserved address, or without a proxy the client's."""
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
        run=lambda stand: bulk(stand, 1),
    ),
    Load(
        name="bulk-8",
        title="bulk, 8 streams",
        unit="s/GB",
        scale=1,
        rate_unit="GB/s",
        run=lambda stand: bulk(stand, 8),
    ),
    Load(
        name="kept",
        title="requests on 64 kept connections",
        unit="µs/request",
        scale=1e6,
        rate_unit="requests/s",
        run=lambda stand: requests(stand, "kept", 64),
    ),
    Load(
        name="new",
        title="new connections, 64 at a time",
        unit="µs/connection",
        scale=1e6,
        rate_unit="connections/s",
        run=lambda stand: requests(stand, "new", 64),
    ),
    Load(
        name="latency",
        title="one kept connection",
        unit="µs/request",
        scale=1e6,
        rate_unit="requests/s",
        run=lambda stand: requests(stand, "kept", 1),
    ),
)
KEPT, NEW = LOADS[2], LOADS[3]
