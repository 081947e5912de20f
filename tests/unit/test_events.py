"""Records: constant names, known levels, frozen fields."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from egress_proxy.events import DaemonStopped, Event, Reason, as_text

if TYPE_CHECKING:
    from collections.abc import Sequence


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (None, ""),
        (("192.0.2.1", 80), "192.0.2.1:80"),
        (("2001:db8::1", 80, 0, 0), "[2001:db8::1]:80"),
        (("fe80::1%eth0", 80, 0, 2), "[fe80::1%eth0]:80"),
    ],
)
def test_a_socket_address_as_text(address: Sequence[object] | None, text: str) -> None:
    assert as_text(address) == text


# The events and their levels: operators search the logs for them.
EVENTS = {
    "connection.closed": "debug",
    "destination.resolved": "debug",
    "destination.changed": "info",
    "destination.unresolved": "warning",
    "destination.stale": "warning",
    "destination.denied": "warning",
    "upstream.failed": "warning",
    "upstream.recovered": "info",
    "listener.opened": "info",
    "listener.closed": "info",
    "listener.failed": "warning",
    "listener.paused": "warning",
    "listener.resumed": "info",
    "daemon.started": "info",
    "daemon.ready": "info",
    "daemon.draining": "info",
    "daemon.stopped": "info",
    "source.lost": "warning",
    "source.restored": "info",
    "config.reloaded": "info",
    "config.rejected": "warning",
    "log.switched": "info",
    "log.dropped": "warning",
    "run.warning": "warning",
    "run.failed": "error",
    "daemon.defect": "error",
}


# Those of `run`; other commands have modules of their own.
KINDS = [kind for kind in Event.__subclasses__() if kind.__module__ == Event.__module__]


def test_the_events_and_their_levels() -> None:
    assert {kind.name: kind.level for kind in KINDS} == EVENTS


def test_only_connections_and_answers_are_left_to_debug() -> None:
    told_in_debug = {event for event, level in EVENTS.items() if level == "debug"}
    assert told_in_debug == {"connection.closed", "destination.resolved"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_can_not_be_changed_and_is_explained(kind: type[Event]) -> None:
    assert kind.__struct_config__.frozen
    assert kind.__doc__
    assert re.fullmatch(r"[a-z]+\.[a-z]+", kind.name)


def test_a_record_is_compared_by_its_fields() -> None:
    assert DaemonStopped(reset=1) == DaemonStopped(reset=1)
    assert DaemonStopped(reset=1) != DaemonStopped(reset=2)


def test_the_reasons_that_a_connection_ends_with() -> None:
    assert sorted(Reason) == [
        "client_gone",
        "client_reset",
        "connect_refused",
        "connect_timeout",
        "connect_unreachable",
        "denied_client",
        "drained",
        "ended",
        "error",
        "finished",
        "half_close_timeout",
        "idle_timeout",
        "no_source",
        "reset",
        "source_lost",
        "upstream_reset",
        "withdrawn",
    ]
