"""The end of `egress-proxy run` after SIGTERM, whatever is under way: status 0, in time."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from tests.support.dns import Name
from tests.support.peers import reset
from tests.support.session import Session
from tests.support.standalone import (
    ANSWER_S,
    ended,
    free_port,
    reset_by_peer,
    resets_clients,
    running,
)

if TYPE_CHECKING:
    from contextlib import ExitStack

    from tests.support.dns import DnsServer


def test_sigterm_while_names_are_asked_for(dns: DnsServer) -> None:
    dns.hold("silent.example.com")
    with running(f"{free_port()} silent.example.com", dns, DRAIN_TIMEOUT="0.1s") as process:
        dns.wait_for("silent.example.com")
        assert process.stop() == 0
        assert process.wait_for("daemon.stopped")["reset"] == 0
    dns.release("silent.example.com")


def test_draining_while_a_name_is_asked_for_again(
    listener: socket.socket, dns: DnsServer, cleanup: ExitStack
) -> None:
    port, name = free_port(), "moving.example.com"
    dns.zone[name] = Name(a=("127.0.0.1",))
    destination = f"{port} {name} {listener.getsockname()[1]}"
    with running(destination, dns, DRAIN_TIMEOUT="0.2s") as process:
        process.wait_for("listener.opened")
        session = Session.on_loopback(port, listener)
        cleanup.callback(session.close)
        dns.hold(name)
        # A client that finds no address answering makes the name be looked up early.
        listener.close()
        assert resets_clients(port)
        assert ended(process)["reason"] == "connect_refused"
        dns.wait_for(name, times=2)
        assert process.stop() == 0
        assert ended(process)["reason"] == "drained"
        assert process.wait_for("daemon.stopped")["reset"] == 1
        assert process.stderr == ""


def test_draining_serves_clients_a_moment_longer_and_lets_sessions_finish(
    listener: socket.socket,
) -> None:
    port = free_port()
    with running(f"{port} 127.0.0.1 {listener.getsockname()[1]}") as process:
        process.wait_for("daemon.ready")
        early = Session.on_loopback(port, listener)
        process.terminate()
        assert process.wait_for("daemon.draining")["connections"] == 1
        late = Session.on_loopback(port, listener)
        early.round_trip()
        late.round_trip()
        late.finish()
        assert ended(process)["reason"] == "finished"
        process.wait_for("listener.closed", listener=port)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), ANSWER_S)
        early.round_trip()
        early.finish()
        assert process.wait() == 0
        assert process.wait_for("daemon.stopped")["reset"] == 0


@pytest.mark.parametrize("why", ["the drain timeout", "a second signal"])
def test_what_is_left_is_reset(listener: socket.socket, why: str) -> None:
    port = free_port()
    timeout = {"the drain timeout": "0.2s", "a second signal": "1h"}[why]
    remote = listener.getsockname()[1]
    with running(f"{port} 127.0.0.1 {remote}", DRAIN_TIMEOUT=timeout) as process:
        process.wait_for("daemon.ready")
        session = Session.on_loopback(port, listener)
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
        session = Session.on_loopback(port, listener)
        cleanup.callback(session.close)
        session.client.settimeout(0.5)
        with pytest.raises(TimeoutError):
            session.client.sendall(bytes(64 << 20))
        assert process.stop() == 0
        assert ended(process)["reason"] == "drained"


def test_draining_while_a_reset_waits_for_acknowledgements(
    listener: socket.socket, cleanup: ExitStack
) -> None:
    """The client has sent and reset; its upstream has no room for all of it, and gets the RST."""
    port, octets = free_port(), bytes(32 * 1024)
    # Accepted sockets inherit it.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    remote = listener.getsockname()[1]
    with running(f"{port} 127.0.0.1 {remote}", DRAIN_TIMEOUT="0.2s") as process:
        process.wait_for("daemon.ready")
        session, other = Session.on_loopback(port, listener), Session.on_loopback(port, listener)
        cleanup.callback(session.close)
        cleanup.callback(other.close)
        session.client.sendall(octets)
        reset(session.client)
        # Served after what came before it.
        other.round_trip()
        process.terminate()
        assert process.wait_for("daemon.draining")["connections"] == 2
        assert process.wait() == 0
        first, second = sorted((ended(process), ended(process)), key=lambda one: str(one["reason"]))
        # What the client did is the truer reason.
        assert (first["reason"], first["bytes_to_upstream"]) == ("client_reset", len(octets))
        assert second["reason"] == "drained"
        with session.upstream.makefile("rb") as stream, pytest.raises(ConnectionResetError):
            stream.read()
        assert process.stderr == ""
