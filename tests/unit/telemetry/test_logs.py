"""Log lines: whole records, one line each, whatever a field holds."""

from __future__ import annotations

import errno
import io
import json
from datetime import datetime, timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from egress_proxy.config.variables import LogFormat
from egress_proxy.events import (
    ConfigRejected,
    ConfigReloaded,
    ConnectionClosed,
    DaemonDefect,
    DaemonDraining,
    DaemonReady,
    DaemonStarted,
    DaemonStopped,
    DestinationChanged,
    DestinationDenied,
    DestinationResolved,
    DestinationStale,
    DestinationUnresolved,
    Event,
    ListenerClosed,
    ListenerFailed,
    ListenerOpened,
    ListenersPaused,
    ListenersResumed,
    LogDropped,
    LogSwitched,
    Reason,
    RunFailed,
    RunWarning,
    SourceLost,
    SourceRestored,
    UpstreamFailed,
    UpstreamRecovered,
)
from egress_proxy.telemetry.logs import LogObserver, make_logger

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from egress_proxy.config.run_variables import LoggedConnections

LOG_FORMATS = get_args(LogFormat)

CLOSED = ConnectionClosed(
    listener=8443,
    destination="web.example.com:443",
    client=("10.128.0.7", 40000),
    address=("2001:db8::1", 443, 0, 0),
    source=("2001:db8::99", 50000, 0, 0),
    bytes_to_upstream=1,
    bytes_to_client=2,
    duration_s=1.23456789,
    connect_s=0.00000049,
    attempts=1,
    reason=Reason.FINISHED,
)

# Every record, and the fields of its line beside event, level and time.
RECORDS: list[tuple[Event, dict[str, Any]]] = [
    (
        CLOSED,
        {
            "listener": 8443,
            "destination": "web.example.com:443",
            "client": "10.128.0.7:40000",
            "address": "[2001:db8::1]:443",
            "source": "[2001:db8::99]:50000",
            "bytes_to_upstream": 1,
            "bytes_to_client": 2,
            "duration_s": 1.234568,
            "connect_s": 0.0,
            "attempts": 1,
            "reason": "finished",
            "error": "",
        },
    ),
    (
        ConnectionClosed(
            listener=80,
            destination="192.0.2.1:80",
            client=("fd01::7", 40000, 0, 0),
            address=("192.0.2.1", 80),
            source=None,
            bytes_to_upstream=0,
            bytes_to_client=0,
            duration_s=10.0,
            connect_s=None,
            attempts=3,
            reason=Reason.CONNECT_REFUSED,
            error=errno.ECONNREFUSED,
        ),
        {
            "listener": 80,
            "destination": "192.0.2.1:80",
            "client": "[fd01::7]:40000",
            "address": "192.0.2.1:80",
            "source": "",
            "bytes_to_upstream": 0,
            "bytes_to_client": 0,
            "duration_s": 10.0,
            "connect_s": None,
            "attempts": 3,
            "reason": "connect_refused",
            "error": "ECONNREFUSED: Connection refused",
        },
    ),
    (
        DestinationResolved(
            destination="a.example", addresses=("192.0.2.1",), ttl_s=30, lookup_s=0.0012345678
        ),
        {
            "destination": "a.example",
            "addresses": ["192.0.2.1"],
            "ttl_s": 30,
            "lookup_s": 0.001235,
        },
    ),
    (
        DestinationChanged(
            destination="a.example", addresses=("192.0.2.1", "192.0.2.2"), before=()
        ),
        {"destination": "a.example", "addresses": ["192.0.2.1", "192.0.2.2"], "before": []},
    ),
    (
        DestinationUnresolved(destination="a.example", error="no such name", retry_s=1.0),
        {"destination": "a.example", "error": "no such name", "retry_s": 1.0},
    ),
    (
        DestinationStale(
            destination="a.example", error="timed out", addresses=("192.0.2.1",), retry_s=2.0
        ),
        {
            "destination": "a.example",
            "error": "timed out",
            "addresses": ["192.0.2.1"],
            "retry_s": 2.0,
        },
    ),
    (
        DestinationDenied(destination="a.example", address="127.0.0.1", error="a loopback address"),
        {"destination": "a.example", "address": "127.0.0.1", "error": "a loopback address"},
    ),
    (
        UpstreamFailed(
            destination="a.example:80", address="192.0.2.1", error="refused", retry_s=10.0
        ),
        {
            "destination": "a.example:80",
            "address": "192.0.2.1",
            "error": "refused",
            "retry_s": 10.0,
        },
    ),
    (
        UpstreamRecovered(destination="a.example:80", address="192.0.2.1"),
        {"destination": "a.example:80", "address": "192.0.2.1"},
    ),
    (
        ListenerOpened(listener=80, destination="a.example:80", addresses=("10.128.0.2",)),
        {"listener": 80, "destination": "a.example:80", "addresses": ["10.128.0.2"]},
    ),
    (
        ListenerClosed(listener=80, destination="a.example:80"),
        {"listener": 80, "destination": "a.example:80"},
    ),
    (
        ListenersPaused(error="Too many open files", connections=7),
        {"listener": None, "error": "Too many open files", "connections": 7},
    ),
    (ListenersResumed(listener=80, connections=6), {"listener": 80, "connections": 6}),
    (
        DaemonStarted(
            version="1.0",
            source=("192.0.2.99",),
            listen=("10.128.0.2",),
            destinations=3,
            max_connections=1000,
        ),
        {
            "version": "1.0",
            "source": ["192.0.2.99"],
            "listen": ["10.128.0.2"],
            "destinations": 3,
            "max_connections": 1000,
        },
    ),
    (
        DaemonReady(listeners=2, unresolved=(80,), startup_s=0.1),
        {"listeners": 2, "unresolved": [80], "startup_s": 0.1},
    ),
    (DaemonDraining(connections=2, timeout_s=25.0), {"connections": 2, "timeout_s": 25.0}),
    (DaemonStopped(reset=2), {"reset": 2}),
    (
        SourceLost(address="192.0.2.99", error="no interface has it"),
        {"address": "192.0.2.99", "error": "no interface has it"},
    ),
    (SourceRestored(address="192.0.2.99"), {"address": "192.0.2.99"}),
    (
        ConfigReloaded(added=(80,), changed=(), removed=(81, 82), unchanged=3),
        {"added": [80], "changed": [], "removed": [81, 82], "unchanged": 3},
    ),
    (ConfigRejected(problems=("a", "b")), {"problems": ["a", "b"]}),
    (LogSwitched(debug=True), {"debug": True}),
    (LogDropped(records=7), {"records": 7}),
    (
        RunWarning(variable="EGRESS_X", value=None, reason="unknown", cure=""),
        {"variable": "EGRESS_X", "value": None, "reason": "unknown", "cure": ""},
    ),
    (RunFailed(problems=("a", "b")), {"problems": ["a", "b"]}),
    (
        DaemonDefect.of(ValueError("a defect"), "reload", restart_s=1.0),
        {
            "where": "reload",
            "error": "ValueError('a defect')",
            "traceback": r"ValueError: a defect\n",
            "restart_s": 1.0,
        },
    ),
    (
        ListenerFailed(
            listener=80,
            destination="a.example:80",
            address="10.128.0.2",
            error="Address already in use",
            retry_s=1.0,
        ),
        {
            "listener": 80,
            "destination": "a.example:80",
            "address": "10.128.0.2",
            "error": "Address already in use",
            "retry_s": 1.0,
        },
    ),
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Broken(io.StringIO):
    """What the container runtime no longer reads, or a full disk."""

    def write(self, _text: str | Buffer, /) -> int:
        raise OSError(errno.EPIPE, "Broken pipe")


def lines_of(*told: Event, log_format: LogFormat = "json", debug: bool = True) -> list[str]:
    stream = io.StringIO()
    observer = LogObserver(make_logger(log_format, debug=debug, stream=stream), debug=debug)
    for record in told:
        observer.observe(record)
    text = stream.getvalue()
    assert text == "" or text.endswith("\n")
    return text.splitlines()


def line_of(field: object, log_format: LogFormat) -> str:
    """The one line of a log with `field` in it."""
    stream = io.StringIO()
    make_logger(log_format, debug=False, stream=stream).info("some.event", field=field)
    line = stream.getvalue()
    assert line.endswith("\n")
    return line[:-1]


def test_no_record_is_missing_here() -> None:
    assert {type(record) for record, _ in RECORDS} == {
        kind for kind in Event.__subclasses__() if kind.__module__ == Event.__module__
    }


@pytest.mark.parametrize(("record", "fields"), RECORDS)
def test_a_record_is_a_json_line_with_all_its_fields(record: Event, fields: object) -> None:
    [line] = lines_of(record)
    told = json.loads(line)
    assert list(told)[:3] == ["time", "level", "event"]
    age = datetime.now().astimezone() - datetime.fromisoformat(told.pop("time"))
    assert abs(age) < timedelta(minutes=1)
    assert (told.pop("level"), told.pop("event")) == (record.level, record.name)
    assert told == fields


@pytest.mark.parametrize(("record", "fields"), RECORDS)
def test_a_record_is_a_line_for_a_person(record: Event, fields: dict[str, Any]) -> None:
    [line] = lines_of(record, log_format="console")
    assert line.isprintable()
    assert f"[{record.level:9}] {record.name}" in line
    for key in fields:
        assert f" {key}=" in line


@pytest.mark.parametrize("log_format", LOG_FORMATS)
@pytest.mark.parametrize(("record", "_fields"), RECORDS)
def test_without_debug_only_connections_and_answers_are_left_out(
    record: Event, _fields: object, log_format: LogFormat
) -> None:
    hidden = isinstance(record, (ConnectionClosed, DestinationResolved))
    assert len(lines_of(record, log_format=log_format, debug=False)) == (not hidden)


@pytest.mark.parametrize(
    ("log_format", "stream", "json_lines", "colours"),
    [
        ("", io.StringIO, True, False),
        ("", Terminal, False, True),
        ("json", Terminal, True, False),
        ("console", io.StringIO, False, False),
        ("console", Terminal, False, True),
    ],
)
def test_the_format_depends_on_the_stream_if_it_is_not_set(
    log_format: LogFormat, stream: type[io.StringIO], json_lines: bool, colours: bool
) -> None:
    out = stream()
    make_logger(log_format, debug=False, stream=out).info("some.event")
    assert out.getvalue().startswith("{") == json_lines
    assert ("\x1b[" in out.getvalue()) == colours


HOSTILE = "a\nb\r\x1b[2J\x7f\x9b\x85\u2028\u202e\ufeff\udcff\0"
ESCAPED = r"a\nb\r\x1b[2J\x7f\x9b\x85\u2028\u202e\ufeff\udcff\x00"


@pytest.mark.parametrize(
    ("field", "told"),
    [
        ("caf\xe9 \N{SNOWMAN}", "caf\xe9 \N{SNOWMAN}"),
        (r"a\nb", r"a\nb"),
        (HOSTILE, ESCAPED),
        ((HOSTILE, 1), [ESCAPED, 1]),
        ([[HOSTILE]], [[ESCAPED]]),
        ({HOSTILE: {HOSTILE: None}}, {ESCAPED: {ESCAPED: None}}),
        ({"a": True, "b": 1.5}, {"a": True, "b": 1.5}),
        (frozenset({1}), "frozenset({1})"),
        (b"\xff\n", r"b'\xff\n'"),
        (ValueError(HOSTILE), ESCAPED),
        (ip_address("192.0.2.1"), "192.0.2.1"),
        ((ip_address("192.0.2.1"),), ["192.0.2.1"]),
    ],
)
def test_fields_that_are_not_fit_to_print(field: object, told: object) -> None:
    assert json.loads(line_of(field, "json"))["field"] == told


ANY_TEXT = st.text(st.characters(exclude_categories=()))


@given(
    field=st.recursive(
        ANY_TEXT | st.binary(),
        lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(ANY_TEXT, inner),
        max_leaves=4,
    )
)
@pytest.mark.parametrize("log_format", LOG_FORMATS)
def test_nothing_breaks_a_line_or_drives_a_terminal(field: object, log_format: LogFormat) -> None:
    line = line_of(field, log_format)
    assert line.isprintable()
    assert line.encode()


@pytest.mark.parametrize("reason", Reason)
def test_the_records_of_connections_without_the_rest_of_debug(reason: Reason) -> None:
    ended = replace(CLOSED, reason=reason)
    resolved = DestinationResolved(destination="a.example", addresses=(), ttl_s=1, lookup_s=1)

    def logged(connections: LoggedConnections, *, debug: bool = False) -> int:
        stream = io.StringIO()
        logger = make_logger("json", debug=True, stream=stream)
        observer = LogObserver(logger, debug=debug, connections=connections)
        observer.observe(ended)
        observer.observe(resolved)
        return stream.getvalue().count("\n")

    failed = {
        "upstream_reset",
        "connect_refused",
        "connect_timeout",
        "connect_unreachable",
        "denied_client",
        "error",
    }
    assert (logged("off"), logged("failed"), logged("all")) == (0, int(reason in failed), 1)
    # DEBUG means all.
    assert logged("off", debug=True) == 2


def test_long_fields_are_cut_so_that_every_record_fits_the_writers_buffer() -> None:
    [line] = lines_of(ConfigRejected(problems=tuple(f"line {n}" for n in range(500_000))))
    problems = json.loads(line)["problems"]
    assert len(problems) == 201
    assert problems[-2:] == ["line 199", "… and 499800 more"]
    [line] = lines_of(ConfigRejected(problems=("\n" * 1_000_000,) * 201))
    # Of the MiB that the writer buffers.
    assert len(line.encode()) < 1 << 19
    [line] = lines_of(DaemonDefect(where="reload", error="a" * 9000 + "end", traceback=""))
    assert json.loads(line)["error"] == "a" * 4096 + " … " + "a" * 4093 + "end"


@pytest.mark.parametrize("log_format", LOG_FORMATS)
def test_a_defect_is_one_line_with_its_place(log_format: LogFormat) -> None:
    stream = io.StringIO()
    observer = LogObserver(make_logger(log_format, debug=False, stream=stream), debug=False)

    def go_wrong() -> None:
        raise LookupError(HOSTILE)

    try:
        go_wrong()
    except LookupError as error:
        observer.observe(DaemonDefect.of(error, "reload"))
    line = stream.getvalue().removesuffix("\n")
    assert line.isprintable()
    for part in ("error", "daemon.defect", "reload", "LookupError", "in go_wrong"):
        assert part in line


def test_a_log_that_can_not_be_written_does_not_affect_the_caller() -> None:
    observer = LogObserver(make_logger("json", debug=True, stream=Broken()), debug=True)
    observer.observe(CLOSED)
    observer.observe(DaemonDefect.of(ValueError("a defect"), "reload"))
