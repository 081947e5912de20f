"""`egress-proxy run` as a process on loopback: names that come late, refusals, signals, drain."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.dns import DnsServer, Name
from tests.support.network import COVERAGE
from tests.support.processes import Process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.processes import Record

P = "EGRESS_DNS_PROXY_"
COMMAND = [sys.executable, "-m", "egress_proxy", "run"]
ANSWER_S = 10


def free_port() -> int:
    """A port that nobody listens on now; the kernel hands out others for a while."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def running(destinations: str, dns: DnsServer | None = None, **variables: str) -> Iterator[Process]:
    environ = {
        f"{P}DESTINATION": destinations,
        f"{P}SOURCE": "any",
        f"{P}LISTEN": "127.0.0.1",
        # Its port is one for the whole machine.
        f"{P}ADMIN_LISTEN": "off",
        f"{P}DEBUG": "1",
        f"{P}LOG_FORMAT": "json",
        f"{P}NAMESERVERS": dns.address if dns else "127.0.0.1:9",
        **{f"{P}{name}": value for name, value in variables.items()},
        "PATH": os.environ["PATH"],
    }
    with Process(COMMAND, env=COVERAGE | environ) as process:
        yield process


class Session:
    """A client and its upstream, both blocking sockets."""

    def __init__(self, port: int, listener: socket.socket) -> None:
        self.client = socket.create_connection(("127.0.0.1", port), ANSWER_S)
        self.upstream, _ = listener.accept()
        self.upstream.settimeout(ANSWER_S)

    def works(self) -> bool:
        for one, other in ((self.client, self.upstream), (self.upstream, self.client)):
            one.sendall(b"ping")
            if other.recv(4) != b"ping":
                return False
        return True

    def finish(self) -> None:
        for sock in (self.client, self.upstream):
            sock.shutdown(socket.SHUT_WR)
        self.close()

    def close(self) -> None:
        self.client.close()
        self.upstream.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.settimeout(ANSWER_S)
        yield sock


@pytest.fixture
def dns() -> Iterator[DnsServer]:
    with DnsServer.on_loopback() as server:
        yield server


@pytest.fixture
def cleanup() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def one_line(process: Process) -> str:
    (line,) = process.stderr.splitlines()
    return line


def ended(process: Process) -> Record:
    return process.wait_for("connection.closed")


def test_a_name_that_comes_late_opens_its_port(listener: socket.socket, dns: DnsServer) -> None:
    port, other = free_port(), free_port()
    remote = listener.getsockname()[1]
    with running(f"{port} late.example.com {remote}\n{other} 127.0.0.1 {remote}", dns) as process:
        assert process.wait_for("daemon.ready")["unresolved"] == [port]
        Session(other, listener).finish()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), ANSWER_S)
        # The next question comes a second or two later, and no other is needed.
        process.wait_for("destination.unresolved", retry_s=2.0)
        asked = len(dns.asked("late.example.com", "A"))
        dns.zone["late.example.com"] = Name(a=("127.0.0.1",))
        process.wait_for("listener.opened", listener=port)
        assert len(dns.asked("late.example.com", "A")) == asked + 1
        session = Session(port, listener)
        assert session.works()
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


def test_sigterm_while_names_are_asked_for(dns: DnsServer) -> None:
    dns.hold("silent.example.com")
    with running(f"{free_port()} silent.example.com", dns, DRAIN_TIMEOUT="0.1s") as process:
        dns.wait_for("silent.example.com")
        assert process.stop() == 0
        assert process.wait_for("daemon.stopped")["reset"] == 0
    dns.release("silent.example.com")


def test_draining_serves_clients_a_moment_longer_and_lets_sessions_finish(
    listener: socket.socket,
) -> None:
    port = free_port()
    with running(f"{port} 127.0.0.1 {listener.getsockname()[1]}") as process:
        process.wait_for("daemon.ready")
        early = Session(port, listener)
        process.terminate()
        assert process.wait_for("daemon.draining")["connections"] == 1
        late = Session(port, listener)
        assert early.works()
        assert late.works()
        late.finish()
        assert ended(process)["reason"] == "finished"
        process.wait_for("listener.closed", listener=port)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), ANSWER_S)
        assert early.works()
        early.finish()
        assert process.wait() == 0
        assert process.wait_for("daemon.stopped")["reset"] == 0


def reset_by_peer(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(1)) and False
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("why", ["the drain timeout", "a second signal"])
def test_what_is_left_is_reset(listener: socket.socket, why: str) -> None:
    port = free_port()
    timeout = {"the drain timeout": "0.2s", "a second signal": "1h"}[why]
    remote = listener.getsockname()[1]
    with running(f"{port} 127.0.0.1 {remote}", DRAIN_TIMEOUT=timeout) as process:
        process.wait_for("daemon.ready")
        session = Session(port, listener)
        process.terminate()
        process.wait_for("daemon.draining")
        if why == "a second signal":
            process.terminate()
        assert ended(process)["reason"] == "drained"
        assert process.wait() == 0
        assert process.wait_for("daemon.stopped")["reset"] == 1
        assert reset_by_peer(session.client)
        assert reset_by_peer(session.upstream)
        session.close()


def test_draining_while_an_upstream_is_connected(cleanup: ExitStack) -> None:
    """The client waits, its octets in the kernel; at the drain timeout both get to know."""
    full = cleanup.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
    # A backlog of 0 holds one connection (listen(2)); the next SYN gets no answer.
    cleanup.enter_context(socket.create_connection(full.getsockname()))
    port = free_port()
    with running(f"{port} 127.0.0.1 {full.getsockname()[1]}", DRAIN_TIMEOUT="0.2s") as process:
        process.wait_for("daemon.ready")
        client = cleanup.enter_context(socket.create_connection(("127.0.0.1", port), ANSWER_S))
        client.sendall(b"early")
        process.terminate()
        record = ended(process)
        assert (record["reason"], record["bytes_to_upstream"]) == ("drained", 0)
        assert process.wait() == 0
        assert reset_by_peer(client)


def test_draining_with_a_reader_that_does_not_read(
    listener: socket.socket, cleanup: ExitStack
) -> None:
    port = free_port()
    remote = listener.getsockname()[1]
    with running(f"{port} 127.0.0.1 {remote}", DRAIN_TIMEOUT="0.2s") as process:
        process.wait_for("daemon.ready")
        session = Session(port, listener)
        cleanup.callback(session.close)
        session.client.settimeout(0.5)
        with pytest.raises(TimeoutError):
            session.client.sendall(bytes(64 << 20))
        assert process.stop() == 0
        assert ended(process)["reason"] == "drained"


def test_a_client_that_is_not_allowed(listener: socket.socket) -> None:
    port = free_port()
    remote = listener.getsockname()[1]
    with running(f"{port} 127.0.0.1 {remote}", ALLOW_CLIENTS="192.0.2.0/24") as process:
        process.wait_for("daemon.ready")
        with socket.create_connection(("127.0.0.1", port), ANSWER_S) as client:
            assert reset_by_peer(client)
        record = ended(process)
        assert (record["reason"], record["attempts"]) == ("denied_client", 0)


def test_a_port_that_is_taken_is_told_with_its_line(listener: socket.socket) -> None:
    taken = listener.getsockname()[1]
    with running(f"# one\n{taken} 127.0.0.1 9") as process:
        assert process.wait() == 1
        assert one_line(process) == (
            f"{P}DESTINATION line 2: '{taken}': can't listen on 127.0.0.1: Address already in use; "
            "another process of the pod listens there: use another port"
        )
        assert process.records == []


def test_too_few_descriptors_are_told_before_anything_listens() -> None:
    with running(f"{free_port()} 127.0.0.1 9", MAX_CONNECTIONS="900000000") as process:
        assert process.wait() == 1
        assert one_line(process).startswith(f"{P}MAX_CONNECTIONS: '900000000': the limit of open ")


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
