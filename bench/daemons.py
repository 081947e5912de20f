"""Servers and proxies in the background: inside a namespace, on one core, ended in any case."""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.support.namespaces import PRIVILEGED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType

    from tests.support.network import Namespace

_START_S = 10.0
_STOP_S = 5.0
_LISTEN = "0A"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class BenchError(Exception):
    """The benchmark can't go on, or its figures would not mean what they say."""


def pinned(cores: int | str, *argv: str) -> list[str]:
    """The command line of `argv` on one core, or on those of a list such as ``0,1``."""
    return ["/usr/bin/taskset", "--cpu-list", str(cores), *argv]


class Daemon:
    """A server or proxy that runs until the ``with`` block ends.

    Its output goes to an unlinked file, as a container's goes to a log: nobody has to read it
    while something is measured. It dies with this process, even if that is killed.
    """

    def __init__(
        self,
        namespace: Namespace,
        cores: int | str,
        *argv: str,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._name = Path(argv[0]).name
        self._namespace = namespace
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - __exit__ closes it
        self._popen = subprocess.Popen(
            PRIVILEGED.launcher(namespace.descriptor, *pinned(cores, *argv)),
            env={"PATH": PATH, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            pass_fds=(namespace.descriptor,),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        # There is nothing to drain for, and SIGTERM would make some of them wait for clients.
        self._popen.kill()
        self._popen.wait(_STOP_S)
        if error is not None:
            error.add_note(f"{self._name} wrote:\n{self.output()[-2000:].decode(errors='replace')}")
        self._output.close()

    @property
    def pid(self) -> int:
        return self._popen.pid

    def output(self) -> bytes:
        """What it has written so far."""
        return Path(f"/proc/self/fd/{self._output.fileno()}").read_bytes()

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
