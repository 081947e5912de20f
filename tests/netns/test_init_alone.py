"""init beside others: another init at the same time, other programs, and a log that fails."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import pytest

from tests.netns.init_lab import DUAL, NEEDED, V4, assert_works, init, run_in_pod, snapshot
from tests.support.lab import EGRESS_PROXY, NODE_TO_PODS, Lab
from tests.support.namespaces import Container

if TYPE_CHECKING:
    from tests.netns.init_lab import Result

CONTAINER = Container(resolv_conf="/dev/null", capabilities=NEEDED)
INIT = f"{shlex.quote(EGRESS_PROXY)} init"


def shell(lab: Lab, script: str, env: dict[str, str] = V4) -> Result:
    """Run `script` in the pod; its standard output has the records of init."""
    return run_in_pod(lab, "/bin/sh", "-c", script, env=env, container=CONTAINER)


@pytest.mark.parametrize("debug", ["", "1"])
def test_two_at_once_are_one_after_the_other(lab: Lab, debug: str) -> None:
    env = DUAL | {"EGRESS_ROUTER_DEBUG": debug}
    # Several times, because they must meet at any moment.
    result = shell(lab, f"{INIT} & one=$!; {INIT} & wait $one && wait $!", env)
    assert (result.status, result.stderr) == (0, "")
    done = [record["steps"] for record in result.records if record["event"] == "init.done"]
    # The second one finds nothing to do.
    assert min(done) == 0 < max(done)
    assert_works(lab, DUAL)


def test_one_that_fails_takes_nothing_from_the_other(lab: Lab) -> None:
    # No such gateway: it fails at the end, and undoes what it did.
    wrong = V4 | {"EGRESS_GATEWAY": "203.0.113.77", "EGRESS_GATEWAY_REQUIRED": "1"}
    assignments = " ".join(f"{name}={value}" for name, value in wrong.items())
    result = shell(lab, f"env {assignments} {INIT} & one=$!; {INIT}; wait $one")
    assert result.status == 1
    assert "203.0.113.77" in result.failure
    init(lab, V4).expect_done()
    assert_works(lab, V4)


@pytest.mark.parametrize(
    "redirection", [">/dev/full", ">&-", ">/dev/full 2>&1", ">&- 2>&-", ">&- 2>&- <&-"]
)
def test_a_log_that_can_not_be_written_changes_nothing(lab: Lab, redirection: str) -> None:
    assert shell(lab, f"{INIT} {redirection}", V4 | {"EGRESS_ROUTER_DEBUG": "1"}).status == 0
    assert_works(lab, V4)


@pytest.mark.parametrize("lines", [1, 3, 5, 7])
def test_a_reader_that_goes_away_changes_nothing(lab: Lab, lines: int) -> None:
    env = V4 | {"EGRESS_ROUTER_DEBUG": "1"}
    result = shell(lab, f"{{ {INIT}; echo $? >&2; }} | head -n {lines}", env)
    assert result.stderr == "0\n"
    assert_works(lab, V4)


def test_a_failure_is_undone_as_a_whole_though_the_log_is_full(lab: Lab) -> None:
    before = snapshot(lab.pod)
    env = V4 | {
        "EGRESS_ROUTER_DEBUG": "1",
        "EGRESS_GATEWAY": "203.0.113.77",
        "EGRESS_GATEWAY_REQUIRED": "1",
    }
    result = shell(lab, f"{INIT} >/dev/full 2>&1", env)
    assert (result.status, result.stderr) == (1, "")
    assert snapshot(lab.pod) == before


@pytest.mark.parametrize(
    ("kind", "fields", "text"),
    [
        (
            "route",
            {"dst": "198.18.0.0/15", "table": 1091, "gateway": NODE_TO_PODS.v4, "proto": 3},
            f"'198.18.0.0/15 via {NODE_TO_PODS.v4} dev eth0 table 1091'",
        ),
        (
            "rule",
            {"table": 1091, "priority": 77, "src": "192.0.2.7"},
            "'priority 77 from 192.0.2.7",
        ),
        ("rule", {"table": 1091, "priority": 1091, "fwmark": 7}, "'priority 1091 … lookup 1091'"),
    ],
)
def test_another_use_of_the_reply_table_is_a_problem(
    lab: Lab, kind: str, fields: dict[str, object], text: str
) -> None:
    lab.pod.netlink(lambda ip: getattr(ip, kind)("add", **fields))
    before = snapshot(lab.pod)
    result = init(lab, V4)
    assert result.status == 1
    assert text in result.failure
    assert (
        "another program uses routing table 1091, which init needs for replies to clients; "
        "let that program use another table" in result.failure
    )
    assert snapshot(lab.pod) == before


def test_a_route_that_came_after_init_is_a_problem_too(lab: Lab) -> None:
    init(lab, V4).expect_done()
    fields = {"dst": "198.18.0.0/15", "table": 1091, "gateway": NODE_TO_PODS.v4, "proto": 3}
    lab.pod.netlink(lambda ip: ip.route("add", **fields))
    assert "another program uses routing table 1091" in init(lab, V4).failure
