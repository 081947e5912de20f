"""What `check` says of destinations that answer, and of those that don't."""

from __future__ import annotations

import json
import re
import socket
from typing import TYPE_CHECKING

import pytest

from egress_proxy.cli import main
from tests.support.lab import EGRESS_PROXY
from tests.support.processes import Process
from tests.support.standalone import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

P = "EGRESS_DNS_PROXY_"


@pytest.fixture
def upstream() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def environ(destinations: str) -> dict[str, str]:
    return {f"{P}DESTINATION": destinations, f"{P}SOURCE": "any", f"{P}LISTEN": "127.0.0.1"}


def test_a_destination_that_answers(upstream: int, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    asked = environ(f"{port} 127.0.0.1 {upstream}")
    assert main(["check", "--connect", "--output", "json"], environ=asked) == 0
    told = capsys.readouterr()
    report = json.loads(told.out)
    assert (report["exit_status"], report["problems"], told.err) == (0, [], "")
    *_, connect = report["findings"]
    assert connect["subject"] == f"connect {port} -> 127.0.0.1 port {upstream}"
    assert connect["state"] == "good"
    assert connect["detail"].startswith("connected in ")
    assert {finding["state"] for finding in report["findings"]} == {"good", "skipped"}


def test_a_destination_that_refuses_is_a_failure_with_its_cure(
    capsys: pytest.CaptureFixture[str],
) -> None:
    port, nobody = free_port(), free_port()
    asked = environ(f"{port} 127.0.0.1 {nobody}")
    assert main(["check"], environ=asked) == 0
    capsys.readouterr()
    assert main(["check", "--connect"], environ=asked) == 1
    told = capsys.readouterr()
    subject = f"connect {port} -> 127.0.0.1 port {nobody}"
    assert told.err == (
        f"{subject}: Connection refused; "
        "nothing listens there: check the remote port, and the service\n"
    )
    rows = [line.split() for line in told.out.splitlines()]
    assert [row[0] for row in rows] == ["skipped", "good", "good", "good", "failed"]
    assert rows[-1] == ["failed", *subject.split(), "Connection", "refused"]


def test_a_port_of_another_process_is_a_failure_as_for_run(
    upstream: int, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = environ(f"{upstream} 127.0.0.1 9") | {f"{P}ADMIN_LISTEN": f"127.0.0.1:{free_port()}"}
    assert main(["check"], environ=asked) == 1
    assert capsys.readouterr().err == (
        f"port {upstream}: can't listen on 127.0.0.1: Address already in use; "
        "another process of the pod listens there: use another port\n"
    )


def test_the_ports_of_the_running_daemon_are_no_failure(
    upstream: int, capsys: pytest.CaptureFixture[str]
) -> None:
    port, admin = free_port(), free_port()
    asked = environ(f"{port} 127.0.0.1 {upstream}") | {f"{P}ADMIN_LISTEN": f"127.0.0.1:{admin}"}
    with Process([EGRESS_PROXY, "run"], env={**asked, f"{P}LOG_FORMAT": "json"}) as daemon:
        daemon.wait_for("daemon.ready")
        assert main(["check"], environ=asked) == 0
        assert "egress-proxy run is running in this pod and has them" in capsys.readouterr().out
        other = {**asked, f"{P}DESTINATION": f"{upstream} 127.0.0.1 9"}
        assert main(["check"], environ=other) == 1
        assert f"port {upstream}: can't listen" in capsys.readouterr().err
        status, started = daemon.stop(), daemon.records[0]
    assert (status, started["event"]) == (0, "daemon.started")


CASES = {
    "a destination that leads back to the daemon": (
        {f"{P}DESTINATION": "18080 127.0.0.1 18080"},
        (
            f"{P}DESTINATION line 1: '127.0.0.1:18080': one of the proxy's own listeners is never "
            "connected to; write the remote host's own address"
        ),
    ),
    "more connections than files": (
        {f"{P}MAX_CONNECTIONS": "99999999"},
        f"{P}MAX_CONNECTIONS: '99999999': the limit of open files is ",
    ),
    "an admin address that is not there": (
        {f"{P}ADMIN_LISTEN": "192.0.2.1:9153"},
        (
            "can't listen on 192.0.2.1: Cannot assign requested address; "
            f"the pod has no such address: correct {P}ADMIN_LISTEN"
        ),
    ),
    "a source that is not there": (
        {f"{P}SOURCE": "192.0.2.99", f"{P}DESTINATION": "18080 192.0.2.1"},
        f"{P}SOURCE: '192.0.2.99': no interface of the pod has this address",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_check_refuses_what_run_refuses(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    changes, message = CASES[case]
    asked = environ(f"{free_port()} 127.0.0.1 9") | {f"{P}ADMIN_LISTEN": "off"} | changes
    for command in ("check", "run"):
        assert main([command], environ=asked) == 1
        assert message in capsys.readouterr().err


def test_status_says_what_the_daemon_does(
    upstream: int, capsys: pytest.CaptureFixture[str]
) -> None:
    port, admin = free_port(), free_port()
    asked = environ(f"{port} 127.0.0.1 {upstream}") | {f"{P}ADMIN_LISTEN": f"127.0.0.1:{admin}"}
    with Process([EGRESS_PROXY, "run"], env={**asked, f"{P}LOG_FORMAT": "json"}) as daemon:
        daemon.wait_for("daemon.ready")
        assert main(["status"], environ=asked) == 0
        text = capsys.readouterr().out
        assert main(["status", "--output", "json"], environ=asked) == 0
        [destination] = json.loads(capsys.readouterr().out)["status"]["destinations"]
        assert daemon.stop() == 0
    assert ("listener", port) in destination.items()
    assert re.search(rf"(?m)^{port} +listening +0 +0 +127\.0\.0\.1:{upstream} +1 of 1", text)
    assert "the kernel chooses" in text
    assert main(["status"], environ=asked) == 1
    assert capsys.readouterr().err == (
        f"{P}ADMIN_LISTEN: '127.0.0.1:{admin}': can't ask 127.0.0.1 port {admin}: "
        "Connection refused; check that egress-proxy run is running in this pod with the same "
        "value\n"
    )


def test_wrong_configuration_counts_more_than_a_failing_pod(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = environ("80 localhost") | {"EGRESS_SOURCE": "192.0.2.1", "EGRESS_GATEWAY": "192.0.2.2"}
    asked["EGRESS_INTERFACE"] = "nosuchinterface"
    assert main(["check", "--output", "json"], environ=asked) == 2
    report = json.loads(capsys.readouterr().out)
    assert report["exit_status"] == 2
    assert {problem["variable"] for problem in report["problems"]} == {
        f"{P}DESTINATION",
        "EGRESS_INTERFACE",
    }
