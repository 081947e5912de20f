"""A log whose reader stops, goes on, or goes away."""

from __future__ import annotations

import fcntl
import json
import os
import select
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from egress_proxy.events import ListenersResumed
from egress_proxy.telemetry.log_writer import LogWriter
from egress_proxy.telemetry.logs import RunLog
from tests.support.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Iterator

CAPACITY = 8192
LINE = "x" * 99 + "\n"


class Reader:
    """The other end of a pipe that holds one page; it reads on request."""

    def __init__(self) -> None:
        self.fd, self.write_fd = os.pipe()
        fcntl.fcntl(self.write_fd, fcntl.F_SETPIPE_SZ, 4096)

    def wait_until_full(self) -> None:
        while select.select([], [self.write_fd], [], 0)[1]:
            os.sched_yield()

    def read_until(self, ending: bytes) -> list[str]:
        octets = b""
        while not octets.endswith(ending):
            octets += os.read(self.fd, 65536)
        return octets.decode().splitlines(keepends=True)

    def close(self) -> None:
        for fd in (self.fd, self.write_fd):
            os.close(fd)


@contextmanager
def outlet_to(reader: Reader) -> Iterator[LogWriter]:
    writer = LogWriter(reader.write_fd, lambda dropped: f"dropped {dropped}\n", capacity=CAPACITY)
    try:
        yield writer
    finally:
        writer.close()


@pytest.fixture
def reader() -> Iterator[Reader]:
    made = Reader()
    yield made
    made.close()


def test_lines_arrive_in_order(reader: Reader) -> None:
    with outlet_to(reader) as writer:
        lines = [f"{number}\n" for number in range(500)]
        for line in lines:
            writer.write(line)
        assert reader.read_until(b"499\n") == lines


def test_a_reader_that_stops_loses_records_and_gets_their_number(reader: Reader) -> None:
    with outlet_to(reader) as writer:
        writer.write(LINE * 60)
        reader.wait_until_full()
        # There is no reader: none of this waits.
        for _ in range(1000):
            writer.write(LINE)
        assert writer.dropped == 1000 - CAPACITY // len(LINE)
        lines = reader.read_until(f"dropped {writer.dropped}\n".encode())
        assert lines[:-1] == [LINE] * (60 + 1000 - writer.dropped)
        # And then everything is as before.
        writer.write("after\n")
        assert reader.read_until(b"after\n") == ["after\n"]


def test_a_slow_reader_sees_few_gaps_each_at_its_place(reader: Reader) -> None:
    with outlet_to(reader) as writer:
        writer.write(LINE * 60)
        reader.wait_until_full()
        for number in range(1000):
            writer.write(f"{number:099}\n")
        # Room for some more, after those that are lost.
        before = reader.read_until(LINE.encode())
        while len(before) < 60 + CAPACITY // len(LINE):
            before += reader.read_until(b"\n")
        writer.write("after\n")
        told = before + reader.read_until(b"after\n")
        assert [line for line in told if line.startswith("dropped")] == [
            f"dropped {writer.dropped}\n"
        ]
        numbers = [int(line) for line in told if line[0] == "0"]
        assert numbers == list(range(1000 - writer.dropped))


def test_a_reader_that_is_gone_does_not_affect_connections(reader: Reader) -> None:
    os.close(reader.fd)
    reader.fd = os.open("/dev/null", os.O_RDONLY)
    writer = LogWriter(reader.write_fd, lambda _: "dropped\n")
    writer.write("a\nb\n")
    writer.close()
    assert writer.dropped == 2
    assert "log" not in {thread.name for thread in threading.enumerate()}


def test_a_line_longer_than_the_buffer_is_reported_at_once(reader: Reader) -> None:
    with outlet_to(reader) as writer:
        writer.write("x" * CAPACITY + "\n")
        # Without another line.
        assert reader.read_until(b"\n") == ["dropped 1\n"]


class FullDisk(LogWriter):
    """Has room for `room` bytes."""

    def __init__(self, fd: int, room: int) -> None:
        self.room = room
        self.full = threading.Event()
        super().__init__(fd, lambda dropped: f"dropped {dropped}\n")

    def _write(self, data: bytes) -> int:
        written = super()._write(data[: self.room])
        self.room -= written
        if written < len(data):
            self.full.set()
        return written


def test_a_disk_that_fills_up_leaves_no_half_line(reader: Reader) -> None:
    writer = FullDisk(reader.write_fd, room=10)
    writer.write("first\nsecond\nthird\n")
    assert writer.full.wait(10)
    writer.room = 1000
    writer.write("fourth\n")
    writer.close()
    octets = os.read(reader.fd, 1000)
    assert octets == b"first\nsecond\ndropped 1\nfourth\n"
    assert writer.dropped == 1


def test_a_descriptor_that_does_not_block_is_as_good(reader: Reader) -> None:
    os.set_blocking(reader.write_fd, False)
    with outlet_to(reader) as writer:
        writer.write(LINE * 60)
        reader.wait_until_full()
        writer.write("after\n")
        assert reader.read_until(b"after\n") == [LINE] * 60 + ["after\n"]


def test_at_the_end_what_is_left_is_written(reader: Reader) -> None:
    writer = LogWriter(reader.write_fd, lambda _: "dropped\n")
    writer.write("last\n")
    writer.close()
    assert os.read(reader.fd, 100) == b"last\n"


def test_the_daemons_log_reports_a_gap_in_its_own_format(reader: Reader) -> None:
    log = RunLog("json", debug=False, fd=reader.write_fd)
    log.observe(ListenersResumed(connections=1))
    [line] = reader.read_until(b"\n")
    assert json.loads(line)["event"] == "listener.resumed"
    while not log.dropped:
        log.observe(ListenersResumed(connections=1))
    notice = json.loads(reader.read_until(b'"records":1}\n')[-1])
    assert (notice["event"], notice["level"], notice["records"]) == ("log.dropped", "warning", 1)
    assert list(notice)[:3] == ["time", "level", "event"]
    log.close()


def test_on_a_terminal_the_log_is_for_a_person() -> None:
    with Terminal() as terminal:
        log = RunLog("", debug=False, fd=terminal.fd)
        log.observe(ListenersResumed(connections=1))
        log.close()
        told = terminal.read()
    assert "\x1b[" in told
    assert "listener.resumed" in told
