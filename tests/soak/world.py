"""The laboratory of the soak: the command in its pod, upstreams that serve, clients."""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from collections import Counter
from contextlib import ExitStack, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.deployment import Deployment
from tests.support.dns import Name
from tests.support.lab import OUTSIDE, OUTSIDE_SECOND, POD, Lab

if TYPE_CHECKING:
    import socket

    from tests.soak.lives import Lives

PORTS = (80, 443, 8443)
_SPARE = 9000
_REMOTE_PORT = 7000
_NAMES = {
    "two.example.com": Name(a=(OUTSIDE.v4, OUTSIDE_SECOND.v4), ttl_s=5),
    "one.example.com": Name(a=(OUTSIDE.v4,), ttl_s=5),
}
_TEXT = f"""\
80 {OUTSIDE.v4} {_REMOTE_PORT}
443 two.example.com {_REMOTE_PORT}
8443 one.example.com {_REMOTE_PORT}
"""
_ENV = {
    # Records of connections are what the metrics are held against.
    "EGRESS_DNS_PROXY_LOG_CONNECTIONS": "all",
    "EGRESS_DNS_PROXY_DESTINATION": "",
    # What is left behind by peers whose RST was lost ends soon.
    "EGRESS_DNS_PROXY_IDLE_TIMEOUT": "15s",
    "EGRESS_DNS_PROXY_HALF_CLOSE_TIMEOUT": "10s",
    "EGRESS_DNS_PROXY_CONNECT_TIMEOUT": "5s",
    "EGRESS_DNS_PROXY_LOG_FORMAT": "json",
    # What measures coverage has memory of its own.
    "COVERAGE_PROCESS_START": "",
    "COVERAGE_PROCESS_CONFIG": "",
}
_SAMPLE = re.compile(r'^egress_proxy_connections_total\{.*reason="(\w+)"\} (\S+)$', re.MULTILINE)
_RESIDENT = re.compile(r"^Rss: +(\d+) kB$", re.MULTILINE)


class World(ExitStack):
    """The parts of the soak; `lives` play the upstreams."""

    def __init__(self, lives: Lives) -> None:
        super().__init__()
        self._lives = lives
        self._listeners: dict[str, socket.socket] = {}
        self._serving: set[asyncio.Task[None]] = set()
        folder = self.enter_context(tempfile.TemporaryDirectory())
        self.destinations = Path(folder, "destinations")
        self.write_destinations(spare=False)
        self.lab = self.enter_context(Lab())
        self.deployment = self.enter_context(Deployment(self.lab))
        self.deployment.dns.zone.update(_NAMES)
        self.deployment.take_source()
        self.process = self.deployment.start(
            **_ENV, EGRESS_DNS_PROXY_DESTINATION_FILE=str(self.destinations)
        )
        self.process.wait_for("daemon.ready", listeners=len(PORTS))

    def write_destinations(self, *, spare: bool) -> None:
        more = f"{_SPARE} {OUTSIDE.v4} {_REMOTE_PORT}\n" if spare else ""
        self.destinations.write_text(_TEXT + more)

    def open_upstream(self, address: str) -> None:
        """Serve clients at `address` from now on."""
        listener = self._listeners[address] = self.lab.outside.listen(address, _REMOTE_PORT)
        listener.setblocking(False)
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def close_upstream(self, address: str) -> None:
        """Refuse clients at `address` from now on; sessions go on."""
        listener = self._listeners.pop(address)
        asyncio.get_running_loop().remove_reader(listener)
        listener.close()

    async def close_upstreams(self) -> None:
        for address in list(self._listeners):
            self.close_upstream(address)
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(BlockingIOError):
            while True:
                sock, _ = listener.accept()
                sock.setblocking(False)
                task = asyncio.create_task(self._lives.serve(sock))
                self._serving.add(task)
                task.add_done_callback(self._serving.discard)

    async def connect(self, port: int) -> socket.socket:
        """A client of the cluster that has connected to the pod. Raises `OSError`."""
        sock = await asyncio.to_thread(self.lab.client.open_socket)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (POD.v4, port))
        except BaseException:
            sock.close()
            raise
        return sock

    def _ask(self, path: str) -> str:
        def ask() -> str:
            connection = HTTPConnection("127.0.0.1", 9153, timeout=10)
            connection.request("GET", path)
            with connection.getresponse() as answer:
                return answer.read().decode()

        return self.lab.pod.call(ask)

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self._ask("/status.json"))["status"]
        return status

    def counted(self) -> Counter[str]:
        """The connections that have ended, by reason, as the metrics have them."""
        found: Counter[str] = Counter()
        for reason, value in _SAMPLE.findall(self._ask("/metrics")):
            found[reason] += int(float(value))
        return +found

    def recorded(self) -> Counter[str]:
        """The same, as the log has them."""
        return Counter(
            record["reason"]
            for record in list(self.process.records)
            if record["event"] == "connection.closed"
        )

    def descriptors(self) -> Counter[str]:
        """How many descriptors the command has, by kind."""
        found: Counter[str] = Counter()
        for link in Path(f"/proc/{self._pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                found[str(link.readlink()).partition(":")[0]] += 1
        return found

    def resident_kib(self) -> int:
        found = _RESIDENT.search(Path(f"/proc/{self._pid}/smaps_rollup").read_text())
        assert found is not None
        return int(found[1])

    @property
    def _pid(self) -> int:
        return self.process.pid
