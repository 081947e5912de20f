"""Keeps names fresh: a `NameRefresher` looks its name up again whenever the answer expires.

A failed look-up does not remove addresses at once: a DNS outage must not become an outage of the
egress. IPv4 and IPv6 addresses are kept separately, and used for `stale_timeout_s` after the last
good answer (RFC 8767).

Trust boundary: an answer is data from outside. Addresses that are never connected to
(`address_policy.AddressPolicy`) are dropped here, so that no other module gets them. The policy
decides about a name as a whole, for all ports that lead to it.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, NamedTuple, Protocol

from egress_proxy.dns.answer import Answer, Lookup, LookupFailedError
from egress_proxy.events import (
    DaemonDefect,
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

# An answer is refreshed when its TTL runs out, but not before the
# floor and not after the ceiling.
TTL_FLOOR_S = 5.0
TTL_CEILING_S = 300.0
# Up to this share of the TTL is added, so that names of one answer do not stay in step.
JITTER = 0.1
_RETRY_FIRST_S = 1.0
_RETRY_LAST_S = 30.0
# The shortest time between two look-ups of a name.
EARLY_S = 1.0
_ALL_DENIED = "every address in the answer is one that is never connected to"
_VERSIONS = (4, 6)


class Port(Protocol):
    """What connects to addresses; it calls `on_all_failed` when none of them answers."""

    on_all_failed: Callable[[], None]

    @property
    def remote_port(self) -> int: ...

    def set_addresses(self, addresses: Sequence[Address]) -> None: ...


class _Good(NamedTuple):
    """The addresses of one family, and when they were answered (the loop's time)."""

    addresses: tuple[Address, ...]
    answered_at: float


class NameRefresher:
    """Keeps the addresses of one name fresh for all ports that lead to it.

    `policy` may be replaced; the next answer is checked against the new one, and `reapply_policy`
    applies it to the last answer at once. `stale_timeout_s` is how long the last good addresses are
    used while look-ups fail; 0: no limit.
    """

    def __init__(
        self,
        name: str,
        lookup: Lookup,
        observer: Observer,
        policy: AddressPolicy,
        stale_timeout_s: float = 0.0,
    ) -> None:
        self.name = name
        self.addresses: tuple[Address, ...] = ()
        self._lookup = lookup
        self._observer = observer
        self.policy = policy
        self._stale_timeout_s = stale_timeout_s
        # The last good answer by IP version, and the addresses in the last answer that are denied.
        self._good: dict[int, _Good] = {}
        self._denied: frozenset[Address] = frozenset()
        self._ports: list[Port] = []
        self._subscribers: list[Callable[[Sequence[Address]], None]] = []
        self._retry_s = _RETRY_FIRST_S
        self._refresh_requested = asyncio.Event()
        self.asked = asyncio.Event()

    def subscribe(self, port: Port) -> None:
        """Tell `port` the usable addresses, now and whenever they change."""
        self._ports.append(port)
        port.on_all_failed = self.refresh
        if self.addresses:
            port.set_addresses(self.addresses)

    def unsubscribe(self, port: Port) -> None:
        """Stop updating `port`."""
        self._ports.remove(port)

    def tell(self, use: Callable[[Sequence[Address]], None]) -> None:
        """As `subscribe`, for a function that connects to nothing."""
        self._subscribers.append(use)
        if self.addresses:
            use(self.addresses)

    def reapply_policy(self) -> None:
        """Use those addresses of the last good answers that `policy` allows, if any."""
        self._change(self._allowed(self._last_good()))
        if self._good and not self.addresses:
            self.refresh()

    def refresh(self) -> None:
        """Look up again soon: no address answers, or the name servers have changed."""
        self._refresh_requested.set()

    async def run(self) -> None:
        """Look up, wait until the answer has expired, look up again; until cancelled."""
        try:
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
        finally:
            # Let no task wait for a name that is no longer looked up.
            self.asked.set()

    async def _ask(self) -> float:
        """Look up once; the time in seconds until the next look-up."""
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        try:
            answer = await self._lookup(self.name)
        except LookupFailedError as error:
            return self._failed(str(error))
        now = loop.time()
        good = self._merge(answer, now)
        usable = self._allowed(_addresses(good))
        if usable and set(usable).isdisjoint(answer.addresses):
            usable = ()
        if not usable:
            return self._failed(_ALL_DENIED)
        self._retry_s = _RETRY_FIRST_S
        self._good = good
        self._observer.observe(
            DestinationResolved(
                destination=self.name,
                addresses=tuple(map(str, answer.addresses)),
                ttl_s=answer.ttl_s,
                lookup_s=now - asked_at,
            )
        )
        self._change(usable)
        ttl_s = min(max(answer.ttl_s, TTL_FLOOR_S), TTL_CEILING_S)
        # Not for cryptography: it spreads load.
        wait_s = ttl_s * random.uniform(1.0, 1.0 + JITTER)  # noqa: S311 - see above
        self._report_failed_families(answer, wait_s)
        return self._until_expiry(wait_s)

    def _merge(self, answer: Answer, now: float) -> dict[int, _Good]:
        """The addresses to use: `answer`, and the last good ones of a family that failed in it."""
        failed = {failure.version for failure in answer.failed}
        kept = self._not_expired(now)
        return {version: kept[version] for version in failed & kept.keys()} | {
            version: _Good(found, now)
            for version in _VERSIONS
            if version not in failed
            and (found := tuple(each for each in answer.addresses if each.version == version))
        }

    def _report_failed_families(self, answer: Answer, retry_s: float) -> None:
        for version, error in answer.failed:
            if version in self._good:
                self._observer.observe(
                    DestinationStale(
                        destination=self.name,
                        error=f"IPv{version}: {error}",
                        addresses=tuple(map(str, self._good[version].addresses)),
                        retry_s=retry_s,
                    )
                )

    def _change(self, usable: tuple[Address, ...]) -> None:
        """Pass `usable` to all subscribers, if it has changed."""
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
        for use in (*(port.set_addresses for port in self._ports), *self._subscribers):
            try:
                use(usable)
            except Exception as error:  # noqa: BLE001 - one port's defect must not stop the others
                self._observer.observe(DaemonDefect.of(error, f"addresses of {self.name}"))

    def _allowed(self, addresses: tuple[Address, ...]) -> tuple[Address, ...]:
        """Those of `addresses` that are not denied; the others are recorded."""
        remote_ports = {port.remote_port for port in self._ports}
        reasons = {
            address: reason
            for address in addresses
            if (reason := self.policy.why_denied(address, remote_ports))
        }
        # Recorded once, not with every answer.
        for address, reason in reasons.items():
            if address not in self._denied:
                self._observer.observe(
                    DestinationDenied(destination=self.name, address=str(address), error=reason)
                )
        self._denied = frozenset(reasons)
        return tuple(address for address in addresses if address not in reasons)

    def _failed(self, error: str) -> float:
        """Keep the last good addresses until they expire; the time until the next look-up."""
        retry_s = self._retry_s
        self._retry_s = min(2 * retry_s, _RETRY_LAST_S)
        good = self._not_expired(asyncio.get_running_loop().time())
        if good != self._good:
            error = f"{error}; no good answer for {self._stale_timeout_s:g} s"
            self._good = good
            self._change(self._allowed(self._last_good()))
        retry_s = self._until_expiry(retry_s)
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

    def _last_good(self) -> tuple[Address, ...]:
        return _addresses(self._good)

    def _not_expired(self, now: float) -> dict[int, _Good]:
        if not self._stale_timeout_s:
            return self._good
        return {
            version: good
            for version, good in self._good.items()
            if now - good.answered_at < self._stale_timeout_s
        }

    def _until_expiry(self, wait_s: float) -> float:
        """`wait_s`, or less when stale addresses expire before that."""
        if not self._stale_timeout_s or not self._good:
            return wait_s
        oldest = min(good.answered_at for good in self._good.values())
        left_s = oldest + self._stale_timeout_s - asyncio.get_running_loop().time()
        return min(wait_s, max(left_s, EARLY_S))


def _addresses(good: dict[int, _Good]) -> tuple[Address, ...]:
    """All addresses, IPv4 first."""
    return tuple(
        address for version in _VERSIONS if version in good for address in good[version].addresses
    )
