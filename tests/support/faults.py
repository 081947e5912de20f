"""System calls of a process that fail: injected by strace(1), at the real call."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_ATTACH_S = 10
# "PID name(arguments) = result", or its beginning.
_CALL = re.compile(r"^\d+ +(\w+)\(", re.MULTILINE)


class Fault:
    """What a tracer sees: `injected` is how many calls have failed so far."""

    def __init__(self, log: Path) -> None:
        self._log = log

    @property
    def injected(self) -> int:
        return len(re.findall(r"\(INJECTED\)$", self._log.read_text(), re.MULTILINE))

    @property
    def calls(self) -> frozenset[str]:
        """The names of all traced calls so far."""
        return frozenset(_CALL.findall(self._log.read_text()))


def tracer(log: Path, call: str, error: str, when: str = "") -> list[str]:
    """The command line, without what it traces; `when` is which calls fail (strace(1))."""
    return [
        *(shutil.which("strace") or "strace", "--follow-forks"),
        *(
            "--output",
            str(log),
            "--trace",
            call,
            "--inject",
            f"{call}:error={error}{when and f':when={when}'}",
        ),
    ]


@contextmanager
def failing(pid: int, call: str, error: str, when: str = "") -> Iterator[Fault]:
    """Calls of process `pid` fail with `error`, such as ``EMFILE``, until the end."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        with _attached(pid, tracer(log, call, error, when)):
            yield Fault(log)


@contextmanager
def traced(pid: int, calls: frozenset[str]) -> Iterator[Fault]:
    """`calls` of process `pid` are seen until the end, and none fails."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        command = ["strace", "--follow-forks", "--output", str(log), "--trace", ",".join(calls)]
        with _attached(pid, command):
            yield Fault(log)


@contextmanager
def _attached(pid: int, command: list[str]) -> Iterator[None]:
    started = subprocess.Popen([*command, "--attach", str(pid)], stderr=subprocess.PIPE, text=True)
    assert started.stderr is not None
    try:
        attached = started.stderr.readline()
        assert "attached" in attached, attached
        yield
    finally:
        # It detaches, and the process goes on.
        started.send_signal(signal.SIGINT)
        started.wait(_ATTACH_S)
        started.stderr.close()
