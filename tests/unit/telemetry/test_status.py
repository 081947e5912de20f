"""Readiness, read off snapshots."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from egress_proxy.telemetry.status import readiness
from tests.support.statuses import destination, name, status

if TYPE_CHECKING:
    from egress_proxy.telemetry.status import Status


@pytest.mark.parametrize(
    ("shown", "problems"),
    [
        (status(destination()), []),
        (status(destination("paused")), []),
        # One port that refuses is not the pod's failure.
        (status(destination(), destination("refusing", port=81)), []),
        (status(destination(), draining=True), ["the pod is draining"]),
        (
            status(destination(), source="no interface has it"),
            ["source address 192.0.2.99: no interface has it"],
        ),
        (
            status(destination("refusing", name="a.example"), names=(name("timed out"),)),
            ["port 80 refuses its clients: a.example: timed out"],
        ),
        (
            status(destination("refusing", name="a.example"), names=(name(),)),
            ["port 80 refuses its clients: a.example: not resolved yet"],
        ),
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
                "port 80 refuses its clients: no source address to reach it from",
            ],
        ),
        (
            status(destination("refusing")),
            ["port 80 refuses its clients: its address is the pod's own by now"],
        ),
        (status(destination("removed")), ["there is no destination"]),
    ],
)
def test_when_clients_should_be_sent_here(shown: Status, problems: list[str]) -> None:
    assert [problem for check in readiness(shown) for problem in check.problems] == problems
