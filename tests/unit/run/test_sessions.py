"""The list of sessions: which, in which order, and turns of the event loop while it is made."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import pytest

from egress_proxy.config.destinations import Destination
from egress_proxy.run.sessions import list_sessions
from egress_proxy.telemetry.sessions import Order, Query, Session

if TYPE_CHECKING:
    from egress_proxy.telemetry.sessions import SessionList

NOW = 100_000.0


@dataclass(frozen=True)
class Origin:
    destination: Destination

    @property
    def name(self) -> str:
        return str(self.destination)


@dataclass
class Connection:
    port: int = 80
    accepted_at: float = NOW
    touched: float = NOW
    relayed: tuple[int, int] = (0, 0)
    address: tuple[str, int] | None = None
    closed: bool = False

    @property
    def origin(self) -> Origin:
        return Origin(Destination(port=self.port, host="a.example", remote_port=443, line=1))

    @property
    def client_address(self) -> tuple[str, int, int, int]:
        return "2001:db8::7", 40000, 0, 0


def found(query: Query, *connections: Connection) -> SessionList:
    return asyncio.run(list_sessions(cast("Any", connections), query, lambda: NOW))


def test_the_fields_of_a_session() -> None:
    connection = Connection(
        accepted_at=NOW - 600, touched=NOW - 0.5, relayed=(1, 2), address=("192.0.2.1", 443)
    )
    listed = found(Query(), connection)
    assert listed.total == 1
    assert listed.sessions == (
        Session(
            listener=80,
            destination="a.example:443",
            client="[2001:db8::7]:40000",
            address="192.0.2.1:443",
            age_s=600.0,
            idle_s=0.5,
            bytes_to_upstream=1,
            bytes_to_client=2,
        ),
    )


@pytest.mark.parametrize(
    ("sort", "ages"), [("age", [30.0, 20.0]), ("idle", [10.0, 30.0]), ("bytes", [20.0, 10.0])]
)
def test_the_largest_come_first(sort: Order, ages: list[float]) -> None:
    connections = (
        Connection(accepted_at=NOW - 10, touched=NOW - 9, relayed=(5, 5)),
        Connection(accepted_at=NOW - 30, touched=NOW - 8, relayed=(0, 5)),
        Connection(accepted_at=NOW - 20, touched=NOW - 1, relayed=(0, 50)),
        Connection(port=81, accepted_at=0, touched=0, relayed=(999, 999)),
    )
    listed = found(Query(listener=80, limit=2, sort=sort), *connections)
    assert listed.total == 3
    assert [session.age_s for session in listed.sessions] == ages


def test_one_that_has_ended_meanwhile_is_left_out() -> None:
    assert found(Query(), Connection(closed=True)).sessions == ()


def test_the_event_loop_turns_while_many_are_looked_at() -> None:
    connections = [Connection(accepted_at=NOW - number) for number in range(50_000)]

    async def count_turns() -> int:
        listing = asyncio.create_task(
            list_sessions(cast("Any", connections), Query(limit=3), lambda: NOW)
        )
        turns = 0
        while not listing.done():
            await asyncio.sleep(0)
            turns += 1
        assert [session.age_s for session in listing.result().sessions] == [49999, 49998, 49997]
        return turns

    assert asyncio.run(count_turns()) >= 50
