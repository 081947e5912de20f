"""What the kernel refuses at the start, as problems."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from egress_proxy.errors import PlatformError
from egress_proxy.pod.refusals import check_resources, refusals_are_problems


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
            "can't start: Too many open files; raise the container's nofile limit (RLIMIT_NOFILE)",
        ),
        (OSError(errno.EPERM, "Operation not permitted"), "can't start: Operation not permitted"),
        (
            RuntimeError("can't start new thread"),
            "can't start: can't start new thread; raise the container's limit of processes (pids)",
        ),
    ],
)
def test_a_refusal_is_one_problem(error: Exception, text: str) -> None:
    with pytest.raises(PlatformError) as caught, refusals_are_problems():
        raise error
    assert str(caught.value) == text


def test_another_error_is_a_defect() -> None:
    with pytest.raises(RuntimeError, match="no refusal"), refusals_are_problems():
        raise RuntimeError("no refusal")


def test_what_is_checked_is_released() -> None:
    folder = Path("/proc/self/fd")
    before = sorted(folder.iterdir())
    check_resources()
    assert sorted(folder.iterdir()) == before
