"""What is said of a source address, and when; the interfaces are made up."""

from __future__ import annotations

import asyncio
import errno
import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from egress_proxy.events import Event, SourceLost, SourceRestored
from egress_proxy.pod.address_monitor import AddressMonitor
from egress_proxy.pod.addresses import InterfaceState
from tests.support.manual_loop import run_simulated

if TYPE_CHECKING:
    from egress_proxy.ip import Address

V4, V6 = "192.0.2.99", "2001:db8::99"
BOTH: dict[int, str] = {socket.AF_INET: V4, socket.AF_INET6: V6}


class Surroundings:
    """Interfaces that a test changes, and what was heard of it."""

    def __init__(self) -> None:
        self.interfaces: dict[str, tuple[Address, ...]] = {
            "net1": (ip_address(V4), ip_address(V6)),
            "lo": (),
        }
        self.down: frozenset[str] = frozenset()
        self.reserved: frozenset[Address] = frozenset()
        self.records: list[Event] = []
        self.changes = 0

    def look(self) -> InterfaceState:
        return InterfaceState(dict(self.interfaces), self.down, self.reserved)

    def observe(self, record: Event) -> None:
        self.records.append(record)

    def changed(self) -> None:
        self.changes += 1


def ground_on(surroundings: Surroundings, sources: dict[int, str]) -> AddressMonitor:
    loop = asyncio.new_event_loop()
    loop.close()
    address_monitor = AddressMonitor(loop, sources, surroundings, surroundings.look)
    address_monitor.on_change = surroundings.changed
    return address_monitor


def test_one_family_of_two_goes_and_comes_back() -> None:
    around = Surroundings()
    address_monitor = ground_on(around, dict(BOTH))
    address_monitor.refresh()
    assert (around.records, around.changes) == ([], 0)
    around.interfaces["net1"] = (ip_address(V4),)
    address_monitor.refresh()
    address_monitor.refresh()
    assert address_monitor.families == {socket.AF_INET}
    assert around.records == [SourceLost(address=V6, error="no interface has it")]
    around.interfaces["net1"] = (ip_address(V4), ip_address(V6))
    address_monitor.refresh()
    assert address_monitor.families == set(BOTH)
    assert around.records[1:] == [SourceRestored(address=V6)]
    assert around.changes == 2


def test_another_netmask_of_an_address_that_stays_is_reported() -> None:
    around = Surroundings()
    address_monitor = ground_on(around, {})
    heard: list[frozenset[Address]] = []
    address_monitor.on_addresses_changed = lambda _: heard.append(address_monitor.reserved)
    around.reserved = frozenset({ip_address("192.0.2.127")})
    address_monitor.refresh()
    around.reserved = frozenset({ip_address("192.0.2.255")})
    address_monitor.refresh()
    address_monitor.refresh()
    assert heard == [{ip_address("192.0.2.127")}, {ip_address("192.0.2.255")}]


def test_another_address_is_no_replacement() -> None:
    around = Surroundings()
    address_monitor = ground_on(around, {socket.AF_INET: V4})
    around.interfaces["net1"] = (ip_address("192.0.2.98"),)
    address_monitor.refresh()
    assert address_monitor.families == frozenset()
    assert [source.problem for source in address_monitor.sources] == ["no interface has it"]


@pytest.mark.parametrize(
    ("elsewhere", "problem"), [((), "interface net1 is down"), ((ip_address(V4),), "")]
)
def test_an_interface_that_is_down_does_unless_another_has_the_address(
    elsewhere: tuple[Address, ...], problem: str
) -> None:
    around = Surroundings()
    around.interfaces["lo"] = elsewhere
    around.down = frozenset({"net1"})
    address_monitor = ground_on(around, {socket.AF_INET: V4})
    address_monitor.refresh()
    assert [source.problem for source in address_monitor.sources] == [problem]


def test_where_the_kernel_chooses_there_is_nothing_to_lose() -> None:
    around = Surroundings()
    around.interfaces.clear()
    address_monitor = ground_on(around, {})
    address_monitor.refresh()
    assert address_monitor.families == set(BOTH)
    assert (address_monitor.sources, around.records) == ((), [])


@pytest.mark.parametrize("sources", [BOTH, {}], ids=["fixed", "the kernel's choice"])
def test_every_address_of_the_pod_is_reported_when_it_comes_and_goes(
    sources: dict[int, str],
) -> None:
    around = Surroundings()
    told: list[set[str]] = []
    address_monitor = ground_on(around, dict(sources))
    address_monitor.on_addresses_changed = lambda own: told.append(set(map(str, own)))
    address_monitor.refresh()
    around.down = frozenset({"lo"})
    address_monitor.refresh()
    around.interfaces["net2"] = (ip_address("192.0.2.77"),)
    address_monitor.refresh()
    del around.interfaces["net2"]
    address_monitor.refresh()
    assert told == [{V4, V6}, {V4, V6, "192.0.2.77"}, {V4, V6}]


def test_a_state_that_can_not_be_read_is_read_again_without_another_message() -> None:
    around = Surroundings()
    failures = [OSError(errno.EMFILE, "Too many open files")]

    def look() -> InterfaceState:
        if failures:
            raise failures.pop()
        return around.look()

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        monitor = AddressMonitor(loop, {socket.AF_INET: V4}, around, look)
        around.interfaces.clear()
        monitor._refresh_or_retry()
        assert monitor.families == {socket.AF_INET}
        await asyncio.sleep(1.1)
        assert monitor.families == frozenset()
        monitor.stop()

    run_simulated(scenario())
