"""Readiness."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from egress_proxy.telemetry.status import Reloads
from tests.support.statuses import Shown, destination, status

if TYPE_CHECKING:
    from egress_proxy.telemetry.status import Status


@pytest.mark.parametrize(
    ("shown", "problems"),
    [
        (status(destination()), []),
        (status(destination("paused")), []),
        # One port that refuses is not the pod's failure.
        (status(destination(), destination("refusing", port=81)), []),
        (status(destination(), destination("failed", port=81)), []),
        # The remote hosts' failure is not the pod's.
        (status(destination("failing")), []),
        (status(destination(), draining=True), ["the pod is draining"]),
        (
            status(destination(), source="no interface has it"),
            ["source address 192.0.2.99: no interface has it"],
        ),
        (status(destination("refusing")), ["port 80 refuses its clients: a.example: timed out"]),
        (status(destination("failed")), ["port 80 cannot listen: Address already in use"]),
        (
            status(
                destination("refusing"),
                destination("removed", port=81),
                source="interface net1 is down",
                draining=True,
            ),
            [
                "the pod is draining",
                "source address 192.0.2.99: interface net1 is down",
                "port 80 refuses its clients: a.example: timed out",
            ],
        ),
        (status(destination("removed")), ["there is no destination"]),
        (status(), ["there is no destination"]),
    ],
)
def test_when_clients_should_be_sent_here(shown: Status, problems: list[str]) -> None:
    assert [text for check in Shown(shown).readiness() for text in check.problems] == problems


@pytest.mark.parametrize(
    ("shown", "warnings"),
    [
        (status(destination("failed")), []),
        (
            status(destination("failing")),
            ["port 80 reaches no remote host: no address of a.example answers"],
        ),
        (
            replace(status(destination()), sources=()),
            ["EGRESS_DNS_PROXY_SOURCE=any: remote hosts do not see a reserved address"],
        ),
        (
            status(destination(), destination("failed", port=81), destination("refusing", port=82)),
            [
                "port 81 cannot listen: Address already in use",
                "port 82 refuses its clients: a.example: timed out",
            ],
        ),
        (
            replace(
                status(destination()),
                reloads=Reloads(reloaded=1, rejected=1, last=2.0, problems=("line 1", "line 2")),
            ),
            ["line 1", "line 2"],
        ),
    ],
)
def test_what_needs_attention_though_the_pod_is_ready(shown: Status, warnings: list[str]) -> None:
    assert [text for check in Shown(shown).readiness() for text in check.warnings] == warnings


def test_of_many_ports_that_refuse_the_first_are_listed() -> None:
    ports = [destination("refusing", port=port) for port in range(1, 1001)]
    check = Shown(status(*ports)).readiness()[2]
    assert len(check.problems) == 21
    assert check.problems[19:] == (
        "port 20 refuses its clients: a.example: timed out",
        "and 980 more",
    )
