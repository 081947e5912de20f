"""The documents of the log's events are made from the code, and hold for its records."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

import egress_proxy
from docs.log_events import PAGE, SCHEMA, events, page, schema
from egress_proxy.events import (
    ConnectionClosed,
    DaemonDefect,
    Event,
    ListenersPaused,
    Reason,
    UpstreamRecovered,
)
from egress_proxy.telemetry.logs import LogObserver, make_logger
from tests.support.log_schema import violations

CLOSED = ConnectionClosed(
    listener=80,
    destination="a.example:80",
    client=("2001:db8::7", 40000, 0, 0),
    address=None,
    source=None,
    bytes_to_upstream=0,
    bytes_to_client=0,
    duration_s=0.1234567,
    connect_s=None,
    attempts=3,
    reason=Reason.CONNECT_TIMEOUT,
    error=110,
)


def written(event: Event) -> dict[str, object]:
    stream = io.StringIO()
    LogObserver(make_logger("json", debug=True, stream=stream), debug=True).observe(event)
    record: dict[str, object] = json.loads(stream.getvalue())
    return record


def test_both_documents_are_made_from_the_code() -> None:
    assert PAGE.read_text() == page(), "run make docs"
    assert json.loads(SCHEMA.read_text()) == schema(), "run make docs"


def test_every_event_of_the_package_is_in_it() -> None:
    declared = [
        name
        for module in Path(egress_proxy.__file__).parent.rglob("*.py")
        for name in re.findall(r"Event, name=\"(.*?)\"", module.read_text())
    ]
    assert sorted(declared) == sorted(event.name for event in events())


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize(
    "event",
    [
        CLOSED,
        ListenersPaused(error="at the limit", connections=10),
        DaemonDefect.of(ValueError("two\nlines"), "reload", restart_s=1.0),
    ],
    ids=lambda event: event.name,
)
def test_records_as_they_are_written(event: Event) -> None:
    assert violations([written(event)]) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"event": "upstream.gone"}, "'upstream.gone' is not one of"),
        ({"level": "debug"}, "'info' was expected"),
        ({"time": "yesterday"}, "'yesterday' does not match"),
        ({"address": 1}, "1 is not of type 'string'"),
        ({"more": 1}, "'more' was unexpected"),
    ],
)
def test_what_differs_is_found(change: dict[str, object], told: str) -> None:
    record = written(UpstreamRecovered(destination="a.example:80", address="192.0.2.1"))
    assert violations([record]) == []
    assert any(told in violation for violation in violations([record | change]))


def test_a_field_that_is_missing_is_found() -> None:
    record = written(CLOSED)
    del record["attempts"]
    assert violations([record])
