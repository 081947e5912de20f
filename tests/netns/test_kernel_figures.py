"""Figures and sessions of the kernel data plane, without an event for each connection."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from egress_proxy.nft.command import list_table
from tests.netns.test_operation import ConfigMap, get, status, switch_debug
from tests.support.deployment import ENDPOINTS, KERNEL, Deployment
from tests.support.dns import Name
from tests.support.lab import CLIENT, OUTSIDE, POD
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.lab import Lab
    from tests.support.processes import Process

# Where nothing listens outside.
CLOSED_PORT = 9
# More than the buffer of events holds.
MANY = 30_000


@pytest.fixture
def deployment(lab: Lab) -> Iterator[Deployment]:
    with Deployment(lab, KERNEL) as deployed:
        deployed.take_source()
        yield deployed


@pytest.fixture
def config_map(tmp_path: Path) -> ConfigMap:
    return ConfigMap(tmp_path, f"80 {OUTSIDE.v4}")


def start(deployment: Deployment, destinations: str = "", **env: str) -> Process:
    wanted = {"EGRESS_DNS_PROXY_DESTINATION": destinations} if destinations else {}
    process = deployment.start(EGRESS_DNS_PROXY_DEBUG="", **wanted, **env)
    process.wait_for("daemon.ready")
    return process


def destination(lab: Lab, port: int = 80, name: str = "") -> dict[str, Any]:
    """What the status says of a destination, by its port and, if several had it, its name."""
    [found] = [
        entry
        for entry in status(lab.client)["destinations"]
        if entry["listener"] == port and name in entry["destination"]
    ]
    return dict(found)


def switches(process: Process) -> int:
    """How often the event loop's thread has waited."""
    text = Path(f"/proc/{process.pid}/task/{process.pid}/status").read_text()
    [count] = re.findall(r"^voluntary_ctxt_switches:\s+(\d+)$", text, re.MULTILINE)
    return int(count)


def records(process: Process, event: str = "connection.closed") -> list[dict[str, Any]]:
    return [record for record in process.records if record["event"] == event]


def test_a_connection_that_succeeds_does_not_wake_the_daemon_up(deployment: Deployment) -> None:
    process = start(deployment)
    lab = deployment.lab
    before = switches(process)
    for _ in range(100):
        with deployment.connect(80) as session:
            session.round_trip()
            session.finish()
    # Its own timers may.
    assert switches(process) - before < 20
    entry = destination(lab)
    assert (entry["active"], entry["established"], entry["total"]) == (0, 100, 100)
    assert (entry["ended"]["ended"], entry["ended"]["finished"]) == (100, 0)
    with deployment.connect(80) as session:
        session.round_trip()
        wait_until(lambda: destination(lab)["active"] == 1)
        # Handshakes and ends are packets too.
        assert destination(lab)["bytes_to_upstream"] > 100 * 5 * 40
    wait_until(lambda: destination(lab)["ended"]["ended"] == 101)
    name = f'destination="{OUTSIDE.v4}:80",listener="80"'
    metrics = get(lab.client, "/metrics")[1]
    assert f'egress_proxy_connections_total{{{name},reason="ended"}} 101\n' in metrics
    assert f"egress_proxy_connections_established_total{{{name}}} 101\n" in metrics
    assert f"egress_proxy_connections_active{{{name}}} 0\n" in metrics
    assert records(process) == []


@pytest.mark.parametrize("logged", ["off", "failed"])
def test_a_client_that_is_refused_is_counted_and_recorded_if_wanted(
    deployment: Deployment, logged: str
) -> None:
    lab = deployment.lab
    process = start(
        deployment,
        f"81 {OUTSIDE.v4} {CLOSED_PORT}",
        EGRESS_DNS_PROXY_LOG_CONNECTIONS=logged,
    )
    with pytest.raises(ConnectionRefusedError):
        lab.client.connect(POD.v4, 81)
    failed = process.wait_for("upstream.failed")
    assert (failed["address"], failed["error"]) == (OUTSIDE.v4, "Connection refused")
    entry = destination(lab, 81)
    assert (entry["state"], entry["total"], entry["established"]) == ("failing", 1, 0)
    assert (entry["ended"]["connect_refused"], entry["ended"]["ended"]) == (1, 0)
    if logged == "failed":
        record = process.wait_for("connection.closed")
        assert (record["reason"], record["duration_s"]) == ("connect_refused", None)
        assert record["client"].startswith(f"{CLIENT.v4}:")
    else:
        assert records(process) == []
    # While an address has failed, the rules ask for events of answers.
    with lab.outside.listen(OUTSIDE.v4, CLOSED_PORT):
        wait_until(lambda: "destroy,assured" in rules(lab))
        lab.client.connect(POD.v4, 81).close()
        process.wait_for("upstream.recovered", address=OUTSIDE.v4)
    wait_until(lambda: "destroy,assured" not in rules(lab))
    wait_until(lambda: destination(lab, 81)["state"] == "listening")
    entry = destination(lab, 81)
    assert (entry["total"], entry["established"]) == (2, 1)


def rules(lab: Lab) -> str:
    return lab.pod.call(list_table)


def test_a_silent_upstream_is_left_out(deployment: Deployment) -> None:
    lab = deployment.lab
    silent = "203.0.113.140"
    deployment.dns.zone["two.example.com"] = Name(a=(OUTSIDE.v4, silent))
    process = start(deployment, "82 two.example.com 7000", EGRESS_DNS_PROXY_CONNECT_TIMEOUT="1s")
    with lab.outside.listen(OUTSIDE.v4, 7000), ExitStack() as stack:
        for _ in range(2):
            client = stack.enter_context(lab.client.open_socket())
            client.setblocking(False)
            client.connect_ex((POD.v4, 82))
        failed = process.wait_for("upstream.failed", timeout_s=100)
        assert (failed["address"], failed["error"]) == (silent, "Connection timed out")
        assert destination(lab, 82)["ended"]["connect_timeout"] == 1


def test_records_of_every_session_begin_and_end_with_debug(deployment: Deployment) -> None:
    process = start(deployment)
    with deployment.connect(80) as earlier, deployment.connect(100) as later:
        earlier.round_trip()
        switch_debug(process, debug=True)
        wait_until(lambda: "ct event set new,destroy,protoinfo" in rules(deployment.lab))
        with deployment.connect(8443) as session:
            session.round_trip()
            session.finish()
        record = process.wait_for("connection.closed", listener=8443)
        assert record["reason"] == "finished"
        assert record["duration_s"] >= record["connect_s"] >= 0
        # It began before, and is recorded when the kernel forgets it, some seconds after its end.
        earlier.round_trip()
        earlier.finish()
        wait_until(lambda: destination(deployment.lab, 80)["active"] == 0)
        switch_debug(process, debug=False)
        later.finish()
    wait_until(lambda: destination(deployment.lab, 100)["active"] == 0)
    assert len(records(process)) == 1
    for port in ENDPOINTS:
        entry = destination(deployment.lab, port)
        assert (entry["established"], entry["total"]) == (1, 1), entry


def test_sessions_are_attributed_to_the_destination_that_they_began_with(
    deployment: Deployment, config_map: ConfigMap
) -> None:
    lab = deployment.lab
    process = start(
        deployment,
        EGRESS_DNS_PROXY_DESTINATION="",
        EGRESS_DNS_PROXY_DESTINATION_FILE=str(config_map.path),
    )
    with deployment.connect(80) as old:
        old.round_trip()
        config_map.update(f"80 {OUTSIDE.v4} 100")
        process.wait_for("config.reloaded", changed=[80])
        with lab.client.connect(POD.v4, 80) as client, deployment.accept(100) as upstream:
            client.sendall(bytes(1000))
            assert upstream.recv(1000, socket.MSG_WAITALL) == bytes(1000)
            wait_until(lambda: destination(lab, 80, ":100")["active"] == 1)
            assert destination(lab, 80, ":80")["active"] == 1
            before = destination(lab, 80, ":80")["bytes_to_upstream"]
            old.client.sendall(bytes(5000))
            assert old.upstream.recv(5000, socket.MSG_WAITALL) == bytes(5000)
            wait_until(lambda: destination(lab, 80, ":80")["bytes_to_upstream"] >= before + 5000)
            assert 1000 < destination(lab, 80, ":100")["bytes_to_upstream"] < 2000
    wait_until(lambda: status(lab.client)["active"] == 0)
    # Nothing is left of the first one once nothing of it is open.
    wait_until(lambda: len(re.findall("counter new_80_", rules(lab))) == 1)


def test_sessions_are_listed_from_the_kernel(deployment: Deployment) -> None:
    start(deployment, EGRESS_DNS_PROXY_ADMIN_SESSIONS="on")
    with deployment.connect(80) as session, deployment.connect(100):
        session.round_trip()
        answer = json.loads(get(deployment.lab.client, "/sessions.json?listener=80")[1])
        assert answer["total"] == 1
        [listed] = answer["sessions"]
        host, port = session.client.getsockname()
        assert (listed["client"], listed["address"]) == (f"{host}:{port}", f"{OUTSIDE.v4}:80")
        assert listed["age_s"] is None
        assert 0 <= listed["idle_s"] < 5


@pytest.mark.parametrize("finishes", [True, False])
def test_a_drain_waits_for_sessions_without_records(
    deployment: Deployment, *, finishes: bool
) -> None:
    process = start(deployment, EGRESS_DNS_PROXY_DRAIN_TIMEOUT="60s" if finishes else "3s")
    with deployment.connect(80) as session:
        session.round_trip()
        process.terminate()
        process.wait_for("listener.closed", listener=80)
        session.round_trip()
        if finishes:
            session.finish()
        assert process.wait() == 0
    assert process.wait_for("daemon.draining")["connections"] == 1
    assert process.wait_for("daemon.stopped")["reset"] == (0 if finishes else 1)


def test_the_maximum_shows_in_the_status(deployment: Deployment) -> None:
    lab = deployment.lab
    start(deployment, EGRESS_DNS_PROXY_MAX_CONNECTIONS="1")
    with deployment.connect(80):
        wait_until(lambda: destination(lab)["state"] == "paused")
        assert (status(lab.client)["active"], status(lab.client)["maximum"]) == (1, 1)
    wait_until(lambda: destination(lab)["state"] == "listening")


@pytest.mark.timeout(180)
@pytest.mark.parametrize("debug", ["", "1"])
def test_lost_events_break_no_figure(deployment: Deployment, debug: str) -> None:
    lab = deployment.lab
    process = deployment.start(
        EGRESS_DNS_PROXY_DESTINATION=f"80 {OUTSIDE.v4}\n81 {OUTSIDE.v4} {CLOSED_PORT}",
        EGRESS_DNS_PROXY_LOG_CONNECTIONS="all" if debug else "off",
        EGRESS_DNS_PROXY_DEBUG="",
    )
    process.wait_for("daemon.ready")

    def be_refused() -> None:
        for _ in range(MANY):
            with socket.socket() as client:
                assert client.connect_ex((POD.v4, 81))

    with deployment.connect(80) as stays:
        stays.round_trip()
        with deployment.connect(80) as ends:
            ends.round_trip()
            os.kill(process.pid, signal.SIGSTOP)
            lab.client.call(be_refused)
            ends.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.kill(process.pid, signal.SIGCONT)
        wait_until(lambda: destination(lab)["active"] == 1, timeout_s=30)
        wait_until(lambda: destination(lab, 81)["total"] == MANY, timeout_s=30)
        refused = destination(lab, 81)["ended"]
        assert sum(refused.values()) == MANY
        # Some were lost, or this test shows nothing; they are counted as "ended".
        assert 0 < refused["connect_refused"] < MANY
        assert destination(lab)["total"] == 2
        if debug:
            assert process.wait_for("connection.closed", listener=80)["reason"] in {
                "reset",
                "idle_timeout",
            }
        stays.round_trip()
        assert records(process, "daemon.defect") == []
