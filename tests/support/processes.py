"""A command under test: its records as they come, its stderr, and an end in every case."""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
from typing import IO, TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

Record = dict[str, Any]


class Process:
    """A running command whose stdout is JSON lines, one record a line.

    A thread reads stdout, so that a command never waits for a test to read. Leaving the ``with``
    block kills what still runs; `stop` is the way to see it end by itself.
    """

    def __init__(
        self, argv: list[str], *, env: Mapping[str, str], descriptors: tuple[int, ...] = ()
    ) -> None:
        self.records: list[Record] = []
        self._unseen: list[Record] = []
        self._news = threading.Condition()
        self._ended = False
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 - __exit__ closes it
        self._popen = subprocess.Popen(
            argv,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            pass_fds=descriptors,
            text=True,
        )
        assert self._popen.stdout is not None
        self._reader = threading.Thread(
            target=self._read, args=(self._popen.stdout,), name=f"stdout of {argv[-1]}"
        )
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._popen.kill()
        self.wait()
        if error is not None:
            error.add_note(self._transcript())
        self._stderr.close()

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def stderr(self) -> str:
        """What the command has written to stderr so far."""
        self._stderr.seek(0)
        return self._stderr.read()

    def wait_for(self, event: str, *, timeout_s: float = 10, **fields: object) -> Record:
        """The first record of `event` with these `fields` that no earlier call has returned."""

        def found() -> Record | None:
            return next((record for record in self._unseen if matches(record)), None)

        def matches(record: Record) -> bool:
            wanted = {"event": event, **fields}
            return wanted.items() <= {key: record.get(key) for key in wanted}.items()

        with self._news:
            self._news.wait_for(lambda: found() or self._ended, timeout_s)
            record = found()
            if record is None:
                why = "the command ended" if self._ended else f"nothing in {timeout_s} s"
                raise AssertionError(f"no {event} {fields}: {why}\n{self._transcript()}")
            self._unseen.remove(record)
            return record

    def wait(self, *, timeout_s: float = 10) -> int:
        """The exit status, once the command has ended and all its records are read."""
        try:
            status = self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running\n{self._transcript()}") from None
        self._reader.join()
        return status

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._popen.terminate()

    def stop(self, *, timeout_s: float = 10) -> int:
        """SIGTERM, then the exit status."""
        self.terminate()
        return self.wait(timeout_s=timeout_s)

    def _read(self, stdout: IO[str]) -> None:
        with stdout:
            for line in stdout:
                self._add(_parse(line))
        with self._news:
            self._ended = True
            self._news.notify_all()

    def _add(self, record: Record) -> None:
        with self._news:
            self.records.append(record)
            self._unseen.append(record)
            self._news.notify_all()

    def _transcript(self) -> str:
        return "\n".join([*map(str, self.records), self.stderr])


def _parse(line: str) -> Record:
    """A line that is no record becomes one of its own, so that a failure shows it."""
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    return record if isinstance(record, dict) else {"event": None, "line": line}
