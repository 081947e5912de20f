"""Clients that wait for the source address: with high availability, a pod has it only at times.

A standby accepts clients too, because the Service may send them to it a moment before it takes over
the address. They wait here for at most the connect timeout.
"""

from __future__ import annotations

from typing import Protocol


class Waiting(Protocol):
    """A client without an upstream."""

    def source_is_there(self) -> None: ...


class SourceGate:
    """`is_open` while there is a source address to connect from."""

    def __init__(self, *, is_open: bool = True) -> None:
        self.is_open = is_open
        self._waiting: dict[Waiting, None] = {}

    def wait(self, client: Waiting) -> None:
        """Call `source_is_there` of `client` once there is a source, unless it leaves before."""
        self._waiting[client] = None

    def leave(self, client: Waiting) -> None:
        self._waiting.pop(client, None)

    def open(self) -> None:
        """There is a source address: the waiting clients may connect."""
        self.is_open = True
        waiting, self._waiting = self._waiting, {}
        for client in waiting:
            client.source_is_there()

    def close(self) -> None:
        self.is_open = False
