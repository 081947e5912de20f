"""System calls of the control plane that fail, in every state: what goes on, and what comes back.

A tracer makes the real call of the real process fail. Whatever failed: another port's session goes
on, nothing reaches stderr, the status says what clients see, and afterwards everything works again
and no descriptor is left.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from contextlib import ExitStack, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.deployment import Deployment
from tests.support.dns import Name
from tests.support.faults import failing
from tests.support.lab import OUTSIDE, POD, RESERVED
from tests.support.needs import do_without
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.faults import Fault
    from tests.support.lab import Lab

STEADY, CHANGING, ADDED = 80, 100, 8443
NAME = "late.example.com"


class Pod:
    """`run` in the laboratory: a steady port, and one that the scenario changes."""

    def __init__(self, lab: Lab, folder: Path, stack: ExitStack) -> None:
        self.lab = lab
        self.deployment = stack.enter_context(Deployment(lab))
        self.deployment.take_source()
        self.file = folder / "destinations"
        self.write(f"{CHANGING} {NAME}")
        self.process = self.deployment.start(
            EGRESS_DNS_PROXY_DESTINATION="",
            EGRESS_DNS_PROXY_DESTINATION_FILE=str(self.file),
            EGRESS_DNS_PROXY_DRAIN_TIMEOUT="3s",
            # What measures coverage opens a file at the end, and complains where it can't.
            COVERAGE_PROCESS_START="",
            COVERAGE_PROCESS_CONFIG="",
            EGRESS_DNS_PROXY_HALF_CLOSE_TIMEOUT="1s",
        )
        self.process.wait_for("daemon.ready")
        self.session = stack.enter_context(self.deployment.connect(STEADY))
        self.before = self.sockets()

    def write(self, text: str) -> None:
        self.file.write_text(f"{STEADY} {OUTSIDE.v4}\n{text}\n")

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def sockets(self) -> int:
        found: Counter[str] = Counter()
        for link in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                found[str(link.readlink()).partition(":")[0]] += 1
        return found["socket"]

    def states(self) -> dict[int, str]:
        def ask() -> dict[int, str]:
            connection = HTTPConnection(POD.v4, 9153, timeout=10)
            connection.request("GET", "/status.json")
            with connection.getresponse() as answer:
                found = json.load(answer)["status"]["destinations"]
            return {entry["listener"]: entry["state"] for entry in found}

        return self.lab.client.call(ask)

    def accepts(self, port: int) -> bool:
        try:
            self.lab.client.connect(POD.v4, port).close()
        except ConnectionRefusedError:
            return False
        return True

    def serves(self, port: int) -> bool:
        """Whether an octet of a new client arrives; upstreams of earlier ones may come first."""
        with self.lab.client.connect(POD.v4, port) as client:
            client.sendall(b"?")
            while True:
                with self.deployment.accept(port) as upstream:
                    if upstream.recv(1) == b"?":
                        return True

    def status_is_true(self) -> bool:
        """What the status says of each port is what a client finds."""
        return all(
            self.accepts(port) == (state == "listening") for port, state in self.states().items()
        )


@pytest.fixture
def pod(lab: Lab, tmp_path: Path) -> Iterator[Pod]:
    if not shutil.which("strace"):
        do_without("strace is not installed")
    with ExitStack() as stack:
        yield Pod(lab, tmp_path, stack)


class Scenario:
    """What is done while calls fail; `recover` is what an operator might do once they don't."""

    def __init__(self, pod: Pod) -> None:
        self.pod = pod

    def act(self, fault: Fault) -> None:
        raise NotImplementedError

    def recover(self) -> None:
        """Nothing: it recovers by itself."""

    def is_whole(self) -> bool:
        return self.pod.states()[STEADY] == "listening"


class FirstAnswer(Scenario):
    """A name gets its first answer, and its port opens."""

    def act(self, fault: Fault) -> None:
        self.pod.deployment.dns.zone[NAME] = Name(a=(OUTSIDE.v4,), ttl_s=5)
        wait_until(lambda: fault.injected > 0)

    def is_whole(self) -> bool:
        return self.pod.states()[CHANGING] == "listening"


class Reload(Scenario):
    """A port is added and another one leads elsewhere."""

    def act(self, fault: Fault) -> None:
        self.pod.write(f"{CHANGING} {OUTSIDE.v4}\n{ADDED} {OUTSIDE.v4} 80")
        self.pod.signal(signal.SIGHUP)
        wait_until(lambda: fault.injected > 0)

    def recover(self) -> None:
        self.pod.signal(signal.SIGHUP)

    def is_whole(self) -> bool:
        states = self.pod.states()
        return states.get(ADDED) == states[CHANGING] == "listening"


class Accept(Scenario):
    """A client comes, and waits in the backlog."""

    def act(self, fault: Fault) -> None:
        with self.pod.lab.client.connect(POD.v4, STEADY):
            wait_until(lambda: fault.injected > 0)
            before = fault.injected
            self.pod.session.round_trip()
            # Neither a busy loop nor silence: it looks again now and then.
            wait_until(lambda: fault.injected > before)


class SourceFlap(Scenario):
    """The source address goes away and comes back; ports close and open again."""

    by_the_return = False

    def act(self, fault: Fault) -> None:
        source = RESERVED.interface4
        index = self.pod.lab.pod.index("macvlan0")
        address = {"index": index, "address": str(source.ip), "prefixlen": source.network.prefixlen}
        self.pod.lab.pod.netlink(lambda ip: ip.addr("del", **address))
        if not self.by_the_return:
            wait_until(lambda: fault.injected > 0)
        self.pod.deployment.take_source()
        wait_until(lambda: fault.injected > 0)


class SourceReturns(SourceFlap):
    """What fails is only asked for once the address is back."""

    by_the_return = True


# epoll_ctl is not among them: the tracer can't tell ADD, which may fail, from DEL, which never does
# (tests/integration/test_limits.py).
MATRIX = [
    (FirstAnswer, "listen", "EADDRINUSE"),
    (FirstAnswer, "getsockname", "ENOBUFS"),
    (Reload, "bind", "EADDRINUSE"),
    (Reload, "bind", "EACCES"),
    (Reload, "listen", "EADDRINUSE"),
    (Reload, "getsockname", "ENOBUFS"),
    (Reload, "socket", "EMFILE"),
    (Reload, "openat", "EMFILE"),
    (Accept, "accept4", "EMFILE"),
    (Accept, "accept4", "EPROTO"),
    (Accept, "accept4", "EPERM"),
    (SourceFlap, "socket", "EMFILE"),
    (SourceFlap, "openat", "ENFILE"),
    (SourceFlap, "recvfrom", "ENOBUFS"),
    (SourceReturns, "listen", "EADDRINUSE"),
]


@pytest.mark.parametrize(
    ("kind", "call", "error"),
    MATRIX,
    ids=[f"{kind.__name__}-{call}-{error}" for kind, call, error in MATRIX],
)
def test_a_call_fails_and_all_comes_back(
    pod: Pod, kind: type[Scenario], call: str, error: str
) -> None:
    scenario = kind(pod)
    with failing(pod.process.pid, call, error) as fault:
        scenario.act(fault)
    scenario.recover()
    wait_until(scenario.is_whole)
    wait_until(pod.status_is_true)
    pod.session.round_trip()
    assert pod.serves(STEADY)
    wait_until(lambda: pod.sockets() <= pod.before + 8)
    assert pod.process.stop() == 0
    assert pod.process.stderr == ""
    defects = [one for one in pod.process.records if one["event"] == "daemon.defect"]
    assert defects == []


@pytest.mark.parametrize(("call", "error"), [("socket", "EMFILE"), ("openat", "EMFILE")])
def test_a_drain_ends_well_whatever_fails(pod: Pod, call: str, error: str) -> None:
    with failing(pod.process.pid, call, error):
        pod.signal(signal.SIGTERM)
        pod.process.wait_for("daemon.draining")
        pod.process.wait_for("listener.closed")
        pod.session.finish()
        assert pod.process.wait() == 0
    assert pod.process.records[-1]["event"] == "daemon.stopped"
    assert pod.process.stderr == ""
