"""Names become addresses: one question, one answer, over c-ares.

`Resolver` asks for a name as it is, then with the search list of resolv.conf behind it, over UDP
and, where an answer is truncated, over TCP. It remembers nothing: when to ask again is decided by
`names.NameRefresher`. c-ares would keep answers for their TTL, and empty ones for longer than a pod
should stay without an address, so its memory is emptied after every answer.

Not here: retries (c-ares has its own, and the refresher's backoff follows), DNSSEC, DNS over TLS,
and a second resolver for when c-ares can't reach a server: libc would ask the same servers, in a
thread that can't be cancelled, and gives no TTL.

Trust boundary: an answer is data from outside. Who uses it judges its addresses
(`policy.AddressPolicy`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import aiodns
import pycares

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from egress_proxy.ip import Address

RESOLV_CONF = Path("/etc/resolv.conf")

# ares_getaddrinfo(3), ARES_AI_NOSORT in ares.h: keep the order of the answer. c-ares would open a
# socket to each address to sort them.
_ARES_AI_NOSORT = 1 << 7
# A name may have as many as fit into 64 KiB; more than these are of no use to a rotation.
MAX_ADDRESSES = 256
# How often resolv.conf is looked at: what c-ares watches by inotify, it does not see where there
# are no watches left, or where a container has the file from elsewhere.
WATCH_S = 2.0

# The part of a look-up's time after which IPv6 is asked for alone: once c-ares has an A it tries a
# silent AAAA no more, but never gives up an A for an AAAA that it has. Its tries begin after 0, 2
# and 6 s.
_BOTH_SHARE = 0.7

# What c-ares says of servers that can't be reached or do not answer.
_UNREACHED = frozenset({aiodns.error.ARES_ECONNREFUSED, aiodns.error.ARES_ETIMEOUT})


class LookupFailedError(Exception):
    """A name has no address now; the text says why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The addresses of a name, in the order of the answer, good for `ttl_s` seconds."""

    addresses: tuple[Address, ...]
    ttl_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What look-ups may take.

    `lookup_s` is for one of them, with all its servers, retries and the search list. Those beyond
    `at_once` wait for a place: a large configuration is no burst on the cluster's DNS. `forget_s`
    after an answer c-ares forgets it, in a thread and within milliseconds; the same name is not
    asked for again before a second has passed (names.EARLY_S).
    """

    lookup_s: float = 10.0
    at_once: int = 64
    forget_s: float = 0.25


class Lookup(Protocol):
    """Asks for a name once."""

    async def __call__(self, name: str) -> Answer:
        """The answer; raises `LookupFailedError`."""


class Resolver:
    """One c-ares channel for the whole process (each holds a thread and an inotify watch).

    `nameservers` are ``address:port`` texts; none means those of resolv.conf, which c-ares reads by
    itself: `resolv_conf` is the file that is watched for changes. Only addresses of `families` are
    asked for.
    """

    def __init__(
        self,
        nameservers: tuple[str, ...],
        families: Collection[int],
        *,
        resolv_conf: Path = RESOLV_CONF,
        bounds: Bounds = Bounds(),
    ) -> None:
        self._nameservers = nameservers
        self._family = socket.AF_UNSPEC if len(families) > 1 else socket.AddressFamily(*families)
        self._resolv_conf = resolv_conf
        self._bounds = bounds
        self._seen = _version(resolv_conf)
        self._places = asyncio.Semaphore(bounds.at_once)
        self._forgetting: asyncio.TimerHandle | None = None
        self._channel = self._open()

    def _open(self) -> _Channel:
        # With ndots:1 a name of two labels is asked for as it is before the search list, which
        # Kubernetes' usual ndots:5 would put first.
        return _Channel(self._nameservers or None, ndots=1)

    async def lookup(self, name: str) -> Answer:
        """The answer; raises `LookupFailedError`, in bounded time once it has a place."""
        async with self._places:
            try:
                async with asyncio.timeout(self._bounds.lookup_s):
                    result = await self._ask(name)
            except aiodns.error.DNSError as error:
                raise LookupFailedError(self._explain(*error.args)) from None
            except TimeoutError:
                reason = self._explain(
                    aiodns.error.ARES_ETIMEOUT, f"no answer within {self._bounds.lookup_s:g} s"
                )
                raise LookupFailedError(reason) from None
            finally:
                self._forget_soon()
        return _read(result)

    async def watch(self, changed: Callable[[], None], *, interval_s: float = WATCH_S) -> None:
        """Ask as resolv.conf says, and call `changed` when it says something else; until cancelled.

        A file that is gone for a moment changes nothing.
        """
        while True:
            await asyncio.sleep(interval_s)
            seen = _version(self._resolv_conf)
            # Out of descriptors, the next look finds the same change.
            with contextlib.suppress(pycares.AresError):
                if seen not in {None, self._seen}:
                    # Made anew: one that reads the file again keeps a search list that is gone.
                    stale, self._channel = self._channel, self._open()
                    self._seen = seen
                    await stale.close()
                    changed()

    async def close(self) -> None:
        if self._forgetting is not None:
            self._forgetting.cancel()
        await self._channel.close()

    async def _ask(self, name: str) -> pycares.AddrInfoResult:
        if self._family is not socket.AF_UNSPEC:
            return await self._ask_for(name, self._family)
        try:
            async with asyncio.timeout(_BOTH_SHARE * self._bounds.lookup_s):
                return await self._ask_for(name, self._family)
        except TimeoutError:
            # With its dot it is no other name out of the search list.
            return await self._ask_for(f"{name.removesuffix('.')}.", socket.AF_INET6)

    async def _ask_for(self, name: str, family: socket.AddressFamily) -> pycares.AddrInfoResult:
        while True:
            channel = self._channel
            try:
                return await channel.getaddrinfo(
                    name, family=family, type=socket.SOCK_STREAM, flags=_ARES_AI_NOSORT
                )
            except aiodns.error.DNSError:
                # A channel that was closed under the question has not answered it.
                if channel is self._channel:
                    raise

    def _explain(self, number: int, reason: str) -> str:
        if number not in _UNREACHED:
            return reason
        servers = ", ".join(self._channel.servers)
        return (
            f"{reason} (asked {servers}): correct {self._resolv_conf}, or name servers in "
            "EGRESS_DNS_PROXY_NAMESERVERS"
        )

    def _forget_soon(self) -> None:
        if self._forgetting is None:
            loop = asyncio.get_running_loop()
            self._forgetting = loop.call_later(self._bounds.forget_s, self._forget)

    def _forget(self) -> None:
        self._forgetting = None
        self._channel.forget()


class _Channel(aiodns.DNSResolver):
    """What aiodns leaves out of pycares."""

    @property
    def servers(self) -> list[str]:
        """``address:port`` of each server; 127.0.0.1 where none is configured."""
        return self._channel.servers

    def forget(self) -> None:
        """Empty the cache; look-ups under way go on (ares_reinit(3))."""
        # Out of memory or threads: what follows the next answer does it.
        with contextlib.suppress(pycares.AresError):
            self._channel.reinit()


def _read(result: pycares.AddrInfoResult) -> Answer:
    if not result.nodes:
        raise LookupFailedError("the answer holds no address")
    addresses = dict.fromkeys(
        ipaddress.ip_address(node.addr[0].decode()) for node in result.nodes[:MAX_ADDRESSES]
    )
    # An alias may point elsewhere before the addresses it points to have grown old.
    ttls = [node.ttl for node in result.nodes] + [alias.ttl for alias in result.cnames]
    return Answer(tuple(addresses), min(ttls))


def _version(path: Path) -> tuple[int, ...] | None:
    """What changes when a file is rewritten or replaced; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
