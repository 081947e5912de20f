"""`egress-proxy run` as a process on loopback: names that come late, refusals, records."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.dns import Name
from tests.support.session import Session
from tests.support.standalone import (
    ANSWER_S,
    ended,
    free_port,
    resets_clients,
    running,
)
from tests.support.standalone import PREFIX as P

if TYPE_CHECKING:
    from tests.support.dns import DnsServer
    from tests.support.processes import Process


def one_line(process: Process) -> str:
    """The one problem of a start that failed."""
    [problem] = process.wait_for("run.failed")["problems"]
    assert process.stderr == ""
    return str(problem)


def test_a_name_that_comes_late_opens_its_port(listener: socket.socket, dns: DnsServer) -> None:
    port, other = free_port(), free_port()
    remote = listener.getsockname()[1]
    with running(f"{port} late.example.com {remote}\n{other} 127.0.0.1 {remote}", dns) as process:
        assert process.wait_for("daemon.ready")["unresolved"] == [port]
        Session.on_loopback(other, listener).finish()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), ANSWER_S)
        # The next question comes a second or two later, and no other is needed.
        process.wait_for("destination.unresolved", retry_s=2.0)
        asked = len(dns.asked("late.example.com", "A"))
        dns.zone["late.example.com"] = Name(a=("127.0.0.1",))
        process.wait_for("listener.opened", listener=port)
        assert len(dns.asked("late.example.com", "A")) == asked + 1
        session = Session.on_loopback(port, listener)
        session.round_trip()
        session.finish()
        assert ended(process)["reason"] == "finished"


def test_a_reload_that_takes_a_port_which_a_name_leads_to(dns: DnsServer, tmp_path: Path) -> None:
    """It was a neighbour's in the pod, and is one of our own listeners then."""
    dns.zone["neighbour.example.com"] = Name(a=("127.0.0.1",), ttl_s=3600)
    port, neighbour = free_port(), free_port()
    file = tmp_path / "destinations"
    file.write_text(f"{port} neighbour.example.com {neighbour}")
    with running("", dns, DESTINATION_FILE=str(file)) as process:
        process.wait_for("listener.opened", listener=port)
        file.write_text(f"{port} neighbour.example.com {neighbour}\n{neighbour} 192.0.2.1")
        reason = "one of the proxy's own listeners"
        process.wait_for("destination.denied", address="127.0.0.1", error=reason)
        process.wait_for("listener.closed", listener=port)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), ANSWER_S)


def test_a_client_that_is_not_allowed(listener: socket.socket) -> None:
    port = free_port()
    remote = listener.getsockname()[1]
    with running(f"{port} 127.0.0.1 {remote}", ALLOW_CLIENTS="192.0.2.0/24") as process:
        process.wait_for("daemon.ready")
        assert resets_clients(port)
        record = ended(process)
        assert (record["reason"], record["attempts"]) == ("denied_client", 0)


@pytest.mark.parametrize("wanted", ["failed", "all"])
def test_the_records_of_connections_are_logged_without_debug(
    wanted: str, listener: socket.socket
) -> None:
    good, bad, nowhere = free_port(), free_port(), free_port()
    destinations = f"{good} 127.0.0.1 {listener.getsockname()[1]}\n{bad} 127.0.0.1 {nowhere}"
    with running(destinations, DEBUG="", LOG_CONNECTIONS=wanted) as process:
        process.wait_for("daemon.ready")
        with socket.create_connection(("127.0.0.1", good)) as client, listener.accept()[0]:
            source = client.getsockname()
        assert resets_clients(bad)
        record = process.wait_for("connection.closed", listener=bad)
        assert record["reason"] == "connect_refused"
        assert record["address"] == f"127.0.0.1:{nowhere}"
        assert record["error"] == "ECONNREFUSED: Connection refused"
        if wanted == "all":
            record = process.wait_for("connection.closed", listener=good)
            assert record["client"] == f"127.0.0.1:{source[1]}"
            assert record["source"].startswith("127.0.0.1:")
        process.stop()
    logged = [entry for entry in process.records if entry["event"] == "connection.closed"]
    assert len(logged) == {"failed": 1, "all": 2}[wanted]


def test_a_port_in_use_is_reported_with_its_line(listener: socket.socket) -> None:
    taken = listener.getsockname()[1]
    with running(f"# one\n{taken} 127.0.0.1 9") as process:
        assert process.wait() == 1
        assert one_line(process) == (
            f"{P}DESTINATION line 2: '{taken}': can't listen on 127.0.0.1: Address already in use; "
            "another process of the pod listens there: use another port"
        )
        assert len(process.records) == 1


def test_too_few_descriptors_are_reported_before_anything_listens() -> None:
    with running(f"{free_port()} 127.0.0.1 9", MAX_CONNECTIONS="900000000") as process:
        assert process.wait() == 1
        assert one_line(process).startswith(f"{P}MAX_CONNECTIONS: '900000000': the limit of open ")


# With fewer than 5, Python itself does not start.
@pytest.mark.parametrize("descriptors", [8, 12, 51])
def test_too_few_descriptors_for_anything_are_reported_in_one_line(descriptors: int) -> None:
    with running(f"{free_port()} 127.0.0.1 9", descriptors=descriptors) as process:
        assert process.wait() == 1
        assert one_line(process) == (
            f"the limit of open files is {descriptors}, 52 are needed; "
            "raise the container's nofile limit (RLIMIT_NOFILE)"
        )
        assert len(process.records) == 1


@pytest.mark.parametrize(("descriptors", "clients"), [(52, 1), (100, 20)])
def test_few_descriptors_serve_as_many_clients_as_they_allow(
    listener: socket.socket, descriptors: int, clients: int
) -> None:
    port = free_port()
    remote = listener.getsockname()[1]
    with running(f"{port} 127.0.0.1 {remote}", descriptors=descriptors) as process:
        assert process.wait_for("daemon.started")["max_connections"] == clients
        process.wait_for("daemon.ready")
        sessions = [Session.on_loopback(port, listener) for _ in range(clients)]
        for session in sessions:
            session.round_trip()
        for session in sessions:
            session.finish()
            assert ended(process)["reason"] == "finished"


def test_threads_can_end_without_a_descriptor(listener: socket.socket) -> None:
    """Glibc aborts if it can not open libgcc_s.so.1 for one that ends with the interpreter."""
    remote = listener.getsockname()[1]
    with running(f"{free_port()} 127.0.0.1 {remote}") as process:
        process.wait_for("daemon.ready")
        assert "/libgcc_s.so" in Path(f"/proc/{process.pid}/maps").read_text()


def test_the_records_of_a_life(listener: socket.socket) -> None:
    port = free_port()
    remote = listener.getsockname()[1]
    with running(f"{port} 127.0.0.1 {remote}", DRAIN_TIMEOUT="0s") as process:
        process.wait_for("daemon.ready")
        assert process.stop() == 0
        events: list[Any] = [record["event"] for record in process.records]
    assert events == [
        "daemon.started",
        "listener.opened",
        "daemon.ready",
        "daemon.draining",
        "listener.closed",
        "daemon.stopped",
    ]
