"""System calls of the control plane that fail while the daemon starts and while it drains.

A start that can't go on is one problem per line and exit status 1 or 2; what the daemon can do
without does not end it. The states in between are in test_faults.py.
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.netns.fault_lab import Pod, RunningPod
from tests.support.faults import Fault, failing, traced, tracer
from tests.support.needs import do_without
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.lab import Lab

FILE = "the destinations' file"
# Where a call fails: while the pod is read, once the daemon looks at the addresses again and
# watches them, or while it takes its ports.
_POD = "can't read the pod's interfaces: "
_WATCH = "can't start: "
_PORTS = "can't listen on 192.0.2.10: "


class Start(NamedTuple):
    """`when` is which calls fail, all by default, and `path` of which file; see strace(1)."""

    call: str
    error: str
    # A part of the problem, which ends with a line feed; empty if the daemon starts.
    problem: str
    when: str = ""
    path: str = ""

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.call, self.error, self.when, Path(self.path).name)))


# A number that is out of date makes its test fail: the problem is another one.
STARTS = [
    Start("bind", "EADDRINUSE", _POD),
    Start("bind", "EADDRINUSE", _WATCH, "3+"),
    Start("bind", "EADDRINUSE", _WATCH, "4+"),
    Start("bind", "EADDRINUSE", _PORTS, "6+"),
    Start("bind", "EACCES", "can't listen on 192.0.2.10: Permission denied; set the sysctl", "6+"),
    Start("clone3", "EAGAIN", "can't read the file: Resource temporarily unavailable\n"),
    Start("clone3", "EAGAIN", "can't start: can't start new thread; raise the", "2+"),
    # The threads of c-ares.
    Start("clone3", "EAGAIN", "", "3+"),
    Start("epoll_create1", "EMFILE", "Too many open files; raise the container's nofile", "2+"),
    Start("epoll_ctl", "ENOSPC", "No space left on device; raise the node's sysctl", "1"),
    Start("eventfd2", "EMFILE", _WATCH),
    Start("getsockname", "ENOBUFS", _POD),
    Start("getsockname", "ENOBUFS", _WATCH, "4+"),
    Start("listen", "EADDRINUSE", "", "1..2"),
    # Of the admin port, after twice six sockets of the destinations.
    Start("listen", "EADDRINUSE", "ADMIN_LISTEN: ':9153': can't listen on 192.0.2.10", "13+"),
    Start("newfstatat", "EIO", "can't read the file: Input/output error", path=FILE),
    Start("newfstatat", "EIO", "", path="/etc/resolv.conf"),
    # Nothing is wrong with the volume.
    Start("openat", "EMFILE", "can't read the file: Too many open files\n", path=FILE),
    Start("openat", "EMFILE", "", path="/etc/resolv.conf"),
    Start("pipe2", "EMFILE", _WATCH),
    Start("recvmsg", "ENOBUFS", _POD),
    Start("recvmsg", "ENOBUFS", _WATCH, "12+"),
    Start("sendto", "ENOBUFS", _POD),
    Start("sendto", "ENOBUFS", _WATCH, "5+"),
    Start("setsockopt", "ENOMEM", _POD),
    Start("setsockopt", "ENOMEM", _PORTS, "2+"),
    Start("socket", "EMFILE", f"{_POD}Too many open files\n"),
    Start("socket", "EMFILE", _WATCH, "20+"),
    Start("socket", "EMFILE", _PORTS, "33+"),
    Start("socketpair", "EMFILE", _WATCH),
]
# Not among them: accept4, connect and recvfrom are first called by a daemon that runs; ioctl fails
# for Python itself, and netdevice(7) is read by the same code as in test_faults.py. What the event
# loop takes for itself has been there a moment before (`refusals.check_resources`).


@pytest.fixture(autouse=True)
def strace() -> None:
    if not shutil.which("strace"):
        do_without("strace is not installed")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    log = tmp_path / "log"
    log.touch()
    return log


@pytest.mark.parametrize("start", STARTS, ids=lambda start: start.name)
def test_a_start_in_which_a_call_fails(
    shared_lab: Lab, tmp_path: Path, log: Path, start: Start
) -> None:
    with Pod(shared_lab, tmp_path) as pod:
        command = [
            *tracer(log, start.call, start.error, start.when),
            "--quiet=all",
            "--seccomp-bpf",
        ]
        if start.path:
            command += ["--trace-path", str(pod.file) if start.path == FILE else start.path]
        process = pod.deployment.start(*command, **pod.variables())
        if start.problem:
            assert process.wait() in {1, 2}
            [failed] = [each for each in process.records if each["event"] == "run.failed"]
            assert start.problem in f"{failed['problems'][0]}\n"
        else:
            process.wait_for("daemon.ready")
            [pid] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            wait_until(lambda: Fault(log).injected > 0)
            for port in (80, 100):
                process.wait_for("listener.opened", listener=port)
            os.kill(int(pid), signal.SIGTERM)
            assert process.wait() == 0
            assert process.records[-1]["event"] == "daemon.stopped"
        assert Fault(log).injected > 0
        assert process.stderr == ""


class DrainingPod(RunningPod):
    """It waits for its session."""

    def variables(self) -> dict[str, str]:
        return super().variables() | {"EGRESS_DNS_PROXY_DRAIN_TIMEOUT": "5s"}


@pytest.fixture
def pod(shared_lab: Lab, tmp_path: Path) -> Iterator[RunningPod]:
    with DrainingPod(shared_lab, tmp_path) as running:
        yield running


@pytest.mark.parametrize(
    ("call", "error"),
    # socketpair: the event loop's, once more at its end.
    [("clone3", "EAGAIN"), ("newfstatat", "EIO"), ("openat", "EMFILE"), ("socketpair", "EMFILE")],
)
def test_a_drain_ends_well_whatever_fails(pod: RunningPod, call: str, error: str) -> None:
    with failing(pod.process.pid, call, error):
        pod.signal(signal.SIGTERM)
        pod.process.wait_for("daemon.draining")
        pod.process.wait_for("listener.closed")
        pod.session.finish()
        assert pod.process.wait() == 0
    assert pod.process.records[-1]["event"] == "daemon.stopped"
    assert pod.process.stderr == ""


def test_a_drain_calls_nothing_else_that_could_fail(pod: RunningPod) -> None:
    calls = {"accept4", "bind", "connect", "listen", "recvmsg", "sendto", "socket"}
    with traced(pod.process.pid, frozenset(calls)) as trace:
        pod.signal(signal.SIGTERM)
        pod.process.wait_for("listener.closed")
        pod.session.finish()
        assert pod.process.wait() == 0
        assert trace.calls == set()
