"""A port that another process of the pod takes while ours is bound and does not listen.

Linux lets a socket with SO_REUSEADDR bind and listen on a port that another one has only bound, or
whose listener was shut down. Our listen(2) then fails with EADDRINUSE.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.dns import DnsServer, Name
from tests.support.session import Session
from tests.support.standalone import free_port, running
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.processes import Process

NAME = "late.example.com"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@contextmanager
def thief(port: int) -> Iterator[socket.socket]:
    """Another process's listener on `port`."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        sock.listen()
        yield sock


def serves(port: int, listener: socket.socket) -> None:
    session = Session.on_loopback(port, listener)
    session.round_trip()
    session.finish()


def states(admin: int) -> dict[int, str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/status.json") as answer:
        status: dict[str, Any] = json.load(answer)
    return {entry["listener"]: entry["state"] for entry in status["status"]["destinations"]}


@contextmanager
def stolen_before_the_first_answer(
    port: int, dns: DnsServer, process: Process
) -> Iterator[socket.socket]:
    """Once `process` has bound `port`: another listens there, and DNS begins to answer."""
    process.wait_for("destination.unresolved")
    with thief(port) as sock:
        dns.zone[NAME] = Name(a=("127.0.0.1",), ttl_s=5)
        yield sock


def test_it_reports_this_tries_again_and_affects_no_other_port(listener: socket.socket) -> None:
    remote = listener.getsockname()[1]
    stolen, healthy, admin = free_port(), free_port(), free_port()
    text = f"{stolen} {NAME} {remote}\n{healthy} 127.0.0.1 {remote}"
    with (
        DnsServer.on_loopback() as dns,
        running(text, dns, ADMIN_LISTEN=f"127.0.0.1:{admin}") as process,
    ):
        with stolen_before_the_first_answer(stolen, dns, process):
            failed = process.wait_for("listener.failed")
            assert failed["listener"] == stolen
            assert failed["error"] == "Address already in use"
            assert states(admin) == {stolen: "failed", healthy: "listening"}
            serves(healthy, listener)
            # The name is looked up again all the same.
            process.wait_for("destination.resolved")
        process.wait_for("listener.opened", listener=stolen)
        serves(stolen, listener)
        # A snapshot may be a second old.
        wait_until(lambda: states(admin) == {stolen: "listening", healthy: "listening"})


def test_a_drain_beside_it_waits_for_the_sessions_of_the_other_ports(
    listener: socket.socket,
) -> None:
    remote = listener.getsockname()[1]
    stolen, healthy = free_port(), free_port()
    text = f"{stolen} {NAME} {remote}\n{healthy} 127.0.0.1 {remote}"
    with (
        DnsServer.on_loopback() as dns,
        running(text, dns) as process,
        stolen_before_the_first_answer(stolen, dns, process),
    ):
        process.wait_for("listener.failed")
        session = Session.on_loopback(healthy, listener)
        session.round_trip()
        os.kill(process.pid, signal.SIGTERM)
        # Once the ports are closed, the session goes on.
        process.wait_for("listener.closed")
        session.round_trip()
        session.finish()
        assert process.wait() == 0
        assert process.records[-1]["event"] == "daemon.stopped"
        assert process.records[-1]["reset"] == 0
        assert "Traceback" not in process.stderr


def test_a_reload_that_changes_it_takes_effect(listener: socket.socket, tmp_path: Path) -> None:
    remote = listener.getsockname()[1]
    stolen, other = free_port(), free_port()
    file = tmp_path / "destinations"
    file.write_text(f"{stolen} {NAME} {remote}")
    with (
        DnsServer.on_loopback() as dns,
        running("", dns, DESTINATION_FILE=str(file)) as process,
    ):
        with stolen_before_the_first_answer(stolen, dns, process):
            process.wait_for("listener.failed")
            file.write_text(f"{stolen} 127.0.0.1 {remote}\n{other} 127.0.0.1 {remote}")
            os.kill(process.pid, signal.SIGHUP)
            reloaded = process.wait_for("config.reloaded")
            assert (reloaded["changed"], reloaded["added"]) == ([stolen], [other])
            serves(other, listener)
        process.wait_for("listener.opened", listener=stolen)
        serves(stolen, listener)


def test_a_reload_that_meets_a_port_that_is_busy_for_a_moment_is_tried_again(
    listener: socket.socket, tmp_path: Path
) -> None:
    remote = listener.getsockname()[1]
    port, busy = free_port(), free_port()
    file = tmp_path / "destinations"
    file.write_text(f"{port} 127.0.0.1 {remote}")
    with running("", DESTINATION_FILE=str(file)) as process:
        process.wait_for("daemon.ready")
        with thief(busy):
            file.write_text(f"{port} 127.0.0.1 {remote}\n{busy} 127.0.0.1 {remote}")
            os.kill(process.pid, signal.SIGHUP)
            assert "Address already in use" in process.wait_for("config.rejected")["problems"][0]
        assert process.wait_for("config.reloaded")["added"] == [busy]
        serves(busy, listener)
