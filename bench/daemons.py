"""Servers and proxies in the background: inside a namespace, on one core, ended in any case."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.namespaces import PRIVILEGED
from tests.support.processes import Command

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tests.support.network import Namespace

_START_S = 10.0
_LISTEN = "0A"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class BenchError(Exception):
    """The benchmark can't go on, or its figures would not mean what they say."""


def pinned(cores: int | str, *argv: str) -> list[str]:
    """The command line of `argv` on one core, or on those of a list such as ``0,1``."""
    return ["/usr/bin/taskset", "--cpu-list", str(cores), *argv]


class Daemon(Command):
    """A server or proxy in `namespace`, on `cores`. It dies with this process, even by SIGKILL."""

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
        deadline = time.monotonic() + _START_S
        while missing := wanted - listening_ports(self._namespace):
            if self._popen.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"{self._name} does not listen on port {min(missing)}")
            time.sleep(0.02)


def listening_ports(namespace: Namespace) -> set[int]:
    """The TCP ports over IPv4 that somebody listens on; no connection disturbs them."""
    table = namespace.call(lambda: Path("/proc/thread-self/net/tcp").read_text())
    rows = [line.split() for line in table.splitlines()[1:]]
    # Column 1 is the local address in hexadecimal, column 3 the state (net/tcp_states.h).
    return {int(row[1].partition(":")[2], 16) for row in rows if row[3] == _LISTEN}
