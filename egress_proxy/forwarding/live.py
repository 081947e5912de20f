"""Totals of the open connections of one destination.

Connections that have ended are counted by the observers of their events. At any moment, these
figures and those of the events add up to the totals.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Live:
    """Open connections; `established` ones have reached an upstream.

    The bytes are those at the last call of `Connection.count_bytes`.
    """

    active: int = 0
    established: int = 0
    bytes_to_upstream: int = 0
    bytes_to_client: int = 0

    def __add__(self, other: Live) -> Live:
        return Live(
            self.active + other.active,
            self.established + other.established,
            self.bytes_to_upstream + other.bytes_to_upstream,
            self.bytes_to_client + other.bytes_to_client,
        )
