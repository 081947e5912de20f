"""The metrics of the process, against what the system says of it."""

from __future__ import annotations

import os
import resource
import time
from typing import TYPE_CHECKING

import psutil

from egress_proxy.telemetry.process import read_process

if TYPE_CHECKING:
    from pathlib import Path


def values(proc: Path | None = None) -> dict[str, float]:
    samples = read_process() if proc is None else read_process(proc)
    return {sample.name: sample.value for sample in samples}


def test_every_metric_of_the_client_libraries() -> None:
    this = psutil.Process()
    read = values()
    assert read["process_max_fds"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert abs(read["process_start_time_seconds"] - this.create_time()) < 2
    assert 0 < read["process_cpu_seconds_total"] <= time.process_time() + 1
    assert abs(read["process_resident_memory_bytes"] / this.memory_info().rss - 1) < 0.1
    assert abs(read["process_virtual_memory_bytes"] / this.memory_info().vms - 1) < 0.1
    assert len(read) == 6


def test_descriptors_are_counted() -> None:
    before = values()["process_open_fds"]
    pair = os.pipe()
    assert values()["process_open_fds"] == before + 2
    for fd in pair:
        os.close(fd)
    assert values()["process_open_fds"] == before


def test_without_proc_what_is_left_is_the_limit(tmp_path: Path) -> None:
    assert set(values(tmp_path / "hidden")) == {"process_max_fds"}


def test_a_command_with_a_blank_and_a_parenthesis_in_its_name(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    fields = ["S", *("0" for _ in range(50))]
    fields[11], fields[12], fields[19], fields[20], fields[21] = "100", "50", "1000", "4096", "2"
    (tmp_path / "self/stat").write_text(f"7 (a ) b) {' '.join(fields)}\n")
    (tmp_path / "stat").write_text("cpu 1 2 3\nbtime 1700000000\n")
    ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    read = values(tmp_path)
    assert read["process_cpu_seconds_total"] == 150 / ticks
    assert read["process_start_time_seconds"] == 1_700_000_000 + 1000 / ticks
    assert read["process_resident_memory_bytes"] == 2 * page
    assert read["process_virtual_memory_bytes"] == 4096
