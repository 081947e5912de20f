"""Finds the open sessions that an operator asks for."""

from __future__ import annotations

import asyncio
import heapq
from itertools import islice
from math import inf
from typing import TYPE_CHECKING

from egress_proxy.events import as_text
from egress_proxy.telemetry.sessions import Session, SessionList

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from egress_proxy.forwarding.plane import Session as OpenSession
    from egress_proxy.telemetry.sessions import Query

# How many sessions are read per turn of the event loop: about a millisecond's work.
_PER_TURN = 1000


async def list_sessions(
    connections: Iterable[OpenSession], query: Query, clock: Callable[[], float]
) -> SessionList:
    """The open sessions of `query`. `clock` is the one of the connections' times."""

    def size(connection: OpenSession) -> float:
        if query.sort == "bytes":
            return sum(connection.relayed)
        since = connection.accepted_at if query.sort == "age" else connection.touched
        return -inf if since is None else -since

    largest: list[OpenSession] = []
    total = 0
    remaining = iter(connections)
    while batch := list(islice(remaining, _PER_TURN)):
        wanted = [each for each in batch if query.listener in (None, each.origin.destination.port)]
        total += len(wanted)
        largest = heapq.nlargest(query.limit, [*largest, *wanted], key=size)
        await asyncio.sleep(0)
    now = clock()
    return SessionList(
        total=total,
        # Some have ended meanwhile.
        sessions=tuple(_session(each, now) for each in largest if not each.closed),
    )


def _session(connection: OpenSession, now: float) -> Session:
    to_upstream, to_client = connection.relayed
    return Session(
        listener=connection.origin.destination.port,
        destination=connection.origin.name,
        client=as_text(connection.client_address),
        address=as_text(connection.address),
        age_s=_elapsed(connection.accepted_at, now),
        idle_s=_elapsed(connection.touched, now),
        bytes_to_upstream=to_upstream,
        bytes_to_client=to_client,
    )


def _elapsed(since: float | None, now: float) -> float | None:
    return None if since is None else round(max(now - since, 0), 3)
