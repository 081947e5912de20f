"""Start servers and proxies in the background: in a namespace, on one core, always stopped."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.namespaces import PRIVILEGED
from tests.support.processes import Command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from tests.support.network import Namespace

_START_S = 10.0
_LISTEN = "0A"
# The Debian suite of the compared proxies. The default has the newest HAProxy that Debian offers.
SUITE = os.environ.get("BENCH_SUITE") or "experimental"
# Where `tools` unpacks them.
UNPACKED = Path(__file__).parents[1] / "build/peers" / SUITE
PATH = f"{UNPACKED}/commands:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class BenchError(Exception):
    """The benchmark can't continue, or its figures would be wrong."""


def pinned(cores: int | str, *argv: str) -> list[str]:
    """The command line that runs `argv` on one core, or on a list of cores such as ``0,1``."""
    return ["/usr/bin/taskset", "--cpu-list", str(cores), *argv]


class Daemon(Command):
    """A server or proxy in `namespace`, on `cores`. The kernel kills it when this process ends."""

    def __init__(
        self,
        namespace: Namespace,
        cores: int | str,
        *argv: str,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._name = Path(argv[0]).name
        self._namespace = namespace
        super().__init__(
            PRIVILEGED.launcher(namespace.descriptor, *pinned(cores, *argv)),
            env={"PATH": PATH, **(env or {})},
            descriptors=(namespace.descriptor,),
        )

    def transcript(self) -> str:
        return f"{self._name} wrote:\n{super().transcript()[-2000:]}"

    def wait_for_ports(self, ports: Iterable[int]) -> None:
        """Wait until all of `ports` are listened on."""
        wanted = set(ports)
        self._wait(lambda: wanted <= listening_ports(self._namespace), f"listen on {wanted}")

    def wait_for_output(self, text: bytes) -> None:
        """Wait until it has written `text`."""
        self._wait(lambda: text in self.output(), f"write {text!r}")

    def _wait(self, done: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _START_S
        while not done():
            if self._popen.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"{self._name} does not {what}")
            time.sleep(0.02)


def listening_ports(namespace: Namespace) -> set[int]:
    """The TCP ports with an IPv4 listener. Read from /proc, so no listener gets a connection."""
    table = namespace.call(lambda: Path("/proc/thread-self/net/tcp").read_text())
    rows = [line.split() for line in table.splitlines()[1:]]
    # Column 1 is the local address in hexadecimal, column 3 the state (net/tcp_states.h).
    return {int(row[1].partition(":")[2], 16) for row in rows if row[3] == _LISTEN}
