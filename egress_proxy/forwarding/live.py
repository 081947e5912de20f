"""Totals of the connections of one destination that have no record yet, or get none.

Connections with a record are counted by the observers of their events. At any moment, these figures
and those of the events add up to the totals.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Live:
    """`active` connections are open, `ended` ones have ended without a record.

    `established` ones of both have reached an upstream. The figures are those at the last call of
    `Plane.count`. Where the daemon itself relays, every connection gets a record.
    """

    active: int = 0
    ended: int = 0
    established: int = 0
    bytes_to_upstream: int = 0
    bytes_to_client: int = 0

    def __add__(self, other: Live) -> Live:
        return Live(
            self.active + other.active,
            self.ended + other.ended,
            self.established + other.established,
            self.bytes_to_upstream + other.bytes_to_upstream,
            self.bytes_to_client + other.bytes_to_client,
        )
