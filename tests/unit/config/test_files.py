"""Files that are not regular, or never answer: neither the caller nor the event loop hangs."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

from egress_proxy.config import files

if TYPE_CHECKING:
    from pathlib import Path


def file_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == files.THREAD_NAME]


def join_file_threads() -> None:
    for thread in file_threads():
        thread.join()


def test_a_regular_file_is_read_up_to_the_limit(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"abcdef")
    assert files.read_file(str(file), 4) == b"abcd"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("fifo", "not a regular file"),
        ("device", "not a regular file"),
        ("directory", "Is a directory"),
        ("missing", "No such file or directory"),
    ],
)
def test_only_regular_files_are_read(tmp_path: Path, kind: str, reason: str) -> None:
    path = str(tmp_path / "file")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path = "/dev/zero"
    elif kind == "directory":
        path = str(tmp_path)
    with pytest.raises(OSError, match=reason):
        files.read_file(path, 4)


def test_a_version_changes_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    assert files.file_version(str(file)) is None
    file.write_text("one")
    first = files.file_version(str(file))
    assert first == files.file_version(str(file))
    (tmp_path / "other").write_text("one")
    (tmp_path / "other").rename(file)
    assert files.file_version(str(file)) not in {first, None}


def test_a_call_that_hangs_fails_in_time() -> None:
    answer = threading.Event()
    try:
        with pytest.raises(OSError, match="the file system does not answer"):
            files.in_time(answer.wait, timeout_s=0.01)
    finally:
        answer.set()
        join_file_threads()


@pytest.mark.asyncio
async def test_a_call_that_hangs_lets_the_event_loop_run_and_keeps_one_thread() -> None:
    off_loop = files.OffLoop(timeout_s=0.01)
    answer = threading.Event()
    try:
        for _ in range(3):
            with pytest.raises(OSError, match="the file system does not answer"):
                await off_loop.call(answer.wait)
        assert len(file_threads()) == 1
    finally:
        answer.set()
        join_file_threads()
    assert await off_loop.call(lambda: 7) == 7


@pytest.mark.asyncio
async def test_exceptions_come_through() -> None:
    with pytest.raises(ZeroDivisionError):
        await files.OffLoop().call(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        files.in_time(lambda: 1 // 0)
