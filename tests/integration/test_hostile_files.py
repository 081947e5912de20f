"""Files in place of the destinations' that are none, or are far too wrong: nothing stalls."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import pytest

from tests.support.session import Session
from tests.support.standalone import free_port, running

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from tests.support.processes import Process

# As many lines as 1 MiB holds.
WRONG_LINES = 524_000
# Parsing them takes a second or two; in one go, a session's octets would wait that long. Every
# slice is a millisecond or two.
LONGEST_WAIT_S = 0.5
# The text, its lines, and 100 problems; all problems took more than 100 MB.
GROWTH_KIB = 80 * 1024


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_fifo, "not a regular file"),
        (make_link_to_a_device, "not a regular file"),
        (make_directory, "Is a directory"),
    ],
)
def test_a_file_that_is_none_is_rejected_and_sessions_go_on(
    listener: socket.socket, tmp_path: Path, make: Callable[[Path], None], reason: str
) -> None:
    port = free_port()
    file = tmp_path / "destinations"
    text = f"{port} 127.0.0.1 {listener.getsockname()[1]}"
    file.write_text(text)
    with running("", DESTINATION_FILE=str(file)) as process:
        process.wait_for("daemon.ready")
        session = Session.on_loopback(port, listener)
        file.unlink()
        make(file)
        [problem] = process.wait_for("config.rejected")["problems"]
        assert f"can't read the file: {reason}; " in problem
        session.round_trip()
        file.rename(tmp_path / "elsewhere")
        file.write_text(text)
        process.wait_for("config.reloaded", unchanged=1)
        session.round_trip()
        session.finish()
        assert process.stop() == 0


def peak_kib(process: Process) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text("ascii")
    [line] = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1])


def test_half_a_million_wrong_lines_stall_nothing_and_are_reported(
    listener: socket.socket, tmp_path: Path
) -> None:
    port = free_port()
    file = tmp_path / "destinations"
    file.write_text(f"{port} 127.0.0.1 {listener.getsockname()[1]}")
    with running("", DESTINATION_FILE=str(file)) as process:
        process.wait_for("daemon.ready")
        session = Session.on_loopback(port, listener)
        session.round_trip()
        before = peak_kib(process)
        file.write_text("x\n" * WRONG_LINES)
        os.kill(process.pid, signal.SIGHUP)
        longest = 0.0
        while not any(record["event"] == "config.rejected" for record in process.records):
            began = monotonic()
            session.round_trip()
            longest = max(longest, monotonic() - began)
        *problems, more = process.wait_for("config.rejected")["problems"]
        assert len(problems) == 100
        assert more.endswith(f"and {WRONG_LINES - 100} more problems")
        assert longest < LONGEST_WAIT_S
        assert peak_kib(process) - before < GROWTH_KIB
        session.finish()
        assert process.stop() == 0
