"""What is said of a source address, and when; the interfaces are made up."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from egress_proxy.events import Record, SourceLost, SourceRestored
from egress_proxy.pod.address_monitor import Ground

if TYPE_CHECKING:
    from egress_proxy.ip import Address
    from egress_proxy.pod.addresses import Interfaces

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
        self.records: list[Record] = []
        self.changes = 0

    def look(self) -> tuple[Interfaces, frozenset[str]]:
        return dict(self.interfaces), self.down

    def observe(self, record: Record) -> None:
        self.records.append(record)

    def changed(self) -> None:
        self.changes += 1


def ground_on(surroundings: Surroundings, sources: dict[int, str]) -> Ground:
    loop = asyncio.new_event_loop()
    loop.close()
    ground = Ground(loop, sources, surroundings, surroundings.look)
    ground.on_change = surroundings.changed
    return ground


def test_one_family_of_two_goes_and_comes_back() -> None:
    around = Surroundings()
    ground = ground_on(around, dict(BOTH))
    ground.examine()
    assert (around.records, around.changes) == ([], 0)
    around.interfaces["net1"] = (ip_address(V4),)
    ground.examine()
    ground.examine()
    assert ground.families == {socket.AF_INET}
    assert around.records == [SourceLost(address=V6, error="no interface has it")]
    around.interfaces["net1"] = (ip_address(V4), ip_address(V6))
    ground.examine()
    assert ground.families == set(BOTH)
    assert around.records[1:] == [SourceRestored(address=V6)]
    assert around.changes == 2


def test_another_address_is_no_replacement() -> None:
    around = Surroundings()
    ground = ground_on(around, {socket.AF_INET: V4})
    around.interfaces["net1"] = (ip_address("192.0.2.98"),)
    ground.examine()
    assert ground.families == frozenset()
    assert [source.problem for source in ground.sources] == ["no interface has it"]


@pytest.mark.parametrize(
    ("elsewhere", "problem"), [((), "interface net1 is down"), ((ip_address(V4),), "")]
)
def test_an_interface_that_is_down_does_unless_another_has_the_address(
    elsewhere: tuple[Address, ...], problem: str
) -> None:
    around = Surroundings()
    around.interfaces["lo"] = elsewhere
    around.down = frozenset({"net1"})
    ground = ground_on(around, {socket.AF_INET: V4})
    ground.examine()
    assert [source.problem for source in ground.sources] == [problem]


def test_where_the_kernel_chooses_there_is_nothing_to_lose() -> None:
    around = Surroundings()
    around.interfaces.clear()
    ground = ground_on(around, {})
    ground.examine()
    assert ground.families == set(BOTH)
    assert (ground.sources, around.records) == ((), [])


@pytest.mark.parametrize("sources", [BOTH, {}], ids=["fixed", "the kernel's choice"])
def test_every_address_of_the_pod_is_told_when_it_comes_and_goes(sources: dict[int, str]) -> None:
    around = Surroundings()
    told: list[set[str]] = []
    ground = ground_on(around, dict(sources))
    ground.on_own = lambda own: told.append(set(map(str, own)))
    ground.examine()
    around.down = frozenset({"lo"})
    ground.examine()
    around.interfaces["net2"] = (ip_address("192.0.2.77"),)
    ground.examine()
    del around.interfaces["net2"]
    ground.examine()
    assert told == [{V4, V6}, {V4, V6, "192.0.2.77"}, {V4, V6}]
