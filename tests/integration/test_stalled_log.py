"""The installed command while its standard output is not read."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import pytest

from tests.support.standalone import free_port, resets_clients

if TYPE_CHECKING:
    from collections.abc import Iterator

# At 300 octets or so a record, more than the pipe and the buffer take together.
CONNECTIONS = 6000


@pytest.fixture
def upstream() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        yield listener


def start(upstream: socket.socket) -> tuple[subprocess.Popen[str], int, int]:
    """The command with an open port that leads to `upstream`, and one that leads nowhere."""
    relayed, refused = free_port(), free_port()
    lines = f"{relayed} 127.0.0.1 {upstream.getsockname()[1]}\n{refused} 127.0.0.1 1\n"
    prefix = "EGRESS_DNS_PROXY_"
    env = {
        f"{prefix}DESTINATION": lines,
        f"{prefix}SOURCE": "any",
        f"{prefix}LISTEN": "127.0.0.1",
        f"{prefix}ADMIN_LISTEN": "off",
        f"{prefix}DEBUG": "1",
        f"{prefix}DRAIN_TIMEOUT": "1s",
    }
    command = [sys.executable, "-m", "egress_proxy", "run"]
    return (
        subprocess.Popen(command, env=os.environ | env, stdout=subprocess.PIPE, text=True),
        relayed,
        refused,
    )


@contextmanager
def killed(process: subprocess.Popen[str]) -> Iterator[None]:
    """In every case."""
    try:
        yield
    finally:
        process.kill()


def wait_for(event: str, stdout: IO[str]) -> list[dict[str, Any]]:
    """All records up to the first of `event`."""
    records = []
    for line in stdout:
        records.append(json.loads(line))
        if records[-1]["event"] == event:
            break
    return records


def test_a_log_that_is_not_read_stalls_no_connection(upstream: socket.socket) -> None:
    process, relayed, refused = start(upstream)
    assert process.stdout is not None
    with process, killed(process):
        wait_for("daemon.ready", process.stdout)
        # There is no reader from here on.
        for _ in range(CONNECTIONS):
            assert resets_clients(refused)
        with socket.create_connection(("127.0.0.1", relayed), timeout=10) as client:
            there, _ = upstream.accept()
            with there:
                client.sendall(b"question")
                assert there.recv(8) == b"question"
                there.sendall(b"answer")
                assert client.recv(6) == b"answer"
        # Now there is a reader again.
        records = wait_for("log.dropped", process.stdout)
        dropped = records.pop()["records"]
        assert dropped > 0
        process.send_signal(signal.SIGTERM)
        records += wait_for("daemon.stopped", process.stdout)
        ended = [record for record in records if record["event"] == "connection.closed"]
        assert len(ended) + dropped == CONNECTIONS + 1
        process.wait(timeout=10)
    assert process.returncode == 0
