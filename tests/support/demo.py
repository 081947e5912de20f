"""``make demo``: shows the main job, in network namespaces that are removed afterwards.

The laboratory and the pod are those of the tests; here is only what is said about them. The exit
status is 0 only if the outside saw the reserved address on every connection.
"""
# ruff: noqa: T201 - a demonstration prints

from __future__ import annotations

import io
import os
import shutil
import socket
import sys
import textwrap
from statistics import median
from time import monotonic
from typing import TYPE_CHECKING

from egress_proxy.nft.command import PATH as NFT_PATH
from egress_proxy.nft.command import list_table
from tests.support.deployment import (
    ENDPOINTS,
    INIT_ENV,
    KERNEL,
    LEAST_PRIVILEGE,
    RUN_ENV,
    Deployment,
)
from tests.support.lab import CLIENT, CLUSTER_DNS, GATEWAY, OUTSIDE, POD, RESERVED, Lab
from tests.support.namespaces import LabUnavailableError, become_root

if TYPE_CHECKING:
    from tests.support.processes import Process, Record

# Columns: a terminal has 80.
WIDTH = 79
INDENT = " " * 4
ROUND_TRIPS = 300

PICTURE = f"""\
client ───────── node ───────── pod
{CLIENT.v4}     │            eth0      {POD.v4}
                  │            macvlan0  {RESERVED.v4}, the reserved address
                  │               │
                  └───── LAN ─────┘
                          │
                       gateway
                       {GATEWAY.v4}
                          │
                       outside
                       {OUTSIDE.v4} and .131"""


def main() -> int:
    # Where the output can't show the lines of the picture, it still gets the text.
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(errors="replace", line_buffering=True)
    started = monotonic()
    user = os.getuid()
    try:
        become_root()
        with Lab() as lab:
            introduce(user)
            with Deployment(lab, LEAST_PRIVILEGE) as deployment:
                show_init(deployment)
                proxy = show_run(deployment)
                heading("4. A client of the cluster connects to the pod")
                seen = [show_connection(deployment, proxy, port) for port in ENDPOINTS]
                spliced_us = round_trip_us(deployment)
                status = proxy.stop()
            seen += show_kernel(lab, spliced_us)
    except LabUnavailableError as error:
        print(f"make demo: {error}", file=sys.stderr)
        return 1
    return conclude(seen, status, monotonic() - started)


def introduce(user: int) -> None:
    heading("1. A cluster and the world around it")
    who = "root" if user == 0 else f"user {user}, who is root in a user namespace"
    say(
        f"Made of network namespaces, by {who}. Nothing else on this machine is touched, and "
        "everything is removed at the end. All addresses are reserved for documentation."
    )
    show(PICTURE)
    say(
        "The outside answers only the reserved address, like a firewall that admits one address; "
        "it has no route to the cluster, so the pod's own address would get no answer. Only the "
        f"cluster's DNS server, {CLUSTER_DNS.v4} behind the node, knows the names."
    )


def show_init(deployment: Deployment) -> None:
    heading("2. The init container")
    say("egress-proxy init, with the capabilities NET_ADMIN and NET_RAW, gets:")
    show_env(INIT_ENV)
    records = deployment.init(EGRESS_ROUTER_DEBUG="1")
    say("It moves the pod's default route to macvlan0. Its changes, as commands:")
    show("\n".join(record["command"] for record in records if record["event"] == "init.step"))
    show_record(records[-1])


def show_run(deployment: Deployment) -> Process:
    heading("3. The main container")
    say(
        "egress-proxy run, as an ordinary user without any capability and with a read-only file "
        "system, gets:"
    )
    show_env(RUN_ENV)
    proxy = deployment.start()
    proxy.wait_for("daemon.ready", listeners=len(ENDPOINTS))
    say("It resolves the names, and listens on every address but the reserved one:")
    for record in proxy.records:
        if record["event"] in {"destination.resolved", "listener.opened"}:
            show_record(record)
    return proxy


def show_connection(deployment: Deployment, proxy: Process, port: int) -> str:
    """Fetch something through `port`; the source address that the outside saw."""
    with deployment.connect(port) as (client, upstream):
        seen = str(upstream.getpeername()[0])
        client.sendall(f"GET /hello HTTP/1.0\r\nHost: {POD.v4}:{port}\r\n\r\n".encode())
        request = read_request(upstream)
        upstream.sendall(f"HTTP/1.0 200 OK\r\n\r\nHello, {seen}".encode())
        upstream.shutdown(socket.SHUT_WR)
        response = read_body(client)
    address, remote_port = ENDPOINTS[port]
    verdict = "the reserved address" if seen == RESERVED.v4 else "NOT the reserved address"
    print(f"\nPort {port}")
    show(
        f"the client {CLIENT.v4} asks {POD.v4}:{port}: {request}\n"
        f"{address}:{remote_port} outside is asked by {seen}, {verdict}\n"
        f"the client receives: {response}"
    )
    show_record(proxy.wait_for("connection.closed", listener=port))
    return seen


def show_kernel(lab: Lab, spliced_us: float) -> list[str]:
    """The same with the other data plane; the source addresses that the outside saw."""
    heading("5. The kernel as data plane")
    if shutil.which("nft", path=NFT_PATH) is None:
        say("Not shown: it needs the program nft (package nftables).")
        return []
    say(
        "With EGRESS_DNS_PROXY_DATAPLANE=kernel, which takes the capability NET_ADMIN, nftables "
        "translates and the kernel forwards. The proxy resolves the names and keeps the rules true:"
    )
    with Deployment(lab, KERNEL) as deployment:
        proxy = deployment.start()
        proxy.wait_for("daemon.ready", listeners=len(ENDPOINTS))
        show("\n".join(translations(lab)))
        port = next(iter(ENDPOINTS))
        seen = show_connection(deployment, proxy, port)
        kernel_us = round_trip_us(deployment)
        proxy.stop()
    say(
        f"The median of {ROUND_TRIPS} round trips of one octet took {spliced_us:.0f} µs through "
        f"the proxy and takes {kernel_us:.0f} µs through the kernel."
    )
    return [seen]


def translations(lab: Lab) -> list[str]:
    lines = map(str.strip, lab.pod.call(list_table).splitlines())
    return [line for line in lines if " dnat ip" in line or " snat ip" in line]


def round_trip_us(deployment: Deployment) -> float:
    """The median of one connection's round trips, in microseconds."""
    times = []
    with deployment.connect(next(iter(ENDPOINTS))) as session:
        for _ in range(ROUND_TRIPS):
            started = monotonic()
            session.round_trip()
            times.append(monotonic() - started)
        session.finish()
    return 1e6 * median(times)


def read_request(upstream: socket.socket) -> str:
    """The first line of a request, once its whole head is there."""
    with upstream.makefile(encoding="ascii", newline="\r\n") as stream:
        head = list(iter(stream.readline, "\r\n"))
    return head[0].strip()


def read_body(client: socket.socket) -> str:
    """What follows the head of a response, up to the end of the stream."""
    with client.makefile(encoding="ascii") as stream:
        return stream.read().partition("\n\n")[2]


def conclude(seen: list[str], status: int, duration_s: float) -> int:
    good = seen.count(RESERVED.v4)
    heading("The end")
    say(
        f"The outside saw the reserved address {RESERVED.v4} on {good} of {len(seen)} connections. "
        f"The proxy got SIGTERM and ended with status {status}. All of this took "
        f"{duration_s:.1f} s."
    )
    return 0 if good == len(seen) and status == 0 else 1


def heading(title: str) -> None:
    print(f"\n{title}\n{'─' * len(title)}")


def say(sentences: str) -> None:
    print(f"\n{textwrap.fill(sentences, WIDTH, break_on_hyphens=False)}")


def show(lines: str) -> None:
    print(textwrap.indent(lines, INDENT))


def show_env(env: dict[str, str]) -> None:
    for name, value in env.items():
        lines = textwrap.indent(value.rstrip(), INDENT)
        show(f"{name}=\n{lines}" if "\n" in lines else f"{name}={value}")


def show_record(record: Record) -> None:
    """A log record, its event first, without its time and level."""
    omitted = {"event", "time", "level"}
    fields = [f"{key}={as_text(value)}" for key, value in record.items() if key not in omitted]
    first = f"{INDENT}{record['event']}  "
    print(
        textwrap.fill(
            "  ".join(fields),
            WIDTH,
            initial_indent=first,
            subsequent_indent=" " * len(first),
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


def as_text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


if __name__ == "__main__":
    sys.exit(main())
