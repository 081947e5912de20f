from __future__ import annotations

import json

import pytest

from bench.figures import (
    OutputError,
    histogram_median,
    median_or_none,
    parse_iperf3,
    parse_strace,
    parse_wrk,
    ratios,
    rotated,
)

NO_ERRORS = {"connect": 0, "read": 0, "write": 0, "status": 0, "timeout": 0}


def wrk_output(requests: int = 30, **errors: int) -> str:
    summary = {
        "requests": requests,
        "errors": {**NO_ERRORS, **errors},
        "latency_us": [[10, 10], [20, 20]],
    }
    return f"Running 1s test @ http://192.0.2.1:8080/\n  Requests/sec: 30\n{json.dumps(summary)}\n"


def test_wrk_is_read_from_its_summary() -> None:
    result = parse_wrk(wrk_output())
    assert result.requests == 30
    assert result.latency_us == pytest.approx(19.75)


@pytest.mark.parametrize(
    "output",
    [
        "",
        "unable to connect to 192.0.2.1:8080 Connection refused\n",
        wrk_output(0),
        wrk_output(read=1),
        wrk_output(timeout=3),
        wrk_output(status=30),
    ],
)
def test_wrk_must_have_had_no_error(output: str) -> None:
    with pytest.raises(OutputError):
        parse_wrk(output)


@pytest.mark.parametrize(
    ("pairs", "middle"),
    [
        ([(7, 1)], 7.0),
        ([(7, 1000)], 7.0),
        ([(7, 1), (8, 1)], 7.5),
        ([(8, 1), (7, 1)], 7.5),
        ([(7, 10), (8, 30)], 7.5 + 1 / 3),
        ([(7, 30), (1000, 10)], 6.5 + 2 / 3),
    ],
)
def test_the_median_of_a_histogram(pairs: list[tuple[int, int]], middle: float) -> None:
    assert histogram_median(pairs) == pytest.approx(middle)


def test_no_latencies_have_no_median() -> None:
    with pytest.raises(OutputError):
        histogram_median([])


def test_iperf3_is_read_from_what_the_server_received() -> None:
    end = {"sum_sent": {"bytes": 130}, "sum_received": {"bytes": 128}}
    assert parse_iperf3(json.dumps({"end": end})) == 128


@pytest.mark.parametrize(
    "output",
    [
        "",
        "iperf3: error",
        '{"end": {}}',
        '{"end": {}, "error": "unable to connect"}',
        '{"end": {"sum_received": {"bytes": 0}}}',
        '{"end": {"sum_received": {"bytes": 9}}, "error": "control socket has closed"}',
    ],
)
def test_iperf3_must_have_had_no_error(output: str) -> None:
    with pytest.raises(OutputError):
        parse_iperf3(output)


STRACE = """\
strace: Process 7 attached
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.00    0.000600           3       200           accept4
 40.00    0.000400           1       400       200 recvfrom
------ ----------- ----------- --------- --------- ----------------
100.00    0.001000           1       600       200 total
"""


def test_strace_is_read_from_its_table() -> None:
    assert parse_strace(STRACE) == {"accept4": 200, "recvfrom": 400}


def test_strace_must_have_a_table() -> None:
    with pytest.raises(OutputError):
        parse_strace("strace: attach: Operation not permitted\n")


def test_ratios_are_taken_round_by_round() -> None:
    ours = {0: 1.0, 1: 3.0, 2: 5.0, 3: 7.0}
    theirs = {1: 2.0, 0: 4.0, 2: 0.0}
    assert ratios(ours, theirs) == [0.25, 1.5]


def test_the_median_of_what_is_there() -> None:
    assert median_or_none([3.0, None, 1.0]) == 2.0
    assert median_or_none([None]) is None


def test_rotation_begins_elsewhere_and_keeps_the_order() -> None:
    assert [rotated("abc", by) for by in range(4)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
        ["a", "b", "c"],
    ]
