"""init in a container that has been given as little as Kubernetes can."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.netns.init_lab import DUAL, NEEDED, assert_works, init, run_in_pod, snapshot
from tests.support.lab import EGRESS_PROXY
from tests.support.namespaces import Container
from tests.support.needs import do_without

if TYPE_CHECKING:
    from tests.support.lab import Lab

# What podman and CRI-O take for seccomp's RuntimeDefault; Debian has it in containers-common.
PROFILE = Path("/usr/share/containers/seccomp.json")


def allowed_system_calls() -> tuple[str, ...]:
    """Those that the profile allows a container with our capabilities, on this architecture."""
    if not PROFILE.exists():
        do_without(f"no {PROFILE}")
    profile = json.loads(PROFILE.read_text())
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    return tuple(
        name
        for entry in profile["syscalls"]
        if entry["action"] == "SCMP_ACT_ALLOW" and not entry["includes"].get("caps")
        for name in entry["names"]
    )


def test_two_capabilities_and_a_read_only_root_are_enough(lab: Lab) -> None:
    init(lab, DUAL, capabilities=NEEDED, read_only=True).expect_done()
    assert_works(lab, DUAL, read_only=True)


def test_the_default_seccomp_profile_is_enough(lab: Lab) -> None:
    container = Container(
        resolv_conf="/dev/null",
        read_only=True,
        capabilities=NEEDED,
        system_calls=allowed_system_calls(),
    )
    run_in_pod(lab, EGRESS_PROXY, "init", env=DUAL, container=container).expect_done()


def test_a_profile_that_is_too_strict_is_reported(lab: Lab) -> None:
    allowed = tuple(name for name in allowed_system_calls() if name != "socket")
    container = Container(capabilities=NEEDED, system_calls=allowed)
    before = snapshot(lab.pod)
    result = run_in_pod(lab, EGRESS_PROXY, "init", env=DUAL, container=container)
    assert result.status == 1
    assert result.failure == (
        "can't open a netlink socket: Function not implemented; "
        "use the seccomp profile RuntimeDefault, which allows it\n"
    )
    assert snapshot(lab.pod) == before


@pytest.mark.parametrize("missing", NEEDED)
def test_a_missing_capability_is_named(lab: Lab, missing: str) -> None:
    before = snapshot(lab.pod)
    granted = tuple(name for name in NEEDED if name != missing)
    result = init(lab, DUAL, capabilities=granted, read_only=True)
    assert result.status == 1
    assert result.failure == (
        f"init has no capability {missing}; add {missing} to securityContext.capabilities, and "
        "runAsUser: 0, because Kubernetes gives capabilities to root only\n"
    )
    assert snapshot(lab.pod) == before


def test_another_user_than_root_has_no_capability_at_all(lab: Lab) -> None:
    container = Container(capabilities=NEEDED, uid=1000)
    result = run_in_pod(lab, EGRESS_PROXY, "init", env=DUAL, container=container)
    assert result.status == 1
    assert [line.split(";")[0] for line in result.failure.splitlines()] == [
        "init has no capability NET_ADMIN",
        "init has no capability NET_RAW",
    ]
