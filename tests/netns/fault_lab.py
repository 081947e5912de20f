"""A daemon whose system calls fail, and what happens to it meanwhile.

One daemon goes through many faults, as a pod does; it has to be whole again after each. A port
stays as it is all the time (`STEADY`), and a session on it too.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
from collections import Counter
from contextlib import ExitStack, suppress
from http.client import HTTPConnection
from itertools import count
from pathlib import Path
from time import sleep, time
from typing import TYPE_CHECKING, Any, Self

from tests.support.deployment import Deployment
from tests.support.dns import Name
from tests.support.lab import OUTSIDE, POD, RESERVED
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.support.faults import Fault
    from tests.support.lab import Lab
    from tests.support.processes import Process, Record

STEADY, CHANGING = 80, 100
MAXIMUM = 6
SERVING = frozenset({"listening", "paused", "failing"})

# Four addresses of the pod and of loopback, and two devices for each of the pod.
_SOCKETS_PER_PORT = 6

# The longest backoff on the way to a record.
_TOLD_S = 4

_numbers = count()


class Pod(ExitStack):
    """`run` in the laboratory."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        super().__init__()
        self.lab = lab
        with ExitStack() as undo:
            undo.push(self)
            self.deployment = self.enter_context(Deployment(lab))
            self.deployment.take_source()
            self.file = folder / f"destinations-{next(_numbers)}"
            self.write(f"{CHANGING} {OUTSIDE.v4}")
            undo.pop_all()

    def variables(self) -> dict[str, str]:
        return {
            "EGRESS_DNS_PROXY_DESTINATION": "",
            "EGRESS_DNS_PROXY_DESTINATION_FILE": str(self.file),
            "EGRESS_DNS_PROXY_DRAIN_TIMEOUT": "300ms",
            "EGRESS_DNS_PROXY_LOG_FORMAT": "json",
            "EGRESS_DNS_PROXY_MAX_CONNECTIONS": str(MAXIMUM),
            # What measures coverage opens a file at the end, and complains where it can't.
            "COVERAGE_PROCESS_START": "",
            "COVERAGE_PROCESS_CONFIG": "",
        }

    def write(self, text: str) -> None:
        self.file.write_text(f"{STEADY} {OUTSIDE.v4}\n{text}\n")


class RunningPod(Pod):
    """The same, ready and with an established session."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        super().__init__(lab, folder)
        with ExitStack() as undo:
            undo.push(self)
            self.process: Process = self.deployment.start(**self.variables())
            self.process.wait_for("daemon.ready")
            self.session = self.enter_context(self.deployment.connect(STEADY))
            self._other_sockets = self.sockets() - 2 * _SOCKETS_PER_PORT
            # Lines of ports that reloads have added.
            self.added: list[str] = []
            self._seen = 0
            self._ports = 2
            undo.pop_all()

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def reload(self, text: str) -> None:
        self.write(text)
        self.signal(signal.SIGHUP)

    def sockets(self) -> int:
        found: Counter[str] = Counter()
        for link in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                found[str(link.readlink()).partition(":")[0]] += 1
        return found["socket"]

    def new_records(self) -> list[Record]:
        """The records since the last call."""
        records = list(self.process.records)
        seen, self._seen = self._seen, len(records)
        return records[seen:]

    def states(self) -> dict[int, str]:
        """The state of each port, not earlier than now: an answer may be a second old."""
        asked_at = time()
        while True:
            found = self.lab.client.call(self._ask)
            if found["now"] >= asked_at:
                break
            sleep(0.05)
        return {
            entry["listener"]: entry["state"]
            for entry in found["destinations"]
            if entry["state"] != "removed"
        }

    def _ask(self) -> dict[str, Any]:
        connection = HTTPConnection(POD.v4, 9153, timeout=10)
        connection.request("GET", "/status.json")
        with connection.getresponse() as answer:
            status: dict[str, Any] = json.load(answer)["status"]
        return status

    def connect(self, port: int) -> socket.socket:
        """A client whose end is a RST: nothing of it is left in the pod."""
        client = self.lab.client.connect(POD.v4, port)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return client

    def accepts(self, port: int) -> bool:
        try:
            self.connect(port).close()
        except ConnectionRefusedError:
            return False
        except ConnectionResetError:
            # It was accepted first.
            return True
        return True

    def serves(self, port: int) -> bool:
        """Whether an octet of a new client arrives; upstreams of earlier ones may come first."""
        with self.connect(port) as client:
            client.sendall(b"?")
            while True:
                with self.deployment.accept(port) as upstream, suppress(ConnectionResetError):
                    if upstream.recv(1) == b"?":
                        return True

    def wait_until_whole(self, state: State) -> None:
        """Until the status is what `state` leads to, and true, and no descriptor is left."""

        def is_true() -> bool:
            states = self.states()
            self._ports = len(states)
            return state.is_whole(states) and all(
                self.accepts(port) == (each in SERVING) for port, each in states.items()
            )

        wait_until(is_true)
        # c-ares may keep a socket.
        most = self._other_sockets + _SOCKETS_PER_PORT * self._ports + 1
        wait_until(lambda: self.sockets() <= most)


class State:
    """What a pod goes through while calls fail.

    `prepare` comes before, `act` during, and `recover` after that: what an operator might do.
    `done` is the event that follows without a fault.
    """

    done: str
    session_goes_on = True

    def __init__(self, pod: RunningPod) -> None:
        self.pod = pod

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def prepare(self) -> None: ...

    def act(self) -> None:
        raise NotImplementedError

    def act_until(self, fault: Fault, event: str) -> bool:
        """`act`, and wait for a call that fails; whether the `event` that tells of it comes."""
        before = len(self.pod.process.records)
        self.act()
        wait_until(lambda: fault.injected > 0)

        def is_told() -> bool:
            records = self.pod.process.records[before:]
            return not event or any(record["event"] == event for record in records)

        try:
            wait_until(is_told, timeout_s=_TOLD_S)
        except AssertionError:
            return False
        return True

    def act_to_the_end(self) -> None:
        """`act` without a fault, until the record that says so."""
        self.pod.process.forget()
        self.act()
        self.pod.process.wait_for(self.done)

    def recover(self) -> None: ...

    def is_whole(self, states: dict[int, str]) -> bool:
        return states[STEADY] == "listening"


class FirstAnswer(State):
    """A name gets its first answer, and its port opens."""

    done = "listener.opened"

    def prepare(self) -> None:
        self.name = f"late-{next(_numbers)}.example.com"
        self.pod.process.forget()
        self.pod.reload("\n".join((f"{CHANGING} {self.name}", *self.pod.added)))
        self.pod.process.wait_for("config.reloaded")

    def act(self) -> None:
        self.pod.deployment.dns.zone[self.name] = Name(a=(OUTSIDE.v4,), ttl_s=300)

    def is_whole(self, states: dict[int, str]) -> bool:
        return states[CHANGING] == "listening"


class Reload(State):
    """A port is added, and another one leads elsewhere.

    Removing a port only takes back and closes, which can't fail.
    """

    done = "config.reloaded"

    def prepare(self) -> None:
        number = next(_numbers)
        self.added = 8000 + number
        self.pod.added.append(f"{self.added} {OUTSIDE.v4} 80")
        changed = f"{CHANGING} {OUTSIDE.v4} {(80, 100)[number % 2]}"
        self.text = "\n".join((changed, *self.pod.added))

    def act(self) -> None:
        self.pod.reload(self.text)

    def is_whole(self, states: dict[int, str]) -> bool:
        return states.get(self.added) == states[CHANGING] == "listening"


class SourceLost(State):
    """The source address goes away."""

    done = "source.lost"
    # Its packets have no source meanwhile.
    session_goes_on = False

    def act(self) -> None:
        source = RESERVED.interface4
        index = self.pod.lab.pod.index("macvlan0")
        address = {"index": index, "address": str(source.ip), "prefixlen": source.network.prefixlen}
        self.pod.lab.pod.netlink(lambda ip: ip.addr("del", **address))

    def recover(self) -> None:
        self.pod.deployment.take_source()


class SourceReturns(SourceLost):
    """The source address comes back, and the ports open again."""

    done = "source.restored"

    def prepare(self) -> None:
        self.pod.process.forget()
        super().act()
        self.pod.process.wait_for(SourceLost.done)

    def act(self) -> None:
        self.pod.deployment.take_source()

    def recover(self) -> None: ...


class Pause(State):
    """The maximum of connections is reached."""

    done = "listener.paused"

    def __enter__(self) -> Self:
        self.clients = ExitStack()
        return self

    def __exit__(self, *_: object) -> None:
        self.clients.close()

    def act(self) -> None:
        # The session is one of them.
        for _ in range(MAXIMUM - 1):
            self.clients.enter_context(self.pod.connect(STEADY))

    def recover(self) -> None:
        self.clients.close()


class Resume(Pause):
    """Connections end, and the listeners accept again."""

    # There is no record of a pause that begins within a second of the one before.
    done = "connection.closed"

    def prepare(self) -> None:
        super().act()
        wait_until(lambda: self.pod.states()[STEADY] == "paused")

    def act(self) -> None:
        self.clients.close()
