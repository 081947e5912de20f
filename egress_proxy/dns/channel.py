"""A c-ares channel, with what aiodns leaves out of pycares."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import aiodns
import pycares

if TYPE_CHECKING:
    from collections.abc import Collection

    from egress_proxy.ip import Address


class Channel(aiodns.DNSResolver):
    """Asks name servers; each channel has a thread and an inotify watch."""

    @property
    def servers(self) -> list[str]:
        """``address:port`` of each server."""
        return self._channel.servers

    def send_from(self, addresses: Collection[Address]) -> None:
        """Bind the sockets to these, at most one of each family (ares_set_local_ip4(3))."""
        for address in addresses:
            self._channel.set_local_ip(str(address))  # type: ignore[no-untyped-call] # without types

    def forget(self) -> None:
        """Empty the cache; look-ups under way go on (ares_reinit(3))."""
        # Out of memory or threads: the next answer tries again.
        with contextlib.suppress(pycares.AresError):
            self._channel.reinit()
