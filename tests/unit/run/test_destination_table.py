"""The table of destinations, without a kernel and in simulated time."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, NoReturn

import pytest

from egress_proxy.config.destinations import Destination
from egress_proxy.config.settings import read_settings
from egress_proxy.dns.answer import Answer, LookupFailedError
from egress_proxy.errors import PlatformError
from egress_proxy.events import DestinationDenied, ListenerClosed, ListenerOpened
from egress_proxy.forwarding.plane import SplicePlane
from egress_proxy.pod.address_monitor import AddressMonitor
from egress_proxy.run.destination_table import DestinationTable
from egress_proxy.supervisor import Supervisor
from tests.support.manual_loop import run_simulated
from tests.support.sockets import FakePoint, FakeSocket, Plane

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from egress_proxy.forwarding.connection import Connection
    from egress_proxy.ip import Address

POD = ip_address("192.0.2.10")
REMOTE, OTHER = map(ip_address, ("203.0.113.1", "203.0.113.2"))
NAME, ANOTHER = "a.example.com", "b.example.com"


class Table:
    """A table; a name has the addresses in `zone`, or its look-up hangs without an entry."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.plane = Plane(timers=loop)
        self.splice = SplicePlane(self.plane.plane)
        self.point = FakePoint(POD)
        self.supervisor = Supervisor(loop, self.plane)
        self.zone: dict[str, tuple[Address, ...]] = {NAME: (REMOTE,)}
        self.asked: list[str] = []
        settings = read_settings({"EGRESS_DNS_PROXY_DESTINATION": "1 192.0.2.1"})
        self.table = DestinationTable(
            settings,
            self.splice,
            AddressMonitor(loop, {}, self.plane),
            (self.point.real,),
            self._look_up,
            policy=replace(settings.address_policy, listening=frozenset({9153})),
            supervisor=self.supervisor,
        )

    async def _look_up(self, name: str) -> Answer:
        self.asked.append(name)
        if name not in self.zone:
            await asyncio.Event().wait()
        if not self.zone[name]:
            reason = "no such name"
            raise LookupFailedError(reason)
        return Answer(self.zone[name], 300)

    async def change(self, *destinations: Destination) -> tuple[object, ...]:
        """What a reload says of the ports: added, changed, removed, and how many are unchanged."""
        changes = await self.table.change(destinations)
        return changes.added, changes.changed, changes.removed, changes.unchanged

    def states(self) -> dict[int, str]:
        return {port: one.listener.state for port, one in self.table.forwarders.items()}

    def leads_to(self, port: int) -> list[str]:
        return [address for address, _ in self.table.forwarders[port].upstreams.health()]

    def client(self, port: int) -> FakeSocket:
        client = FakeSocket()
        self.table.forwarders[port].serve(client.real, ("198.51.100.1", 40000))
        return client


def to(port: int, host: object, line: int = 1) -> Destination:
    return Destination(port, host, 8080, line)  # type: ignore[arg-type] # an address or a name


@asynccontextmanager
async def a_table() -> AsyncIterator[Table]:
    table = Table()
    try:
        yield table
    finally:
        await table.table.stop()
        await table.supervisor.stop()
        assert all(sock.closed for sock in table.point.sockets.values())


def simulated(test: Callable[[Table], Awaitable[None]]) -> Callable[[], None]:
    async def run() -> None:
        async with a_table() as table:
            await test(table)

    def call() -> None:
        run_simulated(run())

    call.__doc__ = test.__doc__
    return call


@simulated
async def test_a_reload_reports_what_changed(table: Table) -> None:
    assert await table.change(to(80, REMOTE), to(443, REMOTE)) == ((80, 443), (), (), 0)
    kept = table.table.forwarders[80]
    assert await table.change(to(81, REMOTE), to(80, REMOTE), to(443, OTHER)) == (
        (81,),
        (443,),
        (),
        1,
    )
    assert await table.change(to(80, REMOTE, line=7)) == ((), (), (443, 81), 1)
    # What stays is not touched, wherever it is written.
    assert table.table.forwarders == {80: kept}
    assert table.point.sockets[443].closed


@simulated
async def test_a_changed_port_is_never_closed(table: Table) -> None:
    await table.change(to(80, REMOTE))
    sock = table.point.sockets[80]
    await table.change(to(80, OTHER))
    await table.change(to(80, NAME))
    assert table.point.sockets[80] is sock
    assert sock.listening
    assert [type(record) for record in table.plane.records].count(ListenerClosed) == 0


@simulated
async def test_all_problems_are_reported_and_no_port_is_kept(table: Table) -> None:
    await table.change(to(80, REMOTE))
    table.point.taken |= {443, 444}
    with pytest.raises(PlatformError) as caught:
        await table.change(
            to(80, ip_address("127.0.0.1"), 1),
            to(81, REMOTE, 2),
            to(443, NAME, 3),
            to(444, REMOTE, 4),
        )
    assert [(problem.line, problem.value) for problem in caught.value.problems] == [
        (1, "127.0.0.1:8080"),
        (3, "443"),
        (4, "444"),
    ]
    assert table.states() == {80: "listening"}
    assert table.leads_to(80) == [str(REMOTE)]
    assert table.point.sockets[81].closed
    assert table.table.refreshers == {}


@simulated
async def test_a_rejected_reload_leaves_no_name_behind(table: Table) -> None:
    await table.change(to(80, REMOTE))
    table.point.taken.add(443)
    with pytest.raises(PlatformError, match="Address already in use"):
        await table.change(to(80, NAME), to(8080, REMOTE), to(443, REMOTE))
    assert table.table.refreshers == {}
    assert table.table.forwarders.keys() == {80}


@simulated
async def test_later_answers_are_judged_without_the_ports_of_a_rejected_reload(
    table: Table,
) -> None:
    table.zone[NAME] = (POD,)
    table.table.set_own_addresses(frozenset({POD}))
    await table.change(to(80, NAME))
    await table.table.asked()
    table.point.taken.add(443)
    with pytest.raises(PlatformError, match="Address already in use"):
        await table.change(to(80, NAME), to(8080, REMOTE), to(443, REMOTE))
    # The answer is good for 300 s.
    await asyncio.sleep(400)
    assert table.asked == [NAME, NAME]
    assert table.states() == {80: "listening"}


@simulated
async def test_a_reload_that_ends_in_a_defect_keeps_no_port(table: Table) -> None:
    await table.change(to(80, REMOTE))

    def fail(*_: object) -> NoReturn:
        raise MemoryError

    table.supervisor.spawn = fail  # type: ignore[assignment,method-assign] # after the ports are taken
    with pytest.raises(MemoryError):
        await table.change(to(80, ANOTHER), to(8080, REMOTE))
    assert table.point.sockets[8080].closed
    assert table.states() == {80: "listening"}


@simulated
async def test_nothing_waits_for_the_first_answer_of_a_name_that_is_removed(table: Table) -> None:
    await table.change(to(80, REMOTE), to(8080, ANOTHER))
    waiting = asyncio.create_task(table.table.asked())
    await asyncio.sleep(0)
    await table.change(to(80, REMOTE))
    async with asyncio.timeout(1):
        await waiting


@simulated
async def test_a_port_of_a_rejected_reload_is_not_one_of_our_own_listeners(table: Table) -> None:
    table.table.set_own_addresses(frozenset({POD}))
    await table.change(to(80, POD))
    table.point.taken.add(443)
    with pytest.raises(PlatformError, match="Address already in use"):
        await table.change(to(80, POD), to(8080, REMOTE), to(443, REMOTE))
    # Had port 8080 been put in force, port 80 would lead back to the pod.
    table.table.set_own_addresses(frozenset({POD, OTHER}))
    assert table.states() == {80: "listening"}


@simulated
async def test_a_reload_takes_the_port_that_a_name_leads_to(table: Table) -> None:
    table.zone[NAME] = (POD,)
    table.table.set_own_addresses(frozenset({POD}))
    await table.change(to(80, NAME))
    await table.table.asked()
    assert table.states() == {80: "listening"}
    await table.change(to(80, NAME), to(8080, REMOTE))
    assert table.states() == {80: "refusing", 8080: "listening"}


@simulated
async def test_a_destination_that_is_one_of_our_own_listeners_is_refused(table: Table) -> None:
    table.table.set_own_addresses(frozenset({POD}))
    with pytest.raises(PlatformError, match="one of the proxy's own listeners"):
        await table.change(to(80, POD), to(8080, REMOTE))
    assert table.table.forwarders == {}


@simulated
async def test_the_pod_gets_the_address_of_a_remote_and_loses_it_again(table: Table) -> None:
    await table.change(to(80, REMOTE), to(8080, OTHER))
    table.plane.take_records()
    table.table.set_own_addresses(frozenset({POD, REMOTE}))
    assert table.states() == {80: "refusing", 8080: "listening"}
    reason = "one of the proxy's own listeners"
    denied = DestinationDenied(destination=f"{REMOTE}:8080", address=str(REMOTE), error=reason)
    assert table.plane.take_records()[0] == denied
    table.table.set_own_addresses(frozenset({POD}))
    assert table.states() == {80: "listening", 8080: "listening"}
    assert [type(record) for record in table.plane.take_records()] == [ListenerOpened]


@simulated
async def test_ports_of_one_name_share_one_look_up_until_the_last_is_removed(table: Table) -> None:
    await table.change(to(80, NAME), to(443, NAME))
    await table.table.asked()
    assert (table.asked, table.leads_to(80), table.leads_to(443)) == (
        [NAME],
        [str(REMOTE)],
        [str(REMOTE)],
    )
    await table.change(to(80, NAME))
    assert set(table.table.refreshers) == {NAME}
    await table.change(to(81, REMOTE))
    assert table.table.refreshers == {}
    # Nothing asks for it any more, however long one waits.
    await asyncio.sleep(3600)
    assert table.asked == [NAME]


@simulated
async def test_a_port_without_an_answer_refuses_and_opens_with_the_first(table: Table) -> None:
    table.zone[ANOTHER] = ()
    await table.change(to(80, ANOTHER), to(443, NAME))
    await table.table.asked()
    assert table.states() == {80: "refusing", 443: "listening"}
    table.zone[ANOTHER] = (OTHER,)
    await asyncio.sleep(3)
    assert table.states() == {80: "listening", 443: "listening"}


@simulated
async def test_a_changed_port_keeps_its_old_destination_until_its_name_is_answered(
    table: Table,
) -> None:
    await table.change(to(80, REMOTE))
    began = asyncio.get_running_loop().time()
    reload = asyncio.create_task(table.change(to(80, ANOTHER), to(81, OTHER)))
    await asyncio.sleep(9)
    assert not reload.done()
    assert (table.leads_to(80), table.leads_to(81)) == ([str(REMOTE)], [str(OTHER)])
    # A name without an answer delays nothing for longer than a look-up may take.
    assert await reload == ((81,), (80,), (), 0)
    assert asyncio.get_running_loop().time() - began == pytest.approx(10)
    assert table.states() == {80: "refusing", 81: "listening"}


@simulated
async def test_without_a_source_no_port_accepts_clients(table: Table) -> None:
    await table.change(to(80, REMOTE), to(443, NAME))
    await table.table.asked()
    table.table.reach(frozenset({socket.AF_INET6}))
    assert table.states() == {80: "refusing", 443: "refusing"}
    table.table.reach(frozenset({socket.AF_INET}))
    assert table.states() == {80: "listening", 443: "listening"}


@simulated
async def test_the_source_port_is_recorded_from_now_on(table: Table) -> None:
    await table.change(to(80, REMOTE))
    table.table.record_source_port(wanted=True)
    await table.change(to(80, REMOTE), to(81, REMOTE))
    assert {one.origin.limits.record_source_port for one in table.table.forwarders.values()} == {
        True
    }


@simulated
async def test_sessions_of_a_removed_port_go_on(table: Table) -> None:
    await table.change(to(80, REMOTE), to(81, REMOTE))
    clients = [table.client(80), table.client(81)]
    await table.change(to(81, REMOTE))
    held: list[Connection] = list(await table.splice.sessions())
    assert sorted(connection.origin.destination.port for connection in held) == [80, 81]
    assert [client.closed for client in clients] == [False, False]


@simulated
async def test_everything_is_released_at_the_end(table: Table) -> None:
    await table.change(to(80, REMOTE), to(443, NAME))
    table.table.close()
    assert table.states() == {80: "refusing", 443: "refusing"}
    assert all(sock.closed for sock in table.point.sockets.values())
