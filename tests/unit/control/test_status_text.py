"""The status as text: what needs attention first, one line per destination."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from egress_proxy.control.status_text import lines
from egress_proxy.telemetry.status import Failure, ListenerState, Source, readiness
from tests.support.statuses import destination, status

STATES = get_args(ListenerState)


def text(*, source: str = "", draining: bool = False) -> list[str]:
    taken = status(
        *(destination(state, port=port) for port, state in enumerate(STATES, start=80)),
        source=source,
        draining=draining,
    )
    ready = readiness(
        draining=draining,
        sources=taken.sources,
        ports=taken.destinations,
        reloads=taken.reloads,
    )
    return list(lines(ready, taken))


def test_every_state_has_its_line_and_trouble_comes_first() -> None:
    told = text()
    table = told[told.index("") + 1 :]
    assert table[0].split()[:3] == ["PORT", "STATE", "ACTIVE"]
    assert [row.split()[1] for row in table[1:]] == [
        "failed",
        "refusing",
        "failing",
        "paused",
        "listening",
        "removed",
    ]
    assert len(table) == 1 + len(STATES)
    assert "destinations 1 failed, 1 refusing, 1 failing, 1 paused, 1 listening, 1 removed" in told
    assert any(line.startswith("  warning: ") for line in told)


def test_what_makes_the_pod_unready_is_reported() -> None:
    told = text(draining=True)
    assert (
        told[0]
        == "egress-proxy 1.0 in egress/router-1 on worker-3, not ready, 1970-01-01 00:00:02Z"
    )
    assert told[1] == "  problem: the pod is draining"


def test_a_missing_source_and_a_failure_are_reported_with_their_time() -> None:
    taken = status(
        msgspec.structs.replace(
            destination(), last_failure=Failure(what="connect_refused", at=60.0), upstreams=()
        )
    )
    taken = msgspec.structs.replace(
        taken, sources=(Source(address="192.0.2.99", problem="no interface has it"),)
    )
    told = list(lines((), taken))
    assert "source       192.0.2.99 (no interface has it)" in told
    assert told[-1].endswith("none       connect_refused at 1970-01-01 00:01:00Z")


@pytest.mark.parametrize(
    ("role", "lines_of_role"), [("", []), ("standby", ["role         standby"])]
)
def test_the_role_is_shown_with_high_availability(role: str, lines_of_role: list[str]) -> None:
    taken = msgspec.structs.replace(status(destination()), role=role)
    assert [line for line in lines((), taken) if line.startswith("role")] == lines_of_role


def test_a_failing_destination_says_what_happened_to_its_last_client() -> None:
    failure = Failure(what="connect_timeout", at=60.0)
    failing = msgspec.structs.replace(destination("failing"), last_failure=failure)
    told = list(lines((), status(failing)))
    assert told[-1].endswith(f"{failing.error}; connect_timeout at 1970-01-01 00:01:00Z")
