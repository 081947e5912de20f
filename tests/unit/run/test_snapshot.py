"""Snapshots: every figure at its place, and turns of the event loop while one is taken."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import pytest

from egress_proxy.config.destinations import Destination
from egress_proxy.config.settings import read_settings
from egress_proxy.events import (
    ConfigRejected,
    ConnectionClosed,
    DestinationChanged,
    DestinationUnresolved,
    ListenerOpened,
    Reason,
    UpstreamFailed,
    UpstreamRecovered,
)
from egress_proxy.forwarding.live import Live
from egress_proxy.forwarding.plane import SplicePlane
from egress_proxy.run.snapshot import Snapshot
from egress_proxy.telemetry.counters import Counters
from egress_proxy.telemetry.status import Port, Source

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "a.example"


class Upstreams:
    def __init__(self) -> None:
        self.healthy = True

    @property
    def all_failed(self) -> bool:
        return not self.healthy

    def health(self) -> list[tuple[str, bool]]:
        return [("192.0.2.1", self.healthy), ("192.0.2.2", False)]


@dataclass(eq=False)
class Listener:
    state: str
    error: str = ""


@dataclass
class Origin:
    live: Live


class Forwarder:
    """What a snapshot reads of a forwarder."""

    def __init__(
        self, port: int = 80, host: str = NAME, *, listening: bool = True, live: Live | None = None
    ) -> None:
        self.destination = Destination(port=port, host=host, remote_port=port, line=1)
        self.name = str(self.destination)
        self.listener = Listener("listening" if listening else "refusing")
        self.origin = Origin(live or Live())
        self.upstreams = Upstreams()


class Connection:
    def __init__(self, live: Live, size: int) -> None:
        self._live = live
        self._size = size

    def count_bytes(self) -> None:
        self._live.bytes_to_upstream += self._size


class Table:
    def __init__(self, *forwarders: Forwarder) -> None:
        self.forwarders = {forwarder.destination.port: forwarder for forwarder in forwarders}
        self.refreshers = dict.fromkeys(
            host for forwarder in forwarders if isinstance(host := forwarder.destination.host, str)
        )
        self.open: list[Connection] = []
        self.walks = 0

    def connections(self) -> Iterator[Connection]:
        self.walks += 1
        return iter(list(self.open))


class Pod:
    """A snapshot of stand-ins for the parts of a daemon."""

    debug = False
    down = ()
    dropped = 3
    active, maximum, pauses = 5, 10, 2

    def __init__(self, *forwarders: Forwarder) -> None:
        self.table = Table(*forwarders)
        self.counters = Counters()
        self.sources = (Source(address="192.0.2.99", problem=""),)
        self.paused: set[Listener] = set()
        settings = read_settings({"EGRESS_DNS_PROXY_DESTINATION": "80 192.0.2.1"})
        parts = cast("Any", self)
        self.snapshot = Snapshot(
            settings,
            parts,
            parts,
            cast("Any", self.table),
            supervisor=parts,
            counters=self.counters,
            log=parts,
        )

    @property
    def shared(self) -> Pod:
        return self

    @property
    def admission(self) -> Pod:
        return self

    async def sessions(self) -> Iterator[Connection]:
        return self.table.connections()

    def _connections(self) -> Iterator[Connection]:
        return self.table.connections()

    async def count(self) -> None:
        await SplicePlane.count(cast("Any", self))

    def takes_clients(self, listener: Listener) -> bool:
        return listener not in self.paused

    def reload(self, *forwarders: Forwarder) -> None:
        before = list(self.table.forwarders.values())
        self.table.forwarders = {each.destination.port: each for each in forwarders}
        self.snapshot.forget(cast("Any", before))


def closed(port: int = 80, reason: Reason = Reason.FINISHED, size: int = 0) -> ConnectionClosed:
    return ConnectionClosed(
        listener=port,
        destination=f"{NAME}:{port}",
        client=("10.128.0.7", 40000),
        address=("192.0.2.1", port),
        source=None,
        bytes_to_upstream=size,
        bytes_to_client=2 * size,
        duration_s=1.0,
        connect_s=0.002,
        attempts=1,
        reason=reason,
    )


UNRESOLVED = DestinationUnresolved(destination=NAME, error="no such name", retry_s=1)
RESOLVED = DestinationChanged(destination=NAME, addresses=("192.0.2.1",), before=())


def ports_of(pod: Pod) -> list[Port]:
    taken = asyncio.run(pod.snapshot.take())
    return [Port(entry.listener, entry.state, entry.error) for entry in taken.destinations]


def test_open_connections_and_those_that_have_ended_add_up() -> None:
    live = Live(active=2, established=1, bytes_to_upstream=10, bytes_to_client=20)
    pod = Pod(Forwarder(live=live))
    pod.table.open = [Connection(live, 5)]
    pod.counters.observe(closed(size=100))
    taken = asyncio.run(pod.snapshot.take())
    assert (taken.active, taken.maximum, taken.pauses, taken.log_dropped) == (5, 10, 2, 3)
    [entry] = taken.destinations
    assert (entry.active, entry.total, entry.established) == (2, 3, 2)
    assert (entry.bytes_to_upstream, entry.bytes_to_client) == (115, 220)
    assert (entry.listener, entry.destination, entry.name) == (80, "a.example:80", NAME)
    assert [(each.address, each.healthy) for each in entry.upstreams] == [
        ("192.0.2.1", True),
        ("192.0.2.2", False),
    ]


def test_the_state_of_a_port_and_why_it_does_not_serve() -> None:
    paused, failed = Forwarder(81), Forwarder(82, listening=False)
    failed.listener = Listener("failed", "Address already in use")
    pod = Pod(Forwarder(80), paused, failed, Forwarder(83, listening=False))
    pod.paused.add(paused.listener)
    pod.counters.observe(UNRESOLVED)
    assert ports_of(pod) == [
        Port(80, "listening"),
        Port(81, "paused"),
        Port(82, "failed", "Address already in use"),
        Port(83, "refusing", "a.example: no such name"),
    ]


def test_a_port_fails_since_the_last_address_of_its_destination_does() -> None:
    forwarder = Forwarder()
    pod = Pod(forwarder)
    failures = [
        UpstreamFailed(destination=forwarder.name, address=address, error="refused", retry_s=10)
        for address in ("192.0.2.2", "192.0.2.1")
    ]
    pod.counters.observe(failures[0])
    [entry] = asyncio.run(pod.snapshot.take()).destinations
    assert (entry.state, [each.failed_at is None for each in entry.upstreams]) == (
        "listening",
        [True, False],
    )
    between = time.time()
    pod.counters.observe(failures[1])
    forwarder.upstreams.healthy = False
    [entry] = asyncio.run(pod.snapshot.take()).destinations
    assert (entry.state, entry.error) == ("failing", "no address of a.example:80 answers")
    assert entry.since is not None
    assert between <= entry.since <= time.time()
    pod.counters.observe(UpstreamRecovered(destination=forwarder.name, address="192.0.2.1"))
    assert pod.counters.upstream_failed_at.keys() == {(forwarder.name, "192.0.2.2")}


def test_since_when_a_port_is_in_its_state() -> None:
    before = time.time()
    forwarder = Forwarder()
    pod = Pod(forwarder)
    started = asyncio.run(pod.snapshot.take()).started
    assert asyncio.run(pod.snapshot.take()).destinations[0].since == started
    opened = time.time()
    pod.counters.observe(ListenerOpened(listener=80, destination=forwarder.name, addresses=()))
    since = asyncio.run(pod.snapshot.take()).destinations[0].since
    assert since is not None
    assert before <= started <= opened <= since
    pod.paused.add(forwarder.listener)
    assert asyncio.run(pod.snapshot.take()).destinations[0].since is None
    pod.reload(Forwarder(81))
    pod.reload(Forwarder(81))
    assert pod.counters.port_changed_at == {}


def test_why_a_port_refuses() -> None:
    pod = Pod(Forwarder(listening=False))
    assert ports_of(pod) == [Port(80, "refusing", "a.example: not resolved yet")]
    pod.counters.observe(RESOLVED)
    assert ports_of(pod) == [Port(80, "refusing", "its address is now one of the pod's own")]
    pod.sources = (Source(address="192.0.2.99", problem="no interface has it"),)
    assert ports_of(pod) == [Port(80, "refusing", "no source address to reach it from")]


def test_a_removed_destination_is_shown_until_its_last_connection_has_ended() -> None:
    old, new = Forwarder(80, live=Live(active=1, established=1)), Forwarder(81)
    pod = Pod(old)
    pod.counters.observe(closed(80))
    pod.reload(new)
    pod.reload(new)
    assert ports_of(pod) == [Port(80, "removed"), Port(81, "listening")]
    old.origin.live.active = 0
    # One reload later it is dropped.
    pod.reload(new)
    assert ports_of(pod) == [Port(81, "listening")]


def test_a_destination_that_is_removed_and_added_again_is_one() -> None:
    old, new = Forwarder(live=Live(active=1)), Forwarder(live=Live(active=2))
    pod = Pod(old)
    pod.reload(Forwarder(81))
    pod.reload(new)
    taken = asyncio.run(pod.snapshot.take())
    assert [(entry.listener, entry.active) for entry in taken.destinations] == [(80, 3)]


def test_readiness_looks_at_no_connection() -> None:
    pod = Pod(Forwarder(80), Forwarder(81, listening=False))
    pod.counters.observe(ConfigRejected(problems=("line 1",)))
    checks = {check.name: check for check in pod.snapshot.readiness()}
    assert not any(check.problems for check in checks.values())
    assert checks["destinations"].warnings == (
        "port 81 refuses its clients: a.example: not resolved yet",
    )
    assert checks["reload"].warnings == ("line 1",)
    pod.snapshot.draining = True
    assert pod.snapshot.readiness()[0].problems == ("the pod is draining",)
    assert pod.table.walks == 0


@pytest.mark.parametrize(("connections", "destinations"), [(50_000, 1), (0, 1000)])
def test_the_event_loop_turns_while_a_snapshot_is_taken(
    connections: int, destinations: int
) -> None:
    pod = Pod(*(Forwarder(port) for port in range(1, destinations + 1)))
    live = Live()
    pod.table.open = [Connection(live, 1) for _ in range(connections)]

    async def count_turns() -> int:
        taking = asyncio.create_task(pod.snapshot.take())
        turns = 0
        while not taking.done():
            await asyncio.sleep(0)
            turns += 1
        return turns

    # At most 1000 connections or 100 destinations per turn.
    assert asyncio.run(count_turns()) >= connections // 1000 + destinations // 100
    assert live.bytes_to_upstream == connections
