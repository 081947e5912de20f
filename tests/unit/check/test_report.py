"""What `check` prints, and which failure decides its exit status."""

from __future__ import annotations

import json

import pytest

from egress_proxy.check.report import Finding, Report
from egress_proxy.errors import ConfigurationError, EgressProxyError, PlatformError, Problem

GOOD = Finding(subject="run", state="good", detail="the configuration is good")
WARNING = Finding(subject="port 80", state="warning", detail="is taken", cure="free it")
FAILED = Finding(subject="gateway", state="failed", detail="no answer", cure="plug the cable in")
JUDGED = Finding(subject="init", state="failed", detail="1 problem")
TOLD = Problem(reason="gateway: no answer", cure="plug the cable in")
WRONG = Problem(variable="EGRESS_SOURCE", line=2, value="a", reason="no address", cure="use one")
MISSING = Problem(reason="no interface", cure="attach one")


def make_report(*findings: Finding, failures: tuple[EgressProxyError, ...] = ()) -> Report:
    report = Report()
    for failure in failures:
        report.failed("init", failure)
    report.add(findings)
    return report


def test_a_good_report_is_a_table_and_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    report = make_report(WARNING)
    report.good("init", "the configuration is good")
    report.plan += ["ip link set macvlan0 up", "  and so on"]
    report.tell("text")
    assert capsys.readouterr().out == (
        "warning  port 80  is taken; free it\n"
        "good     init     the configuration is good\n"
        "ip link set macvlan0 up\n"
        "  and so on\n"
    )


def test_a_problem_of_two_commands_is_reported_once() -> None:
    lists = [
        PlatformError(Problem(variable="EGRESS_INTERFACE", value="net1", reason=f"none ({names})"))
        for names in ("there are lo", "there are eth0, lo")
    ]
    with pytest.raises(PlatformError) as caught:
        make_report(failures=tuple(lists)).tell("text")
    assert caught.value.problems == lists[0].problems


def test_nothing_found_is_nothing_printed(capsys: pytest.CaptureFixture[str]) -> None:
    Report().tell("text")
    assert capsys.readouterr().out == ""


def test_the_cure_of_a_failure_is_printed_with_it_and_not_in_the_table(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(PlatformError) as caught:
        make_report(GOOD, FAILED).tell("text")
    assert caught.value.problems == (TOLD,)
    assert capsys.readouterr().out.splitlines()[1] == "failed   gateway  no answer"


@pytest.mark.parametrize(
    ("failures", "kind", "problems"),
    [
        ((PlatformError(MISSING),), PlatformError, (MISSING, TOLD)),
        ((ConfigurationError(WRONG),), ConfigurationError, (WRONG, TOLD)),
        (
            (PlatformError(MISSING), ConfigurationError(WRONG)),
            ConfigurationError,
            (MISSING, WRONG, TOLD),
        ),
    ],
    ids=["platform", "configuration", "both"],
)
def test_all_failures_are_one_and_wrong_configuration_decides(
    failures: tuple[EgressProxyError, ...],
    kind: type[EgressProxyError],
    problems: tuple[Problem, ...],
) -> None:
    with pytest.raises(kind) as caught:
        make_report(FAILED, failures=failures).tell("text")
    assert caught.value.problems == problems


def test_json_has_the_same_content_for_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    report = make_report(GOOD, WARNING, FAILED, failures=(ConfigurationError(WRONG),))
    report.plan.append("ip link set macvlan0 up")
    with pytest.raises(ConfigurationError):
        report.tell("json")
    assert json.loads(capsys.readouterr().out) == {
        "exit_status": 2,
        "problems": [
            {
                "variable": "EGRESS_SOURCE",
                "line": 2,
                "value": "a",
                "reason": "no address",
                "cure": "use one",
            },
            {
                "variable": "",
                "line": None,
                "value": None,
                "reason": "gateway: no answer",
                "cure": "plug the cable in",
            },
        ],
        "findings": [
            {"subject": one.subject, "state": one.state, "detail": one.detail, "cure": one.cure}
            for one in (JUDGED, GOOD, WARNING, FAILED)
        ],
        "plan": ["ip link set macvlan0 up"],
    }


def test_json_of_a_good_report_has_status_0(capsys: pytest.CaptureFixture[str]) -> None:
    make_report(GOOD).tell("json")
    told = json.loads(capsys.readouterr().out)
    assert (told["exit_status"], told["problems"]) == (0, [])
