"""Reloads: all or nothing, then everything at once; no port waits for another one's name."""

from __future__ import annotations

import asyncio
import ipaddress
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from egress_proxy.config.destinations import Destination
from egress_proxy.config.settings import read_settings
from egress_proxy.dns.answer import Answer, LookupFailedError
from egress_proxy.errors import PlatformError
from egress_proxy.events import ListenerClosed
from egress_proxy.forwarding.plane import SplicePlane
from egress_proxy.pod.address_monitor import AddressMonitor
from egress_proxy.pod.addresses import ListenPoint
from egress_proxy.run.destination_table import DestinationTable
from egress_proxy.supervisor import Supervisor
from tests.support.peers import Peer
from tests.support.rig import Rig, turns
from tests.support.standalone import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.asyncio

LOOPBACK = ipaddress.ip_address("127.0.0.1")
NAME = "slow.example.com"


class Table:
    """A table on the parts of `rig`; a name is answered once `answers` says so."""

    def __init__(self, rig: Rig) -> None:
        loop = asyncio.get_running_loop()
        self.rig = rig
        self.answers: dict[str, asyncio.Event] = {}
        self.supervisor = Supervisor(loop, rig.recorder)
        settings = read_settings(
            {"EGRESS_DNS_PROXY_DESTINATION": "80 192.0.2.1", "EGRESS_DNS_PROXY_SOURCE": "any"}
        )
        self.table = DestinationTable(
            settings,
            SplicePlane(rig.data_plane),
            AddressMonitor(loop, {}, rig.recorder),
            (ListenPoint(LOOPBACK, ""),),
            self._look_up,
            policy=settings.address_policy,
            supervisor=self.supervisor,
        )

    async def _look_up(self, name: str) -> Answer:
        if name not in self.answers:
            reason = "no such name"
            raise LookupFailedError(reason)
        await self.answers[name].wait()
        return Answer((LOOPBACK,), 300)

    def destination(self, port: int, host: str = "") -> Destination:
        return Destination(port, host or LOOPBACK, self.rig.listener.address[1], 1)

    async def served(self, port: int) -> bool:
        try:
            client = await Peer.connect(("127.0.0.1", port))
        except ConnectionRefusedError:
            return False
        upstream = await self.rig.upstream()
        await client.send(b"ping")
        answer = await upstream.receive(4)
        client.close()
        return bool(answer == b"ping")


@asynccontextmanager
async def a_table() -> AsyncIterator[Table]:
    async with Rig() as rig:
        table = Table(rig)
        try:
            yield table
        finally:
            await table.table.stop()
            await table.supervisor.stop()


async def test_a_port_to_an_address_does_not_wait_for_the_answer_of_another_ports_name() -> None:
    async with a_table() as table:
        changed, added = free_port(), free_port()
        await table.table.change([table.destination(changed)])
        answer = table.answers[NAME] = asyncio.Event()
        reload = asyncio.create_task(
            table.table.change([table.destination(changed, NAME), table.destination(added)])
        )
        await turns(5)
        assert await table.served(added)
        # The changed port keeps its old destination meanwhile.
        assert not reload.done()
        assert str(table.table.forwarders[changed].destination.host) == "127.0.0.1"
        assert await table.served(changed)
        answer.set()
        assert (await reload).changed == (changed,)
        assert table.table.forwarders[changed].destination.host == NAME
        assert await table.served(changed)


async def test_a_port_that_leads_elsewhere_never_closes() -> None:
    async with a_table() as table:
        port = free_port()
        await table.table.change([table.destination(port)])
        table.answers[NAME] = asyncio.Event()
        table.answers[NAME].set()
        await table.table.change([table.destination(port, NAME)])
        await table.table.change([table.destination(port)])
        assert await table.served(port)
        assert not any(isinstance(one, ListenerClosed) for one in table.rig.recorder.records)


async def test_a_rejected_reload_gives_its_ports_and_names_back() -> None:
    async with a_table() as table:
        port, added = free_port(), free_port()
        await table.table.change([table.destination(port)])
        taken = table.rig.port.addresses[0][1]
        with pytest.raises(PlatformError, match="Address already in use"):
            await table.table.change(
                [
                    table.destination(port, NAME),
                    table.destination(added, "new.example.com"),
                    table.destination(taken),
                ]
            )
        assert table.table.forwarders.keys() == {port}
        assert table.table.refreshers == {}
        assert await table.served(port)
        await table.table.change([table.destination(port), table.destination(added)])
        assert await table.served(added)


async def test_waiting_for_first_answers_ends_when_the_name_is_dropped() -> None:
    async with a_table() as table:
        port = free_port()
        table.answers[NAME] = asyncio.Event()
        await table.table.change([table.destination(port, NAME)])
        asked = asyncio.create_task(table.table.asked())
        await turns(3)
        assert not asked.done()
        await table.table.change([table.destination(port)])
        async with asyncio.timeout(10):
            await asked
