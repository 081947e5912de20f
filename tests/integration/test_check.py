"""What `check` says of destinations that answer, and of those that don't."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING

import pytest

from egress_proxy.cli import main
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
    assert {finding["state"] for finding in report["findings"]} == {"good"}


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
    assert [row[0] for row in rows] == ["good", "good", "good", "failed"]
    assert rows[-1] == ["failed", *subject.split(), "Connection", "refused"]


def test_a_port_that_is_taken_is_a_warning(
    upstream: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check"], environ=environ(f"{upstream} 127.0.0.1")) == 0
    assert (
        "can't listen on 127.0.0.1: Address already in use; "
        "all is well if it is a running egress-proxy that has it\n"
    ) in capsys.readouterr().out


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
