"""`egress-proxy run` as a process on loopback, beside whatever else the machine does."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.support.network import COVERAGE
from tests.support.processes import Process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.dns import DnsServer
    from tests.support.processes import Record

PREFIX = "EGRESS_DNS_PROXY_"
COMMAND = [sys.executable, "-m", "egress_proxy", "run"]
ANSWER_S = 10


def free_port() -> int:
    """A port without a listener now; the kernel hands out others for a while."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def running(
    destinations: str,
    dns: DnsServer | None = None,
    descriptors: int | None = None,
    **variables: str,
) -> Iterator[Process]:
    """The command with these settings, and perhaps with so many descriptors at most."""
    environ = {
        f"{PREFIX}DESTINATION": destinations,
        f"{PREFIX}SOURCE": "any",
        f"{PREFIX}LISTEN": "127.0.0.1",
        # Its port is one for the whole machine.
        f"{PREFIX}ADMIN_LISTEN": "off",
        f"{PREFIX}DEBUG": "1",
        f"{PREFIX}LOG_FORMAT": "json",
        f"{PREFIX}NAMESERVERS": dns.address if dns else "127.0.0.1:9",
        **{f"{PREFIX}{name}": value for name, value in variables.items()},
        "PATH": os.environ["PATH"],
    }
    # What measures coverage needs descriptors too.
    with (
        Process(COMMAND, env=COVERAGE | environ)
        if descriptors is None
        else Process(["prlimit", f"--nofile={descriptors}", *COMMAND], env=environ)
    ) as process:
        yield process


def ended(process: Process) -> Record:
    """The record of the next connection that has ended."""
    return process.wait_for("connection.closed")


def resets_clients(port: int) -> bool:
    """Whether a new client of `port` gets a RST; connect(2) itself may report it already."""
    try:
        with socket.create_connection(("127.0.0.1", port), ANSWER_S) as client:
            return reset_by_peer(client)
    except ConnectionResetError:
        return True


def reset_by_peer(sock: socket.socket) -> bool:
    """Whether what comes next is a RST."""
    try:
        return bool(sock.recv(1)) and False
    except ConnectionResetError:
        return True
