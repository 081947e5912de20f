"""init is killed, or fails, before each of its changes in turn; none of the places is left out."""

from __future__ import annotations

import signal
import sys
from itertools import count
from typing import TYPE_CHECKING

import pytest

from tests.netns import scripted_init
from tests.netns.init_lab import DUAL, NEEDED, Result, run_in_pod, snapshot
from tests.support.lab import CLUSTER_DNS, OUTSIDE, Lab
from tests.support.namespaces import Container

if TYPE_CHECKING:
    from pathlib import Path

# Some twenty changes, and a new laboratory for each: a quarter of them in a test, so that no worker
# has them all.
QUARTERS = pytest.mark.parametrize("quarter", range(4))


@pytest.fixture
def resolv_conf(tmp_path: Path) -> Path:
    path = tmp_path / "resolv.conf"
    path.write_text(f"nameserver {CLUSTER_DNS.v4}\nnameserver {CLUSTER_DNS.v6}\n")
    return path


# The last changes: forwarding of both links in IPv4, a filter, and forwarding in IPv6.
FORWARDING = 4
REDIRECT = DUAL | {
    "EGRESS_ROUTER_MODE": "init",
    "EGRESS_DESTINATION": f"80 tcp {OUTSIDE.v4} 8080\n81 udp {OUTSIDE.v6}",
}


def scripted(lab: Lab, resolv_conf: Path, *options: str, env: dict[str, str] = DUAL) -> Result:
    command = (sys.executable, scripted_init.__file__, *options)
    container = Container(resolv_conf=str(resolv_conf), capabilities=NEEDED)
    return run_in_pod(lab, *command, env=env, container=container)


def changes_of(result: Result) -> list[str]:
    return [record["command"] for record in result.records if record["event"] == "init.step"]


@QUARTERS
def test_a_kill_before_any_change_leaves_what_the_next_run_can_finish(
    resolv_conf: Path, quarter: int
) -> None:
    with Lab() as lab:
        changes = changes_of(scripted(lab, resolv_conf))
        undisturbed = snapshot(lab.pod)
    for place in range(quarter, len(changes), 4):
        with Lab() as lab:
            killed = scripted(lab, resolv_conf, "--kill-before", str(place))
            assert killed.status == -signal.SIGKILL
            # A default route is looked for after each change, before the kill and now again.
            scripted(lab, resolv_conf).expect_done()
            assert snapshot(lab.pod) == undisturbed, f"killed before {changes[place]}"


@QUARTERS
def test_a_failure_before_any_change_restores_everything(
    lab: Lab, resolv_conf: Path, quarter: int
) -> None:
    before = snapshot(lab.pod)
    for place in count(quarter, 4):
        result = scripted(lab, resolv_conf, "--fail-before", str(place))
        if result.status == 0:
            break
        assert result.status == 1, result
        assert "an accident" in result.failure
        assert snapshot(lab.pod) == before, f"failed before change {place}"
    changes = len(changes_of(result))
    assert changes > 20
    # The first place that is none.
    assert changes <= place < changes + 4


def test_a_kill_around_the_rules_and_forwarding(resolv_conf: Path) -> None:
    with Lab() as lab:
        steps = steps_of(scripted(lab, resolv_conf, env=REDIRECT))
        undisturbed = snapshot(lab.pod)
    for place in (0, 1, *range(steps - FORWARDING, steps)):
        with Lab() as lab:
            killed = scripted(lab, resolv_conf, "--kill-before", str(place), env=REDIRECT)
            assert killed.status == -signal.SIGKILL
            scripted(lab, resolv_conf, env=REDIRECT).expect_done()
            assert snapshot(lab.pod) == undisturbed, f"killed before change {place}"


def test_a_failure_before_forwarding_takes_the_rules_back(lab: Lab, resolv_conf: Path) -> None:
    with Lab() as other:
        steps = steps_of(scripted(other, resolv_conf, env=REDIRECT))
    before = snapshot(lab.pod)
    for place in (1, *range(steps - FORWARDING, steps)):
        result = scripted(lab, resolv_conf, "--fail-before", str(place), env=REDIRECT)
        assert (result.status, "an accident" in result.failure) == (1, True)
        assert snapshot(lab.pod) == before, f"failed before change {place}"


def steps_of(result: Result) -> int:
    return int(result.expect_done()["steps"])


def test_what_could_not_be_undone_is_reported(lab: Lab, resolv_conf: Path) -> None:
    with Lab() as other:
        changes = changes_of(scripted(other, resolv_conf))
    last = len(changes) - 1
    # The change of that number is the second one to be undone: the last but two.
    result = scripted(lab, resolv_conf, "--fail-before", str(last), "--fail-undo", str(last + 2))
    assert result.status == 1
    refusal, left = result.failure.splitlines()
    assert f"the kernel refuses '{changes[last]}': an accident" in refusal
    assert left.endswith("could not be undone: an accident; delete the pod")
    assert changes[last - 2].split(" replace ")[1] in left
