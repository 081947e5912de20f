"""Which of several addresses a client gets, in which time, and what is learnt from it."""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from time import monotonic
from typing import TYPE_CHECKING

import pytest

from egress_proxy.events import Reason, UpstreamFailed, UpstreamRecovered
from egress_proxy.forwarding.health_checks import HealthChecks
from egress_proxy.forwarding.race import ATTEMPT_DELAY_S
from egress_proxy.forwarding.upstreams import PENALTY_S
from tests.support.peers import Listener, Peer
from tests.support.rig import Rig, turns

if TYPE_CHECKING:
    import socket

pytestmark = pytest.mark.asyncio

GOOD, REFUSING, SILENT, ALSO_GOOD = (
    ipaddress.ip_address(f"127.0.0.{number}") for number in range(1, 5)
)


class FullBacklog:
    """Listens on `address` and the rig's port, and answers no SYN but the first."""

    def __init__(self, rig: Rig, address: object) -> None:
        self._listener = Listener(str(address), backlog=0, port=rig.listener.address[1])
        self._filler: socket.socket | None = None

    async def __aenter__(self) -> Listener:
        self._filler = (await Peer.connect(self._listener.address)).sock
        return self._listener

    async def __aexit__(self, *_: object) -> None:
        assert self._filler is not None
        self._filler.close()
        self._listener.close()


async def serve(rig: Rig) -> None:
    """Serve one client to its end."""
    client, upstream = await rig.pair()
    await client.send(b"once")
    assert await upstream.receive(4) == b"once"
    client.finish()
    # Nothing comes twice, whatever was tried meanwhile.
    assert await upstream.receive_all() == (b"", False)
    upstream.close()
    assert await client.receive_all() == (b"", False)


async def test_a_client_is_served_past_a_silent_and_a_refusing_address() -> None:
    async with Rig() as rig, FullBacklog(rig, SILENT):
        rig.forwarder.set_addresses((GOOD, REFUSING, SILENT))
        for _ in range(20):
            await serve(rig)
        records = await rig.recorder.wait_closed(20)
        assert {record.reason for record in records} == {Reason.FINISHED}
        slow = [record for record in records if (record.connect_s or 0) >= ATTEMPT_DELAY_S / 2]
        assert len(slow) == 1
        assert sum(record.attempts for record in records) == 22
        failed = [each for each in rig.recorder.records if isinstance(each, UpstreamFailed)]
        assert sorted((each.address, each.error) for each in failed) == [
            (str(REFUSING), "Connection refused"),
            (str(SILENT), "silent while another address answered"),
        ]
        assert {each.retry_s for each in failed} == {PENALTY_S}


async def test_healthy_addresses_are_tried_once_a_client_and_in_turn() -> None:
    async with Rig() as rig:
        also = Listener(str(ALSO_GOOD), port=rig.listener.address[1])
        try:
            rig.forwarder.set_addresses((GOOD, ALSO_GOOD))
            clients = [await rig.client() for _ in range(10)]
            upstreams = [await listener.accept() for listener in 5 * (rig.listener, also)]
            for peer in (*upstreams, *clients):
                peer.reset()
            records = await rig.recorder.wait_closed(10)
        finally:
            also.close()
        assert [record.attempts for record in records] == 10 * [1]
        assert Counter((record.address or ("",))[0] for record in records) == {
            str(GOOD): 5,
            str(ALSO_GOOD): 5,
        }


async def test_no_more_than_three_attempts_run_at_once() -> None:
    async with Rig(connect_timeout_s=1.5) as rig:
        rig.listener.close()
        silent = [ipaddress.ip_address(f"127.0.1.{number}") for number in range(1, 7)]
        async with asyncio.timeout(10):
            backlogs = [FullBacklog(rig, address) for address in silent]
            for backlog in backlogs:
                await backlog.__aenter__()
            rig.forwarder.set_addresses(silent)
            client = await rig.client()
            while not rig.racing:
                await turns()
            most = 0
            while rig.connections:
                most = max(most, 1 + rig.extra_attempts)
                await turns()
            ended_at = monotonic()
            assert await client.receive_all() == (b"", True)
            (record,) = await rig.recorder.wait_closed()
            for backlog in backlogs:
                await backlog.__aexit__()
        assert record.reason is Reason.CONNECT_TIMEOUT
        assert record.attempts >= 4
        assert most == 3
        # A penalty begins when it is given, however long nothing has happened before.
        last = max(endpoint.failed_until for endpoint in rig.forwarder.upstreams.endpoints)
        assert last == pytest.approx(ended_at + PENALTY_S, abs=0.5)


async def test_established_connections_are_untouched_by_a_change() -> None:
    async with Rig() as rig:
        client, upstream = await rig.pair()
        rig.forwarder.set_addresses((ALSO_GOOD,))
        await client.send(b"still here")
        assert await upstream.receive(10) == b"still here"
        await upstream.send(b"so am I")
        assert await client.receive(7) == b"so am I"


async def test_checks_find_a_failure_before_a_client_does() -> None:
    async with Rig() as rig:
        rig.forwarder.set_addresses((GOOD, REFUSING))
        checks = HealthChecks(
            rig.data_plane.connector, lambda: [rig.forwarder.upstreams], interval_s=0.01
        )
        running = asyncio.create_task(checks.run())
        try:
            await rig.recorder.wait_for(UpstreamFailed)
            clients = [await rig.client() for _ in range(4)]
            while sum(each.address is not None for each in rig.connections) < len(clients):
                await turns()
            rig.abort_all()
            records = await rig.recorder.wait_closed(4)
            assert [(record.attempts, record.connect_s is None) for record in records] == 4 * [
                (1, False)
            ]
            back = Listener(str(REFUSING), port=rig.listener.address[1])
            try:
                await rig.recorder.wait_for(UpstreamRecovered)
            finally:
                back.close()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def test_a_check_ends_with_a_reset_and_leaves_no_time_wait() -> None:
    async with Rig() as rig:
        rig.forwarder.set_addresses((GOOD, REFUSING))
        checks = HealthChecks(
            rig.data_plane.connector, lambda: [rig.forwarder.upstreams], interval_s=0.01
        )
        running = asyncio.create_task(checks.run())
        checked = await rig.upstream()
        assert await checked.receive_all() == (b"", True)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_lone_address_is_not_checked() -> None:
    async with Rig() as rig:
        rig.forwarder.set_addresses((REFUSING,))
        checks = HealthChecks(
            rig.data_plane.connector, lambda: [rig.forwarder.upstreams], interval_s=0.01
        )
        running = asyncio.create_task(checks.run())
        await asyncio.wait({running}, timeout=0.1)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert not any(isinstance(each, UpstreamFailed) for each in rig.recorder.records)
