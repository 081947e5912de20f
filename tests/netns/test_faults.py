"""System calls of the control plane that fail, in every state of a running daemon.

A tracer makes the real call of the real process fail. Whatever failed: another port's session goes
on, nothing reaches stderr, a record says what failed, the status says what clients see, and
afterwards everything works again and no descriptor is left. What fails at the start and while the
daemon drains is in test_faults_at_the_ends.py.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.netns.fault_lab import (
    STEADY,
    FirstAnswer,
    Pause,
    Reload,
    Resume,
    RunningPod,
    SourceLost,
    SourceReturns,
    State,
)
from tests.support.faults import failing, traced
from tests.support.needs import do_without

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.lab import Lab

# Of epoll_ctl(2) only the first call of each thread fails: the tracer can't tell ADD, which may
# fail, from DEL, which never does. Where it was the event loop's DEL, the test is done again.
_WHEN = {"epoll_ctl": "1"}
_ATTEMPTS = 4
# How each call fails.
ERRORS = {
    "accept4": ("EMFILE", "EPROTO", "EPERM"),
    "bind": ("EADDRINUSE", "EACCES"),
    "clone3": ("EAGAIN",),
    "connect": ("ENETUNREACH",),
    "epoll_ctl": ("ENOSPC",),
    "getsockname": ("ENOBUFS",),
    "ioctl": ("ENODEV",),
    "listen": ("EADDRINUSE",),
    "newfstatat": ("EIO",),
    "openat": ("EMFILE", "ENFILE"),
    "recvfrom": ("ENOBUFS",),
    "recvmsg": ("ENOBUFS",),
    "sendto": ("ENOBUFS",),
    "setsockopt": ("ENOMEM",),
    "socket": ("EMFILE",),
}
_NO_ANSWER = "destination.unresolved"
_REJECTED = "config.rejected"
# getifaddrs(3), netdevice(7) and /proc: read again after a second, and nothing is wrong until then.
_READ_AGAIN = ""
# Which calls each state makes, and the event that tells of their failure; "" if none does.
MATRIX: dict[type[State], dict[str, str]] = {
    FirstAnswer: {
        # c-ares: its socket, from the pod's own address.
        "socket": _NO_ANSWER,
        "bind": _NO_ANSWER,
        "connect": _NO_ANSWER,
        "getsockname": _NO_ANSWER,
        "sendto": _NO_ANSWER,
        "recvfrom": _NO_ANSWER,
        "listen": "listener.failed",
        "epoll_ctl": "listener.paused",
    },
    Reload: {
        "clone3": _REJECTED,
        "newfstatat": _REJECTED,
        "openat": _REJECTED,
        "socket": _REJECTED,
        "setsockopt": _REJECTED,
        "bind": _REJECTED,
        "getsockname": _REJECTED,
        "listen": "listener.failed",
        "epoll_ctl": "listener.paused",
    },
    SourceLost: dict.fromkeys(
        ("bind", "getsockname", "ioctl", "openat", "recvfrom", "recvmsg", "sendto", "socket"),
        _READ_AGAIN,
    ),
    SourceReturns: {
        **dict.fromkeys(
            ("bind", "getsockname", "ioctl", "openat", "recvfrom", "recvmsg", "sendto", "socket"),
            _READ_AGAIN,
        ),
        "listen": "listener.failed",
        "epoll_ctl": "listener.paused",
    },
    Pause: {"accept4": "listener.paused", "epoll_ctl": "connection.closed"},
    Resume: {"epoll_ctl": ""},
}
CELLS = [
    pytest.param(kind, call, error, event, id=f"{kind.__name__}-{call}-{error}")
    for kind, calls in MATRIX.items()
    for call, event in calls.items()
    for error in ERRORS[call]
]
# Made in all states, by what looks at files and by the relay.
_ALWAYS = frozenset({"clone3", "newfstatat", "openat", "recvfrom", "setsockopt", "ioctl"})
# What the relay itself calls: a session that is asked meanwhile would fail too.
_RELAY = frozenset({"recvfrom", "sendto"})
# Not in the matrix although it is made: why it can't fail there, or where that is tested.
ELSEWHERE = {
    (SourceLost, "epoll_ctl"): "it only removes, which needs no room",
    (Pause, "getsockname"): "of a connected socket; without it a record has no source",
    (Pause, "socket"): "the upstream's: tests/integration/test_limits.py",
    (Pause, "bind"): "the upstream's: tests/integration/test_limits.py",
    (Pause, "connect"): "the upstream's: tests/integration/test_endings.py",
}


@pytest.fixture
def leaks() -> None:
    """The daemon outlives a test here; its own descriptors are counted instead."""


class Pods:
    """One pod for all tests, and a new one after a test that has failed."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self._lab = lab
        self._folder = folder
        self._pod: RunningPod | None = None

    @contextmanager
    def borrowed(self) -> Iterator[RunningPod]:
        pod = self._pod or RunningPod(self._lab, self._folder)
        self._pod = None
        with ExitStack() as undo:
            undo.push(pod)
            yield pod
            undo.pop_all()
        self._pod = pod

    def close(self) -> None:
        if self._pod is not None:
            self._pod.close()


@pytest.fixture(scope="module")
def pods(shared_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pods]:
    if not shutil.which("strace"):
        do_without("strace is not installed")
    made = Pods(shared_lab, tmp_path_factory.mktemp("faults"))
    yield made
    made.close()


@pytest.mark.parametrize(("kind", "call", "error", "event"), CELLS)
def test_a_call_fails_and_all_comes_back(
    pods: Pods, kind: type[State], call: str, error: str, event: str
) -> None:
    with pods.borrowed() as pod, kind(pod) as state:
        pod.new_records()
        for _ in range(_ATTEMPTS if call == "epoll_ctl" else 1):
            state.prepare()
            with failing(pod.process.pid, call, error, _WHEN.get(call, "")) as fault:
                told = state.act_until(fault, event)
                if call not in _RELAY and state.session_goes_on:
                    pod.session.round_trip()
            state.recover()
            pod.wait_until_whole(state)
            if told:
                break
        assert told
        pod.session.round_trip()
        assert pod.serves(STEADY)
        events = [record["event"] for record in pod.new_records()]
        assert "daemon.defect" not in events
        assert pod.process.stderr == ""


@pytest.mark.parametrize("kind", MATRIX, ids=lambda kind: kind.__name__)
def test_the_other_calls_are_not_made(pods: Pods, kind: type[State]) -> None:
    elsewhere = {call for each, call in ELSEWHERE if each is kind}
    with pods.borrowed() as pod, kind(pod) as state:
        # Clients of the test before have had their turn.
        pod.session.round_trip()
        state.prepare()
        others = ERRORS.keys() - MATRIX[kind].keys() - elsewhere - _ALWAYS
        with traced(pod.process.pid, frozenset(others)) as trace:
            state.act_to_the_end()
            assert trace.calls == set()
        state.recover()
        pod.wait_until_whole(state)
