"""What the metrics say is what the records say, whatever happens to connections."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections import Counter
from contextlib import closing
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from egress_proxy.config.settings import read_settings
from egress_proxy.events import ConnectionClosed, Reason, UpstreamRecovered
from egress_proxy.forwarding.plane import SplicePlane
from egress_proxy.pod.address_monitor import AddressMonitor
from egress_proxy.run.destination_table import DestinationTable
from egress_proxy.run.snapshot import Snapshot
from egress_proxy.supervisor import Supervisor
from egress_proxy.telemetry.counters import Counters
from egress_proxy.telemetry.metrics import exposition
from tests.support.peers import Listener
from tests.support.rig import Rig

if TYPE_CHECKING:
    from egress_proxy.dns.answer import Answer
    from egress_proxy.events import Event

pytestmark = pytest.mark.asyncio

SAMPLE = re.compile(r"^egress_proxy_(\w+)\{(.*)\} (\S+)$", re.MULTILINE)


class Board:
    """A snapshot of `rig`, and the records that went by."""

    def __init__(self, rig: Rig) -> None:
        plane = rig.data_plane
        self.records: list[ConnectionClosed] = []
        self._counters = Counters()
        self._inner = plane.observer
        object.__setattr__(plane, "observer", self)
        rig.forwarder.upstreams.observer = self
        settings = read_settings({"EGRESS_DNS_PROXY_DESTINATION": "80 192.0.2.1"})
        loop = asyncio.get_running_loop()
        address_monitor = AddressMonitor(loop, {}, self)
        supervisor = Supervisor(loop, self)
        table = DestinationTable(
            settings,
            SplicePlane(plane),
            address_monitor,
            (),
            _no_answer,
            policy=settings.address_policy,
            supervisor=supervisor,
        )
        table.forwarders[0] = rig.forwarder
        self.snapshot = Snapshot(
            settings,
            SplicePlane(plane),
            address_monitor,
            table,
            supervisor=supervisor,
            counters=self._counters,
            log=_Log(),
        )

    def observe(self, record: Event) -> None:
        self._inner.observe(record)
        self._counters.observe(record)
        if isinstance(record, ConnectionClosed):
            self.records.append(record)

    async def metrics(self, name: str, label: str) -> dict[str, float]:
        """The values of a metric that are not zero, by one of its labels."""
        found = {}
        text = b"".join(exposition(await self.snapshot.take())).decode()
        for metric, labels, value in SAMPLE.findall(text):
            told = re.search(rf'{label}="([^"]*)"', labels)
            if metric == name and told and float(value):
                found[told[1]] = float(value)
        return found


class _Log:
    debug = False
    dropped = 0


async def _no_answer(name: str) -> Answer:
    raise NotImplementedError(name)


async def test_after_a_mixed_load_the_metrics_are_the_sum_of_the_records() -> None:
    async with Rig() as rig:
        board = Board(rig)
        dice = random.Random(6)  # noqa: S311 - the same in each run is what a test wants
        count = 60
        for number in range(count):
            client, upstream = await rig.pair()
            up, down = dice.randrange(5000), dice.randrange(5000)
            await client.send(b"u" * up)
            await upstream.send(b"d" * down)
            assert len(await upstream.receive(up)) == up
            assert len(await client.receive(down)) == down
            if number % 3 == 0:
                client.reset()
            elif number % 3 == 1:
                upstream.reset()
            else:
                client.finish()
                upstream.finish()
        rig.listener.close()
        refused = 5
        for _ in range(refused):
            # Perhaps before the client even knows that it is connected.
            with contextlib.suppress(ConnectionResetError):
                await rig.client()
        await rig.recorder.wait_closed(count + refused)

        records = board.records
        reasons = Counter(str(record.reason) for record in records)
        # And some without an upstream, in whatever way that showed.
        assert reasons.keys() > {Reason.FINISHED, Reason.CLIENT_RESET, Reason.UPSTREAM_RESET}
        assert await board.metrics("connections_total", "reason") == reasons
        assert await board.metrics("bytes_total", "direction") == {
            "to_upstream": sum(record.bytes_to_upstream or 0 for record in records),
            "to_client": sum(record.bytes_to_client or 0 for record in records),
        }
        assert await board.metrics("connections_active", "destination") == {}
        assert await board.metrics("connections_established_total", "listener") == {"0": count}
        assert await board.metrics("connect_duration_seconds_count", "listener") == {"0": count}


async def test_a_session_is_established_while_it_runs_and_a_failed_one_never() -> None:
    async with Rig() as rig:
        board = Board(rig)
        client, _ = await rig.pair()
        assert await board.metrics("connections_established_total", "listener") == {"0": 1}
        rig.listener.close()
        with contextlib.suppress(ConnectionResetError):
            await rig.client()
        await rig.recorder.wait_closed(1)
        assert await board.metrics("connections_established_total", "listener") == {"0": 1}
        client.reset()
        await rig.recorder.wait_closed(2)
        assert await board.metrics("connections_established_total", "listener") == {"0": 1}


async def test_an_address_counts_as_failed_until_it_answers() -> None:
    async with Rig() as rig:
        board = Board(rig)
        destination, port = rig.forwarder.name, rig.listener.address[1]
        rig.forwarder.set_addresses((ip_address("127.0.0.1"), ip_address("127.0.0.2")))
        for _ in range(4):
            await rig.pair()
        assert await board.metrics("upstream_failures_total", "destination") == {destination: 1}
        assert await board.metrics("upstream_addresses_failed", "destination") == {destination: 1}
        [failed] = [each for each in rig.forwarder.upstreams.endpoints if each.failed_until]
        # Its penalty is over, and no client has tried it yet.
        failed.failed_until = 1.0
        assert await board.metrics("upstream_addresses_failed", "destination") == {destination: 1}
        with closing(Listener(str(failed.address), port=port)):
            for _ in range(2):
                await rig.client()
            await rig.recorder.wait_for(UpstreamRecovered)
        assert await board.metrics("upstream_addresses_failed", "destination") == {}
        assert await board.metrics("upstream_failures_total", "destination") == {destination: 1}


async def test_octets_count_while_their_connection_still_runs() -> None:
    async with Rig() as rig:
        board = Board(rig)
        client, upstream = await rig.pair()
        await client.send(b"12345")
        assert await upstream.receive(5) == b"12345"
        assert await board.metrics("bytes_total", "direction") == {"to_upstream": 5}
        assert list((await board.metrics("connections_active", "destination")).values()) == [1]
        client.finish()
        upstream.finish()
        await rig.recorder.wait_closed()
        assert await board.metrics("bytes_total", "direction") == {"to_upstream": 5}
        assert await board.metrics("connections_active", "destination") == {}
