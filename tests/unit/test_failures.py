"""Failures and warnings of commands."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from egress_proxy.errors import ConfigurationError, Problem
from egress_proxy.failures import report_failure, report_warnings

if TYPE_CHECKING:
    from collections.abc import Callable

JSON = {"EGRESS_DNS_PROXY_LOG_FORMAT": " json"}
TWO = ConfigurationError(
    Problem(variable="EGRESS_SOURCE", value="a\nb", reason="bad", cure="mend it"),
    Problem(reason="worse"),
)
LINES = ["EGRESS_SOURCE: 'a\\nb': bad; mend it", "worse"]
WARNING = Problem(
    variable="EGRESS_SOURCES",
    reason="unknown variable, ignored",
    cure="did you mean EGRESS_SOURCE?",
)


def test_text_has_one_line_per_problem(capfd: pytest.CaptureFixture[str]) -> None:
    report_failure("run", TWO, {})
    report_warnings("run", [WARNING], {})
    told = capfd.readouterr()
    assert told.err.splitlines() == [*LINES, f"warning: {WARNING}"]
    assert told.out == ""


@pytest.mark.parametrize("command", ["init", "run", "hold"])
def test_where_the_log_is_json_it_is_one_record(
    command: str, capfd: pytest.CaptureFixture[str]
) -> None:
    report_warnings(command, [WARNING], JSON)
    report_failure(command, TWO, JSON)
    told = capfd.readouterr()
    warning, failure = map(json.loads, told.out.splitlines())
    assert told.err == ""
    assert (failure["event"], failure["level"]) == (f"{command}.failed", "error")
    assert failure["problems"] == LINES
    assert (warning["event"], warning["level"]) == (f"{command}.warning", "warning")
    assert (warning["variable"], warning["cure"]) == (WARNING.variable, WARNING.cure)


def test_check_writes_text_whatever_the_log_format_is(capfd: pytest.CaptureFixture[str]) -> None:
    report_failure("check", TWO, JSON)
    assert capfd.readouterr().err.splitlines() == LINES


class Full:
    """A stream on a full disk."""

    def write(self, _text: str) -> int:
        raise OSError

    def flush(self) -> None:
        raise OSError


@pytest.mark.parametrize("stream", [Full, lambda: None])
def test_a_stream_that_can_not_be_written_changes_nothing(
    stream: Callable[[], Full | None],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    # It is how the interpreter gives it to the program.
    monkeypatch.setattr("sys.stderr", stream())
    report_failure("run", TWO, {})
    assert capfd.readouterr() == ("", "")
