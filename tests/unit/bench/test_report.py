"""The pages are made for any choice of peers, from whatever was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from bench.clocks import Times
from bench.loads import LOADS
from bench.peers import FORWARDING, HAPROXY, LOGGING, PROJECT, Peer
from bench.report import Run, write
from bench.samples import IDLE, Sample
from bench.syscalls import SyscallCount

if TYPE_CHECKING:
    from pathlib import Path


def sample(peer: Peer, load: str) -> Sample:
    proxy = {PROJECT.name: 0.5, HAPROXY.name: 1.0, LOGGING.name: 0.75}.get(peer.name, 0.0)
    return Sample(
        number=0,
        load=load,
        peer=peer.name,
        amount=10_000,
        times=Times(wall=1, proxy=proxy, load=0.5, network=0, idle=0.2, steal=0),
        latency_us=None if load.startswith("bulk") else 100 * (1 + proxy),
        octets_per_pair=2048 if load == IDLE else None,
    )


def run_of(samples: list[Sample], syscalls: list[SyscallCount]) -> Run:
    return Run(
        facts={"kernel": "Linux"},
        samples=samples,
        syscalls=syscalls,
        rounds=1,
        seconds=1,
        idle=2000,
        cores=2,
        duration_s=60,
    )


def test_a_full_run(tmp_path: Path) -> None:
    samples = [sample(peer, load.name) for load in LOADS for peer in (PROJECT, HAPROXY, FORWARDING)]
    samples += [sample(LOGGING, "new"), sample(PROJECT, IDLE), sample(HAPROXY, IDLE)]
    counts = [
        SyscallCount(PROJECT.name, {"accept4": 1.0, "futex": 0.01}),
        SyscallCount(HAPROXY.name, {"accept4": 2.0, "splice": 1.0}),
    ]
    write(run_of(samples, counts), tmp_path)
    page = (tmp_path / "results.md").read_text()
    assert "| requests on 64 kept connections | 0.50, goal 1.00 |" in page
    assert "| one kept connection | 0.75, goal 1.00 |" in page
    assert "a new connection costs 75.0 µs instead of 50.0 µs" in page
    assert "## 2,000 idle connections" in page
    assert "| egress-proxy | 2.0 | 50 | 50 | 1.00 |" in page
    assert "| `accept4` | 1.0 | 2.0 |" in page
    assert "futex" not in page
    data = json.loads((tmp_path / "results.json").read_text())
    assert len(data["samples"]) == len(samples)
    assert data["summary"][0]["proxy_ratio"]["middle"] == 1
    labels = {text.text for text in ET.parse(tmp_path / "results.svg").iter() if text.text}  # noqa: S314 - our own
    assert {"egress-proxy", "haproxy", "50", "100"} <= labels


@pytest.mark.parametrize("peer", [PROJECT, FORWARDING])
def test_one_peer_alone(tmp_path: Path, peer: Peer) -> None:
    write(run_of([sample(peer, "kept")], []), tmp_path)
    page = (tmp_path / "results.md").read_text()
    assert f"| {peer.title} | 10,000 |" in page
    assert "goal 1.00" not in page


def test_the_spread_over_several_rounds(tmp_path: Path) -> None:
    first, second = sample(HAPROXY, "kept"), sample(PROJECT, "kept")
    slower = replace(second, number=1, times=replace(second.times, proxy=0.6))
    write(run_of([second, first, slower, replace(first, number=1)], []), tmp_path)
    assert "| 0.55 (0.50 to 0.60), goal 1.00 |" in (tmp_path / "results.md").read_text()
