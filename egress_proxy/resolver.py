"""Names become addresses, and stay fresh.

`Resolver` asks once; `NameKeeper` asks again whenever an answer grows old, and never lets a
failure take away what a good answer gave: an outage of DNS must not become one of the egress.

Trust boundary: an answer is data from outside. Addresses that are never connected to
(`destinations.denied_reason`) are dropped here, so that nothing behind this module sees them.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import aiodns

from egress_proxy.destinations import denied_reason
from egress_proxy.records import (
    DestinationChanged,
    DestinationDenied,
    DestinationResolved,
    DestinationStale,
    DestinationUnresolved,
    Observer,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from egress_proxy.variables import Address

# An answer is asked for again when its TTL runs out, but neither in a storm nor after hours.
_TTL_FLOOR_S = 5.0
_TTL_CEILING_S = 300.0
# Up to so much of the TTL on top, so that names of one answer time don't stay in step.
_JITTER = 0.1
_RETRY_FIRST_S = 1.0
_RETRY_LAST_S = 30.0
# An early refresh comes at most once in so long.
_EARLY_S = 1.0
# ares_getaddrinfo(3), ARES_AI_NOSORT in ares.h: keep the order of the answer. c-ares would open a
# socket to each address to sort them.
_ARES_AI_NOSORT = 1 << 7
# For one look-up, with all its servers, retries and the search list.
_LOOKUP_TIMEOUT_S = 10.0


class LookupFailedError(Exception):
    """A name has no address now; the text says why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The addresses of a name, in the order of the answer, good for `ttl_s` seconds."""

    addresses: tuple[Address, ...]
    ttl_s: float


class Lookup(Protocol):
    """Asks for a name once."""

    async def __call__(self, name: str) -> Answer:
        """The answer; raises `LookupFailedError`."""


class Port(Protocol):
    """What uses addresses; it calls `on_all_failed` when none of them answers."""

    on_all_failed: Callable[[], None]

    def use(self, addresses: Sequence[Address]) -> None: ...


class Resolver:
    """One c-ares channel for the whole process (several would each hold an inotify watch).

    `nameservers` are ``address:port`` texts; none means resolv.conf's. Only addresses of
    `families` are asked for.
    """

    def __init__(self, nameservers: tuple[str, ...], families: Collection[int]) -> None:
        self._family = socket.AF_UNSPEC if len(families) > 1 else socket.AddressFamily(*families)
        # With ndots:1 a name of two labels is asked for as it is before the search list, which
        # Kubernetes' usual ndots:5 would put first.
        self._channel = aiodns.DNSResolver(nameservers or None, ndots=1)

    async def lookup(self, name: str) -> Answer:
        """The answer; raises `LookupFailedError`."""
        try:
            async with asyncio.timeout(_LOOKUP_TIMEOUT_S):
                result = await self._channel.getaddrinfo(
                    name,
                    family=self._family,
                    type=socket.SOCK_STREAM,
                    flags=_ARES_AI_NOSORT,
                )
        except aiodns.error.DNSError as error:
            raise LookupFailedError(error.args[1]) from None
        except TimeoutError:
            raise LookupFailedError(f"no answer within {_LOOKUP_TIMEOUT_S:.0f} s") from None
        if not result.nodes:
            raise LookupFailedError("the answer holds no address")
        return Answer(
            addresses=tuple(
                dict.fromkeys(ipaddress.ip_address(node.addr[0].decode()) for node in result.nodes)
            ),
            ttl_s=min(node.ttl for node in result.nodes),
        )

    async def close(self) -> None:
        await self._channel.close()


class NameKeeper:
    """Keeps the addresses of one name fresh for all ports that lead to it."""

    def __init__(
        self,
        name: str,
        lookup: Lookup,
        observer: Observer,
        *,
        loopback_allowed: bool,
    ) -> None:
        self.name = name
        self.addresses: tuple[Address, ...] = ()
        self._lookup = lookup
        self._observer = observer
        self._ports: list[Port] = []
        self._loopback_allowed = loopback_allowed
        self._retry_s = _RETRY_FIRST_S
        self._wanted = asyncio.Event()
        self.asked = asyncio.Event()

    def serve(self, port: Port) -> None:
        """Tell `port` the usable addresses, now and whenever they are others than before."""
        self._ports.append(port)
        port.on_all_failed = self.refresh
        if self.addresses:
            port.use(self.addresses)

    def forget(self, port: Port) -> None:
        """Tell `port` nothing more."""
        self._ports.remove(port)

    def refresh(self) -> None:
        """Ask again soon: none of the addresses answers."""
        self._wanted.set()

    async def run(self) -> None:
        """Ask, wait until the answer has grown old, ask again; until cancelled."""
        while True:
            wait_s = await self._ask()
            self.asked.set()
            self._wanted.clear()
            await asyncio.sleep(_EARLY_S)
            try:
                async with asyncio.timeout(wait_s - _EARLY_S):
                    await self._wanted.wait()
            except TimeoutError:
                pass

    async def _ask(self) -> float:
        """Ask once; the time in seconds until the next question."""
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        try:
            answer = await self._lookup(self.name)
            usable = self._usable(answer)
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
        if set(usable) != set(self.addresses):
            before, self.addresses = self.addresses, usable
            self._observer.observe(
                DestinationChanged(
                    destination=self.name,
                    addresses=tuple(map(str, usable)),
                    before=tuple(map(str, before)),
                )
            )
            for port in self._ports:
                port.use(usable)
        ttl_s = min(max(answer.ttl_s, _TTL_FLOOR_S), _TTL_CEILING_S)
        return ttl_s * random.uniform(1.0, 1.0 + _JITTER)  # noqa: S311 - spreads load, guards nothing

    def _usable(self, answer: Answer) -> tuple[Address, ...]:
        usable = []
        for address in answer.addresses:
            reason = denied_reason(address, loopback_allowed=self._loopback_allowed)
            if reason is None:
                usable.append(address)
            else:
                self._observer.observe(
                    DestinationDenied(destination=self.name, address=str(address), error=reason)
                )
        if not usable:
            raise LookupFailedError("every address in the answer is one that is never connected to")
        return tuple(usable)

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
