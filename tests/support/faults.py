"""System calls of a running process that fail: injected by strace(1), at the real call."""

from __future__ import annotations

import re
import signal
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_ATTACH_S = 10


class Fault:
    """What a tracer does: `injected` is how many calls have failed so far."""

    def __init__(self, log: Path) -> None:
        self._log = log

    @property
    def injected(self) -> int:
        return len(re.findall(r"\(INJECTED\)$", self._log.read_text(), re.MULTILINE))


@contextmanager
def failing(pid: int, call: str, error: str) -> Iterator[Fault]:
    """Every `call` of process `pid` fails with `error`, such as ``EMFILE``, until the end."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        tracer = subprocess.Popen(
            [
                *("strace", "--follow-forks", "--attach", str(pid)),
                *("--output", str(log), "--trace", call),
                *("--inject", f"{call}:error={error}"),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert tracer.stderr is not None
        try:
            attached = tracer.stderr.readline()
            assert "attached" in attached, attached
            yield Fault(log)
        finally:
            # It detaches, and the process goes on.
            tracer.send_signal(signal.SIGINT)
            tracer.wait(_ATTACH_S)
            tracer.stderr.close()
