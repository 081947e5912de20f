"""Names stay fresh: a `NameRefresher` asks again whenever an answer grows old.

It never lets a failure take away what a good answer gave: an outage of DNS must not become one of
the egress.

Trust boundary: an answer is data from outside. Addresses that are never connected to
(`policy.AddressPolicy`) are dropped here, so that nothing behind this module sees them. A name is
judged as a whole, for all ports that lead to it.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Protocol

from egress_proxy.dns.resolver import Lookup, LookupFailedError
from egress_proxy.events import (
    DestinationChanged,
    DestinationDenied,
    DestinationResolved,
    DestinationStale,
    DestinationUnresolved,
    Observer,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from egress_proxy.config.address_policy import AddressPolicy
    from egress_proxy.ip import Address

# An answer is asked for again when its TTL runs out, but neither in a storm nor after hours.
TTL_FLOOR_S = 5.0
TTL_CEILING_S = 300.0
# Up to so much of the TTL on top, so that names of one answer time don't stay in step.
JITTER = 0.1
_RETRY_FIRST_S = 1.0
_RETRY_LAST_S = 30.0
# An early refresh comes at most once in so long.
EARLY_S = 1.0
_ALL_DENIED = "every address in the answer is one that is never connected to"


class Port(Protocol):
    """What connects to addresses; it calls `on_all_failed` when none of them answers."""

    on_all_failed: Callable[[], None]

    @property
    def remote_port(self) -> int: ...

    def set_addresses(self, addresses: Sequence[Address]) -> None: ...


class NameRefresher:
    """Keeps the addresses of one name fresh for all ports that lead to it.

    `policy` may be replaced; the next answer is judged by the new ones, and `judge` does not wait
    for it.
    """

    def __init__(
        self,
        name: str,
        lookup: Lookup,
        observer: Observer,
        policy: AddressPolicy,
    ) -> None:
        self.name = name
        self.addresses: tuple[Address, ...] = ()
        self._lookup = lookup
        self._observer = observer
        self.policy = policy
        # The last good answer, and what is denied of the last one.
        self._answered: tuple[Address, ...] = ()
        self._denied: frozenset[Address] = frozenset()
        self._ports: list[Port] = []
        self._users: list[Callable[[Sequence[Address]], None]] = []
        self._retry_s = _RETRY_FIRST_S
        self._refresh_requested = asyncio.Event()
        self.asked = asyncio.Event()

    def subscribe(self, port: Port) -> None:
        """Tell `port` the usable addresses, now and whenever they are others than before."""
        self._ports.append(port)
        port.on_all_failed = self.refresh
        if self.addresses:
            port.set_addresses(self.addresses)

    def unsubscribe(self, port: Port) -> None:
        """Tell `port` nothing more."""
        self._ports.remove(port)

    def tell(self, use: Callable[[Sequence[Address]], None]) -> None:
        """The same as `serve`, for whoever only wants to know."""
        self._users.append(use)
        if self.addresses:
            use(self.addresses)

    def reapply_policy(self) -> None:
        """Use what `policy` leaves of the last good answer, and nothing if that is nothing."""
        self._change(self._allowed(self._answered))
        if self._answered and not self.addresses:
            self.refresh()

    def refresh(self) -> None:
        """Ask again soon: no address answers, or there is somebody else to ask."""
        self._refresh_requested.set()

    async def run(self) -> None:
        """Ask, wait until the answer has grown old, ask again; until cancelled."""
        while True:
            self._refresh_requested.clear()
            wait_s = await self._ask()
            self.asked.set()
            await asyncio.sleep(EARLY_S)
            try:
                async with asyncio.timeout(wait_s - EARLY_S):
                    await self._refresh_requested.wait()
            except TimeoutError:
                pass

    async def _ask(self) -> float:
        """Ask once; the time in seconds until the next question."""
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        try:
            answer = await self._lookup(self.name)
            usable = self._allowed(answer.addresses)
            if not usable:
                raise LookupFailedError(_ALL_DENIED)  # noqa: TRY301 - a failure like the others
        except LookupFailedError as error:
            return self._failed(str(error))
        self._retry_s = _RETRY_FIRST_S
        self._observer.observe(
            DestinationResolved(
                destination=self.name,
                addresses=tuple(map(str, answer.addresses)),
                ttl_s=answer.ttl_s,
                lookup_s=loop.time() - asked_at,
            )
        )
        self._answered = answer.addresses
        self._change(usable)
        ttl_s = min(max(answer.ttl_s, TTL_FLOOR_S), TTL_CEILING_S)
        return ttl_s * random.uniform(1.0, 1.0 + JITTER)  # noqa: S311 - spreads load, guards nothing

    def _change(self, usable: tuple[Address, ...]) -> None:
        """Tell `usable`, if it is other than before."""
        if set(usable) == set(self.addresses):
            return
        before, self.addresses = self.addresses, usable
        self._observer.observe(
            DestinationChanged(
                destination=self.name,
                addresses=tuple(map(str, usable)),
                before=tuple(map(str, before)),
            )
        )
        for port in self._ports:
            port.set_addresses(usable)
        for use in self._users:
            use(usable)

    def _allowed(self, addresses: tuple[Address, ...]) -> tuple[Address, ...]:
        """Those of `addresses` that are not denied; the others are told."""
        remote_ports = {port.remote_port for port in self._ports}
        reasons = {
            address: reason
            for address in addresses
            if (reason := self.policy.why_denied(address, remote_ports))
        }
        # Told once, not with every answer.
        for address, reason in reasons.items():
            if address not in self._denied:
                self._observer.observe(
                    DestinationDenied(destination=self.name, address=str(address), error=reason)
                )
        self._denied = frozenset(reasons)
        return tuple(address for address in addresses if address not in reasons)

    def _failed(self, error: str) -> float:
        retry_s = self._retry_s
        self._retry_s = min(2 * retry_s, _RETRY_LAST_S)
        if self.addresses:
            self._observer.observe(
                DestinationStale(
                    destination=self.name,
                    error=error,
                    addresses=tuple(map(str, self.addresses)),
                    retry_s=retry_s,
                )
            )
        else:
            self._observer.observe(
                DestinationUnresolved(destination=self.name, error=error, retry_s=retry_s)
            )
        return retry_s
