"""The installed command alone on loopback, in a network namespace of its own.

Its ports, queues and socket buffers are its own too: a test can have thousands of connections, and
neither is the machine in their way nor they in the machine's. Upstreams that a test does not accept
stay in the listener's queue, connected and silent, and cost no descriptor.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Self

from egress_proxy.pod.descriptors import raise_descriptor_limit
from tests.support.lab import EGRESS_PROXY
from tests.support.network import Namespace
from tests.support.session import Session
from tests.support.waiting import TIMEOUT_S, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

HOST = "127.0.0.1"
# Where the command listens: what leads to a remote that answers, and to one that never does.
PORT, SILENT_PORT = 1080, 1081
_REMOTE, _SILENT_REMOTE = (HOST, 80), (HOST, 81)
_ADMIN = HOST, 9153

_ENV = {
    "EGRESS_DNS_PROXY_DESTINATION": f"{PORT} {HOST} 80\n{SILENT_PORT} {HOST} 81",
    "EGRESS_DNS_PROXY_SOURCE": "any",
    "EGRESS_DNS_PROXY_LISTEN": HOST,
    "EGRESS_DNS_PROXY_CONNECT_TIMEOUT": "1h",
    "EGRESS_DNS_PROXY_DRAIN_TIMEOUT": "0s",
    "EGRESS_DNS_PROXY_LOG_FORMAT": "json",
    # What measures coverage has a size and a speed of its own.
    "COVERAGE_PROCESS_START": "",
    "COVERAGE_PROCESS_CONFIG": "",
}
_ACTIVE = re.compile(r"^egress_proxy_connections_active\{.*\} (\S+)$", re.MULTILINE)
# The longest queue of connections that listen(2) can be asked for.
_QUEUE = 65535
# Clients that a test makes at a time: no more than the command's backlog takes.
_AT_ONCE = 1000


class Island:
    """A namespace in which the command runs; `variables` are more of its environment.

    Leaving it well is a claim: the command ends at once with status 0, and has written no
    traceback to stderr and no defect to its log.
    """

    def __init__(self, **variables: str) -> None:
        with ExitStack() as stack:
            stack.enter_context(_all_descriptors())
            self.namespace = Namespace("island")
            stack.callback(self.namespace.close)
            self.namespace.sysctl("core/somaxconn", _QUEUE)
            self.remote = stack.enter_context(self.namespace.listen(*_REMOTE))
            self.remote.listen(_QUEUE)
            silent = stack.enter_context(self.namespace.listen(*_SILENT_REMOTE))
            # A backlog of 0 holds one connection (listen(2)); the next SYN gets no answer.
            silent.listen(0)
            stack.enter_context(self.namespace.connect(*_SILENT_REMOTE))
            self.process = stack.enter_context(
                self.namespace.start(EGRESS_PROXY, "run", env=_ENV | variables)
            )
            self.maximum = self.process.wait_for("daemon.started")["max_connections"]
            self.process.wait_for("daemon.ready")
            self._peers = stack.enter_context(ExitStack())
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                assert self.process.stop(timeout_s=TIMEOUT_S) == 0
                assert self.process.stderr == ""
                # A line that is no record has no level.
                levels = {record.get("level") for record in self.process.records}
                assert levels <= {"debug", "info", "warning"}
        finally:
            self._stack.__exit__(kind, error, trace)

    def session(self) -> Session:
        """A client, and the upstream that it was connected to."""
        return Session(self.connect(PORT), *self.accept(1))

    def connect(self, port: int) -> socket.socket:
        """A client that the kernel has connected; the command may not know of it yet."""
        client = self.namespace.connect(HOST, port, timeout_s=TIMEOUT_S)
        return self._peers.enter_context(client)

    def accept(self, count: int) -> list[socket.socket]:
        """The upstreams of the next `count` clients."""
        self.remote.settimeout(TIMEOUT_S)
        made = [self._peers.enter_context(self.remote.accept()[0]) for _ in range(count)]
        for upstream in made:
            upstream.settimeout(TIMEOUT_S)
        return made

    def clients(self, count: int, port: int) -> list[socket.socket]:
        """`count` clients, each accepted by the command."""
        before, made = self.active(), list[socket.socket]()

        def connect() -> None:
            for _ in range(min(_AT_ONCE, count - len(made))):
                client = socket.create_connection((HOST, port), TIMEOUT_S)
                made.append(self._peers.enter_context(client))

        while len(made) < count:
            self.namespace.call(connect)
            wait_until(lambda: self.active() == before + len(made))
        return made

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """The command is stopped meanwhile."""
        os.kill(self.process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)
        try:
            yield
        finally:
            os.kill(self.process.pid, signal.SIGCONT)

    def let_go(self) -> None:
        """Close all clients and upstreams that there are."""
        self._peers.pop_all().close()

    def dismiss_waiting(self) -> int:
        """Accept the upstreams that wait and close them; how many there were."""
        self.remote.settimeout(0)
        count = 0
        with suppress(BlockingIOError):
            while True:
                self.remote.accept()[0].close()
                count += 1
        return count

    def active(self) -> int:
        """The connections that the command says there are."""

        def ask() -> str:
            connection = HTTPConnection(*_ADMIN, timeout=TIMEOUT_S)
            connection.request("GET", "/metrics")
            with connection.getresponse() as answer:
                return answer.read().decode()

        found = _ACTIVE.findall(self.namespace.call(ask))
        return sum(int(float(value)) for value in found)

    def descriptors(self) -> Counter[str]:
        """How many descriptors the command has open, by kind, such as ``socket`` or ``pipe``."""
        found = Counter[str]()
        for link in Path(f"/proc/{self.process.pid}/fd").iterdir():
            # It may be closed meanwhile.
            with suppress(FileNotFoundError):
                found[str(link.readlink()).partition(":")[0]] += 1
        return found

    def own_memory(self) -> int:
        """Octets of user-space memory that are the command's alone (proc_pid_smaps(5))."""
        text = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        found = re.search(r"^Anonymous: +(\d+) kB$", text, re.MULTILINE)
        assert found is not None
        return int(found[1]) * 1024


@contextmanager
def _all_descriptors() -> Iterator[None]:
    """Let this process have as many as the command, which raises its own limit."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    raise_descriptor_limit()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
