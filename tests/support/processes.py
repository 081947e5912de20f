"""Runs commands, reads their output and log records, and always ends them."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

Record = dict[str, Any]

# As many records as a failure shows, the last ones.
_SHOWN = 50


class Command:
    """A running command; leaving the ``with`` block kills it, if it still runs.

    What it writes goes to an unlinked file, as a container's goes to a log: nobody has to read it
    meanwhile. `stdout` is where that of the command goes instead.
    """

    def __init__(
        self,
        argv: list[str],
        *,
        env: Mapping[str, str],
        descriptors: tuple[int, ...] = (),
        stdout: int | None = None,
    ) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - __exit__ closes it
        self._popen = subprocess.Popen(
            argv,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=self._output if stdout is None else stdout,
            stderr=self._output,
            pass_fds=descriptors,
        )

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
            error.add_note(self.transcript())
        self._output.close()

    @property
    def pid(self) -> int:
        return self._popen.pid

    def output(self) -> bytes:
        """What is in the file so far."""
        # Opened anew: the offset of our own descriptor is where the command writes.
        return Path(f"/proc/self/fd/{self._output.fileno()}").read_bytes()

    def transcript(self) -> str:
        """What a failure wants to show."""
        return self.output().decode(errors="replace")

    def wait(self, *, timeout_s: float = 10) -> int:
        """The exit status, once the command has ended."""
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running\n{self.transcript()}") from None


class Process(Command):
    """A running command whose stdout is JSON lines, one record per line.

    A thread reads stdout, so that a command never waits for a test to read. `stop` is the way to
    see it end by itself.
    """

    def __init__(
        self, argv: list[str], *, env: Mapping[str, str], descriptors: tuple[int, ...] = ()
    ) -> None:
        self.records: list[Record] = []
        self._unseen: list[Record] = []
        self._news = threading.Condition()
        self._ended = False
        super().__init__(argv, env=env, descriptors=descriptors, stdout=subprocess.PIPE)
        assert self._popen.stdout is not None
        self._reader = threading.Thread(
            target=self._read, args=(self._popen.stdout,), name=f"stdout of {argv[-1]}"
        )
        self._reader.start()

    @property
    def stderr(self) -> str:
        """What the command has written to stderr so far."""
        return self.output().decode()

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
                raise AssertionError(f"no {event} {fields}: {why}\n{self.transcript()}")
            self._unseen.remove(record)
            return record

    def forget(self) -> None:
        """Later calls of `wait_for` return only records that come from now on."""
        with self._news:
            self._unseen.clear()

    def wait(self, *, timeout_s: float = 10) -> int:
        """The exit status, once the command has ended and all its records are read."""
        status = super().wait(timeout_s=timeout_s)
        self._reader.join()
        return status

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        if error is None:
            # Benchmarks start commands too, and do without the validator's library.
            from tests.support.log_schema import violations  # noqa: PLC0415 - see above

            # Other commands of tests write records of their own, without a time.
            told = [record for record in self.records if "time" in record]
            assert violations(told) == []

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._popen.terminate()

    def kill(self) -> None:
        """SIGKILL, and its end."""
        self._popen.kill()
        self.wait()

    def freeze(self) -> None:
        """Stop it (SIGSTOP) until `thaw`."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def stop(self, *, timeout_s: float = 10) -> int:
        """SIGTERM, then the exit status."""
        self.terminate()
        return self.wait(timeout_s=timeout_s)

    def _read(self, stdout: IO[bytes]) -> None:
        with io.TextIOWrapper(stdout) as lines:
            for line in lines:
                self._add(_parse(line))
        with self._news:
            self._ended = True
            self._news.notify_all()

    def _add(self, record: Record) -> None:
        with self._news:
            self.records.append(record)
            self._unseen.append(record)
            self._news.notify_all()

    def transcript(self) -> str:
        omitted = len(self.records) - _SHOWN
        lines = [f"({omitted} records before)"] if omitted > 0 else []
        return "\n".join([*lines, *map(str, self.records[-_SHOWN:]), super().transcript()])


def _parse(line: str) -> Record:
    """A line that is no record becomes one of its own, so that a failure shows it."""
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    return record if isinstance(record, dict) else {"event": None, "line": line}
